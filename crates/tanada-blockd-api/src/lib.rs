//! The only door between the planes: what the control plane says to a store's `blockd`, and what it hears.
//!
//! Transport: a unix stream socket, one JSON object a line each way, UTF-8, at most [`LINE_BYTES_MAX`] a line. The server
//! speaks first with a [`Greeting`]. Requests carry an `id` chosen by the client; replies echo it and may come in any
//! order. Lines with `"event"` instead of `"id"` are [`Event`]s and go to every client.
//!
//! Verbs are idempotent where they can be, so that a client that lost its connection may repeat them: the reply says
//! whether anything changed. A mutating verb is answered when its effect is durable.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of this protocol; a client refuses a greeting with another major number.
pub const PROTOCOL_MAJOR: u32 = 1;

/// A longer line ends the connection.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// Largest number of volumes cut together (they share one journal record).
pub const GROUP_MAX: usize = 128;

/// The server's first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Greeting {
    pub protocol_major: u32,
    pub store: Uuid,
    pub incarnation: u64,
    pub pid: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    pub id: u64,
    #[serde(flatten)]
    pub command: Command,
}

/// Sizes and offsets in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case")]
pub enum Command {
    CreateVolume {
        volume: Uuid,
        size: u64,
    },
    /// A volume or a generation. Detach it first.
    Destroy {
        target: Uuid,
    },
    Resize {
        volume: Uuid,
        size: u64,
    },
    /// All pairs at one instant.
    Snapshot {
        group: Vec<CutPair>,
    },
    Clone {
        source: Uuid,
        volume: Uuid,
    },
    Revert {
        volume: Uuid,
        generation: Uuid,
    },
    /// Changed extents from one generation (or volume) to another of its family, from `offset` on, at most `extents_max`.
    Difference {
        from: Uuid,
        to: Uuid,
        offset: u64,
        extents_max: u32,
    },
    Usage {
        target: Uuid,
    },
    List,
    StoreStat,
    /// Answers when no deletion or release is pending any more.
    Settle,
    Checkpoint,
    GrowStore {
        size: u64,
    },
    /// Verifies everything in the background, reading at most `rate` bytes per second. Takes up the last scrub where it
    /// ended before its end, unless `anew`. Survives restarts of blockd. Ends with [`Event::ScrubFinished`].
    ScrubStart {
        rate: u64,
        anew: bool,
    },
    /// Ends a scrub before its end.
    ScrubStop,
    /// The scrub that runs, or the last one.
    ScrubStatus,
    /// Makes `target` reachable over NBD under the export name `token`. Survives restarts of blockd, ends with `Detach`
    /// or with the boot. Repeating an attachment with the same token and target succeeds.
    Attach {
        token: String,
        target: Uuid,
        writable: bool,
    },
    /// Ends an attachment: its connections are closed, its name is forgotten.
    Detach {
        token: String,
    },
    Attachments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutPair {
    pub volume: Uuid,
    pub generation: Uuid,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response {
    pub id: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok(Answer),
    Error(Failure),
}

/// `errno` to match on, `message` to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} (errno {errno})")]
pub struct Failure {
    pub errno: i32,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Changed { changed: bool },
    Cut(CutReport),
    Extents { extents: Vec<Extent>, next_offset: Option<u64> },
    Usage { info: VolumeInfo, usage: Usage },
    List { volumes: Vec<VolumeInfo> },
    Store(Box<StoreStat>),
    Attachments { attachments: Vec<Attachment> },
    Scrub(Box<ScrubReport>),
}

/// What a group snapshot cost those who were writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutReport {
    pub changed: bool,
    /// From the arrival of the command to its durable end.
    pub total_us: u64,
    /// The slowest write on the group's volumes among those that overlapped the command: an upper bound of the pause
    /// that a guest could see. 0 where nobody wrote.
    pub slowest_write_us: u64,
    /// How many writes that was taken over.
    pub writes_observed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub kind: ExtentKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtentKind {
    /// Changed, and mapped now.
    Data,
    /// Changed, and reads as zeros now.
    Hole,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    pub id: Uuid,
    pub kind: VolumeKind,
    pub parent: Option<Uuid>,
    pub size: u64,
    pub state: VolumeState,
    pub open_count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    Volume,
    Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    Live,
    Dying { done: u64, total: u64 },
    Ghost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub size: u64,
    pub mapped: u64,
    pub exclusive: u64,
    pub shared: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStat {
    pub store: Uuid,
    pub incarnation: u64,
    pub checkpoint: u64,
    pub physical: u64,
    pub used: u64,
    pub free: u64,
    pub reserved: u64,
    pub unreleased: u64,
    pub virtual_size: u64,
    pub ghost_held: u64,
    pub volumes: u32,
    pub generations: u32,
    pub dying: u32,
    pub journal_used: u64,
    pub journal_size: u64,
    pub delta_entries: u64,
    pub blocks_per_write_x100: u64,
    /// Scattered bytes that were brought together since blockd was started.
    #[serde(default)]
    pub moved: u64,
    /// Guests' reads answered from what had been read ahead since blockd was started.
    #[serde(default)]
    pub read_ahead: u64,
    pub failed: Option<String>,
}

/// How a scrub stands. Times are seconds since 1970, of the machine's clock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubReport {
    pub state: ScrubState,
    /// Bytes per second that it may read.
    pub rate: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Measured.
    pub bytes_per_second: u64,
    pub seconds_left: Option<u64>,
    pub started_at: Option<u64>,
    pub ended_at: Option<u64>,
    /// Damaged blocks found.
    pub damaged: u64,
    /// The first thousand of them.
    pub damage: Vec<ScrubDamage>,
    /// Blocks of each volume up to which everything is verified.
    pub place: u64,
    /// When everything had been verified last, before this one.
    pub finished_before: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// Nothing was ever scrubbed.
    #[default]
    Never,
    Running,
    Stopped,
    Finished,
}

/// One damaged block of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubDamage {
    pub part: DamagedPart,
    /// Number of the 4 KiB block on the device.
    pub block: u64,
    /// The volume that goes on from what is damaged, and the oldest generation that holds it, if it is content.
    pub volume: Option<Uuid>,
    pub generation: Option<Uuid>,
    /// The bytes of those that cannot be read.
    pub offset: u64,
    pub length: u64,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DamagedPart {
    Data,
    Map { level: u8 },
    Bitmap { region: u64 },
    Catalog,
    Journal,
    Superblock,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub token: String,
    pub target: Uuid,
    pub writable: bool,
    pub connections: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Damage {
        volume: Uuid,
        offset: u64,
        message: String,
    },
    ReadOnly {
        message: String,
    },
    NearlyFull {
        free: u64,
        physical: u64,
    },
    Full,
    RoomAgain {
        free: u64,
    },
    /// Everything was verified; what was found is in the report.
    ScrubFinished {
        bytes: u64,
        damaged: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::{Answer, Command, CutPair, Envelope, Outcome, Response};
    use uuid::Uuid;

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        let envelope = Envelope {
            id: 7,
            command: Command::Snapshot { group: vec![CutPair { volume: Uuid::nil(), generation: Uuid::max() }] },
        };
        let line = serde_json::to_string(&envelope).unwrap();
        assert!(line.contains("\"method\":\"snapshot\""), "{line}");
        assert_eq!(serde_json::from_str::<Envelope>(&line).unwrap().command, envelope.command);
        let list: Envelope = serde_json::from_str(r#"{"id":1,"method":"list"}"#).unwrap();
        assert_eq!(list.command, Command::List);
        let response = Response { id: 7, outcome: Outcome::Ok(Answer::Changed { changed: true }) };
        let line = serde_json::to_string(&response).unwrap();
        assert!(matches!(
            serde_json::from_str::<Response>(&line).unwrap().outcome,
            Outcome::Ok(Answer::Changed { changed: true })
        ));
    }
}
