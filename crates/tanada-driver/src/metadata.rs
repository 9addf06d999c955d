//! A small text kept beside the volumes of an SR, in a volume of its own that nobody else sees.
//!
//! ```text
//!  0       4 KiB                        half
//!  header0 text0 ...                    header1 text1 ...
//!  header: magic 8 | sequence 8 | length 8 | CRC-32C of the text 4 | CRC-32C of the 28 bytes before 4; little-endian
//! ```
//! Each half of the volume is a slot. The two are written in turn: text, flush, header. The newest slot that is whole
//! counts. The volume's size is the back end's choice ([`volume_bytes`] for a full text) and must not change later.

use bytes::Bytes;
use tanada_nbd::client::{Client, NbdError};
use tanada_units::MIB;

use crate::bridge::Bridges;
use crate::{DriverError, DriverErrorKind, DriverResult, Endpoint, METADATA_BYTES_MAX};

const HEADER_BYTES: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"tanadaMD");
const PIECE_BYTES: u64 = MIB;

/// Bytes of a volume that holds texts of up to `text` bytes.
pub const fn volume_bytes(text: u64) -> u64 {
    2 * (HEADER_BYTES + text).next_multiple_of(MIB)
}

/// Keeps `text` in the volume behind `endpoint`, which must be attached for writing by the host's own initiator.
///
/// # Errors
/// `InvalidArgument` for a text that is too long for the volume; what reaching and writing it gives.
pub async fn put(bridges: &Bridges, endpoint: &Endpoint, text: &[u8]) -> DriverResult<()> {
    let bridge = bridges.open(endpoint, true).await?;
    let written = async {
        let client = bridge.connect().await.map_err(disk)?;
        let slot_bytes = client.size() / 2;
        let most = METADATA_BYTES_MAX.min(slot_bytes.saturating_sub(HEADER_BYTES));
        if text.len() as u64 > most {
            let words = format!("a text of {} bytes; at most {most} are kept", text.len());
            return Err(DriverError::new(DriverErrorKind::InvalidArgument, words));
        }
        write(&client, slot_bytes, text).await.map_err(disk)
    };
    let written = written.await;
    bridge.close().await;
    written
}

/// What [`put`] kept last in the volume behind `endpoint`; `None` where nothing was.
pub async fn get(bridges: &Bridges, endpoint: &Endpoint) -> DriverResult<Option<Vec<u8>>> {
    let bridge = bridges.open(endpoint, false).await?;
    let read = async {
        let client = bridge.connect().await?;
        newest_text(&client).await
    };
    let read = read.await.map_err(disk);
    bridge.close().await;
    read
}

/// What a slot says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    sequence: u64,
    length: u64,
    crc: u32,
}

impl Header {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(HEADER_BYTES as usize, 0);
        out
    }

    /// `None` for anything that was not written by [`Header::encode`].
    fn decode(bytes: &[u8]) -> Option<Header> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let header = Header { sequence: word(8)?, length: word(16)?, crc: half(24)? };
        let whole = word(0)? == MAGIC && half(28)? == crc32c::crc32c(&bytes[..28]);
        (whole && header.length <= METADATA_BYTES_MAX).then_some(header)
    }
}

async fn write(client: &Client, slot_bytes: u64, text: &[u8]) -> Result<(), NbdError> {
    let newest = newest(client).await?;
    let sequence = newest.map_or(0, |(_, header)| header.sequence) + 1;
    let slot = newest.map_or(0, |(slot, _)| 1 - slot);
    let start = slot * slot_bytes;
    let mut at = start + HEADER_BYTES;
    for piece in text.chunks(PIECE_BYTES as usize) {
        client.write_at(at, Bytes::copy_from_slice(piece)).await?;
        at += piece.len() as u64;
    }
    client.flush().await?;
    let header = Header { sequence, length: text.len() as u64, crc: crc32c::crc32c(text) };
    client.write_at_durably(start, Bytes::from(header.encode())).await
}

/// The number and header of the newest slot; its text may still be damaged.
async fn newest(client: &Client) -> Result<Option<(u64, Header)>, NbdError> {
    Ok(slots(client).await?.into_iter().next())
}

/// Slots with a good header, the newest first.
async fn slots(client: &Client) -> Result<Vec<(u64, Header)>, NbdError> {
    let slot_bytes = client.size() / 2;
    let mut found = Vec::new();
    for slot in 0..2 {
        let bytes = client.read_at(slot * slot_bytes, HEADER_BYTES as u32).await?;
        found.extend(Header::decode(&bytes).map(|header| (slot, header)));
    }
    found.sort_by_key(|(_, header)| std::cmp::Reverse(header.sequence));
    Ok(found)
}

async fn newest_text(client: &Client) -> Result<Option<Vec<u8>>, NbdError> {
    let slot_bytes = client.size() / 2;
    for (slot, header) in slots(client).await? {
        if header.length > slot_bytes.saturating_sub(HEADER_BYTES) {
            continue;
        }
        let mut text = Vec::new();
        while (text.len() as u64) < header.length {
            let at = slot * slot_bytes + HEADER_BYTES + text.len() as u64;
            let length = PIECE_BYTES.min(header.length - text.len() as u64);
            text.extend_from_slice(&client.read_at(at, length as u32).await?);
        }
        if crc32c::crc32c(&text) == header.crc {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

fn disk(failure: NbdError) -> DriverError {
    let kind = match &failure {
        NbdError::Refused { errno: 28, .. } => DriverErrorKind::NoSpace,
        NbdError::Lost(_) => DriverErrorKind::Unreachable,
        _ => DriverErrorKind::Io,
    };
    DriverError::new(kind, format!("the metadata of the SR: {failure}"))
}

#[cfg(test)]
mod tests {
    use super::{HEADER_BYTES, Header};

    #[test]
    fn headers_read_back_and_damage_is_seen() {
        let header = Header { sequence: 7, length: 100, crc: 9 };
        let bytes = header.encode();
        assert_eq!(bytes.len() as u64, HEADER_BYTES);
        assert_eq!(Header::decode(&bytes), Some(header));
        for at in 0..32 {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(Header::decode(&wrong), None, "byte {at}");
        }
        assert_eq!(Header::decode(&bytes[..20]), None);
        assert_eq!(Header::decode(&[0; 64]), None);
    }
}
