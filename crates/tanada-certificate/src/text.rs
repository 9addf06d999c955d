//! The certificate for people: what `xe snapshot-certificate` prints.

use std::fmt::{self, Display, Formatter};

use crate::certificate::{Certificate, DiskEntry, Freeze, Held, Level, Method};

impl Level {
    /// What the level is good for, in one sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            Level::Crash => "as after a power cut: file systems and databases recover when they are started",
            Level::FileSystem => "file systems need no recovery; programs find their files as after a power cut",
            Level::Application => "programs that take part in freezing were at rest, and file systems need no recovery",
            Level::ShutDown => "the machine was shut down; nothing was in memory only",
            Level::Memory => "memory and disks are of one instant; programs go on where they were",
        }
    }
}

/// Microseconds in the unit that a person would use.
pub(crate) struct Time(pub u64);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ 0..=9_999 => write!(f, "{us} us"),
            us @ 10_000..=9_999_999 => write!(f, "{} ms", us / 1000),
            us => write!(f, "{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
        }
    }
}

impl Display for Certificate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        line(f, "consistency", format_args!("{} ({})", self.level.name(), self.level.meaning()))?;
        if self.method != Method::None {
            line(f, "method", format_args!("{}", self.method.name()))?;
        }
        line(f, "machine", format_args!("{}", or_unknown(&self.power_state)))?;
        if !self.guest.os.is_empty() || !self.guest.os_id.is_empty() {
            let os = if self.guest.os.is_empty() { &self.guest.os_id } else { &self.guest.os };
            line(f, "guest", format_args!("{}", Clean(os)))?;
        }
        if !self.guest.agent.is_empty() {
            line(f, "agent", format_args!("{}", Clean(&self.guest.agent)))?;
        }
        if let Some(freeze) = &self.freeze {
            write_freeze(f, freeze)?;
        }
        self.write_cut(f)?;
        for (number, disk) in &self.disks {
            write_disk(f, *number, disk)?;
        }
        for participant in &self.participants {
            let result = if participant.ok { "ok" } else { "FAILED" };
            let told = format_args!("{}: {result}, {}", Clean(&participant.name), Clean(&participant.result));
            line(f, "took part", told)?;
        }
        if let Some(downgrade) = &self.downgrade {
            line(f, "not more because", format_args!("{}", Clean(&downgrade.words)))?;
            if let Some(advice) = downgrade.cause.and_then(crate::Cause::advice) {
                line(f, "advice", format_args!("{advice}"))?;
            }
        }
        self.notes.iter().try_for_each(|note| line(f, "note", format_args!("{}", Clean(note))))
    }
}

impl Certificate {
    fn write_cut(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let cut = &self.cut;
        let waited = format_args!("{}", Time(cut.pause_us)).to_string();
        let waited = match cut.writes_observed {
            0 => "no write of the guest met it".to_owned(),
            1 => format!("one write of the guest met it and waited {waited} at most"),
            writes => format!("{writes} writes of the guest met it and waited {waited} at most"),
        };
        line(f, "cut", format_args!("took {}; {waited}", Time(cut.total_us)))?;
        match (cut.skew_us, cut.held_us) {
            (0, None) => line(f, "instant", format_args!("all disks at one instant")),
            (0, Some(held)) => line(f, "instant", format_args!("one: the machine was held for {}", Time(held))),
            (skew, Some(held)) => {
                let held = Time(held);
                let words = format_args!("cut within {}, while the machine was held for {held}", Time(skew));
                line(f, "instant", words)
            }
            (skew, None) => line(f, "instant", format_args!("disks are up to {} apart", Time(skew))),
        }
    }
}

fn write_freeze(f: &mut Formatter<'_>, freeze: &Freeze) -> fmt::Result {
    let (frozen, time, asked) = (freeze.frozen, Time(freeze.frozen_us), Time(freeze.asked_us));
    line(f, "frozen", format_args!("{frozen} file systems for {time}, after {asked} of freezing"))?;
    let held = match freeze.held {
        Held::Yes => "held until after the cut",
        Held::No => "did NOT hold until after the cut",
        Held::Unknown => "not known whether it held",
    };
    let after = Time(freeze.cut_after_us);
    line(f, "freeze", format_args!("{held} ({after} after it began): {}", Clean(&freeze.verified_by)))?;
    match freeze.thawed {
        Some(thawed) => line(f, "thawed", format_args!("{thawed} file systems"))?,
        None => line(f, "thawed", format_args!("the guest did not say how many file systems"))?,
    }
    match &freeze.thaw_error {
        Some(error) => line(f, "thaw error", format_args!("{}", Clean(error))),
        None => Ok(()),
    }
}

fn write_disk(f: &mut Formatter<'_>, number: u32, disk: &DiskEntry) -> fmt::Result {
    let mounts: Vec<String> = disk.mounts.iter().map(|mount| Clean(mount).to_string()).collect();
    let mounted = if mounts.is_empty() { String::new() } else { format!(", mounted at {}", mounts.join(", ")) };
    let (vdi, sr) = (Clean(&disk.vdi), Clean(&disk.sr));
    line(f, &format!("disk {number}"), format_args!("{}, VDI {vdi} on SR {sr}{mounted}", disk.level.name()))
}

fn line(f: &mut Formatter<'_>, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(f, "{name:>17}: {value}")
}

fn or_unknown(text: &str) -> Clean<'_> {
    Clean(if text.is_empty() { "unknown" } else { text })
}

/// A text from elsewhere on one line of a terminal: what could move the cursor is shown, not sent.
pub(crate) struct Clean<'a>(pub &'a str);

impl Display for Clean<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            if letter.is_control() { write!(f, "{}", letter.escape_default())? } else { write!(f, "{letter}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::certificate::{Certificate, Cut, DiskEntry, Freeze, GuestFacts, Held, Level, Method};
    use crate::{Cause, Downgrade};

    #[test]
    fn a_good_one_reads_as_a_page() {
        let certificate = Certificate {
            level: Level::FileSystem,
            method: Method::Fsfreeze,
            power_state: "Running".into(),
            guest: GuestFacts { os: "Debian 12".into(), os_id: "debian".into(), agent: "qemu-ga 7.2.22".into() },
            freeze: Some(Freeze {
                frozen_us: 61_000,
                asked_us: 52_000,
                cut_after_us: 900,
                frozen: 2,
                thawed: Some(2),
                held: Held::Yes,
                verified_by: "as many were thawed as had been frozen".into(),
                thaw_error: None,
            }),
            cut: Cut { total_us: 41, pause_us: 30, writes_observed: 3, skew_us: 0, held_us: None },
            disks: [(0, DiskEntry { vdi: "v".into(), sr: "s".into(), level: Level::FileSystem, ..Default::default() })]
                .into(),
            ..Certificate::default()
        };
        let expected = "      \
      consistency: file system (file systems need no recovery; programs find their files as after a power cut)
           method: fsfreeze
          machine: Running
            guest: Debian 12
            agent: qemu-ga 7.2.22
           frozen: 2 file systems for 61 ms, after 52 ms of freezing
           freeze: held until after the cut (900 us after it began): as many were thawed as had been frozen
           thawed: 2 file systems
              cut: took 41 us; 3 writes of the guest met it and waited 30 us at most
          instant: all disks at one instant
           disk 0: file system, VDI v on SR s
";
        assert_eq!(certificate.to_string(), expected);
    }

    #[test]
    fn a_downgrade_comes_with_advice_and_no_text_moves_the_cursor() {
        let certificate = Certificate {
            downgrade: Some(Downgrade::new(Cause::AgentAbsent, "the guest has no agent\u{1b}[2J")),
            ..Certificate::default()
        };
        let text = certificate.to_string();
        assert!(text.contains("not more because: the guest has no agent\\u{1b}[2J\n"), "{text}");
        assert!(text.contains("advice: install and start the QEMU guest agent"), "{text}");
    }
}
