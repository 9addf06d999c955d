//! The engine's words into those of the control protocol.

use tanada_blockd_api as api;
use tanada_engine as engine;

pub(crate) fn failure(failure: engine::Failure) -> api::Failure {
    api::Failure { errno: failure.errno, message: failure.message }
}

pub(crate) fn volume(info: engine::VolumeInfo) -> api::VolumeInfo {
    let engine::VolumeInfo { id, kind, parent, size, state, open_count } = info;
    let kind = match kind {
        engine::VolumeKind::Volume => api::VolumeKind::Volume,
        engine::VolumeKind::Generation => api::VolumeKind::Generation,
    };
    let state = match state {
        engine::VolumeState::Live => api::VolumeState::Live,
        engine::VolumeState::Dying { done, total } => api::VolumeState::Dying { done, total },
        engine::VolumeState::Ghost => api::VolumeState::Ghost,
    };
    api::VolumeInfo { id, kind, parent, size, state, open_count }
}

pub(crate) fn usage(usage: engine::VolumeUsage) -> api::Usage {
    let engine::VolumeUsage { size, mapped, exclusive, shared } = usage;
    api::Usage { size, mapped, exclusive, shared }
}

pub(crate) fn store(stat: engine::StoreStat) -> api::StoreStat {
    api::StoreStat {
        store: stat.store,
        incarnation: stat.incarnation,
        checkpoint: stat.checkpoint,
        physical: stat.physical,
        used: stat.used,
        free: stat.free,
        reserved: stat.reserved,
        unreleased: stat.unreleased,
        virtual_size: stat.virtual_size,
        ghost_held: stat.ghost_held,
        volumes: stat.volumes,
        generations: stat.generations,
        dying: stat.dying,
        journal_used: stat.journal_used,
        journal_size: stat.journal_size,
        delta_entries: stat.delta_entries,
        blocks_per_write_x100: stat.blocks_per_write_x100,
        moved: stat.moved,
        read_ahead: stat.read_ahead,
        failed: stat.failed,
    }
}

/// The changed extents, and where to go on asking: nowhere once nothing was found.
pub(crate) fn difference(extents: Vec<engine::Extent>) -> api::Answer {
    let next_offset = extents.last().map(|last| last.offset + last.length);
    let extents = extents
        .into_iter()
        .filter_map(|extent| {
            let kind = match extent.kind {
                engine::ExtentKind::Data => api::ExtentKind::Data,
                engine::ExtentKind::Hole => api::ExtentKind::Hole,
                engine::ExtentKind::Same => return None,
            };
            Some(api::Extent { offset: extent.offset, length: extent.length, kind })
        })
        .collect();
    api::Answer::Extents { extents, next_offset }
}

/// The answer to a command that needs nothing of the shell. Snapshots are answered elsewhere.
pub(crate) fn answer(reply: engine::Reply) -> Result<api::Answer, api::Failure> {
    Ok(match reply {
        engine::Reply::Done => api::Answer::Changed { changed: true },
        engine::Reply::Changed { changed } => api::Answer::Changed { changed },
        engine::Reply::Extents(extents) => difference(extents),
        engine::Reply::Usage { info, usage: used } => api::Answer::Usage { info: volume(info), usage: usage(used) },
        engine::Reply::List(volumes) => api::Answer::List { volumes: volumes.into_iter().map(volume).collect() },
        engine::Reply::Store(stat) => api::Answer::Store(Box::new(store(*stat))),
        other @ (engine::Reply::Data(_)
        | engine::Reply::Opened { .. }
        | engine::Reply::Cut { .. }
        | engine::Reply::Scrub(_)) => {
            return Err(api::Failure {
                errno: libc::EIO,
                message: format!("the engine answered {other:?} to a command"),
            });
        }
    })
}

fn damaged_part(part: engine::DamagedPart) -> api::DamagedPart {
    match part {
        engine::DamagedPart::Data => api::DamagedPart::Data,
        engine::DamagedPart::Map { level } => api::DamagedPart::Map { level },
        engine::DamagedPart::Bitmap { region } => api::DamagedPart::Bitmap { region },
        engine::DamagedPart::Catalog => api::DamagedPart::Catalog,
        engine::DamagedPart::Journal => api::DamagedPart::Journal,
        engine::DamagedPart::Superblock => api::DamagedPart::Superblock,
    }
}

pub(crate) fn damage(damage: engine::ScrubDamage) -> api::ScrubDamage {
    let engine::ScrubDamage { part, block, volume, generation, offset, length, message } = damage;
    api::ScrubDamage { part: damaged_part(part), block, volume, generation, offset, length, message }
}

/// Back into the engine's words, for a scrub that goes on.
pub(crate) fn known_damage(damage: api::ScrubDamage) -> engine::ScrubDamage {
    let api::ScrubDamage { part, block, volume, generation, offset, length, message } = damage;
    let part = match part {
        api::DamagedPart::Data => engine::DamagedPart::Data,
        api::DamagedPart::Map { level } => engine::DamagedPart::Map { level },
        api::DamagedPart::Bitmap { region } => engine::DamagedPart::Bitmap { region },
        api::DamagedPart::Catalog => engine::DamagedPart::Catalog,
        api::DamagedPart::Journal => engine::DamagedPart::Journal,
        api::DamagedPart::Superblock => engine::DamagedPart::Superblock,
    };
    engine::ScrubDamage { part, block, volume, generation, offset, length, message }
}

pub(crate) fn event(alert: engine::Alert) -> api::Event {
    match alert {
        engine::Alert::Damage { volume, offset, message } => api::Event::Damage { volume, offset, message },
        engine::Alert::ReadOnly { message } => api::Event::ReadOnly { message },
        engine::Alert::NearlyFull { free, physical } => api::Event::NearlyFull { free, physical },
        engine::Alert::Full => api::Event::Full,
        engine::Alert::RoomAgain { free } => api::Event::RoomAgain { free },
        engine::Alert::ScrubFinished(status) => {
            api::Event::ScrubFinished { bytes: status.bytes_done, damaged: status.mark.damaged }
        }
    }
}
