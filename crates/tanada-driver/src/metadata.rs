//! A small text kept beside the volumes of an embedded store, in a volume of its own that nobody else sees.
//!
//! ```text
//!  0       4 KiB                        32 MiB
//!  header0 text0 ...                    header1 text1 ...
//!  header: magic 8 | sequence 8 | length 8 | CRC-32C of the text 4 | CRC-32C of the 28 bytes before 4; little-endian
//! ```
//! The two slots are written in turn: text, flush, header. The newest slot that is whole counts.

use bytes::Bytes;
use tanada_nbd::client::{Client, NbdError};
use tanada_units::MIB;
use uuid::Uuid;

use crate::embedded::{EmbeddedDriver, error};
use crate::{AttachRequest, CreateRequest, Driver, DriverErrorKind, DriverResult, Endpoint, METADATA_BYTES_MAX};

/// The name of the volume, the same in every store.
pub(crate) const VOLUME: Uuid = Uuid::from_u128(0x7461_6e61_6461_4d45_8441_4441_5441_0001);
const VOLUME_BYTES: u64 = 64 * MIB;
const SLOT_BYTES: u64 = 32 * MIB;
const HEADER_BYTES: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"tanadaMD");
const PIECE_BYTES: u64 = MIB;

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

pub(crate) async fn put(driver: &EmbeddedDriver, text: &[u8]) -> DriverResult<()> {
    if text.len() as u64 > METADATA_BYTES_MAX {
        let words = format!("a text of {} bytes; at most {METADATA_BYTES_MAX} are kept", text.len());
        return Err(error(DriverErrorKind::InvalidArgument, words));
    }
    match driver.create(&CreateRequest::new(VOLUME, VOLUME_BYTES)).await {
        Err(failure) if failure.kind != DriverErrorKind::Exists => return Err(failure),
        _ => {}
    }
    let token = attach(driver, true).await?;
    let written = async {
        let client = connect(driver, &token).await?;
        write(&client, text).await
    };
    let written = written.await.map_err(disk);
    driver.detach(&token).await?;
    written
}

async fn write(client: &Client, text: &[u8]) -> Result<(), NbdError> {
    let newest = newest(client).await?;
    let sequence = newest.map_or(0, |(_, header)| header.sequence) + 1;
    let slot = newest.map_or(0, |(slot, _)| 1 - slot);
    let start = slot * SLOT_BYTES;
    let mut at = start + HEADER_BYTES;
    for piece in text.chunks(PIECE_BYTES as usize) {
        client.write_at(at, Bytes::copy_from_slice(piece)).await?;
        at += piece.len() as u64;
    }
    client.flush().await?;
    let header = Header { sequence, length: text.len() as u64, crc: crc32c::crc32c(text) };
    client.write_at_durably(start, Bytes::from(header.encode())).await
}

pub(crate) async fn get(driver: &EmbeddedDriver) -> DriverResult<Option<Vec<u8>>> {
    let token = match attach(driver, false).await {
        Err(failure) if failure.kind == DriverErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let read = async {
        let client = connect(driver, &token).await?;
        newest_text(&client).await
    };
    let read = read.await.map_err(disk);
    driver.detach(&token).await?;
    read
}

/// The number and header of the newest slot; its text may still be damaged.
async fn newest(client: &Client) -> Result<Option<(u64, Header)>, NbdError> {
    Ok(slots(client).await?.into_iter().next())
}

/// Slots with a good header, the newest first.
async fn slots(client: &Client) -> Result<Vec<(u64, Header)>, NbdError> {
    let mut found = Vec::new();
    for slot in 0..2 {
        let bytes = client.read_at(slot * SLOT_BYTES, HEADER_BYTES as u32).await?;
        found.extend(Header::decode(&bytes).map(|header| (slot, header)));
    }
    found.sort_by_key(|(_, header)| std::cmp::Reverse(header.sequence));
    Ok(found)
}

async fn newest_text(client: &Client) -> Result<Option<Vec<u8>>, NbdError> {
    for (slot, header) in slots(client).await? {
        let mut text = Vec::new();
        while (text.len() as u64) < header.length {
            let at = slot * SLOT_BYTES + HEADER_BYTES + text.len() as u64;
            let length = PIECE_BYTES.min(header.length - text.len() as u64);
            text.extend_from_slice(&client.read_at(at, length as u32).await?);
        }
        if crc32c::crc32c(&text) == header.crc {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

async fn attach(driver: &EmbeddedDriver, writable: bool) -> DriverResult<String> {
    let token = format!("metadata-{}", Uuid::new_v4().simple());
    driver.attach(&AttachRequest { token: token.clone(), target: VOLUME, writable, initiator: String::new() }).await?;
    Ok(token)
}

async fn connect(driver: &EmbeddedDriver, token: &str) -> Result<Client, NbdError> {
    let Endpoint::NbdUnix { socket, export } = driver.endpoint(token) else {
        return Err(NbdError::Unsupported("unix socket"));
    };
    Client::connect_unix(&socket, &export).await
}

fn disk(failure: NbdError) -> crate::DriverError {
    let kind = match &failure {
        NbdError::Refused { errno: 28, .. } => DriverErrorKind::NoSpace,
        NbdError::Lost(_) => DriverErrorKind::Unreachable,
        _ => DriverErrorKind::Io,
    };
    error(kind, format!("the store's metadata: {failure}"))
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
