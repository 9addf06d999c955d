use super::{Ask, Context, Event, ExportInfo, Exports, Session};
use crate::proto::{
    CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_READ, CMD_WRITE,
    CMD_WRITE_ZEROES, NBD_EINVAL, NBD_ENOSPC, NBD_ENOTSUP, NBD_EOVERFLOW, NBD_EPERM, OPT_ABORT, OPT_EXPORT_NAME,
    OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS,
    OPT_STRUCTURED_REPLY, OPTION_REPLY_HEADER_BYTES, OptionHeader, OptionReplyHeader, ProtocolError, REP_ACK,
    REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT, RequestHeader,
};

const DISK: &str = "disk";
const KEPT: &str = "kept";
const SINCE: &str = "00000000-1111-2222-3333-444444444444";

struct Two;

impl Exports for Two {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        match name {
            DISK => Some(ExportInfo { size: 1 << 30, read_only: false }),
            KEPT => Some(ExportInfo { size: 1 << 20, read_only: true }),
            _ => None,
        }
    }
}

/// Feeds all of `input` and gathers what comes out.
fn feed(session: &mut Session, mut input: &[u8]) -> Result<(Vec<Event>, Vec<u8>), ProtocolError> {
    let (mut events, mut out) = (Vec::new(), Vec::new());
    loop {
        let step = session.advance(input, &Two, &mut out)?;
        if step.is_idle() {
            assert!(input.is_empty(), "{} bytes were not taken", input.len());
            return Ok((events, out));
        }
        input = &input[step.consumed..];
        events.extend(step.event);
    }
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OptionHeader { option, length: data.len() as u32 }.encode().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(rest);
    data
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut rest = (queries.len() as u32).to_be_bytes().to_vec();
    for query in queries {
        rest.extend_from_slice(&named(query, &[]));
    }
    named(name, &rest)
}

/// Splits option replies into their kinds and data.
fn replies(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<OPTION_REPLY_HEADER_BYTES>() {
        let header = OptionReplyHeader::decode(head).unwrap();
        let (data, rest) = rest.split_at(header.length as usize);
        all.push((header.kind, data.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    all
}

fn kinds(session: &mut Session, input: &[u8]) -> Vec<u32> {
    replies(&feed(session, input).unwrap().1).into_iter().map(|(kind, _)| kind).collect()
}

fn negotiating() -> Session {
    let mut greeting = Vec::new();
    let mut session = Session::start(&mut greeting);
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
    feed(&mut session, &3u32.to_be_bytes()).unwrap();
    session
}

fn entered(name: &str, contexts: &[&str]) -> Session {
    let mut session = negotiating();
    if !contexts.is_empty() {
        assert_eq!(kinds(&mut session, &option(OPT_STRUCTURED_REPLY, &[])), [REP_ACK]);
        feed(&mut session, &option(OPT_SET_META_CONTEXT, &meta(name, contexts))).unwrap();
    }
    let (events, _) = feed(&mut session, &option(OPT_GO, &named(name, &[0, 0]))).unwrap();
    assert_eq!(events, [Event::Entered { export: name.to_owned() }]);
    session
}

fn ask(session: &mut Session, command: u16, flags: u16, offset: u64, length: u32) -> Ask {
    let request = RequestHeader { flags, command, cookie: 77, offset, length };
    let (mut events, _) = feed(session, &request.encode()).unwrap();
    match events.pop() {
        Some(Event::Asked { cookie: 77, ask }) => ask,
        other => panic!("{other:?}"),
    }
}

fn refused(session: &mut Session, command: u16, flags: u16, offset: u64, length: u32) -> (u32, u32) {
    match ask(session, command, flags, offset, length) {
        Ask::Refuse { error, payload, .. } => (error, payload),
        other => panic!("{other:?} was not refused"),
    }
}

#[test]
fn go_tells_size_and_flags_and_enters() {
    let mut session = negotiating();
    let (events, out) = feed(&mut session, &option(OPT_GO, &named(DISK, &[0, 0]))).unwrap();
    assert_eq!(events, [Event::Entered { export: DISK.to_owned() }]);
    let replies = replies(&out);
    assert_eq!(replies.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [REP_INFO, REP_INFO, REP_ACK]);
    // Flags: has-flags, flush, FUA, trim, write-zeroes, multi-conn, cache, fast-zero; no DF without structured replies.
    assert_eq!(replies[0].1, [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0x0d, 0x6d]);
    assert_eq!(replies[1].1, [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    assert!(!session.is_structured());
}

#[test]
fn info_and_errors_leave_the_client_in_negotiation() {
    let mut session = negotiating();
    assert_eq!(kinds(&mut session, &option(OPT_INFO, &named(KEPT, &[0, 1, 0, 1]))).last(), Some(&REP_ACK));
    assert_eq!(kinds(&mut session, &option(OPT_GO, &named("nothing", &[0, 0]))), [REP_ERR_UNKNOWN]);
    assert_eq!(kinds(&mut session, &option(OPT_GO, &[0, 0, 9])), [REP_ERR_INVALID]);
    assert_eq!(kinds(&mut session, &option(OPT_LIST, &[])), [REP_ERR_POLICY]);
    assert_eq!(kinds(&mut session, &option(OPT_LIST, &[1])), [REP_ERR_INVALID]);
    for unknown in [OPT_EXTENDED_HEADERS, OPT_STARTTLS, 4, 12, 0x9999] {
        assert_eq!(kinds(&mut session, &option(unknown, &[7; 300])), [REP_ERR_UNSUP]);
    }
    let (events, out) = feed(&mut session, &option(OPT_ABORT, &[])).unwrap();
    assert_eq!((events, replies(&out)[0].0), (vec![Event::Closed], REP_ACK));
}

#[test]
fn export_name_pads_unless_told_not_to() {
    let (events, out) = feed(&mut negotiating(), &option(OPT_EXPORT_NAME, DISK.as_bytes())).unwrap();
    assert_eq!((events.len(), out.len()), (1, 10));
    let mut session = Session::start(&mut Vec::new());
    feed(&mut session, &1u32.to_be_bytes()).unwrap();
    let (_, out) = feed(&mut session, &option(OPT_EXPORT_NAME, KEPT.as_bytes())).unwrap();
    assert_eq!(out.len(), 134);
    let (events, out) = feed(&mut negotiating(), &option(OPT_EXPORT_NAME, b"nothing")).unwrap();
    assert_eq!((events, out), (vec![Event::Closed], vec![]));
}

#[test]
fn contexts_belong_to_their_export_and_need_structured_replies() {
    let mut session = negotiating();
    assert_eq!(
        kinds(&mut session, &option(OPT_SET_META_CONTEXT, &meta(DISK, &["base:allocation"]))),
        [REP_ERR_INVALID]
    );
    kinds(&mut session, &option(OPT_STRUCTURED_REPLY, &[]));
    assert_eq!(kinds(&mut session, &option(OPT_LIST_META_CONTEXT, &meta(DISK, &[]))), [REP_META_CONTEXT, REP_ACK]);
    assert_eq!(
        kinds(&mut session, &option(OPT_LIST_META_CONTEXT, &meta(DISK, &["base:"]))),
        [REP_META_CONTEXT, REP_ACK]
    );
    assert_eq!(kinds(&mut session, &option(OPT_SET_META_CONTEXT, &meta(DISK, &["base:", "x:y"]))), [REP_ACK]);
    let dirty = format!("qemu:dirty-bitmap:{SINCE}");
    let both = meta(DISK, &["base:allocation", &dirty, "qemu:dirty-bitmap:nonsense"]);
    let (_, out) = feed(&mut session, &option(OPT_SET_META_CONTEXT, &both)).unwrap();
    let found = replies(&out);
    assert_eq!(found[0], (REP_META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()));
    assert_eq!(found[1].1[..4], [0, 0, 0, 2]);
    assert_eq!(found[2].0, REP_ACK);
    feed(&mut session, &option(OPT_GO, &named(DISK, &[0, 0]))).unwrap();
    assert_eq!(session.contexts(), [Context::Allocation, Context::ChangedSince(SINCE.to_owned())]);

    let mut session = negotiating();
    kinds(&mut session, &option(OPT_STRUCTURED_REPLY, &[]));
    kinds(&mut session, &option(OPT_SET_META_CONTEXT, &meta(DISK, &["base:allocation"])));
    feed(&mut session, &option(OPT_GO, &named(KEPT, &[0, 0]))).unwrap();
    assert!(session.contexts().is_empty() && session.is_structured());
}

#[test]
fn requests_become_asks() {
    let mut session = entered(DISK, &["base:allocation"]);
    assert_eq!(ask(&mut session, CMD_READ, CMD_FLAG_DF, 512, 7), Ask::Read { offset: 512, length: 7, whole: true });
    assert_eq!(ask(&mut session, CMD_WRITE, CMD_FLAG_FUA, 0, 9), Ask::Write { offset: 0, length: 9, fua: true });
    assert_eq!(
        ask(&mut session, CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 0, 1 << 29),
        Ask::WriteZeroes { offset: 0, length: 1 << 29, fua: false, keep_allocated: true }
    );
    assert_eq!(
        ask(&mut session, CMD_BLOCK_STATUS, 0, 0, 1 << 30),
        Ask::BlockStatus { offset: 0, length: 1 << 30, one_extent: false }
    );
    assert_eq!(ask(&mut session, CMD_READ, 0, 5, 0), Ask::Nothing { is_read: true });
    let goodbye = RequestHeader { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, length: 0 };
    assert_eq!(feed(&mut session, &goodbye.encode()).unwrap().0, [Event::Closed]);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_payload_counted() {
    let mut session = entered(DISK, &[]);
    let size = 1u64 << 30;
    assert_eq!(refused(&mut session, CMD_WRITE, 0, size - 1, 512), (NBD_ENOSPC, 512));
    assert_eq!(refused(&mut session, CMD_READ, 0, size - 1, 512), (NBD_EINVAL, 0));
    assert_eq!(refused(&mut session, CMD_READ, 0, u64::MAX, 512), (NBD_EINVAL, 0));
    assert_eq!(refused(&mut session, CMD_READ, 0, 0, 33 << 20), (NBD_EOVERFLOW, 0));
    assert_eq!(refused(&mut session, CMD_READ, CMD_FLAG_DF, 0, 512), (NBD_EINVAL, 0));
    assert_eq!(refused(&mut session, CMD_WRITE, CMD_FLAG_NO_HOLE, 0, 512), (NBD_EINVAL, 512));
    assert_eq!(refused(&mut session, 99, 0, 0, 512), (NBD_EINVAL, 0));
    assert_eq!(refused(&mut session, CMD_BLOCK_STATUS, 0, 0, 512), (NBD_EINVAL, 0));
    let fast = CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE;
    assert_eq!(refused(&mut session, CMD_WRITE_ZEROES, fast, 0, 512), (NBD_ENOTSUP, 0));
    assert_eq!(refused(&mut entered(KEPT, &[]), CMD_WRITE, 0, 0, 4096), (NBD_EPERM, 4096));
}

#[test]
fn a_resize_moves_the_end() {
    let mut session = entered(DISK, &[]);
    assert_eq!(refused(&mut session, CMD_WRITE, 0, 1 << 30, 512).0, NBD_ENOSPC);
    session.set_size(2 << 30);
    assert!(matches!(ask(&mut session, CMD_WRITE, 0, 1 << 30, 512), Ask::Write { .. }));
}

#[test]
fn hostile_bytes_end_the_connection() {
    let mut session = Session::start(&mut Vec::new());
    assert_eq!(feed(&mut session, &0x8000_0001u32.to_be_bytes()), Err(ProtocolError::ClientFlags(0x8000_0001)));
    assert!(matches!(feed(&mut negotiating(), &[0; 16]), Err(ProtocolError::Magic { .. })));
    let huge = OptionHeader { option: OPT_GO, length: u32::MAX }.encode();
    assert!(matches!(feed(&mut negotiating(), &huge), Err(ProtocolError::TooLong { .. })));
    let mut session = entered(DISK, &[]);
    assert!(matches!(feed(&mut session, &[0xff; 28]), Err(ProtocolError::Magic { .. })));
    let write = RequestHeader { flags: 0, command: CMD_WRITE, cookie: 1, offset: 0, length: u32::MAX };
    assert!(matches!(feed(&mut session, &write.encode()), Err(ProtocolError::TooLong { .. })));
}

#[test]
fn any_bytes_are_answered_or_end_the_connection() {
    // A cheap generator is enough: the aim is that no length or count in the input leads to a panic.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..2000 {
        let mut session = negotiating();
        for _ in 0..8 {
            let data: Vec<u8> = (0..next() % 40).map(|_| if next() % 3 == 0 { next() as u8 } else { 0 }).collect();
            let mut input = option((next() % 13) as u32, &data);
            if next() % 4 == 0 {
                let at = next() as usize % input.len();
                input[at] ^= next() as u8;
            }
            let mut out = Vec::new();
            while let Ok(step) = session.advance(&input, &Two, &mut out) {
                if step.is_idle() {
                    break;
                }
                input.drain(..step.consumed);
            }
        }
    }
}
