//! Copying between two exports: data only, several pieces in flight, holes kept as holes.

use tokio::task::JoinSet;

use crate::client::{Client, NbdError};

/// Bytes read and written at a time, at most.
pub const PIECE_BYTES: u64 = 1 << 20;
/// Pieces in flight.
const PIECES_MAX: usize = 8;
/// How far ahead extents are asked for.
const WINDOW_BYTES: u64 = 1 << 30;

/// What a copy moved, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    pub read: u64,
    pub written: u64,
}

/// Makes the first `source.size()` bytes of `target` equal to `source`, durably. `target_is_zero` spares the zeroing of
/// holes in a target that is known to be empty. `progress` hears how many bytes of the source are done with; `turn` is
/// waited for before so many bytes are read and written, so that the caller can say how fast it goes, and `piece_bytes` in
/// how small pieces (1 to [`PIECE_BYTES`]).
/// Dropping the future stops the copy; the target then holds a part.
pub async fn copy<Turn: Future<Output = ()>>(
    source: &Client,
    target: &Client,
    target_is_zero: bool,
    piece_bytes: u64,
    turn: impl Fn(u64) -> Turn,
    mut progress: impl FnMut(u64),
) -> Result<Copied, NbdError> {
    let size = source.size();
    let piece_bytes = piece_bytes.clamp(1, PIECE_BYTES);
    let mut copied = Copied::default();
    let mut pieces: JoinSet<Result<Copied, NbdError>> = JoinSet::new();
    let mut window = 0;
    while window < size {
        let length = WINDOW_BYTES.min(size - window);
        for extent in source.extents(window, length).await? {
            let end = extent.offset + extent.length;
            if !extent.data {
                if !target_is_zero {
                    target.zero_at(extent.offset, extent.length).await?;
                }
                progress(end);
                continue;
            }
            let mut at = extent.offset;
            while at < end {
                let next = (at / piece_bytes + 1) * piece_bytes;
                let length = (next.min(end) - at) as u32;
                if pieces.len() >= PIECES_MAX {
                    collect(&mut pieces, &mut copied).await?;
                    progress(at.saturating_sub(PIECES_MAX as u64 * piece_bytes));
                }
                turn(u64::from(length)).await;
                pieces.spawn(piece(source.clone(), target.clone(), at, length, target_is_zero));
                at += u64::from(length);
            }
        }
        window += length;
    }
    while !pieces.is_empty() {
        collect(&mut pieces, &mut copied).await?;
    }
    target.flush().await?;
    progress(size);
    Ok(copied)
}

async fn collect(pieces: &mut JoinSet<Result<Copied, NbdError>>, copied: &mut Copied) -> Result<(), NbdError> {
    let Some(joined) = pieces.join_next().await else { return Ok(()) };
    let done = joined.map_err(|error| NbdError::Lost(format!("a piece of the copy did not end: {error}")))??;
    copied.read += done.read;
    copied.written += done.written;
    Ok(())
}

async fn piece(source: Client, target: Client, at: u64, length: u32, target_is_zero: bool) -> Result<Copied, NbdError> {
    let data = source.read_at(at, length).await?;
    let read = u64::from(length);
    if data.iter().any(|byte| *byte != 0) {
        target.write_at(at, data).await?;
        return Ok(Copied { read, written: read });
    }
    if !target_is_zero {
        target.zero_at(at, read).await?;
    }
    Ok(Copied { read, written: 0 })
}
