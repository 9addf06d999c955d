//! Guests' reads, the common case without a task.
//!
//! ```text
//!   submit -> look up (delta, frozen delta, cached leaf) -> one device read for each run of blocks -> verify -> answer
//!               | a node is not cached                                                                 |
//!               +--> a task looks up and goes on at the same point                                     |
//!                                             a task repairs what did not verify (W4) <-- wrong block -+
//! ```
//! A read that continues a stream may have been made already, ahead of it ([`super::read_ahead`]).
//!
//! Blocks of one read are sorted by where they are, and neighbours read together, in whatever order they belong.
//! A read counts as a reader from its look-up to its answer, also while tasks work for it (B3).

use tanada_disk::{Buf, DiskOp, DiskResult};
use tanada_format::{BLOCK_BYTES, FANOUT, Pointer, crc32c, node::slot_of};

use crate::api::{Reply, RequestId, Segment};
use crate::failure::Failure;
use crate::state::{BLOCK, Handle, Job, Pending, State};
use crate::versions::VersionId;

/// Blocks in one device read at most: 1 MiB.
pub const READ_BLOCKS_MAX: usize = 256;

/// Reads kept with their memory for further use.
const SPARE_MAX: usize = 64;

/// Names a read in flight; used again.
pub type ReadId = u32;

/// Who asked for a read.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    Guest {
        request: RequestId,
    },
    /// Nobody yet: it is a piece of what is read ahead.
    Ahead {
        number: u64,
    },
}

impl Default for Role {
    fn default() -> Role {
        Role::Guest { request: RequestId::default() }
    }
}

/// One block of a read: where it is to be found, and where it is found.
struct Block {
    pointer: Pointer,
    /// Which run, and which block of it; nothing for holes.
    run: u32,
    at: u32,
}

/// A guest's read.
#[derive(Default)]
pub struct GuestRead {
    role: Role,
    export: u32,
    pub version: VersionId,
    /// The round it is counted in as a reader.
    pub round: u64,
    offset: u64,
    length: u64,
    blocks: Vec<Block>,
    /// Content of each run, once it is there.
    runs: Vec<Option<Buf>>,
    /// `(block, index)` of all that is mapped, sorted; run for run.
    wanted: Vec<(u64, u32)>,
    /// Runs still being read.
    left: usize,
    /// Indices of blocks that did not verify.
    wrong: Vec<usize>,
    /// It continues a stream of reads.
    is_stream: bool,
}

impl GuestRead {
    /// First place.
    pub fn first(&self) -> u64 {
        self.offset / BLOCK
    }

    fn count(&self) -> usize {
        ((self.offset + self.length).div_ceil(BLOCK) - self.first()) as usize
    }

    pub fn set_pointers(&mut self, pointers: &[Pointer]) {
        self.blocks.clear();
        self.blocks.extend(pointers.iter().map(|pointer| Block { pointer: *pointer, run: 0, at: 0 }));
    }

    /// Sorts the mapped blocks into runs of neighbours, and those that are lost out; `each` gets the first block and the number of blocks of a run.
    fn plan(&mut self, mut each: impl FnMut(u64, usize, usize)) {
        let GuestRead { blocks, wanted, runs, wrong, .. } = self;
        wrong.extend(blocks.iter().enumerate().filter(|(_, block)| block.pointer.is_lost()).map(|(index, _)| index));
        wanted.clear();
        wanted.extend(
            (0u32..)
                .zip(&*blocks)
                .filter(|(_, block)| block.pointer.has_block())
                .map(|(index, block)| (block.pointer.block(), index)),
        );
        wanted.sort_unstable();
        let mut from = 0;
        while from < wanted.len() {
            let start = wanted[from].0;
            let is_next = |n: &usize| wanted.get(from + n).is_some_and(|(block, _)| *block == start + *n as u64);
            let count = 1 + (1..READ_BLOCKS_MAX).take_while(is_next).count();
            for (at, (_, index)) in (0..).zip(&wanted[from..from + count]) {
                let block = &mut blocks[*index as usize];
                (block.run, block.at) = (runs.len() as u32, at);
            }
            runs.push(None);
            each(start, from, count);
            from += count;
        }
        self.left = runs.len();
    }

    /// Takes the content of the run that begins at `from` in `wanted`; notes what does not verify.
    fn take_run(&mut self, from: usize, count: usize, result: DiskResult) {
        self.left -= 1;
        let indices = self.wanted[from..from + count].iter().map(|(_, index)| *index as usize);
        match result {
            Ok(Some(buf)) if buf.len() == count * BLOCK_BYTES => {
                for (bytes, (at, index)) in buf.chunks_exact(BLOCK_BYTES).zip((1..).zip(indices)) {
                    // The next one comes into the cache while this one is verified.
                    buf.prefetch(at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES);
                    if crc32c(bytes) != self.blocks[index].pointer.crc() {
                        self.wrong.push(index);
                    }
                }
                let run = self.blocks[self.wanted[from].1 as usize].run;
                self.runs[run as usize] = Some(buf);
            }
            _ => self.wrong.extend(indices),
        }
    }

    /// True where all of it is there and verified.
    pub fn is_right(&self) -> bool {
        self.left == 0 && self.wrong.is_empty()
    }

    /// The answer's content; everything is there and verified.
    fn segments(&self) -> Vec<Segment> {
        self.pieces(0, (self.offset % BLOCK) as usize, self.length as usize)
    }

    /// The answer's content for a read of `length` bytes at `offset` inside of this one.
    pub fn part(&self, offset: u64, length: u32) -> Vec<Segment> {
        let index = (offset / BLOCK - self.first()) as usize;
        self.pieces(index, (offset % BLOCK) as usize, length as usize)
    }

    /// The content of `count` mapped blocks from the one with number `from` on.
    pub fn content(&self, from: usize, count: usize) -> Vec<Buf> {
        let only_data = |piece| match piece {
            Segment::Data(buf) => Some(buf),
            Segment::Zeros(_) => None,
        };
        self.pieces(from, 0, count * BLOCK_BYTES).into_iter().filter_map(only_data).collect()
    }

    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Device reads that it took.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    pub fn pointer(&self, index: usize) -> Pointer {
        self.blocks[index].pointer
    }

    /// `left` bytes from byte `skip` of the block with number `index` on.
    fn pieces(&self, mut index: usize, mut skip: usize, mut left: usize) -> Vec<Segment> {
        let mut list = Vec::with_capacity(1);
        while left > 0 {
            let Block { pointer, run, at } = &self.blocks[index];
            let content = self.runs.get(*run as usize).and_then(Option::as_ref).filter(|_| !pointer.is_null());
            assert!(content.is_some() || pointer.is_null(), "a mapped block is answered without its content");
            let joins = |n: &usize| match self.blocks.get(index + n) {
                Some(next) if content.is_some() => {
                    !next.pointer.is_null() && next.run == *run && next.at as usize == *at as usize + n
                }
                Some(next) => next.pointer.is_null(),
                None => false,
            };
            let count = 1 + (1..).take_while(joins).count();
            let take = (count * BLOCK_BYTES - skip).min(left);
            list.push(match content {
                Some(buf) => {
                    let start = *at as usize * BLOCK_BYTES + skip;
                    Segment::Data(buf.slice(start..start + take))
                }
                None => Segment::Zeros(take as u32),
            });
            (index, left, skip) = (index + count, left - take, 0);
        }
        list
    }

    /// Puts a block that was read again in the place of a wrong one; `None`: it is a hole now.
    fn mend(&mut self, index: usize, content: Option<Buf>) {
        let block = &mut self.blocks[index];
        match content {
            None => block.pointer = Pointer::NULL,
            Some(buf) => {
                (block.run, block.at) = (self.runs.len() as u32, 0);
                self.runs.push(Some(buf));
            }
        }
    }
}

/// All reads in flight.
#[derive(Default)]
pub struct GuestReads {
    reads: Vec<Option<Box<GuestRead>>>,
    free: Vec<ReadId>,
    #[expect(clippy::vec_box, reason = "boxes go to and fro between here and `reads`")]
    spare: Vec<Box<GuestRead>>,
    pointers: Vec<Pointer>,
}

impl GuestReads {
    fn insert(&mut self, read: Box<GuestRead>) -> ReadId {
        let id = self.free.pop().unwrap_or(self.reads.len() as ReadId);
        if id as usize == self.reads.len() {
            self.reads.push(None);
        }
        self.reads[id as usize] = Some(read);
        id
    }

    pub fn get(&self, id: ReadId) -> Option<&GuestRead> {
        self.reads.get(id as usize)?.as_deref()
    }

    fn remove(&mut self, id: ReadId) -> Option<Box<GuestRead>> {
        let read = self.reads.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(read)
    }

    /// Lets go of the content and keeps the memory of the lists.
    fn recycle(&mut self, mut read: Box<GuestRead>) {
        if self.spare.len() < SPARE_MAX {
            read.runs.clear();
            read.wrong.clear();
            self.spare.push(read);
        }
    }
}

impl State {
    /// Takes up a guest's read whose range was checked and counted in.
    pub fn begin_read(&mut self, request: RequestId, export: u32, offset: u64, length: u32) {
        let bytes = u64::from(length);
        let reordered = self.config.stream_reordered_bytes;
        let stream = self.exports.get_mut(&export).map(|export| {
            export.stream.note(offset, bytes, reordered);
            export.stream
        });
        if !self.read_from_ahead(request, export, offset, length) {
            self.start_read(Role::Guest { request }, export, offset, length);
        }
        // Who came late does not lead.
        if let Some(stream) = stream.filter(|stream| stream.end() == offset + bytes) {
            self.read_ahead(export, bytes, stream);
        }
    }

    /// Begins a read: finds out where its blocks are, and has them read.
    pub fn start_read(&mut self, role: Role, export: u32, offset: u64, length: u32) {
        let (version, streak) =
            self.exports.get(&export).map_or((0, 0), |export| (export.version, export.stream.streak()));
        let round = self.releases.enter();
        let mut read = self.reads.spare.pop().unwrap_or_default();
        (read.role, read.export, read.version, read.round) = (role, export, version, round);
        (read.offset, read.length) = (offset, u64::from(length));
        read.is_stream =
            streak >= self.config.relayout_stream_bytes && read.count() as u64 >= self.config.relayout_read_blocks;
        let mut pointers = std::mem::take(&mut self.reads.pointers);
        pointers.clear();
        let found = self.look_up_cached(version, read.first(), read.count() as u64, &mut pointers);
        read.set_pointers(&pointers);
        self.reads.pointers = pointers;
        if found == read.count() as u64 {
            self.fetch_read(read);
        } else {
            self.jobs.push_back(Job::Read(read));
        }
    }

    /// The pointers of the places from `place` on, as far as they can be told without reading; at most `count`. Returns
    /// how many.
    pub fn look_up_cached(&mut self, id: VersionId, place: u64, count: u64, out: &mut Vec<Pointer>) -> u64 {
        let mut done = 0;
        while done < count {
            let at = place + done;
            let in_leaf = (FANOUT - slot_of(at, 0)).min((count - done) as usize);
            if self.look_up(id, at, in_leaf, out).is_err() {
                break;
            }
            done += in_leaf as u64;
        }
        done
    }

    /// Reads what the pointers of `read` say.
    fn fetch_read(&mut self, read: Box<GuestRead>) {
        let id = self.reads.insert(read);
        let Some(mut read) = self.reads.reads[id as usize].take() else { return };
        if let Role::Ahead { number } = read.role
            && !self.piece_under_way(read.export, number, id)
        {
            self.reads.free.push(id);
            return self.let_go(read);
        }
        read.plan(|block, from, count| {
            let op = DiskOp::Read { at: block * BLOCK, length: (count * BLOCK_BYTES) as u32 };
            self.start_io(op, Pending::Read { read: id, from, count });
        });
        let is_done = read.left == 0;
        self.reads.reads[id as usize] = Some(read);
        if is_done {
            self.end_read(id);
        }
    }

    /// A run of a read has arrived.
    pub fn run_read(&mut self, id: ReadId, from: usize, count: usize, result: DiskResult) {
        let Some(Some(read)) = self.reads.reads.get_mut(id as usize) else { return };
        read.take_run(from, count, result);
        if read.left == 0 {
            self.end_read(id);
        }
    }

    fn end_read(&mut self, id: ReadId) {
        let Some(read) = self.reads.remove(id) else { return };
        match read.role {
            Role::Ahead { number } => self.piece_read(read.export, number, read),
            Role::Guest { .. } if read.wrong.is_empty() => {
                self.bring_together(&read);
                let data = Reply::Data(read.segments());
                self.end_guest_read(read, Ok(data));
            }
            Role::Guest { .. } => self.jobs.push_back(Job::MendRead(read)),
        }
    }

    /// What a stream found scattered is brought together.
    pub fn bring_together(&mut self, read: &GuestRead) {
        if read.is_stream {
            self.relayout(read);
        }
    }

    fn end_guest_read(&mut self, read: Box<GuestRead>, result: Result<Reply, Failure>) {
        let (role, export) = (read.role, read.export);
        match role {
            Role::Guest { request } => {
                self.let_go(read);
                self.answer(request, export, result);
            }
            Role::Ahead { number } => self.piece_failed(export, number, read),
        }
    }

    /// The read is over: counted out as a reader, its memory kept for another.
    pub fn let_go(&mut self, read: Box<GuestRead>) {
        self.releases.leave(read.round);
        self.reads.recycle(read);
    }
}

impl Handle {
    /// Looks up with nodes from the device, and goes on with the read.
    pub async fn cold_read(self, mut read: Box<GuestRead>) {
        let found = self.look_up(read.version, read.first(), read.count() as u64).await;
        self.with(|state| match found {
            Err(failure) => state.end_guest_read(read, Err(failure)),
            Ok(pointers) => {
                read.set_pointers(&pointers);
                state.fetch_read(read);
            }
        });
    }

    /// Rule W4 for the blocks that did not verify.
    pub async fn mend_read(self, mut read: Box<GuestRead>) {
        for index in std::mem::take(&mut read.wrong) {
            let (place, old) = (read.first() + index as u64, read.blocks[index].pointer);
            match self.fetch_again(read.version, place, old).await {
                Ok(content) => read.mend(index, content),
                Err(failure) => return self.with(|state| state.end_guest_read(read, Err(failure))),
            }
        }
        let data = Reply::Data(read.segments());
        self.with(|state| state.end_guest_read(read, Ok(data)));
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, GuestRead, Pointer, READ_BLOCKS_MAX};
    use crate::api::Segment;
    use tanada_disk::Buf;
    use tanada_format::crc32c;

    /// A read of blocks found at `at` (0: a hole), each filled with the low byte of where it is.
    fn read_of(at: &[u64], offset: u64, length: u64) -> (GuestRead, Vec<(u64, usize)>) {
        let content = |block: u64| [block as u8; BLOCK_BYTES];
        let pointers: Vec<Pointer> = at
            .iter()
            .map(|block| if *block == 0 { Pointer::NULL } else { Pointer::new(*block, 1, crc32c(&content(*block))) })
            .collect();
        let mut read = GuestRead { offset, length, ..GuestRead::default() };
        read.set_pointers(&pointers);
        let mut runs = Vec::new();
        read.plan(|block, from, count| runs.push((block, from, count)));
        for (block, from, count) in &runs {
            let bytes: Vec<u8> = (*block..block + *count as u64).flat_map(content).collect();
            read.take_run(*from, *count, Ok(Some(Buf::copy_from(&bytes))));
        }
        (read, runs.iter().map(|(block, _, count)| (*block, *count)).collect())
    }

    fn bytes(read: &GuestRead) -> Vec<(u8, usize)> {
        let all: Vec<u8> = read
            .segments()
            .iter()
            .flat_map(|segment| match segment {
                Segment::Data(buf) => buf.to_vec(),
                Segment::Zeros(count) => vec![0; *count as usize],
            })
            .collect();
        all.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
    }

    #[test]
    fn neighbours_are_read_together_and_come_back_in_their_order() {
        let (read, runs) = read_of(&[21, 20, 0, 9, 22], 0, 5 * 4096);
        assert_eq!(runs, [(9, 1), (20, 3)]);
        assert_eq!(bytes(&read), [(21, 4096), (20, 4096), (0, 4096), (9, 4096), (22, 4096)]);
        assert!(read.wrong.is_empty() && read.left == 0);
    }

    #[test]
    fn edges_are_cut_and_runs_bounded() {
        let (read, _) = read_of(&[5, 6, 0, 0], 4096 * 3 + 512, 4096 * 3);
        assert_eq!(bytes(&read), [(5, 3584), (6, 4096), (0, 4096 + 512)]);
        assert_eq!(read.segments().len(), 2);
        let places: Vec<u64> = (1000..1000 + READ_BLOCKS_MAX as u64 + 3).collect();
        let (read, runs) = read_of(&places, 0, places.len() as u64 * 4096);
        assert_eq!(runs, [(1000, READ_BLOCKS_MAX), (1000 + READ_BLOCKS_MAX as u64, 3)]);
        assert_eq!(read.segments().len(), 2);
    }

    #[test]
    fn what_does_not_verify_is_noted_and_mended() {
        let pointers = [Pointer::new(7, 1, 1), Pointer::new(8, 1, 2)];
        let mut read = GuestRead { length: 8192, ..GuestRead::default() };
        read.set_pointers(&pointers);
        read.plan(|_, _, _| {});
        read.take_run(0, 2, Ok(Some(Buf::copy_from(&[9; 8192]))));
        assert_eq!(read.wrong, [0, 1]);
        read.mend(0, Some(Buf::copy_from(&[1; 4096])));
        read.mend(1, None);
        assert_eq!(bytes(&read), [(1, 4096), (0, 4096)]);
    }
}
