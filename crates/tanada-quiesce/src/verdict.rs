//! From evidence to level. Pure: what a snapshot is worth follows from what was seen, never from what was intended.
//!
//! | evidence | level |
//! |---|---|
//! | machine shut down | shut down |
//! | machine off, its disks those of a snapshot of a level | that level |
//! | nobody froze the guest, for whatever reason | crash |
//! | the guest was thawed, or found thawed, before the cut was done | crash |
//! | Windows: thaw answered without error, cut done within [`WINDOWS_HOLD`] | application |
//! | the same, and a writer tells that it failed ([`crate::vss`]) | file system |
//! | Windows: thaw answered with an error | crash |
//! | Linux: as many thawed as frozen, hooks declared | application |
//! | Linux: as many thawed as frozen | file system |
//! | Linux: another number thawed, or an error | crash |
//! | thaw not answered | crash |
//! | the guard failed, and the guest is not found frozen after it | crash: the guard may have thawed it, and heard why |
//! | any other system | crash: its answers prove nothing |
//!
//! Why these: a Windows agent answers the thaw with an error when VSS did not hold the writes, and its count proves
//! nothing; a Linux agent counts the file systems that were still frozen when it thawed them. The agent's own flag only
//! tells against a freeze: it stays up where somebody else thawed the file systems.

use std::time::Duration;

use crate::cause::{self, Cause, Downgrade};
use crate::{Freeze, Held, Level, Method};

/// VSS holds writes for ten seconds; what was cut later than this may have been written to.
pub const WINDOWS_HOLD: Duration = Duration::from_secs(9);

/// The kind of system in the guest, as far as its agent's answers mean different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Os {
    Linux,
    Windows,
    Other,
}

/// The guest's answer to the thaw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thaw {
    /// So many file systems.
    Count(u64),
    /// Its words of complaint.
    Error(String),
    /// None within the limit; why.
    Unanswered(String),
}

/// Everything seen of a freeze that the guest answered with a count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    pub count: u64,
    /// How long the guest took to answer.
    pub asked: Duration,
    /// From the answer until the cut was known to be done; an upper bound.
    pub cut_after: Duration,
    /// From the answer to the thaw's.
    pub lasted: Duration,
    /// The guest was thawed before the cut was done, because the time that a freeze may last was over.
    pub thawed_before_cut: bool,
    /// The guard died or hung, and the daemon thawed. A thaw of the guard's may have been carried out before.
    pub guard_failed: bool,
    /// The agent's flag when it was asked after the cut; `None` where it did not answer.
    pub flag: Option<bool>,
    pub thaw: Thaw,
}

/// What was seen of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// The machine was off, and had been shut down.
    ShutDown,
    /// The machine was off, and has not run since its disks were cut at this level.
    AtRest(Level),
    /// The guest was not frozen; why.
    NotFrozen(Downgrade),
    Frozen {
        os: Os,
        hooks_declared: bool,
        frozen: Frozen,
    },
}

impl Evidence {
    /// Was the guest frozen, and has it answered the thaw?
    pub fn is_answered(&self) -> bool {
        matches!(self, Evidence::Frozen { frozen, .. } if !matches!(frozen.thaw, Thaw::Unanswered(_)))
    }

    /// Was it frozen, and stands still for all that is known?
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Evidence::Frozen { frozen, .. } if matches!(frozen.thaw, Thaw::Unanswered(_)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub method: Method,
    pub freeze: Option<Freeze>,
    pub downgrade: Option<Downgrade>,
}

/// What it was worth.
pub fn judge(evidence: &Evidence) -> Verdict {
    let plain = |level, downgrade| Verdict { level, method: Method::None, freeze: None, downgrade };
    match evidence {
        Evidence::ShutDown => plain(Level::ShutDown, None),
        Evidence::AtRest(level) => plain(*level, None),
        Evidence::NotFrozen(downgrade) => plain(Level::Crash, Some(downgrade.clone())),
        Evidence::Frozen { os, hooks_declared, frozen } => judge_frozen(*os, *hooks_declared, frozen),
    }
}

fn judge_frozen(os: Os, hooks_declared: bool, frozen: &Frozen) -> Verdict {
    let (level, method) = match (os, hooks_declared) {
        (Os::Windows, _) => (Level::Application, Method::Vss),
        (Os::Linux, true) => (Level::Application, Method::FsfreezeHooks),
        (Os::Linux, false) => (Level::FileSystem, Method::Fsfreeze),
        (Os::Other, _) => (Level::Crash, Method::Fsfreeze),
    };
    let doubt = doubt(os, frozen);
    let (thawed, thaw_error) = match &frozen.thaw {
        Thaw::Count(count) => (Some(*count), None),
        Thaw::Error(words) | Thaw::Unanswered(words) => (None, Some(words.clone())),
    };
    let freeze = Freeze {
        frozen_us: micros(frozen.lasted),
        asked_us: micros(frozen.asked),
        cut_after_us: micros(frozen.cut_after),
        frozen: frozen.count,
        thawed,
        held: doubt.as_ref().map_or(Held::Yes, |(held, _)| *held),
        verified_by: match &doubt {
            Some((_, downgrade)) => downgrade.words.clone(),
            None => proof(os).to_owned(),
        },
        thaw_error,
    };
    match doubt {
        None => Verdict { level, method, freeze: Some(freeze), downgrade: None },
        Some((_, downgrade)) => {
            Verdict { level: Level::Crash, method, freeze: Some(freeze), downgrade: Some(downgrade) }
        }
    }
}

fn proof(os: Os) -> &'static str {
    match os {
        Os::Windows => "the guest answered the thaw without the error of a lapsed hold, and the cut was done in time",
        Os::Linux | Os::Other => "the guest thawed as many file systems as it had frozen",
    }
}

/// What speaks against the freeze having held over the cut; the strongest first.
fn doubt(os: Os, frozen: &Frozen) -> Option<(Held, Downgrade)> {
    let no = |cause, words: String| Some((Held::No, Downgrade::new(cause, words)));
    let unknown = |cause, words: String| Some((Held::Unknown, Downgrade::new(cause, words)));
    let after = frozen.cut_after.as_millis();
    if frozen.thawed_before_cut {
        return no(
            Cause::CutTooLate,
            "the time for a freeze was over before the cut was done; the guest was thawed".into(),
        );
    }
    // The agent carries out one command after another: up after the guard's end means that no thaw came before.
    if frozen.guard_failed && frozen.flag != Some(true) && !matches!(frozen.thaw, Thaw::Unanswered(_)) {
        let words = "the guard of the freeze failed, and the guest may have been thawed by it before the daemon did";
        return unknown(Cause::GuardFailed, words.into());
    }
    if frozen.flag == Some(false) {
        return no(Cause::ThawedEarly, "the guest was not frozen any more when it was asked after the cut".into());
    }
    match (&frozen.thaw, os) {
        (Thaw::Unanswered(words), _) => {
            unknown(Cause::ThawUnconfirmed, format!("the guest has not answered the thaw: {words}"))
        }
        (Thaw::Error(words), _) => match cause::of_refused_thaw(words) {
            Cause::HoldLapsed => {
                no(Cause::HoldLapsed, format!("Windows did not hold its writes until the thaw: {words}"))
            }
            cause => unknown(cause, format!("the guest answered the thaw with an error: {words}")),
        },
        (Thaw::Count(_), Os::Windows) if frozen.cut_after >= WINDOWS_HOLD => {
            unknown(Cause::CutTooLate, format!("the cut was done {after} ms after the freeze; Windows holds for 10 s"))
        }
        (Thaw::Count(_), Os::Windows) => None,
        (Thaw::Count(thawed), Os::Linux) if *thawed == frozen.count => None,
        (Thaw::Count(thawed), Os::Linux) => no(
            Cause::CountMismatch,
            format!("the guest froze {} file systems and thawed {thawed}: others thawed in between", frozen.count),
        ),
        (Thaw::Count(_), Os::Other) => {
            unknown(Cause::NoProof, "the guest does not say which system it runs; its answers prove nothing".into())
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Evidence, Frozen, Os, Thaw, judge};
    use crate::{Cause, Downgrade};
    use crate::{Held, Level, Method};

    const LAPSED: &str = "couldn't hold writes: fsfreeze is limited up to 10 seconds: Windows error 0x80042314";

    fn good() -> Frozen {
        Frozen {
            count: 3,
            asked: Duration::from_millis(80),
            cut_after: Duration::from_millis(5),
            lasted: Duration::from_millis(20),
            thawed_before_cut: false,
            guard_failed: false,
            flag: Some(true),
            thaw: Thaw::Count(3),
        }
    }

    fn judged(os: Os, hooks_declared: bool, frozen: Frozen) -> (Level, Method, Option<Held>, Option<Cause>) {
        let verdict = judge(&Evidence::Frozen { os, hooks_declared, frozen });
        let cause = verdict.downgrade.and_then(|downgrade| downgrade.cause);
        (verdict.level, verdict.method, verdict.freeze.map(|freeze| freeze.held), cause)
    }

    #[test]
    fn the_table() {
        use Cause::{
            CountMismatch, CutTooLate, GuardFailed, HoldLapsed, NoProof, ThawFailed, ThawUnconfirmed, ThawedEarly,
        };
        let with = |change: fn(&mut Frozen)| {
            let mut frozen = good();
            change(&mut frozen);
            frozen
        };
        let late = |frozen: &mut Frozen| frozen.cut_after = Duration::from_secs(9);
        let lapse = |frozen: &mut Frozen| frozen.thaw = Thaw::Error(LAPSED.into());
        let complaint = |frozen: &mut Frozen| frozen.thaw = Thaw::Error("unexpected error in VSS provider".into());
        let silence = |frozen: &mut Frozen| frozen.thaw = Thaw::Unanswered("no answer within 30000 ms".into());
        let fewer = |frozen: &mut Frozen| frozen.thaw = Thaw::Count(2);
        let more = |frozen: &mut Frozen| frozen.thaw = Thaw::Count(4);
        let flag_down = |frozen: &mut Frozen| frozen.flag = Some(false);
        let no_flag = |frozen: &mut Frozen| frozen.flag = None;
        let early = |frozen: &mut Frozen| frozen.thawed_before_cut = true;
        let no_guard = |frozen: &mut Frozen| frozen.guard_failed = true;
        let no_guard_no_flag = |frozen: &mut Frozen| (frozen.guard_failed, frozen.flag) = (true, None);
        let no_guard_flag_down = |frozen: &mut Frozen| (frozen.guard_failed, frozen.flag) = (true, Some(false));
        let no_guard_silence = |frozen: &mut Frozen| {
            (frozen.guard_failed, frozen.flag, frozen.thaw) = (true, None, Thaw::Unanswered("no answer".into()));
        };
        let (yes, no, unknown) = (Held::Yes, Held::No, Held::Unknown);
        type Line = (Os, bool, Frozen, Level, Held, Option<Cause>);
        let table: &[Line] = &[
            (Os::Windows, false, good(), Level::Application, yes, None),
            (Os::Windows, false, with(fewer), Level::Application, yes, None),
            (Os::Windows, false, with(no_flag), Level::Application, yes, None),
            (Os::Windows, false, with(late), Level::Crash, unknown, Some(CutTooLate)),
            (Os::Windows, false, with(lapse), Level::Crash, no, Some(HoldLapsed)),
            (Os::Windows, false, with(complaint), Level::Crash, unknown, Some(ThawFailed)),
            (Os::Windows, false, with(silence), Level::Crash, unknown, Some(ThawUnconfirmed)),
            (Os::Windows, false, with(flag_down), Level::Crash, no, Some(ThawedEarly)),
            (Os::Windows, false, with(early), Level::Crash, no, Some(CutTooLate)),
            (Os::Windows, false, with(no_guard), Level::Application, yes, None),
            (Os::Windows, false, with(no_guard_no_flag), Level::Crash, unknown, Some(GuardFailed)),
            (Os::Windows, false, with(no_guard_silence), Level::Crash, unknown, Some(ThawUnconfirmed)),
            (Os::Linux, false, with(no_guard), Level::FileSystem, yes, None),
            (Os::Linux, false, with(no_guard_flag_down), Level::Crash, unknown, Some(GuardFailed)),
            (Os::Linux, false, good(), Level::FileSystem, yes, None),
            (Os::Linux, true, good(), Level::Application, yes, None),
            (Os::Linux, false, with(no_flag), Level::FileSystem, yes, None),
            (Os::Linux, false, with(late), Level::FileSystem, yes, None),
            (Os::Linux, true, with(fewer), Level::Crash, no, Some(CountMismatch)),
            (Os::Linux, false, with(more), Level::Crash, no, Some(CountMismatch)),
            (Os::Linux, false, with(complaint), Level::Crash, unknown, Some(ThawFailed)),
            (Os::Linux, true, with(silence), Level::Crash, unknown, Some(ThawUnconfirmed)),
            (Os::Linux, false, with(flag_down), Level::Crash, no, Some(ThawedEarly)),
            (Os::Linux, true, with(early), Level::Crash, no, Some(CutTooLate)),
            (Os::Other, true, good(), Level::Crash, unknown, Some(NoProof)),
        ];
        for (os, hooks, frozen, level, held, cause) in table {
            let (found, _, found_held, found_cause) = judged(*os, *hooks, frozen.clone());
            assert_eq!(
                (found, found_held, found_cause),
                (*level, Some(*held), *cause),
                "{os:?}, hooks declared {hooks}, {frozen:?}"
            );
        }
    }

    #[test]
    fn the_method_is_what_was_done() {
        assert_eq!(judged(Os::Windows, true, good()).1, Method::Vss);
        assert_eq!(judged(Os::Linux, true, good()).1, Method::FsfreezeHooks);
        assert_eq!(judged(Os::Linux, false, good()).1, Method::Fsfreeze);
    }

    #[test]
    fn without_a_freeze_there_is_no_more_than_what_the_machine_was() {
        let verdict = judge(&Evidence::ShutDown);
        assert_eq!((verdict.level, verdict.method, verdict.freeze), (Level::ShutDown, Method::None, None));
        let verdict = judge(&Evidence::AtRest(Level::FileSystem));
        assert_eq!((verdict.level, verdict.method, verdict.downgrade), (Level::FileSystem, Method::None, None));
        let why = Downgrade::new(Cause::AgentAbsent, "the guest has no agent");
        let verdict = judge(&Evidence::NotFrozen(why.clone()));
        assert_eq!((verdict.level, verdict.downgrade), (Level::Crash, Some(why)));
    }
}
