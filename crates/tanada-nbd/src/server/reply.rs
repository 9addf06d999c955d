//! Replies of the transmission phase. Each function appends to `out`; data of reads follows where the text says so.

use crate::proto::{
    CHUNK_BLOCK_STATUS, CHUNK_ERROR, CHUNK_FLAG_DONE, CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, ChunkHeader,
    NAME_BYTES_MAX, SimpleReply,
};

/// Success of anything but a read or a block status; also the head of a read's data with simple replies.
pub fn done(out: &mut Vec<u8>, cookie: u64) {
    out.extend_from_slice(&SimpleReply { error: 0, cookie }.encode());
}

/// Failure. `error` is one of `NBD_E*`; the words travel only in structured replies.
pub fn error(out: &mut Vec<u8>, structured: bool, cookie: u64, error: u32, reason: &str) {
    if !structured {
        out.extend_from_slice(&SimpleReply { error, cookie }.encode());
        return;
    }
    let mut end = reason.len().min(NAME_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let text = &reason.as_bytes()[..end];
    chunk(out, CHUNK_FLAG_DONE, CHUNK_ERROR, cookie, 6 + text.len() as u32);
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// Structured: the end of a reply without content, for instance to a read of nothing.
pub fn none(out: &mut Vec<u8>, cookie: u64) {
    chunk(out, CHUNK_FLAG_DONE, CHUNK_NONE, cookie, 0);
}

/// Structured: head of `length` bytes of data, which must follow. `last` ends the reply.
pub fn data(out: &mut Vec<u8>, cookie: u64, offset: u64, length: u32, last: bool) {
    chunk(out, flags(last), CHUNK_OFFSET_DATA, cookie, 8 + length);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Structured: `length` bytes of zeros, nothing follows.
pub fn hole(out: &mut Vec<u8>, cookie: u64, offset: u64, length: u32, last: bool) {
    chunk(out, flags(last), CHUNK_OFFSET_HOLE, cookie, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// Structured: the extents (length in bytes, flags) of context number `context`. `last` ends the reply.
pub fn block_status(out: &mut Vec<u8>, cookie: u64, context: u32, extents: &[(u32, u32)], last: bool) {
    chunk(out, flags(last), CHUNK_BLOCK_STATUS, cookie, 4 + 8 * extents.len() as u32);
    out.extend_from_slice(&context.to_be_bytes());
    for (length, state) in extents {
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&state.to_be_bytes());
    }
}

fn flags(last: bool) -> u16 {
    if last { CHUNK_FLAG_DONE } else { 0 }
}

fn chunk(out: &mut Vec<u8>, flags: u16, kind: u16, cookie: u64, length: u32) {
    out.extend_from_slice(&ChunkHeader { flags, kind, cookie, length }.encode());
}
