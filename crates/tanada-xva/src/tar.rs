//! Tar headers as XVA uses them: plain files with short names, nothing else.
//!
//! A header is one 512-byte block: name (100 bytes), mode, uid, gid (8 each), size and mtime (12 each, octal text),
//! checksum (8), type flag (1), link name (100), magic and version (8), owner and group names (32 each), device numbers
//! (8 each), prefix (155). xapi writes the old form without magic, Xen Orchestra POSIX ustar; both are read. Links,
//! directories, devices, pax and GNU extensions, prefixes and base-256 sizes are refused by name: no XVA needs them, and
//! they are what tar readers have been attacked through. Names are only ever compared, never opened.

use crate::error::{XvaError, XvaResult};

/// Bytes in a tar block.
pub const BLOCK: usize = 512;

/// The longest member name in bytes; the name field also holds the terminating zero.
pub const NAME_BYTES: usize = 99;

/// The largest size that eleven octal digits express.
pub const SIZE_MAX: u64 = (1 << 33) - 1;

/// Ends an archive, twice.
pub const ZERO_BLOCK: [u8; BLOCK] = [0; BLOCK];

const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const GROUP: std::ops::Range<usize> = 297..329;
const PREFIX: std::ops::Range<usize> = 345..500;

/// A member, as its header tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    /// Length of the content in bytes.
    pub size: u64,
    /// The group name, empty in the old form. Our `ova.xml` keeps its checksum here (see [`crate::ova`]).
    pub group: String,
}

impl Header {
    pub fn new(name: impl Into<String>, size: u64) -> Header {
        Header { name: name.into(), size, group: String::new() }
    }

    /// Zero bytes that follow the content up to the next block.
    pub fn padding(&self) -> usize {
        padding(self.size)
    }

    /// The block in ustar form. Fails where the name or the size has no place in it.
    pub fn encode(&self, mtime_seconds: u64) -> XvaResult<[u8; BLOCK]> {
        check_name(&self.name).map_err(|why| XvaError::Unwritable(format!("member name {:?}: {why}", self.name)))?;
        if self.size > SIZE_MAX {
            return Err(XvaError::Unwritable(format!("{}: {} bytes exceed {SIZE_MAX}", self.name, self.size)));
        }
        if self.group.len() >= GROUP.len() || !self.group.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(XvaError::Unwritable(format!("{}: group name {:?}", self.name, self.group)));
        }
        let mut block = ZERO_BLOCK;
        block[..self.name.len()].copy_from_slice(self.name.as_bytes());
        put(&mut block, 100, b"0000644\0");
        put(&mut block, 108, b"0000000\0");
        put(&mut block, 116, b"0000000\0");
        put(&mut block, SIZE.start, format!("{:011o}\0", self.size).as_bytes());
        put(&mut block, 136, format!("{:011o}\0", mtime_seconds.min(SIZE_MAX)).as_bytes());
        block[TYPE] = b'0';
        put(&mut block, MAGIC.start, b"ustar\x0000");
        put(&mut block, GROUP.start, self.group.as_bytes());
        put(&mut block, 329, b"0000000\0");
        put(&mut block, 337, b"0000000\0");
        let sum = unsigned_sum(&block);
        put(&mut block, CHECKSUM.start, format!("{sum:06o}\0 ").as_bytes());
        Ok(block)
    }

    /// Reads a block; `None` is the zero block that ends an archive.
    pub fn decode(block: &[u8; BLOCK]) -> XvaResult<Option<Header>> {
        if *block == ZERO_BLOCK {
            return Ok(None);
        }
        let recorded = octal(&block[CHECKSUM]).ok_or_else(|| {
            XvaError::invalid("no tar header where one has to be (expected a tar stream, gzip or zstd around one)")
        })?;
        let computed = unsigned_sum(block);
        if recorded != computed {
            return Err(XvaError::invalid(format!(
                "a tar header is damaged: its checksum in the archive is {recorded}, computed from its bytes it is {computed}"
            )));
        }
        let name = text(&block[..100]).ok_or_else(|| XvaError::invalid("a member name is not terminated text"))?;
        check_name(&name).map_err(|why| XvaError::invalid(format!("member name {name:?}: {why}")))?;
        let refuse = |why: String| XvaError::invalid(format!("member {name}: {why}"));
        if !matches!(block[TYPE], b'0' | 0) {
            return Err(refuse(format!("type {:?}; only plain files are accepted", char::from(block[TYPE]))));
        }
        if block[LINK].iter().any(|byte| *byte != 0) {
            return Err(refuse("it has a link name".into()));
        }
        let posix = match &block[MAGIC] {
            b"ustar\x0000" | b"ustar  \0" => true,
            magic if magic.iter().all(|byte| *byte == 0) => false,
            magic => return Err(refuse(format!("unknown tar dialect {:?}", String::from_utf8_lossy(magic)))),
        };
        if block[PREFIX].iter().any(|byte| *byte != 0) {
            return Err(refuse("its name has a prefix; names are at most 99 bytes".into()));
        }
        let size = octal(&block[SIZE]).ok_or_else(|| refuse("its size is not octal text".into()))?;
        let group = if posix { text(&block[GROUP]).unwrap_or_default() } else { String::new() };
        Ok(Some(Header { name, size, group }))
    }
}

/// Zero bytes between content of this length and the next block.
pub fn padding(size: u64) -> usize {
    // The remainder is below 512, so it fits whatever `usize` is.
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The sum of all bytes, those of the checksum field counted as spaces.
fn unsigned_sum(block: &[u8; BLOCK]) -> u64 {
    let all: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let field: u64 = block[CHECKSUM].iter().map(|byte| u64::from(*byte)).sum();
    all - field + 8 * u64::from(b' ')
}

/// Octal digits, after any spaces, up to the end or to spaces and zeros that fill the field.
fn octal(field: &[u8]) -> Option<u64> {
    let start = field.iter().position(|byte| *byte != b' ')?;
    let digits = field[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = field[start..].split_at(digits);
    if digits.is_empty() || rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Text up to the first zero; all bytes after it must be zero too.
fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0)?;
    if field[end..].iter().any(|byte| *byte != 0) {
        return None;
    }
    String::from_utf8(field[..end].to_vec()).ok()
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > NAME_BYTES {
        return Err("it is longer than 99 bytes");
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return Err("only printable ASCII without blanks and backslashes is accepted");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("it is not a plain relative path");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, CHECKSUM, Header, LINK, PREFIX, SIZE, TYPE, ZERO_BLOCK, padding, put, unsigned_sum};

    fn block() -> [u8; BLOCK] {
        Header { name: "Ref:7/00000000".into(), size: 1 << 20, group: "xxh64:00".into() }.encode(0).unwrap()
    }

    fn resum(block: &mut [u8; BLOCK]) {
        let sum = unsigned_sum(block);
        put(block, CHECKSUM.start, format!("{sum:06o}\0 ").as_bytes());
    }

    fn error(block: &[u8; BLOCK]) -> String {
        Header::decode(block).expect_err("has to be refused").to_string()
    }

    #[test]
    fn both_ways() {
        for (name, size) in [("ova.xml", 0), ("Ref:7/00000000.xxhash", 16), (&"n".repeat(99), super::SIZE_MAX)] {
            let header = Header::new(name, size);
            assert_eq!(Header::decode(&header.encode(1).unwrap()).unwrap(), Some(header));
        }
        assert_eq!(Header::decode(&ZERO_BLOCK).unwrap(), None);
        assert_eq!((padding(0), padding(1), padding(511), padding(512)), (0, 511, 1, 0));
    }

    #[test]
    fn the_old_form_is_read() {
        let mut block = block();
        block[super::MAGIC].fill(0);
        block[super::GROUP].fill(0);
        block[TYPE] = 0;
        resum(&mut block);
        assert_eq!(Header::decode(&block).unwrap(), Some(Header::new("Ref:7/00000000", 1 << 20)));
    }

    #[test]
    fn every_flipped_bit_is_refused_or_harmless() {
        let good = Header::decode(&block()).unwrap();
        for bit in 0..BLOCK * 8 {
            let mut bad = block();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(header) = Header::decode(&bad) {
                assert_eq!(header, good, "bit {bit}");
            }
        }
    }

    #[test]
    fn extensions_are_refused_by_name() {
        for kind in b"1234567LKxgSV" {
            let mut block = block();
            block[TYPE] = *kind;
            resum(&mut block);
            assert!(error(&block).contains("only plain files"), "{}", char::from(*kind));
        }
        for (range, byte, words) in [(LINK, b'x', "link name"), (PREFIX, b'x', "prefix"), (SIZE, 0x80, "octal")] {
            let mut block = block();
            block[range.start] = byte;
            resum(&mut block);
            assert!(error(&block).contains(words), "{}", error(&block));
        }
    }

    #[test]
    fn names_cannot_climb() {
        for name in ["/etc/passwd", "../x", "a/../b", "a//b", "./ova.xml", "a\\b", "a b", ""] {
            assert!(Header::new(name, 0).encode(0).is_err(), "{name:?}");
            let mut block = block();
            block[..100].fill(0);
            block[..name.len()].copy_from_slice(name.as_bytes());
            resum(&mut block);
            assert!(error(&block).contains("member name"), "{name:?}");
        }
        assert!(Header::new("n".repeat(100), 0).encode(0).is_err());
    }
}
