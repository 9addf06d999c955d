//! A quiesced cut, from the first question to the verdict's evidence.
//!
//! ```text
//!   probe ──▶ does the cut fit? ──▶ owe a thaw ──▶ freeze ──▶ cut ──▶ thaw ──▶ evidence ──▶ verdict, record
//!     │              │              (durable)     (guard)      │       ▲          │
//!     │ no agent,    │ too slow         │            │ refused, │       │          └▶ paid, or thawed on in the background
//!     │ cannot       ▼                  │ not written│ silent   └───────┘
//!     └─────────▶ NOT FROZEN ◀──────────┴────────────┘        deadline of the guard: thawed before the cut was done
//!                  │       │
//!     insisted on: │       └ otherwise: cut all the same, crash-consistent, and say why
//!                  └▶ no cut at all
//! ```
//! - **Driven by** the operation that takes a snapshot: it probes, knows how long its storage will need, hands the cut in
//!   as a future that is not begun before the guest is at rest, and records what [`crate::verdict::judge`] says.
//! - **Slow things come before**: names, records of what is about to be made, sessions to arrays. Inside is the cut alone.
//! - **Deadlines**: the guest's freeze ([`limits`]); then the window from its answer on, which the guard keeps: 8 s on
//!   Windows, for VSS holds ten; 10 s elsewhere, for programs in the guest stand still meanwhile.
//! - **Who dies**: see [`crate::guard`]. From `owe` on the guest is thawed by the guard, by the daemon, or by its next
//!   life, and nobody takes that debt for paid before the guest has said so or its machine is gone.
//! - **A thaw needs I/O**: whatever holds the guest's writes or processors for the cut lets go before the thaw is asked for.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tanada_qemu::agent::GuestAgent;

use crate::cause::{self, Cause, Downgrade};
use crate::guard::client::{Ended, Guard, Ledger, Limits, NotFrozen};
use crate::guard::warden::Frozen as FrozenGuest;
use crate::guard::{Answer, Failure, Why};
use crate::policy::Settings;
use crate::probe::Probe;
use crate::verdict::{Evidence, Frozen, Os, Thaw};

/// Others may be using the agent's port; each of their commands has a limit of its own.
const PORT_LIMIT: Duration = Duration::from_secs(15);
/// Kept of the window for everything but the cut.
const MARGIN: Duration = Duration::from_secs(1);

/// How long things may take with this guest.
pub fn limits(os: Os, settings: &Settings) -> Limits {
    let (freeze, window, thaw) = match os {
        Os::Windows => (90, 8, 60),
        Os::Linux | Os::Other => (30, 10, 30),
    };
    Limits {
        freeze: settings.freeze_limit.unwrap_or(Duration::from_secs(freeze)),
        window: Duration::from_secs(window),
        thaw: Duration::from_secs(thaw),
    }
}

/// A cut under a freeze, as it is asked for.
pub struct Request<'a> {
    /// What the guard is started from.
    pub program: &'a Path,
    pub agent: &'a GuestAgent,
    pub probe: &'a Probe,
    pub settings: &'a Settings,
    pub limits: Limits,
    /// How long the cut is expected to take.
    pub expected: Duration,
    /// Without a freeze no cut.
    pub insist: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome<T> {
    /// `None` where it was not begun.
    pub cut: Option<T>,
    pub evidence: Evidence,
    /// What became of the guard where it could not do its part.
    pub guard_failed: Option<String>,
}

/// Freezes, cuts, thaws. The guest is thawed, or being thawed, when this returns and also when it is dropped.
pub async fn run<T>(request: &Request<'_>, ledger: &Arc<dyn Ledger>, cut: impl Future<Output = T>) -> Outcome<T> {
    let frozen = match freeze(request, ledger).await {
        Ok(frozen) => frozen,
        Err(downgrade) => {
            let cut = if request.insist { None } else { Some(cut.await) };
            return Outcome { cut, evidence: Evidence::NotFrozen(downgrade), guard_failed: None };
        }
    };
    let (count, asked) = (frozen.count, frozen.asked);
    if count == 0 {
        // Its freeze hooks ran all the same; only a thaw runs the other half.
        let ended = frozen.thaw().await;
        let words = "the guest froze no file system: none of those it has mounted can be frozen";
        let evidence = Evidence::NotFrozen(Downgrade::new(Cause::NothingFrozen, words));
        let cut = if request.insist { None } else { Some(cut.await) };
        return Outcome { cut, evidence, guard_failed: ended.guard_failed };
    }
    let cut = cut.await;
    let ended = frozen.thaw().await;
    let guard_failed = ended.guard_failed.clone();
    let evidence = Evidence::Frozen {
        os: request.probe.os,
        hooks_declared: request.settings.hooks_declared,
        frozen: evidence(count, asked, ended),
    };
    Outcome { cut: Some(cut), evidence, guard_failed }
}

async fn freeze(request: &Request<'_>, ledger: &Arc<dyn Ledger>) -> Result<FrozenGuest, Downgrade> {
    let allowed = request.limits.window.saturating_sub(MARGIN);
    if request.expected > allowed {
        let (expected, allowed) = (request.expected.as_millis(), allowed.as_millis());
        let words = format!(
            "the storage is expected to need {expected} ms for the cut, and a freeze leaves {allowed} ms: not tried"
        );
        return Err(Downgrade::new(Cause::StorageTooSlow, words));
    }
    let lent = request.agent.lend(PORT_LIMIT).await;
    let lent =
        lent.map_err(|error| Downgrade::new(Cause::AgentSilent, format!("the guest's agent is busy: {error}")))?;
    let guard_failed = |words: String| Downgrade::new(Cause::GuardFailed, words);
    let guard = Guard::start(request.program, lent, request.limits).map_err(guard_failed)?;
    ledger.owe().map_err(|words| guard_failed(format!("that a thaw is owed cannot be written down: {words}")))?;
    guard.freeze(ledger.clone()).await.map_err(not_frozen)
}

fn not_frozen(why: NotFrozen) -> Downgrade {
    match why {
        NotFrozen::Guest(Failure::Refused, words) => {
            Downgrade::new(cause::of_refused_freeze(&words), format!("the guest did not freeze: {words}"))
        }
        NotFrozen::Guest(Failure::Deadline, words) => {
            Downgrade::new(Cause::FreezeTimeout, format!("the guest did not freeze in time: {words}"))
        }
        NotFrozen::Guest(Failure::Absent, words) => {
            Downgrade::new(Cause::AgentSilent, format!("the guest's agent went while it should freeze: {words}"))
        }
        NotFrozen::Guard(words) => Downgrade::new(Cause::GuardFailed, format!("the freeze was given up: {words}")),
    }
}

fn evidence(count: u64, asked: Duration, ended: Ended) -> Frozen {
    let thawed = ended.thawed;
    Frozen {
        count,
        asked,
        cut_after: Duration::from_micros(thawed.after_us),
        lasted: Duration::from_micros(thawed.lasted_us),
        thawed_before_cut: thawed.why != Why::Asked,
        guard_failed: ended.guard_failed.is_some(),
        flag: thawed.flag,
        thaw: match thawed.answer {
            Answer::Count(count) => Thaw::Count(count),
            Answer::Error(words) => Thaw::Error(words),
            Answer::Unanswered(words) => Thaw::Unanswered(words),
        },
    }
}
