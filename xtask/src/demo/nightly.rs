//! `cargo xtask demo --nightly`: what an administrator relies on every night, in one go, on the guest with a database.
//!
//! ```text
//! nights by a schedule, its clock passed in:  1     2      3             4      5
//! the guest's hook:                           ok    ok     fails         ok     ok
//! backups by the documented script:           full  delta                delta
//! the same snapshots as VHD files:            full  delta                delta
//! snapshots kept at last:                                  3             4      5
//! loss: machine and snapshots are gone ─▶ night 2 from full and delta ─▶ checksums, then the database and its ledger
//!                                     └─▶ nights 2 and 4 from the VHD files ─▶ checksums
//! ```
//! Clients work all the time. Everything goes through `xe`, as in [`super`].

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::documented::{self, Night};
use super::machine::{Machine, sha256};
use super::storage::Kind;
use super::world::World;
use super::{Options, finish, prepare, step};
use crate::consistency::server::{self, Mode, Server, Shot};
use crate::guest;
use crate::guest::database::DatabaseGuest;
use crate::setup;

const RETAINED: usize = 3;
/// Transactions between two nights.
const DAYS_WORK: usize = 40;
const DISKS: [&str; 3] = ["0", "1", "2"];

/// Runs the job.
pub fn run(options: Options) -> Result<()> {
    setup::packages()?;
    let base = guest::build()?;
    let guest = guest::database::build(&base)?;
    let mut world = World::start_steered(options.dev, &base.kernel, Kind::Tanada)?;
    let outcome = job(&mut world, &guest);
    finish(world, options.keep, "nightly job", outcome)
}

fn job(world: &mut World, guest: &DatabaseGuest) -> Result<()> {
    let sr = step(world, "sr-create", |world| prepare::storage_repository(world, Kind::Tanada))?;
    let server = step(world, "database-at-work", |world| database(world, &sr, guest))?;
    world.remember_accelerator(true)?;
    step(world, "vmss-create", |world| schedule(world, &server))?;
    let first = step(world, "night-1", |world| night(world, &server, 1, Mode::Hooks))?;
    step(world, "snapshot-certificate", |world| certificate(world, &first))?;
    step(world, "full-backup", |world| documented::back_up(world, &server, 1))?;
    let mut files = vec![step(world, "full-vhd", |world| export(world, &first, None))?];
    let second = step(world, "night-2", |world| night(world, &server, 2, Mode::Hooks))?;
    let chosen = step(world, "delta-backup-1", |world| documented::back_up(world, &server, 2))?;
    files.push(step(world, "delta-vhd-1", |world| export(world, &second, Some(&first)))?);
    step(world, "night-3-freeze-fails", |world| failing_night(world, &server))?;
    let fourth = step(world, "night-4", |world| night(world, &server, 4, Mode::Hooks))?;
    step(world, "delta-backup-2", |world| documented::back_up(world, &server, 3))?;
    files.push(step(world, "delta-vhd-2", |world| export(world, &fourth, Some(&second)))?);
    step(world, "night-5", |world| night(world, &server, 5, Mode::Hooks))?;
    step(world, "retention", |world| retention(world, &server))?;
    step(world, "loss", |world| lose(world, &sr, &server))?;
    let restored = step(world, "restore-night-2", |world| documented::restore(world, &sr, &chosen, &DISKS))?;
    let restored = step(world, "database-opens", |world| opens(world, restored, &chosen))?;
    step(world, "works-on", |world| works_on(world, restored))?;
    step(world, "restore-vhd", |world| [&files[..2], &files].iter().try_for_each(|chain| restore(world, &sr, chain)))?;
    step(world, "store-check", |world| prepare::sound(world, &sr).map(drop))
}

/// A database with its log on another disk, hooks that bring it to rest, and two clients.
fn database(world: &mut World, sr: &str, guest: &DatabaseGuest) -> Result<Server> {
    let mut server = Server::install(world, sr, guest)?;
    server.prepare(world, Mode::Hooks)?;
    // Where quiescing fails one night, a snapshot that says so is better than none.
    server.set(world, "tanada-quiesce", "prefer")?;
    server.start_clients(world, &[1, 2])?;
    world.note(format!("{} transactions acknowledged", server.ledger(world)?.done()));
    Ok(server)
}

fn evening(number: u32) -> String {
    format!("2027-03-{}T12:00:00Z", 24 + number)
}

/// Every night at half past two in Berlin; in the third night the clocks jump over that hour.
fn schedule(world: &mut World, server: &Server) -> Result<()> {
    world.clock(&format!("at {}", evening(1)))?;
    let schedule = world.xe(&[
        "vmss-create",
        "name-label=nightly",
        "type=snapshot",
        "frequency=daily",
        "schedule:hour=2",
        "schedule:min=30",
        "schedule:timezone=Europe/Berlin",
        &format!("retained-snapshots={RETAINED}"),
    ])?;
    let vm = format!("uuid={}", server.machine.uuid);
    world.xe(&["vm-param-set", &vm, &format!("snapshot-schedule={schedule}")])?;
    world.note(format!("it is {}; {RETAINED} snapshots are to be kept", evening(1)));
    Ok(())
}

fn snapshots(world: &World, server: &Server) -> Result<BTreeSet<String>> {
    let of = format!("snapshot-of={}", server.machine.uuid);
    let listed = world.xe(&["snapshot-list", &of, "is-vmss-snapshot=true", "--minimal"])?;
    Ok(listed.split(',').filter(|uuid| !uuid.is_empty()).map(String::from).collect())
}

/// A day's work, then the clock goes through the night: the schedule takes one snapshot, of the level that is due.
fn night(world: &mut World, server: &Server, number: u32, mode: Mode) -> Result<Shot> {
    server.wait_for_transactions(world, DAYS_WORK)?;
    let (known, ledger) = (snapshots(world, server)?, server.ledger(world)?);
    let told = world.clock(&format!("through {}", evening(number + 1)))?;
    let now = snapshots(world, server)?;
    let new: Vec<&String> = now.difference(&known).collect();
    let [uuid] = new[..] else { bail!("{} new snapshots after the night ({told}); one expected", new.len()) };
    let name = world.param("snapshot", uuid, "name-label")?;
    let shot = server.shot(world, mode, &name, uuid.clone(), ledger)?;
    let level = shot.info.get("consistency").map_or("", String::as_str);
    if level != mode.level() {
        bail!("'{name}' is {level} consistent, {} expected: {:?}", mode.level(), shot.info);
    }
    let told_of = |key: &str| shot.info.get(key).map_or("-", String::as_str);
    world.note(format!(
        "{name}: {told}; {level} consistent by {}, froze within {} us, frozen {} us, held: {} ({})",
        told_of("method"),
        told_of("freeze_us"),
        told_of("frozen_us"),
        told_of("freeze-held"),
        told_of("freeze-verified-by"),
    ));
    Ok(shot)
}

/// The certificate, as a person reads it.
fn certificate(world: &mut World, shot: &Shot) -> Result<()> {
    let text = world.xe(&["snapshot-certificate", &format!("uuid={}", shot.template.uuid)])?;
    if !text.contains("application") || !text.contains("fsfreeze+hooks") {
        bail!("the certificate does not tell level and method:\n{text}");
    }
    text.lines().filter(|line| !line.trim().is_empty()).for_each(|line| world.note(line));
    Ok(())
}

/// A hook that fails: the night's snapshot is only crash-consistent, and says so, and a message tells what to do.
fn failing_night(world: &mut World, server: &Server) -> Result<()> {
    let hook = "/etc/qemu/fsfreeze-hook.d/00-fails";
    server.machine.guest(world, &format!("printf '#!/bin/sh\\n[ \"$1\" = thaw ]\\n' >{hook} && chmod +x {hook}"))?;
    let shot = night(world, server, 3, Mode::Crash)?;
    if shot.info.get("not-quiesced-code").map(String::as_str) != Some("hook-failed") {
        bail!("the snapshot does not say that a hook failed: {:?}", shot.info);
    }
    let messages = world.xe(&["message-list", "name=VM_SNAPSHOT_NOT_QUIESCED", "params=body", "--minimal"])?;
    if !messages.contains("hook") {
        bail!("no message tells of the failed hook: '{messages}'");
    }
    world.note(format!("message: {messages}"));
    server.machine.guest(world, &format!("rm {hook}"))?;
    server.wait_for_transactions(world, 1)
}

/// A night as files that others' tools read: one per disk, and what each disk holds by its SHA-256.
struct Backup {
    name: String,
    files: Vec<PathBuf>,
    digests: Vec<String>,
}

/// All of a snapshot's disks, or what differs from the snapshot that was exported before.
fn export(world: &mut World, shot: &Shot, before: Option<&Shot>) -> Result<Backup> {
    let dir = world.dir.join("backup");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let mut backup = Backup { name: shot.name.clone(), files: Vec::new(), digests: Vec::new() };
    for device in DISKS {
        let vdi = shot.template.disk(world, device)?;
        let file = dir.join(format!("{vdi}.vhd"));
        let mut args = vec!["vdi-export".to_owned(), format!("uuid={vdi}"), format!("filename={}", file.display())];
        args.push("format=vhd".to_owned());
        if let Some(before) = before {
            args.push(format!("base={}", before.template.disk(world, device)?));
        }
        world.xe(&args)?;
        backup.files.push(file);
        backup.digests.push(digest(world, &shot.template, device)?);
    }
    let sizes: Result<Vec<u64>> = backup.files.iter().map(|file| Ok(file.metadata()?.len() >> 10)).collect();
    world.note(format!("{}: root, data, log of {:?} KiB", backup.name, sizes?));
    Ok(backup)
}

fn digest(world: &World, machine: &Machine, device: &str) -> Result<String> {
    let file = world.dir.join("digested.raw");
    machine.export_disk(world, device, &file)?;
    let digest = sha256(&file)?;
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    Ok(digest)
}

/// What the schedule keeps is the newest ones, and nothing else.
fn retention(world: &mut World, server: &Server) -> Result<()> {
    let mut names = Vec::new();
    for uuid in snapshots(world, server)? {
        names.push(world.param("snapshot", &uuid, "name-label")?);
    }
    names.sort_unstable();
    if names.len() != RETAINED || !names[0].contains("2027-03-28") {
        bail!("kept are {names:?}; the {RETAINED} newest expected");
    }
    world.note(format!("kept: {}", names.join(", ")));
    Ok(())
}

/// The machine and its snapshots go, as by a mistake; no disk is left.
fn lose(world: &mut World, sr: &str, server: &Server) -> Result<()> {
    for uuid in snapshots(world, server)? {
        world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={uuid}"), "force=true"])?;
    }
    let disks: Result<Vec<String>> = DISKS.iter().map(|device| server.machine.disk(world, device)).collect();
    world.xe(&["vm-uninstall", &format!("uuid={}", server.machine.uuid), "force=true"])?;
    // Disks that were plugged in by hand outlive their machine.
    for vdi in disks? {
        world.xe(&["vdi-destroy", &format!("uuid={vdi}")])?;
    }
    // What the script left on the host is a place in time, which the machine's loss makes useless.
    let places = world.xe(&["vdi-list", &format!("sr-uuid={sr}"), "type=cbt_metadata", "--minimal"])?;
    for vdi in places.split(',').filter(|uuid| !uuid.is_empty()) {
        world.xe(&["vdi-destroy", &format!("uuid={vdi}")])?;
    }
    let left = world.xe(&["vdi-list", &format!("sr-uuid={sr}"), "--minimal"])?;
    if !left.is_empty() {
        bail!("disks are left: {left}");
    }
    Ok(())
}

/// A machine whose disks come from the first files, which are full, and the deltas after them.
fn restore(world: &mut World, sr: &str, chain: &[Backup]) -> Result<()> {
    let last = chain.last().context("a backup to restore")?;
    let machine = server::empty(world, sr, "from-files")?;
    for (number, device) in DISKS.iter().enumerate() {
        let bytes = virtual_bytes(&chain[0].files[number])?;
        let vdi = prepare::add_disk(world, sr, &machine, device, bytes, None)?;
        for backup in chain {
            let file = format!("filename={}", backup.files[number].display());
            world.xe(&["vdi-import", &format!("uuid={vdi}"), &file, "format=vhd"])?;
        }
        let found = digest(world, &machine, device)?;
        if found != last.digests[number] {
            bail!("disk {device} of '{}' comes back with other contents: {found}", last.name);
        }
    }
    world.note(format!("{}: three disks with the checksums of that night", last.name));
    Ok(())
}

/// The size of a disk that a VHD holds: bytes 48 to 56 of its footer, of which a copy begins the file.
fn virtual_bytes(vhd: &std::path::Path) -> Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut size = [0; 8];
    let file = fs::File::open(vhd).with_context(|| format!("opening {}", vhd.display()))?;
    file.read_exact_at(&mut size, 48).with_context(|| format!("reading {}", vhd.display()))?;
    Ok(u64::from_be_bytes(size))
}

/// It boots; file systems and database need no recovery, and all is there that was committed before that night.
fn opens(world: &mut World, machine: Machine, night: &Night) -> Result<Server> {
    let server = Server::boot(world, machine)?;
    let verdict = night.told().judge(&night.name(), &server.audit(world)?)?;
    let told = server.recoveries(world)?;
    if told != server::AT_REST {
        bail!("the copy of {} was to be at rest: {told}", night.name());
    }
    world.note(format!("{told}; {} committed transactions there, {} lost", verdict.required, verdict.lost));
    Ok(server)
}

fn works_on(world: &mut World, mut server: Server) -> Result<()> {
    server.start_clients(world, &[11, 12])?;
    world.note(format!("{} new transactions", server.ledger(world)?.done()));
    world.xe(&["vm-uninstall", &format!("uuid={}", server.machine.uuid), "force=true"]).map(drop)
}
