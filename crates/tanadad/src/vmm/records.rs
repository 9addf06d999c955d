//! What a machine's state means in the database. Every change is one transaction; each may be repeated.

use std::sync::Arc;

use tanada_xapi::{ApiResult, DateTime, Ref, Value, xmlrpc};

use super::Running;
use super::description::{MACHINE_TYPE_KEY, VmRecords};
use super::memory::hardware::Hardware;
use crate::context::Daemon;
use crate::db::{Record, Tx, View};

/// How `VM.power_state` writes the states that a machine with a process can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    Running,
    Paused,
}

impl Power {
    fn name(self) -> &'static str {
        match self {
            Power::Running => "Running",
            Power::Paused => "Paused",
        }
    }
}

/// The machine is about to run: written before its first instruction.
pub fn started(daemon: &Daemon, machine: &Running, records: &VmRecords, power: Power) -> ApiResult<()> {
    let vm = &machine.vm;
    let memory = i64::try_from(records.memory_bytes()?).unwrap_or(i64::MAX);
    daemon.db.write(|tx| {
        let mut booted = records.vm.to_map();
        booted.insert("last_booted_record".into(), Value::from(""));
        booted.insert("snapshot_metadata".into(), Value::from(""));
        tx.set("VM", vm, "last_booted_record", xmlrpc::encode_value(&Value::Map(booted)))?;
        tx.put_entry("VM", vm, "platform", MACHINE_TYPE_KEY, records.machine_type())?;
        tx.set("VM", vm, "memory_target", memory)?;
        resident(tx, machine, power)?;
        let metrics = metrics(tx, vm)?;
        let vcpus = i64::from(records.vcpus()?);
        tx.set_all(
            "VM_metrics",
            &metrics,
            [
                ("memory_actual", Value::from(memory)),
                ("VCPUs_number", Value::from(vcpus)),
                ("start_time", Value::from(DateTime::now())),
                ("hvm", Value::from(true)),
                ("current_domain_type", Value::from("hvm")),
            ],
        )?;
        for (index, disk) in records.disks.iter().enumerate() {
            disk_attached(tx, &disk.vbd, &disk_name(index))?;
        }
        records.vifs.iter().try_for_each(|vif| tx.set("VIF", vif, "currently_attached", true))
    })
}

/// A suspended machine has its memory again: written before its next instruction.
pub fn resumed(tx: &mut Tx<'_>, machine: &Running, hardware: &Hardware, power: Power) -> ApiResult<()> {
    let vm = &machine.vm;
    resident(tx, machine, power)?;
    let metrics = metrics(tx, vm)?;
    tx.set("VM_metrics", &metrics, "memory_actual", i64::try_from(hardware.memory_bytes).unwrap_or(i64::MAX))?;
    tx.set("VM_metrics", &metrics, "VCPUs_number", i64::from(hardware.vcpus))?;
    let record = tx.get("VM", vm)?;
    for vbd in tx.resolve("VBD", &record.refs("VBDs")) {
        match hardware.disks.iter().find(|seat| seat.userdevice == vbd.str("userdevice")) {
            Some(seat) => disk_attached(tx, vbd.id(), &seat.device)?,
            None => disk_detached(tx, vbd.id())?,
        }
    }
    for vif in tx.resolve("VIF", &record.refs("VIFs")) {
        let there = hardware.macs.iter().any(|mac| mac.eq_ignore_ascii_case(vif.str("MAC")));
        tx.set("VIF", vif.id(), "currently_attached", there)?;
    }
    Ok(())
}

/// The machine runs (again, or still): its place and its state.
pub fn resident(tx: &mut Tx<'_>, machine: &Running, power: Power) -> ApiResult<()> {
    let vm = tx.get("VM", &machine.vm)?;
    let host = tx.only("host").map(|host| host.id().clone()).unwrap_or_else(|_| Ref::null());
    if vm.int("domid") < 0 || matches!(vm.str("power_state"), "Halted" | "Suspended") {
        let highest = tx.all("VM").iter().map(|vm| vm.int("domid")).max().unwrap_or(0);
        tx.set("VM", &machine.vm, "domid", highest.max(0) + 1)?;
    }
    tx.set("VM", &machine.vm, "resident_on", &host)?;
    console(tx, machine)?;
    power_state(tx, &machine.vm, power)
}

/// What the machine was seen to do. A suspended VM is not what its last process does.
pub fn observed(tx: &mut Tx<'_>, vm: &Ref, power: Power) -> ApiResult<()> {
    match tx.get("VM", vm)?.str("power_state") {
        "Suspended" => Ok(()),
        _ => power_state(tx, vm, power),
    }
}

/// The state alone.
pub fn power_state(tx: &mut Tx<'_>, vm: &Ref, power: Power) -> ApiResult<()> {
    tx.set("VM", vm, "power_state", power.name())?;
    let state = match power {
        Power::Running => "running",
        Power::Paused => "paused",
    };
    machine_state(tx, vm, state)
}

/// What the virtual processors do, in `VM_metrics.state`.
pub fn machine_state(tx: &mut Tx<'_>, vm: &Ref, state: &str) -> ApiResult<()> {
    let metrics = metrics(tx, vm)?;
    tx.set("VM_metrics", &metrics, "state", Value::set([state]))?;
    tx.set("VM_metrics", &metrics, "last_updated", DateTime::now())
}

/// `VM.other_config` says here that the disks are not those of a machine that was shut down: as after a power cut
/// ([`LAST_STOP_HARD`]), or of a snapshot of a level, by its name, and not started since.
pub const LAST_STOP_KEY: &str = "tanada-last-stop";
pub const LAST_STOP_HARD: &str = "hard";

/// How the machine ended: its guest shut itself down, or it was cut off. A snapshot of a halted machine says which.
pub fn note_stop(tx: &mut Tx<'_>, vm: &Ref, by_guest: bool) -> ApiResult<()> {
    match tx.find("VM", vm) {
        Some(_) if by_guest => tx.remove_entry("VM", vm, "other_config", LAST_STOP_KEY),
        Some(_) => tx.put_entry("VM", vm, "other_config", LAST_STOP_KEY, LAST_STOP_HARD),
        None => Ok(()),
    }
}

/// The machine's process has ended: it is halted, or it sleeps.
pub fn ended(tx: &mut Tx<'_>, vm: &Ref) -> ApiResult<()> {
    match tx.find("VM", vm) {
        Some(record) if record.str("power_state") == "Suspended" => asleep(tx, &record),
        Some(_) => halted(tx, vm),
        // Destroyed under way: nothing to correct.
        None => Ok(()),
    }
}

/// The machine has its memory on a disk and no process. Its devices stay attached to it.
fn asleep(tx: &mut Tx<'_>, record: &Record) -> ApiResult<()> {
    processless(tx, record)?;
    machine_state(tx, record.id(), "halted")
}

/// What only a process has.
fn processless(tx: &mut Tx<'_>, record: &Record) -> ApiResult<()> {
    tx.set_all(
        "VM",
        record.id(),
        [
            ("domid", Value::from(-1)),
            ("resident_on", Value::from(Ref::null())),
            ("guest_metrics", Value::from(Ref::null())),
        ],
    )?;
    let guest = record.reference("guest_metrics");
    if tx.find("VM_guest_metrics", &guest).is_some() {
        tx.destroy("VM_guest_metrics", &guest)?;
    }
    for console in record.refs("consoles") {
        tx.destroy("console", &console)?;
    }
    let metrics = metrics(tx, record.id())?;
    tx.set("VM_metrics", &metrics, "memory_actual", 0)?;
    tx.set("VM_metrics", &metrics, "VCPUs_number", 0)
}

/// The machine has no process and no memory any more.
pub fn halted(tx: &mut Tx<'_>, vm: &Ref) -> ApiResult<()> {
    // Destroyed under way: nothing to correct.
    let Some(record) = tx.find("VM", vm) else { return Ok(()) };
    tx.set("VM", vm, "power_state", "Halted")?;
    processless(tx, &record)?;
    for vbd in record.refs("VBDs") {
        disk_detached(tx, &vbd)?;
    }
    for vif in record.refs("VIFs") {
        tx.set("VIF", &vif, "currently_attached", false)?;
    }
    machine_state(tx, vm, "halted")
}

/// After a start of the daemon: VMs that the database calls running and that have no process.
pub fn halt_those_without_process(daemon: &Arc<Daemon>) -> ApiResult<()> {
    let alive = |vm: &Record| matches!(vm.str("power_state"), "Running" | "Paused") && !vm.bool("is_a_snapshot");
    let all = daemon.db.read(|state| state.all("VM"));
    for vm in all.iter().filter(|vm| alive(vm) && !vm.bool("is_control_domain")) {
        if daemon.vmm.machine(vm.id()).is_none() {
            tracing::warn!(vm = vm.uuid(), "the machine ended while nobody watched");
            daemon.db.write(|tx| {
                // Nobody knows how; the worse is safe to say.
                note_stop(tx, vm.id(), false)?;
                halted(tx, vm.id())
            })?;
        }
    }
    Ok(())
}

pub fn disk_attached(tx: &mut Tx<'_>, vbd: &Ref, device: &str) -> ApiResult<()> {
    tx.set("VBD", vbd, "currently_attached", true)?;
    tx.set("VBD", vbd, "device", device)
}

pub fn disk_detached(tx: &mut Tx<'_>, vbd: &Ref) -> ApiResult<()> {
    if tx.find("VBD", vbd).is_none() {
        return Ok(());
    }
    tx.set_all(
        "VBD",
        vbd,
        [
            ("currently_attached", Value::from(false)),
            ("status_code", Value::from(0)),
            ("status_detail", Value::from("")),
        ],
    )
}

/// What a Linux guest calls its n-th disk.
pub fn disk_name(index: usize) -> String {
    let mut name = String::new();
    let mut rest = index;
    loop {
        name.insert(0, char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
        if rest < 26 {
            return format!("vd{name}");
        }
        rest = rest / 26 - 1;
    }
}

/// The name that a disk plugged now gets: the first one free.
pub fn next_disk_name(view: &impl View, vm: &Record) -> String {
    let attached = view.resolve("VBD", &vm.refs("VBDs")).into_iter().filter(|vbd| vbd.bool("currently_attached"));
    let taken: Vec<String> = attached.map(|vbd| vbd.str("device").to_owned()).collect();
    let mut names = (0..=taken.len()).map(disk_name);
    names.find(|name| !taken.contains(name)).unwrap_or_else(|| disk_name(taken.len()))
}

/// The VM's metrics, made where they are missing.
fn metrics(tx: &mut Tx<'_>, vm: &Ref) -> ApiResult<Ref> {
    let known = tx.get("VM", vm)?.reference("metrics");
    if tx.find("VM_metrics", &known).is_some() {
        return Ok(known);
    }
    let fresh = tx.create("VM_metrics", [("last_updated", Value::from(DateTime::now()))])?;
    tx.set("VM", vm, "metrics", &fresh)?;
    Ok(fresh)
}

/// The serial port, as a console of the VM.
fn console(tx: &mut Tx<'_>, machine: &Running) -> ApiResult<()> {
    if !tx.get("VM", &machine.vm)?.refs("consoles").is_empty() {
        return Ok(());
    }
    let log = machine.dir.serial_log().display().to_string();
    tx.create(
        "console",
        [
            ("protocol", Value::from("vt100")),
            ("location", Value::from(format!("unix:{}", machine.dir.serial_socket().display()))),
            ("VM", Value::from(&machine.vm)),
            ("other_config", Value::map([("log", log)])),
        ],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::disk_name;

    #[test]
    fn disks_are_named_as_linux_names_them() {
        let names: Vec<String> = [0, 1, 25, 26, 27, 51, 52, 701, 702].into_iter().map(disk_name).collect();
        assert_eq!(names, ["vda", "vdb", "vdz", "vdaa", "vdab", "vdaz", "vdba", "vdzz", "vdaaa"]);
    }
}
