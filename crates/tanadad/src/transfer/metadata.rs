//! Machines as records alone: `/export_metadata` and `/import_metadata`.
//!
//! The records of one machine or of all, with their snapshots, fit into memory, so they are written and read as a whole.
//! Disks are not made but found ([`super::known`]); nothing is written before all of them were.

use std::collections::{BTreeMap, BTreeSet};

use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};
use tanada_xva::metadata;
use tokio::sync::mpsc;

use super::error::xva_error;
use super::known::find_disks;
use super::pack::pack_metadata;
use super::stream::{Piece, PieceReader};
use super::unpack::{Manner, Unpacked};
use crate::context::CallContext;
use crate::db::{State, View};
use crate::ops::allowed;

/// Which records go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// One machine, snapshot or template; `None` for all but default templates.
    pub vm: Option<Ref>,
    pub snapshots: bool,
    /// Classes of devices to leave out, in lower case.
    pub excluded: BTreeSet<String>,
}

/// Classes of devices that can be left out. There are no vGPUs and no vTPMs here to leave out.
const DEVICES: [&str; 4] = ["vif", "vbd", "vgpu", "vtpm"];

impl Wanted {
    /// `excluded`: names parted by commas.
    pub fn new(vm: Option<Ref>, snapshots: bool, excluded: &str) -> ApiResult<Wanted> {
        let excluded: BTreeSet<String> =
            excluded.split(',').map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty()).collect();
        match excluded.iter().find(|name| !DEVICES.contains(&name.as_str())) {
            Some(wrong) => Err(ApiError::value_not_supported("excluded_device_types", wrong, DEVICES.join(", "))),
            None => Ok(Wanted { vm, snapshots, excluded }),
        }
    }

    /// Machines first, each before its snapshots.
    fn machines(&self, state: &State) -> ApiResult<Vec<Ref>> {
        let ours = match &self.vm {
            Some(vm) => vec![state.get("VM", vm)?],
            None => {
                let mut all = state.all("VM");
                all.retain(|vm| !vm.bool("is_default_template") && !vm.bool("is_a_snapshot"));
                all
            }
        };
        let mut machines = Vec::new();
        for vm in ours {
            machines.push(vm.id().clone());
            if self.snapshots {
                machines.extend(state.resolve("VM", &vm.refs("snapshots")).iter().map(|vm| vm.id().clone()));
            }
        }
        if self.vm.is_none() && self.snapshots {
            // Those whose machine is gone.
            let known: BTreeSet<Ref> = machines.iter().cloned().collect();
            let left = state.all("VM").into_iter().filter(|vm| vm.bool("is_a_snapshot") && !known.contains(vm.id()));
            machines.extend(left.map(|vm| vm.id().clone()));
        }
        Ok(machines)
    }
}

/// The archive.
pub fn export(ctx: &CallContext, wanted: &Wanted) -> ApiResult<Vec<u8>> {
    let _operation = match &wanted.vm {
        Some(vm) => Some(ctx.begin("VM", vm, "metadata_export", |tx| allowed::vm(tx, vm, "metadata_export"))?),
        None => None,
    };
    let ova = ctx.db().read(|state| pack_metadata(state, &wanted.machines(state)?, &wanted.excluded))?;
    let now = u64::try_from(DateTime::now().unix()).unwrap_or(0);
    metadata::write(&ova, now).map_err(|error| ApiError::operation_not_allowed(error.to_string()))
}

/// How records are taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    pub manner: Manner,
    /// Look whether it would succeed, and change nothing.
    pub dry_run: bool,
    /// Disks that the caller names: uuid or SCSI id in the archive, and here.
    pub mapped: BTreeMap<String, String>,
}

impl Import {
    /// Answers the machines; none for a dry run.
    pub async fn run(self, ctx: CallContext, body: mpsc::Receiver<Piece>) -> ApiResult<Value> {
        let thread = tokio::task::spawn_blocking(move || metadata::read(PieceReader::new(body)));
        let ova = ctx.task.until_cancelled(thread).await?;
        let ova = ova.map_err(|error| ApiError::internal(format!("the archive's reader: {error}")))?;
        let unpacked = Unpacked::read(&ova.map_err(xva_error)?, self.manner)?;
        let force = self.manner.force;
        if self.dry_run {
            ctx.db().read(|state| {
                unpacked.check(state)?;
                find_disks(state, &unpacked.known, &self.mapped, force)
            })?;
            return Ok(Value::empty_set());
        }
        let made = ctx.db().write(|tx| {
            let disks = find_disks(tx, &unpacked.known, &self.mapped, force)?;
            unpacked.create(tx, &disks, ctx.task.id())
        })?;
        Ok(Value::set(made))
    }
}
