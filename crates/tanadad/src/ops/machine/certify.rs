//! A snapshot's certificate: put together from the cut and the verdict, kept in `snapshot_info`, and told in messages.

use std::collections::BTreeMap;
use std::time::Duration;

use tanada_qemu::machine::SERIAL_BYTES_MAX;
use tanada_quiesce::probe::Mount;
use tanada_quiesce::verdict::Verdict;
use tanada_quiesce::{Certificate, Cut, DiskEntry, GuestFacts, Level, Participant};
use tanada_xapi::{ApiResult, Map, Ref, Value};

use super::cut::{CutDone, Instantness, Part};
use super::snapshot::Disk;
use crate::db::{Record, Tx, View};
use crate::ops::records::message;
use crate::vmm::records::{LAST_STOP_HARD, LAST_STOP_KEY};

/// A cut that was made, with what is known of its guest.
pub struct Taken {
    pub done: CutDone,
    pub power_state: String,
    pub guest: GuestFacts,
    pub mounts: Vec<Mount>,
    /// Writers of Windows, where it told about them.
    pub participants: Vec<Participant>,
    pub notes: Vec<String>,
    /// Tell the administrator what would have made it better.
    pub advise: bool,
}

/// Writes the certificate of snapshot `id` of `vm`, and the messages about it.
pub fn record(
    tx: &mut Tx<'_>,
    vm: &Ref,
    id: &Ref,
    disks: &[Disk],
    parts: &[Part],
    taken: &Taken,
    verdict: Verdict,
) -> ApiResult<()> {
    let source = tx.get("VM", vm)?;
    let certificate = certificate(tx, disks, parts, taken, verdict);
    tx.set("VM", id, "snapshot_info", Value::Map(info(&certificate, &taken.done)))?;
    note_worth(tx, id, certificate.level)?;
    messages(tx, &source, &certificate, taken)
}

/// What the disks of snapshot `id` are worth without a guest that goes on with them: an instance that is made from it and
/// not started yet, and a machine that goes back to it, are worth as much.
pub fn note_worth(tx: &mut Tx<'_>, id: &Ref, level: Level) -> ApiResult<()> {
    match level {
        // Instances do not get the memory, and a machine that gets it may lose it.
        Level::Crash | Level::Memory => tx.put_entry("VM", id, "other_config", LAST_STOP_KEY, LAST_STOP_HARD),
        Level::FileSystem | Level::Application => tx.put_entry("VM", id, "other_config", LAST_STOP_KEY, level.name()),
        // Nobody was there to write: what it says of its machine stays true.
        Level::ShutDown => Ok(()),
    }
}

/// `snapshot_info`: the certificate's keys and what the cut moved.
pub fn info(certificate: &Certificate, done: &CutDone) -> Map {
    let mut info: Map = certificate.to_map().into_iter().map(|(key, value)| (key, Value::from(value))).collect();
    let moved = done.report.moved;
    info.insert("bytes_moved_by_host".into(), Value::from(moved.bytes_by_host.to_string()));
    info.insert("bytes_moved_by_storage".into(), Value::from(moved.bytes_by_storage.to_string()));
    info
}

pub fn certificate(view: &impl View, disks: &[Disk], parts: &[Part], taken: &Taken, verdict: Verdict) -> Certificate {
    let done = &taken.done;
    let held_us = match done.instantness {
        Instantness::Storage => None,
        Instantness::Held { held_us } => Some(held_us),
    };
    let mut notes = taken.notes.clone();
    let entries = entries(view, disks, parts, taken, verdict.level);
    let rough = entries.iter().filter(|(_, disk)| disk.level != verdict.level).map(|(number, _)| number.to_string());
    let rough: Vec<String> = rough.collect();
    if !rough.is_empty() {
        notes.push(format!("of disk {} the guest has nothing mounted that can be frozen", rough.join(", ")));
    }
    if verdict.freeze.is_some()
        && matches!(verdict.level, Level::FileSystem | Level::Application)
        && taken.mounts.is_empty()
    {
        let words =
            "the guest does not tell which disks its file systems are on: a disk without any is only crash-consistent";
        notes.push(words.to_owned());
    }
    Certificate {
        level: verdict.level,
        method: verdict.method,
        power_state: taken.power_state.clone(),
        guest: taken.guest.clone(),
        freeze: verdict.freeze,
        cut: Cut {
            total_us: done.report.total_us,
            pause_us: done.report.slowest_write_us,
            writes_observed: done.report.writes_observed,
            skew_us: done.after.iter().max().copied().map_or(0, micros),
            held_us,
        },
        disks: entries,
        participants: taken.participants.clone(),
        downgrade: verdict.downgrade,
        notes,
    }
}

fn entries(view: &impl View, disks: &[Disk], parts: &[Part], taken: &Taken, level: Level) -> BTreeMap<u32, DiskEntry> {
    let mut entries = BTreeMap::new();
    for (place, disk) in disks.iter().enumerate() {
        let sr = disk.vdi.reference("SR");
        let part = parts.iter().position(|part| part.sr == sr);
        let after = part.and_then(|part| taken.done.after.get(part)).copied().unwrap_or_default();
        let serial: String = disk.vdi.uuid().chars().take(SERIAL_BYTES_MAX).collect();
        let mounts = taken.mounts.iter().filter(|mount| mount.serial == serial).map(|mount| mount.path.clone());
        let mounts: Vec<String> = mounts.collect();
        // A guest that names the disks below its file systems also says which have none.
        let bare = mounts.is_empty() && !taken.mounts.is_empty();
        let frozen = matches!(level, Level::FileSystem | Level::Application);
        let entry = DiskEntry {
            vdi: disk.vdi.uuid().to_owned(),
            sr: view.find("SR", &sr).map(|sr| sr.uuid().to_owned()).unwrap_or_default(),
            level: if frozen && bare { Level::Crash } else { level },
            skew_us: micros(after),
            mounts,
        };
        let number = disk.vbd.str("userdevice").parse().unwrap_or_else(|_| u32::try_from(place).unwrap_or(u32::MAX));
        entries.insert(number, entry);
    }
    entries
}

fn messages(tx: &mut Tx<'_>, source: &Record, certificate: &Certificate, taken: &Taken) -> ApiResult<()> {
    let uuid = source.uuid();
    let held = match taken.done.instantness {
        Instantness::Storage => "",
        Instantness::Held { .. } => "; the storage cannot cut these disks together: the machine was held meanwhile",
    };
    let body = format!("<message>{}{held}</message>", certificate.level.disk_snapshot_type());
    message(tx, "VM_SNAPSHOTTED", 5, "VM", uuid, &body)?;
    let Some(downgrade) = certificate.downgrade.as_ref().filter(|_| taken.advise) else { return Ok(()) };
    let body = format!(
        "The snapshot is only {}: {}. Until that is mended, stop the services of the guest, or shut it down, \
         before a snapshot from which they are to start without recovery.",
        if certificate.level == Level::Crash { "crash-consistent" } else { "consistent for its file systems" },
        downgrade.with_advice()
    );
    message(tx, "VM_SNAPSHOT_NOT_QUIESCED", 4, "VM", uuid, &body)?;
    Ok(())
}

/// Whatever becomes of the snapshot: a guest stands still.
pub fn not_thawed(tx: &mut Tx<'_>, vm: &Ref) -> ApiResult<()> {
    let body = "The guest was frozen for a snapshot and does not answer to thaw. It is asked on and on; if its services hang, \
                look at its console.";
    let uuid = tx.get("VM", vm)?.uuid().to_owned();
    message(tx, "VM_NOT_THAWED", 2, "VM", &uuid, body).map(drop)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
