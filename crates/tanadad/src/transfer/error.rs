//! What a caller hears when a transfer fails.

use std::io;

use tanada_image::ImageError;
use tanada_nbd::client::NbdError;
use tanada_xapi::{ApiError, ApiResult};
use tanada_xva::{XvaError, ova};
use tokio::sync::mpsc;

use super::stream::{PIECES_UNDER_WAY, Piece};

const ENOSPC: u32 = 28;

/// A disk that could not be read or written.
pub fn disk_error(error: NbdError) -> ApiError {
    tracing::warn!(%error, "a disk failed during a transfer");
    match error {
        NbdError::Refused { errno: ENOSPC, .. } => ApiError::sr_backend_failure(44, "There is insufficient space"),
        other => ApiError::vdi_io_error(other),
    }
}

/// An archive that could not be read or written.
pub fn xva_error(error: XvaError) -> ApiError {
    match error {
        XvaError::PrematureEnd(_) => {
            tracing::warn!(%error, "an import failed");
            ApiError::import_error_premature_eof()
        }
        XvaError::UnexpectedMember { expected, found } if expected == ova::MEMBER => {
            ApiError::import_error_unexpected_file(expected, found)
        }
        XvaError::TooNew { .. } => {
            tracing::warn!(%error, "an import failed");
            ApiError::import_incompatible_version()
        }
        XvaError::Checksum { .. } | XvaError::UnexpectedMember { .. } | XvaError::Invalid(_) => {
            ApiError::import_error(error)
        }
        XvaError::Unwritable(_) => ApiError::internal(error),
        XvaError::Io(io) => body_error(&io),
    }
}

/// A disk image that could not be read or laid out.
pub fn image_error(error: ImageError) -> ApiError {
    tracing::warn!(%error, "a disk image was refused");
    match error {
        ImageError::PrematureEnd(_) => ApiError::import_error_premature_eof(),
        ImageError::Invalid(_) | ImageError::Unsupported(_) | ImageError::TooLarge { .. } => {
            ApiError::import_error(error)
        }
        ImageError::Io(io) => body_error(&io),
    }
}

/// The client's side of the stream broke.
pub fn body_error(error: &io::Error) -> ApiError {
    tracing::warn!(%error, "the client's stream broke");
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            ApiError::import_error_premature_eof()
        }
        io::ErrorKind::BrokenPipe => ApiError::internal("the client closed the connection"),
        _ => ApiError::internal(format!("the client's stream broke: {error}")),
    }
}

/// The client no longer takes what we send.
pub fn client_gone() -> ApiError {
    ApiError::internal("the client closed the connection before the end")
}

/// Waits until everything sent was taken off our hands, so that success is not claimed before. `all_taken` answers for
/// a server that has let go of the body.
pub async fn taken(body: &mpsc::Sender<Piece>, all_taken: impl FnOnce() -> bool) -> ApiResult<()> {
    match body.reserve_many(PIECES_UNDER_WAY).await {
        Ok(_) => Ok(()),
        Err(_) if all_taken() => Ok(()),
        Err(_) => Err(client_gone()),
    }
}

/// Makes the connection end without a proper end of the body. Does not wait for a client that has stopped reading.
pub fn abort(body: mpsc::Sender<Piece>, why: &ApiError) {
    let error = io::Error::other(why.to_string());
    // Nobody left to tell is fine.
    tokio::spawn(async move { drop(body.send(Err(error)).await) });
}
