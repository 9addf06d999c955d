//! Scrubbing: everything that a client or a restart may need is read from the device and verified, at a throttled rate.
//!
//! ```text
//!   start --> checkpoint: what was written before it is in trees
//!         --> frame: superblock copies, journal, catalog, bitmap pages
//!         --> stretches of 256 MiB of places, of all versions together, one after the other --> finished
//!   stop: the task ends at its next pause          restart: a new start, from the mark of the last one
//! ```
//! - **The mark is one place.** All versions are scrubbed side by side, in order of place: left of the mark everything
//!   that was there when the scrub began has been verified since. Snapshots, clones, reverts and deletions move content
//!   between versions but never between places, so the mark stays true whatever happens, and is all that a restart
//!   needs. The frame is small: every start verifies it anew.
//! - **Once per block.** A version answers for what is born after its parent's cut; the rest stands, identical, in the
//!   parent (I1), which is scrubbed too. A dying parent is not (nobody can read it, and left of its cursor it is
//!   gone), so its children answer for what they share with it.
//! - **From the device.** A node in the cache says nothing about the medium: it is read all the same.
//! - **A reader (B3), but none that keeps space from those who wait**: when a checkpoint has dropped blocks meanwhile,
//!   the scrub ends its MiB without a pause, and looks everything up anew.
//! - **Pace**: bytes per second of the shell's clock; a quarter of that while guests ask for anything.
//!
//! It repairs nothing: what is damaged has no second copy here. A full overwrite heals data (W2).

mod frame;
mod trees;

use std::collections::BTreeMap;

use tanada_disk::Buf;
use tanada_format::{Pointer, VersionKind, crc32c};
use uuid::Uuid;

use crate::api::Alert;
use crate::failure::{EBUSY, EINVAL, Failure};
use crate::space::releases::Reading;
use crate::state::{BLOCK, Handle, Job, State};
use crate::versions::VersionId;

/// Damage that a report lists; further damage is counted only.
pub const DAMAGE_MAX: usize = 1_000;

/// While guests ask for anything, the scrub goes so many times slower.
const GIVES_WAY: u64 = 4;

/// Pauses shorter than this are put together, in microseconds: each costs the shell a wake-up.
const PAUSE_MIN_MICROS: u64 = 1_000;

/// In a long pause so often a look is taken whether anybody waits for its end.
const PAUSE_LOOK_MICROS: u64 = 50_000;

/// How far a scrub came. Left of `place` everything is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubMark {
    /// In blocks, within each volume.
    pub place: u64,
    /// Blocks read and verified, damaged ones among them.
    pub blocks: u64,
    /// Damage found.
    pub damaged: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScrubState {
    /// None was started since the store was opened.
    #[default]
    Idle,
    Running,
    Stopped,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamagedPart {
    Data,
    /// A map node; everything below it is out of reach.
    Map {
        level: u8,
    },
    Bitmap {
        region: u64,
    },
    Catalog,
    Journal,
    Superblock,
}

/// One damaged block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubDamage {
    pub part: DamagedPart,
    /// Of the device; of what is lost, the map node that says so.
    pub block: u64,
    /// The volume that goes on from what is damaged, if it is content.
    pub volume: Option<Uuid>,
    /// The oldest generation that holds it, if one does.
    pub generation: Option<Uuid>,
    /// Bytes of the volume or generation that cannot be read.
    pub offset: u64,
    pub length: u64,
    pub message: String,
}

/// What a scrub does, or has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubStatus {
    pub state: ScrubState,
    /// Bytes per second that it may read.
    pub rate: u64,
    pub mark: ScrubMark,
    /// Bytes verified, and to be verified in all; the second is what was in use when it began.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Measured since it was started.
    pub bytes_per_second: u64,
    /// At that rate; `None` where nothing was measured or nothing runs.
    pub seconds_left: Option<u64>,
    /// At most [`DAMAGE_MAX`].
    pub damage: Vec<ScrubDamage>,
}

/// What the state keeps of scrubs.
#[derive(Default)]
pub struct Scrub {
    /// Moves with every start and stop: a task of another run ends.
    run: u64,
    state: ScrubState,
    rate: u64,
    mark: ScrubMark,
    bytes_total: u64,
    started_at: u64,
    started_blocks: u64,
    ended_at: u64,
    /// When the next read is due.
    due_at: u64,
    /// Guests' requests so far, when last looked at.
    guests_seen: u64,
    damage: Vec<ScrubDamage>,
}

/// The scrub was stopped, or another one was started.
struct Stopped;

/// A task that scrubs.
struct Scrubber {
    handle: Handle,
    run: u64,
    ahead: BTreeMap<VersionId, trees::Ahead>,
    /// Look-ups since the last turn.
    looked_up: usize,
}

impl Handle {
    /// Scrubs from the mark to the end.
    pub async fn scrub(self, run: u64) {
        // A store that is read-only is scrubbed as it is.
        if let Err(failure) = self.checkpointed().await {
            tracing::warn!(%failure, "scrubbing without a checkpoint: what the journal holds is not verified");
        }
        let mut scrubber = Scrubber { handle: self.clone(), run, ahead: BTreeMap::new(), looked_up: 0 };
        if scrubber.all().await.is_ok() {
            self.with(State::scrub_finished);
        }
    }
}

impl Scrubber {
    async fn all(&mut self) -> Result<(), Stopped> {
        let mut next = Some(self.handle.with(|state| state.scrub_begin(self.run))?);
        self.frame().await?;
        while let Some(place) = next {
            self.advance(place)?;
            next = self.stretch(place).await?;
        }
        Ok(())
    }

    /// Everything left of `place` is verified.
    fn advance(&self, place: u64) -> Result<(), Stopped> {
        self.handle.with(|state| {
            state.scrub_charge(self.run, 0)?;
            state.scrub.mark.place = place;
            Ok(())
        })
    }

    /// Counts blocks just read and waits as the rate asks for; not at all, and no longer, where space waits for `reading`
    /// to end.
    async fn pace(&self, blocks: u64, reading: &Reading) -> Result<(), Stopped> {
        let due = self.handle.with(|state| state.scrub_charge(self.run, blocks))?;
        if due < self.handle.with(|state| state.now) + PAUSE_MIN_MICROS {
            return Ok(());
        }
        while !reading.is_overtaken() {
            let now = self.handle.with(|state| state.now);
            if now >= due {
                break;
            }
            self.handle.wait_until(due.min(now + PAUSE_LOOK_MICROS)).await;
            self.handle.with(|state| state.scrub_charge(self.run, 0))?;
        }
        Ok(())
    }

    /// The block behind `pointer`; what is wrong with it where it does not match after a second look either.
    async fn verified(&self, pointer: Pointer) -> Result<Buf, String> {
        let mut said = String::new();
        for _ in 0..2 {
            match self.handle.read_blocks(pointer.block(), BLOCK as u32).await {
                Ok(bytes) if crc32c(&bytes) == pointer.crc() => return Ok(bytes),
                Ok(bytes) => said = format!("checksum is {:#010x}, should be {:#010x}", crc32c(&bytes), pointer.crc()),
                Err(error) => said = error.to_string(),
            }
        }
        Err(said)
    }
}

impl State {
    /// Starts a scrub, from the beginning or from where one ended.
    pub fn scrub_start(&mut self, rate: u64, from: ScrubMark, damage: Vec<ScrubDamage>) -> Result<bool, Failure> {
        if rate < BLOCK {
            let message = format!("a scrub rate of {rate} bytes per second; {BLOCK} or more are accepted");
            return Err(Failure::new(EINVAL, message));
        }
        if self.scrub.state == ScrubState::Running {
            if self.scrub.rate == rate {
                return Ok(false);
            }
            let running = self.scrub.rate;
            let message = format!("a scrub is running at {running} bytes per second; stop it to start another");
            return Err(Failure::new(EBUSY, message));
        }
        let run = self.scrub.run + 1;
        self.scrub = Scrub { run, state: ScrubState::Running, rate, mark: from, damage, ..Scrub::default() };
        self.scrub_measure();
        self.jobs.push_back(Job::Scrub { run });
        Ok(true)
    }

    /// False where none was running.
    pub fn scrub_stop(&mut self) -> bool {
        let was_running = self.scrub.state == ScrubState::Running;
        if was_running {
            self.scrub.run += 1;
            self.scrub.state = ScrubState::Stopped;
            self.scrub.ended_at = self.now;
        }
        was_running
    }

    /// Measures what there is to do and sets the zero point of the rate; the place to begin at.
    fn scrub_begin(&mut self, run: u64) -> Result<u64, Stopped> {
        self.scrub_charge(run, 0)?;
        self.scrub_measure();
        Ok(self.scrub.mark.place)
    }

    fn scrub_measure(&mut self) {
        let rest = self.alloc.used() + self.journal.used() + self.alloc.geometry().region_count();
        self.scrub.bytes_total = rest * BLOCK;
        self.scrub.started_at = self.now;
        self.scrub.started_blocks = self.scrub.mark.blocks;
    }

    fn scrub_finished(&mut self) {
        self.scrub.state = ScrubState::Finished;
        self.scrub.ended_at = self.now;
        self.scrub.bytes_total = self.scrub.mark.blocks * BLOCK;
        let status = Box::new(self.scrub_status());
        self.alert(Alert::ScrubFinished(status));
    }

    /// Counts blocks read; when the next read is due.
    fn scrub_charge(&mut self, run: u64, blocks: u64) -> Result<u64, Stopped> {
        let (now, guests) = (self.now, self.guest_requests);
        let scrub = &mut self.scrub;
        if scrub.run != run {
            return Err(Stopped);
        }
        scrub.mark.blocks += blocks;
        let slower = if scrub.guests_seen == guests { 1 } else { GIVES_WAY };
        scrub.guests_seen = guests;
        let micros = u128::from(blocks * BLOCK) * u128::from(1_000_000 * slower) / u128::from(scrub.rate);
        scrub.due_at = scrub.due_at.max(now) + micros as u64;
        Ok(scrub.due_at)
    }

    pub fn scrub_status(&self) -> ScrubStatus {
        let scrub = &self.scrub;
        let bytes_done = scrub.mark.blocks * BLOCK;
        let is_running = scrub.state == ScrubState::Running;
        let until = if is_running { self.now } else { scrub.ended_at };
        let since_start = (scrub.mark.blocks - scrub.started_blocks) * BLOCK;
        let micros = until.saturating_sub(scrub.started_at);
        let measured = (u128::from(since_start) * 1_000_000).checked_div(u128::from(micros)).unwrap_or(0) as u64;
        let bytes_total = scrub.bytes_total.max(bytes_done);
        let seconds_left = (bytes_total - bytes_done).checked_div(measured.min(scrub.rate)).filter(|_| is_running);
        ScrubStatus {
            state: scrub.state,
            rate: scrub.rate,
            mark: scrub.mark,
            bytes_done,
            bytes_total,
            bytes_per_second: measured,
            seconds_left,
            damage: scrub.damage.clone(),
        }
    }

    /// Notes damage, once, and raises the alarm.
    fn scrub_damaged(&mut self, run: u64, damage: ScrubDamage) {
        let key = |damage: &ScrubDamage| (damage.part, damage.block, damage.offset);
        let is_known = |other: &ScrubDamage| key(other) == key(&damage);
        if self.scrub.run != run || self.scrub.damage.iter().any(is_known) {
            return;
        }
        let volume = damage.generation.or(damage.volume).unwrap_or_default();
        let message = format!("block {} of the store: {}", damage.block, damage.message);
        self.alert(Alert::Damage { volume, offset: damage.offset, message });
        self.scrub.mark.damaged += 1;
        if self.scrub.damage.len() < DAMAGE_MAX {
            self.scrub.damage.push(damage);
        }
    }

    /// Under which names clients know a version's content: the volume that goes on from it, and its generation.
    pub fn scrub_names(&self, id: VersionId) -> (Option<Uuid>, Option<Uuid>) {
        let (mut volume, mut generation) = (None, None);
        let mut below = vec![id];
        while let Some(version) = below.pop().and_then(|id| self.versions.get(id)) {
            if version.is_live() && !version.hidden {
                let name = if version.kind == VersionKind::Head { &mut volume } else { &mut generation };
                name.get_or_insert(version.uuid);
            }
            if volume.is_some() {
                break;
            }
            below.extend(version.children.iter().rev());
        }
        (volume, generation)
    }
}
