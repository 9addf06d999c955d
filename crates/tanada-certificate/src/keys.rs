//! The certificate as the flat map of strings that `snapshot_info` is, both ways.
//!
//! | key | holds |
//! |---|---|
//! | `disk-snapshot-type` | `quiesced` or `crash_consistent`, XenServer's words |
//! | `consistency` | [`Level`]: `application`, `file system`, `crash`, `shut down`, `memory` |
//! | `method` | [`Method`]: `vss`, `fsfreeze`, `fsfreeze+hooks`, `memory`, `none` |
//! | `power-state-at-snapshot` | `VM.power_state` |
//! | `guest-os`, `guest-os-id`, `guest-agent` | what the guest said about itself; absent where it did not |
//! | `frozen_us`, `freeze_us`, `cut_after_us` | how long it stood still, took to freeze, and the cut was done after its answer |
//! | `file-systems-frozen`, `file-systems-thawed` | counts; the second is absent where the guest did not say |
//! | `freeze-held`, `freeze-verified-by`, `thaw-error` | `yes`, `no`, `unknown`; how that is known; the guest's complaint |
//! | `cut_us`, `slowest_write_us`, `writes_observed`, `skew_us`, `held_us` | the cut; the last is absent where the machine was not held |
//! | `disk.N.vdi`, `.sr`, `.level`, `.skew_us`, `.mounts` | the disk with number N; mounts are a JSON list |
//! | `writer.N.name`, `.result`, `.ok` | who took part, from 0 on |
//! | `not-quiesced-because`, `not-quiesced-code` | why it is not more; the code is of [`Cause`] |
//! | `note.N` | remarks, from 0 on |
//!
//! Other keys belong to others and are left alone. Reading takes what it can use: a map from elsewhere may hold anything,
//! and a number that is none counts as not told.

use std::collections::BTreeMap;

use crate::cause::{Cause, Downgrade};
use crate::certificate::{Certificate, Cut, DiskEntry, Freeze, GuestFacts, Held, Level, Method, Participant};

/// `snapshot_info`.
pub type Info = BTreeMap<String, String>;

/// Longest list read from a map, which may come from elsewhere.
const ENTRIES_MAX: usize = 1000;

impl Certificate {
    /// The certificate's keys, and no others.
    pub fn to_map(&self) -> Info {
        let mut map = Info::new();
        let mut put = |key: &str, value: String| map.insert(key.to_owned(), value);
        put("disk-snapshot-type", self.level.disk_snapshot_type().to_owned());
        put("consistency", self.level.name().to_owned());
        put("method", self.method.name().to_owned());
        put("power-state-at-snapshot", self.power_state.clone());
        let facts = &self.guest;
        for (key, text) in [("guest-os", &facts.os), ("guest-os-id", &facts.os_id), ("guest-agent", &facts.agent)] {
            if !text.is_empty() {
                put(key, text.clone());
            }
        }
        put("cut_us", self.cut.total_us.to_string());
        put("slowest_write_us", self.cut.pause_us.to_string());
        put("writes_observed", self.cut.writes_observed.to_string());
        put("skew_us", self.cut.skew_us.to_string());
        if let Some(held_us) = self.cut.held_us {
            put("held_us", held_us.to_string());
        }
        if let Some(downgrade) = &self.downgrade {
            put("not-quiesced-because", downgrade.words.clone());
            if let Some(cause) = downgrade.cause {
                put("not-quiesced-code", cause.code().to_owned());
            }
        }
        for (number, note) in self.notes.iter().enumerate() {
            put(&format!("note.{number}"), note.clone());
        }
        if let Some(freeze) = &self.freeze {
            put_freeze(&mut map, freeze);
        }
        for (number, disk) in &self.disks {
            put_disk(&mut map, *number, disk);
        }
        for (number, participant) in self.participants.iter().enumerate() {
            let mut put = |property: &str, value: String| map.insert(format!("writer.{number}.{property}"), value);
            put("name", participant.name.clone());
            put("result", participant.result.clone());
            put("ok", participant.ok.to_string());
        }
        map
    }

    /// The certificate in a `snapshot_info`; `None` where there is none. Never fails otherwise: see the module.
    pub fn from_map(map: &Info) -> Option<Certificate> {
        let text = |key: &str| map.get(key).cloned().unwrap_or_default();
        let kind = map.get("disk-snapshot-type");
        let level = map.get("consistency").and_then(|name| Level::from_name(name));
        if kind.is_none() && level.is_none() {
            return None;
        }
        let mut certificate = Certificate {
            level: level.unwrap_or_default(),
            method: map.get("method").and_then(|name| Method::from_name(name)).unwrap_or_default(),
            power_state: text("power-state-at-snapshot"),
            guest: GuestFacts { os: text("guest-os"), os_id: text("guest-os-id"), agent: text("guest-agent") },
            freeze: freeze(map),
            cut: Cut {
                total_us: number(map, "cut_us"),
                pause_us: number(map, "slowest_write_us"),
                writes_observed: number(map, "writes_observed"),
                skew_us: number(map, "skew_us"),
                held_us: map.get("held_us").and_then(|text| text.parse().ok()),
            },
            disks: BTreeMap::new(),
            participants: participants(map),
            downgrade: map.get("not-quiesced-because").map(|words| Downgrade {
                cause: map.get("not-quiesced-code").and_then(|code| Cause::from_code(code)),
                words: words.clone(),
            }),
            notes: numbered(map, "note.").into_values().filter_map(|entry| entry.get("").copied().cloned()).collect(),
        };
        for (number, entry) in numbered(map, "disk.") {
            certificate.disks.insert(number, disk(&entry));
        }
        if level.is_none() {
            // Another maker's word without evidence: the lowest level is all that can be relied on.
            let kind = kind.map_or("", String::as_str);
            certificate.notes.push(format!("its maker calls it '{kind}' and tells nothing else"));
        }
        Some(certificate)
    }
}

fn put_freeze(map: &mut Info, freeze: &Freeze) {
    let mut put = |key: &str, value: String| map.insert(key.to_owned(), value);
    put("frozen_us", freeze.frozen_us.to_string());
    put("freeze_us", freeze.asked_us.to_string());
    put("cut_after_us", freeze.cut_after_us.to_string());
    put("file-systems-frozen", freeze.frozen.to_string());
    put("freeze-held", freeze.held.name().to_owned());
    put("freeze-verified-by", freeze.verified_by.clone());
    if let Some(thawed) = freeze.thawed {
        put("file-systems-thawed", thawed.to_string());
    }
    if let Some(error) = &freeze.thaw_error {
        put("thaw-error", error.clone());
    }
}

fn freeze(map: &Info) -> Option<Freeze> {
    map.get("frozen_us")?;
    Some(Freeze {
        frozen_us: number(map, "frozen_us"),
        asked_us: number(map, "freeze_us"),
        cut_after_us: number(map, "cut_after_us"),
        frozen: number(map, "file-systems-frozen"),
        thawed: map.get("file-systems-thawed").and_then(|text| text.parse().ok()),
        held: map.get("freeze-held").and_then(|name| Held::from_name(name)).unwrap_or_default(),
        verified_by: map.get("freeze-verified-by").cloned().unwrap_or_default(),
        thaw_error: map.get("thaw-error").cloned(),
    })
}

fn put_disk(map: &mut Info, number: u32, disk: &DiskEntry) {
    let mut put = |property: &str, value: String| map.insert(format!("disk.{number}.{property}"), value);
    put("vdi", disk.vdi.clone());
    put("sr", disk.sr.clone());
    put("level", disk.level.name().to_owned());
    put("skew_us", disk.skew_us.to_string());
    if !disk.mounts.is_empty() {
        put("mounts", serde_json::Value::from(disk.mounts.clone()).to_string());
    }
}

fn disk(entry: &BTreeMap<&str, &String>) -> DiskEntry {
    let text = |key: &str| entry.get(key).map(|text| (*text).clone()).unwrap_or_default();
    DiskEntry {
        vdi: text("vdi"),
        sr: text("sr"),
        level: Level::from_name(&text("level")).unwrap_or_default(),
        skew_us: text("skew_us").parse().unwrap_or_default(),
        mounts: serde_json::from_str(&text("mounts")).unwrap_or_default(),
    }
}

fn participants(map: &Info) -> Vec<Participant> {
    let entries = numbered(map, "writer.").into_iter();
    let participant = |entry: BTreeMap<&str, &String>| {
        let text = |key: &str| entry.get(key).map(|text| (*text).clone()).unwrap_or_default();
        Participant { name: text("name"), result: text("result"), ok: text("ok") == "true" }
    };
    entries.map(|(_, entry)| participant(entry)).collect()
}

fn number(map: &Info, key: &str) -> u64 {
    map.get(key).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Entries `<prefix><number>` (property "") and `<prefix><number>.<property>`, by number.
fn numbered<'a>(map: &'a Info, prefix: &str) -> BTreeMap<u32, BTreeMap<&'a str, &'a String>> {
    let mut found: BTreeMap<u32, BTreeMap<&str, &String>> = BTreeMap::new();
    for (key, value) in map.range(prefix.to_owned()..) {
        let Some(rest) = key.strip_prefix(prefix) else { break };
        let (digits, property) = rest.split_once('.').unwrap_or((rest, ""));
        let Ok(number) = digits.parse() else { continue };
        if found.len() == ENTRIES_MAX && !found.contains_key(&number) {
            continue;
        }
        found.entry(number).or_default().insert(property, value);
    }
    found
}
