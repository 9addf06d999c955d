//! Which units of a disk an image has to hold. A unit is what the format can leave out: a block, a cluster, a chunk.

/// What is known of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Left out: zero in a whole image, as in the base in a delta.
    Absent,
    /// Something in it has to be sent.
    Data,
    /// All of it is to become zero.
    Zero,
}

/// A state for each unit of a disk, two bits each.
#[derive(Debug, Clone)]
pub struct ClusterMap {
    size: u64,
    unit: u64,
    touched: Vec<u64>,
    zero: Vec<u64>,
    /// The unit that zeros were last added to, and how many of its bytes they cover.
    covered: (u64, u64),
}

impl ClusterMap {
    /// Nothing of a disk of `size` bytes, in units of `unit` bytes.
    ///
    /// # Panics
    /// Where `unit` is 0.
    pub fn new(size: u64, unit: u64) -> ClusterMap {
        let words = size.div_ceil(unit).div_ceil(64) as usize;
        ClusterMap { size, unit, touched: vec![0; words], zero: vec![0; words], covered: (0, 0) }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a unit; the last one of the disk may be shorter.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// Units of the disk.
    pub fn count(&self) -> u64 {
        self.size.div_ceil(self.unit)
    }

    /// Bytes of this unit that lie on the disk.
    pub fn length_of(&self, unit: u64) -> u64 {
        self.unit.min(self.size.saturating_sub(unit * self.unit))
    }

    /// Adds a range that has to be sent (`data`) or that is zero and has to become zero. Ranges come in order of their
    /// offsets and do not overlap. A unit of which zeros cover only a part is sent.
    pub fn add(&mut self, offset: u64, length: u64, data: bool) {
        let end = offset.saturating_add(length).min(self.size);
        let mut at = offset;
        while at < end {
            let unit = at / self.unit;
            let next = ((unit + 1) * self.unit).min(end);
            set(&mut self.touched, unit);
            if !data {
                let before = if self.covered.0 == unit { self.covered.1 } else { 0 };
                self.covered = (unit, before + next - at);
                if self.covered.1 == self.length_of(unit) {
                    set(&mut self.zero, unit);
                }
            }
            at = next;
        }
    }

    pub fn state(&self, unit: u64) -> State {
        match (get(&self.touched, unit), get(&self.zero, unit)) {
            (false, _) => State::Absent,
            (true, true) => State::Zero,
            (true, false) => State::Data,
        }
    }

    /// The first unit from `from` on that is not absent. Passes over what is absent 64 units at a time.
    pub fn next_present(&self, from: u64) -> Option<u64> {
        let first = (from / 64) as usize;
        let words = self.touched.get(first..)?.iter().zip(first as u64..);
        let mut mask = u64::MAX << (from % 64);
        for (word, number) in words {
            let found = word & std::mem::replace(&mut mask, u64::MAX);
            if found != 0 {
                return Some(number * 64 + u64::from(found.trailing_zeros()));
            }
        }
        None
    }

    /// Units that are not absent, in order.
    pub fn present(&self) -> impl Iterator<Item = u64> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let unit = self.next_present(next)?;
            next = unit + 1;
            Some(unit)
        })
    }

    /// How many units are in this state.
    pub fn count_of(&self, state: State) -> u64 {
        let touched: u64 = self.touched.iter().map(|word| u64::from(word.count_ones())).sum();
        let zero: u64 = self.zero.iter().map(|word| u64::from(word.count_ones())).sum();
        match state {
            State::Absent => self.count() - touched,
            State::Data => touched - zero,
            State::Zero => zero,
        }
    }
}

fn set(words: &mut [u64], unit: u64) {
    words[(unit / 64) as usize] |= 1 << (unit % 64);
}

fn get(words: &[u64], unit: u64) -> bool {
    words[(unit / 64) as usize] >> (unit % 64) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::{ClusterMap, State};

    #[test]
    fn units_are_zero_only_where_zeros_cover_them() {
        let mut map = ClusterMap::new(10 * 64 + 8, 64);
        map.add(10, 1, true);
        map.add(64, 64, false);
        // In two ranges; a part; zeros beside data; the short unit at the end, and beyond it.
        map.add(128, 30, false);
        map.add(158, 34, false);
        map.add(200, 56, false);
        map.add(256, 32, true);
        map.add(288, 32, false);
        map.add(9 * 64, 1000, false);
        use State::{Absent, Data, Zero};
        let states: Vec<State> = (0..map.count()).map(|unit| map.state(unit)).collect();
        assert_eq!(states, [Data, Zero, Zero, Data, Data, Absent, Absent, Absent, Absent, Zero, Zero]);
        assert_eq!((map.count_of(Absent), map.count_of(Data), map.count_of(Zero)), (4, 3, 4));
        assert_eq!(map.present().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 9, 10]);
        assert_eq!((map.length_of(9), map.length_of(10)), (64, 8));
        let mut sparse = ClusterMap::new(1000, 1);
        for unit in [63, 64, 700, 999] {
            sparse.add(unit, 1, true);
        }
        assert_eq!(sparse.present().collect::<Vec<_>>(), [63, 64, 700, 999]);
        assert_eq!(
            (sparse.next_present(65), sparse.next_present(1000), sparse.next_present(9000)),
            (Some(700), None, None)
        );
    }
}
