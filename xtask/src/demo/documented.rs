//! Backups as `docs/backup.md` has them: `examples/incremental_backup.py` on another computer, over HTTPS and NBD.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::prepare;
use super::world::World;
use crate::consistency::server::{self, Mode, Server, Told};
use crate::sh;

/// Transactions that show it.
const WORK: usize = 10;

/// A night in the script's directory, and what the clients had told when it was cut.
pub struct Night {
    number: u32,
    told: Told,
}

impl Night {
    pub fn name(&self) -> String {
        format!("night {} of the script", self.number)
    }

    pub fn told(&self) -> &Told {
        &self.told
    }
}

fn directory(world: &World) -> PathBuf {
    world.dir.join("script")
}

fn script(args: &[&str]) -> Result<String> {
    let script = sh::root().join("examples/incremental_backup.py").display().to_string();
    sh::output("/usr/bin/python3", &[&[script.as_str()], args].concat())
}

/// What the newcomer types every night; this is night `number`. The database is at work again after what came before.
pub fn back_up(world: &mut World, server: &Server, number: u32) -> Result<Night> {
    server.wait_for_transactions(world, WORK)?;
    let ledger = server.ledger(world)?;
    let paths = [world.certificate(), world.password_file(), directory(world)].map(|path| path.display().to_string());
    let [certificate, password, to] = paths.each_ref().map(String::as_str);
    let name = world.param("vm", &server.machine.uuid, "name-label")?;
    let host = world.https_url();
    let who = ["--host", &host, "--ca", certificate, "--password-file", password, "--vm", &name];
    let said = script(&[&["backup"], &who[..], &["--to", to]].concat())?;
    said.lines().filter(|line| !line.contains("sha256")).for_each(|line| world.note(line));
    let level = format!("consistency: {}", Mode::Hooks.level());
    if !said.lines().any(|line| line == level) {
        bail!("'{level}' was to be expected:\n{said}");
    }
    Ok(Night { number, told: server.told(world, Mode::Hooks, ledger)? })
}

/// A new machine with the disks of a night; the script compares every block with that night's checksums.
pub fn restore(world: &mut World, sr: &str, night: &Night, devices: &[&str]) -> Result<Machine> {
    let machine = server::empty(world, sr, "restored")?;
    let (from, number) = (directory(world).display().to_string(), night.number.to_string());
    for device in devices {
        let image = world.dir.join("restored.raw");
        let output = image.display().to_string();
        let what = ["--disk", device, "--night", &number, "--output", &output];
        let said = script(&[&["restore", "--to", &from], &what[..]].concat())?;
        world.note(said.lines().next().unwrap_or_default());
        let bytes = image.metadata().with_context(|| format!("the size of {output}"))?.len();
        prepare::add_disk(world, sr, &machine, device, bytes, Some(&image))?;
        std::fs::remove_file(&image).with_context(|| format!("removing {output}"))?;
    }
    Ok(machine)
}
