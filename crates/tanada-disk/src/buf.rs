//! Page-aligned memory that device operations and replies share by reference count.
//!
//! A [`BufMut`] is filled by one owner (a socket, a disk read), then frozen into [`Buf`]s that may be sliced and cloned.
//! Consecutive payloads cut from one chunk are consecutive in memory, so that one device write can cover many requests.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
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

    /// The part `range`, sharing the memory. Panics where it is out of bounds.
    pub fn slice(&self, range: Range<usize>) -> Buf {
        assert!(range.start <= range.end && range.end <= self.len(), "slice {range:?} of a buffer of {} bytes", self.len());
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
    use super::{Buf, BufMut};

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
}
