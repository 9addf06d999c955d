//! The end of a snapshot with its disks, as one operation.
//!
//! The records of the machine go, and the intent to destroy its disks is written, in one transaction; whatever happens
//! after that, the disks end, at the latest at the next start or when their SR is attached again.

use std::sync::Arc;

use tanada_xapi::{ApiError, ApiResult, Ref};

use super::create::remove_record;
use crate::context::{CallContext, Daemon};
use crate::db::{Record, View};
use crate::ops::intents::Plan;
use crate::ops::throw_away::ATTACHED;
use crate::ops::{allowed, vdi, vdi_copy};
use crate::storage::is_attached;

/// Removes a snapshot and its disks, with its memory where it has one.
///
/// # Errors
/// `VDI_IN_USE` where a disk is read, or connected with a backup server's machine; `SR_HAS_NO_PBDS` where its SR is not
/// attached; what `VM.destroy` would answer. Everything is as it was then.
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
        if is_attached(daemon, disk.id()) || daemon.db.read(|state| serves_a_backup(state, disk)) {
            return Err(ApiError::vdi_in_use(disk.id(), "destroy"));
        }
        daemon.storage.driver(&disk.reference("SR"))?;
    }
    let vdis: Vec<Ref> = disks.iter().map(|disk| disk.id().clone()).collect();
    let (uuid, intent) = daemon.db.write(|tx| {
        let uuid = tx.get("VM", id)?.uuid().to_owned();
        vdis.iter().try_for_each(|vdi| vdi::check(tx, vdi, "destroy", false))?;
        remove_record(tx, id)?;
        // Nobody attaches what goes, until it is gone or the daemon starts again.
        for vdi in &vdis {
            tx.put_entry("VDI", vdi, "current_operations", Ref::null().as_str(), "destroy")?;
        }
        let intent = Plan::Discard { vdis: vdis.iter().map(Ref::to_string).collect() }.put(tx)?;
        Ok((uuid, intent))
    })?;
    daemon.vmm.host.forget_machine(&uuid);
    if vdis.iter().any(|vdi| is_attached(daemon, vdi)) {
        // Somebody who came in the last moment is not cut off.
        daemon.left.add(&intent);
        return Ok(());
    }
    vdi_copy::discard(daemon, &vdis, &intent).await;
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

/// Is the disk given to a backup server's machine, plugged or not?
fn serves_a_backup(view: &impl View, disk: &Record) -> bool {
    view.resolve("VBD", &disk.refs("VBDs")).iter().any(|vbd| vbd.map("other_config").contains_key(ATTACHED))
}
