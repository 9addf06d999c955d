//! Page-aligned memory that device operations and replies share by reference count.
//!
//! A [`BufMut`] is filled by one owner (a socket, a disk read), then frozen into [`Buf`]s that may be sliced and cloned.
//! Consecutive payloads cut from one chunk are consecutive in memory, so that one device write can cover many requests.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every chunk: what O_DIRECT asks for on any device we know.
const ALIGNMENT: usize = 4096;

struct Chunk {
    start: NonNull<u8>,
    memory: Memory,
}

/// Whose a chunk's memory is.
enum Memory {
    Own(Layout),
    /// A part of that one's, disjoint from all other parts.
    PartOf {
        _arena: Arc<Chunk>,
    },
}

// SAFETY: a chunk owns its memory; shared access is read-only (`Buf`), exclusive access needs the only owner (`BufMut`).
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Memory::Own(layout) = self.memory {
            // SAFETY: `start` was allocated with this very layout and is freed once, here.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Writable memory with one owner.
pub struct BufMut {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

impl BufMut {
    /// `length` bytes of zeros, 4 KiB aligned.
    pub fn zeroed(length: usize) -> BufMut {
        let layout = Layout::from_size_align(length.max(1), ALIGNMENT).expect("buffer length fits an address space");
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        BufMut { chunk: Arc::new(Chunk { start, memory: Memory::Own(layout) }), range: 0..length }
    }

    /// Splits off the first `length` bytes; `self` keeps the rest. Both stay exclusive owners of disjoint ranges.
    /// Panics where `length` is beyond the end.
    pub fn split_to(&mut self, length: usize) -> BufMut {
        assert!(length <= self.len(), "split beyond the end of a buffer");
        let middle = self.range.start + length;
        let head = BufMut { chunk: Arc::clone(&self.chunk), range: self.range.start..middle };
        self.range.start = middle;
        head
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the range lies in the chunk, and `BufMut`s and `Buf`s of one chunk never overlap while one of them
        // is a `BufMut`: they are only made by `split_to` (disjoint) and `freeze` (consumes).
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.as_ptr().add(self.range.start), self.range.len()) }
    }

    /// Ends the writing: from here on the bytes are shared and immutable.
    pub fn freeze(self) -> Buf {
        Buf { chunk: self.chunk, range: self.range }
    }
}

impl BufMut {
    /// Gives up the bytes beyond `length`. Panics where there are fewer.
    pub fn truncate(&mut self, length: usize) {
        assert!(length <= self.len(), "truncation beyond the end of a buffer");
        self.range.end = self.range.start + length;
    }
}

/// Hands out buffers cut from chunks that are used again once nobody holds a part of them.
///
/// Buffers that are taken one after another lie one after another, so that one device write can cover them all
/// ([`Buf::join`]). Their content is whatever was there before: for filling by a socket or a device.
///
/// Of the free chunks the one used last is taken first, and chunks are parts of huge pages where the system has them: what is
/// under way then mostly stays in the processor's cache. (With chunks used in turns a 128 KiB read cost half as much again.)
pub struct BufPool {
    /// The rest of the chunk being cut up.
    open: Option<BufMut>,
    /// Every chunk that may come back, the one used last at the end; the open one is among them.
    chunks: Vec<Arc<Chunk>>,
    chunks_max: usize,
}

/// What chunks are cut from: a huge page of x86-64 and of arm64 with 4 KiB pages.
const ARENA_BYTES: usize = 2 << 20;

impl BufPool {
    /// Small enough that a few fit a processor's cache, large enough for neighbours to become one device write.
    pub const CHUNK_BYTES: usize = 512 << 10;

    /// A pool that keeps about `bytes_max` for further use.
    pub fn new(bytes_max: usize) -> BufPool {
        BufPool { open: None, chunks: Vec::new(), chunks_max: bytes_max / BufPool::CHUNK_BYTES }
    }

    /// A buffer of `length` bytes that starts 4 KiB aligned.
    pub fn take(&mut self, length: usize) -> BufMut {
        let whole = length.next_multiple_of(ALIGNMENT);
        if whole > BufPool::CHUNK_BYTES / 2 {
            let mut buf = BufMut::zeroed(whole);
            buf.truncate(length);
            return buf;
        }
        let mut open = match self.open.take() {
            Some(open) if open.len() >= whole => open,
            // The old chunk is let go of first: its rest must not keep it from being used again.
            _ => BufMut { chunk: self.free_chunk(), range: 0..BufPool::CHUNK_BYTES },
        };
        let mut buf = open.split_to(whole);
        self.open = Some(open);
        buf.truncate(length);
        buf
    }

    fn free_chunk(&mut self) -> Arc<Chunk> {
        let free = self.chunks.iter_mut().rposition(|chunk| Arc::get_mut(chunk).is_some());
        let free = free.unwrap_or_else(|| {
            if self.chunks.len() >= self.chunks_max {
                // Whoever holds them keeps them alive; they do not come back.
                self.chunks.clear();
            }
            self.chunks.extend(cut(arena()));
            self.chunks.len() - 1
        });
        let chunk = self.chunks.remove(free);
        self.chunks.push(Arc::clone(&chunk));
        chunk
    }
}

/// A huge page's worth of zeros.
fn arena() -> Arc<Chunk> {
    let layout = Layout::from_size_align(ARENA_BYTES, ARENA_BYTES).expect("a constant layout is sound");
    // SAFETY: the layout has a non-zero size.
    let start = unsafe { alloc(layout) };
    let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
    // Only a wish, made before the memory is touched: without huge pages it is as good, and slower.
    // SAFETY: the range was allocated just now, and the advice leaves what it holds alone.
    unsafe { libc::madvise(start.as_ptr().cast(), ARENA_BYTES, libc::MADV_HUGEPAGE) };
    // SAFETY: as above, and nobody else knows the memory.
    unsafe { start.write_bytes(0, ARENA_BYTES) };
    Arc::new(Chunk { start, memory: Memory::Own(layout) })
}

/// All of an arena in chunks.
fn cut(arena: Arc<Chunk>) -> impl Iterator<Item = Arc<Chunk>> {
    (0..ARENA_BYTES).step_by(BufPool::CHUNK_BYTES).map(move |at| {
        // SAFETY: the chunk lies in the arena, which holds a whole number of them.
        let start = unsafe { arena.start.add(at) };
        Arc::new(Chunk { start, memory: Memory::PartOf { _arena: Arc::clone(&arena) } })
    })
}

/// Immutable shared bytes.
#[derive(Clone)]
pub struct Buf {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

impl Buf {
    /// A copy of `bytes` at an aligned address.
    pub fn copy_from(bytes: &[u8]) -> Buf {
        let mut buf = BufMut::zeroed(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        buf.freeze()
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the range lies in the chunk; nobody holds a `BufMut` over it any more.
        unsafe { std::slice::from_raw_parts(self.chunk.start.as_ptr().add(self.range.start), self.range.len()) }
    }

    /// Asks the CPU to fetch a part into its cache, as far as there is one: what a device has written is not there. Only a
    /// hint.
    pub fn prefetch(&self, part: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for line in self.as_slice().get(part.start..part.end.min(self.len())).unwrap_or_default().chunks(64) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a prefetch reads nothing that the program sees and cannot fault; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = part;
    }

    /// The part `range`, sharing the memory. Panics where it is out of bounds.
    pub fn slice(&self, range: Range<usize>) -> Buf {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "slice {range:?} of a buffer of {} bytes",
            self.len()
        );
        Buf { chunk: Arc::clone(&self.chunk), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// True where the first byte is 4 KiB aligned, as direct I/O needs.
    pub fn is_aligned(&self) -> bool {
        (self.chunk.start.as_ptr() as usize + self.range.start).is_multiple_of(ALIGNMENT)
    }

    /// Joins two slices of one chunk that lie side by side; `None` where they do not.
    pub fn join(&self, next: &Buf) -> Option<Buf> {
        (Arc::ptr_eq(&self.chunk, &next.chunk) && self.range.end == next.range.start)
            .then(|| Buf { chunk: Arc::clone(&self.chunk), range: self.range.start..next.range.end })
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len())
    }
}

impl std::ops::Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::{Buf, BufMut, BufPool};

    #[test]
    fn neighbours_join_and_strangers_do_not() {
        let mut chunk = BufMut::zeroed(8192);
        let mut first = chunk.split_to(4096);
        first.as_mut_slice().fill(1);
        chunk.as_mut_slice().fill(2);
        let (a, b) = (first.freeze(), chunk.freeze());
        let both = a.join(&b).expect("side by side in one chunk");
        assert_eq!((both.len(), both[4095], both[4096]), (8192, 1, 2));
        assert!(b.join(&a).is_none());
        assert!(a.join(&Buf::copy_from(&[0; 4096])).is_none());
        assert!(a.is_aligned() && !both.slice(1..4096).is_aligned());
    }

    #[test]
    fn a_pool_cuts_neighbours_and_uses_the_chunk_again_that_was_used_last() {
        const HALF: usize = BufPool::CHUNK_BYTES / 2;
        let address = |buf: &Buf| buf.as_slice().as_ptr() as usize;
        let mut pool = BufPool::new(4 * BufPool::CHUNK_BYTES);
        let (a, b) = (pool.take(4096).freeze(), pool.take(100).freeze());
        assert!(a.join(&b).is_some() && b.len() == 100 && b.is_aligned());
        let c = pool.take(HALF).freeze();
        assert_eq!(address(&c), address(&a) + 8192);
        let d = pool.take(HALF).freeze();
        assert!(c.join(&d).is_none(), "another chunk");
        let (first, second) = (address(&a), address(&d));
        let _rest = pool.take(HALF);
        drop((a, b, c));
        let e = pool.take(HALF).freeze();
        assert_eq!(address(&e), first, "free again, and used later than those that never were");
        assert!(address(&pool.take(2 * HALF).freeze()) != second && pool.take(1 << 20).len() == 1 << 20);
    }

    #[test]
    fn a_pool_lends_more_than_it_keeps_and_each_part_once() {
        let mut pool = BufPool::new(4 * BufPool::CHUNK_BYTES);
        let mut lent: Vec<BufMut> = (0..64).map(|_| pool.take(BufPool::CHUNK_BYTES / 2)).collect();
        lent.iter_mut().zip(0..).for_each(|(buf, fill)| buf.as_mut_slice().fill(fill));
        let is_whole = |(buf, fill): (&mut BufMut, u8)| buf.as_mut_slice().iter().all(|byte| *byte == fill);
        assert!(lent.iter_mut().zip(0..).all(is_whole));
        assert!(pool.chunks.len() <= 4, "{} chunks are kept", pool.chunks.len());
    }
}
