//! What qemu-ga says, word by word; tests and classifications lean on it.

use serde_json::{Value, json};

use crate::scenario::AgentVersion;

/// VSS refused while it prepared (writers that do not answer, no space for shadow copies).
pub const PREPARE_FAILED: &str = "failed to prepare for backup";
/// A volume that VSS cannot take part in, such as a dynamic disk.
pub const ADD_FAILED: &str = "failed to add E:\\ to snapshot set";
/// The provider did not report within sixty seconds.
pub const NO_FROZEN_EVENT: &str = "timeout when try to receive Frozen event from VSS provider";
/// VSS gave up before the provider was asked.
pub const EXITED_EARLY: &str = "DoSnapshotSet exited without Frozen event";
/// Thaw after the hold lapsed.
pub const HOLD_LAPSED: &str = "couldn't hold writes: fsfreeze is limited up to 10 seconds";
/// Thaw after the provider failed in the middle.
pub const PROVIDER_ERROR: &str = "unexpected error in VSS provider";
/// Thaw, any other failure of VSS.
pub const SNAPSHOT_SET_FAILED: &str = "failed to do snapshot set";
/// 10.0 without a registered provider.
pub const NO_PROVIDER: &str = "fsfreeze not possible as VSS failed to initialize";
/// Linux: SELinux keeps the agent from a mount point.
pub const SELINUX: &str = "failed to open /var/lib/db: Permission denied";

/// An error reply's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub class: &'static str,
    pub words: String,
}

impl Refusal {
    pub fn generic(words: impl Into<String>) -> Refusal {
        Refusal { class: "GenericError", words: words.into() }
    }

    /// The class means three things: unknown, switched off, not while frozen. Only the words tell.
    fn not_found(words: String) -> Refusal {
        Refusal { class: "CommandNotFound", words }
    }

    pub fn unknown(command: &str) -> Refusal {
        Refusal::not_found(format!("The command {command} has not been found"))
    }

    pub fn switched_off(command: &str, agent: AgentVersion) -> Refusal {
        let why = match agent {
            AgentVersion::V7_2 => "",
            AgentVersion::V10_0 => ": the command is not allowed",
        };
        Refusal::not_found(format!("Command {command} has been disabled{why}"))
    }

    pub fn while_frozen(command: &str, agent: AgentVersion) -> Refusal {
        let why = match agent {
            AgentVersion::V7_2 => "the agent is in frozen state",
            AgentVersion::V10_0 => "the command is not allowed",
        };
        Refusal::not_found(format!("Command {command} has been disabled: {why}"))
    }

    /// A failure of VSS: 7.2 appends the system's message, which is empty for most of VSS's codes; 10.0 the code.
    pub fn vss(words: &str, agent: AgentVersion) -> Refusal {
        let code = match words {
            HOLD_LAPSED => "0x80042314",
            PROVIDER_ERROR => "0x8004230f",
            _ => "0x80004005",
        };
        Refusal::generic(match agent {
            AgentVersion::V7_2 => format!("{words}: "),
            AgentVersion::V10_0 => format!("{words}: Windows error {code}"),
        })
    }

    pub fn to_json(&self) -> Value {
        json!({ "class": self.class, "desc": self.words })
    }
}
