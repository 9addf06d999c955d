//! How fast disks may be read and written for a transfer, so that the machines on the same storage are not disturbed.
//!
//! A bucket deals out turns: each read or write of so many bytes gets the moment at which it may begin, and pushes the
//! moment of the next one back by what its bytes take at the rate. Time in which nobody asked is not made up for, so
//! there are no bursts after a pause. Holes take no turn.
//!
//! What takes turns goes in small pieces ([`Rate::piece_bytes`]), spread evenly: a storage serves in order, so a guest's
//! request may find a piece of the transfer in front of it, and the less that is the sooner it is answered.
//!
//! | bound | who sets it | shared by |
//! |---|---|---|
//! | `rate=` of a transfer, bytes per second | the client | the reads (or writes) of this transfer |
//! | `SR.other_config` [`SR_KEY`] | the administrator | all transfers and copies from and to disks of the SR |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tanada_xapi::{ApiError, ApiResult, Ref};
use tokio::time::{Instant, sleep_until};

use super::disk::CHUNK_BYTES;
use crate::context::Daemon;
use crate::db::View;

/// Bytes per second of the slowest transfer: a chunk then takes 16 seconds, and clients still see that something happens.
pub const SLOWEST: u64 = 64 << 10;

/// Bytes of the smallest pieces; smaller ones cost more to ask for than they save anybody.
const PIECE_BYTES_MIN: u64 = 64 << 10;

/// Turns a second, where the pieces are not at their smallest. A sleep ends with a tick of the timer, a millisecond.
const TURNS_PER_SECOND: u64 = 512;

/// The key in `SR.other_config`.
pub const SR_KEY: &str = "tanada-transfer-rate";

/// Bounds that all have to be kept. Clones share their buckets; without any there is no bound.
#[derive(Debug, Clone, Default)]
pub struct Rate(Vec<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

/// The buckets of SRs that have a bound.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<Ref, Arc<Bucket>>>);

impl Rate {
    /// A bound of its own.
    pub fn bytes_per_second(bytes_per_second: u64) -> Rate {
        Rate(vec![Bucket::new(bytes_per_second)])
    }

    /// A bound as a client writes it, bytes per second; none where it is absent, empty or 0.
    pub fn parse(name: &str, text: Option<&str>) -> ApiResult<Rate> {
        Ok(parsed(name, text.unwrap_or_default())?.map(Rate::bytes_per_second).unwrap_or_default())
    }

    /// This bound and that of the SR which holds `vdi`.
    pub fn and_of_disk(self, daemon: &Daemon, vdi: &Ref) -> ApiResult<Rate> {
        let sr = daemon.db.read(|state| Ok::<_, ApiError>(state.get("VDI", vdi)?.reference("SR")))?;
        self.and_of_sr(daemon, &sr)
    }

    /// This bound and that of the SR.
    pub fn and_of_sr(mut self, daemon: &Daemon, sr: &Ref) -> ApiResult<Rate> {
        let sr = daemon.db.read(|state| state.get("SR", sr))?;
        let bound = parsed(SR_KEY, sr.entry("other_config", SR_KEY).unwrap_or_default())?;
        let mut known = daemon.transfer_rates.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bytes_per_second) = bound else {
            known.remove(sr.id());
            return Ok(self);
        };
        let bucket = known.entry(sr.id().clone()).or_insert_with(|| Bucket::new(bytes_per_second));
        if bucket.bytes_per_second != bytes_per_second {
            *bucket = Bucket::new(bytes_per_second);
        }
        if !self.0.iter().any(|own| Arc::ptr_eq(own, bucket)) {
            self.0.push(bucket.clone());
        }
        Ok(self)
    }

    /// How many bytes are to be read or written in one turn, at most; a power of two.
    pub fn piece_bytes(&self) -> u64 {
        let slowest = self.0.iter().map(|bucket| bucket.bytes_per_second).min();
        slowest.map_or(CHUNK_BYTES, |rate| {
            let even = (rate / TURNS_PER_SECOND).clamp(PIECE_BYTES_MIN, CHUNK_BYTES);
            1 << even.ilog2()
        })
    }

    /// Waits for the turn of so many bytes. Who goes away while waiting leaves his turn unused.
    pub async fn turn(&self, bytes: u64) {
        for bucket in &self.0 {
            sleep_until(bucket.next_turn(bytes, Instant::now())).await;
        }
    }
}

fn parsed(name: &str, text: &str) -> ApiResult<Option<u64>> {
    match text.trim() {
        "" | "0" => Ok(None),
        text => match text.parse() {
            Ok(rate) if rate >= SLOWEST => Ok(Some(rate)),
            _ => {
                let accepted = format!("bytes per second, {SLOWEST} or more; 0 or nothing for no bound");
                Err(ApiError::value_not_supported(name, text, accepted))
            }
        },
    }
}

impl Bucket {
    fn new(bytes_per_second: u64) -> Arc<Bucket> {
        Arc::new(Bucket { bytes_per_second, free_at: Mutex::new(Instant::now()) })
    }

    fn next_turn(&self, bytes: u64, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*free_at).max(now);
        *free_at = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Bucket, Rate, SLOWEST};

    const MIB: u64 = 1 << 20;

    #[test]
    fn turns_follow_each_other_at_the_rate_and_pauses_are_not_made_up_for() {
        let bucket = Bucket::new(10 * MIB);
        let start = Instant::now();
        let turns: Vec<u128> = (0..4).map(|_| (bucket.next_turn(MIB, start) - start).as_millis()).collect();
        assert_eq!(turns, [0, 100, 200, 300]);
        let later = start + Duration::from_secs(60);
        let turns: Vec<u128> = (0..3).map(|_| (bucket.next_turn(2 * MIB, later) - later).as_millis()).collect();
        assert_eq!(turns, [0, 200, 400]);
    }

    #[test]
    fn the_slower_the_smaller_the_pieces() {
        let pieces = |rates: &[u64]| Rate(rates.iter().map(|rate| Bucket::new(*rate)).collect()).piece_bytes() >> 10;
        assert_eq!(pieces(&[]), 1024);
        assert_eq!([SLOWEST, 32 * MIB, 100 * MIB, 1 << 40].map(|rate| pieces(&[rate])), [64, 64, 128, 1024]);
        assert_eq!(pieces(&[1 << 40, 256 * MIB]), 512);
    }

    #[tokio::test]
    async fn what_has_no_bound_does_not_wait() {
        for text in [None, Some(""), Some("0")] {
            Rate::parse("rate", text).unwrap().turn(u64::MAX).await;
        }
    }

    #[test]
    fn rates_that_nobody_can_mean_are_refused() {
        for wrong in ["1", "-5", "fast", "1e9", "10MiB"] {
            let error = Rate::parse("rate", Some(wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains(&SLOWEST.to_string()), "{error}");
        }
        assert!(Rate::parse("rate", Some("65536")).is_ok());
    }
}
