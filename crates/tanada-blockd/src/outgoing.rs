//! What is to be sent on one connection: heads of replies and data by reference, gathered for one vectored send.

use tanada_disk::Buf;

/// Where runs of zeros are sent from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Default)]
pub(crate) struct Outgoing {
    /// All heads, one after another.
    heads: Vec<u8>,
    parts: Vec<Part>,
    /// Heads up to here belong to a part.
    parted: usize,
    /// Bytes of guest data charged to the connection until this is sent.
    pub(crate) charge: u64,
}

/// Bytes of heads and data together, and of the largest piece of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) total: usize,
    pub(crate) largest: usize,
}

enum Part {
    /// So many of the heads that no part before this one covers.
    Heads(usize),
    Data(Buf),
    Zeros(usize),
}

impl Outgoing {
    /// Where to append the bytes of heads.
    pub(crate) fn heads(&mut self) -> &mut Vec<u8> {
        &mut self.heads
    }

    pub(crate) fn heads_bytes(&self) -> usize {
        self.heads.len()
    }

    pub(crate) fn push_data(&mut self, data: Buf) {
        if !data.is_empty() {
            self.close_heads();
            self.parts.push(Part::Data(data));
        }
    }

    pub(crate) fn push_zeros(&mut self, length: usize) {
        if length > 0 {
            self.close_heads();
            self.parts.push(Part::Zeros(length));
        }
    }

    /// How much there is to send.
    pub(crate) fn size(&self) -> Size {
        let mut size = Size { total: self.heads.len(), largest: 0 };
        for part in &self.parts {
            let length = match part {
                Part::Heads(_) => 0,
                Part::Data(data) => data.len(),
                Part::Zeros(length) => *length,
            };
            size.total += length;
            size.largest = size.largest.max(length);
        }
        size
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty() && self.parts.is_empty()
    }

    fn close_heads(&mut self) {
        let length = self.heads.len() - self.parted;
        if length > 0 {
            self.parts.push(Part::Heads(length));
            self.parted = self.heads.len();
        }
    }

    /// Ends the gathering and shows every piece in order. Pieces stay where they are until `self` changes.
    pub(crate) fn pieces(&mut self, mut each: impl FnMut(&[u8])) {
        self.close_heads();
        let mut heads = self.heads.as_slice();
        for part in &self.parts {
            match part {
                Part::Heads(length) => {
                    let (head, rest) = heads.split_at(*length);
                    each(head);
                    heads = rest;
                }
                Part::Data(data) => each(data),
                Part::Zeros(length) => {
                    let mut left = *length;
                    while left > 0 {
                        let now = left.min(ZEROS.len());
                        each(&ZEROS[..now]);
                        left -= now;
                    }
                }
            }
        }
    }

    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.heads.clear();
        self.parts.clear();
        self.parted = 0;
        self.charge = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{Outgoing, Size};
    use tanada_disk::Buf;

    #[test]
    fn pieces_come_in_the_order_they_were_given() {
        let mut outgoing = Outgoing::default();
        outgoing.heads().extend_from_slice(b"ab");
        outgoing.heads().extend_from_slice(b"c");
        outgoing.push_data(Buf::copy_from(b"DATA"));
        outgoing.heads().extend_from_slice(b"d");
        outgoing.push_zeros(100_000);
        outgoing.heads().extend_from_slice(b"e");
        assert_eq!(outgoing.size(), Size { total: 100_009, largest: 100_000 });
        let (mut bytes, mut count) = (Vec::new(), 0);
        outgoing.pieces(|piece| {
            bytes.extend_from_slice(piece);
            count += 1;
        });
        assert_eq!((&bytes[..8], bytes[bytes.len() - 1], bytes.len(), count), (&b"abcDATAd"[..], b'e', 100_009, 6));
        outgoing.clear();
        assert!(outgoing.is_empty());
    }
}
