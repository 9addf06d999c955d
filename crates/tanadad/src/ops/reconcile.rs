//! After a start: what an earlier life left half done is ended, and the database is compared with the storage.
//!
//! Only what an intent names is touched. Everything else that differs is reported (a message and a line in the log) and
//! left to an administrator; SR.scan makes records for volumes that have none.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tanada_driver::registry::SrConfig;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use uuid::Uuid;

use super::cbt::METADATA_TYPE;
use super::intents::{self, Plan};
use super::records::message;
use super::{machine, secrets, sr, vdi, vdi_copy};
use crate::context::{CallContext, Daemon};
use crate::db::{Intent, View};
use crate::storage::{driver_error, host_initiator, is_attached, volume_id};
use crate::transfer;
use crate::vmm::{memory, power};

/// Operations under way ended with the process that ran them.
pub fn clear_marks(daemon: &Daemon) -> ApiResult<()> {
    daemon.db.write(|tx| {
        for class in ["VM", "VDI", "VBD", "VIF", "SR", "network", "host", "pool"] {
            for record in tx.all(class) {
                if !record.map("current_operations").is_empty() {
                    tx.set(class, record.id(), "current_operations", Value::empty_map())?;
                }
            }
        }
        Ok(())
    })
}

/// Ends what intents of an earlier life name, on one SR or on all. One that cannot be ended now stays for later.
pub async fn end_intents(daemon: &Arc<Daemon>, only: Option<&Ref>) {
    let intents = match daemon.db.intents() {
        Ok(intents) => intents,
        Err(error) => {
            tracing::error!(%error, "the intents could not be read");
            return;
        }
    };
    for intent in intents {
        let Some(plan) = Plan::read(&intent) else { continue };
        if only.is_some_and(|sr| !concerns(daemon, &plan, sr)) {
            continue;
        }
        match end(daemon, &intent, &plan).await {
            Ok(true) => tracing::info!(kind = intent.kind, id = intent.id, "ended what was under way"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(kind = intent.kind, id = intent.id, %error, "what was under way could not be ended yet");
            }
        }
    }
}

/// Ends what this life of the process could not end when it was its turn.
pub async fn end_left(daemon: &Arc<Daemon>) {
    let left = daemon.left.take();
    if left.is_empty() {
        return;
    }
    let intents = match daemon.db.intents() {
        Ok(intents) => intents,
        Err(error) => {
            tracing::error!(%error, "the intents could not be read");
            return left.iter().for_each(|intent| daemon.left.add(intent));
        }
    };
    for intent in intents.iter().filter(|intent| left.contains(&intent.id)) {
        if let Err(error) = end_again(daemon, intent).await {
            tracing::warn!(kind = intent.kind, id = intent.id, %error, "what was begun cannot be ended yet");
            daemon.left.add(&intent.id);
        }
    }
}

/// What still cannot be ended is an error, or is left again by itself.
async fn end_again(daemon: &Arc<Daemon>, intent: &Intent) -> ApiResult<()> {
    if transfer::undo_again(daemon, intent).await {
        return Ok(());
    }
    let Some(plan) = Plan::read(intent) else { return Ok(()) };
    match &plan {
        Plan::Discard { vdis } => {
            let vdis: Vec<Ref> = vdis.iter().map(|vdi| Ref::from(vdi.as_str())).collect();
            if let Some(used) = vdis.iter().find(|vdi| is_attached(daemon, vdi)) {
                return Err(ApiError::vdi_in_use(used, "destroy"));
            }
        }
        Plan::Hold { vm } | Plan::Memory { vm } => return let_go_again(daemon, &Ref::from(vm.as_str()), intent).await,
        _ => {}
    }
    end(daemon, intent, &plan).await.map(drop)
}

/// A machine that did not go on when it was let go. Not while something else holds it.
async fn let_go_again(daemon: &Arc<Daemon>, vm: &Ref, intent: &Intent) -> ApiResult<()> {
    let Some(record) = daemon.db.read(|state| state.find("VM", vm)) else { return intents::clear(daemon, &intent.id) };
    let _mark = CallContext::internal(daemon).begin("VM", vm, "unpause", |tx| {
        match tx.get("VM", vm)?.map("current_operations").iter().next() {
            Some((task, other)) => {
                let other = other.as_str().unwrap_or_default();
                Err(ApiError::other_operation_in_progress("VM", vm, other, task))
            }
            None => Ok(()),
        }
    })?;
    tracing::info!(vm = record.uuid(), "letting a machine go on that did not");
    let_machine_go(daemon, vm, intent).await;
    Ok(())
}

fn concerns(daemon: &Daemon, plan: &Plan, sr: &Ref) -> bool {
    let on_sr = |vdi: &String| {
        let vdi = daemon.db.read(|state| state.find("VDI", &Ref::from(vdi.as_str())));
        vdi.is_some_and(|vdi| vdi.reference("SR") == *sr)
    };
    match plan {
        Plan::Discard { vdis } => vdis.iter().any(on_sr),
        Plan::Revert(plan) => {
            plan.in_place.iter().any(|disk| disk.sr == sr.as_str()) || plan.clones().any(|disk| disk.sr == sr.as_str())
        }
        _ => plan.volumes().iter().any(|(at, _)| at == sr),
    }
}

/// Finishes or undoes; false when it is not for now.
async fn end(daemon: &Arc<Daemon>, intent: &Intent, plan: &Plan) -> ApiResult<bool> {
    let id = intent.id.as_str();
    match plan {
        Plan::Create { sr, volumes } => {
            let sr = Ref::from(sr.as_str());
            if daemon.db.read(|state| state.find("SR", &sr)).is_none() {
                intents::clear(daemon, id)?;
            } else {
                intents::undo_create(daemon, &sr, volumes, id).await?;
            }
        }
        Plan::Discard { vdis } => {
            let vdis: Vec<Ref> = vdis.iter().map(|vdi| Ref::from(vdi.as_str())).collect();
            vdi_copy::discard(daemon, &vdis, id).await;
        }
        Plan::Destroy { sr, vdi, volume } => {
            let driver = daemon.storage.driver(&Ref::from(sr.as_str()))?;
            driver.destroy(*volume).await.map_err(driver_error)?;
            vdi::finish_destroy(daemon, &Ref::from(vdi.as_str()), id)?;
        }
        Plan::Resize { sr, vdi, volume, size } => {
            let driver = daemon.storage.driver(&Ref::from(sr.as_str()))?;
            let (reached, _) = driver.resize(*volume, *size).await.map_err(driver_error)?;
            vdi::finish_resize(daemon, &Ref::from(vdi.as_str()), reached, id)?;
        }
        Plan::Revert(plan) => machine::revert::end(daemon, plan, id).await?,
        Plan::SrCreate { uuid, driver, device_config } => {
            let backend = daemon.storage.backend(driver)?;
            let config = begun(daemon, *uuid, device_config)?;
            sr::undo_create(backend.as_ref(), &config).await.map_err(driver_error)?;
            sr::end_create(daemon, device_config, id)?;
        }
        Plan::SrDestroy { sr, uuid, driver, device_config } => {
            let backend = daemon.storage.backend(driver)?;
            let config = begun(daemon, *uuid, device_config)?;
            let found = backend.probe(&config.device_config).await.map_err(driver_error)?;
            if found.is_empty() || found.iter().any(|found| found.sr == *uuid) {
                backend.erase(&config).await.map_err(driver_error)?;
            }
            sr::finish_destroy(daemon, &Ref::from(sr.as_str()), id)?;
        }
        // Its machine is looked for first.
        Plan::Freeze { .. } | Plan::Hold { .. } | Plan::Memory { .. } => return Ok(false),
    }
    Ok(true)
}

/// The configuration of a plan, as the back end needs it.
fn begun(daemon: &Daemon, sr: Uuid, hidden: &BTreeMap<String, String>) -> ApiResult<SrConfig> {
    let (device_config, initiator) = daemon.db.read(|state| (secrets::reveal(state, hidden), host_initiator(state)));
    Ok(SrConfig { sr, device_config: device_config?, initiator, ..SrConfig::default() })
}

/// Machines that an earlier life held or was saving go on, guests that it froze are thawed; called when it is known which machines run.
pub async fn let_guests_go(daemon: &Arc<Daemon>) {
    let Ok(intents) = daemon.db.intents() else { return };
    // A guest that stands still cannot thaw.
    for intent in &intents {
        if let Some(Plan::Hold { vm } | Plan::Memory { vm }) = Plan::read(intent) {
            let_machine_go(daemon, &Ref::from(vm.as_str()), intent).await;
        }
    }
    for intent in &intents {
        if let Some(Plan::Freeze { vm }) = Plan::read(intent) {
            machine::quiesce::thaw_leftover(daemon, &Ref::from(vm.as_str()), &intent.id).await;
        }
    }
}

/// A machine that was held, or whose memory was being saved, goes on. One that does not is left for later.
async fn let_machine_go(daemon: &Arc<Daemon>, vm: &Ref, intent: &Intent) {
    match Plan::read(intent) {
        Some(Plan::Memory { .. }) => memory::give_up_leftover(daemon, vm, &intent.id).await,
        _ => machine::cut::release_leftover(daemon, vm, &intent.id).await,
    }
    // Nobody is to see it held; its own event comes later.
    power::note_running(daemon, vm).await;
}

/// What database and storage disagree about on one SR.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// VDIs whose volume is not there.
    pub without_volume: Vec<Ref>,
    /// Volumes that no VDI names.
    pub without_record: Vec<Uuid>,
    /// VDIs whose size is another: the VDI, what it says, what the volume says.
    pub other_size: Vec<(Ref, i64, u64)>,
}

impl Differences {
    pub fn is_empty(&self) -> bool {
        *self == Differences::default()
    }
}

/// Compares one attached SR with its records.
pub async fn differences(daemon: &Daemon, sr: &Ref) -> ApiResult<Differences> {
    let driver = daemon.storage.driver(sr)?;
    let entries = driver.scan().await.map_err(driver_error)?;
    let planned = sr::planned_volumes(daemon)?;
    let vdis = daemon.db.read(|state| Ok::<_, ApiError>(state.resolve("VDI", &state.get("SR", sr)?.refs("VDIs"))))?;
    let mut found = Differences::default();
    let mut named: HashSet<Uuid> = HashSet::new();
    for vdi in vdis.iter().filter(|vdi| vdi.str("type") != METADATA_TYPE) {
        let volume = volume_id(vdi.str("location")).ok();
        let entry = volume.and_then(|volume| entries.iter().find(|entry| entry.id == volume));
        named.extend(volume);
        match entry {
            None => found.without_volume.push(vdi.id().clone()),
            Some(entry) if i64::try_from(entry.size) != Ok(vdi.int("virtual_size")) => {
                found.other_size.push((vdi.id().clone(), vdi.int("virtual_size"), entry.size));
            }
            Some(_) => {}
        }
    }
    let strange =
        entries.iter().filter(|entry| !named.contains(&entry.id) && !planned.contains(&(sr.clone(), entry.id)));
    found.without_record = strange.map(|entry| entry.id).collect();
    Ok(found)
}

/// Compares every attached SR with its records and reports what differs.
pub async fn compare(daemon: &Arc<Daemon>) {
    let srs = daemon.db.read(|state| state.all("SR"));
    for sr in srs.iter().filter(|sr| daemon.storage.is_open(sr.id())) {
        match differences(daemon, sr.id()).await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => report(daemon, sr.id(), sr.uuid(), &found),
            Err(error) => tracing::warn!(sr = sr.uuid(), %error, "an SR could not be compared with its records"),
        }
    }
}

fn report(daemon: &Daemon, sr: &Ref, uuid: &str, found: &Differences) {
    tracing::warn!(%sr, ?found, "the database and the storage disagree");
    let written = daemon.db.write(|tx| {
        for vdi in &found.without_volume {
            tx.set("VDI", vdi, "missing", true)?;
        }
        let body = format!("{found:?}");
        message(tx, "SR_DIFFERS_FROM_RECORDS", 2, "SR", uuid, &body)
    });
    if let Err(error) = written {
        tracing::error!(%error, "a difference could not be reported");
    }
}
