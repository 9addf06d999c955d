//! A client that says anything, before the server's session.
//!
//! What must hold:
//! - no panic, and what the session puts out stays in proportion to what it took in;
//! - how the bytes are cut into pieces makes no difference: same events, same answers;
//! - what it asks of the store lies within the export, is not too long, and changes nothing that is read-only;
//! - the session never takes more than it was given, and after its end it asks for nothing.

use tanada_nbd::proto::{CMD_WRITE, NBD_EIO, OPTION_BYTES_MAX, OptionHeader, PAYLOAD_BYTES_MAX, RequestHeader};
use tanada_nbd::server::{Ask, Event, ExportInfo, Exports, Session, reply};

use crate::Script;

/// Bytes of one client at most.
const STREAM_BYTES_MAX: usize = 256 << 10;

struct Names;

impl Exports for Names {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        match name {
            "" => Some(ExportInfo { size: 0, read_only: false }),
            "a" => Some(ExportInfo { size: 1 << 20, read_only: false }),
            "b" => Some(ExportInfo { size: !0xfff, read_only: true }),
            _ => None,
        }
    }

    fn list(&self) -> Option<Vec<String>> {
        Some(["", "a", "b"].map(str::to_owned).to_vec())
    }
}

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let pieces: Vec<usize> = (0..4).map(|_| 1 + usize::from(script.byte())).collect();
    let stream =
        if script.byte().is_multiple_of(8) { script.bytes(STREAM_BYTES_MAX).to_vec() } else { compose(&mut script) };
    let whole = converse(&stream, &[usize::MAX]);
    let cut = converse(&stream, &pieces);
    assert_eq!(whole, cut, "the pieces in which bytes arrive make a difference");
}

/// Messages that are nearly right.
fn compose(script: &mut Script<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    let flags = script.byte();
    stream.extend_from_slice(&u32::from(flags).to_be_bytes());
    while !script.is_over() && stream.len() < STREAM_BYTES_MAX {
        match script.byte() % 8 {
            0 => stream.extend_from_slice(script.bytes(32)),
            1..=3 => option(&mut stream, script),
            _ => request(&mut stream, script),
        }
    }
    stream
}

fn text(bytes: &mut Vec<u8>, script: &mut Script<'_>) {
    let names: [&[u8]; 8] = [
        b"a",
        b"b",
        b"",
        b"base:allocation",
        b"base:",
        b"qemu:dirty-bitmap:00000000-0000-0000-0000-000000000001",
        b"qemu:dirty-bitmap:",
        b"x",
    ];
    let kind = script.byte();
    let length = usize::from(script.byte());
    let name = if kind % 16 == 15 { script.bytes(length) } else { names[usize::from(kind) % 8] };
    let said = if kind & 0x40 == 0 { name.len() as u32 } else { script.value(name.len() as u64) as u32 };
    bytes.extend_from_slice(&said.to_be_bytes());
    bytes.extend_from_slice(name);
}

fn option(stream: &mut Vec<u8>, script: &mut Script<'_>) {
    let option = u32::from(script.byte() % 16);
    let mut data = Vec::new();
    match option {
        // EXPORT_NAME: the name alone.
        1 => data.extend_from_slice([&b"a"[..], b"b", b"", b"x"][script.below(4)]),
        6 | 7 => {
            text(&mut data, script);
            let count = script.byte() % 5;
            data.extend_from_slice(&u16::from(count).to_be_bytes());
            (0..count).for_each(|_| data.extend_from_slice(&u16::from(script.byte() % 6).to_be_bytes()));
        }
        9 | 10 => {
            text(&mut data, script);
            let count = script.byte() % 20;
            data.extend_from_slice(&u32::from(count).to_be_bytes());
            (0..count).for_each(|_| text(&mut data, script));
        }
        _ => data.extend_from_slice(script.bytes(option as usize)),
    }
    let is_honest = !script.byte().is_multiple_of(16);
    let length = if is_honest { data.len() as u64 } else { script.value(data.len() as u64) };
    stream.extend_from_slice(&OptionHeader { option, length: length as u32 }.encode());
    stream.extend_from_slice(&data);
}

fn request(stream: &mut Vec<u8>, script: &mut Script<'_>) {
    let command = u16::from(script.byte() % 10);
    let flags = u16::from(script.byte() % 64);
    let offset = script.value(0);
    let mut length = script.value(4096) as u32;
    if command == CMD_WRITE && !script.byte().is_multiple_of(8) {
        length %= 10_000;
    }
    let cookie = script.number(2);
    stream.extend_from_slice(&RequestHeader { flags, command, cookie, offset, length }.encode());
    if command == CMD_WRITE && length <= 10_000 {
        stream.resize(stream.len() + length as usize, 0x5a);
    }
}

/// What a conversation came to.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    events: Vec<Event>,
    out: Vec<u8>,
    /// Why the session broke off.
    error: Option<String>,
}

/// A server's loop, as the data plane has it: what arrives is kept until it is used, payloads pass by.
fn converse(stream: &[u8], pieces: &[usize]) -> Trace {
    let mut trace = Trace { events: Vec::new(), out: Vec::new(), error: None };
    let mut session = Session::start(&mut trace.out);
    let (mut start, mut end, mut payload) = (0, 0, 0);
    let mut export = None;
    for piece in pieces.iter().cycle() {
        if end == stream.len() {
            break;
        }
        end = stream.len().min(end.saturating_add(*piece));
        loop {
            let skipped = payload.min(end - start);
            start += skipped;
            payload -= skipped;
            if payload > 0 {
                break;
            }
            let step = match session.advance(&stream[start..end], &Names, &mut trace.out) {
                Ok(step) => step,
                Err(error) => {
                    trace.error = Some(error.to_string());
                    return trace;
                }
            };
            assert!(step.consumed <= end - start, "took {} of {} bytes", step.consumed, end - start);
            let is_idle = step.is_idle();
            start += step.consumed;
            if let Some(event) = step.event {
                payload = answer(&event, &mut export, &session, &mut trace.out);
                let is_closed = event == Event::Closed;
                trace.events.push(event);
                if is_closed {
                    ended(&mut session, &stream[start..], &mut trace.out);
                    return trace;
                }
            }
            if is_idle {
                assert!(end - start <= OPTION_BYTES_MAX as usize + 64, "{} bytes kept waiting", end - start);
                break;
            }
        }
    }
    // Sixteen names at most in a listing, each context asked for once: nothing multiplies.
    assert!(trace.out.len() <= 4096 + 64 * stream.len(), "{} bytes in, {} out", stream.len(), trace.out.len());
    trace
}

/// Checks what the session asks for, answers it; returns the bytes of payload that follow in the stream.
fn answer(event: &Event, export: &mut Option<ExportInfo>, session: &Session, out: &mut Vec<u8>) -> usize {
    let (cookie, ask) = match event {
        Event::Entered { export: name } => {
            assert!(export.is_none(), "entered twice");
            *export = Names.find(name);
            assert!(export.is_some(), "entered {name:?}, which does not exist");
            return 0;
        }
        Event::Closed => return 0,
        Event::Asked { cookie, ask } => (*cookie, ask),
    };
    let info = export.expect("asked before having entered");
    let structured = session.is_structured();
    let (offset, length, changes) = match ask {
        Ask::Read { offset, length, .. } => (*offset, u64::from(*length), false),
        Ask::BlockStatus { offset, length, .. } => {
            assert!(!session.contexts().is_empty() && structured, "block status without a context");
            (*offset, u64::from(*length), false)
        }
        Ask::Write { offset, length, .. } => (*offset, u64::from(*length), true),
        Ask::Trim { offset, length, .. } | Ask::WriteZeroes { offset, length, .. } => {
            (*offset, u64::from(*length), true)
        }
        Ask::Flush | Ask::Nothing { .. } => {
            reply::done(out, cookie);
            return 0;
        }
        Ask::Refuse { error, reason, payload } => {
            assert!(*error != 0 && !reason.is_empty() && *payload <= PAYLOAD_BYTES_MAX, "{ask:?}");
            reply::error(out, structured, cookie, *error, reason);
            return *payload as usize;
        }
    };
    assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= info.size), "{ask:?} of {info:?}");
    assert!(!(changes && info.read_only), "{ask:?} of a read-only export");
    if matches!(ask, Ask::Read { .. } | Ask::Write { .. }) {
        assert!(length <= u64::from(PAYLOAD_BYTES_MAX), "{ask:?}");
    }
    reply::error(out, structured, cookie, NBD_EIO, "the answer to everything");
    if matches!(ask, Ask::Write { .. }) { length as usize } else { 0 }
}

/// After its end a session swallows and says nothing.
fn ended(session: &mut Session, rest: &[u8], out: &mut Vec<u8>) {
    let before = out.len();
    let step = session.advance(rest, &Names, out).expect("nothing is wrong any more");
    assert!(step.event.is_none() && out.len() == before, "a session goes on after its end");
}
