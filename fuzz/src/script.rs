//! Numbers off the front of an input.

/// An input that is being read. Behind its end there are zeros.
#[derive(Debug, Clone)]
pub struct Script<'a> {
    rest: &'a [u8],
}

/// Values at which things break.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    3,
    0xff,
    0x100,
    0xfff,
    0x1000,
    0xffff,
    (1 << 32) - 1,
    1 << 40,
    (1 << 44) - 1,
    (1 << 48) - 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

impl<'a> Script<'a> {
    pub fn new(bytes: &'a [u8]) -> Script<'a> {
        Script { rest: bytes }
    }

    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// A number of `bytes` bytes, little endian.
    pub fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, n| number | u64::from(self.byte()) << (8 * n))
    }

    /// A number below `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        let bytes = if end <= 256 { 1 } else { 3 };
        self.number(bytes) as usize % end
    }

    /// One of `all`, `None` where there are none.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }

    /// Near `old`, small, at an edge, or anything.
    pub fn value(&mut self, old: u64) -> u64 {
        match self.byte() % 6 {
            0 => old.wrapping_add(u64::from(self.byte())),
            1 => old.wrapping_sub(u64::from(self.byte())),
            2 => u64::from(self.byte()),
            3 => EDGES[self.below(EDGES.len())],
            4 => old ^ 1 << (self.byte() % 64),
            _ => self.number(8),
        }
    }

    /// At most `most` bytes as they are.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(most.min(self.rest.len()));
        self.rest = rest;
        head
    }
}
