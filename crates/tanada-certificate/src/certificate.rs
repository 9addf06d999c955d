//! What a snapshot knows about its consistency.
//!
//! Written once, when the snapshot is recorded, and never again: it travels in `snapshot_info` ([`crate::keys`]) and with
//! exported templates. Every duration is in microseconds.

use std::collections::BTreeMap;

use crate::cause::Downgrade;

/// What was reached. Never what was intended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// As after a power cut: what was written is there, in order; file systems and databases recover.
    #[default]
    Crash,
    /// File systems were at rest and need no recovery; programs find their files as after a power cut.
    FileSystem,
    /// Programs that take part were at rest as well.
    Application,
    /// The machine was shut down: nothing was in memory only.
    ShutDown,
    /// Memory and disks of one instant: everything goes on where it was.
    Memory,
}

impl Level {
    pub const ALL: [Level; 5] = [Level::Crash, Level::FileSystem, Level::Application, Level::ShutDown, Level::Memory];

    /// `snapshot_info:consistency`.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Crash => "crash",
            Level::FileSystem => "file system",
            Level::Application => "application",
            Level::ShutDown => "shut down",
            Level::Memory => "memory",
        }
    }

    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// `snapshot_info:disk-snapshot-type`, as XenServer writes it.
    pub const fn disk_snapshot_type(self) -> &'static str {
        match self {
            Level::FileSystem | Level::Application => "quiesced",
            Level::Crash | Level::ShutDown | Level::Memory => "crash_consistent",
        }
    }
}

/// How the guest was brought to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    #[default]
    None,
    /// Linux: the kernel froze the file systems.
    Fsfreeze,
    /// Linux: hooks ran before, which the administrator declared to be good for the programs.
    FsfreezeHooks,
    /// Windows: Volume Shadow Copy Service.
    Vss,
    /// Memory was saved with the disks.
    Memory,
}

impl Method {
    pub const ALL: [Method; 5] = [Method::None, Method::Fsfreeze, Method::FsfreezeHooks, Method::Vss, Method::Memory];

    pub const fn name(self) -> &'static str {
        match self {
            Method::None => "none",
            Method::Fsfreeze => "fsfreeze",
            Method::FsfreezeHooks => "fsfreeze+hooks",
            Method::Vss => "vss",
            Method::Memory => "memory",
        }
    }

    pub fn from_name(name: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// Did the freeze still hold when the cut was made?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Held {
    Yes,
    No,
    #[default]
    Unknown,
}

impl Held {
    pub const ALL: [Held; 3] = [Held::Yes, Held::No, Held::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Held::Yes => "yes",
            Held::No => "no",
            Held::Unknown => "unknown",
        }
    }

    pub fn from_name(name: &str) -> Option<Held> {
        Held::ALL.into_iter().find(|held| held.name() == name)
    }
}

/// What the guest said about itself; empty where it said nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestFacts {
    /// For people: `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// For programs: `debian`, `mswindows`.
    pub os_id: String,
    /// `qemu-ga 7.2.22`.
    pub agent: String,
}

/// A freeze that was answered, whatever became of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Freeze {
    /// How long the guest's file systems stood still: from the freeze's answer to the thaw's.
    pub frozen_us: u64,
    /// How long the guest took to freeze, hooks and writers included.
    pub asked_us: u64,
    /// From the freeze's answer until the cut was done; at most.
    pub cut_after_us: u64,
    /// File systems (Windows: volumes) that the guest froze, and thawed where it said.
    pub frozen: u64,
    pub thawed: Option<u64>,
    pub held: Held,
    /// How that is known.
    pub verified_by: String,
    /// The guest's words where it complained about the thaw.
    pub thaw_error: Option<String>,
}

/// The cut itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// The whole of it, at the storage.
    pub total_us: u64,
    /// The barrier's pause: upper bound of what a write of the guest waited.
    pub pause_us: u64,
    /// Writes of the guest that met the barrier.
    pub writes_observed: u64,
    /// Between the first and the last disk's instant; 0 where all disks are of one instant.
    pub skew_us: u64,
    /// The machine was held for so long, because its storage could not cut all disks together.
    pub held_us: Option<u64>,
}

/// One disk of the snapshot; its number in the machine is the key that it is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskEntry {
    /// UUIDs of the machine's VDI (not of the snapshot's) and of its SR.
    pub vdi: String,
    pub sr: String,
    /// Lower than the snapshot's where nothing on this disk could be brought to rest.
    pub level: Level,
    /// Its instant, after the first disk's.
    pub skew_us: u64,
    /// Where the guest had it mounted, if it told.
    pub mounts: Vec<String>,
}

/// A program in the guest that took part (a VSS writer, a freeze hook), with what the agent told about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Participant {
    pub name: String,
    /// The guest's words.
    pub result: String,
    pub ok: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Certificate {
    pub level: Level,
    pub method: Method,
    /// `VM.power_state` when the cut was made.
    pub power_state: String,
    pub guest: GuestFacts,
    pub freeze: Option<Freeze>,
    pub cut: Cut,
    pub disks: BTreeMap<u32, DiskEntry>,
    pub participants: Vec<Participant>,
    /// Why it is not more than it is.
    pub downgrade: Option<Downgrade>,
    /// What else an administrator should know, a sentence each.
    pub notes: Vec<String>,
}
