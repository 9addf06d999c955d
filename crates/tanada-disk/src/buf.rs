//! Page-aligned memory that device operations and replies share by reference count.
//!
//! A [`BufMut`] is filled by one owner (a socket, a disk read), then frozen into [`Buf`]s that may be sliced and cloned.
//! Consecutive payloads cut from one chunk are consecutive in memory, so that one device write can cover many requests.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every chunk: what O_DIRECT asks for on any device we know.
const ALIGNMENT: usize = 4096;

struct Chunk {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a chunk owns its memory; shared access is read-only (`Buf`), exclusive access needs the only owner (`BufMut`).
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once, here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
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
        BufMut { chunk: Arc::new(Chunk { start, layout }), range: 0..length }
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
pub struct BufPool {
    /// The rest of the chunk being cut up.
    open: Option<BufMut>,
    /// Every chunk that may come back, oldest first; the open one is among them.
    chunks: VecDeque<Arc<Chunk>>,
    chunk_bytes: usize,
    chunks_max: usize,
}

impl BufPool {
    /// Chunks looked at before a new one is made: the oldest are the likeliest to be free.
    const LOOKED_AT_MAX: usize = 8;

    /// A pool of chunks of `chunk_bytes` (a multiple of 4 KiB) that keeps at most `chunks_max` for further use.
    pub fn new(chunk_bytes: usize, chunks_max: usize) -> BufPool {
        assert!(chunk_bytes.is_multiple_of(ALIGNMENT), "chunks of {chunk_bytes} bytes are not whole blocks");
        BufPool { open: None, chunks: VecDeque::new(), chunk_bytes, chunks_max }
    }

    /// A buffer of `length` bytes that starts 4 KiB aligned.
    pub fn take(&mut self, length: usize) -> BufMut {
        let whole = length.next_multiple_of(ALIGNMENT);
        if whole > self.chunk_bytes / 2 {
            let mut buf = BufMut::zeroed(whole);
            buf.truncate(length);
            return buf;
        }
        let mut open = match self.open.take() {
            Some(open) if open.len() >= whole => open,
            // The old chunk is let go of first: its rest must not keep it from being used again.
            _ => BufMut { chunk: self.free_chunk(), range: 0..self.chunk_bytes },
        };
        let mut buf = open.split_to(whole);
        self.open = Some(open);
        buf.truncate(length);
        buf
    }

    fn free_chunk(&mut self) -> Arc<Chunk> {
        for _ in 0..self.chunks.len().min(Self::LOOKED_AT_MAX) {
            let Some(mut chunk) = self.chunks.pop_front() else { break };
            let is_free = Arc::get_mut(&mut chunk).is_some();
            self.chunks.push_back(Arc::clone(&chunk));
            if is_free {
                return chunk;
            }
        }
        if self.chunks.len() >= self.chunks_max {
            self.chunks.pop_front();
        }
        let chunk = BufMut::zeroed(self.chunk_bytes).chunk;
        self.chunks.push_back(Arc::clone(&chunk));
        chunk
    }
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

    /// Asks the CPU to fetch a small buffer into its cache: what a device has written is not there. Only a hint.
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        const PREFETCHED_BYTES_MAX: usize = 16 << 10;
        #[cfg(target_arch = "x86_64")]
        for line in self.as_slice()[..self.len().min(PREFETCHED_BYTES_MAX)].chunks(64) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a prefetch reads nothing that the program sees and cannot fault; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
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
    fn a_pool_cuts_neighbours_and_uses_free_chunks_again() {
        let mut pool = BufPool::new(4 * 4096, 2);
        let (a, b) = (pool.take(4096).freeze(), pool.take(100).freeze());
        assert!(a.join(&b).is_some() && b.len() == 100 && b.is_aligned());
        let first = a.as_slice().as_ptr();
        let c = pool.take(8192).freeze();
        assert_eq!(c.as_slice().as_ptr() as usize, first as usize + 8192);
        let d = pool.take(8192).freeze();
        assert!(c.join(&d).is_none(), "another chunk");
        drop((a, b, c));
        pool.take(8192);
        assert_eq!(pool.take(8192).freeze().as_slice().as_ptr(), first, "the first chunk is free again");
        assert_eq!(pool.take(1 << 20).len(), 1 << 20);
    }
}
