//! Room on storage: none for new generations when guests would soon have none, and word of it before.
//!
//! An SR keeps a *floor* for the writes of its guests: 5 per cent of it, 100 GiB at most, or what its
//! `other_config:tanada-snapshot-floor` says (`10%`, `64GiB`, `0`). With no more than that free, new snapshots are
//! refused with `SR_BACKEND_FAILURE_44`; guests write on, and deleting makes room.
//!
//! What is in use is observed once for each day; from that follow the growth and the days that are left
//! (`sm_config:tanada:growth-per-day`, `tanada:days-left`). Messages about the SR tell when it gets short:
//!
//! | name | priority | when |
//! |---|---|---|
//! | `STORAGE_FILLS` | 3 | 85 % of the space above the floor is used, or all of it will be within 14 days |
//! | `STORAGE_FILLS` | 2 | 95 %, or within 3 days |
//! | `STORAGE_REFUSES_SNAPSHOTS` | 1 | the floor is reached |
//! | `STORAGE_HAS_ROOM` | 5 | snapshots are taken again, or none of the above is so any more |

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tanada_driver::SpaceFacts;
use tanada_schedule::forecast::{self, Level, Observation};
use tanada_units::{GIB, MIB};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use crate::context::Daemon;
use crate::db::{Record, Tx, View};
use crate::ops::machine::snapshot::disks_of;
use crate::ops::records::message;

/// Before the uuid of an SR.
pub const NOTE: &str = "space/";

pub const FLOOR_KEY: &str = "tanada-snapshot-floor";
const FLOOR_PERCENT: u64 = 5;
const FLOOR_MAX: u64 = 100 * GIB;

/// What is remembered of an SR.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct SpaceNote {
    /// Seconds since 1970 UTC and bytes in use, one of each day.
    used: Vec<(i64, u64)>,
    /// What was told last, as a number that grows with urgency.
    told: u8,
}

const LEVELS: [Level; 4] = [Level::Fine, Level::Soon, Level::VerySoon, Level::Refusing];

/// Bytes that stay free for guests.
pub fn floor(sr: &Record, physical: u64) -> u64 {
    let usual = || (physical / 100 * FLOOR_PERCENT).min(FLOOR_MAX);
    let Some(text) = sr.entry("other_config", FLOOR_KEY) else { return usual() };
    parse_floor(text, physical).unwrap_or_else(|| {
        tracing::warn!(sr = sr.uuid(), FLOOR_KEY, text, "is not understood; give a size as 64GiB, or a part as 10%");
        usual()
    })
}

fn parse_floor(text: &str, physical: u64) -> Option<u64> {
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        let percent: u64 = percent.trim().parse().ok().filter(|percent| *percent < 100)?;
        return Some(physical / 100 * percent);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "mib" | "m" => MIB,
        "gib" | "g" => GIB,
        "tib" | "t" => 1024 * GIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Bytes that are free, or will be as soon as the storage has settled.
fn free(space: &SpaceFacts) -> u64 {
    space.free.saturating_add(space.unreleased)
}

/// `SR_BACKEND_FAILURE_44` where a new generation would take the room that guests need.
///
/// An SR that does not tell its space refuses nothing: what is to be cut may still be cut.
pub async fn room_for_generations(daemon: &Daemon, sr: &Ref) -> ApiResult<()> {
    let Some(record) = daemon.db.read(|state| state.find("SR", sr)) else { return Ok(()) };
    let space = match daemon.storage.driver(sr)?.space().await {
        Ok(space) => space,
        Err(error) => {
            tracing::warn!(%sr, %error, "the space of an SR is not known");
            return Ok(());
        }
    };
    let floor = floor(&record, space.physical);
    if free(&space) > floor {
        return Ok(());
    }
    let words = format!(
        "There is insufficient space: {} has {} MiB free and keeps {} MiB for what its machines write; \
         delete snapshots, or change other-config:{FLOOR_KEY}",
        record.str("name_label"),
        free(&space) / MIB,
        floor / MIB
    );
    Err(ApiError::sr_backend_failure(44, words))
}

/// [`room_for_generations`] on every SR that a machine has disks on.
pub async fn room_for_machine(daemon: &Daemon, vm: &Ref) -> ApiResult<()> {
    let disks = daemon.db.read(|state| disks_of(state, vm, &[]))?;
    let srs: BTreeSet<Ref> = disks.iter().map(|disk| disk.vdi.reference("SR")).collect();
    for sr in &srs {
        room_for_generations(daemon, sr).await?;
    }
    Ok(())
}

/// Looks at the space of every attached SR.
pub async fn observe_all(daemon: &Arc<Daemon>) {
    for sr in daemon.db.read(|state| state.all("SR")) {
        let Ok(driver) = daemon.storage.driver(sr.id()) else { continue };
        let space = match driver.space().await {
            Ok(space) => space,
            Err(error) => {
                tracing::warn!(sr = sr.uuid(), %error, "the space of an SR is not known");
                continue;
            }
        };
        let now = daemon.schedules.clock.now().as_second();
        if let Err(error) = daemon.db.write(|tx| observe(tx, sr.id(), &space, now)) {
            tracing::warn!(sr = sr.uuid(), %error, "the space of an SR could not be noted");
        }
    }
}

/// Notes what is in use, and tells when it has become urgent, or no longer is.
pub fn observe(tx: &mut Tx<'_>, sr: &Ref, space: &SpaceFacts, now: i64) -> ApiResult<()> {
    let Some(record) = tx.find("SR", sr) else { return Ok(()) };
    let name = format!("{NOTE}{}", record.uuid());
    let mut note: SpaceNote = tx.note(&name).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let mut history: Vec<Observation> =
        note.used.iter().map(|(at, used)| Observation { at: *at, used: *used }).collect();
    let used = space.physical.saturating_sub(free(space));
    forecast::observe(&mut history, Observation { at: now, used });
    note.used = history.iter().map(|one| (one.at, one.used)).collect();
    let growth = forecast::growth_per_day(&history);
    let floor = floor(&record, space.physical);
    let before = LEVELS.get(usize::from(note.told)).copied().unwrap_or_default();
    let level = forecast::level(space.physical, free(space), floor, growth, before);
    let left = forecast::days_left(free(space), floor, growth);
    figures(tx, sr, growth, left)?;
    if level != before {
        let easier = level < before;
        // From one warning down to another is no news.
        if !easier || before == Level::Refusing || level == Level::Fine {
            tell(tx, &record, if easier { Level::Fine } else { level }, space, floor, left)?;
        }
        note.told = LEVELS.iter().position(|one| *one == level).and_then(|at| u8::try_from(at).ok()).unwrap_or(0);
    }
    tx.put_note(&name, serde_json::to_string(&note).map_err(ApiError::internal)?);
    Ok(())
}

fn figures(tx: &mut Tx<'_>, sr: &Ref, growth: Option<f64>, left: Option<f64>) -> ApiResult<()> {
    let shown = [
        ("tanada:growth-per-day", growth.map(|bytes| format!("{bytes:.0}"))),
        ("tanada:days-left", left.map(|days| format!("{days:.1}"))),
    ];
    for (key, text) in shown {
        match text {
            Some(text) => tx.put_entry("SR", sr, "sm_config", key, Value::from(text))?,
            None => tx.remove_entry("SR", sr, "sm_config", key)?,
        }
    }
    Ok(())
}

fn tell(
    tx: &mut Tx<'_>,
    sr: &Record,
    level: Level,
    space: &SpaceFacts,
    floor: u64,
    left: Option<f64>,
) -> ApiResult<()> {
    let when = match left {
        Some(days) if days > 0.0 => format!("; as it grows, that is so in {days:.1} days"),
        _ => String::new(),
    };
    let room = format!(
        "{} of {} MiB are free; below {} MiB no snapshots are taken",
        free(space) / MIB,
        space.physical / MIB,
        floor / MIB
    );
    let (name, priority, body) = match level {
        Level::Fine => ("STORAGE_HAS_ROOM", 5, format!("{room}{when}")),
        Level::Soon => ("STORAGE_FILLS", 3, format!("{room}{when}")),
        Level::VerySoon => ("STORAGE_FILLS", 2, format!("{room}{when}")),
        Level::Refusing => ("STORAGE_REFUSES_SNAPSHOTS", 1, format!("{room}, so that machines can still write")),
    };
    message(tx, name, priority, "SR", sr.uuid(), &body).map(drop)
}

#[cfg(test)]
mod tests {
    use super::parse_floor;

    #[test]
    fn floors_are_sizes_or_parts() {
        for (text, bytes) in [
            ("10%", Some(100)),
            ("0", Some(0)),
            ("64 GiB", Some(64 << 30)),
            ("3m", Some(3 << 20)),
            ("100%", None),
            ("much", None),
            ("", None),
        ] {
            assert_eq!(parse_floor(text, 1000), bytes, "{text}");
        }
    }
}
