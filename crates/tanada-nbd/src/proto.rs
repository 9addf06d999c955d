//! The words of the NBD protocol: constants, and the fixed-size messages of both sides. No I/O.
//!
//! All integers on the wire are big-endian. Names are UTF-8 without NUL, at most [`NAME_BYTES_MAX`].
//! Decoders take exactly one message's bytes and answer [`ProtocolError`] for anything a correct peer cannot send.

use thiserror::Error;

/// First eight bytes from the server.
pub const NBDMAGIC: u64 = 0x4E42_444D_4147_4943;
/// Second eight bytes from the server (newstyle), and the start of every option from the client.
pub const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
/// Start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668E_33EF;

/// Largest payload of a request or a reply, in bytes: what the protocol assumes where nothing is negotiated.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Longest export name, context name or message text, in bytes.
pub const NAME_BYTES_MAX: usize = 4096;
/// Longest option data that we read; a longer one ends the connection.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Most extents in one block-status chunk that we send.
pub const EXTENTS_MAX: u32 = 8192;

/// Sizes of messages on the wire, in bytes.
pub const OPTION_HEADER_BYTES: usize = 16;
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
pub const REQUEST_BYTES: usize = 28;
pub const SIMPLE_REPLY_BYTES: usize = 16;
pub const CHUNK_HEADER_BYTES: usize = 20;

/// Handshake flags: from the server, and (same bits) from the client.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
/// Set in every error reply type.
pub const REP_FLAG_ERROR: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_FLAG_ERROR | 1;
pub const REP_ERR_POLICY: u32 = REP_FLAG_ERROR | 2;
pub const REP_ERR_INVALID: u32 = REP_FLAG_ERROR | 3;
pub const REP_ERR_PLATFORM: u32 = REP_FLAG_ERROR | 4;
pub const REP_ERR_TLS_REQD: u32 = REP_FLAG_ERROR | 5;
pub const REP_ERR_UNKNOWN: u32 = REP_FLAG_ERROR | 6;
pub const REP_ERR_SHUTDOWN: u32 = REP_FLAG_ERROR | 7;
pub const REP_ERR_TOO_BIG: u32 = REP_FLAG_ERROR | 9;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
pub const TF_HAS_FLAGS: u16 = 1 << 0;
pub const TF_READ_ONLY: u16 = 1 << 1;
pub const TF_SEND_FLUSH: u16 = 1 << 2;
pub const TF_SEND_FUA: u16 = 1 << 3;
pub const TF_ROTATIONAL: u16 = 1 << 4;
pub const TF_SEND_TRIM: u16 = 1 << 5;
pub const TF_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const TF_SEND_DF: u16 = 1 << 7;
pub const TF_CAN_MULTI_CONN: u16 = 1 << 8;
pub const TF_SEND_CACHE: u16 = 1 << 10;
pub const TF_SEND_FAST_ZERO: u16 = 1 << 11;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const CMD_FLAG_FUA: u16 = 1 << 0;
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub const CMD_FLAG_DF: u16 = 1 << 2;
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

pub const CHUNK_FLAG_DONE: u16 = 1 << 0;
pub const CHUNK_NONE: u16 = 0;
pub const CHUNK_OFFSET_DATA: u16 = 1;
pub const CHUNK_OFFSET_HOLE: u16 = 2;
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Set in every error chunk type.
pub const CHUNK_FLAG_ERROR: u16 = 1 << 15;
pub const CHUNK_ERROR: u16 = CHUNK_FLAG_ERROR | 1;
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_FLAG_ERROR | 2;

/// Error numbers on the wire (they are Linux's, but only these may be sent).
pub const NBD_EPERM: u32 = 1;
pub const NBD_EIO: u32 = 5;
pub const NBD_ENOMEM: u32 = 12;
pub const NBD_EINVAL: u32 = 22;
pub const NBD_ENOSPC: u32 = 28;
pub const NBD_EOVERFLOW: u32 = 75;
pub const NBD_ENOTSUP: u32 = 95;
pub const NBD_ESHUTDOWN: u32 = 108;

/// The metadata context of mapped and unmapped extents, and its flags.
pub const CONTEXT_BASE_ALLOCATION: &str = "base:allocation";
pub const STATE_HOLE: u32 = 1 << 0;
pub const STATE_ZERO: u32 = 1 << 1;
/// Prefix of a context that tells what changed since the generation whose UUID follows.
pub const CONTEXT_DIRTY_PREFIX: &str = "qemu:dirty-bitmap:";
pub const STATE_DIRTY: u32 = 1 << 0;

/// What a correct peer cannot have sent. Ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolError {
    #[error("{what}: magic {found:#x} where {expected:#x} was due")]
    Magic { what: &'static str, found: u64, expected: u64 },
    #[error("{what} of {found} bytes, at most {limit} are accepted")]
    TooLong { what: &'static str, found: u64, limit: u64 },
    #[error("{what} ends after {found} bytes")]
    Short { what: &'static str, found: usize },
    #[error("{what} is not UTF-8")]
    NotText { what: &'static str },
    #[error("client flags {0:#x} have bits that were not offered")]
    ClientFlags(u32),
    #[error("{0}")]
    Unexpected(String),
}

/// Maps a Linux errno to one that may travel in a reply.
pub fn wire_errno(errno: i32) -> u32 {
    match errno {
        1 | 13 | 30 => NBD_EPERM,
        12 => NBD_ENOMEM,
        22 => NBD_EINVAL,
        27 | 28 | 122 => NBD_ENOSPC,
        75 => NBD_EOVERFLOW,
        95 => NBD_ENOTSUP,
        108 => NBD_ESHUTDOWN,
        _ => NBD_EIO,
    }
}

/// Reads big-endian integers off the front of a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Reader<'a> {
    /// `what` names the message in errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { what, rest: bytes, taken: 0 }
    }

    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        if count > self.rest.len() {
            return Err(ProtocolError::Short { what: self.what, found: self.taken + self.rest.len() });
        }
        let (head, tail) = self.rest.split_at(count);
        self.rest = tail;
        self.taken += count;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A `u32` length and that many bytes of text.
    pub fn text(&mut self) -> Result<&'a str, ProtocolError> {
        let length = self.u32()? as usize;
        if length > NAME_BYTES_MAX {
            return Err(ProtocolError::TooLong { what: self.what, found: length as u64, limit: NAME_BYTES_MAX as u64 });
        }
        std::str::from_utf8(self.bytes(length)?).map_err(|_| ProtocolError::NotText { what: self.what })
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Fails where bytes are left over.
    pub fn end(&self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ProtocolError::Unexpected(format!("{}: {left} bytes after its end", self.what))),
        }
    }
}

/// A client's option: the header before its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    pub fn encode(&self) -> [u8; OPTION_HEADER_BYTES] {
        let mut out = [0; OPTION_HEADER_BYTES];
        out[..8].copy_from_slice(&IHAVEOPT.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    pub fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<OptionHeader, ProtocolError> {
        let mut reader = Reader::new("option", bytes);
        check_magic("option", reader.u64()?, IHAVEOPT)?;
        Ok(OptionHeader { option: reader.u32()?, length: reader.u32()? })
    }
}

/// A server's answer to an option: the header before its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    pub option: u32,
    /// One of `REP_*`.
    pub kind: u32,
    pub length: u32,
}

impl OptionReplyHeader {
    pub fn is_error(&self) -> bool {
        self.kind & REP_FLAG_ERROR != 0
    }

    pub fn encode(&self) -> [u8; OPTION_REPLY_HEADER_BYTES] {
        let mut out = [0; OPTION_REPLY_HEADER_BYTES];
        out[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..16].copy_from_slice(&self.kind.to_be_bytes());
        out[16..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    pub fn decode(bytes: &[u8; OPTION_REPLY_HEADER_BYTES]) -> Result<OptionReplyHeader, ProtocolError> {
        let mut reader = Reader::new("option reply", bytes);
        check_magic("option reply", reader.u64()?, OPTION_REPLY_MAGIC)?;
        Ok(OptionReplyHeader { option: reader.u32()?, kind: reader.u32()?, length: reader.u32()? })
    }
}

/// A request of the transmission phase; a write's payload follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    pub flags: u16,
    /// One of `CMD_*`.
    pub command: u16,
    /// Chosen by the client, echoed by the server.
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl RequestHeader {
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<RequestHeader, ProtocolError> {
        let mut reader = Reader::new("request", bytes);
        check_magic("request", u64::from(reader.u32()?), u64::from(REQUEST_MAGIC))?;
        Ok(RequestHeader {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }
}

/// A simple reply; a successful read's data follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 or one of `NBD_E*`.
    pub error: u32,
    pub cookie: u64,
}

impl SimpleReply {
    pub fn encode(&self) -> [u8; SIMPLE_REPLY_BYTES] {
        let mut out = [0; SIMPLE_REPLY_BYTES];
        out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.error.to_be_bytes());
        out[8..].copy_from_slice(&self.cookie.to_be_bytes());
        out
    }

    pub fn decode(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Result<SimpleReply, ProtocolError> {
        let mut reader = Reader::new("simple reply", bytes);
        check_magic("simple reply", u64::from(reader.u32()?), u64::from(SIMPLE_REPLY_MAGIC))?;
        Ok(SimpleReply { error: reader.u32()?, cookie: reader.u64()? })
    }
}

/// One chunk of a structured reply; `length` bytes of payload follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    pub flags: u16,
    /// One of `CHUNK_*`.
    pub kind: u16,
    pub cookie: u64,
    pub length: u32,
}

impl ChunkHeader {
    pub fn is_done(&self) -> bool {
        self.flags & CHUNK_FLAG_DONE != 0
    }

    pub fn is_error(&self) -> bool {
        self.kind & CHUNK_FLAG_ERROR != 0
    }

    pub fn encode(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut out = [0; CHUNK_HEADER_BYTES];
        out[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    pub fn decode(bytes: &[u8; CHUNK_HEADER_BYTES]) -> Result<ChunkHeader, ProtocolError> {
        let mut reader = Reader::new("structured reply", bytes);
        check_magic("structured reply", u64::from(reader.u32()?), u64::from(STRUCTURED_REPLY_MAGIC))?;
        Ok(ChunkHeader { flags: reader.u16()?, kind: reader.u16()?, cookie: reader.u64()?, length: reader.u32()? })
    }
}

fn check_magic(what: &'static str, found: u64, expected: u64) -> Result<(), ProtocolError> {
    if found == expected { Ok(()) } else { Err(ProtocolError::Magic { what, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::{
        ChunkHeader, OptionHeader, OptionReplyHeader, ProtocolError, Reader, RequestHeader, SimpleReply, wire_errno,
    };

    #[test]
    fn messages_read_back_as_they_were_written() {
        let option = OptionHeader { option: 7, length: 300 };
        assert_eq!(OptionHeader::decode(&option.encode()), Ok(option));
        let reply = OptionReplyHeader { option: 7, kind: super::REP_ERR_UNKNOWN, length: 5 };
        assert_eq!(OptionReplyHeader::decode(&reply.encode()), Ok(reply));
        assert!(reply.is_error());
        let request = RequestHeader { flags: 1, command: 6, cookie: u64::MAX - 1, offset: 1 << 40, length: u32::MAX };
        assert_eq!(RequestHeader::decode(&request.encode()), Ok(request));
        let simple = SimpleReply { error: 28, cookie: 9 };
        assert_eq!(SimpleReply::decode(&simple.encode()), Ok(simple));
        let chunk = ChunkHeader { flags: 1, kind: super::CHUNK_ERROR, cookie: 9, length: 6 };
        assert_eq!(ChunkHeader::decode(&chunk.encode()), Ok(chunk));
        assert!(chunk.is_done() && chunk.is_error());
    }

    #[test]
    fn a_request_looks_as_the_protocol_document_says() {
        let bytes = RequestHeader { flags: 1, command: 1, cookie: 0x0102, offset: 0x1000, length: 512 }.encode();
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1]);
        assert_eq!(bytes[14..], [1, 2, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn wrong_bytes_are_errors() {
        assert!(matches!(RequestHeader::decode(&[0; 28]), Err(ProtocolError::Magic { .. })));
        assert!(matches!(Reader::new("x", &[0, 0, 0, 9, b'a']).text(), Err(ProtocolError::Short { .. })));
        assert!(matches!(Reader::new("x", &[0xff; 8]).text(), Err(ProtocolError::TooLong { .. })));
        assert!(matches!(Reader::new("x", &[0, 0, 0, 1, 0xff]).text(), Err(ProtocolError::NotText { .. })));
        assert_eq!((wire_errno(30), wire_errno(28), wire_errno(9999)), (1, 28, 5));
    }
}
