//! The handshake: from the greeting to GO, EXPORT_NAME or ABORT.

use super::transmission::Transmission;
use super::{Context, ExportInfo, Exports};
use crate::proto::{
    CONTEXT_BASE_ALLOCATION, CONTEXT_DIRTY_PREFIX, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, INFO_BLOCK_SIZE,
    INFO_EXPORT, INFO_NAME, NAME_BYTES_MAX, NBDMAGIC, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST,
    OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, OPTION_BYTES_MAX, OPTION_HEADER_BYTES,
    OptionHeader, OptionReplyHeader, PAYLOAD_BYTES_MAX, ProtocolError, REP_ACK, REP_ERR_INVALID, REP_ERR_POLICY,
    REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT, REP_SERVER, Reader, TF_CAN_MULTI_CONN, TF_HAS_FLAGS,
    TF_READ_ONLY, TF_SEND_CACHE, TF_SEND_DF, TF_SEND_FAST_ZERO, TF_SEND_FLUSH, TF_SEND_FUA, TF_SEND_TRIM,
    TF_SEND_WRITE_ZEROES,
};

/// Contexts that one client may select.
const CONTEXTS_MAX: usize = 16;

/// Requests are served at any alignment; these are what runs fastest, in bytes.
const BLOCK_BYTES_MIN: u32 = 1;
const BLOCK_BYTES_PREFERRED: u32 = 4096;

pub(super) struct Handshake {
    /// `None` until the client's flags are here; then whether it wants no padding after EXPORT_NAME.
    no_zeroes: Option<bool>,
    structured: bool,
    /// Selected contexts and the export they were selected for.
    contexts: Vec<Context>,
    contexts_export: String,
}

pub(super) enum Outcome {
    Continue,
    Close,
    Enter { name: String, transmission: Transmission },
}

impl Handshake {
    pub(super) fn start(out: &mut Vec<u8>) -> Handshake {
        out.extend_from_slice(&NBDMAGIC.to_be_bytes());
        out.extend_from_slice(&IHAVEOPT.to_be_bytes());
        out.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Handshake { no_zeroes: None, structured: false, contexts: Vec::new(), contexts_export: String::new() }
    }

    pub(super) fn advance(
        &mut self,
        input: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Outcome), ProtocolError> {
        let Some(no_zeroes) = self.no_zeroes else {
            return Ok((self.client_flags(input)?, Outcome::Continue));
        };
        let Some((head, rest)) = input.split_first_chunk::<OPTION_HEADER_BYTES>() else {
            return Ok((0, Outcome::Continue));
        };
        let header = OptionHeader::decode(head)?;
        if header.length > OPTION_BYTES_MAX {
            let (found, limit) = (u64::from(header.length), u64::from(OPTION_BYTES_MAX));
            return Err(ProtocolError::TooLong { what: "option data", found, limit });
        }
        let Some(data) = rest.get(..header.length as usize) else {
            return Ok((0, Outcome::Continue));
        };
        let mut answer = Answer { option: header.option, out };
        let outcome = match header.option {
            OPT_EXPORT_NAME => self.export_name(data, no_zeroes, exports, answer.out)?,
            OPT_ABORT => {
                answer.send(REP_ACK, &[]);
                Outcome::Close
            }
            OPT_GO | OPT_INFO => self.go(data, exports, &mut answer),
            _ => {
                self.other(header.option, data, exports, &mut answer);
                Outcome::Continue
            }
        };
        Ok((OPTION_HEADER_BYTES + data.len(), outcome))
    }

    fn client_flags(&mut self, input: &[u8]) -> Result<usize, ProtocolError> {
        let Some(bytes) = input.first_chunk::<4>() else { return Ok(0) };
        let flags = u32::from_be_bytes(*bytes);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(ProtocolError::ClientFlags(flags));
        }
        self.no_zeroes = Some(flags & u32::from(FLAG_NO_ZEROES) != 0);
        Ok(4)
    }

    /// There is no error reply to EXPORT_NAME: an unknown name ends the connection.
    fn export_name(
        &mut self,
        data: &[u8],
        no_zeroes: bool,
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, ProtocolError> {
        if data.len() > NAME_BYTES_MAX {
            let (found, limit) = (data.len() as u64, NAME_BYTES_MAX as u64);
            return Err(ProtocolError::TooLong { what: "export name", found, limit });
        }
        let name = std::str::from_utf8(data).map_err(|_| ProtocolError::NotText { what: "export name" })?;
        let Some(export) = exports.find(name) else { return Ok(Outcome::Close) };
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&self.transmission_flags(&export).to_be_bytes());
        if !no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(self.enter(name, export))
    }

    fn go(&mut self, data: &[u8], exports: &dyn Exports, answer: &mut Answer<'_>) -> Outcome {
        let Ok((name, items)) = parse_go(data) else {
            answer.send(REP_ERR_INVALID, b"malformed request for an export");
            return Outcome::Continue;
        };
        let Some(export) = exports.find(name) else {
            answer.send(REP_ERR_UNKNOWN, b"no such export");
            return Outcome::Continue;
        };
        let mut info = INFO_EXPORT.to_be_bytes().to_vec();
        info.extend_from_slice(&export.size.to_be_bytes());
        info.extend_from_slice(&self.transmission_flags(&export).to_be_bytes());
        answer.send(REP_INFO, &info);
        let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for bytes in [BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX] {
            sizes.extend_from_slice(&bytes.to_be_bytes());
        }
        answer.send(REP_INFO, &sizes);
        if items.contains(&INFO_NAME) {
            let mut info = INFO_NAME.to_be_bytes().to_vec();
            info.extend_from_slice(name.as_bytes());
            answer.send(REP_INFO, &info);
        }
        answer.send(REP_ACK, &[]);
        if answer.option == OPT_GO { self.enter(name, export) } else { Outcome::Continue }
    }

    fn other(&mut self, option: u32, data: &[u8], exports: &dyn Exports, answer: &mut Answer<'_>) {
        match option {
            OPT_LIST if !data.is_empty() => answer.send(REP_ERR_INVALID, b"LIST takes no data"),
            OPT_LIST => match exports.list() {
                None => answer.send(REP_ERR_POLICY, b"exports are not listed"),
                Some(names) => {
                    for name in names {
                        let mut item = (name.len() as u32).to_be_bytes().to_vec();
                        item.extend_from_slice(name.as_bytes());
                        answer.send(REP_SERVER, &item);
                    }
                    answer.send(REP_ACK, &[]);
                }
            },
            OPT_STRUCTURED_REPLY if !data.is_empty() => {
                answer.send(REP_ERR_INVALID, b"STRUCTURED_REPLY takes no data");
            }
            OPT_STRUCTURED_REPLY => {
                self.structured = true;
                answer.send(REP_ACK, &[]);
            }
            OPT_LIST_META_CONTEXT => self.meta_contexts(data, exports, false, answer),
            OPT_SET_META_CONTEXT => self.meta_contexts(data, exports, true, answer),
            _ => answer.send(REP_ERR_UNSUP, b"option not supported"),
        }
    }

    fn meta_contexts(&mut self, data: &[u8], exports: &dyn Exports, set: bool, answer: &mut Answer<'_>) {
        if set {
            // The former selection ends even if this one fails.
            self.contexts.clear();
        }
        if !self.structured {
            return answer.send(REP_ERR_INVALID, b"structured replies come first");
        }
        let Ok((name, queries)) = parse_meta(data) else {
            return answer.send(REP_ERR_INVALID, b"malformed context query");
        };
        if exports.find(name).is_none() {
            return answer.send(REP_ERR_UNKNOWN, b"no such export");
        }
        let mut found: Vec<Context> = Vec::new();
        let is_everything = !set && queries.is_empty();
        if is_everything || queries.iter().any(|query| names_allocation(query, set)) {
            found.push(Context::Allocation);
        }
        for query in queries {
            let Some(since) = query.strip_prefix(CONTEXT_DIRTY_PREFIX) else { continue };
            let context = Context::ChangedSince(since.to_owned());
            if looks_like_uuid(since) && !found.contains(&context) && found.len() < CONTEXTS_MAX {
                found.push(context);
            }
        }
        for (index, context) in found.iter().enumerate() {
            // In a listing the number has no meaning and is zero.
            let number = if set { index as u32 + 1 } else { 0 };
            let mut item = number.to_be_bytes().to_vec();
            match context {
                Context::Allocation => item.extend_from_slice(CONTEXT_BASE_ALLOCATION.as_bytes()),
                Context::ChangedSince(since) => {
                    item.extend_from_slice(CONTEXT_DIRTY_PREFIX.as_bytes());
                    item.extend_from_slice(since.as_bytes());
                }
            }
            answer.send(REP_META_CONTEXT, &item);
        }
        answer.send(REP_ACK, &[]);
        if set {
            self.contexts = found;
            self.contexts_export = name.to_owned();
        }
    }

    fn enter(&mut self, name: &str, export: ExportInfo) -> Outcome {
        let contexts = if self.contexts_export == name { std::mem::take(&mut self.contexts) } else { Vec::new() };
        let transmission = Transmission { export, structured: self.structured, contexts };
        Outcome::Enter { name: name.to_owned(), transmission }
    }

    fn transmission_flags(&self, export: &ExportInfo) -> u16 {
        let mut flags = TF_HAS_FLAGS | TF_SEND_FLUSH | TF_CAN_MULTI_CONN | TF_SEND_CACHE;
        if self.structured {
            flags |= TF_SEND_DF;
        }
        if export.read_only {
            flags |= TF_READ_ONLY;
        } else {
            flags |= TF_SEND_FUA | TF_SEND_TRIM | TF_SEND_WRITE_ZEROES | TF_SEND_FAST_ZERO;
        }
        flags
    }
}

/// Answers to one option.
struct Answer<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Answer<'_> {
    fn send(&mut self, kind: u32, data: &[u8]) {
        let header = OptionReplyHeader { option: self.option, kind, length: data.len() as u32 };
        self.out.extend_from_slice(&header.encode());
        self.out.extend_from_slice(data);
    }
}

fn parse_go(data: &[u8]) -> Result<(&str, Vec<u16>), ProtocolError> {
    let mut reader = Reader::new("export request", data);
    let name = reader.text()?;
    let count = reader.u16()?;
    // The option's length bounds the count: each item has two bytes that must be there.
    let items = (0..count).map(|_| reader.u16()).collect::<Result<Vec<_>, _>>()?;
    reader.end()?;
    Ok((name, items))
}

fn parse_meta(data: &[u8]) -> Result<(&str, Vec<&str>), ProtocolError> {
    let mut reader = Reader::new("context query", data);
    let name = reader.text()?;
    let count = reader.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(reader.text()?);
    }
    reader.end()?;
    Ok((name, queries))
}

/// `base:` stands for all of its namespace in listings only.
fn names_allocation(query: &str, set: bool) -> bool {
    query == CONTEXT_BASE_ALLOCATION || (!set && query == "base:")
}

fn looks_like_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}
