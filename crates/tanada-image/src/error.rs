use std::io;

use tanada_xva::XvaError;

pub type ImageResult<T> = Result<T, ImageError>;

/// Why an image could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The stream ended before the image did.
    #[error("the image ends early: {0}")]
    PrematureEnd(String),
    /// The bytes break the format or a limit.
    #[error("not a usable image: {0}")]
    Invalid(String),
    /// A good image of a kind that cannot be read as a stream, or not by us.
    #[error("the image cannot be read as a stream: {0}")]
    Unsupported(String),
    /// The disk has no place in the format.
    #[error("a disk of {size} bytes has no place in the format; at most {limit} have")]
    TooLarge { size: u64, limit: u64 },
    /// The stream itself failed (not its content).
    #[error("image stream: {0}")]
    Io(io::Error),
}

impl ImageError {
    pub(crate) fn invalid(message: impl Into<String>) -> ImageError {
        ImageError::Invalid(message.into())
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> ImageError {
        ImageError::Unsupported(message.into())
    }

    pub(crate) fn from_read(error: io::Error, reading: &str) -> ImageError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => ImageError::PrematureEnd(format!("while reading {reading}")),
            _ => ImageError::Io(error),
        }
    }
}

impl From<XvaError> for ImageError {
    fn from(error: XvaError) -> ImageError {
        match error {
            XvaError::PrematureEnd(what) => ImageError::PrematureEnd(what),
            XvaError::Io(error) => ImageError::Io(error),
            other => ImageError::Invalid(other.to_string()),
        }
    }
}
