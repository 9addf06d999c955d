//! How long requests of a steady load take: so many 4 KiB reads or writes a second at random places, one at a time.
//!
//! A request that is due while the one before it still runs has been waited for since it was due: what is slow is not hidden
//! by asking less. A sleep that ends late is the machine's own doing and counts for nothing.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Bytes of one request.
const REQUEST_BYTES: u64 = 4096;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Read,
    Write,
}

impl Way {
    pub fn parse(text: &str) -> Result<Way> {
        match text {
            "read" => Ok(Way::Read),
            "write" => Ok(Way::Write),
            other => bail!("'{other}': read or write expected"),
        }
    }
}

/// What a load felt, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Felt {
    pub requests: usize,
    pub p50_us: u64,
    pub p99_us: u64,
    pub slowest_us: u64,
}

impl fmt::Display for Felt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Felt { requests, p50_us, p99_us, slowest_us } = self;
        write!(out, "requests={requests} p50_us={p50_us} p99_us={p99_us} slowest_us={slowest_us}")
    }
}

impl Felt {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Result<Felt> {
        let number = |name: &str| -> Result<u64> {
            let found = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            let found = found.with_context(|| format!("'{text}' tells no {name}"))?;
            found.parse().with_context(|| format!("{name} is '{found}', a number expected"))
        };
        Ok(Felt {
            requests: usize::try_from(number("requests")?)?,
            p50_us: number("p50_us")?,
            p99_us: number("p99_us")?,
            slowest_us: number("slowest_us")?,
        })
    }

    fn of(mut took: Vec<Duration>) -> Result<Felt> {
        took.sort_unstable();
        let micros = |took: Duration| took.as_micros() as u64;
        // The smallest that so many in a hundred do not exceed.
        let percentile = |percent: usize| took.get((took.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        match (percentile(50), percentile(99), took.last()) {
            (Some(p50), Some(p99), Some(slowest)) => Ok(Felt {
                requests: took.len(),
                p50_us: micros(p50),
                p99_us: micros(p99),
                slowest_us: micros(*slowest),
            }),
            _ => bail!("not one request was made"),
        }
    }
}

/// A steady load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub way: Way,
    /// Bytes of the disk, from its start, that are met.
    pub length: u64,
    /// Requests a second.
    pub a_second: u64,
    pub seconds: u64,
}

/// Loads a disk until its seconds are over or `stop` is set; `block` is what is written, or read into.
pub fn load(disk: &File, pace: &Pace, block: &mut [u8], stop: &AtomicBool) -> Result<Felt> {
    let Pace { way, length, a_second, seconds } = *pace;
    let blocks = length / REQUEST_BYTES;
    if blocks == 0 || a_second == 0 || a_second > 1_000_000 {
        bail!("{length} bytes, {a_second} requests a second: at least {REQUEST_BYTES} bytes, 1 to 1000000 expected");
    }
    let (gap, end) = (Duration::from_nanos(1_000_000_000 / a_second), Duration::from_secs(seconds));
    let (begun, mut took, mut state) = (Instant::now(), Vec::new(), 0x9e37_79b9_7f4a_7c15);
    let mut due = Duration::ZERO;
    while due < end && !stop.load(Ordering::Relaxed) {
        let early = due.saturating_sub(begun.elapsed());
        sleep(early);
        let from = if early.is_zero() { begun + due } else { Instant::now() };
        let at = next(&mut state) % blocks * REQUEST_BYTES;
        match way {
            Way::Read => disk.read_exact_at(block, at).with_context(|| format!("reading at {at}"))?,
            Way::Write => {
                block[..8].copy_from_slice(&state.to_le_bytes());
                disk.write_all_at(block, at).with_context(|| format!("writing at {at}"))?;
            }
        }
        took.push(from.elapsed());
        due += gap;
    }
    Felt::of(took)
}

/// Xorshift: places need be no more random than this.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::{Felt, Pace, Way, load};

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let felt = Felt::of((1..=200).rev().map(Duration::from_micros).collect()).unwrap();
        assert_eq!(felt, Felt { requests: 200, p50_us: 100, p99_us: 198, slowest_us: 200 });
        assert_eq!(Felt::parse(&felt.to_string()).unwrap(), felt);
        assert!(Felt::of(Vec::new()).is_err() && Felt::parse("p50_us=1").is_err());
    }

    #[test]
    fn what_is_due_is_asked_for_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("tanada-pace-{}", std::process::id()));
        let disk = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        disk.set_len(64 << 10).unwrap();
        let mut block = vec![7; 4096];
        let stop = AtomicBool::new(false);
        let writing = Pace { way: Way::Write, length: 32 << 10, a_second: 2000, seconds: 1 };
        assert_eq!(load(&disk, &writing, &mut block, &stop).unwrap().requests, 2000);
        let mut content = vec![0; 64 << 10];
        disk.read_exact_at(&mut content, 0).unwrap();
        // Two thousand times one of eight places: each was met.
        assert!(content.chunks(4096).take(8).all(|written| written[8..] == [7; 4088]));
        assert!(content[32 << 10..].iter().all(|byte| *byte == 0));
        let reading = Pace { way: Way::Read, a_second: 500, ..writing };
        assert_eq!(load(&disk, &reading, &mut block, &stop).unwrap().requests, 500);
        for wrong in [Pace { length: 4095, ..reading }, Pace { a_second: 0, ..reading }] {
            load(&disk, &wrong, &mut block, &stop).expect_err("no such load");
        }
        let stopped = load(&disk, &reading, &mut block, &AtomicBool::new(true)).expect_err("stopped at once");
        assert_eq!(stopped.to_string(), "not one request was made");
    }
}
