//! VBDs of machines: attached at the storage, plugged into QEMU, and back.

use std::sync::Arc;
use std::time::Duration;

use tanada_driver::Endpoint;
use tanada_qemu::hotplug::{self, Unplugged};
use tanada_qemu::machine::DiskSpec;
use tanada_xapi::{ApiError, ApiResult, Ref};
use uuid::Uuid;

use super::description::DiskRecord;
use super::records;
use super::{Running, power};
use crate::context::Daemon;
use crate::db::View;
use crate::storage;

/// How long a guest may take to let a disk go; kernels without hardware help are slow.
const UNPLUG_LIMIT: Duration = Duration::from_secs(20);

/// Attaches a disk at its storage and lets QEMU's user reach it.
pub(super) async fn attach(daemon: &Arc<Daemon>, disk: &DiskRecord, boot_index: Option<u32>) -> ApiResult<DiskSpec> {
    let (token, endpoint) = storage::attach_vdi(daemon, &disk.vdi, &disk.vbd, disk.writable).await?;
    let reachable = match &endpoint {
        Endpoint::NbdUnix { socket, .. } => daemon.vmm.host.open_socket(socket),
        Endpoint::Iscsi { .. } => Ok(()),
    };
    match reachable {
        Ok(()) => Ok(disk.spec(endpoint, boot_index)),
        Err(error) => {
            storage::detach_used(daemon, &token).await;
            Err(error)
        }
    }
}

/// Ends whatever attachments a VBD holds, which QEMU has let go. What cannot be ended now is ended later; until then the machine
/// could not start again.
pub(super) async fn detach(daemon: &Arc<Daemon>, vbd: &Ref) {
    for token in storage::tokens_of(daemon, vbd) {
        storage::detach_used(daemon, &token).await;
    }
}

/// Plugs a VBD into its running VM.
pub async fn plug(daemon: &Arc<Daemon>, vbd: &Ref) -> ApiResult<()> {
    let (vm, disk) = daemon.db.read(|state| {
        let record = state.get("VBD", vbd)?;
        Ok::<_, ApiError>((record.reference("VM"), DiskRecord::new(state, &record)?))
    })?;
    let machine = power::machine_of(daemon, &vm)?;
    let spec = attach(daemon, &disk, None).await?;
    if let Err(error) = hotplug::plug(&machine.qmp(), &spec).await {
        detach(daemon, vbd).await;
        return Err(ApiError::internal(error));
    }
    daemon.db.write(|tx| {
        let record = tx.get("VM", &vm)?;
        let name = records::next_disk_name(tx, &record);
        records::disk_attached(tx, vbd, &name)
    })
}

/// Tells the machines that have a disk plugged of its new size. One that does not take it shows it after its next start.
pub async fn grown(daemon: &Arc<Daemon>, vdi: &Ref, size: u64) {
    let vbds = daemon.db.read(|state| {
        let vbds = state.get("VDI", vdi).map(|vdi| state.resolve("VBD", &vdi.refs("VBDs"))).unwrap_or_default();
        vbds.into_iter().filter(|vbd| vbd.bool("currently_attached")).collect::<Vec<_>>()
    });
    for vbd in vbds {
        let (Some(machine), Ok(id)) = (daemon.vmm.machine(&vbd.reference("VM")), Uuid::parse_str(vbd.uuid())) else {
            continue;
        };
        if let Err(error) = hotplug::grown(&machine.qmp(), id, size).await {
            tracing::warn!(%vdi, vm = %machine.uuid, %error, "a running machine does not see the new size of its disk yet");
        }
    }
}

/// Takes a VBD out of its running VM. `DEVICE_DETACH_TIMEOUT` where the guest holds on to it: the request stays, and is
/// finished when the guest lets go.
pub async fn unplug(daemon: &Arc<Daemon>, vbd: &Ref) -> ApiResult<()> {
    let (vm, id) = daemon.db.read(|state| {
        let record = state.get("VBD", vbd)?;
        let id = Uuid::parse_str(record.uuid()).map_err(|_| ApiError::uuid_invalid("VBD", record.uuid()))?;
        Ok::<_, ApiError>((record.reference("VM"), id))
    })?;
    let machine = power::machine_of(daemon, &vm)?;
    match hotplug::unplug(&machine.qmp(), id, UNPLUG_LIMIT).await {
        Ok(Unplugged::Removed | Unplugged::Absent) => finish_unplug(daemon, vbd).await,
        Ok(Unplugged::Pending) => {
            machine.note_pending_removal(id);
            Err(ApiError::device_detach_timeout("VBD", vbd))
        }
        Err(error) if error.is_class("GuestRefused") => Err(ApiError::device_detach_rejected("VBD", vbd, error)),
        Err(error) => Err(ApiError::internal(error)),
    }
}

async fn finish_unplug(daemon: &Arc<Daemon>, vbd: &Ref) -> ApiResult<()> {
    detach(daemon, vbd).await;
    daemon.db.write(|tx| records::disk_detached(tx, vbd))
}

/// The guest let a disk go after its unplug had given up waiting.
pub(super) async fn late_removal(daemon: &Arc<Daemon>, machine: &Running, disk: Uuid) {
    if !machine.take_pending_removal(disk) {
        return;
    }
    if let Err(error) = hotplug::forget_node(&machine.qmp(), disk).await {
        tracing::warn!(vm = %machine.uuid, %disk, %error, "a disk's node stays behind in QEMU");
    }
    let vbd = daemon.db.read(|state| state.find_by_uuid("VBD", &disk.to_string()).map(|vbd| vbd.id().clone()));
    if let Some(vbd) = vbd
        && let Err(error) = finish_unplug(daemon, &vbd).await
    {
        tracing::warn!(vm = %machine.uuid, %disk, %error, "a late unplug could not be written down");
    }
}
