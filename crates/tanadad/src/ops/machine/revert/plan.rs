//! What a revert does with each disk, and the mark of a machine whose disks are between two instants.

use tanada_xapi::{ApiError, ApiResult, Ref};
use uuid::Uuid;

use super::super::snapshot::disks_of;
use crate::context::Daemon;
use crate::db::{Tx, View};
use crate::ops::intents::{CloneDisk, Plan, RevertDisk, RevertPlan, SwitchDisk};
use crate::storage::volume_id;

/// `VM.other_config` names the snapshot here that the machine's disks are on the way to, one by one: some of them may be
/// there. What is made of the machine bears it too, for its disks are the same.
pub const UNFINISHED_KEY: &str = "tanada-revert-unfinished";

/// How the disks of a machine with several go back, where the storage can do both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Switched,
    InPlace,
}

/// Which disk goes back how.
pub fn plan(daemon: &Daemon, vm: &Ref, snapshot: &Ref, way: Way) -> ApiResult<RevertPlan> {
    let (machine, current, kept) = daemon.db.read(|state| {
        Ok::<_, ApiError>((state.get("VM", vm)?, disks_of(state, vm, &[])?, disks_of(state, snapshot, &[])?))
    })?;
    let mut plan = RevertPlan {
        vm: vm.to_string(),
        snapshot: snapshot.to_string(),
        marked_before: machine.entry("other_config", UNFINISHED_KEY).is_some(),
        switched: Vec::new(),
        in_place: Vec::new(),
        cloned: Vec::new(),
        memory: memory(daemon, snapshot)?,
    };
    let several = current.len().max(kept.len()) > 1;
    for disk in kept {
        let sr = disk.vdi.reference("SR");
        let can = daemon.storage.driver(&sr)?.capabilities();
        let generation = volume_id(disk.vdi.str("location"))?;
        let snapshot_vdi = disk.vdi.id().to_string();
        let origin = disk.vdi.reference("snapshot_of");
        let head = current.iter().find(|now| *now.vdi.id() == origin && now.vdi.reference("SR") == sr);
        let sr = sr.to_string();
        let Some(head) = head.filter(|_| can.revert_in_place) else {
            plan.cloned.push(CloneDisk { sr, snapshot_vdi, generation, volume: Uuid::new_v4() });
            continue;
        };
        let (vdi, volume) = (head.vdi.id().to_string(), volume_id(head.vdi.str("location"))?);
        if several && way == Way::Switched && !can.clone_is_copy {
            let clone = CloneDisk { sr, snapshot_vdi, generation, volume: Uuid::new_v4() };
            plan.switched.push(SwitchDisk { vdi, old: volume, clone });
        } else {
            plan.in_place.push(RevertDisk { sr, vdi, volume, snapshot_vdi, generation });
        }
    }
    Ok(plan)
}

/// The image of a checkpoint; `None` for a snapshot of the disks alone.
fn memory(daemon: &Daemon, snapshot: &Ref) -> ApiResult<Option<CloneDisk>> {
    let image = daemon.db.read(|state| {
        let snapshot = state.get("VM", snapshot)?;
        Ok::<_, ApiError>(match snapshot.str("power_state") {
            "Suspended" => state.find("VDI", &snapshot.reference("suspend_VDI")),
            _ => None,
        })
    })?;
    let Some(image) = image else { return Ok(None) };
    let sr = image.reference("SR");
    daemon.storage.driver(&sr)?;
    Ok(Some(CloneDisk {
        sr: sr.to_string(),
        snapshot_vdi: image.id().to_string(),
        generation: volume_id(image.str("location"))?,
        volume: Uuid::new_v4(),
    }))
}

/// Writes the plan down, with the mark where disks go back one by one. It takes the place of plans for this machine that
/// an earlier life left and that could not be ended yet.
pub fn write(daemon: &Daemon, plan: &RevertPlan) -> ApiResult<String> {
    let earlier = daemon.db.intents().map_err(ApiError::internal)?;
    let (id, undone) = daemon.db.write(|tx| {
        let mut undone = Vec::new();
        for intent in &earlier {
            if let Some(Plan::Revert(old)) = Plan::read(intent)
                && old.vm == plan.vm
            {
                undone.extend(strike(tx, &old, &intent.id)?);
            }
        }
        if !plan.in_place.is_empty() {
            let snapshot = tx.get("VM", &Ref::from(plan.snapshot.as_str()))?;
            tx.put_entry("VM", &Ref::from(plan.vm.as_str()), "other_config", UNFINISHED_KEY, snapshot.uuid())?;
        }
        Ok((Plan::Revert(plan.clone()).put(tx)?, undone))
    })?;
    undone.iter().for_each(|intent| daemon.left.add(intent));
    Ok(id)
}

/// The plan is not carried out: what was made for it has to go. Answers the intents that say so.
pub fn strike(tx: &mut Tx<'_>, plan: &RevertPlan, intent: &str) -> ApiResult<Vec<String>> {
    tx.clear_intent(intent);
    let undo = |disk: &CloneDisk| Plan::Create { sr: disk.sr.clone(), volumes: vec![disk.volume] };
    plan.clones().map(|disk| undo(disk).put(tx)).collect()
}
