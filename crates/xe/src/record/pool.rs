//! The pool and its hosts.

use crate::record::Class;
use crate::record::field::Shown::{Bool, Int, Map, Set, SetComma, Text, Uuid, Uuids, Values, Via};
use crate::record::field::{ro, rw};

pub const POOL: Class = Class {
    prefix: "pool",
    api: "pool",
    noun: "pool",
    fields: &[
        ro("uuid", Text("uuid")),
        rw("name-label", Text("name_label")),
        rw("name-description", Text("name_description")),
        ro("master", Uuid("master", "host")),
        rw("default-SR", Uuid("default_SR", "SR")),
        rw("crash-dump-SR", Uuid("crash_dump_SR", "SR")),
        rw("suspend-image-SR", Uuid("suspend_image_SR", "SR")),
        ro("allowed-operations", Set("allowed_operations")),
        ro("current-operations", Values("current_operations", same)),
        ro("ha-enabled", Bool("ha_enabled")),
        ro("ha-configuration", Map("ha_configuration")),
        ro("ha-statefiles", Set("ha_statefiles")),
        rw("other-config", Map("other_config")),
        ro("blobs", Map("blobs")),
        rw("tags", SetComma("tags")),
        rw("gui-config", Map("gui_config")),
        ro("restrictions", Map("restrictions")),
        ro("guest-agent-config", Map("guest_agent_config")),
        ro("cpu-info", Map("cpu_info")),
        rw("live-patching-disabled", Bool("live_patching_disabled")),
        rw("migration-compression", Bool("migration_compression")),
    ],
    defaults: &["uuid", "name-label", "name-description", "master", "default-SR"],
    implicit: &[],
    order_by: "name_label",
};

pub const HOST: Class = Class {
    prefix: "host",
    api: "host",
    noun: "host",
    fields: &[
        ro("uuid", Text("uuid")),
        rw("name-label", Text("name_label")),
        rw("name-description", Text("name_description")),
        ro("allowed-operations", Set("allowed_operations")),
        ro("current-operations", Values("current_operations", same)),
        ro("enabled", Bool("enabled")),
        ro("API-version-major", Int("API_version_major")),
        ro("API-version-minor", Int("API_version_minor")),
        ro("API-version-vendor", Text("API_version_vendor")),
        ro("API-version-vendor-implementation", Map("API_version_vendor_implementation")),
        rw("logging", Map("logging")),
        rw("suspend-image-sr-uuid", Uuid("suspend_image_sr", "SR")),
        rw("crash-dump-sr-uuid", Uuid("crash_dump_sr", "SR")),
        ro("software-version", Map("software_version")),
        ro("capabilities", Set("capabilities")),
        rw("other-config", Map("other_config")),
        ro("cpu_info", Map("cpu_info")),
        ro("chipset-info", Map("chipset_info")),
        ro("hostname", Text("hostname")),
        ro("address", Text("address")),
        ro("supported-bootloaders", Set("supported_bootloaders")),
        ro("blobs", Map("blobs")),
        ro("memory-overhead", Int("memory_overhead")),
        ro("memory-total", Via("metrics", "host_metrics", &Int("memory_total"))),
        ro("memory-free", Via("metrics", "host_metrics", &Int("memory_free"))),
        ro("host-metrics-live", Via("metrics", "host_metrics", &Bool("live"))),
        ro("resident-vms", Uuids("resident_VMs", "VM")),
        rw("tags", SetComma("tags")),
        ro("edition", Text("edition")),
        ro("bios-strings", Map("bios_strings")),
        ro("iscsi_iqn", Text("iscsi_iqn")),
        ro("multipathing", Bool("multipathing")),
        ro("control-domain-uuid", Uuid("control_domain", "VM")),
    ],
    defaults: &["uuid", "name-label", "name-description"],
    implicit: &[],
    order_by: "name_label",
};

fn same(text: &str) -> String {
    text.to_owned()
}
