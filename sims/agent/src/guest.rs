//! The guest: what each command does to it. No I/O and no waiting; the clock is passed in.
//!
//! ```text
//!              freeze: takes hold                    thaw, lapse, reset, somebody in the guest
//!   not held -------------------------> held since t --------------------------------------> not held
//!
//!   flag "thawed" --freeze answered--> flag "frozen" --thaw (whatever it answers), restart on Windows, reset--> "thawed"
//! ```
//! Commands have a course first (how long, does it hang, does the agent die of it) and take effect after that.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::exec::Run;
use crate::scenario::{AgentVersion, Freeze, Hook, Os, Scenario, Thaw};
use crate::words::{HOLD_LAPSED, NO_PROVIDER, Refusal};

/// What works while the agent's flag says frozen.
const WHILE_FROZEN: &[&str] =
    &["guest-ping", "guest-info", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];
const FREEZING: &[&str] =
    &["guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];
const OTHERS: &[&str] = &[
    "guest-sync-delimited",
    "guest-sync",
    "guest-ping",
    "guest-info",
    "guest-get-osinfo",
    "guest-get-host-name",
    "guest-network-get-interfaces",
    "guest-get-fsinfo",
    "guest-exec",
    "guest-exec-status",
];

pub(crate) type Reply = Result<Value, Refusal>;

/// When something happens to a command: before it takes effect, or between that and the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// How a command goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Course {
    pub takes_ms: u64,
    pub hangs: Option<When>,
    pub dies: Option<When>,
}

pub(crate) struct Guest {
    pub scenario: Scenario,
    /// What the agent believes.
    says_frozen: bool,
    held_since_ms: Option<u64>,
    /// Frozen by the freeze of now: what a thaw counts.
    count: u64,
    was_frozen: bool,
    runs: BTreeMap<i64, Run>,
    last_pid: i64,
}

impl Guest {
    pub fn new(scenario: Scenario) -> Guest {
        Guest {
            scenario,
            says_frozen: false,
            held_since_ms: None,
            count: 0,
            was_frozen: false,
            runs: BTreeMap::new(),
            last_pid: 1000,
        }
    }

    pub fn says_frozen(&self) -> bool {
        self.says_frozen
    }

    /// Are writes held now?
    pub fn is_held(&self, now_ms: u64) -> bool {
        self.held_since_ms.is_some_and(|since| self.scenario.hold_ms_max.is_none_or(|max| now_ms - since < max))
    }

    /// A new agent after the old one ended: Linux finds the flag in a file, Windows begins anew and VSS lets go.
    pub fn agent_restarted(&mut self) {
        self.runs.clear();
        if self.scenario.is_windows() {
            self.says_frozen = false;
            self.held_since_ms = None;
        } else {
            self.says_frozen = self.held_since_ms.is_some();
        }
    }

    /// The machine was reset.
    pub fn reset(&mut self) {
        self.held_since_ms = None;
        self.says_frozen = false;
        self.runs.clear();
    }

    pub fn course(&self, command: &str) -> Course {
        if self.scenario.hangs_at.as_deref() == Some(command) {
            return Course { hangs: Some(When::Before), ..Course::default() };
        }
        if self.refusal(command).is_some() {
            return Course::default();
        }
        match command {
            "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => self.course_of_freeze(),
            "guest-fsfreeze-thaw" => self.course_of_thaw(),
            _ => Course::default(),
        }
    }

    fn course_of_freeze(&self) -> Course {
        let hook_ms = match self.scenario.hook {
            Hook::Runs { after_ms } => after_ms,
            Hook::Hangs => return Course { hangs: Some(When::Before), ..Course::default() },
            Hook::FailsAtFreeze(_) => return Course::default(),
            Hook::None | Hook::FailsAtThaw(_) => 0,
        };
        let course = Course { takes_ms: hook_ms, ..Course::default() };
        match self.scenario.freeze {
            Freeze::Holds { after_ms } | Freeze::Fails { after_ms, .. } => {
                Course { takes_ms: hook_ms.saturating_add(after_ms), ..course }
            }
            Freeze::Hangs => Course { hangs: Some(When::Before), ..course },
            Freeze::HoldsSilently => Course { hangs: Some(When::After), ..course },
            Freeze::DiesBefore => Course { dies: Some(When::Before), ..course },
            Freeze::DiesAfter => Course { dies: Some(When::After), ..course },
        }
    }

    fn course_of_thaw(&self) -> Course {
        match self.scenario.thaw {
            Thaw::ByTheRules { after_ms } if self.says_frozen => Course { takes_ms: after_ms, ..Course::default() },
            Thaw::Hangs => Course { hangs: Some(When::Before), ..Course::default() },
            Thaw::DiesBefore => Course { dies: Some(When::Before), ..Course::default() },
            _ => Course::default(),
        }
    }

    fn is_enabled(&self, command: &str) -> bool {
        let without_provider =
            self.scenario.is_windows() && !self.scenario.provider && self.scenario.agent == AgentVersion::V7_2;
        let off = self.scenario.disabled.iter().any(|name| name == command);
        !(off || without_provider && FREEZING.contains(&command))
    }

    /// Why a command is not even begun.
    fn refusal(&self, command: &str) -> Option<Refusal> {
        let agent = self.scenario.agent;
        if !FREEZING.contains(&command) && !OTHERS.contains(&command) {
            Some(Refusal::unknown(command))
        } else if !self.is_enabled(command) {
            Some(Refusal::switched_off(command, agent))
        } else if self.says_frozen && !WHILE_FROZEN.contains(&command) {
            Some(Refusal::while_frozen(command, agent))
        } else {
            None
        }
    }

    /// The effect of a command at the end of its course.
    pub fn apply(&mut self, command: &str, arguments: &Value, now_ms: u64) -> Reply {
        if let Some(refusal) = self.refusal(command) {
            return Err(refusal);
        }
        match command {
            "guest-sync" | "guest-sync-delimited" => Ok(arguments.get("id").cloned().unwrap_or(Value::Null)),
            "guest-info" => Ok(self.info()),
            "guest-get-osinfo" => self.osinfo(),
            "guest-get-host-name" => Ok(json!({ "host-name": "stand-in" })),
            "guest-network-get-interfaces" | "guest-get-fsinfo" => Ok(json!([])),
            "guest-exec" => self.exec(arguments),
            "guest-exec-status" => self.exec_status(arguments),
            "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => self.freeze(now_ms),
            "guest-fsfreeze-status" => self.status(),
            "guest-fsfreeze-thaw" => self.thaw(now_ms),
            _ => Ok(json!({})),
        }
    }

    fn info(&self) -> Value {
        let commands = FREEZING.iter().chain(OTHERS).map(|name| {
            let enabled = self.is_enabled(name) && (!self.says_frozen || WHILE_FROZEN.contains(name));
            json!({ "name": name, "enabled": enabled, "success-response": true })
        });
        let version = match self.scenario.agent {
            AgentVersion::V7_2 => "7.2.22",
            AgentVersion::V10_0 => "10.0.3",
        };
        json!({ "version": version, "supported_commands": commands.collect::<Vec<_>>() })
    }

    fn osinfo(&self) -> Reply {
        match self.scenario.os {
            Os::Windows(edition) => Ok(edition.osinfo(self.scenario.agent)),
            Os::Linux => Ok(json!({
                "id": "debian", "name": "Debian GNU/Linux", "version": "12 (bookworm)", "version-id": "12",
                "pretty-name": "Debian GNU/Linux 12 (bookworm)", "kernel-release": "6.1.0-28-amd64",
                "kernel-version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)", "machine": "x86_64",
            })),
            Os::Unknown => Ok(json!({})),
        }
    }

    fn has_no_provider(&self) -> bool {
        self.scenario.is_windows() && !self.scenario.provider
    }

    fn status(&self) -> Reply {
        if self.has_no_provider() {
            return Err(Refusal::generic(NO_PROVIDER));
        }
        Ok(if self.says_frozen { json!("frozen") } else { json!("thawed") })
    }

    fn freeze(&mut self, now_ms: u64) -> Reply {
        if self.has_no_provider() {
            return Err(Refusal::generic(NO_PROVIDER));
        }
        if let Hook::FailsAtFreeze(status) = self.scenario.hook {
            return Err(Refusal::generic(format!("fsfreeze hook has failed with status {status}")));
        }
        if let Freeze::Fails { words, .. } = &self.scenario.freeze {
            return Err(if self.scenario.is_windows() {
                Refusal::vss(words, self.scenario.agent)
            } else {
                Refusal::generic(words)
            });
        }
        self.was_frozen = true;
        self.count = self.scenario.volumes;
        if self.count > 0 {
            self.held_since_ms = Some(now_ms);
        }
        // Where nothing could be frozen the agent on Linux takes its flag back; the one on Windows leaves it.
        self.says_frozen = self.count > 0 || self.scenario.is_windows();
        Ok(json!(self.count))
    }

    /// The flag is cleared whatever the answer is.
    fn thaw(&mut self, now_ms: u64) -> Reply {
        if self.has_no_provider() {
            return Err(Refusal::generic(NO_PROVIDER));
        }
        let was_held = self.is_held(now_ms);
        let was_frozen = self.held_since_ms.take().is_some();
        self.says_frozen = false;
        let agent = self.scenario.agent;
        match &self.scenario.thaw {
            Thaw::Fails { words } if self.scenario.is_windows() => return Err(Refusal::vss(words, agent)),
            Thaw::Fails { words } => return Err(Refusal::generic(words)),
            Thaw::Counts(count) if was_frozen => return Ok(json!(count)),
            _ => {}
        }
        if let Hook::FailsAtThaw(status) = self.scenario.hook {
            return Err(Refusal::generic(format!("fsfreeze hook has failed with status {status}")));
        }
        match (was_frozen, was_held) {
            (false, _) => Ok(json!(0)),
            (true, true) => Ok(json!(self.count)),
            // Windows tells of the lapse in its own words, Linux by finding nothing to thaw.
            (true, false) if self.scenario.is_windows() => Err(Refusal::vss(HOLD_LAPSED, agent)),
            (true, false) => Ok(json!(0)),
        }
    }

    fn exec(&mut self, arguments: &Value) -> Reply {
        let run = Run::start(&self.scenario, arguments, self.was_frozen)?;
        self.last_pid += 1;
        self.runs.insert(self.last_pid, run);
        Ok(json!({ "pid": self.last_pid }))
    }

    fn exec_status(&mut self, arguments: &Value) -> Reply {
        let pid = arguments.get("pid").and_then(Value::as_i64).unwrap_or_default();
        let Some(run) = self.runs.get_mut(&pid) else {
            return Err(Refusal::generic("Invalid parameter 'pid'"));
        };
        // Who has been told of the end cannot ask again.
        let has_ended = run.has_ended();
        let status = run.status();
        if has_ended {
            self.runs.remove(&pid);
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Course, Guest, When};
    use crate::scenario::{AgentVersion, Freeze, Hook, Scenario, Thaw};
    use crate::words::{HOLD_LAPSED, PREPARE_FAILED};
    use crate::{Edition, NO_PROVIDER};

    fn say(guest: &mut Guest, command: &str, now_ms: u64) -> String {
        match guest.apply(&format!("guest-{command}"), &Value::Null, now_ms) {
            Ok(value) => value.to_string(),
            Err(refusal) => format!("{}: {}", refusal.class, refusal.words),
        }
    }

    #[test]
    fn windows_lets_go_after_ten_seconds_and_tells_at_the_thaw() {
        let mut guest = Guest::new(Scenario::windows(Edition::Server2019));
        assert_eq!(say(&mut guest, "fsfreeze-freeze", 1_000), "2");
        assert!(guest.is_held(10_999) && !guest.is_held(11_000));
        // The flag does not know.
        assert_eq!(say(&mut guest, "fsfreeze-status", 60_000), "\"frozen\"");
        let lapsed = format!("GenericError: {HOLD_LAPSED}: Windows error 0x80042314");
        assert_eq!(say(&mut guest, "fsfreeze-thaw", 60_000), lapsed);
        assert_eq!(say(&mut guest, "fsfreeze-status", 60_000), "\"thawed\"");
        assert_eq!(say(&mut guest, "fsfreeze-thaw", 60_000), "0");
        guest.scenario.agent = AgentVersion::V7_2;
        say(&mut guest, "fsfreeze-freeze", 0);
        assert_eq!(say(&mut guest, "fsfreeze-thaw", 10_000), format!("GenericError: {HOLD_LAPSED}: "));
    }

    #[test]
    fn linux_holds_until_it_is_thawed_and_counts() {
        let mut guest = Guest::new(Scenario::linux());
        assert_eq!(say(&mut guest, "fsfreeze-freeze", 0), "3");
        assert!(guest.is_held(u64::MAX));
        let refused = "CommandNotFound: Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state";
        assert_eq!(say(&mut guest, "fsfreeze-freeze", 1), refused);
        assert_eq!(say(&mut guest, "fsfreeze-thaw", 9_000_000), "3");
        assert_eq!(say(&mut guest, "fsfreeze-thaw", 9_000_000), "0");
        guest.scenario.hold_ms_max = Some(5);
        say(&mut guest, "fsfreeze-freeze", 0);
        assert_eq!(say(&mut guest, "fsfreeze-thaw", 5), "0", "somebody in the guest has thawed");
    }

    #[test]
    fn without_a_provider_the_versions_differ() {
        let mut guest = Guest::new(Scenario { provider: false, ..Scenario::windows(Edition::Server2016) });
        assert_eq!(say(&mut guest, "fsfreeze-freeze", 0), format!("GenericError: {NO_PROVIDER}"));
        guest.scenario.agent = AgentVersion::V7_2;
        let off = "CommandNotFound: Command guest-fsfreeze-freeze has been disabled";
        assert_eq!(say(&mut guest, "fsfreeze-freeze", 0), off);
        let info = guest.info();
        let freeze = info["supported_commands"].as_array().unwrap().iter();
        assert_eq!(freeze.filter(|command| command["enabled"] == json!(false)).count(), 4);
        assert_eq!(say(&mut guest, "fly", 0), "CommandNotFound: The command guest-fly has not been found");
    }

    #[test]
    fn courses_follow_from_the_scenario() {
        let check = |scenario: Scenario, expected: Course| {
            assert_eq!(Guest::new(scenario).course("guest-fsfreeze-freeze"), expected);
        };
        let at_once = Course::default();
        let slow = Scenario::linux().hook(Hook::Runs { after_ms: 8_000 });
        check(slow, Course { takes_ms: 8_060, ..at_once });
        check(Scenario::linux().hook(Hook::Hangs), Course { hangs: Some(When::Before), ..at_once });
        let silent = Scenario::linux().freeze(Freeze::HoldsSilently);
        check(silent, Course { hangs: Some(When::After), ..at_once });
        check(Scenario::linux().freeze(Freeze::DiesAfter), Course { dies: Some(When::After), ..at_once });
        check(Scenario::default().freeze_fails(PREPARE_FAILED), at_once);
        let guest = Guest::new(Scenario::linux().thaw(Thaw::Hangs));
        assert_eq!(guest.course("guest-fsfreeze-thaw").hangs, Some(When::Before));
    }

    #[test]
    fn a_new_agent_finds_the_freeze_on_linux_alone() {
        for (scenario, flag) in [(Scenario::linux(), true), (Scenario::default(), false)] {
            let mut guest = Guest::new(scenario);
            say(&mut guest, "fsfreeze-freeze", 0);
            guest.agent_restarted();
            assert_eq!((guest.says_frozen(), guest.is_held(1)), (flag, flag));
            guest.reset();
            assert!(!guest.says_frozen() && !guest.is_held(1));
        }
    }
}
