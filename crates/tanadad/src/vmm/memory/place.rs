//! The disk of a memory image: where it lies, how it is made and thrown away.

use std::sync::Arc;

use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::image;
use crate::context::Daemon;
use crate::db::{Record, Tx, View};
use crate::ops::intents::Plan;
use crate::ops::vdi::{NewDisk, create_disk};
use crate::ops::vdi_copy::discard;
use crate::storage::driver_error;

/// State of the devices beside the memory; video memory is the largest part of it where there is any.
const DEVICES_BYTES: u64 = 256 << 20;

/// An image under way. It goes again at the next start unless [`NewImage::keep`] was called.
#[derive(Debug, Clone)]
pub struct NewImage {
    pub vdi: Ref,
    intent: String,
}

/// Bytes of stream after which a guest that writes faster than it is saved is stopped, so that the rest is final.
pub const fn patience_bytes(memory_bytes: u64) -> u64 {
    memory_bytes.saturating_add(memory_bytes / 2)
}

/// The longest stream there can be: what was written until patience ended, and everything once more.
pub const fn stream_bytes_max(memory_bytes: u64) -> u64 {
    // Each page has a few bytes beside it.
    let once = memory_bytes.saturating_add(memory_bytes / 64);
    patience_bytes(memory_bytes).saturating_add(once).saturating_add(DEVICES_BYTES)
}

impl NewImage {
    /// Makes a thin disk for the memory of a VM. `VM_NO_SUSPEND_SR`, `SR_SUSPEND_SPACE_INSUFFICIENT` or the storage's
    /// failure.
    pub async fn create(daemon: &Arc<Daemon>, vm: &Record, memory_bytes: u64) -> ApiResult<NewImage> {
        let sr = daemon.db.read(|state| home(state, vm)).ok_or_else(|| ApiError::vm_no_suspend_sr(vm.id()))?;
        let driver = daemon.storage.driver(&sr)?;
        // A guest that fills a store with its memory would take the room from all others on it.
        if driver.space().await.map_err(driver_error)?.free < memory_bytes {
            return Err(ApiError::sr_suspend_space_insufficient(&sr));
        }
        let description = format!("Memory of {}", vm.str("name_label"));
        let size = image::disk_bytes(stream_bytes_max(memory_bytes));
        let disk = NewDisk::new(&sr, size, "Suspend image", &description)
            .with("type", "suspend")
            .with("sm_config", Value::map([("vmhint", vm.uuid())]));
        let vdi = disk.id.clone();
        let intent = Plan::Discard { vdis: vec![vdi.to_string()] }.write(daemon)?;
        let image = NewImage { vdi, intent };
        match create_disk(daemon, &disk).await {
            Ok(_) => Ok(image),
            Err(error) => {
                image.discard(daemon).await;
                Err(error)
            }
        }
    }

    /// From this transaction on the image stays.
    pub fn keep(&self, tx: &mut Tx<'_>) {
        tx.clear_intent(&self.intent);
    }

    pub async fn discard(&self, daemon: &Arc<Daemon>) {
        discard(daemon, std::slice::from_ref(&self.vdi), &self.intent).await;
    }
}

/// Where images of this VM go: its own choice, the host's, the pool's, else beside its first disk.
fn home(view: &impl View, vm: &Record) -> Option<Ref> {
    let mut wishes = vec![vm.reference("suspend_SR")];
    wishes.extend(view.only("host").ok().map(|host| host.reference("suspend_image_sr")));
    if let Ok(pool) = view.only("pool") {
        wishes.extend([pool.reference("suspend_image_SR"), pool.reference("default_SR")]);
    }
    for vbd in view.resolve("VBD", &vm.refs("VBDs")).iter().filter(|vbd| vbd.str("type") == "Disk") {
        wishes.extend(view.find("VDI", &vbd.reference("VDI")).map(|vdi| vdi.reference("SR")));
    }
    wishes.into_iter().find(|sr| view.find("SR", sr).is_some())
}

/// A VM without its image: takes the reference away in this transaction and answers what has to be discarded after it.
pub fn let_go(tx: &mut Tx<'_>, vm: &Ref) -> ApiResult<Option<NewImage>> {
    let vdi = tx.get("VM", vm)?.reference("suspend_VDI");
    tx.set("VM", vm, "suspend_VDI", Ref::null())?;
    if tx.find("VDI", &vdi).is_none() {
        return Ok(None);
    }
    let intent = Plan::Discard { vdis: vec![vdi.to_string()] }.put(tx)?;
    Ok(Some(NewImage { vdi, intent }))
}
