//! Images of any writer, read strictly forward.
//!
//! What has to hold for a dynamic or differencing image: footer copy, header and table in this order, all blocks after
//! the table and not over each other, the footer again at the end. Parents are not followed, locators not read.

use std::collections::VecDeque;
use std::io::Read;

use super::footer::{Footer, Kind};
use super::header::Header;
use super::{ABSENT, SECTOR};
use crate::error::{ImageError, ImageResult};
use crate::forward::{Forward, u32_at};
use crate::guess;
use crate::limits::{RUN_BYTES, VHD_GAP_BYTES};
use crate::reader::{Event, Gaps};

const SECTOR_BYTES: usize = SECTOR as usize;

/// What the first sector turned out to begin.
pub enum Opened<R> {
    Dynamic(Box<DynamicReader<R>>),
    Fixed(Box<FixedReader<R>>),
}

impl<R: Read> Opened<R> {
    /// Reads what stands before the blocks. A stream that does not begin with a footer is a fixed image, if it is one:
    /// only its end tells.
    pub fn read(source: R, length: Option<u64>) -> ImageResult<Opened<R>> {
        let mut stream = Forward::new(source);
        let mut first = [0; SECTOR_BYTES];
        stream.exact(&mut first, "the first sector")?;
        if !Footer::is_one(&first) {
            // Before its end tells, all of it would be on the disk.
            if let Some(what) = guess::container(&first) {
                return Err(ImageError::invalid(format!("it does not begin as a VHD does; it is {what}")));
            }
            let size = length.map(|length| length.saturating_sub(SECTOR));
            return Ok(Opened::Fixed(Box::new(FixedReader {
                stream,
                held: first.to_vec(),
                size,
                at: 0,
                ended: false,
            })));
        }
        let footer = Footer::decode(&first)?;
        if footer.kind == Kind::Fixed {
            // A fixed image of no bytes, or one whose disk begins with a footer of its own: not told apart from damage.
            return Err(ImageError::unsupported("a fixed VHD with a footer at its start"));
        }
        Ok(Opened::Dynamic(Box::new(DynamicReader::open(stream, footer)?)))
    }
}

pub struct DynamicReader<R> {
    stream: Forward<R>,
    footer: Footer,
    block_bytes: u64,
    /// Blocks that have not come yet, in the order of the stream: sector of the bitmap, number of the block.
    blocks: std::vec::IntoIter<(u32, u32)>,
    /// What follows in the block that is being read.
    runs: VecDeque<Run>,
    open_end: bool,
    ended: bool,
}

/// Sectors of a block that are alike.
struct Run {
    /// Offset on the disk and length, in bytes.
    offset: u64,
    length: u64,
    wanted: bool,
}

impl<R: Read> DynamicReader<R> {
    fn open(mut stream: Forward<R>, footer: Footer) -> ImageResult<DynamicReader<R>> {
        gap(&stream, footer.header_at, "the header")?;
        stream.skip_to(footer.header_at, "the header")?;
        let mut header = [0; 1024];
        stream.exact(&mut header, "the header")?;
        let header = Header::decode(&header, footer.size)?;
        gap(&stream, header.table_at, "the table of blocks")?;
        stream.skip_to(header.table_at, "the table of blocks")?;
        let table = stream.bytes(footer.size.div_ceil(header.block_bytes) * 4, "the table of blocks")?;
        let table_end = (header.table_at + header.entries * 4).next_multiple_of(SECTOR);
        stream.skip_to(table_end, "the end of the table of blocks")?;
        let entries = table.chunks_exact(4).map(|entry| u32_at(entry, 0)).zip(0..);
        let mut blocks: Vec<(u32, u32)> = entries.filter(|(sector, _)| *sector != ABSENT).collect();
        blocks.sort_unstable();
        let stored = (bitmap_bytes(header.block_bytes) + header.block_bytes) / SECTOR;
        for pair in blocks.windows(2) {
            if u64::from(pair[1].0) < u64::from(pair[0].0) + stored {
                let why = format!(
                    "blocks {} and {} lie over each other, at sectors {} and {}",
                    pair[0].1, pair[1].1, pair[0].0, pair[1].0
                );
                return Err(ImageError::invalid(why));
            }
        }
        Ok(DynamicReader {
            stream,
            footer,
            block_bytes: header.block_bytes,
            blocks: blocks.into_iter(),
            runs: VecDeque::new(),
            open_end: false,
            ended: false,
        })
    }

    pub fn expect_open_end(&mut self) {
        self.open_end = true;
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.footer.size
    }

    pub fn gaps(&self) -> Gaps {
        if self.footer.kind == Kind::Differencing { Gaps::Base } else { Gaps::Zeros }
    }

    pub fn next_event(&mut self) -> ImageResult<Option<Event>> {
        loop {
            let Some(run) = self.runs.front_mut() else {
                match self.blocks.next() {
                    Some((sector, block)) => self.begin_block(sector, block)?,
                    None if self.ended => return Ok(None),
                    None => {
                        self.end()?;
                        return Ok(None);
                    }
                }
                continue;
            };
            let what = "a block";
            if !run.wanted {
                let to = self.stream.at() + run.length;
                self.stream.skip_to(to, what)?;
                self.runs.pop_front();
                continue;
            }
            let (offset, step) = (run.offset, RUN_BYTES.min(run.length));
            run.offset += step;
            run.length -= step;
            if run.length == 0 {
                self.runs.pop_front();
            }
            return Ok(Some(Event::of(offset, self.stream.bytes(step, what)?)));
        }
    }

    /// Reads a block's bitmap and lines up what it says.
    fn begin_block(&mut self, sector: u32, block: u32) -> ImageResult<()> {
        self.stream.skip_to(u64::from(sector) * SECTOR, "a block")?;
        let bitmap = self.stream.bytes(bitmap_bytes(self.block_bytes), "a block's bitmap")?;
        let start = u64::from(block) * self.block_bytes;
        for sector in 0..self.block_bytes / SECTOR {
            let offset = start + sector * SECTOR;
            let bit = bitmap[(sector / 8) as usize] & 0x80 >> (sector % 8) != 0;
            let wanted = bit && offset < self.footer.size;
            match self.runs.back_mut() {
                Some(run) if run.wanted == wanted => run.length += SECTOR,
                _ => self.runs.push_back(Run { offset, length: SECTOR, wanted }),
            }
        }
        Ok(())
    }

    /// The footer again. Others keep what is theirs between the last block and it.
    fn end(&mut self) -> ImageResult<()> {
        let mut last = [0; SECTOR_BYTES];
        self.stream.exact(&mut last, "the footer")?;
        while !self.open_end {
            let mut next = [0; SECTOR_BYTES];
            match self.stream.some(&mut next)? {
                SECTOR_BYTES => last = next,
                0 => break,
                odd => {
                    return Err(ImageError::PrematureEnd(format!("{odd} bytes where the footer of 512 has to be")));
                }
            }
        }
        let footer = if Footer::is_one(&last) {
            Footer::decode(&last)?
        } else {
            return Err(ImageError::PrematureEnd("the footer is missing".into()));
        };
        if footer != self.footer {
            return Err(ImageError::invalid("the VHD's footer and the copy at its start are of different images"));
        }
        self.ended = true;
        Ok(())
    }
}

fn bitmap_bytes(block_bytes: u64) -> u64 {
    (block_bytes / SECTOR / 8).next_multiple_of(SECTOR)
}

fn gap<R: Read>(stream: &Forward<R>, position: u64, what: &str) -> ImageResult<()> {
    if position > stream.at() + VHD_GAP_BYTES {
        let words = format!("at most {VHD_GAP_BYTES} bytes after what stands before it are accepted");
        return Err(ImageError::invalid(format!("{what} of the VHD is said to be at {position}; {words}")));
    }
    Ok(())
}

/// A disk as it is, and a footer behind it.
pub struct FixedReader<R> {
    stream: Forward<R>,
    /// Read and not yet told: the end of it may be the footer.
    held: Vec<u8>,
    size: Option<u64>,
    at: u64,
    ended: bool,
}

impl<R: Read> FixedReader<R> {
    /// Bytes of the disk, where the length of the stream tells.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    pub fn next_event(&mut self) -> ImageResult<Option<Event>> {
        if self.ended {
            return Ok(None);
        }
        let filled = self.held.len();
        self.held.resize(RUN_BYTES as usize + SECTOR_BYTES, 0);
        let read = self.stream.some(&mut self.held[filled..])?;
        self.held.truncate(filled + read);
        let Some(data) = self.held.len().checked_sub(SECTOR_BYTES) else { return Err(no_footer()) };
        let footer = self.held.split_off(data);
        let bytes = std::mem::replace(&mut self.held, footer);
        let offset = self.at;
        self.at += bytes.len() as u64;
        if data < RUN_BYTES as usize {
            self.end()?;
        }
        Ok((!bytes.is_empty()).then(|| Event::of(offset, bytes)))
    }

    fn end(&mut self) -> ImageResult<()> {
        let footer: [u8; SECTOR_BYTES] = self.held[..].try_into().map_err(|_| no_footer())?;
        if !Footer::is_one(&footer) {
            return Err(no_footer());
        }
        let footer = Footer::decode(&footer)?;
        if footer.kind != Kind::Fixed || footer.size != self.at {
            let why = format!("{} bytes before a footer of {} bytes, {:?}", self.at, footer.size, footer.kind);
            return Err(ImageError::invalid(format!("a fixed VHD does not fit its footer: {why}")));
        }
        self.ended = true;
        Ok(())
    }
}

/// Neither the start nor the end of the stream is that of a VHD.
fn no_footer() -> ImageError {
    ImageError::PrematureEnd("it neither begins nor ends with the footer of a VHD".into())
}
