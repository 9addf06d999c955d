//! What the demo's repository is on: the embedded store, or a simulated array.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::world::World;
use crate::sh;

/// `--sr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tanada,
    Netapp,
    Equal,
}

impl Kind {
    pub fn parse(name: &str) -> Result<Kind> {
        match name {
            "tanada" => Ok(Kind::Tanada),
            "netapp" => Ok(Kind::Netapp),
            "equal" => Ok(Kind::Equal),
            other => bail!("--sr {other}: tanada, netapp or equal expected"),
        }
    }

    /// The `type` of the SR.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Tanada => "tanada",
            Kind::Netapp => "netapp",
            Kind::Equal => "equal",
        }
    }

    const fn simulator(self) -> Option<&'static str> {
        match self {
            Kind::Tanada => None,
            Kind::Netapp => Some("sim-ontap"),
            Kind::Equal => Some("sim-equallogic"),
        }
    }

    /// The device-config key that sr-create asks for last, and the error that lists its choices.
    const fn container(self) -> (&'static str, &'static str) {
        match self {
            Kind::Tanada => ("location", "SR_BACKEND_FAILURE_94"),
            Kind::Netapp => ("aggregate", "SR_BACKEND_FAILURE_123"),
            Kind::Equal => ("storagepool", "SR_BACKEND_FAILURE_163"),
        }
    }
}

/// A simulator that runs, ended when dropped.
pub struct Array {
    kind: Kind,
    process: Option<Child>,
    /// What it said of itself when it was ready.
    facts: Value,
}

impl Array {
    /// Starts the simulator of `kind` with its blocks below `dir`; `None` for the embedded store.
    pub fn start(kind: Kind, dir: &Path, dev: bool) -> Result<Option<Array>> {
        let Some(program) = kind.simulator() else { return Ok(None) };
        let binary = sh::program(program, dev)?;
        let dir = dir.join("array");
        fs::create_dir_all(&dir).context("making the simulator's directory")?;
        let log = fs::File::create(dir.with_extension("log"))?;
        let mut process = Command::new(&binary)
            .arg("--dir")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let output = process.stdout.take().context("the simulator's output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("reading what the simulator says")?;
        let facts = serde_json::from_str(&line).with_context(|| format!("{program} says {line:?} when it is ready"))?;
        Ok(Some(Array { kind, process: Some(process), facts }))
    }

    fn fact(&self, name: &str) -> Result<&str> {
        let fact = self.facts.get(name).and_then(Value::as_str);
        fact.with_context(|| format!("the simulator does not say its {name}: {}", self.facts))
    }

    /// Without the container.
    fn device_config(&self) -> Result<Vec<(&'static str, String)>> {
        match self.kind {
            Kind::Tanada => Ok(Vec::new()),
            Kind::Netapp => Ok(vec![
                ("target", self.fact("address")?.to_owned()),
                ("username", self.fact("user")?.to_owned()),
                ("password", self.fact("password")?.to_owned()),
                ("fingerprint", self.fact("fingerprint")?.to_owned()),
                ("svm", self.fact("svm")?.to_owned()),
            ]),
            Kind::Equal => {
                let (host, port) = self.fact("ssh")?.rsplit_once(':').context("address:port of the simulator's CLI")?;
                Ok(vec![
                    ("target", host.to_owned()),
                    ("port", port.to_owned()),
                    ("username", "grpadmin".to_owned()),
                    ("password", PASSWORD_EQUAL.to_owned()),
                    ("hostkey", self.fact("fingerprint")?.to_owned()),
                    ("portal", self.fact("portal")?.to_owned()),
                ])
            }
        }
    }

    /// All its iSCSI connections break, as when a controller restarts.
    pub fn restart_controller(&self) -> Result<()> {
        let process = self.process.as_ref().context("the simulator was let go")?;
        let pid = i32::try_from(process.id()).context("a process id")?;
        // SAFETY: kill has no preconditions; the process is our child and not reaped.
        if unsafe { libc::kill(pid, libc::SIGUSR1) } != 0 {
            return Err(std::io::Error::last_os_error()).context("telling the simulator to restart");
        }
        Ok(())
    }
}

impl Array {
    /// It runs on after us.
    pub fn keep(mut self) {
        self.process = None;
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// The simulators' own.
const PASSWORD_NETAPP: &str = "netapp1!";
const PASSWORD_EQUAL: &str = "grpadmin";

fn arguments(config: &[(&'static str, String)]) -> Vec<String> {
    config.iter().map(|(key, value)| format!("device-config:{key}={value}")).collect()
}

/// An SR on the array: asked for without the container it lists what there is, then it is made on the first.
pub fn repository(world: &mut World, array_kind: Kind) -> Result<String> {
    let mut args = vec![
        "sr-create".to_owned(),
        format!("type={}", array_kind.name()),
        "name-label=array".into(),
        "shared=true".into(),
    ];
    args.extend(arguments(&world.array()?.device_config()?));
    let (key, code) = array_kind.container();
    let refusal = world.xe_fails(&args)?;
    let choice = first_choice(&refusal).with_context(|| format!("no choice of {key} in: {refusal}"))?;
    if !refusal.contains(code) && !refusal.contains(key) {
        bail!("sr-create without {key} says '{refusal}', {code} expected");
    }
    world.note(format!("without {key} the choices are told; the first is {choice}"));
    args.push(format!("device-config:{key}={choice}"));
    world.xe(&args)
}

/// The content of the first `Name` element.
fn first_choice(xml: &str) -> Option<String> {
    let from = xml.find("<Name>")? + "<Name>".len();
    let length = xml[from..].find("</Name>")?;
    Some(xml[from..from + length].trim().to_owned())
}

/// The SR is let go and introduced again: its disks are found under their names.
pub fn introduce_again(world: &mut World, sr: &str, kind: Kind) -> Result<()> {
    let disks = |world: &World| {
        let listed = world.xe(&["vdi-list", &format!("sr-uuid={sr}"), "params=uuid", "--minimal"])?;
        let mut all = Vec::new();
        for uuid in listed.split(',').filter(|uuid| !uuid.is_empty()) {
            all.push((
                uuid.to_owned(),
                world.param("vdi", uuid, "name-label")?,
                world.param("vdi", uuid, "virtual-size")?,
            ));
        }
        all.sort();
        Ok::<_, anyhow::Error>(all)
    };
    let before = disks(world)?;
    let pbd = world.xe(&["pbd-list", &format!("sr-uuid={sr}"), "--minimal"])?;
    world.xe(&["pbd-unplug", &format!("uuid={pbd}")])?;
    let (key, container) = {
        let key = kind.container().0;
        (key, world.param_key("pbd", &pbd, "device-config", key)?)
    };
    world.xe(&["sr-forget", &format!("uuid={sr}")])?;
    let config = world.array()?.device_config()?;
    let probe: Vec<String> =
        ["sr-probe".to_owned(), format!("type={}", kind.name())].into_iter().chain(arguments(&config)).collect();
    let probed = world.xe(&probe)?;
    if !probed.contains(sr) {
        bail!("sr-probe does not find {sr}: {probed}");
    }
    world.xe(&[
        "sr-introduce",
        &format!("uuid={sr}"),
        &format!("type={}", kind.name()),
        "name-label=array",
        "shared=true",
    ])?;
    let host = world.xe(&["host-list", "--minimal"])?;
    let mut args = vec!["pbd-create".to_owned(), format!("host-uuid={host}"), format!("sr-uuid={sr}")];
    args.extend(arguments(&config));
    args.push(format!("device-config:{key}={container}"));
    let pbd = world.xe(&args)?;
    world.xe(&["pbd-plug", &format!("uuid={pbd}")])?;
    let after = disks(world)?;
    if after != before {
        bail!("the introduced SR shows other disks: {before:?} before, {after:?} after");
    }
    world.note(format!("probed, introduced, plugged: {} disks with their names and sizes", after.len()));
    Ok(())
}

/// Everything that was made goes, and the array holds nothing of it any more.
pub fn nothing_left(world: &mut World, sr: &str, kind: Kind) -> Result<()> {
    for (class, word) in [("snapshot", "snapshot-uuid"), ("vm", "uuid")] {
        let listed = match class {
            "vm" => world.xe(&["vm-list", "is-control-domain=false", "--minimal"])?,
            _ => world.xe(&["snapshot-list", "--minimal"])?,
        };
        for uuid in listed.split(',').filter(|uuid| !uuid.is_empty()) {
            world.xe(&[&format!("{class}-uninstall"), &format!("{word}={uuid}"), "force=true"])?;
        }
    }
    world.xe(&["sr-scan", &format!("uuid={sr}")])?;
    for uuid in
        world.xe(&["vdi-list", &format!("sr-uuid={sr}"), "--minimal"])?.split(',').filter(|uuid| !uuid.is_empty())
    {
        world.xe(&["vdi-destroy", &format!("uuid={uuid}")])?;
    }
    let pending = world.xe(&["task-list", "status=pending", "--minimal"])?;
    if !pending.is_empty() {
        bail!("tasks are still pending: {pending}");
    }
    let pbd = world.xe(&["pbd-list", &format!("sr-uuid={sr}"), "--minimal"])?;
    world.xe(&["pbd-unplug", &format!("uuid={pbd}")])?;
    world.xe(&["sr-destroy", &format!("uuid={sr}")])?;
    let config = world.array()?.device_config()?;
    let probe: Vec<String> =
        ["sr-probe".to_owned(), format!("type={}", kind.name())].into_iter().chain(arguments(&config)).collect();
    let probed = world.xe(&probe)?;
    if probed.contains("<UUID>") {
        bail!("after sr-destroy sr-probe still finds: {probed}");
    }
    no_password_told(world)?;
    world.note("sr-destroy; sr-probe finds nothing; no log tells the array's password");
    Ok(())
}

/// The daemon's log holds no password, nor does the state beside it.
fn no_password_told(world: &World) -> Result<()> {
    let log = fs::read_to_string(world.log_path()).context("the daemon's log")?;
    for password in [PASSWORD_NETAPP, PASSWORD_EQUAL] {
        // The account has the same name on some arrays: only what looks like the password counts.
        if log.contains(&format!("password={password}")) || log.contains(&format!("\"{password}\"")) {
            bail!("{} tells the array's password", world.log_path().display());
        }
    }
    Ok(())
}
