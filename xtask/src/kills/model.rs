//! What a volume must hold: per sector of 512 bytes, the last acknowledged change; and what is under way.
//!
//! Every change has a stamp, larger than all before it. A written sector tells volume, number and stamp, so that a stale,
//! torn or misplaced one is seen. Changes under way never overlap, so each sector has one history.

use anyhow::{Result, bail};

pub const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const SECTORS_PER_BLOCK: u64 = (BLOCK / SECTOR) as u64;

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Zeros,
    /// What the change with this stamp wrote.
    Written(u64),
}

/// A change of whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub first: u64,
    pub count: u64,
    pub held: Held,
}

impl Change {
    pub fn covers(&self, sector: u64) -> bool {
        (self.first..self.first + self.count).contains(&sector)
    }

    pub fn overlaps(&self, other: &Change) -> bool {
        self.first < other.first + other.count && other.first < self.first + self.count
    }
}

/// Mixes two numbers into one that looks random.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}

/// Fills the sectors from `first` on as the change with `stamp` on `volume` does.
pub fn fill(volume: u64, first: u64, stamp: u64, bytes: &mut [u8]) {
    for (sector, bytes) in (first..).zip(bytes.chunks_exact_mut(SECTOR)) {
        let seed = mix(mix(volume, sector), stamp);
        for (n, word) in (0..).zip(bytes.chunks_exact_mut(8)) {
            let value = match n {
                0 => volume << 48 | sector,
                1 => stamp,
                n => mix(seed, n),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// What one sector holds. Errors where it is neither zeros nor a whole sector of this place.
pub fn held(volume: u64, sector: u64, bytes: &[u8]) -> Result<Held> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Held::Zeros);
    }
    let stamp = u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|n: usize| bytes[n]));
    let mut expected = [0; SECTOR];
    fill(volume, sector, stamp, &mut expected);
    if bytes != expected {
        bail!("volume {volume}, sector {sector}: neither zeros nor a whole sector that was ever written there");
    }
    Ok(Held::Written(stamp))
}

/// One volume.
#[derive(Debug, Clone)]
pub struct Disk {
    pub volume: u64,
    pub sectors: Vec<Held>,
}

impl Disk {
    pub fn new(volume: u64, bytes: u64) -> Disk {
        Disk { volume, sectors: vec![Held::Zeros; bytes as usize / SECTOR] }
    }

    pub fn acknowledged(&mut self, change: &Change) {
        self.sectors[change.first as usize..(change.first + change.count) as usize].fill(change.held);
    }

    /// Judges bytes read from sector `first` on (a whole number of blocks). What a change under way covers may be old or
    /// new, but the same within each block of 4 KiB; all else must be what was acknowledged last.
    pub fn judge(&self, first: u64, bytes: &[u8], under_way: &[Change]) -> Result<()> {
        for (n, block) in (first / SECTORS_PER_BLOCK..).zip(bytes.chunks_exact(BLOCK)) {
            let start = n * SECTORS_PER_BLOCK;
            let touching: Vec<&Change> = under_way
                .iter()
                .filter(|change| (start..start + SECTORS_PER_BLOCK).any(|s| change.covers(s)))
                .collect();
            let mut arrived: Vec<Option<bool>> = vec![None; touching.len()];
            for (sector, bytes) in (start..).zip(block.chunks_exact(SECTOR)) {
                let found = held(self.volume, sector, bytes)?;
                let old = self.sectors[sector as usize];
                let changing = touching.iter().position(|change| change.covers(sector));
                let new = changing.map(|at| touching[at].held);
                if found != old && Some(found) != new {
                    bail!(
                        "volume {}, sector {sector}: holds {found:?}; acknowledged was {old:?}, under way is {new:?}",
                        self.volume
                    );
                }
                if let Some(at) = changing
                    && Some(old) != new
                {
                    let is_new = Some(found) == new;
                    if *arrived[at].get_or_insert(is_new) != is_new {
                        bail!("volume {}, sector {sector}: a change is torn within a block of 4 KiB", self.volume);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A change that was sent while a cut was made, in the order of sending. Times are those of a common counter.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub change: Change,
    pub sent: u64,
    /// `u64::MAX` while it is under way.
    pub acknowledged: u64,
}

/// What a volume may hold in a generation: the state at the begin of the cut, and what was sent until its end.
#[derive(Debug, Clone)]
pub struct Interval {
    pub base: Disk,
    pub sent: Vec<Sent>,
}

impl Interval {
    /// Judges a generation's content; returns what each sector holds.
    fn judge(&self, content: &[u8]) -> Result<Vec<Held>> {
        let mut all = Vec::with_capacity(self.base.sectors.len());
        for (sector, bytes) in (0..).zip(content.chunks_exact(SECTOR)) {
            let found = held(self.base.volume, sector, bytes)?;
            let was_sent = || self.sent.iter().any(|sent| sent.change.covers(sector) && sent.change.held == found);
            if found != self.base.sectors[sector as usize] && !was_sent() {
                bail!(
                    "a generation of volume {}, sector {sector}: holds {found:?}; {:?} was acknowledged before the cut",
                    self.base.volume,
                    self.base.sectors[sector as usize]
                );
            }
            all.push(found);
        }
        if all.len() != self.base.sectors.len() {
            bail!("a generation of volume {} has {} sectors", self.base.volume, all.len());
        }
        Ok(all)
    }
}

/// Judges generations that were cut together: each by itself, and all as one instant. If one of them shows a change that
/// was sent at time T, all of them must show every change that was acknowledged before T.
pub fn judge_group(group: &[(&Interval, &[u8])]) -> Result<()> {
    let mut instant = 0;
    let mut found = Vec::new();
    for (interval, content) in group {
        let held = interval.judge(content)?;
        for sent in &interval.sent {
            let Change { first, count, held: new } = sent.change;
            // A written sector is this very change; zeros may be those of another one.
            let is_shown = matches!(new, Held::Written(_)) && (first..first + count).any(|s| held[s as usize] == new);
            if is_shown {
                instant = instant.max(sent.sent);
            }
        }
        found.push(held);
    }
    for ((interval, _), held) in group.iter().zip(&found) {
        for (n, sent) in interval.sent.iter().enumerate().filter(|(_, sent)| sent.acknowledged < instant) {
            for sector in sent.change.first..sent.change.first + sent.change.count {
                let later = interval.sent[n..].iter().filter(|later| later.change.covers(sector));
                if !later.into_iter().any(|later| later.change.held == held[sector as usize]) {
                    bail!(
                        "volume {}, sector {sector}: {:?} was acknowledged before the instant of the cut and is missing",
                        interval.base.volume,
                        sent.change.held
                    );
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Change, Disk, Held, Interval, SECTOR, Sent, fill, judge_group};

    const BYTES: usize = 8192;

    fn content(parts: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        for (first, count, stamp) in parts {
            let range = *first as usize * SECTOR..(first + count) as usize * SECTOR;
            fill(1, *first, *stamp, &mut bytes[range]);
        }
        bytes
    }

    fn written(first: u64, count: u64, stamp: u64) -> Change {
        Change { first, count, held: Held::Written(stamp) }
    }

    fn disk(changes: &[Change]) -> Disk {
        let mut disk = Disk::new(1, BYTES as u64);
        changes.iter().for_each(|change| disk.acknowledged(change));
        disk
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let disk = disk(&[written(0, 4, 1), written(2, 1, 2)]);
        disk.judge(0, &content(&[(0, 4, 1), (2, 1, 2)]), &[]).unwrap();
        assert!(disk.judge(0, &content(&[(0, 4, 1)]), &[]).is_err(), "a lost write");
        assert!(disk.judge(0, &content(&[(0, 4, 1), (2, 1, 2), (9, 1, 7)]), &[]).is_err(), "a write from nowhere");
        let mut flipped = content(&[(0, 4, 1), (2, 1, 2)]);
        flipped[700] ^= 1;
        assert!(disk.judge(0, &flipped, &[]).is_err(), "a flipped bit");
        let mut misplaced = content(&[(0, 4, 1), (2, 1, 2)]);
        misplaced.copy_within(0..SECTOR, SECTOR);
        assert!(disk.judge(0, &misplaced, &[]).is_err(), "a misplaced sector");
    }

    #[test]
    fn what_is_under_way_is_old_or_new_by_blocks() {
        let disk = disk(&[written(0, 16, 1)]);
        let change = written(6, 4, 2);
        for shown in [&[(0, 16, 1)][..], &[(0, 16, 1), (6, 2, 2)], &[(0, 16, 1), (8, 2, 2)], &[(0, 16, 1), (6, 4, 2)]] {
            disk.judge(0, &content(shown), &[change]).unwrap();
        }
        assert!(disk.judge(0, &content(&[(0, 16, 1), (6, 1, 2)]), &[change]).is_err(), "torn within a block");
        assert!(disk.judge(0, &content(&[(0, 16, 1), (6, 4, 2)]), &[]).is_err(), "nothing is under way");
    }

    #[test]
    fn a_group_is_one_instant() {
        let base = disk(&[written(0, 1, 1)]);
        let sent = |change, sent, acknowledged| Sent { change, sent, acknowledged };
        let a = Interval { base: base.clone(), sent: vec![sent(written(0, 1, 2), 10, 11)] };
        let b = Interval { base, sent: vec![sent(written(3, 1, 3), 12, 13)] };
        let (old, new_a) = (content(&[(0, 1, 1)]), content(&[(0, 1, 2)]));
        let new_b = content(&[(0, 1, 1), (3, 1, 3)]);
        judge_group(&[(&a, &old), (&b, &old)]).unwrap();
        judge_group(&[(&a, &new_a), (&b, &old)]).unwrap();
        judge_group(&[(&a, &new_a), (&b, &new_b)]).unwrap();
        assert!(judge_group(&[(&a, &old), (&b, &new_b)]).is_err(), "the later without the earlier");
        assert!(judge_group(&[(&a, &content(&[])), (&b, &old)]).is_err(), "what was there before is missing");
    }
}
