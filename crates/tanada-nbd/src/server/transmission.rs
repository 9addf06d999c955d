//! The transmission phase: requests, checked against the export.

use super::{Ask, Context, Event, ExportInfo, Step};
use crate::proto::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE,
    CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, NBD_EINVAL, NBD_ENOSPC, NBD_ENOTSUP,
    NBD_EOVERFLOW, NBD_EPERM, PAYLOAD_BYTES_MAX, ProtocolError, REQUEST_BYTES, RequestHeader,
};

pub(super) struct Transmission {
    pub(super) export: ExportInfo,
    pub(super) structured: bool,
    pub(super) contexts: Vec<Context>,
}

impl Transmission {
    pub(super) fn advance(&self, input: &[u8]) -> Result<Step, ProtocolError> {
        let Some(head) = input.first_chunk::<REQUEST_BYTES>() else {
            return Ok(Step { consumed: 0, event: None });
        };
        let header = RequestHeader::decode(head)?;
        if header.command == CMD_WRITE && header.length > PAYLOAD_BYTES_MAX {
            let (found, limit) = (u64::from(header.length), u64::from(PAYLOAD_BYTES_MAX));
            return Err(ProtocolError::TooLong { what: "payload of a write", found, limit });
        }
        let event = match header.command {
            CMD_DISC => Event::Closed,
            _ => Event::Asked { cookie: header.cookie, ask: self.check(&header) },
        };
        Ok(Step { consumed: REQUEST_BYTES, event: Some(event) })
    }

    fn check(&self, request: &RequestHeader) -> Ask {
        let payload = if request.command == CMD_WRITE { request.length } else { 0 };
        match self.refusal(request) {
            Some((error, reason)) => Ask::Refuse { error, reason, payload },
            None => accept(request),
        }
    }

    /// Why the request cannot be served, if so: an error of the wire and words.
    fn refusal(&self, request: &RequestHeader) -> Option<(u32, String)> {
        let &RequestHeader { flags, command, offset, length, .. } = request;
        let known = match command {
            CMD_READ => CMD_FLAG_DF,
            CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
            CMD_WRITE | CMD_FLUSH | CMD_TRIM | CMD_CACHE => 0,
            _ => return Some((NBD_EINVAL, format!("unknown command {command}"))),
        };
        if flags & !(known | CMD_FLAG_FUA) != 0 {
            return Some((NBD_EINVAL, format!("unknown flags {flags:#x} for command {command}")));
        }
        let modifies = matches!(command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if modifies && self.export.read_only {
            return Some((NBD_EPERM, "the export is read-only".to_owned()));
        }
        let in_range = offset.checked_add(u64::from(length)).is_some_and(|end| end <= self.export.size);
        if command != CMD_FLUSH && !in_range {
            let error = if matches!(command, CMD_WRITE | CMD_WRITE_ZEROES) { NBD_ENOSPC } else { NBD_EINVAL };
            let size = self.export.size;
            return Some((error, format!("{length} bytes at {offset} reach beyond the export's {size} bytes")));
        }
        match command {
            CMD_READ if length > PAYLOAD_BYTES_MAX => {
                Some((NBD_EOVERFLOW, format!("read of {length} bytes, at most {PAYLOAD_BYTES_MAX} are served")))
            }
            CMD_READ if flags & CMD_FLAG_DF != 0 && !self.structured => {
                Some((NBD_EINVAL, "DF needs structured replies".to_owned()))
            }
            CMD_BLOCK_STATUS if self.contexts.is_empty() => {
                Some((NBD_EINVAL, "no metadata context was selected".to_owned()))
            }
            CMD_BLOCK_STATUS if length == 0 => Some((NBD_EINVAL, "block status of nothing".to_owned())),
            // Keeping space allocated means writing zeros, which is not faster than a write.
            CMD_WRITE_ZEROES if flags & CMD_FLAG_FAST_ZERO != 0 && flags & CMD_FLAG_NO_HOLE != 0 => {
                Some((NBD_ENOTSUP, "zeroes that stay allocated are not fast".to_owned()))
            }
            _ => None,
        }
    }
}

fn accept(request: &RequestHeader) -> Ask {
    let &RequestHeader { flags, command, offset, length, .. } = request;
    let fua = flags & CMD_FLAG_FUA != 0;
    match command {
        CMD_FLUSH => Ask::Flush,
        CMD_CACHE => Ask::Nothing { is_read: false },
        CMD_READ if length == 0 => Ask::Nothing { is_read: true },
        _ if length == 0 => Ask::Nothing { is_read: false },
        CMD_READ => Ask::Read { offset, length, whole: flags & CMD_FLAG_DF != 0 },
        CMD_WRITE => Ask::Write { offset, length, fua },
        CMD_TRIM => Ask::Trim { offset, length, fua },
        CMD_WRITE_ZEROES => Ask::WriteZeroes { offset, length, fua, keep_allocated: flags & CMD_FLAG_NO_HOLE != 0 },
        _ => Ask::BlockStatus { offset, length, one_extent: flags & CMD_FLAG_REQ_ONE != 0 },
    }
}
