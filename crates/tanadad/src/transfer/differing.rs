//! What differs between an older disk and a newer one, chunk by chunk, in the form in which an archive tells it.
//!
//! | the storage | how it is found |
//! |---|---|
//! | tells differences (both disks on one SR, of one size) | only there both are read and compared: a block that the storage has moved is not a change |
//! | does not (arrays, disks that were resized, disks on two SRs) | both are read and compared |
//! | there is no newer disk | what is mapped is read |

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::{BoxStream, iter};
use futures_util::{StreamExt, TryStreamExt};
use tanada_driver::Extent;
use tanada_nbd::client::Client;
use tanada_xapi::{ApiResult, Ref};
use tanada_xva::Delta;
use tanada_xva::delta::BLOCK_BYTES;

use super::attached::{Access, Attached};
use super::disk::{CHUNK_BYTES, Chunk, DiskReader, Tally, UNDER_WAY, WINDOW_BYTES};
use super::error::{disk_error, xva_error};
use crate::context::Daemon;
use crate::db::{Record, View};
use crate::storage::{driver_error, volume_id};

const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCKS: usize = (CHUNK_BYTES / BLOCK) as usize;

/// Chunks that differ, in order. [`Differing::release`] ends it.
pub struct Differing {
    disk: Attached,
    base: Option<Attached>,
    way: Way,
}

enum Way {
    /// The storage says where.
    Told(BoxStream<'static, ApiResult<(u64, Delta)>>),
    /// The disk and its base, side by side; the chunk that comes next.
    Compared(Box<SideBySide>),
}

struct SideBySide {
    disk: DiskReader,
    base: DiskReader,
    chunk: u64,
}

impl Differing {
    /// How `vdi` differs from `base`; from zeros where there is none. Nobody writes to either meanwhile.
    pub async fn open(daemon: &Arc<Daemon>, vdi: &Ref, base: Option<&Ref>, tally: &Tally) -> ApiResult<Differing> {
        let record = daemon.db.read(|state| state.get("VDI", vdi))?;
        let newer = base.map(|base| daemon.db.read(|state| state.get("VDI", base))).transpose()?;
        let told = match &newer {
            Some(newer) => difference(daemon, newer, &record).await?,
            None => None,
        };
        let disk = Attached::open(daemon, vdi, Access::Read).await?;
        let mut opened = Differing { disk, base: None, way: Way::Told(iter([]).boxed()) };
        let way = async {
            let client = opened.disk.client()?;
            let Some(newer) = newer else {
                let extents = mapped(&client, size(&record)).await?;
                return Ok(Way::Told(read_all(Pair { client, base: None }, extents, size(&record), tally)));
            };
            let base = opened.base.insert(Attached::open(daemon, newer.id(), Access::Read).await?).client()?;
            if let Some(extents) = told {
                let pair = Pair { client, base: Some(base) };
                return Ok(Way::Told(read_all(pair, extents, size(&record), tally)));
            }
            let (size, common) = (size(&record), size(&record).min(size(&newer)));
            let base = DiskReader::new(base, common, &tally.beside());
            Ok(Way::Compared(Box::new(SideBySide { disk: DiskReader::new(client, size, tally), base, chunk: 0 })))
        };
        match way.await {
            Ok(way) => Ok(Differing { way, ..opened }),
            Err(error) => {
                opened.release().await;
                Err(error)
            }
        }
    }

    /// The next chunk in which something differs, by its number.
    pub async fn next(&mut self) -> ApiResult<Option<(u64, Delta)>> {
        match &mut self.way {
            Way::Told(chunks) => loop {
                match chunks.try_next().await? {
                    Some((_, delta)) if delta.is_empty() => {}
                    next => return Ok(next),
                }
            },
            Way::Compared(pair) => {
                let SideBySide { disk, base, chunk } = pair.as_mut();
                while let Some(ours) = disk.next().await.map_err(disk_error)? {
                    let theirs = base.next().await.map_err(disk_error)?;
                    let delta = compare(&ours, theirs.as_ref())?;
                    *chunk += 1;
                    if !delta.is_empty() {
                        return Ok(Some((*chunk - 1, delta)));
                    }
                }
                Ok(None)
            }
        }
    }

    pub async fn release(self) {
        drop(self.way);
        self.disk.release().await;
        if let Some(base) = self.base {
            base.release().await;
        }
    }
}

fn size(vdi: &Record) -> u64 {
    u64::try_from(vdi.int("virtual_size")).unwrap_or(0)
}

/// Where `to` differs from `from`, where the storage can tell.
async fn difference(daemon: &Daemon, from: &Record, to: &Record) -> ApiResult<Option<Vec<Extent>>> {
    let sr = to.reference("SR");
    let driver = daemon.storage.driver(&sr)?;
    if from.reference("SR") != sr || size(from) != size(to) || !driver.capabilities().exact_difference {
        return Ok(None);
    }
    let (from, to) = (volume_id(from.str("location"))?, volume_id(to.str("location"))?);
    driver.difference(from, to).await.map(Some).map_err(driver_error)
}

/// What is mapped in the first `size` bytes.
async fn mapped(client: &Client, size: u64) -> ApiResult<Vec<Extent>> {
    let (mut at, mut all) = (0, Vec::new());
    while at < size {
        let step = WINDOW_BYTES.min(size - at);
        let extents = client.extents(at, step).await.map_err(disk_error)?.into_iter().filter(|extent| extent.data);
        all.extend(extents.map(|extent| Extent { offset: extent.offset, length: extent.length, data: true }));
        at += step;
    }
    Ok(all)
}

/// A disk, and what it is told by.
#[derive(Clone)]
struct Pair {
    client: Client,
    base: Option<Client>,
}

/// Reads what lies in these extents, several chunks at a time.
fn read_all(pair: Pair, extents: Vec<Extent>, size: u64, tally: &Tally) -> BoxStream<'static, ApiResult<(u64, Delta)>> {
    let tally = tally.clone();
    let read = move |(chunk, blocks): (u64, Blocks)| read_chunk(pair.clone(), tally.clone(), chunk, blocks, size);
    iter(ByChunk { extents: extents.into(), size }).map(read).buffered(UNDER_WAY).boxed()
}

/// What is known of the blocks of a chunk.
type Blocks = [Block; BLOCKS];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Block {
    Same,
    Zero,
    Data,
}

/// Extents, cut into the blocks of chunks.
struct ByChunk {
    extents: VecDeque<Extent>,
    size: u64,
}

impl Iterator for ByChunk {
    type Item = (u64, Blocks);

    fn next(&mut self) -> Option<(u64, Blocks)> {
        let chunk = self.extents.front().filter(|extent| extent.offset < self.size)?.offset / CHUNK_BYTES;
        let (start, end) = (chunk * CHUNK_BYTES, ((chunk + 1) * CHUNK_BYTES).min(self.size));
        let mut blocks = [Block::Same; BLOCKS];
        while let Some(extent) = self.extents.front_mut().filter(|extent| extent.offset < end) {
            let part_end = end.min(extent.offset.saturating_add(extent.length));
            let (first, last) = ((extent.offset - start) / BLOCK, (part_end - start).div_ceil(BLOCK));
            // A block of which a part alone is told has to be looked at.
            let whole =
                extent.offset.is_multiple_of(BLOCK) && (part_end.is_multiple_of(BLOCK) || part_end == self.size);
            let found = if extent.data || !whole { Block::Data } else { Block::Zero };
            for block in &mut blocks[first as usize..last as usize] {
                *block = found.max(*block);
            }
            extent.length -= part_end - extent.offset;
            extent.offset = part_end;
            if extent.length > 0 {
                break;
            }
            self.extents.pop_front();
        }
        Some((chunk, blocks))
    }
}

async fn read_chunk(pair: Pair, tally: Tally, chunk: u64, blocks: Blocks, size: u64) -> ApiResult<(u64, Delta)> {
    let start = chunk * CHUNK_BYTES;
    let end_of = |block: usize| ((block as u64 + 1) * BLOCK).min(size - start);
    let mut delta = Delta::default();
    let mut block = 0;
    while block < BLOCKS {
        match blocks[block] {
            Block::Same => block += 1,
            Block::Zero => {
                delta.put(block, &[0; BLOCK_BYTES]).map_err(xva_error)?;
                block += 1;
            }
            Block::Data => {
                let run = blocks[block..].iter().take_while(|next| **next == Block::Data).count();
                let (from, to) = (start + block as u64 * BLOCK, start + end_of(block + run - 1));
                let ours = tally.read(&pair.client, from, to - from).await.map_err(disk_error)?;
                let theirs = match &pair.base {
                    Some(base) => Some(tally.read(base, from, to - from).await.map_err(disk_error)?),
                    None => None,
                };
                for (at, bytes) in ours.chunks(BLOCK_BYTES).enumerate() {
                    let then = theirs.as_ref().and_then(|theirs| theirs.chunks(BLOCK_BYTES).nth(at));
                    if then != Some(bytes) {
                        delta.put(block + at, bytes).map_err(xva_error)?;
                    }
                }
                block += run;
            }
        }
    }
    Ok((chunk, delta))
}

/// The blocks of `ours` that are not those of `theirs`; what `theirs` lacks is zero.
fn compare(ours: &Chunk, theirs: Option<&Chunk>) -> ApiResult<Delta> {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    fn bytes(chunk: Option<&Chunk>) -> &[u8] {
        match chunk {
            Some(Chunk::Data(bytes)) => bytes,
            Some(Chunk::Zeros(_)) | None => &[],
        }
    }
    let (length, ours, theirs) = (ours.length() as usize, bytes(Some(ours)), bytes(theirs));
    let mut delta = Delta::default();
    for (block, start) in (0..length).step_by(BLOCK_BYTES).enumerate() {
        let end = length.min(start + BLOCK_BYTES);
        let (mut now, mut then) = (ZEROS, ZEROS);
        for (to, from) in [(&mut now, ours), (&mut then, theirs)] {
            let part = from.get(start..end.min(from.len())).unwrap_or_default();
            to[..part.len()].copy_from_slice(part);
        }
        if now != then {
            delta.put(block, &now[..end - start]).map_err(xva_error)?;
        }
    }
    Ok(delta)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tanada_driver::Extent;
    use tanada_xva::delta::{Run, decode};

    use super::{BLOCK, BLOCKS, Block, ByChunk, CHUNK_BYTES, compare};
    use crate::transfer::disk::Chunk;

    #[test]
    fn extents_become_blocks_of_chunks() {
        let extent = |offset, length, data| Extent { offset, length, data };
        let size = 3 * CHUNK_BYTES + 512;
        let extents = [
            extent(0, BLOCK, true),
            extent(CHUNK_BYTES - BLOCK, 2 * BLOCK, false),
            extent(CHUNK_BYTES + 3 * BLOCK, 512, false),
            extent(3 * CHUNK_BYTES, 512, false),
            extent(9 * CHUNK_BYTES, 512, true),
        ];
        let chunks: Vec<_> = ByChunk { extents: extents.into(), size }.collect();
        assert_eq!(chunks.iter().map(|(chunk, _)| *chunk).collect::<Vec<_>>(), [0, 1, 3]);
        let told = |at: usize| -> Vec<(usize, Block)> {
            chunks[at].1.iter().copied().enumerate().filter(|(_, block)| *block != Block::Same).collect()
        };
        assert_eq!(told(0), [(0, Block::Data), (BLOCKS - 1, Block::Zero)]);
        assert_eq!(told(1), [(0, Block::Zero), (3, Block::Data)]);
        assert_eq!(told(2), [(0, Block::Zero)]);
    }

    #[test]
    fn what_is_not_the_same_is_found() {
        let data = |bytes: Vec<u8>| Chunk::Data(Bytes::from(bytes));
        let (mut ours, theirs) = (vec![1; 3 * BLOCK as usize + 512], vec![1; 3 * BLOCK as usize]);
        ours[BLOCK as usize] = 2;
        let length = ours.len();
        let mut changed = ours[BLOCK as usize..2 * BLOCK as usize].to_vec();
        let runs = decode(&compare(&data(ours.clone()), Some(&data(theirs))).unwrap().encode(), length).unwrap();
        let last = Run::Data { at: 3 * BLOCK as usize, bytes: vec![1; 512] };
        assert_eq!(runs, [Run::Data { at: BLOCK as usize, bytes: std::mem::take(&mut changed) }, last]);
        assert!(compare(&data(ours.clone()), Some(&data(ours))).unwrap().is_empty());
        assert!(compare(&Chunk::Zeros(8192), None).unwrap().is_empty());
        let gone = compare(&Chunk::Zeros(4096), Some(&data(vec![1; 4096]))).unwrap();
        assert_eq!(decode(&gone.encode(), 4096).unwrap(), [Run::Zeros { at: 0, length: 4096 }]);
    }
}
