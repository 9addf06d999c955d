//! VMs, templates and snapshots: one XenAPI class, three families of commands.

use crate::failure::Failure;
use crate::record::field::Shown::{
    Bool, Custom, CustomSet, Float, Int, Map, Mapped, Set, SetComma, Text, Time, Uuid, Uuids, Values, Via,
};
use crate::record::field::{Field, ro, rw, scalar};
use crate::record::lookup::Lookup;
use crate::record::{Class, Object};
use tanada_xapi::{Ref, Value};

pub const VM: Class = Class {
    prefix: "vm",
    api: "VM",
    noun: "VM",
    fields: FIELDS,
    defaults: &["uuid", "name-label", "power-state"],
    implicit: &[("is-a-template", "false")],
    order_by: "name_label",
};

pub const TEMPLATE: Class = Class {
    prefix: "template",
    api: "VM",
    noun: "template",
    fields: FIELDS,
    defaults: &["uuid", "name-label", "name-description"],
    implicit: &[("is-a-template", "true"), ("is-a-snapshot", "false")],
    order_by: "name_label",
};

pub const SNAPSHOT: Class = Class {
    prefix: "snapshot",
    api: "VM",
    noun: "snapshot",
    fields: FIELDS,
    defaults: &["uuid", "name-label", "name-description", "is-vmss-snapshot"],
    implicit: &[("is-a-snapshot", "true")],
    order_by: "snapshot_time",
};

const FIELDS: &[Field] = &[
    ro("uuid", Text("uuid")),
    rw("name-label", Text("name_label")),
    rw("name-description", Text("name_description")),
    rw("user-version", Int("user_version")),
    rw("is-a-template", Bool("is_a_template")),
    rw("is-default-template", Bool("is_default_template")),
    ro("is-a-snapshot", Bool("is_a_snapshot")),
    ro("snapshot-of", Uuid("snapshot_of", "VM")),
    ro("snapshots", Uuids("snapshots", "VM")),
    ro("snapshot-time", Time("snapshot_time")),
    ro("snapshot-info", Map("snapshot_info")),
    ro("parent", Uuid("parent", "VM")),
    ro("children", Uuids("children", "VM")),
    ro("is-control-domain", Bool("is_control_domain")),
    ro("power-state", Mapped("power_state", lower)),
    ro("memory-actual", Via("metrics", "VM_metrics", &Int("memory_actual"))),
    ro("memory-target", Int("memory_target")),
    ro("memory-overhead", Int("memory_overhead")),
    rw("memory-static-max", Int("memory_static_max")),
    rw("memory-dynamic-max", Int("memory_dynamic_max")),
    rw("memory-dynamic-min", Int("memory_dynamic_min")),
    rw("memory-static-min", Int("memory_static_min")),
    rw("suspend-VDI-uuid", Uuid("suspend_VDI", "VDI")),
    rw("suspend-SR-uuid", Uuid("suspend_SR", "SR")),
    rw("VCPUs-params", Map("VCPUs_params")),
    rw("VCPUs-max", Int("VCPUs_max")),
    rw("VCPUs-at-startup", Int("VCPUs_at_startup")),
    rw("actions-after-softreboot", Text("actions_after_softreboot")),
    rw("actions-after-shutdown", Text("actions_after_shutdown")),
    rw("actions-after-reboot", Text("actions_after_reboot")),
    rw("actions-after-crash", Text("actions_after_crash")),
    ro("console-uuids", Uuids("consoles", "console")),
    ro("hvm", Via("metrics", "VM_metrics", &Bool("hvm"))),
    ro("nomigrate", Via("metrics", "VM_metrics", &Bool("nomigrate"))),
    ro("nested-virt", Via("metrics", "VM_metrics", &Bool("nested_virt"))),
    rw("platform", Map("platform")),
    ro("allowed-operations", Set("allowed_operations")),
    ro("current-operations", Values("current_operations", same)),
    rw("blocked-operations", Map("blocked_operations")),
    ro("allowed-VBD-devices", CustomSet(allowed_vbd_devices)).expensive(),
    ro("allowed-VIF-devices", CustomSet(allowed_vif_devices)).expensive(),
    ro("possible-hosts", Custom(possible_hosts)).expensive(),
    rw("domain-type", Text("domain_type")),
    ro("current-domain-type", Via("metrics", "VM_metrics", &Text("current_domain_type"))),
    rw("HVM-boot-policy", Text("HVM_boot_policy")),
    rw("HVM-boot-params", Map("HVM_boot_params")),
    rw("HVM-shadow-multiplier", Float("HVM_shadow_multiplier")),
    rw("PV-kernel", Text("PV_kernel")),
    rw("PV-ramdisk", Text("PV_ramdisk")),
    rw("PV-args", Text("PV_args")),
    rw("PV-legacy-args", Text("PV_legacy_args")),
    rw("PV-bootloader", Text("PV_bootloader")),
    rw("PV-bootloader-args", Text("PV_bootloader_args")),
    ro("last-boot-CPU-flags", Map("last_boot_CPU_flags")),
    ro("last-boot-record", Text("last_booted_record")).hidden(),
    ro("resident-on", Uuid("resident_on", "host")),
    rw("affinity", Uuid("affinity", "host")),
    rw("other-config", Map("other_config")),
    ro("dom-id", Int("domid")),
    ro("recommendations", Text("recommendations")),
    rw("xenstore-data", Map("xenstore_data")),
    rw("ha-always-run", Bool("ha_always_run")).deprecated(),
    rw("ha-restart-priority", Text("ha_restart_priority")),
    ro("blobs", Map("blobs")),
    ro("start-time", Via("metrics", "VM_metrics", &Time("start_time"))),
    ro("install-time", Via("metrics", "VM_metrics", &Time("install_time"))),
    ro("VCPUs-number", Via("metrics", "VM_metrics", &Int("VCPUs_number"))),
    ro("os-version", Via("guest_metrics", "VM_guest_metrics", &Map("os_version"))),
    ro("PV-drivers-version", Via("guest_metrics", "VM_guest_metrics", &Map("PV_drivers_version"))),
    ro("PV-drivers-up-to-date", Via("guest_metrics", "VM_guest_metrics", &Bool("PV_drivers_up_to_date"))).deprecated(),
    ro("memory", Via("guest_metrics", "VM_guest_metrics", &Map("memory"))),
    ro("disks", Via("guest_metrics", "VM_guest_metrics", &Map("disks"))),
    ro("VBDs", Uuids("VBDs", "VBD")),
    ro("networks", Via("guest_metrics", "VM_guest_metrics", &Map("networks"))),
    ro("PV-drivers-detected", Via("guest_metrics", "VM_guest_metrics", &Bool("PV_drivers_detected"))),
    ro("other", Via("guest_metrics", "VM_guest_metrics", &Map("other"))),
    ro("live", Via("guest_metrics", "VM_guest_metrics", &Bool("live"))),
    ro("guest-metrics-last-updated", Via("guest_metrics", "VM_guest_metrics", &Time("last_updated"))),
    ro("can-use-hotplug-vbd", Via("guest_metrics", "VM_guest_metrics", &Text("can_use_hotplug_vbd"))),
    ro("can-use-hotplug-vif", Via("guest_metrics", "VM_guest_metrics", &Text("can_use_hotplug_vif"))),
    rw("tags", SetComma("tags")),
    rw("appliance", Uuid("appliance", "VM_appliance")),
    rw("snapshot-schedule", Uuid("snapshot_schedule", "VMSS")),
    ro("is-vmss-snapshot", Bool("is_vmss_snapshot")),
    rw("start-delay", Int("start_delay")),
    rw("shutdown-delay", Int("shutdown_delay")),
    rw("order", Int("order")),
    ro("version", Int("version")),
    ro("generation-id", Text("generation_id")),
    ro("hardware-platform-version", Int("hardware_platform_version")),
    rw("has-vendor-device", Bool("has_vendor_device")),
    ro("requires-reboot", Bool("requires_reboot")),
    ro("reference-label", Text("reference_label")),
    ro("bios-strings", Map("bios_strings")),
    ro("pending-guidances", Set("pending_guidances")),
];

fn lower(text: &str) -> String {
    text.to_lowercase()
}

fn same(text: &str) -> String {
    text.to_owned()
}

fn allowed_vbd_devices(lookup: &Lookup<'_>, object: &Object) -> Result<String, Failure> {
    devices(lookup, object, "VM.get_allowed_VBD_devices")
}

fn allowed_vif_devices(lookup: &Lookup<'_>, object: &Object) -> Result<String, Failure> {
    devices(lookup, object, "VM.get_allowed_VIF_devices")
}

fn devices(lookup: &Lookup<'_>, object: &Object, method: &str) -> Result<String, Failure> {
    let devices = lookup.api.call(method, vec![Value::from(&object.reference)])?;
    let names: Vec<String> = devices.as_set().unwrap_or_default().iter().map(scalar).collect();
    Ok(names.join("; "))
}

fn possible_hosts(lookup: &Lookup<'_>, object: &Object) -> Result<String, Failure> {
    let hosts = lookup.api.call("VM.get_possible_hosts", vec![Value::from(&object.reference)])?;
    let mut uuids = Vec::new();
    for host in hosts.as_set().unwrap_or_default() {
        uuids.push(lookup.shown("host", &Ref::from(scalar(host)), "uuid")?);
    }
    Ok(uuids.join(", "))
}
