//! A freeze tried out: every step that a quiesced snapshot takes in the guest, without a cut, told one by one.
//!
//! ```text
//!   port ─▶ agent ─▶ system ─▶ (Windows: backup type, writers | Linux: hooks) ─▶ storage ─▶ freeze ─▶ hold ─▶ thaw ─▶ writers
//! ```
//! The guest is frozen by the sequence that snapshots use ([`crate::sequence`]), with its guard, its limits and its verdict, so
//! what it gets here is what a snapshot would have got. What fails ends the trial; whatever can be asked without freezing
//! never does. A VM whose policy is not to be frozen is not frozen here either.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tanada_certificate::check::{Check, Outcome};
use tanada_qemu::QemuError;
use tanada_qemu::agent::{ExecRequest, GuestAgent};
use tokio::time::sleep;

use crate::guard::client::{Ledger, Limits};
use crate::policy::{Policy, Settings};
use crate::probe::{self, Probe};
use crate::sequence::{self, Request};
use crate::verdict::{self, Evidence, Frozen, Os, Thaw};
use crate::vss::{self, BackupType, Writer};
use crate::{Cause, Certificate, Downgrade, GuestFacts};

const PING_LIMIT: Duration = Duration::from_secs(5);
/// For programs that the guest is asked to run; vssadmin waits for every writer.
const EXEC_LIMIT: Duration = Duration::from_secs(30);
/// Prints how the agent was started and its configuration: the shell's parent is the agent.
const AGENT_SETTINGS: &str = "tr '\\0' '\\n' </proc/$PPID/cmdline; echo; cat /etc/qemu/qemu-ga.conf 2>/dev/null";

/// Who is tried, and how.
pub struct Subject<'a> {
    pub agent: &'a GuestAgent,
    /// Has the agent opened its port?
    pub agent_present: bool,
    /// `VM.power_state`.
    pub power_state: &'a str,
    pub settings: &'a Settings,
    /// What the guard is started from.
    pub program: &'a Path,
    /// How long a cut of this VM is expected to take.
    pub expected: Duration,
    /// [`sequence::limits`], except in tests.
    pub limits: fn(Os, &Settings) -> Limits,
    /// How long the guest is to stay frozen.
    pub hold: Duration,
}

/// Tries it. The guest is thawed, or being thawed, when this returns and also when it is dropped.
pub async fn run(subject: &Subject<'_>, ledger: &Arc<dyn Ledger>) -> Check {
    let mut trial = Trial { check: Check::default(), certificate: Certificate::default() };
    trial.certificate.power_state = subject.power_state.to_owned();
    trial.certificate.notes.push("no snapshot was taken: this was a trial".into());
    if let Err(downgrade) = trial.steps(subject, ledger).await {
        trial.certificate.downgrade = Some(downgrade);
    }
    let advice = trial.certificate.downgrade.as_ref().and_then(|downgrade| downgrade.cause).and_then(Cause::advice);
    if let Some(advice) = advice {
        trial.check.advice.insert(0, advice.to_owned());
    }
    trial.check.certificate = trial.certificate.to_map();
    trial.check
}

struct Trial {
    check: Check,
    certificate: Certificate,
}

impl Trial {
    /// An error is what keeps a snapshot from being quiesced; its step has been told.
    async fn steps(&mut self, subject: &Subject<'_>, ledger: &Arc<dyn Ledger>) -> Result<(), Downgrade> {
        self.port(subject)?;
        self.agent(subject).await?;
        let probe = self.system(subject).await?;
        match probe.os {
            Os::Windows => {
                self.backup_type(subject.agent).await;
                self.writers("writers before", subject.agent).await;
            }
            Os::Linux => self.hooks(subject).await,
            Os::Other => {}
        }
        self.storage(subject, &probe);
        if subject.settings.policy == Policy::Skip {
            let words = "not tried: the VM's policy is not to be frozen (other-config:tanada-quiesce=skip)";
            self.check.add("freeze", Outcome::Unknown, 0, words);
            return Err(Downgrade::new(Cause::Skipped, words));
        }
        self.freeze(subject, &probe, ledger).await
    }

    fn fail(&mut self, name: &str, took: Duration, downgrade: Downgrade) -> Downgrade {
        self.check.add(name, Outcome::Failed, micros(took), downgrade.words.clone());
        downgrade
    }

    fn port(&mut self, subject: &Subject<'_>) -> Result<(), Downgrade> {
        if !subject.agent_present {
            let downgrade = Downgrade::new(Cause::AgentAbsent, "no agent in the guest has opened its port");
            return Err(self.fail("port", Duration::ZERO, downgrade));
        }
        self.check.add("port", Outcome::Ok, 0, "an agent in the guest has opened its port");
        Ok(())
    }

    async fn agent(&mut self, subject: &Subject<'_>) -> Result<(), Downgrade> {
        let (answer, took) = timed(subject.agent.ping(PING_LIMIT)).await;
        match answer {
            Ok(()) => {
                self.check.add("agent", Outcome::Ok, micros(took), "it answers");
                Ok(())
            }
            Err(error) => {
                let words = format!("the agent does not answer: {error}");
                Err(self.fail("agent", took, Downgrade::new(Cause::AgentSilent, words)))
            }
        }
    }

    async fn system(&mut self, subject: &Subject<'_>) -> Result<Probe, Downgrade> {
        let (answer, took) = timed(probe::probe(subject.agent)).await;
        let (facts, result) = match answer {
            Ok(probe) => (probe.facts.clone(), Ok(probe)),
            Err((facts, downgrade)) => (facts, Err(downgrade)),
        };
        let words = describe(&facts);
        self.certificate.guest = facts;
        match result {
            Err(downgrade) => Err(self.fail(
                "system",
                took,
                Downgrade { words: format!("{words}: {}", downgrade.words), ..downgrade },
            )),
            Ok(probe) if probe.stray_freeze => {
                let words = format!("{words}; it was found frozen by somebody else and has been thawed");
                self.check.add("system", Outcome::Warning, micros(took), words);
                Ok(probe)
            }
            Ok(probe) => {
                self.check.add("system", Outcome::Ok, micros(took), words);
                Ok(probe)
            }
        }
    }

    async fn backup_type(&mut self, agent: &GuestAgent) {
        let (answer, took) = timed(vss::backup_type(agent, EXEC_LIMIT)).await;
        let (outcome, words) = match answer {
            Ok(BackupType::Copy) => (Outcome::Ok, "copy: the guest's own database backups are left alone".to_owned()),
            Ok(kind) => {
                let key = "set VssOption to 5 (copy) under HKLM\\SYSTEM\\CurrentControlSet\\Services\\QEMU Guest Agent VSS \
                           Provider if the guest makes backups of its databases; upgrades of the agent set it back to 1";
                self.check.advice.push(key.to_owned());
                let words = "databases may take a snapshot for a backup of theirs and start their chains anew";
                (Outcome::Warning, format!("{}: {words}", kind.name()))
            }
            Err(error) => (Outcome::Unknown, cannot_look(&error)),
        };
        self.check.add("backup type", outcome, micros(took), words);
    }

    /// The writers, where they can be asked for.
    async fn writers(&mut self, name: &str, agent: &GuestAgent) -> Option<Vec<Writer>> {
        let (answer, took) = timed(vss::writers(agent, EXEC_LIMIT)).await;
        let (outcome, words) = match &answer {
            Ok(writers) => match vss::failures(writers) {
                None => (Outcome::Ok, format!("{}, none has failed", writers.len())),
                Some(failed) => (Outcome::Failed, failed),
            },
            Err(error) => (Outcome::Unknown, cannot_look(error)),
        };
        self.check.add(name, outcome, micros(took), words);
        answer.ok()
    }

    async fn hooks(&mut self, subject: &Subject<'_>) {
        let request = ExecRequest {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), AGENT_SETTINGS.into()],
            ..ExecRequest::default()
        };
        let (answer, took) = timed(subject.agent.exec(&request, EXEC_LIMIT)).await;
        let active = answer.map(|outcome| hooks_active(&outcome.stdout));
        let (outcome, words) = match (subject.settings.hooks_declared, active) {
            (true, Ok(true)) => (Outcome::Ok, "declared, and the agent was started with them".to_owned()),
            (true, Ok(false)) => {
                let advice = "start the agent with its freeze hook (option -F; Debian's unit leaves it out), or remove \
                              other-config:tanada-hooks: snapshots claim more than they are";
                self.check.advice.push(advice.to_owned());
                (Outcome::Warning, "declared, but the agent was started without them: they do not run".to_owned())
            }
            (false, Ok(true)) => {
                let words = "they run; other-config:tanada-hooks=declared says that they bring programs to rest";
                (Outcome::Ok, words.to_owned())
            }
            (false, Ok(false)) => (Outcome::Ok, "none: the agent was started without them".to_owned()),
            (true, Err(error)) => (Outcome::Unknown, format!("declared; {}", cannot_look(&error))),
            (false, Err(error)) => (Outcome::Unknown, format!("not declared; {}", cannot_look(&error))),
        };
        self.check.add("hooks", outcome, micros(took), words);
    }

    /// Told here; the sequence refuses to freeze by the same measure.
    fn storage(&mut self, subject: &Subject<'_>, probe: &Probe) {
        let window = (subject.limits)(probe.os, subject.settings).window;
        let (expected, window) = (subject.expected.as_millis(), window.as_millis());
        let words = format!("a cut is expected to take {expected} ms; a freeze may last {window} ms");
        let outcome = if expected < window { Outcome::Ok } else { Outcome::Failed };
        self.check.add("storage", outcome, 0, words);
    }

    async fn freeze(
        &mut self,
        subject: &Subject<'_>,
        probe: &Probe,
        ledger: &Arc<dyn Ledger>,
    ) -> Result<(), Downgrade> {
        let request = Request {
            program: subject.program,
            agent: subject.agent,
            probe,
            settings: subject.settings,
            limits: (subject.limits)(probe.os, subject.settings),
            expected: subject.expected.max(subject.hold),
            insist: true,
        };
        let (outcome, took) = timed(sequence::run(&request, ledger, async { sleep(subject.hold).await })).await;
        let mut verdict = verdict::judge(&outcome.evidence);
        if let Some(words) = outcome.guard_failed {
            self.check.add("guard", Outcome::Warning, 0, words);
        }
        match &outcome.evidence {
            Evidence::Frozen { frozen, .. } => self.tell_frozen(frozen),
            Evidence::NotFrozen(downgrade) => {
                self.check.add("freeze", Outcome::Failed, micros(took), downgrade.words.clone());
            }
            Evidence::ShutDown | Evidence::AtRest(_) => {}
        }
        // A guest that has not answered the thaw answers nothing else either.
        if probe.os == Os::Windows
            && outcome.evidence.is_answered()
            && let Some(writers) = self.writers("writers after", subject.agent).await
        {
            self.certificate.participants = vss::judge_writers(&mut verdict, &writers);
        }
        self.certificate.level = verdict.level;
        self.certificate.method = verdict.method;
        self.certificate.freeze = verdict.freeze;
        self.certificate.downgrade = verdict.downgrade;
        self.certificate.downgrade.clone().map_or(Ok(()), Err)
    }

    fn tell_frozen(&mut self, frozen: &Frozen) {
        let count = frozen.count;
        self.check.add("freeze", Outcome::Ok, micros(frozen.asked), format!("{count} file systems or volumes"));
        let (outcome, words) = match (frozen.thawed_before_cut, frozen.flag) {
            (true, _) => (Outcome::Failed, "the time that a freeze may last was over: thawed unasked"),
            (false, Some(false)) => (Outcome::Failed, "the guest was not frozen any more at its end"),
            (false, _) => (Outcome::Ok, "frozen until the thaw was asked for"),
        };
        self.check.add("hold", outcome, micros(frozen.cut_after), words);
        let (outcome, words) = match &frozen.thaw {
            Thaw::Count(count) => (Outcome::Ok, format!("{count} file systems or volumes")),
            Thaw::Error(words) => (Outcome::Failed, words.clone()),
            Thaw::Unanswered(words) => (Outcome::Failed, format!("not answered, it is being repeated: {words}")),
        };
        self.check.add("thaw", outcome, micros(frozen.lasted.saturating_sub(frozen.cut_after)), words);
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    let result = work.await;
    (result, began.elapsed())
}

fn describe(facts: &GuestFacts) -> String {
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    format!("{}, {}", or(&facts.os, "a system that it does not tell"), or(&facts.agent, "an agent without a version"))
}

fn cannot_look(error: &QemuError) -> String {
    format!("cannot be looked at: {error}")
}

/// Does the agent's command line or configuration name a freeze hook?
fn hooks_active(settings: &[u8]) -> bool {
    let text = String::from_utf8_lossy(settings);
    let (arguments, configuration) = text.split_once("\n\n").unwrap_or((&text, ""));
    let by_argument = arguments.lines().any(|line| line.starts_with("-F") || line.starts_with("--fsfreeze-hook"));
    by_argument || configuration.lines().any(|line| line.trim_start().starts_with("fsfreeze-hook"))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::hooks_active;

    #[test]
    fn hooks_are_found_on_the_command_line_and_in_the_configuration() {
        for (settings, active) in [
            ("/usr/sbin/qemu-ga\n\n", false),
            ("/usr/sbin/qemu-ga\n-F\n\n", true),
            ("/usr/sbin/qemu-ga\n-F/etc/qemu/hook\n\n", true),
            ("/usr/sbin/qemu-ga\n--fsfreeze-hook=/x\n\n", true),
            ("/usr/sbin/qemu-ga\n-d\n\n[general]\nfsfreeze-hook=/x\n", true),
            ("/usr/sbin/qemu-ga\n-d\n\n[general]\n# fsfreeze-hook=/x\n", false),
            ("", false),
        ] {
            assert_eq!(hooks_active(settings.as_bytes()), active, "{settings:?}");
        }
    }
}
