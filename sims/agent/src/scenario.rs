//! What a guest is and how it behaves, as plain data: made in tests, or read from JSON by the program.

use serde::{Deserialize, Serialize};

use crate::edition::Edition;

/// How long Windows holds writes, in milliseconds of the guest's clock.
pub const VSS_HOLD_MS: u64 = 10_000;

/// Everything about a guest that a test can choose. Times are milliseconds of the guest's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    pub os: Os,
    pub agent: AgentVersion,
    /// Volumes (Windows) or file systems (Linux) that a freeze takes hold of.
    pub volumes: u64,
    /// Windows: is the VSS provider registered?
    pub provider: bool,
    pub hook: Hook,
    pub freeze: Freeze,
    pub thaw: Thaw,
    /// A hold ends by itself after this time. Windows: ten seconds; Linux: never, unless somebody in the guest thaws.
    pub hold_ms_max: Option<u64>,
    pub port: Port,
    /// Commands that the guest's administrator switched off.
    pub disabled: Vec<String>,
    /// A command at which the agent stops, before it does anything, until [`crate::Agent::release`].
    pub hangs_at: Option<String>,
    pub writers: Vec<Writer>,
    pub language: Language,
    /// `VssOption` in the registry; none: not there.
    pub vss_option: Option<u32>,
    /// Is an agent running when the guest starts?
    pub is_alive: bool,
    /// Seconds of the guest in one real second; 0: its clock moves only by [`crate::Agent::advance`].
    pub clock_rate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Os {
    Windows(Edition),
    /// Debian 12.
    Linux,
    /// `guest-get-osinfo` is not answered with anything useful.
    Unknown,
}

/// Whose words the agent uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentVersion {
    #[serde(rename = "7.2")]
    V7_2,
    #[serde(rename = "10.0")]
    V10_0,
}

/// Linux: what `fsfreeze-hook` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// The agent runs without `-F`.
    None,
    /// Runs and succeeds, after this time.
    Runs { after_ms: u64 },
    /// Ends with this status when called with `freeze`.
    FailsAtFreeze(i32),
    /// Ends with this status when called with `thaw`; the file systems are thawed all the same.
    FailsAtThaw(i32),
    /// Never ends; the agent answers nothing more until [`crate::Agent::release`].
    Hangs,
}

/// What becomes of `guest-fsfreeze-freeze` (after the hook).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// Takes hold after this time and says so.
    Holds { after_ms: u64 },
    /// Fails with these words after this time; nothing is held.
    Fails { words: String, after_ms: u64 },
    /// Holds nothing and answers nothing until [`crate::Agent::release`]; then it takes hold and answers.
    Hangs,
    /// Takes hold and does not say so until [`crate::Agent::release`].
    HoldsSilently,
    /// The agent ends when it reads the command.
    DiesBefore,
    /// It takes hold and ends before the reply.
    DiesAfter,
}

/// What becomes of `guest-fsfreeze-thaw`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thaw {
    /// By the rules of the system: the count, or the error of a hold that lapsed.
    ByTheRules { after_ms: u64 },
    /// The hold ends, the answer is an error with these words.
    Fails { words: String },
    /// The hold ends, the answer is this count.
    Counts(u64),
    /// Nothing happens until [`crate::Agent::release`].
    Hangs,
    /// The agent ends when it reads the command; the hold stays (Linux).
    DiesBefore,
}

/// What the channel adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Port {
    /// The parser complains about the byte 0xFF of a sync, as qemu-ga does.
    pub complains: bool,
    /// Lines that arrive before the reply to each sync.
    pub junk: Vec<String>,
    /// Replies carry the request's `id`; very old agents do not do that.
    pub echoes_id: bool,
}

impl Default for Port {
    fn default() -> Port {
        Port { complains: true, junk: Vec::new(), echoes_id: true }
    }
}

/// A VSS writer, as `vssadmin list writers` shows it after the last freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    pub name: String,
    pub id: String,
    /// What it says of itself once a freeze has been: 1 is stable, 6 and above are failures (9: at freeze).
    pub state: u8,
    /// Shown as "last error"; empty: none.
    #[serde(default)]
    pub error: String,
}

/// In which language Windows prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    English,
    German,
    /// In code page 932, which is not UTF-8.
    Japanese,
}

impl Default for Scenario {
    fn default() -> Scenario {
        Scenario::windows(Edition::Server2022)
    }
}

impl Scenario {
    /// A healthy Windows guest with two volumes and a current agent.
    pub fn windows(edition: Edition) -> Scenario {
        Scenario {
            os: Os::Windows(edition),
            agent: AgentVersion::V10_0,
            volumes: 2,
            provider: true,
            hook: Hook::None,
            freeze: Freeze::Holds { after_ms: 300 },
            thaw: Thaw::ByTheRules { after_ms: 200 },
            hold_ms_max: Some(VSS_HOLD_MS),
            port: Port::default(),
            disabled: Vec::new(),
            hangs_at: None,
            writers: Writer::usual(),
            language: Language::English,
            vss_option: Some(1),
            is_alive: true,
            clock_rate: 1.0,
        }
    }

    /// A healthy Debian 12 with three file systems and no hooks.
    pub fn linux() -> Scenario {
        Scenario {
            os: Os::Linux,
            agent: AgentVersion::V7_2,
            volumes: 3,
            freeze: Freeze::Holds { after_ms: 60 },
            thaw: Thaw::ByTheRules { after_ms: 20 },
            hold_ms_max: None,
            writers: Vec::new(),
            vss_option: None,
            ..Scenario::default()
        }
    }

    pub fn agent(mut self, agent: AgentVersion) -> Scenario {
        self.agent = agent;
        self
    }

    pub fn freeze(mut self, freeze: Freeze) -> Scenario {
        self.freeze = freeze;
        self
    }

    /// A freeze that fails with these words at once.
    pub fn freeze_fails(self, words: &str) -> Scenario {
        self.freeze(Freeze::Fails { words: words.to_owned(), after_ms: 0 })
    }

    pub fn thaw(mut self, thaw: Thaw) -> Scenario {
        self.thaw = thaw;
        self
    }

    pub fn hook(mut self, hook: Hook) -> Scenario {
        self.hook = hook;
        self
    }

    /// The hold ends by itself after this time, in milliseconds of the guest; 0: before anybody can use it.
    pub fn lapses_after(mut self, ms: u64) -> Scenario {
        self.hold_ms_max = Some(ms);
        self
    }

    pub fn disable(mut self, command: &str) -> Scenario {
        self.disabled.push(command.to_owned());
        self
    }

    pub(crate) fn is_windows(&self) -> bool {
        matches!(self.os, Os::Windows(_))
    }
}

impl Writer {
    /// A writer without complaints.
    pub fn stable(name: &str, id: &str) -> Writer {
        Writer { name: name.into(), id: id.into(), state: 1, error: String::new() }
    }

    /// What a database server shows.
    fn usual() -> Vec<Writer> {
        vec![
            Writer::stable("System Writer", "{e8132975-6f93-4464-a53e-1050253ae220}"),
            Writer::stable("Registry Writer", "{afbab4a2-367d-4d15-a586-71dbb18f8485}"),
            Writer::stable("SqlServerWriter", "{a65faa63-5ea8-4ebc-9dbd-a0c4db26912a}"),
        ]
    }
}
