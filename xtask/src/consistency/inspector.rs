//! A machine that looks into copies: each copy's disks are attached to it, judged from within, and go again. Far quicker than
//! booting each.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tanada_witness::ledger::Found;

use super::server::bare;
use crate::demo::eventually;
use crate::demo::machine::Machine;
use crate::demo::world::World;

const LIMIT: Duration = Duration::from_secs(600);
const UNPLUG_LIMIT: Duration = Duration::from_secs(180);
/// A disk shows so much of its VDI's uuid as its serial number.
const SERIAL_CHARS: usize = 20;

pub struct Inspector {
    machine: Machine,
}

/// What was seen in one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// File systems whose superblock asks for a replay of the journal.
    pub dirty_journals: usize,
    /// Replays that the kernel told of when they were mounted.
    pub replays: usize,
    /// The database went through crash recovery.
    pub recovered: bool,
    pub found: Found,
}

impl Seen {
    /// From the lines of the guest's `inspect`. An error where a file system is damaged or the database complains.
    pub fn parse(text: &str) -> Result<Seen> {
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let count = |wanted: &[&str]| lines.iter().filter(|line| line.starts_with(wanted)).count();
        let dirty = lines.iter().filter(|line| matches!(line[..], ["journal", _, "replay"])).count();
        let clean = lines.iter().filter(|line| matches!(line[..], ["journal", _, "clean"])).count();
        let sound = lines.iter().filter(|line| matches!(line[..], ["check", _, "sound"])).count();
        if dirty + clean != 3 || sound != 3 || count(&["kernel"]) + count(&["server"]) > 0 {
            bail!("three sound file systems and a database without complaints expected:\n{text}");
        }
        let recovered = match (count(&["database", "recovered"]), count(&["database", "clean"])) {
            (1, 0) => true,
            (0, 1) => false,
            _ => bail!("it does not say how the database started:\n{text}"),
        };
        let replays = lines.iter().find_map(|line| match line[..] {
            ["replays", number] => number.parse().ok(),
            _ => None,
        });
        let replays = replays.with_context(|| format!("it does not count replays:\n{text}"))?;
        Ok(Seen { dirty_journals: dirty, replays, recovered, found: Found::parse(text)? })
    }

    pub fn untouched(&self) -> bool {
        self.dirty_journals == 0 && self.replays == 0
    }
}

impl Inspector {
    /// Boots one from the database guest's root.
    pub fn start(world: &World, sr: &str, root: &Path) -> Result<Inspector> {
        let machine = bare(world, sr, "inspector", root)?;
        machine.start(world)?;
        Ok(Inspector { machine })
    }

    /// Judges an instance of a template; the instance is gone afterwards.
    pub fn inspect(&self, world: &World, template: &Machine) -> Result<Seen> {
        let name = "new-name-label=inspected";
        let uuid = world.xe(&["vm-install", &format!("template={}", template.uuid), name])?;
        let instance = Machine { uuid };
        let mut plugs = Vec::new();
        let mut serials = String::new();
        for device in ["0", "1", "2"] {
            let vdi = instance.disk(world, device)?;
            let serial: String = vdi.chars().take(SERIAL_CHARS).collect();
            serials = format!("{serials} {serial}");
            let machine = format!("vm-uuid={}", self.machine.uuid);
            let disk = format!("vdi-uuid={vdi}");
            let vbd = world.xe(&["vbd-create", &machine, &disk, "device=autodetect", "mode=RW", "type=Disk"])?;
            world.xe(&["vbd-plug", &format!("uuid={vbd}")])?;
            plugs.push(vbd);
        }
        let text = self.machine.guest_within(world, &format!("inspect{serials}"), LIMIT)?;
        for vbd in plugs {
            // A guest on a busy host may let go of a disk later than the daemon waits for it.
            eventually("the inspector lets go of a disk", UNPLUG_LIMIT, || {
                if world.param("vbd", &vbd, "currently-attached")? == "false" {
                    return Ok(());
                }
                world.xe(&["vbd-unplug", &format!("uuid={vbd}")]).map(drop)
            })?;
            world.xe(&["vbd-destroy", &format!("uuid={vbd}")])?;
        }
        world.xe(&["vm-uninstall", &format!("uuid={}", instance.uuid), "force=true"])?;
        Seen::parse(&text).with_context(|| format!("the copy of {}", template.uuid))
    }

    pub fn stop(self, world: &World) -> Result<()> {
        world.xe(&["vm-uninstall", &format!("uuid={}", self.machine.uuid), "force=true"]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    const CLEAN: &str = "journal root clean\njournal data clean\njournal log clean\nreplays 0\ndatabase clean\n\
                         check /dev/vdb2 sound\ncheck /dev/vdc sound\ncheck /dev/vdd sound\nsum 0\nhalf 0\nwrong 0\n\
                         client 1 7 absent=\n";

    #[test]
    fn a_clean_copy_and_one_that_recovers() {
        let seen = Seen::parse(CLEAN).unwrap();
        assert!(seen.untouched() && !seen.recovered);
        let crash = CLEAN.replace("log clean", "log replay").replace("replays 0", "replays 1");
        let seen = Seen::parse(&crash.replace("database clean", "database recovered")).unwrap();
        assert_eq!((seen.dirty_journals, seen.replays, seen.recovered), (1, 1, true));
        assert!(!seen.untouched());
    }

    #[test]
    fn damage_and_silence_are_no_success() {
        for bad in [
            CLEAN.replace("check /dev/vdc sound", "check /dev/vdc damaged"),
            CLEAN.replace("check /dev/vdc sound\n", ""),
            CLEAN.replace("journal log clean\n", ""),
            CLEAN.replace("database clean\n", ""),
            CLEAN.replace("replays 0", "server PANIC: could not locate a valid checkpoint record"),
            CLEAN.replace("half 0\n", ""),
        ] {
            Seen::parse(&bad).expect_err(&bad);
        }
    }
}
