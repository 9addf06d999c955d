//! Disks of a machine, added and taken away while it exists.
//!
//! ```text
//!   nothing --blockdev-add--> node --device_add--> node + device          (plug)
//!   node + device --device_del--> asked --DEVICE_DELETED--> node --blockdev-del--> nothing    (unplug)
//! ```
//! Every step is idempotent: plug and unplug look first at what QEMU has, so an operation cut short anywhere is finished
//! by repeating it. `device_del` only asks: the guest has to let go. A guest that does not within the limit leaves the
//! removal pending; the late event (or the next reset of the guest) ends it, and a repeated unplug removes the node.
//!
//! Not checked here: whether the guest still uses the disk. Linux lets a mounted disk go without a word.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::error::{QemuError, Result};
use crate::machine::{DiskSpec, ROOT_PORTS, device_id, node_id, port_id};
use crate::qmp::{Event, QUICK, Qmp};
use crate::source::secret_id;

/// How long a guest gets to let a disk go before the removal counts as pending. libvirt waits as long.
pub const UNPLUG_LIMIT: Duration = Duration::from_secs(5);

/// How long a disk may take to open: a portal that is not there is tried for as long as the kernel likes.
const OPEN_LIMIT: Duration = Duration::from_secs(40);

/// A disk that QEMU has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStatus {
    pub id: Uuid,
    /// The root port it sits on; None while it is only a node without a device.
    pub slot: Option<u32>,
    pub io_status: IoStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoStatus {
    Ok,
    /// A request failed and waits to be repeated when the machine goes on.
    Failed,
    /// As Failed, for lack of space.
    NoSpace,
    /// Without a device there is no status.
    Absent,
}

/// The end of [`unplug`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplugged {
    Removed,
    /// It was not there.
    Absent,
    /// The guest has not let go yet.
    Pending,
}

/// Adds a disk; the slot it sits on. A disk that is there already stays as it is.
///
/// # Errors
/// [`QemuError::Refused`] where the server cannot be reached or refuses the export, [`QemuError::Spec`] where no slot is free.
pub async fn plug(qmp: &Qmp, disk: &DiskSpec) -> Result<u32> {
    disk.check()?;
    if let Some(slot) = slot_of(qmp, disk.id).await? {
        return Ok(slot);
    }
    let slot = free_slot(qmp, disk.slot).await?;
    if node_exists(qmp, disk.id).await? {
        // Left by an attempt cut short; its export may be gone.
        remove_node(qmp, disk.id).await?;
    }
    add_node(qmp, disk).await?;
    match qmp.execute("device_add", disk.device(slot), QUICK).await {
        Ok(_) => Ok(slot),
        Err(error) => {
            if let Err(left) = remove_node(qmp, disk.id).await {
                tracing::warn!(%left, disk = %disk.id, "a node without a device stays behind");
            }
            Err(error)
        }
    }
}

/// Opens the disk by the first way that works; its secret is in QEMU no longer than that takes.
async fn add_node(qmp: &Qmp, disk: &DiskSpec) -> Result<()> {
    let secret = disk.source.secret(disk.id);
    if let Some(secret) = &secret {
        // One that an attempt cut short left behind may be another.
        drop_secret(qmp, disk.id).await?;
        qmp.execute("object-add", secret.clone(), QUICK).await?;
    }
    let mut opened = Err(QemuError::Spec(format!("disk {} is nowhere to be reached", disk.id)));
    for node in disk.nodes() {
        opened = qmp.execute("blockdev-add", node, OPEN_LIMIT).await.map(drop);
        match &opened {
            Err(QemuError::Refused { message, .. }) => tracing::warn!(disk = %disk.id, message, "a disk does not open"),
            _ => break,
        }
    }
    if secret.is_some() {
        drop_secret(qmp, disk.id).await?;
    }
    opened
}

async fn drop_secret(qmp: &Qmp, disk: Uuid) -> Result<()> {
    match qmp.execute("object-del", json!({ "id": secret_id(disk) }), QUICK).await {
        Err(QemuError::Refused { message, .. }) if message.contains("not found") => Ok(()),
        other => other.map(drop),
    }
}

/// Takes a disk away, waiting up to `limit` for the guest.
///
/// # Errors
/// [`QemuError::Refused`] where the guest said no.
pub async fn unplug(qmp: &Qmp, disk: Uuid, limit: Duration) -> Result<Unplugged> {
    let mut events = qmp.events();
    if slot_of(qmp, disk).await?.is_some() {
        match qmp.execute("device_del", json!({ "id": device_id(disk) }), QUICK).await {
            Ok(_) => {}
            Err(error) if error.is_class("DeviceNotFound") => {}
            // Asked before, and the guest is still at it.
            Err(QemuError::Refused { message, .. }) if message.contains("in the process of unplug") => {}
            Err(error) => return Err(error),
        }
        if !deleted(qmp, &mut events, disk, limit).await? {
            return Ok(Unplugged::Pending);
        }
    } else if !node_exists(qmp, disk).await? {
        return Ok(Unplugged::Absent);
    }
    remove_node(qmp, disk).await?;
    Ok(Unplugged::Removed)
}

/// Tells the machine that its disk has grown to `size` bytes; the guest hears of it. A disk that is not there succeeds.
///
/// # Errors
/// [`QemuError::Refused`] where the storage does not have that size (yet), or is one that QEMU does not ask again.
pub async fn grown(qmp: &Qmp, disk: Uuid, size: u64) -> Result<()> {
    if !node_exists(qmp, disk).await? {
        return Ok(());
    }
    qmp.execute("block_resize", json!({ "node-name": node_id(disk), "size": size }), OPEN_LIMIT).await.map(drop)
}

/// Ends a removal whose event came late. Harmless where there is nothing to do.
pub async fn forget_node(qmp: &Qmp, disk: Uuid) -> Result<()> {
    if slot_of(qmp, disk).await?.is_none() && node_exists(qmp, disk).await? {
        remove_node(qmp, disk).await?;
    }
    Ok(())
}

/// The disk named by a DEVICE_DELETED event, if it is one of ours.
pub fn deleted_disk(event: &Event) -> Option<Uuid> {
    if event.name != "DEVICE_DELETED" {
        return None;
    }
    disk_of_device(event.data.get("device")?.as_str()?)
}

/// Every disk that QEMU has, in the order of slots.
pub async fn disks(qmp: &Qmp) -> Result<Vec<DiskStatus>> {
    let blocks = qmp.execute("query-block", json!({}), QUICK).await?;
    let mut found = Vec::new();
    for id in attached(qmp).await? {
        let slot = slot_of(qmp, id).await?;
        let path = format!("/machine/peripheral/{}/virtio-backend", device_id(id));
        let mut members = blocks.as_array().into_iter().flatten();
        let block = members.find(|block| block.get("qdev").and_then(Value::as_str) == Some(path.as_str()));
        let io_status = match block.and_then(|block| block.get("io-status")).and_then(Value::as_str) {
            Some("ok") => IoStatus::Ok,
            Some("nospace") => IoStatus::NoSpace,
            Some(_) => IoStatus::Failed,
            None => IoStatus::Absent,
        };
        found.push(DiskStatus { id, slot, io_status });
    }
    found.sort_by_key(|disk| disk.slot);
    Ok(found)
}

/// Waits for the event that names this device. A listener that was too slow looks instead of listening.
async fn deleted(qmp: &Qmp, events: &mut Receiver<Event>, disk: Uuid, limit: Duration) -> Result<bool> {
    let until = Instant::now() + limit;
    let device = device_id(disk);
    loop {
        match timeout_at(until, events.recv()).await {
            Err(_) => return Ok(slot_of(qmp, disk).await?.is_none()),
            Ok(Ok(event)) if deleted_disk(&event) == Some(disk) => return Ok(true),
            Ok(Ok(event)) if event.name == "DEVICE_UNPLUG_GUEST_ERROR" => {
                if event.data.get("device").and_then(Value::as_str) == Some(device.as_str()) {
                    return Err(QemuError::Refused {
                        command: "device_del".into(),
                        class: "GuestRefused".into(),
                        message: format!("the guest does not let disk {disk} go"),
                    });
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(RecvError::Lagged(_))) => {
                if slot_of(qmp, disk).await?.is_none() {
                    return Ok(true);
                }
            }
            Ok(Err(RecvError::Closed)) => return Err(QemuError::Closed { what: format!("unplugging disk {disk}") }),
        }
    }
}

async fn remove_node(qmp: &Qmp, disk: Uuid) -> Result<()> {
    qmp.execute("blockdev-del", json!({ "node-name": node_id(disk) }), QUICK).await.map(drop)
}

async fn node_exists(qmp: &Qmp, disk: Uuid) -> Result<bool> {
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }), QUICK).await?;
    let wanted = node_id(disk);
    let mut nodes = nodes.as_array().into_iter().flatten();
    Ok(nodes.any(|node| node.get("node-name").and_then(Value::as_str) == Some(wanted.as_str())))
}

/// The devices with names of disks.
async fn attached(qmp: &Qmp) -> Result<Vec<Uuid>> {
    let children = qmp.execute("qom-list", json!({ "path": "/machine/peripheral" }), QUICK).await?;
    let names = children.as_array().into_iter().flatten().filter_map(|child| child.get("name")?.as_str());
    Ok(names.filter_map(disk_of_device).collect())
}

fn disk_of_device(device: &str) -> Option<Uuid> {
    Uuid::parse_str(device.strip_prefix("disk-")?).ok()
}

/// The slot of an attached disk: the number in the path of the bus it hangs on.
async fn slot_of(qmp: &Qmp, disk: Uuid) -> Result<Option<u32>> {
    let path = format!("/machine/peripheral/{}", device_id(disk));
    match qmp.execute("qom-get", json!({ "path": path, "property": "parent_bus" }), QUICK).await {
        Ok(bus) => {
            let bus = bus.as_str().unwrap_or_default();
            let slot = (0..ROOT_PORTS).find(|port| bus.split('/').any(|part| part == port_id(*port)));
            slot.map(Some).ok_or_else(|| QemuError::Protocol {
                what: format!("disk {disk}"),
                detail: format!("sits on {bus:?}, which is no slot for disks"),
            })
        }
        Err(error) if error.is_class("DeviceNotFound") => Ok(None),
        Err(error) => Err(error),
    }
}

async fn free_slot(qmp: &Qmp, wanted: Option<u32>) -> Result<u32> {
    let mut taken = BTreeSet::new();
    for disk in attached(qmp).await? {
        taken.extend(slot_of(qmp, disk).await?);
    }
    let mut candidates = wanted.into_iter().chain(0..ROOT_PORTS);
    candidates
        .find(|slot| !taken.contains(slot))
        .ok_or_else(|| QemuError::Spec(format!("all {ROOT_PORTS} disk slots of the machine are taken")))
}
