//! Machines travel with their disks: every SR carries the records of its VDIs and of the machines, templates and
//! snapshots that use them, so that it can be introduced again, here or on another host, with all of them.
//!
//! A task follows the database and has the driver keep the records as JSON soon after they change; unplugging keeps
//! them once more. When an SR is plugged that has no VDI records yet, what it carries is made again: under the old
//! references and uuids, halted, without what this host already has. What sleeps goes on sleeping if its memory is on the
//! same SR; whether this host can wake it is found out when it is to.
//!
//! ```json
//! {"format": 1, "sr": "<uuid>", "objects": [{"class": "VM", "ref": "OpaqueRef:…", "record": {…}}, …]}
//! ```
//!
//! A snapshot takes some eight KiB of it, and schedules make thousands, so a long text is kept compressed (zstd): records
//! that differ in a few uuids shrink to a twentieth. The more there is, the rarer it is kept.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tanada_driver::Driver;
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value, json as wire};
use tanada_xva::Compression;
use tanada_xva::compress::{Decoder, Encoder};
use tokio::time::{sleep, timeout};

use super::records::message;
use crate::context::Daemon;
use crate::db::{Record, State, Tx, View};
use crate::storage::{driver_error, volume_id};

const FORMAT: i64 = 1;
/// Changes come in crowds; one write follows them.
const QUIET: Duration = Duration::from_secs(2);
/// Between two times it rests so many times as long as one takes, up to a minute: with many records, keeping them must
/// not be all that the daemon does.
const REST_FACTOR: u32 = 10;
const QUIET_MAX: Duration = Duration::from_secs(60);
/// Bytes from which on a text is compressed; what is shorter is left readable.
const PLAIN_MAX: usize = 64 << 10;
/// Bytes that a text may have when it is unpacked: fifty thousand snapshots, and no more than a host has memory for when
/// what it is given is hostile.
const UNPACKED_MAX: u64 = 512 << 20;
/// After a failure it is tried again, also when nothing changes.
const RETRY: Duration = Duration::from_secs(30);

/// Fields that only mean something while the machine runs, or follow from others.
const NOT_KEPT: &[&str] = &[
    "allowed_operations",
    "current_operations",
    "VBDs",
    "VIFs",
    "VDIs",
    "consoles",
    "snapshots",
    "children",
    "domid",
    "resident_on",
    "scheduled_to_be_resident_on",
    "power_state",
    "metrics",
    "guest_metrics",
    "currently_attached",
    "storage_lock",
    "status_code",
    "status_detail",
    "runtime_properties",
    "device",
    "physical_utilisation",
    "last_booted_record",
    "crash_dumps",
    "attached_PCIs",
    "VUSBs",
    "VGPUs",
    "VTPMs",
    "blobs",
    "missing",
    "suspend_VDI",
    "requires_reboot",
    "affinity",
    "appliance",
    "snapshot_schedule",
    "protection_policy",
];

/// What a machine that sleeps needs beside.
const ASLEEP: &[&str] = &["power_state", "suspend_VDI"];

/// Follows the database and has every attached SR keep its records.
pub fn keep_current(daemon: &Arc<Daemon>) {
    let daemon = Arc::downgrade(daemon);
    tokio::spawn(async move {
        let Some(strong) = daemon.upgrade() else { return };
        let mut changed = strong.db.changed();
        drop(strong);
        let mut kept: HashMap<Ref, u64> = HashMap::new();
        let mut seen = 0;
        let mut failed = false;
        let mut quiet = QUIET;
        loop {
            let waited = if failed {
                timeout(RETRY, changed.changed()).await.unwrap_or(Ok(()))
            } else {
                changed.changed().await
            };
            if waited.is_err() {
                return;
            }
            sleep(quiet).await;
            changed.borrow_and_update();
            let Some(daemon) = daemon.upgrade() else { return };
            let (generation, relevant) = daemon.db.read(|state| (state.generation(), concerns_machines(state, seen)));
            seen = generation;
            if relevant || failed {
                let since = Instant::now();
                failed = !keep_all(&daemon, &mut kept).await;
                quiet = (since.elapsed() * REST_FACTOR).clamp(QUIET, QUIET_MAX);
            }
        }
    });
}

fn concerns_machines(state: &State, seen: u64) -> bool {
    let gone = state.deletions().rev().take_while(|deletion| deletion.generation > seen);
    let mut gone = gone.filter(|deletion| matches!(deletion.class, "VM" | "VDI" | "VBD" | "VIF" | "PBD"));
    ["VM", "VDI", "VBD", "VIF", "PBD"].iter().any(|class| state.changed_since(class, seen).next().is_some())
        || gone.next().is_some()
}

/// False when one SR could not keep its records.
async fn keep_all(daemon: &Daemon, kept: &mut HashMap<Ref, u64>) -> bool {
    let mut well = true;
    for sr in daemon.db.read(|state| state.all("SR")) {
        let Ok(driver) = daemon.storage.driver(sr.id()) else { continue };
        let text = daemon.db.read(|state| gather(state, &sr));
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        if kept.get(sr.id()) == Some(&hash) {
            continue;
        }
        match put(driver.as_ref(), text).await {
            Ok(()) => drop(kept.insert(sr.id().clone(), hash)),
            Err(error) => {
                tracing::warn!(sr = sr.uuid(), %error, "an SR could not keep the records of its machines");
                well = false;
            }
        }
    }
    well
}

/// Keeps the records of one SR now.
pub async fn keep(daemon: &Daemon, sr: &Ref, driver: &dyn Driver) -> ApiResult<()> {
    let text = daemon.db.read(|state| Ok::<_, ApiError>(gather(state, state.get("SR", sr)?.as_ref())))?;
    put(driver, text).await
}

async fn put(driver: &dyn Driver, text: String) -> ApiResult<()> {
    let packed = tokio::task::spawn_blocking(move || pack(text)).await.map_err(ApiError::internal)?;
    driver.put_metadata(&packed.map_err(ApiError::internal)?).await.map_err(driver_error)
}

fn pack(text: String) -> std::io::Result<Vec<u8>> {
    if text.len() < PLAIN_MAX {
        return Ok(text.into_bytes());
    }
    if text.len() as u64 > UNPACKED_MAX {
        return Err(std::io::Error::other(format!("{} bytes of records; at most {UNPACKED_MAX} are kept", text.len())));
    }
    let mut encoder = Encoder::new(Vec::new(), Compression::Zstd)?;
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

/// `None` for what cannot be unpacked, or is more than anything we keep.
fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut decoder = Decoder::detect(packed).ok()?.take(UNPACKED_MAX + 1);
    decoder.read_to_end(&mut text).ok()?;
    (text.len() as u64 <= UNPACKED_MAX).then_some(text)
}

/// The records that belong to an SR, as text; the same state gives the same text.
fn gather(view: &impl View, sr: &Record) -> String {
    let vdis = view.resolve("VDI", &sr.refs("VDIs"));
    let vbds: Vec<Ref> = vdis.iter().flat_map(|vdi| vdi.refs("VBDs")).collect();
    let mut vms: Vec<Ref> = view.resolve("VBD", &vbds).iter().map(|vbd| vbd.reference("VM")).collect();
    vms.sort();
    vms.dedup();
    let mut objects: Vec<serde_json::Value> = vdis.iter().map(|vdi| object("VDI", vdi, Map::new())).collect();
    for vm in view.resolve("VM", &vms) {
        objects.push(object("VM", &vm, Map::new()));
        objects.extend(view.resolve("VBD", &vm.refs("VBDs")).iter().map(|vbd| object("VBD", vbd, Map::new())));
        for vif in view.resolve("VIF", &vm.refs("VIFs")) {
            let network = view.find("network", &vif.reference("network"));
            let name = network.map(|network| network.str("name_label").to_owned()).unwrap_or_default();
            objects.push(object("VIF", &vif, Map::from([("network_name".to_owned(), Value::from(name))])));
        }
    }
    json!({ "format": FORMAT, "sr": sr.uuid(), "objects": objects }).to_string()
}

fn object(class: &str, record: &Record, beside: Map) -> serde_json::Value {
    let mut fields = record.to_map();
    let asleep = class == "VM" && record.str("power_state") == "Suspended";
    fields.retain(|field, _| !NOT_KEPT.contains(&field.as_str()) || (asleep && ASLEEP.contains(&field.as_str())));
    if let Some(Value::Map(config)) = fields.get_mut("sm_config") {
        config.retain(|key, _| !key.starts_with("tanada:"));
    }
    let (id, fields, beside) =
        (record.id().as_str(), wire::to_json(&Value::Map(fields)), wire::to_json(&Value::Map(beside)));
    json!({ "class": class, "ref": id, "record": fields, "beside": beside })
}

/// One object as it was kept.
struct Kept {
    class: String,
    id: Ref,
    fields: Map,
    beside: Map,
}

fn parse(text: &[u8]) -> Option<Vec<Kept>> {
    let all: serde_json::Value = serde_json::from_slice(text).ok()?;
    if all.get("format")?.as_i64()? != FORMAT {
        return None;
    }
    let map = |value: &serde_json::Value| wire::from_json(value.clone()).as_map().cloned();
    let one = |object: &serde_json::Value| {
        Some(Kept {
            class: object.get("class")?.as_str()?.to_owned(),
            id: Ref::from(object.get("ref")?.as_str()?),
            fields: map(object.get("record")?)?,
            beside: map(object.get("beside")?)?,
        })
    };
    all.get("objects")?.as_array()?.iter().map(one).collect()
}

/// Makes the records that an SR carries, when it has none here. Answers how many machines came with it.
pub async fn restore(daemon: &Daemon, sr: &Ref) -> ApiResult<usize> {
    let empty = daemon.db.read(|state| Ok::<_, ApiError>(state.get("SR", sr)?.refs("VDIs").is_empty()))?;
    if !empty {
        return Ok(0);
    }
    let driver = daemon.storage.driver(sr)?;
    let Some(packed) = driver.metadata().await.map_err(driver_error)? else { return Ok(0) };
    let Some(objects) = unpack(&packed).and_then(|text| parse(&text)) else {
        tracing::warn!(%sr, "the records that the SR carries cannot be read");
        return Ok(0);
    };
    let entries = driver.scan().await.map_err(driver_error)?;
    daemon.db.write(|tx| {
        let mut made: HashSet<Ref> = HashSet::new();
        for kept in &objects {
            let there =
                |location: &str| volume_id(location).is_ok_and(|volume| entries.iter().any(|entry| entry.id == volume));
            if admit(tx, sr, kept, &made, there)? {
                made.insert(kept.id.clone());
            }
        }
        let machines = objects.iter().filter(|kept| kept.class == "VM" && made.contains(&kept.id)).count();
        if machines > 0 {
            let uuid = tx.get("SR", sr)?.uuid().to_owned();
            message(tx, "SR_MACHINES_RESTORED", 4, "SR", &uuid, &format!("{machines} machines came with the SR"))?;
        }
        Ok(machines)
    })
}

/// Makes one object again, if it fits; false when it does not.
fn admit(tx: &mut Tx<'_>, sr: &Ref, kept: &Kept, made: &HashSet<Ref>, there: impl Fn(&str) -> bool) -> ApiResult<bool> {
    let class = kept.class.as_str();
    let reference = |field: &str| Ref::from(kept.fields.get(field).and_then(Value::as_str).unwrap_or_default());
    let text = |field: &str| kept.fields.get(field).and_then(Value::as_str).unwrap_or_default();
    if !matches!(class, "VDI" | "VM" | "VBD" | "VIF")
        || tx.find(class, &kept.id).is_some()
        || tx.find_by_uuid(class, text("uuid")).is_some()
    {
        return Ok(false);
    }
    let mut fields = kept.fields.clone();
    match class {
        "VDI" if !there(text("location")) => return Ok(false),
        "VDI" => drop(fields.insert("SR".into(), Value::from(sr))),
        "VM" => {
            let metrics = tx.create("VM_metrics", Vec::<(&str, Value)>::new())?;
            fields.insert("metrics".into(), Value::from(metrics));
            fields.insert("domid".into(), Value::from(-1));
            // Without its memory it is halted.
            if tx.find("VDI", &reference("suspend_VDI")).is_none() {
                fields.retain(|field, _| !ASLEEP.contains(&field.as_str()));
            }
        }
        _ if !made.contains(&reference("VM")) => return Ok(false),
        "VBD" => {
            let lost = tx.find("VDI", &reference("VDI")).is_none();
            if lost && text("type") == "Disk" {
                return Ok(false);
            }
            if lost {
                fields.insert("VDI".into(), Value::from(Ref::null()));
                fields.insert("empty".into(), Value::from(true));
            }
        }
        _ => {
            let name = kept.beside.get("network_name").and_then(Value::as_str).unwrap_or_default();
            let networks = tx.all("network");
            let same = networks.iter().find(|network| *network.id() == reference("network"));
            let named = networks.iter().find(|network| network.str("name_label") == name);
            let Some(network) = same.or(named).or(networks.first()) else { return Ok(false) };
            fields.insert("network".into(), Value::from(network.id()));
        }
    }
    if matches!(class, "VBD" | "VIF") {
        let machine = tx.get("VM", &reference("VM"))?;
        let sleeps = machine.str("power_state") == "Suspended" && !machine.bool("is_a_snapshot");
        fields.insert("currently_attached".into(), Value::from(sleeps));
    }
    tx.create_as(class, kept.id.clone(), fields)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{PLAIN_MAX, pack, unpack};

    #[test]
    fn long_texts_are_packed_and_short_ones_left_readable() {
        let short = "{}".to_owned();
        assert_eq!(pack(short.clone()).unwrap(), short.as_bytes());
        let long: String = (0..PLAIN_MAX).map(|number| format!("{{\"uuid\": \"{number:036}\"}}")).collect();
        let packed = pack(long.clone()).unwrap();
        assert!(packed.len() < long.len() / 10, "{} of {}", packed.len(), long.len());
        assert_eq!(unpack(&packed).as_deref(), Some(long.as_bytes()));
        assert_eq!(unpack(&packed[..packed.len() / 2]), None);
    }
}
