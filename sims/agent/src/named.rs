//! Scenarios by name: one for each thing that is known to happen to a freeze.

use crate::edition::Edition;
use crate::scenario::{AgentVersion, Freeze, Hook, Language, Os, Port, Scenario, Thaw, Writer};
use crate::words::{
    ADD_FAILED, EXITED_EARLY, NO_FROZEN_EVENT, PREPARE_FAILED, PROVIDER_ERROR, SELINUX, SNAPSHOT_SET_FAILED,
};

/// A scenario with what it shows.
#[derive(Debug, Clone)]
pub struct Named {
    pub name: &'static str,
    pub what: &'static str,
    pub scenario: Scenario,
}

fn one(name: &'static str, what: &'static str, scenario: Scenario) -> Named {
    Named { name, what, scenario }
}

fn windows() -> Scenario {
    Scenario::windows(Edition::Server2022)
}

/// All of them, Windows first.
pub fn named() -> Vec<Named> {
    let mut all = windows_that_freeze();
    all.extend(windows_in_trouble());
    all.extend(linux());
    all.extend(channel());
    all
}

fn windows_that_freeze() -> Vec<Named> {
    let old = |edition| Scenario::windows(edition).agent(AgentVersion::V7_2);
    vec![
        one("windows-2008r2", "Server 2008 R2, agent 7.2", old(Edition::Server2008R2)),
        one("windows-2012", "Server 2012, agent 7.2", old(Edition::Server2012)),
        one("windows-2012r2", "Server 2012 R2, agent 7.2", old(Edition::Server2012R2)),
        one("windows-2016", "Server 2016", Scenario::windows(Edition::Server2016)),
        one("windows-2019", "Server 2019", Scenario::windows(Edition::Server2019)),
        one("windows-2022", "Server 2022", windows()),
        one("windows-2025", "Server 2025", Scenario::windows(Edition::Server2025)),
        one("windows-2025-old-agent", "Server 2025, taken for 2022 by agent 7.2", old(Edition::Server2025)),
        one("windows-7", "Windows 7, whose version agent 7.2 garbles", old(Edition::Windows7)),
        one("windows-10", "Windows 10", Scenario::windows(Edition::Windows10)),
        one("windows-11", "Windows 11", Scenario::windows(Edition::Windows11)),
        one("windows-copy-option", "VssOption 5: a copy backup", Scenario { vss_option: Some(5), ..windows() }),
        one(
            "windows-writer-failed",
            "freeze and thaw succeed, but one writer had failed at the freeze",
            Scenario { writers: with_a_failed_writer(), ..windows() },
        ),
        one(
            "windows-writer-failed-german",
            "the same, on a German system",
            Scenario { writers: with_a_failed_writer(), language: Language::German, ..windows() },
        ),
        one(
            "windows-writer-failed-japanese",
            "the same, on a Japanese system whose console is not UTF-8",
            Scenario { writers: with_a_failed_writer(), language: Language::Japanese, ..windows() },
        ),
        one("windows-thaw-count", "thaw counts another number of volumes, which means nothing", {
            windows().thaw(Thaw::Counts(1))
        }),
    ]
}

fn with_a_failed_writer() -> Vec<Writer> {
    let mut writers = windows().writers;
    if let Some(sql) = writers.last_mut() {
        sql.state = 9;
        sql.error = "0x800423f4".into();
    }
    writers
}

fn windows_in_trouble() -> Vec<Named> {
    let no_provider = Scenario { provider: false, ..windows() };
    vec![
        one("windows-no-provider", "the VSS provider is not registered (10.0)", no_provider.clone()),
        one(
            "windows-no-provider-old-agent",
            "the VSS provider is not registered (7.2)",
            no_provider.agent(AgentVersion::V7_2),
        ),
        one("windows-prepare-failed", "VSS cannot prepare", windows().freeze_fails(PREPARE_FAILED)),
        one("windows-volume-refused", "a volume cannot take part", windows().freeze_fails(ADD_FAILED)),
        one("windows-no-frozen-event", "the provider does not report in sixty seconds", {
            let fails = Freeze::Fails { words: NO_FROZEN_EVENT.into(), after_ms: 60_000 };
            Scenario { clock_rate: 60.0, ..windows().freeze(fails) }
        }),
        one("windows-exited-early", "VSS gives up before the provider is asked", windows().freeze_fails(EXITED_EARLY)),
        one("windows-no-volumes", "no fixed drive: nothing is frozen", Scenario { volumes: 0, ..windows() }),
        one("windows-slow", "the freeze takes a minute and then holds", {
            // The hold is stretched with the clock.
            let slow = windows().freeze(Freeze::Holds { after_ms: 60_000 }).lapses_after(600_000);
            Scenario { clock_rate: 60.0, ..slow }
        }),
        one("windows-lapsed", "the hold lapses before the thaw", windows().lapses_after(0)),
        one("windows-lapsed-old-agent", "the same with agent 7.2, whose words end in a colon", {
            windows().agent(AgentVersion::V7_2).lapses_after(0)
        }),
        one("windows-provider-error", "the provider fails while frozen; the thaw tells", {
            windows().thaw(Thaw::Fails { words: PROVIDER_ERROR.into() })
        }),
        one("windows-set-failed", "VSS fails otherwise; the thaw tells", {
            windows().thaw(Thaw::Fails { words: SNAPSHOT_SET_FAILED.into() })
        }),
        one("windows-hangs", "the freeze is never answered", windows().freeze(Freeze::Hangs)),
        one("windows-hangs-frozen", "the freeze takes hold and is never answered", {
            windows().freeze(Freeze::HoldsSilently)
        }),
        one("windows-thaw-hangs", "the thaw is never answered", windows().thaw(Thaw::Hangs)),
        one("windows-dies", "the agent ends before it freezes", windows().freeze(Freeze::DiesBefore)),
        one("windows-dies-frozen", "the agent ends after it has frozen", windows().freeze(Freeze::DiesAfter)),
    ]
}

fn linux() -> Vec<Named> {
    vec![
        one("linux", "Debian 12 without hooks", Scenario::linux()),
        one("linux-hook", "a hook that succeeds in half a second", {
            Scenario::linux().hook(Hook::Runs { after_ms: 500 })
        }),
        one("linux-hook-failed", "a hook that fails: no freeze", Scenario::linux().hook(Hook::FailsAtFreeze(1))),
        one("linux-thaw-hook-failed", "a hook that fails at the thaw", Scenario::linux().hook(Hook::FailsAtThaw(2))),
        one("linux-hook-hangs", "a hook that never ends", Scenario::linux().hook(Hook::Hangs)),
        one("linux-thawed-inside", "somebody in the guest thaws before the thaw", Scenario::linux().lapses_after(0)),
        one("linux-one-thawed-inside", "one of three file systems was thawed in the guest", {
            Scenario::linux().thaw(Thaw::Counts(2))
        }),
        one("linux-selinux", "the agent may not open a mount point", Scenario::linux().freeze_fails(SELINUX)),
        one("linux-nothing", "no file system can be frozen", Scenario { volumes: 0, ..Scenario::linux() }),
        one("linux-switched-off", "the administrator switched freezing off", {
            Scenario::linux().disable("guest-fsfreeze-freeze")
        }),
        one("linux-no-exec", "only guest-exec is switched off, as some distributions do", {
            Scenario::linux().disable("guest-exec")
        }),
        one("linux-hangs", "the freeze is never answered", Scenario::linux().freeze(Freeze::Hangs)),
        one("linux-hangs-frozen", "the freeze takes hold and is never answered", {
            Scenario::linux().freeze(Freeze::HoldsSilently)
        }),
        one("linux-thaw-hangs", "the thaw is never answered", Scenario::linux().thaw(Thaw::Hangs)),
        one("linux-dies-frozen", "the agent ends after it has frozen", Scenario::linux().freeze(Freeze::DiesAfter)),
        one("unknown-system", "the agent does not tell its system", Scenario { os: Os::Unknown, ..Scenario::linux() }),
    ]
}

fn channel() -> Vec<Named> {
    let junk = ["{\"return\": 1}", "{\"return\": {}, \"id\": 7}", "}}}{ [1,", "\u{0}\u{1}boot message"];
    let port = Port { junk: junk.map(str::to_owned).to_vec(), ..Port::default() };
    vec![
        one("no-agent", "nobody answers", Scenario { is_alive: false, ..Scenario::linux() }),
        one("junk", "late replies and junk before each sync", Scenario { port, ..Scenario::linux() }),
        one(
            "no-id",
            "an agent so old that it does not echo a request's id",
            Scenario { port: Port { echoes_id: false, ..Port::default() }, ..Scenario::linux() },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::named;
    use crate::Scenario;

    #[test]
    fn names_are_unique_and_scenarios_survive_json() {
        let names: BTreeSet<&str> = named().iter().map(|named| named.name).collect();
        assert_eq!(names.len(), named().len());
        for named in named() {
            let text = serde_json::to_string(&named.scenario).unwrap();
            assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), named.scenario, "{}", named.name);
        }
        let error = serde_json::from_str::<Scenario>(r#"{"volume": 3}"#).unwrap_err();
        assert!(error.to_string().contains("volumes"), "{error}");
    }
}
