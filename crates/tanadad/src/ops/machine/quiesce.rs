//! Bringing a guest to rest around a cut: what the sequence of [`tanada_quiesce`] needs from the daemon.
//!
//! The debt of a thaw is an intent: written before the guest is frozen, struck off when the guest says that it is thawed
//! or its machine is gone. The next life of the daemon pays what this one could not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tanada_qemu::agent::GuestAgent;
use tanada_quiesce::guard::client::Ledger;
use tanada_quiesce::guard::thawing::{self, End};
use tanada_quiesce::policy::Policy;
use tanada_quiesce::probe::{Probe, probe};
use tanada_quiesce::sequence::{self, Request};
use tanada_quiesce::verdict::{Evidence, Os};
use tanada_quiesce::vss::{self, Writer};
use tanada_quiesce::{Cause, Downgrade, GuestFacts, Level, Settings, pace};
use tanada_xapi::{ApiError, ApiResult, Ref};
use tokio::time::timeout;

use super::cut::Part;
use crate::context::Daemon;
use crate::db::Record;
use crate::ops::intents::{self, Plan};
use crate::vmm::records::{LAST_STOP_HARD, LAST_STOP_KEY};

/// A thaw that an earlier life owes is waited for so long before the doors open; after that it goes on beside.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);
const THAW_LIMIT: Duration = Duration::from_secs(30);
/// Writers are asked when the guest is thawed; the snapshot waits for them, the guest does not.
const WRITERS_LIMIT: Duration = Duration::from_secs(20);
/// A storage that needs longer to answer a question is too slow for anything.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);

/// How much quiescing is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    pub settings: Settings,
    /// Or no snapshot.
    pub insist: bool,
}

impl Wish {
    /// What the machine's policy says; a caller who insists goes before it.
    pub fn of(machine: &Record, insist: bool) -> ApiResult<Wish> {
        let settings = Settings::read(|key| machine.entry("other_config", key)).map_err(|bad| {
            ApiError::invalid_value(format!("other_config:{} ({} is accepted)", bad.key, bad.accepted), bad.value)
        })?;
        // A machine that is off has nobody who could be brought to rest; what its disks are worth is said all the same.
        let forced = settings.policy == Policy::Force && machine.str("power_state") != "Halted";
        Ok(Wish { settings, insist: insist || forced })
    }

    pub fn skips(&self) -> bool {
        self.settings.policy == Policy::Skip && !self.insist
    }
}

/// What came of a cut with the guest asked to rest.
pub struct Rested<T> {
    /// `None` where it was insisted on a freeze that did not happen.
    pub cut: Option<T>,
    pub evidence: Evidence,
    pub guest: GuestFacts,
    pub probe: Option<Probe>,
    /// What Windows told about its writers after the thaw.
    pub writers: Vec<Writer>,
    pub notes: Vec<String>,
}

/// Cuts, with the guest at rest where that is wished for and possible.
pub async fn rest<T>(
    daemon: &Arc<Daemon>,
    machine: &Record,
    wish: Wish,
    parts: &[Part],
    cut: impl Future<Output = T>,
) -> Rested<T> {
    let power = machine.str("power_state");
    let plain = |evidence, cut| Rested {
        cut,
        evidence,
        guest: GuestFacts::default(),
        probe: None,
        writers: Vec::new(),
        notes: Vec::new(),
    };
    if power == "Halted" {
        return plain(halted(machine), Some(cut.await));
    }
    let (agent, probed) = match asked(daemon, machine, wish).await {
        Ok(agent) => {
            let probed = probe(&agent).await;
            (agent, probed)
        }
        Err(downgrade) => {
            let cut = if wish.insist { None } else { Some(cut.await) };
            return plain(Evidence::NotFrozen(downgrade), cut);
        }
    };
    let probe = match probed {
        Ok(probe) => probe,
        Err((guest, downgrade)) => {
            let cut = if wish.insist { None } else { Some(cut.await) };
            return Rested { guest, ..plain(Evidence::NotFrozen(downgrade), cut) };
        }
    };
    let request = Request {
        program: daemon.vmm.host.program(),
        agent: &agent,
        probe: &probe,
        settings: &wish.settings,
        limits: sequence::limits(probe.os, &wish.settings),
        expected: expected(daemon, parts).await,
        insist: wish.insist,
    };
    let ledger: Arc<dyn Ledger> = Arc::new(Debt::new(daemon, machine.id()));
    let outcome = sequence::run(&request, &ledger, cut).await;
    let mut notes = Vec::new();
    if probe.stray_freeze {
        notes.push("the guest was found frozen by nobody known, and was thawed first".to_owned());
    }
    if let Some(words) = outcome.guard_failed {
        notes.push(format!("the guard of the freeze failed, and the daemon thawed the guest itself: {words}"));
    }
    let (cut, evidence) = (outcome.cut, outcome.evidence);
    let mut writers = Vec::new();
    if probe.os == Os::Windows && evidence.is_answered() {
        match vss::writers(&agent, WRITERS_LIMIT).await {
            Ok(told) => writers = told,
            Err(error) => notes.push(format!("the guest's writers could not be asked one by one: {error}")),
        }
    }
    Rested { cut, evidence, guest: probe.facts.clone(), probe: Some(probe), writers, notes }
}

/// What the disks of a machine without a process are worth.
fn halted(machine: &Record) -> Evidence {
    match machine.entry("other_config", LAST_STOP_KEY) {
        Some(LAST_STOP_HARD) => {}
        kept => return kept.and_then(Level::from_name).map_or(Evidence::ShutDown, Evidence::AtRest),
    }
    let words = "the machine was switched off, or comes from a snapshot of that level, and was not shut down since";
    Evidence::NotFrozen(Downgrade::new(Cause::SwitchedOff, words))
}

/// The agent of a guest that is to be asked and can be; else why not.
async fn asked(daemon: &Arc<Daemon>, machine: &Record, wish: Wish) -> Result<Arc<GuestAgent>, Downgrade> {
    let power = machine.str("power_state");
    if power != "Running" {
        return Err(Downgrade::new(Cause::NotRunning, format!("the machine was {power}: nobody could be asked")));
    }
    if wish.skips() {
        return Err(Downgrade::new(Cause::Skipped, "the machine's policy is not to ask its guest"));
    }
    let Some(running) = daemon.vmm.machine(machine.id()) else {
        return Err(Downgrade::new(Cause::NotRunning, "the machine has no process on this host"));
    };
    if !running.agent_present() {
        return Err(Downgrade::new(Cause::AgentAbsent, "the guest has no agent"));
    }
    Ok(running.agent())
}

/// How long the cut will take, as far as the storage's own past or an answer of it tells.
pub async fn expected(daemon: &Daemon, parts: &[Part]) -> Duration {
    let mut sum = Duration::ZERO;
    for part in parts {
        sum += match daemon.pace.expected(part.sr.as_str()) {
            Some(known) => known,
            None => {
                let began = Instant::now();
                if let Some(first) = part.planned.first() {
                    // Only the time that it takes counts; the cut itself will tell of errors.
                    let _ = timeout(QUESTION_LIMIT, part.driver.stat(first.source_volume)).await;
                }
                pace::from_probe(began.elapsed(), part.planned.len())
            }
        };
    }
    sum
}

/// The intent that a thaw is owed.
pub struct Debt {
    daemon: Arc<Daemon>,
    vm: Ref,
    intent: Mutex<Option<String>>,
}

impl Debt {
    pub fn new(daemon: &Arc<Daemon>, vm: &Ref) -> Debt {
        Debt { daemon: daemon.clone(), vm: vm.clone(), intent: Mutex::default() }
    }
}

impl Ledger for Debt {
    fn owe(&self) -> Result<(), String> {
        let intent = Plan::Freeze { vm: self.vm.to_string() }.write(&self.daemon).map_err(|error| error.to_string())?;
        *self.intent.lock().unwrap_or_else(PoisonError::into_inner) = Some(intent);
        Ok(())
    }

    fn paid(&self) {
        if let Some(intent) = self.intent.lock().unwrap_or_else(PoisonError::into_inner).take() {
            strike_off(&self.daemon, &intent);
        }
    }
}

fn strike_off(daemon: &Daemon, intent: &str) {
    if let Err(error) = intents::clear(daemon, intent) {
        tracing::error!(%error, "a thaw could not be recorded");
    }
}

/// For a guest that an earlier life of the daemon froze.
pub async fn thaw_leftover(daemon: &Arc<Daemon>, vm: &Ref, intent: &str) {
    let Some(machine) = daemon.vmm.machine(vm) else { return strike_off(daemon, intent) };
    tracing::info!(%vm, "thawing a guest that was frozen when the daemon ended");
    let (daemon, intent) = (daemon.clone(), intent.to_owned());
    let thawing = tokio::spawn(async move {
        let end = thawing::until_thawed(&machine.agent(), THAW_LIMIT).await;
        if end == End::Gone {
            tracing::info!(vm = %machine.uuid, "a guest that was frozen has ended");
        }
        strike_off(&daemon, &intent);
    });
    if timeout(LEFTOVER_LIMIT, thawing).await.is_err() {
        tracing::warn!(%vm, "a guest that was frozen does not answer yet; it is asked on");
    }
}

/// The error for a caller who insists, by XenServer's codes.
pub fn refusal(vm: &Ref, downgrade: &Downgrade) -> ApiError {
    let words = downgrade.with_advice();
    match downgrade.cause {
        Some(
            Cause::AgentAbsent | Cause::FreezeUnsupported | Cause::VssMissing | Cause::NothingFrozen | Cause::NoProof,
        ) => ApiError::vm_snapshot_with_quiesce_not_supported(vm, words),
        Some(Cause::AgentSilent) => ApiError::vm_snapshot_with_quiesce_plugin_does_not_respond(vm),
        Some(Cause::FreezeTimeout) => ApiError::vm_snapshot_with_quiesce_timeout(vm),
        _ => ApiError::vm_snapshot_with_quiesce_failed(vm, words),
    }
}
