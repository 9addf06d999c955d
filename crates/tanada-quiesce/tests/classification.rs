//! Everything that is known to happen to a freeze, and what a snapshot is worth after it: one line for each scenario of the
//! stand-in, tried out as `tanada doctor quiesce` does. Whatever happened, the guest is thawed in the end.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sim_agent::{Agent, Scenario, Thaw, named};
use tanada_certificate::check::{Check, Outcome};
use tanada_qemu::agent::GuestAgent;
use tanada_quiesce::guard::client::{Ledger, Limits};
use tanada_quiesce::guard::thawing;
use tanada_quiesce::trial::{self, Subject};
use tanada_quiesce::verdict::Os;
use tanada_quiesce::{Cause, Certificate, Held, Level, Settings};

/// Far more than anything takes here.
const AMPLE: Duration = Duration::from_secs(60);
/// Trials under way at a time; they wait most of it.
const AT_ONCE: usize = 16;

/// Thaws owed and not yet paid.
#[derive(Default)]
struct Debts(AtomicU32);

impl Ledger for Debts {
    fn owe(&self) -> Result<(), String> {
        self.0.store(1, Ordering::SeqCst);
        Ok(())
    }

    fn paid(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// What never answers is given up soon; what answers has ample time.
fn limits(_: Os, _: &Settings) -> Limits {
    Limits { freeze: Duration::from_secs(3), window: Duration::from_secs(8), thaw: Duration::from_secs(3) }
}

async fn tried(scenario: Scenario, settings: Settings) -> (Check, Certificate) {
    tried_for(Duration::ZERO, scenario, settings).await
}

async fn tried_for(hold: Duration, scenario: Scenario, settings: Settings) -> (Check, Certificate) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let guest = Agent::start(&socket, scenario).unwrap();
    let agent = GuestAgent::new(&socket);
    let debts = Arc::new(Debts::default());
    let ledger: Arc<dyn Ledger> = debts.clone();
    let subject = Subject {
        agent: &agent,
        agent_present: true,
        power_state: "Running",
        settings: &settings,
        program: Path::new(env!("CARGO_BIN_EXE_quiesce-rig")),
        expected: Duration::from_millis(5),
        limits,
        hold,
    };
    let check = trial::run(&subject, &ledger).await;
    let ended = tokio::task::spawn_blocking(move || {
        // What hung goes on and what died comes back: the thaw that is still owed arrives.
        guest.change(|scenario| {
            scenario.thaw = Thaw::ByTheRules { after_ms: 0 };
            scenario.hangs_at = None;
        });
        if !guest.facts().is_alive {
            guest.restart();
        }
        guest.release();
        let thawed = guest.wait_for(AMPLE, |facts| !facts.is_held && !facts.says_frozen && !facts.is_busy);
        (thawed, guest)
    });
    let (thawed, guest) = ended.await.unwrap();
    let told = || format!("{:?}, {} commands\n{check}", guest.facts(), guest.commands().len());
    assert!(thawed, "the guest stays frozen: {}", told());
    let began = std::time::Instant::now();
    while debts.0.load(Ordering::SeqCst) != 0 {
        assert!(began.elapsed() < AMPLE, "the thaw is never taken for done: {}", told());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let certificate = Certificate::from_map(&check.certificate).unwrap();
    (check, certificate)
}

const fn declared() -> Settings {
    Settings { policy: tanada_quiesce::Policy::Prefer, freeze_limit: None, hooks_declared: true }
}

/// Scenario, level, whether the freeze held (none: there was none), why not more.
const TABLE: &[(&str, Level, Option<Held>, Option<Cause>)] = {
    use Cause::{
        AgentSilent, CountMismatch, FreezeRefused, FreezeTimeout, FreezeUnsupported, HoldLapsed, HookFailed, NoProof,
        NothingFrozen, ThawFailed, ThawUnconfirmed, VssFailed, VssMissing, WriterFailed,
    };
    use Level::{Application, Crash, FileSystem};
    const YES: Option<Held> = Some(Held::Yes);
    const NO: Option<Held> = Some(Held::No);
    const UNKNOWN: Option<Held> = Some(Held::Unknown);
    &[
        ("windows-2008r2", Application, YES, None),
        ("windows-2012", Application, YES, None),
        ("windows-2012r2", Application, YES, None),
        ("windows-2016", Application, YES, None),
        ("windows-2019", Application, YES, None),
        ("windows-2022", Application, YES, None),
        ("windows-2025", Application, YES, None),
        ("windows-2025-old-agent", Application, YES, None),
        ("windows-7", Application, YES, None),
        ("windows-10", Application, YES, None),
        ("windows-11", Application, YES, None),
        ("windows-copy-option", Application, YES, None),
        ("windows-writer-failed", FileSystem, YES, Some(WriterFailed)),
        ("windows-writer-failed-german", FileSystem, YES, Some(WriterFailed)),
        ("windows-writer-failed-japanese", FileSystem, YES, Some(WriterFailed)),
        ("windows-thaw-count", Application, YES, None),
        ("windows-no-provider", Crash, None, Some(VssMissing)),
        ("windows-no-provider-old-agent", Crash, None, Some(VssMissing)),
        ("windows-prepare-failed", Crash, None, Some(VssFailed)),
        ("windows-volume-refused", Crash, None, Some(VssFailed)),
        ("windows-no-frozen-event", Crash, None, Some(VssFailed)),
        ("windows-exited-early", Crash, None, Some(VssFailed)),
        ("windows-no-volumes", Crash, None, Some(NothingFrozen)),
        ("windows-slow", Application, YES, None),
        ("windows-lapsed", Crash, NO, Some(HoldLapsed)),
        ("windows-lapsed-old-agent", Crash, NO, Some(HoldLapsed)),
        ("windows-provider-error", Crash, UNKNOWN, Some(ThawFailed)),
        ("windows-set-failed", Crash, UNKNOWN, Some(ThawFailed)),
        ("windows-hangs", Crash, None, Some(FreezeTimeout)),
        ("windows-hangs-frozen", Crash, None, Some(FreezeTimeout)),
        ("windows-thaw-hangs", Crash, UNKNOWN, Some(ThawUnconfirmed)),
        ("windows-dies", Crash, None, Some(FreezeTimeout)),
        ("windows-dies-frozen", Crash, None, Some(FreezeTimeout)),
        ("linux", FileSystem, YES, None),
        ("linux-hook", FileSystem, YES, None),
        ("linux-hook-failed", Crash, None, Some(HookFailed)),
        ("linux-thaw-hook-failed", Crash, UNKNOWN, Some(ThawFailed)),
        ("linux-hook-hangs", Crash, None, Some(FreezeTimeout)),
        ("linux-thawed-inside", Crash, NO, Some(CountMismatch)),
        ("linux-one-thawed-inside", Crash, NO, Some(CountMismatch)),
        ("linux-selinux", Crash, None, Some(FreezeRefused)),
        ("linux-nothing", Crash, None, Some(NothingFrozen)),
        ("linux-switched-off", Crash, None, Some(FreezeUnsupported)),
        ("linux-no-exec", FileSystem, YES, None),
        ("linux-hangs", Crash, None, Some(FreezeTimeout)),
        ("linux-hangs-frozen", Crash, None, Some(FreezeTimeout)),
        ("linux-thaw-hangs", Crash, UNKNOWN, Some(ThawUnconfirmed)),
        ("linux-dies-frozen", Crash, None, Some(FreezeTimeout)),
        ("unknown-system", Crash, UNKNOWN, Some(NoProof)),
        ("no-agent", Crash, None, Some(AgentSilent)),
        ("junk", FileSystem, YES, None),
        ("no-id", Crash, None, Some(AgentSilent)),
    ]
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_is_worth_what_it_is() {
    let named_here: BTreeSet<&str> = TABLE.iter().map(|(name, ..)| *name).collect();
    assert_eq!(named().iter().map(|one| one.name).collect::<BTreeSet<_>>(), named_here, "the table is complete");
    let turn = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut trials = tokio::task::JoinSet::new();
    for (name, level, held, cause) in TABLE {
        let scenario = named().into_iter().find(|one| one.name == *name).unwrap().scenario;
        let turn = Arc::clone(&turn);
        trials.spawn(async move {
            let _turn = turn.acquire().await.unwrap();
            let (check, certificate) = tried(scenario, Settings::default()).await;
            let found_held = certificate.freeze.as_ref().map(|freeze| freeze.held);
            let found_cause = certificate.downgrade.as_ref().and_then(|downgrade| downgrade.cause);
            let found = (certificate.level, found_held, found_cause);
            let differs = found != (*level, *held, *cause);
            // Whoever gets no more than a crash-consistent snapshot is told what to do.
            let unadvised = *level == Level::Crash && check.advice.is_empty();
            (differs || unadvised).then(|| format!("{name}: {found:?}\n{check}"))
        });
    }
    let mut wrong: Vec<String> = trials.join_all().await.into_iter().flatten().collect();
    wrong.sort();
    assert!(wrong.is_empty(), "{} of {} lines:\n{}", wrong.len(), TABLE.len(), wrong.join("\n"));
}

/// What is asked of a Linux guest around a freeze, and what a snapshot is worth whose guest stops there. The freeze and the
/// thaw themselves are in the table above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_at_a_command_is_let_go() {
    let mut trials = tokio::task::JoinSet::new();
    for (command, cause) in [
        ("guest-sync-delimited", Cause::AgentSilent),
        ("guest-ping", Cause::AgentSilent),
        ("guest-fsfreeze-status", Cause::AgentSilent),
        ("guest-info", Cause::AgentSilent),
        ("guest-get-osinfo", Cause::FreezeTimeout),
        ("guest-get-fsinfo", Cause::FreezeTimeout),
    ] {
        // Without the doctor's look at hooks, which waits for the shell for half a minute.
        let scenario = Scenario { hangs_at: Some(command.to_owned()), ..Scenario::linux().disable("guest-exec") };
        trials.spawn(async move {
            let (check, certificate) = tried(scenario, Settings::default()).await;
            let found = certificate.downgrade.as_ref().and_then(|downgrade| downgrade.cause);
            let found = (certificate.level, certificate.freeze.is_some(), found);
            (found != (Level::Crash, false, Some(cause))).then(|| format!("{command}: {found:?}\n{check}"))
        });
    }
    let wrong: Vec<String> = trials.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn an_agent_without_vss_holds_nothing_and_is_not_asked_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let scenario = named().into_iter().find(|one| one.name == "windows-no-provider").unwrap().scenario;
    let _guest = Agent::start(&socket, scenario).unwrap();
    let agent = GuestAgent::new(&socket);
    let ended = tokio::time::timeout(AMPLE, thawing::until_thawed(&agent, AMPLE)).await;
    assert_eq!(ended, Ok(thawing::End::Thawed));
}

async fn outcome_of(step: &str, scenario: Scenario, settings: Settings) -> (Outcome, String) {
    let (check, _) = tried(scenario, settings).await;
    let found = check.steps.iter().find(|found| found.name == step);
    let found = found.unwrap_or_else(|| panic!("no step {step} in\n{check}"));
    (found.outcome, found.words.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_count_where_they_are_declared_and_run() {
    let with_hook = Scenario::linux().hook(sim_agent::Hook::Runs { after_ms: 10 });
    let (_, certificate) = tried(with_hook.clone(), declared()).await;
    assert_eq!(certificate.level, Level::Application);
    assert_eq!(outcome_of("hooks", with_hook, declared()).await.0, Outcome::Ok);
    let (outcome, words) = outcome_of("hooks", Scenario::linux(), declared()).await;
    assert_eq!(outcome, Outcome::Warning, "{words}");
    let no_exec = Scenario::linux().disable("guest-exec");
    assert_eq!(outcome_of("hooks", no_exec, declared()).await.0, Outcome::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_begins_when_the_guest_is_frozen() {
    let slow = Scenario::linux().freeze(sim_agent::Freeze::Holds { after_ms: 400 });
    let hold = Duration::from_millis(300);
    let (check, certificate) = tried_for(hold, slow, Settings::default()).await;
    let lasted = certificate.freeze.map(|freeze| freeze.cut_after_us).unwrap_or_default();
    assert!(u128::from(lasted) >= hold.as_micros(), "{lasted} us\n{check}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_backup_type_is_warned_of() {
    let full = Scenario { vss_option: Some(1), ..Scenario::default() };
    assert_eq!(outcome_of("backup type", full, Settings::default()).await.0, Outcome::Warning);
    let copy = Scenario { vss_option: Some(5), ..Scenario::default() };
    assert_eq!(outcome_of("backup type", copy, Settings::default()).await.0, Outcome::Ok);
    let absent = Scenario { vss_option: None, ..Scenario::default() };
    assert_eq!(outcome_of("backup type", absent, Settings::default()).await.0, Outcome::Warning);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_to_be_frozen_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let guest = Agent::start(&socket, Scenario::linux()).unwrap();
    let agent = GuestAgent::new(&socket);
    let settings = Settings { policy: tanada_quiesce::Policy::Skip, ..Settings::default() };
    let ledger: Arc<dyn Ledger> = Arc::new(Debts::default());
    let subject = Subject {
        agent: &agent,
        agent_present: true,
        power_state: "Running",
        settings: &settings,
        program: Path::new("/nonexistent"),
        expected: Duration::ZERO,
        limits,
        hold: Duration::ZERO,
    };
    let check = trial::run(&subject, &ledger).await;
    assert_eq!(guest.facts().freezes, 0, "{:?}", guest.commands());
    assert!(!check.is_quiesced() && check.steps.iter().any(|step| step.outcome == Outcome::Unknown), "{check}");
}
