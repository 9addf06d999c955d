//! Whether a guest reads in order.

/// How far the reads of one export are sequential.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stream {
    next: u64,
    streak: u64,
}

impl Stream {
    /// Takes up a read. Reads may overtake each other by `reordered` bytes; what is further away begins anew.
    pub fn note(&mut self, offset: u64, length: u64, reordered: u64) {
        let end = offset + length;
        if offset == self.next {
            self.streak += length;
        } else if offset.abs_diff(self.next) > reordered {
            (self.streak, self.next) = (0, end);
        }
        self.next = self.next.max(end);
    }

    /// Where the foremost read has ended.
    pub fn end(&self) -> u64 {
        self.next
    }

    /// Bytes read one after another so far.
    pub fn streak(&self) -> u64 {
        self.streak
    }
}

#[cfg(test)]
mod tests {
    use super::Stream;

    #[test]
    fn a_stream_survives_overtaking_and_ends_with_a_jump() {
        let mut stream = Stream::default();
        let mut note = |offset, length| {
            stream.note(offset, length, 1000);
            (stream.streak(), stream.end())
        };
        assert_eq!(note(0, 100), (100, 100));
        assert_eq!(note(200, 100), (100, 300), "it came before its predecessor");
        assert_eq!(note(100, 100), (100, 300));
        assert_eq!(note(300, 100), (200, 400));
        assert_eq!(note(1 << 30, 100), (0, (1 << 30) + 100));
        assert_eq!(note((1 << 30) + 100, 100), (100, (1 << 30) + 200));
        assert_eq!(note(0, 100), (0, 100));
    }
}
