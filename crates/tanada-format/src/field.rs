//! A field of an on-disk structure: name, offset, length. Structures are chains of them, each after the one before,
//! so that no offset is written twice and the layout can be printed.

use crate::error::FormatError;
use uuid::Uuid;

/// A little-endian unsigned number, or raw bytes, at a fixed place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    /// Offset in bytes from the start of the structure.
    pub at: usize,
    /// Length in bytes; numbers have at most 8.
    pub bytes: usize,
}

impl Field {
    pub const fn first(name: &'static str, bytes: usize) -> Field {
        Field { name, at: 0, bytes }
    }

    pub const fn then(self, name: &'static str, bytes: usize) -> Field {
        Field { name, at: self.end(), bytes }
    }

    pub const fn end(self) -> usize {
        self.at + self.bytes
    }

    /// Largest number the field can hold.
    pub const fn most(self) -> u64 {
        if self.bytes >= 8 { u64::MAX } else { (1 << (8 * self.bytes)) - 1 }
    }

    /// Panics where `value` does not fit: a mistake of the caller, never of the medium.
    pub fn put(self, structure: &mut [u8], value: u64) {
        assert!(value <= self.most(), "{value} does not fit the {} bytes of {}", self.bytes, self.name);
        structure[self.at..self.end()].copy_from_slice(&value.to_le_bytes()[..self.bytes]);
    }

    pub fn get(self, structure: &[u8]) -> u64 {
        let mut wide = [0; 8];
        wide[..self.bytes].copy_from_slice(&structure[self.at..self.end()]);
        u64::from_le_bytes(wide)
    }

    pub fn put_bytes(self, structure: &mut [u8], value: &[u8]) {
        structure[self.at..self.end()].copy_from_slice(value);
    }

    pub fn get_bytes<const N: usize>(self, structure: &[u8]) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&structure[self.at..self.end()]);
        bytes
    }

    pub fn get_uuid(self, structure: &[u8]) -> Uuid {
        Uuid::from_bytes(self.get_bytes(structure))
    }

    /// The error that says this field of `what` holds `value` where only `accepted` will do.
    pub(crate) fn refuse<T>(self, what: &'static str, value: u64, accepted: &'static str) -> Result<T, FormatError> {
        Err(FormatError::Field { what, field: self.name, value, accepted })
    }

    /// Reads a number that must not exceed `most`.
    pub(crate) fn get_most(self, what: &'static str, structure: &[u8], most: u64) -> Result<u64, FormatError> {
        let value = self.get(structure);
        if value <= most { Ok(value) } else { Err(FormatError::TooLarge { what, field: self.name, value, most }) }
    }

    /// Errors where any byte of the field is set; the error's value is all of them, or-ed.
    pub(crate) fn check_zero(self, what: &'static str, structure: &[u8]) -> Result<(), FormatError> {
        match structure[self.at..self.end()].iter().fold(0, |all, byte| all | byte) {
            0 => Ok(()),
            bits => self.refuse(what, u64::from(bits), "zero bytes only"),
        }
    }
}

/// CRC-32C of `structure` as if the four bytes of `field` were zero.
pub(crate) fn crc_without(structure: &[u8], field: Field) -> u32 {
    let crc = crc32c::crc32c(&structure[..field.at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &structure[field.end()..])
}

/// Stores the checksum of `structure` in `field`.
pub(crate) fn seal(structure: &mut [u8], field: Field) {
    let crc = crc_without(structure, field);
    field.put(structure, u64::from(crc));
}

/// Errors where `field` does not hold the checksum of `structure`.
pub(crate) fn check_seal(what: &'static str, structure: &[u8], field: Field) -> Result<(), FormatError> {
    let (stored, computed) = (field.get(structure) as u32, crc_without(structure, field));
    if stored == computed { Ok(()) } else { Err(FormatError::Checksum { what, stored, computed }) }
}
