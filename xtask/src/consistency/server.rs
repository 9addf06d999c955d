//! The database machine: its clients, their ledger on the host, and its snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tanada_witness::ledger::{Found, Ledger, Verdict};

use crate::demo::eventually;
use crate::demo::machine::Machine;
use crate::demo::prepare;
use crate::demo::world::World;
use crate::guest::database::DatabaseGuest;

pub const SOCKET: &str = "/run/postgresql/.s.PGSQL.5432";
/// The serial console, whose other end is a file of the host.
const LEDGER: &str = "/dev/ttyS0";
const MEMORY_MIB: u32 = 384;
/// Between two transactions of one client, so that a guest without hardware help does something else too.
const PAUSE_MS: u32 = 10;
/// For whatever a guest on a busy host has to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// What [`Server::recoveries`] says of a copy that was at rest.
pub const AT_REST: &str = "journals replayed: 0, database recovered: 0";

/// How the guest is quiesced; the administrator's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A freeze hook stops the database.
    Hooks,
    /// The file systems alone are frozen.
    Frozen,
    /// The guest is not asked.
    Crash,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::Hooks, Mode::Frozen, Mode::Crash];

    pub fn name(self) -> &'static str {
        match self {
            Mode::Hooks => "hooks",
            Mode::Frozen => "frozen",
            Mode::Crash => "crash",
        }
    }

    /// What a snapshot's `snapshot_info:consistency` has to say.
    pub fn level(self) -> &'static str {
        match self {
            Mode::Hooks => "application",
            Mode::Frozen => "file system",
            Mode::Crash => "crash",
        }
    }
}

/// A running machine with a database that works.
pub struct Server {
    pub machine: Machine,
    clients: Vec<u32>,
}

/// A snapshot of a server, with what its clients had told when it was asked for and when it was answered.
pub struct Shot {
    pub template: Machine,
    pub name: String,
    pub mode: Mode,
    pub info: BTreeMap<String, String>,
    told: Told,
}

/// What the clients of a server had told before an instant that was cut, and after it.
pub struct Told {
    before: Ledger,
    after: Ledger,
}

impl Server {
    /// A new machine from the guest's images, running.
    pub fn install(world: &World, sr: &str, guest: &DatabaseGuest) -> Result<Server> {
        let machine = bare(world, sr, "database", &guest.root)?;
        for (device, image) in [("1", &guest.data), ("2", &guest.wal)] {
            prepare::add_disk(world, sr, &machine, device, image.metadata()?.len(), Some(image))?;
        }
        machine.start(world)?;
        // Waits for the database to open.
        machine.guest_within(world, &format!("tanada-teller prepare {SOCKET}"), PATIENCE)?;
        Ok(Server { machine, clients: Vec::new() })
    }

    /// A machine made of a snapshot or a backup, started; the database is open when this returns.
    pub fn boot(world: &World, machine: Machine) -> Result<Server> {
        machine.start(world)?;
        let server = Server { machine, clients: Vec::new() };
        server.wait_until_open(world)?;
        Ok(server)
    }

    fn wait_until_open(&self, world: &World) -> Result<()> {
        eventually("the database opens", PATIENCE, || self.audit(world)).map(drop)
    }

    /// What is in the database.
    pub fn audit(&self, world: &World) -> Result<Found> {
        let command = format!("tanada-teller audit {SOCKET} || {{ tail -n 5 /run/postgresql/log >&2; exit 1; }}");
        Found::parse(&self.machine.guest_within(world, &command, PATIENCE)?)
    }

    /// What was recovered when this machine booted; [`AT_REST`] where nothing had to be.
    pub fn recoveries(&self, world: &World) -> Result<String> {
        self.machine.guest(
            world,
            "echo journals replayed: $(dmesg | grep -c 'EXT4-fs.*recovery complete'), \
             database recovered: $(grep -c 'was not properly shut down' /run/postgresql/log)",
        )
    }

    /// Clients that work until the machine ends; their numbers must be new to this machine.
    pub fn start_clients(&mut self, world: &World, numbers: &[u32]) -> Result<()> {
        for number in numbers {
            let command = format!(
                "setsid tanada-teller work {SOCKET} {LEDGER} {number} {PAUSE_MS} >/run/client.{number} 2>&1 </dev/null &"
            );
            self.machine.guest(world, &command)?;
            self.clients.push(*number);
        }
        self.wait_for_transactions(world, 10)
    }

    /// Waits until so many more transactions are acknowledged.
    pub fn wait_for_transactions(&self, world: &World, count: usize) -> Result<()> {
        let wanted = self.ledger(world)?.done() + count;
        eventually("the clients' transactions are acknowledged", PATIENCE, || {
            let done = self.ledger(world)?.done();
            if done < wanted {
                bail!("{done} of {wanted} so far");
            }
            Ok(())
        })
        .or_else(|error| {
            let said = self.machine.guest(world, "cat /run/client.*; tail -n 5 /run/postgresql/log")?;
            Err(error.context(format!("the clients say: {said}")))
        })
    }

    /// Everything that the clients told so far.
    pub fn ledger(&self, world: &World) -> Result<Ledger> {
        Ok(Ledger::read(&self.console(world)?))
    }

    fn console(&self, world: &World) -> Result<String> {
        let path = world.dir.join("run/vm").join(&self.machine.uuid).join("serial.log");
        let bytes = fs::read(&path).with_context(|| format!("reading the console {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sets the guest and its machine up for a mode.
    pub fn prepare(&self, world: &World, mode: Mode) -> Result<()> {
        let hook = if mode == Mode::Hooks { "+x" } else { "-x" };
        self.machine.guest(world, &format!("chmod {hook} /etc/qemu/fsfreeze-hook.d/postgresql && sync"))?;
        let policy = if mode == Mode::Crash { "skip" } else { "force" };
        self.set(world, "tanada-quiesce", policy)?;
        if mode == Mode::Hooks {
            self.set(world, "tanada-hooks", "declared")?;
        } else if world.param("vm", &self.machine.uuid, "other-config")?.contains("tanada-hooks") {
            let vm = format!("uuid={}", self.machine.uuid);
            world.xe(&["vm-param-remove", &vm, "param-name=other-config", "param-key=tanada-hooks"])?;
        }
        // A stop of the database writes out what is in memory: on a busy host without hardware help that takes a while.
        self.set(world, "tanada-freeze-seconds", "120")
    }

    pub fn set(&self, world: &World, key: &str, value: &str) -> Result<()> {
        world
            .xe(&["vm-param-set", &format!("uuid={}", self.machine.uuid), &format!("other-config:{key}={value}")])
            .map(drop)
    }

    /// A snapshot while the clients work.
    pub fn shoot(&self, world: &World, mode: Mode, name: &str) -> Result<Shot> {
        let before = self.ledger(world)?;
        let label = format!("new-name-label={name}");
        let uuid = world.xe(&["vm-snapshot", &format!("uuid={}", self.machine.uuid), &label])?;
        self.shot(world, mode, name, uuid, before)
    }

    /// A snapshot that somebody else has taken since the ledger was `before`.
    pub fn shot(&self, world: &World, mode: Mode, name: &str, uuid: String, before: Ledger) -> Result<Shot> {
        let told = self.told(world, mode, before)?;
        let info = info(world, &uuid)?;
        Ok(Shot { template: Machine { uuid }, name: name.to_owned(), mode, info, told })
    }

    /// For an instant that was cut since the ledger was `before`.
    pub fn told(&self, world: &World, mode: Mode, before: Ledger) -> Result<Told> {
        let console = self.console(world)?;
        let after = Ledger::read(&console);
        // With the database at rest, what was acknowledged until then is known to the last transaction.
        let before = match mode {
            Mode::Hooks => {
                let stopped = Ledger::read_until_mark(&console, "stopped").context("the hook left no mark")?;
                if stopped.done() < before.done() {
                    bail!("the hook's mark is older than the snapshot: the database was not stopped for it");
                }
                stopped
            }
            Mode::Frozen | Mode::Crash => before,
        };
        Ok(Told { before, after })
    }
}

/// A machine without disks, not running.
pub fn empty(world: &World, sr: &str, name: &str) -> Result<Machine> {
    let label = format!("new-name-label={name}");
    let uuid = world.xe(&["vm-install", "template=Other install media", &label, &format!("sr-uuid={sr}")])?;
    let machine = Machine { uuid };
    prepare::set_memory(world, &machine, MEMORY_MIB)?;
    Ok(machine)
}

/// A machine with a root disk alone, not running.
pub fn bare(world: &World, sr: &str, name: &str, root: &Path) -> Result<Machine> {
    let machine = empty(world, sr, name)?;
    prepare::add_disk(world, sr, &machine, "0", root.metadata()?.len(), Some(root))?;
    Ok(machine)
}

/// `snapshot_info` as a map.
pub fn info(world: &World, snapshot: &str) -> Result<BTreeMap<String, String>> {
    let text = world.param("snapshot", snapshot, "snapshot-info")?;
    Ok(text
        .split("; ")
        .filter_map(|pair| pair.split_once(": "))
        .map(|(key, value)| (key.into(), value.into()))
        .collect())
}

impl Shot {
    /// A number of `snapshot_info`.
    pub fn number(&self, key: &str) -> Result<u64> {
        let text = self.info.get(key).with_context(|| format!("{}: snapshot_info has no {key}", self.name))?;
        text.parse().with_context(|| format!("{}: {key} is '{text}', a number expected", self.name))
    }

    /// A number of `snapshot_info` that is there where a guest was frozen; else 0.
    pub fn frozen(&self, key: &str) -> Result<u64> {
        if self.mode == Mode::Crash { Ok(0) } else { self.number(key) }
    }

    /// The longest time that a client waited over the snapshot.
    pub fn wait_ms(&self, later: &Ledger) -> u64 {
        self.told.before.longest_wait_ms(later)
    }

    /// Judges a copy as [`Told::judge`] does.
    pub fn judge(&self, found: &Found) -> Result<Verdict> {
        self.told.judge(&self.name, found)
    }
}

impl Told {
    /// Judges a copy by the ledger: an error where it is torn, or where anything acknowledged is missing.
    pub fn judge(&self, name: &str, found: &Found) -> Result<Verdict> {
        let verdict = self.before.judge(&self.after, found).with_context(|| format!("the copy of {name}"))?;
        if verdict.lost > 0 {
            bail!("the copy of {name} has lost {} of {} committed transactions", verdict.lost, verdict.required);
        }
        Ok(verdict)
    }
}
