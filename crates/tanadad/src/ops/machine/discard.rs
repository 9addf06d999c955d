//! The end of a snapshot with its disks, as one operation.
//!
//! The records of the machine go and the intents to destroy its disks are written in one transaction; whatever happens
//! after that, the disks end, at the latest at the next start.

use std::sync::Arc;

use tanada_xapi::{ApiError, ApiResult, Ref};
use uuid::Uuid;

use super::create::remove_record;
use crate::context::{CallContext, Daemon};
use crate::db::{Record, Tx, View};
use crate::ops::intents::Plan;
use crate::ops::sr::{sizes_changed, space_comes_back};
use crate::ops::{allowed, vdi};
use crate::storage::{driver_error, is_attached, volume_id};

/// A disk that goes.
struct Doomed {
    vdi: Ref,
    sr: Ref,
    volume: Uuid,
    intent: String,
}

/// Removes a snapshot and its disks. Fails, with everything as it was, where one of them is in use or its SR is not attached.
pub async fn snapshot(daemon: &Arc<Daemon>, id: &Ref) -> ApiResult<()> {
    let ctx = CallContext::internal(daemon);
    let _mark = ctx.begin("VM", id, "destroy", |tx| {
        if !tx.get("VM", id)?.bool("is_a_snapshot") {
            return Err(ApiError::operation_not_allowed("only snapshots are discarded with their disks"));
        }
        allowed::vm(tx, id, "destroy")
    })?;
    let disks = daemon.db.read(|state| disks(state, id))?;
    for disk in &disks {
        if is_attached(daemon, disk.id()) {
            return Err(ApiError::vdi_in_use(disk.id(), "destroy"));
        }
        daemon.storage.driver(&disk.reference("SR"))?;
    }
    let (uuid, doomed) = daemon.db.write(|tx| {
        let uuid = tx.get("VM", id)?.uuid().to_owned();
        disks.iter().try_for_each(|disk| vdi::check(tx, disk.id(), "destroy", false))?;
        let doomed = disks.iter().map(|disk| doom(tx, disk)).collect::<ApiResult<Vec<_>>>()?;
        remove_record(tx, id)?;
        Ok((uuid, doomed))
    })?;
    daemon.vmm.host.forget_machine(&uuid);
    let mut srs: Vec<Ref> = doomed.iter().map(|disk| disk.sr.clone()).collect();
    for disk in doomed {
        end(daemon, &disk).await;
    }
    srs.sort();
    srs.dedup();
    for sr in &srs {
        sizes_changed(daemon, sr).await;
        space_comes_back(daemon, sr);
    }
    Ok(())
}

/// The disks that belong to a snapshot, and its memory where it has one.
fn disks(view: &impl View, id: &Ref) -> ApiResult<Vec<Arc<Record>>> {
    let machine = view.get("VM", id)?;
    let vbds = view.resolve("VBD", &machine.refs("VBDs"));
    let own = vbds.iter().filter(|vbd| vbd.str("type") == "Disk" && vbd.map("other_config").contains_key("owner"));
    let own = own.map(|vbd| vbd.reference("VDI")).chain([machine.reference("suspend_VDI")]);
    Ok(own.filter_map(|vdi| view.find("VDI", &vdi)).collect())
}

fn doom(tx: &mut Tx<'_>, disk: &Record) -> ApiResult<Doomed> {
    let (sr, volume) = (disk.reference("SR"), volume_id(disk.str("location"))?);
    let intent = Plan::Destroy { sr: sr.to_string(), vdi: disk.id().to_string(), volume }.put(tx)?;
    Ok(Doomed { vdi: disk.id().clone(), sr, volume, intent })
}

/// An intent that cannot be carried out now stays, for the next start or the next time that the SR is attached.
async fn end(daemon: &Arc<Daemon>, disk: &Doomed) {
    let ended = async {
        daemon.storage.driver(&disk.sr)?.destroy(disk.volume).await.map_err(driver_error)?;
        vdi::finish_destroy(daemon, &disk.vdi, &disk.intent)
    };
    if let Err(error) = ended.await {
        tracing::warn!(vdi = %disk.vdi, %error, "a disk of a removed snapshot could not be destroyed yet");
    }
}
