//! A process that thaws a guest whatever becomes of the daemon.
//!
//! ```text
//!   daemon                              guard (`tanada quiesce-guard`)                      guest
//!     │── freeze {limits} ───────────────▶│── guest-fsfreeze-freeze ──────────────────────▶│
//!     │◀─ frozen | not frozen ────────────│◀───────────────────────────────────────────────│
//!     │   (cut)                           │  waits for: thaw asked, door closed, deadline, SIGTERM
//!     │── thaw ──────────────────────────▶│── status?, guest-fsfreeze-thaw ───────────────▶│
//!     │◀─ thawed {what was seen} ─────────│◀───────────────────────────────────────────────│
//!     │                                   └─ ends once the guest says that it is thawed, or its machine is gone
//! ```
//! - The guard is the only client of the agent's port from before the freeze until after the thaw ([`Lent`]).
//! - **The daemon dies**: the door closes, the guard thaws. A freeze under way is given up, and a thaw queued behind it.
//! - **The guard dies**: the door closes at the daemon's end, who thaws by himself. Both die: the daemon's next life
//!   finds the intent.
//! - **The guard hangs**: while it works it says so every [`BEAT`]. One that is not heard for four seconds is ended for certain,
//!   and then it is dead. Who loses a guard while the guest is frozen keeps the deadline himself ([`warden`]).
//! - **Nobody dies, all are slow**: at the deadline, so many seconds after the freeze was answered, the guard thaws unasked.
//! - It never gives up: a guest that does not answer is asked again until it does or its machine is gone.
//!
//! The door is a socket pair; a line of JSON each way at a time. Nothing of it is kept, so it has no versions: both ends
//! are the same program.
//!
//! [`Lent`]: tanada_qemu::agent::Lent

pub mod client;
pub mod process;
pub mod thawing;
pub mod warden;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a guard says that it is at work.
const BEAT: Duration = Duration::from_millis(500);

/// What the daemon asks for. Milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    Freeze {
        /// How long the guest may take to freeze.
        limit: u64,
        /// How long it may stay frozen, from its answer on.
        window: u64,
        /// How long it may take to answer a thaw.
        thaw: u64,
    },
    Thaw,
}

/// What the guard answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// At work; nothing is new.
    Alive,
    Frozen {
        count: u64,
        /// Microseconds from the question to the answer.
        asked_us: u64,
    },
    /// It may freeze all the same; it is being thawed.
    NotFrozen {
        failure: Failure,
        words: String,
    },
    Thawed(Thawed),
}

/// Why a freeze was not answered with a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The agent said no.
    Refused,
    /// No answer in time.
    Deadline,
    /// The agent was not there, or went.
    Absent,
}

/// Why a thaw was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    Asked,
    /// The time that a freeze may last was over.
    Deadline,
    /// The daemon is gone, or the guard was told to end.
    Abandoned,
}

/// What was seen of a thaw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Thawed {
    pub why: Why,
    /// Microseconds from the freeze's answer until the thaw was asked for, and until it was answered.
    pub after_us: u64,
    pub lasted_us: u64,
    /// The agent's flag before the thaw.
    pub flag: Option<bool>,
    pub answer: Answer,
    /// The guest is thawed for certain.
    pub confirmed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Count(u64),
    Error(String),
    Unanswered(String),
}
