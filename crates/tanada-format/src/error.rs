//! Why bytes from a device were refused.

/// Names the structure, the field, what was found and what would have been accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("{what}: {found} bytes, needs {needed}")]
    Length { what: &'static str, found: usize, needed: usize },
    #[error("{what}: checksum field says {stored:#010x}, its bytes give {computed:#010x}")]
    Checksum { what: &'static str, stored: u32, computed: u32 },
    #[error("{what}: field {field} is {value:#x}, accepted is {accepted}")]
    Field { what: &'static str, field: &'static str, value: u64, accepted: &'static str },
    #[error("{what}: field {field} is {value:#x}, accepted is at most {most:#x}")]
    TooLarge { what: &'static str, field: &'static str, value: u64, most: u64 },
    #[error("{what}: belongs to {found}, not to {wanted}")]
    Foreign { what: &'static str, found: uuid::Uuid, wanted: uuid::Uuid },
    #[error(
        "superblock: features {unknown:#x} of the set \"{set}\" are unknown to this program, which knows {known:#x}"
    )]
    Features { set: &'static str, unknown: u32, known: u32 },
}

impl FormatError {
    /// Checks that `bytes` has exactly `needed` bytes.
    pub(crate) fn check_length(what: &'static str, bytes: &[u8], needed: usize) -> Result<(), FormatError> {
        if bytes.len() == needed { Ok(()) } else { Err(FormatError::Length { what, found: bytes.len(), needed }) }
    }
}
