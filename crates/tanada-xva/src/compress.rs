//! The layer around the tar stream. Compressing and decompressing happen on the caller's thread (zstd brings its own
//! workers), so callers run this on a thread that may block and hand bytes over through bounded channels.
//!
//! Reading never asks what was announced: the first bytes decide.

use std::io::{self, BufReader, Chain, Cursor, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::error::{XvaError, XvaResult};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

/// Level 1 is what keeps gzip near 100 MB/s on one thread; the better levels cost two to five times that for a few percent.
const GZIP_LEVEL: u32 = 1;

/// zstd's own default; with several workers it is faster than a disk reads.
const ZSTD_LEVEL: i32 = 3;

/// More workers than this only cost memory (about 8 MiB each) before a 10 Gbit network is the limit.
const ZSTD_WORKERS_MAX: usize = 4;

/// Windows above 128 MiB are refused, so that a stream of some bytes cannot demand gigabytes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// A skippable frame, with which parallel compressors may begin; the low four bits of the first byte are free.
const ZSTD_SKIPPABLE: [u8; 4] = [0x50, 0x2A, 0x4D, 0x18];
const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];

impl Compression {
    /// The meaning of the `use_compression` parameter; xapi reads whatever it does not know as none, we refuse it.
    pub fn from_parameter(text: &str) -> Option<Compression> {
        match text {
            "" | "false" | "none" => Some(Compression::None),
            "true" | "gzip" => Some(Compression::Gzip),
            "zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }

    fn detect(first: &[u8]) -> Compression {
        let skippable = first.len() >= 4 && first[0] & 0xF0 == ZSTD_SKIPPABLE[0] && first[1..4] == ZSTD_SKIPPABLE[1..];
        if first.starts_with(&ZSTD_MAGIC) || skippable {
            Compression::Zstd
        } else if first.starts_with(&GZIP_MAGIC) {
            Compression::Gzip
        } else {
            Compression::None
        }
    }
}

/// Compresses what is written to it. [`Encoder::finish`] must be called, else the stream has no end.
#[must_use = "finish() writes the end of the stream"]
pub enum Encoder<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    pub fn new(out: W, compression: Compression) -> io::Result<Encoder<W>> {
        Ok(match compression {
            Compression::None => Encoder::Plain(out),
            Compression::Gzip => Encoder::Gzip(GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL))),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                let workers = std::thread::available_parallelism().map_or(1, |count| count.get()).min(ZSTD_WORKERS_MAX);
                encoder.multithread(workers as u32)?;
                Encoder::Zstd(encoder)
            }
        })
    }

    /// Ends the stream and returns what it was written to.
    pub fn finish(self) -> io::Result<W> {
        let mut out = match self {
            Encoder::Plain(out) => out,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        out.flush()?;
        Ok(out)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Plain(out) => out.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Plain(out) => out.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

type Whole<R> = Chain<Cursor<Vec<u8>>, R>;

/// Decompresses by content: plain, gzip (also of several members) or zstd (also of several frames).
pub enum Decoder<R: Read> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Whole<R>>>>),
}

impl<R: Read> Decoder<R> {
    pub fn detect(mut source: R) -> XvaResult<Decoder<R>> {
        let mut first = Vec::with_capacity(ZSTD_MAGIC.len());
        source
            .by_ref()
            .take(ZSTD_MAGIC.len() as u64)
            .read_to_end(&mut first)
            .map_err(|error| XvaError::from_read(error, "the first bytes"))?;
        let compression = Compression::detect(&first);
        let whole = Cursor::new(first).chain(source);
        Ok(match compression {
            Compression::None => Decoder::Plain(whole),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(whole))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::new(whole).map_err(XvaError::Io)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(XvaError::Io)?;
                Decoder::Zstd(Box::new(decoder))
            }
        })
    }

    pub fn compression(&self) -> Compression {
        match self {
            Decoder::Plain(_) => Compression::None,
            Decoder::Gzip(_) => Compression::Gzip,
            Decoder::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(source) => source.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::{Compression, Decoder, Encoder};

    fn pack(bytes: &[u8], compression: Compression) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::detect(bytes).unwrap().read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn each_kind_both_ways_and_in_several_parts() {
        let bytes: Vec<u8> = (0..300_000u32).flat_map(|number| (number % 977).to_le_bytes()).collect();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let packed = pack(&bytes, compression);
            assert_eq!(Decoder::detect(&packed[..]).unwrap().compression(), compression);
            assert_eq!(unpack(&packed).unwrap(), bytes);
            let parts = [pack(&bytes[..1000], compression), pack(&bytes[1000..], compression)].concat();
            assert_eq!(unpack(&parts).unwrap(), bytes, "{compression:?}");
            if compression != Compression::None {
                assert!(packed.len() < bytes.len());
                assert!(unpack(&packed[..packed.len() - 1]).is_err(), "{compression:?} cut short");
            }
        }
    }

    #[test]
    fn parameters() {
        assert_eq!(Compression::from_parameter("true"), Some(Compression::Gzip));
        assert_eq!(Compression::from_parameter("zstd"), Some(Compression::Zstd));
        assert_eq!(Compression::from_parameter("lzma"), None);
    }
}
