//! Why a snapshot is no better than crash-consistent, and what an administrator does about it.

/// The reasons, each with a stable code for programs and advice for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nobody was there to be asked: the machine was off, suspended or paused.
    NotRunning,
    /// The machine was switched off, not shut down.
    SwitchedOff,
    /// The VM's policy is not to ask.
    Skipped,
    AgentAbsent,
    /// The agent holds its port open and does not answer.
    AgentSilent,
    /// The agent cannot freeze, or may not.
    FreezeUnsupported,
    /// Windows: the agent's VSS provider is missing or does not work.
    VssMissing,
    FreezeRefused,
    /// Linux: a freeze hook failed.
    HookFailed,
    /// Windows: the shadow copy could not be prepared (a writer, a volume).
    VssFailed,
    FreezeTimeout,
    NothingFrozen,
    /// The storage would have needed longer than a freeze may last.
    StorageTooSlow,
    /// The guard that thaws whatever happens could not be started, or died.
    GuardFailed,
    /// Windows gave its writes free before the thaw.
    HoldLapsed,
    /// The cut took longer than a freeze may last; the guest was thawed before it was done.
    CutTooLate,
    /// Fewer or more file systems were thawed than had been frozen.
    CountMismatch,
    /// The guest was not frozen any more when it was asked after the cut.
    ThawedEarly,
    /// Windows: everything held, and a writer had failed at it.
    WriterFailed,
    /// The guest answered the thaw with an error.
    ThawFailed,
    /// The guest has not said yet that it is thawed.
    ThawUnconfirmed,
    /// The guest's system is not known, so nothing that it answers is proof.
    NoProof,
    /// The daemon ended in the middle.
    VerificationLost,
    /// Another tool had the guest frozen.
    FrozenByOther,
}

impl Cause {
    pub const ALL: [Cause; 24] = [
        Cause::NotRunning,
        Cause::SwitchedOff,
        Cause::Skipped,
        Cause::AgentAbsent,
        Cause::AgentSilent,
        Cause::FreezeUnsupported,
        Cause::VssMissing,
        Cause::FreezeRefused,
        Cause::HookFailed,
        Cause::VssFailed,
        Cause::FreezeTimeout,
        Cause::NothingFrozen,
        Cause::StorageTooSlow,
        Cause::GuardFailed,
        Cause::HoldLapsed,
        Cause::CutTooLate,
        Cause::CountMismatch,
        Cause::ThawedEarly,
        Cause::WriterFailed,
        Cause::ThawFailed,
        Cause::ThawUnconfirmed,
        Cause::NoProof,
        Cause::VerificationLost,
        Cause::FrozenByOther,
    ];

    /// `snapshot_info:not-quiesced-code`.
    pub const fn code(self) -> &'static str {
        match self {
            Cause::NotRunning => "not-running",
            Cause::SwitchedOff => "switched-off",
            Cause::Skipped => "skipped",
            Cause::AgentAbsent => "agent-absent",
            Cause::AgentSilent => "agent-silent",
            Cause::FreezeUnsupported => "freeze-unsupported",
            Cause::VssMissing => "vss-missing",
            Cause::FreezeRefused => "freeze-refused",
            Cause::HookFailed => "hook-failed",
            Cause::VssFailed => "vss-failed",
            Cause::FreezeTimeout => "freeze-timeout",
            Cause::NothingFrozen => "nothing-frozen",
            Cause::StorageTooSlow => "storage-too-slow",
            Cause::GuardFailed => "guard-failed",
            Cause::HoldLapsed => "hold-lapsed",
            Cause::CutTooLate => "cut-too-late",
            Cause::CountMismatch => "count-mismatch",
            Cause::ThawedEarly => "thawed-early",
            Cause::WriterFailed => "writer-failed",
            Cause::ThawFailed => "thaw-failed",
            Cause::ThawUnconfirmed => "thaw-unconfirmed",
            Cause::NoProof => "no-proof",
            Cause::VerificationLost => "verification-lost",
            Cause::FrozenByOther => "frozen-by-other",
        }
    }

    pub fn from_code(code: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.code() == code)
    }

    /// What to do so that the next snapshot is better; `None` where nothing is wrong.
    pub const fn advice(self) -> Option<&'static str> {
        Some(match self {
            Cause::NotRunning | Cause::Skipped => return None,
            Cause::SwitchedOff => "start the machine once and shut it down; its file systems recover when it starts",
            Cause::AgentAbsent => {
                "install and start the QEMU guest agent in the guest (Linux: package qemu-guest-agent)"
            }
            Cause::AgentSilent => "look whether the guest is hung or out of memory; restart its guest agent service",
            Cause::FreezeUnsupported => "update the guest agent, or allow guest-fsfreeze-* in its configuration",
            Cause::VssMissing => {
                "repair the agent's VSS provider: run 'qemu-ga -s vss-install' in the guest as administrator"
            }
            Cause::FreezeRefused => {
                "read the guest's words; SELinux in the guest may forbid its agent to open mount points"
            }
            Cause::HookFailed => "run the freeze hook in the guest by hand and mend what it complains about",
            Cause::VssFailed => {
                "run 'vssadmin list writers' in the guest and restart the services of writers that have failed"
            }
            Cause::FreezeTimeout => {
                "look for a freeze hook or VSS writer that hangs, or allow more time (other-config:tanada-freeze-seconds)"
            }
            Cause::NothingFrozen => {
                "none of the guest's file systems can be frozen; stop its services before the snapshot"
            }
            Cause::StorageTooSlow => {
                "the storage takes too long for a snapshot; look for its load, or use other-config:tanada-quiesce=skip"
            }
            Cause::GuardFailed => "look into the daemon's log for why the guard did not start or died",
            Cause::HoldLapsed => "repeat at a quieter time: Windows holds its writes for ten seconds at most",
            Cause::CutTooLate => "look for what slowed the storage down, and repeat",
            Cause::CountMismatch | Cause::ThawedEarly => {
                "look for another program that thaws file systems in the guest"
            }
            Cause::WriterFailed => {
                "restart the services of the writers that failed; the Application event log of the guest says why they did"
            }
            Cause::ThawFailed => "read the guest's words; its thaw hook or VSS provider complains",
            Cause::ThawUnconfirmed => "look whether the guest is hung; thawing is being repeated",
            Cause::NoProof => "use a guest agent that tells the guest's operating system (guest-get-osinfo)",
            Cause::VerificationLost => "repeat the snapshot",
            Cause::FrozenByOther => "look for another backup tool that freezes this guest; repeat when it has ended",
        })
    }
}

/// Why a snapshot is not more than it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downgrade {
    /// `None` where another version wrote a code that this one does not know.
    pub cause: Option<Cause>,
    /// What happened, in words that name the thing.
    pub words: String,
}

impl Downgrade {
    pub fn new(cause: Cause, words: impl Into<String>) -> Downgrade {
        Downgrade { cause: Some(cause), words: words.into() }
    }

    /// What happened, and what to do.
    pub fn with_advice(&self) -> String {
        match self.cause.and_then(Cause::advice) {
            Some(advice) => format!("{}. Advice: {advice}", self.words),
            None => self.words.clone(),
        }
    }
}

/// Is this what an agent on Windows says to every question about freezing when its VSS provider does not work?
pub fn is_without_vss(message: &str) -> bool {
    message.contains("VSS failed to initialize")
}

/// What a guest means by refusing to freeze, by its agent's texts (7.2 to 10.0; some agents append details).
pub fn of_refused_freeze(message: &str) -> Cause {
    const KNOWN: &[(&str, Cause)] = &[
        ("agent is in frozen state", Cause::FrozenByOther),
        // What newer agents say when they are frozen. An agent that is forbidden to freeze is not asked.
        ("command is not allowed", Cause::FrozenByOther),
        ("VSS failed to initialize", Cause::VssMissing),
        ("has been disabled", Cause::FreezeUnsupported),
        ("has not been found", Cause::FreezeUnsupported),
        ("fsfreeze hook", Cause::HookFailed),
        ("Frozen event from VSS provider", Cause::VssFailed),
        ("DoSnapshotSet exited", Cause::VssFailed),
        ("to snapshot set", Cause::VssFailed),
        ("failed to prepare", Cause::VssFailed),
        ("failed to gather", Cause::VssFailed),
        ("VSS", Cause::VssFailed),
    ];
    let known = KNOWN.iter().find(|(part, _)| message.contains(part));
    known.map_or(Cause::FreezeRefused, |(_, cause)| *cause)
}

/// The same for a thaw: the one text that says that Windows did not hold its writes, or another complaint.
pub fn of_refused_thaw(message: &str) -> Cause {
    if message.contains("couldn't hold writes") { Cause::HoldLapsed } else { Cause::ThawFailed }
}

#[cfg(test)]
mod tests {
    use super::{Cause, of_refused_freeze, of_refused_thaw};

    #[test]
    fn codes_are_unique_and_found_again() {
        for cause in Cause::ALL {
            assert_eq!(Cause::from_code(cause.code()), Some(cause));
        }
        assert_eq!(Cause::from_code("unheard-of"), None);
    }

    #[test]
    fn the_agents_texts_are_told_apart() {
        for (text, cause) in [
            ("guest-fsfreeze-freeze has been disabled: the agent is in frozen state", Cause::FrozenByOther),
            ("Command guest-fsfreeze-freeze has been disabled: the command is not allowed", Cause::FrozenByOther),
            ("Command guest-fsfreeze-freeze has been disabled", Cause::FreezeUnsupported),
            ("The command guest-fsfreeze-freeze has not been found", Cause::FreezeUnsupported),
            ("fsfreeze not possible as VSS failed to initialize", Cause::VssMissing),
            ("fsfreeze hook has failed with status 1", Cause::HookFailed),
            ("failed to open /mnt: Permission denied", Cause::FreezeRefused),
            ("failed to add C:\\ to snapshot set: Windows error 0x8004230f", Cause::VssFailed),
            ("timeout when try to receive Frozen event from VSS provider", Cause::VssFailed),
        ] {
            assert_eq!(of_refused_freeze(text), cause, "{text}");
        }
        assert_eq!(
            of_refused_thaw("couldn't hold writes: fsfreeze is limited up to 10 seconds: Windows error 0x80042314"),
            Cause::HoldLapsed
        );
        assert_eq!(of_refused_thaw("unexpected error in VSS provider"), Cause::ThawFailed);
    }
}
