//! Attachments: who reads and writes which volume now.
//!
//! An attachment is written down (an intent of kind [`KIND`]) before the driver is asked for it and struck off after
//! the driver has ended it, so that a crash at any point leaves none that nobody knows. The same list decides who may
//! share a disk:
//!
//! | there is already | reader comes | writer comes |
//! |---|---|---|
//! | nobody | yes | yes |
//! | readers | yes | `VDI_IN_USE`, unless sharable |
//! | a writer | `VDI_IN_USE`, unless sharable | the same |
//!
//! A suspended machine has nothing attached and counts as a writer that only suffers readers: its memory knows what is on
//! its disks. Its memory itself is written once, before it is the machine's: who could change it then would choose what
//! the machine goes on with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tanada_driver::{AttachRequest, Endpoint};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use uuid::Uuid;

use super::{driver_error, host_initiator, vm_initiator, volume_id};
use crate::context::Daemon;
use crate::db::{Record, View};
use crate::ops::cbt::METADATA_TYPE;

/// Kind of the intents that are attachments.
pub const KIND: &str = "attachment";

/// Operations on a disk that do not mind its being attached meanwhile.
const BESIDE: &[&str] =
    &["copy", "mirror", "snapshot", "clone", "update", "list_changed_blocks", "enable_cbt", "disable_cbt"];

/// One attachment as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    token: String,
    sr: String,
    vdi: String,
    /// Null: the daemon itself (a transfer, a copy).
    vbd: String,
    volume: Uuid,
    writable: bool,
}

/// Attachments by token, with the intent that stands for each.
#[derive(Default)]
pub struct Attachments {
    by_token: Mutex<BTreeMap<String, (String, Body)>>,
    /// Tokens that nobody uses any more and that could not be ended.
    left: Mutex<BTreeSet<String>>,
}

impl Attachments {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (String, Body)>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a disk reachable; the token names the attachment until [`detach_vdi`]. `vbd` is null when the daemon itself
/// is the user. `VDI_IN_USE`, `VDI_READONLY`, `SR_HAS_NO_PBDS` or the driver's failure.
pub async fn attach_vdi(daemon: &Arc<Daemon>, vdi: &Ref, vbd: &Ref, writable: bool) -> ApiResult<(String, Endpoint)> {
    let record = daemon.db.read(|state| state.get("VDI", vdi))?;
    if writable && (record.bool("read_only") || record.bool("is_a_snapshot")) {
        return Err(ApiError::vdi_readonly(vdi));
    }
    if !record.bool("managed") {
        return Err(ApiError::vdi_not_managed(vdi));
    }
    if record.str("type") == METADATA_TYPE {
        return Err(ApiError::vdi_incompatible_type(vdi, METADATA_TYPE));
    }
    check_operations(&record)?;
    let sr = record.reference("SR");
    let driver = daemon.storage.driver(&sr)?;
    let body = Body {
        token: Uuid::new_v4().simple().to_string(),
        sr: sr.to_string(),
        vdi: vdi.to_string(),
        vbd: vbd.to_string(),
        volume: volume_id(record.str("location"))?,
        writable,
    };
    if writable && daemon.db.read(|state| is_memory(state, vdi)) {
        return Err(ApiError::new("VDI_IN_USE", vec![vdi.to_string()]));
    }
    if writable && !record.bool("sharable") && daemon.db.read(|state| sleeper(state, &record, vbd)) {
        return Err(ApiError::new("VDI_IN_USE", vec![vdi.to_string()]));
    }
    write_down(daemon, vdi, &body, record.bool("sharable"))?;
    let initiator = daemon.db.read(|state| initiator_of(state, vbd))?;
    let request = AttachRequest { token: body.token.clone(), target: body.volume, writable, initiator };
    match driver.attach(&request).await {
        Ok(endpoint) => Ok((body.token, endpoint)),
        Err(error) => {
            detach_used(daemon, &body.token).await;
            Err(driver_error(error))
        }
    }
}

/// `OTHER_OPERATION_IN_PROGRESS` where something goes on with the disk that minds its being attached.
fn check_operations(vdi: &Record) -> ApiResult<()> {
    let beside = |operation: &Value| BESIDE.iter().any(|allowed| operation.as_str() == Some(allowed));
    match vdi.map("current_operations").iter().find(|(_, operation)| !beside(operation)) {
        Some((task, operation)) => {
            let operation = operation.as_str().unwrap_or_default();
            Err(ApiError::other_operation_in_progress("VDI", vdi.id(), operation, task))
        }
        None => Ok(()),
    }
}

/// Does a suspended machine go on with this disk, by another VBD than `vbd`?
fn sleeper(view: &impl View, vdi: &Record, vbd: &Ref) -> bool {
    view.resolve("VBD", &vdi.refs("VBDs")).iter().any(|other| {
        let asleep = || view.find("VM", &other.reference("VM")).is_some_and(|vm| vm.str("power_state") == "Suspended");
        other.id() != vbd && other.bool("currently_attached") && other.str("mode") == "RW" && asleep()
    })
}

/// Is this the memory of a machine that sleeps?
fn is_memory(view: &impl View, vdi: &Ref) -> bool {
    !view.having("VM", "suspend_VDI", vdi.as_str()).is_empty()
}

/// Who logs in: the machine of the VBD, or this host.
fn initiator_of(view: &impl View, vbd: &Ref) -> ApiResult<String> {
    if vbd.is_null() {
        return Ok(host_initiator(view));
    }
    Ok(vm_initiator(view.get("VM", &view.get("VBD", vbd)?.reference("VM"))?.uuid()))
}

/// Checks the sharing rules and writes the attachment down, as one step. Whoever marks an operation first is seen here; whoever
/// marks it later sees the attachment ([`is_attached`] waits for the list).
fn write_down(daemon: &Daemon, vdi: &Ref, body: &Body, sharable: bool) -> ApiResult<()> {
    let mut by_token = daemon.storage.attachments.lock();
    let others = || by_token.values().filter(|(_, other)| other.volume == body.volume && other.sr == body.sr);
    if !sharable && (others().any(|(_, other)| other.writable) || (body.writable && others().next().is_some())) {
        return Err(ApiError::new("VDI_IN_USE", vec![vdi.to_string()]));
    }
    let json = serde_json::to_value(body).map_err(ApiError::internal)?;
    let intent = daemon.db.write(|tx| {
        check_operations(tx.get("VDI", vdi)?.as_ref())?;
        tx.put_intent(KIND, json)
    })?;
    by_token.insert(body.token.clone(), (intent, body.clone()));
    Ok(())
}

/// Ends an attachment. One that is not known (any more) succeeds.
pub async fn detach_vdi(daemon: &Arc<Daemon>, token: &str) -> ApiResult<()> {
    let Some((intent, body)) = daemon.storage.attachments.lock().get(token).cloned() else { return Ok(()) };
    let driver = daemon.storage.driver(&Ref::from(body.sr.as_str()))?;
    driver.detach(token).await.map_err(driver_error)?;
    daemon.db.write(|tx| {
        tx.clear_intent(&intent);
        Ok(())
    })?;
    forget_attachment(daemon, token);
    Ok(())
}

/// [`detach_vdi`] of what nobody uses any more. What cannot be ended now is ended later ([`end_left`]): as long as it is there the
/// disk counts as in use.
pub async fn detach_used(daemon: &Arc<Daemon>, token: &str) {
    if let Err(error) = detach_vdi(daemon, token).await {
        tracing::warn!(%error, "a disk could not be detached after its use; it is tried again");
        daemon.storage.attachments.left().insert(token.to_owned());
    }
}

/// Ends the attachments that could not be ended before.
pub async fn end_left(daemon: &Arc<Daemon>) {
    let left = std::mem::take(&mut *daemon.storage.attachments.left());
    for token in left {
        detach_used(daemon, &token).await;
    }
}

/// Strikes an attachment off the list in memory; for those whose storage is gone.
fn forget_attachment(daemon: &Daemon, token: &str) {
    daemon.storage.attachments.lock().remove(token);
}

/// Reads the attachments of an earlier life of the process.
pub fn load_attachments(daemon: &Daemon) -> anyhow::Result<()> {
    let mut by_token = daemon.storage.attachments.lock();
    for intent in daemon.db.intents()?.into_iter().filter(|intent| intent.kind == KIND) {
        let body: Body = serde_json::from_value(intent.body)?;
        by_token.insert(body.token.clone(), (intent.id, body));
    }
    Ok(())
}

/// Is any attachment on this SR in use? Answers the VDIs.
pub fn attached_vdis(daemon: &Daemon, sr: &Ref) -> Vec<Ref> {
    let by_token = daemon.storage.attachments.lock();
    let here = by_token.values().filter(|(_, body)| body.sr == sr.as_str());
    let mut vdis: Vec<Ref> = here.map(|(_, body)| Ref::from(body.vdi.as_str())).collect();
    vdis.sort();
    vdis.dedup();
    vdis
}

/// Is the volume of this disk attached to anybody?
pub fn is_attached(daemon: &Daemon, vdi: &Ref) -> bool {
    daemon.storage.attachments.lock().values().any(|(_, body)| body.vdi == vdi.as_str())
}

/// After a start, when it is known which machines run: ends the attachments that serve nobody, and those at the
/// drivers that nobody here knows.
pub async fn end_leftovers(daemon: &Arc<Daemon>) {
    let known: Vec<Body> = daemon.storage.attachments.lock().values().map(|(_, body)| body.clone()).collect();
    for body in &known {
        let vbd = Ref::from(body.vbd.as_str());
        let used = daemon.db.read(|state| {
            let vbd = state.find("VBD", &vbd).filter(|vbd| vbd.bool("currently_attached"))?;
            // A suspended machine has no process that could use anything.
            state.find("VM", &vbd.reference("VM")).filter(|vm| vm.str("power_state") != "Suspended")
        });
        let used = used.is_some();
        if used {
            continue;
        }
        match detach_vdi(daemon, &body.token).await {
            Ok(()) => tracing::info!(vdi = body.vdi, "ended an attachment that serves nobody"),
            Err(error) => tracing::warn!(vdi = body.vdi, %error, "an attachment that serves nobody could not be ended"),
        }
    }
    let open: Vec<_> = {
        let open = daemon.storage.open.read().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(sr, driver)| (sr.clone(), driver.clone())).collect()
    };
    // On shared storage they may be another host's.
    for (sr, driver) in open.into_iter().filter(|(_, driver)| !driver.capabilities().shared) {
        let tokens = match driver.attachments().await {
            Ok(tokens) => tokens,
            Err(error) => {
                tracing::warn!(%sr, %error, "the attachments of an SR are not known");
                continue;
            }
        };
        for token in tokens {
            let ours = daemon.storage.attachments.lock().contains_key(&token);
            if !ours {
                // An attachment is written down before it is made: one that is not written down was ended already.
                let ended = driver.detach(&token).await;
                tracing::info!(%sr, ?ended, "ended an attachment that is not written down");
            }
        }
    }
}

/// Tokens of the attachments that a VBD holds.
pub fn tokens_of(daemon: &Daemon, vbd: &Ref) -> Vec<String> {
    let by_token = daemon.storage.attachments.lock();
    by_token.values().filter(|(_, body)| body.vbd == vbd.as_str()).map(|(_, body)| body.token.clone()).collect()
}

/// Ends all attachments that a VBD holds; none succeeds.
pub async fn detach_vbd(daemon: &Arc<Daemon>, vbd: &Ref) -> ApiResult<()> {
    for token in tokens_of(daemon, vbd) {
        detach_vdi(daemon, &token).await?;
    }
    Ok(())
}

/// Ends the daemon's own attachments of a disk.
pub async fn detach_daemon(daemon: &Arc<Daemon>, vdi: &Ref) -> ApiResult<()> {
    let ours = |body: &&Body| body.vdi == vdi.as_str() && Ref::from(body.vbd.as_str()).is_null();
    let tokens: Vec<String> = {
        let by_token = daemon.storage.attachments.lock();
        by_token.values().map(|(_, body)| body).filter(ours).map(|body| body.token.clone()).collect()
    };
    for token in tokens {
        detach_vdi(daemon, &token).await?;
    }
    Ok(())
}
