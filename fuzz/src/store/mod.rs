//! A store that something has tampered with, before the checker and before the engine.
//!
//! ```text
//!   a small real store ─▶ changes ─▶ checksums mended ─▶ tanada-format's check ─▶ findings?
//!                                                    └─▶ engine: open, read everything
//!                                                          └─ no findings: write, cut, destroy; check again
//! ```
//! What must hold, whatever the image:
//! - neither panics, and both end within bounded time and memory;
//! - **agreement**: what the checker calls clean the engine opens, reads without an error and goes on working with, and
//!   the checker still calls it clean afterwards. So the checker accepts no nonsense that the engine would refuse, and
//!   the engine harms no sound store.
//!
//! It does not demand that an engine refuses all that the checker finds: the engine reads a store's map on demand.

pub mod base;
mod change;
pub(crate) mod image;
pub(crate) mod seal;
mod shell;

use tanada_engine::{Alert, Control, ExtentKind, VolumeInfo, VolumeState};
use tanada_format::check::{CheckOptions, CheckReport, check};

use crate::Script;
use image::Image;
use seal::{SealOptions, seal};
use shell::Shell;

/// Bytes read of one volume at most, and how far extents are asked for from its start.
const READ_MAX: u64 = 2 << 20;
const EXTENTS_REACH: u64 = 64 << 20;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let bases = base::all();
    let base = &bases[script.below(bases.len())];
    let flags = script.byte();
    let mut image = base.image.clone();
    change::apply(&mut image, base, &mut script);
    if flags & 1 == 0 {
        let options = SealOptions { mirror: flags & 2 == 0, count: flags & 4 == 0, journal_data: flags & 8 == 0 };
        seal(&mut image, options);
    }
    judge(image);
}

/// Whether this program works with such a store: it may be sound and still be of a newer one, or have used up its numbers.
fn is_served(report: &CheckReport) -> bool {
    report.superblock.may_write() && report.superblock.used_up().is_none()
}

/// Checks and opens: what the checker calls clean opens. Returns the open store and whether it is clean.
pub(crate) fn judge_opening(image: Image) -> Option<(Shell, bool)> {
    let report = check(&image, CheckOptions { data: true }).ok();
    let is_clean = report.as_ref().is_some_and(|report| report.is_clean() && is_served(report));
    match Shell::open(image) {
        Ok(shell) => Some((shell, is_clean)),
        Err(failure) => {
            let journal = report.map(|report| report.journal);
            assert!(!is_clean, "the checker finds nothing wrong, the engine does not open it: {failure}; {journal:?}");
            None
        }
    }
}

/// Checks, opens, reads, works; panics where what must hold does not.
pub(crate) fn judge(image: Image) {
    let Some((mut shell, is_clean)) = judge_opening(image) else { return };
    let contents = read_everything(&mut shell, is_clean);
    if is_clean {
        work(&mut shell);
        let report = recheck(&shell.image);
        if !is_served(&report) {
            // This work used up the half of its numbers: it can still be read.
            return;
        }
        let mut again = Shell::open(shell.image).unwrap_or_else(|failure| panic!("does not open again: {failure}"));
        let later = read_everything(&mut again, true);
        for (id, content) in contents {
            let kept = later.iter().find(|(other, _)| *other == id).map(|(_, content)| content);
            assert!(kept.is_none_or(|kept| *kept == content), "{id} reads differently; {:?}", report.notes);
        }
    }
}

/// The store must be sound.
fn recheck(image: &Image) -> CheckReport {
    let report = check(image, CheckOptions { data: true }).unwrap_or_else(|error| panic!("after work: {error}"));
    assert!(report.is_clean(), "after work on a sound store: {:?}", report.findings);
    report
}

type Content = Vec<(uuid::Uuid, Vec<u8>)>;

/// Reads all generations and volumes as far as the bound goes; with `sound` nothing may fail. Returns the generations.
fn read_everything(shell: &mut Shell, sound: bool) -> Content {
    let mut contents = Content::new();
    for volume in shell.list() {
        if volume.state != VolumeState::Live {
            continue;
        }
        match read_volume(shell, &volume) {
            Ok(bytes) if volume.kind == tanada_engine::VolumeKind::Generation => contents.push((volume.id, bytes)),
            Ok(_) => {}
            Err(failure) => assert!(!sound, "a sound store, but {}: {failure}", volume.id),
        }
    }
    let damage = shell.alerts.iter().find(|alert| matches!(alert, Alert::Damage { .. }));
    assert!(!sound || damage.is_none(), "a sound store, but {damage:?}");
    contents
}

fn read_volume(shell: &mut Shell, volume: &VolumeInfo) -> Result<Vec<u8>, tanada_engine::Failure> {
    let export = shell.export(volume.id, false)?;
    let result = read_export(shell, export, volume.size);
    shell.control(Control::Close { export })?;
    result
}

fn read_export(
    shell: &mut Shell,
    export: tanada_engine::ExportId,
    size: u64,
) -> Result<Vec<u8>, tanada_engine::Failure> {
    let (mut bytes, mut offset, reach) = (Vec::new(), 0, size.min(EXTENTS_REACH));
    while offset < reach && (bytes.len() as u64) < READ_MAX {
        let extents = shell.extents(export, offset, reach - offset)?;
        assert!(extents.first().is_some_and(|extent| extent.offset == offset), "extents from {offset}: {extents:?}");
        for extent in extents {
            assert!(extent.length > 0 && extent.offset + extent.length <= size, "{extent:?} of {size} bytes");
            offset = extent.offset + extent.length;
            if extent.kind == ExtentKind::Data {
                let length = extent.length.min(READ_MAX).min(256 << 10) as u32;
                bytes.extend_from_slice(&extent.offset.to_le_bytes());
                bytes.extend(shell.read(export, extent.offset, length)?);
            }
        }
    }
    Ok(bytes)
}

/// Things a user might do next; refusals are fine, harm is not.
fn work(shell: &mut Shell) {
    let volumes = shell.list();
    for (n, volume) in volumes.iter().filter(|volume| volume.state == VolumeState::Live).enumerate() {
        let n = n as u8;
        if let Ok(export) = shell.export(volume.id, true) {
            let _ = shell.write(export, 0, &[n; 4096]);
            let _ = shell.write(export, volume.size / 2, &[n; 1000]);
            let _ = shell.control(Control::Close { export });
            let _ = shell.control(Control::Snapshot { group: vec![(volume.id, base::id(100 + n))] });
        }
        let _ = shell.control(Control::Stat { id: volume.id });
        if n.is_multiple_of(2) {
            let _ = shell.control(Control::Destroy { id: volume.id });
        }
    }
    let _ = shell.control(Control::Checkpoint);
    let _ = shell.control(Control::Settle);
    let _ = shell.control(Control::Checkpoint);
}

#[cfg(test)]
mod tests {
    use super::{base, judge, recheck};

    #[test]
    fn every_base_is_sound_and_has_what_it_is_there_for() {
        for (n, base) in base::all().iter().enumerate() {
            let report = recheck(&base.image);
            println!("base {n}: {} versions, {:?} records", report.versions.len(), report.journal.records());
            judge(base.image.clone());
        }
        let classes = |n: usize| base::all()[n].classes.keys().copied().collect::<Vec<_>>();
        assert_eq!(classes(2), base::CLASSES, "the checkpointed family has blocks of all kinds");
    }
}
