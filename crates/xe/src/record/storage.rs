//! Storage: VDI, VBD, SR, PBD, SM.

use crate::failure::Failure;
use crate::record::field::Shown::{
    Bool, Custom, Int, Map, Mapped, Name, Set, SetComma, SetMapped, Text, Time, Uuid, Uuids, Values, Via,
};
use crate::record::field::{INVALID_REFERENCE, NOT_IN_DATABASE, ro, rw, scalar};
use crate::record::lookup::Lookup;
use crate::record::{Class, Object};
use std::collections::BTreeSet;
use tanada_xapi::{Ref, Value};

pub const VDI: Class = Class {
    prefix: "vdi",
    api: "VDI",
    noun: "virtual disk",
    fields: &[
        ro("uuid", Text("uuid")),
        rw("name-label", Text("name_label")),
        rw("name-description", Text("name_description")),
        ro("is-a-snapshot", Bool("is_a_snapshot")),
        ro("snapshot-of", Uuid("snapshot_of", "VDI")),
        ro("snapshots", Uuids("snapshots", "VDI")),
        ro("snapshot-time", Time("snapshot_time")),
        ro("allowed-operations", Set("allowed_operations")),
        ro("current-operations", Values("current_operations", same)),
        ro("sr-uuid", Uuid("SR", "SR")),
        ro("sr-name-label", Name("SR", "SR")),
        ro("vbd-uuids", Uuids("VBDs", "VBD")),
        ro("crashdump-uuids", Uuids("crash_dumps", "crashdump")),
        ro("virtual-size", Int("virtual_size")),
        ro("physical-utilisation", Int("physical_utilisation")),
        ro("location", Text("location")),
        ro("type", Mapped("type", vdi_type)),
        ro("sharable", Bool("sharable")),
        ro("read-only", Bool("read_only")),
        ro("storage-lock", Bool("storage_lock")),
        ro("managed", Bool("managed")),
        ro("parent", Uuid("parent", "VDI")).deprecated(),
        ro("missing", Bool("missing")),
        ro("is-tools-iso", Bool("is_tools_iso")),
        rw("other-config", Map("other_config")),
        ro("xenstore-data", Map("xenstore_data")),
        ro("sm-config", Map("sm_config")),
        rw("on-boot", Text("on_boot")),
        rw("allow-caching", Bool("allow_caching")),
        ro("metadata-latest", Bool("metadata_latest")),
        ro("metadata-of-pool", Uuid("metadata_of_pool", "pool")),
        rw("tags", SetComma("tags")),
        ro("cbt-enabled", Bool("cbt_enabled")),
    ],
    defaults: &["uuid", "name-label", "name-description", "sr-uuid", "virtual-size", "sharable", "read-only"],
    implicit: &[],
    order_by: "name_label",
};

pub const VBD: Class = Class {
    prefix: "vbd",
    api: "VBD",
    noun: "virtual block device",
    fields: &[
        ro("uuid", Text("uuid")),
        ro("vm-uuid", Uuid("VM", "VM")),
        ro("vm-name-label", Name("VM", "VM")),
        ro("vdi-uuid", Uuid("VDI", "VDI")),
        ro("vdi-name-label", Custom(vbd_vdi_name)),
        ro("allowed-operations", Set("allowed_operations")),
        ro("current-operations", Values("current_operations", same)),
        ro("empty", Bool("empty")),
        ro("device", Text("device")),
        rw("userdevice", Text("userdevice")),
        rw("bootable", Bool("bootable")),
        rw("mode", Text("mode")),
        rw("type", Text("type")),
        rw("unpluggable", Bool("unpluggable")),
        ro("currently-attached", Bool("currently_attached")),
        ro("attachable", Custom(vbd_attachable)).expensive(),
        ro("storage-lock", Bool("storage_lock")),
        ro("status-code", Int("status_code")),
        ro("status-detail", Text("status_detail")),
        rw("qos_algorithm_type", Text("qos_algorithm_type")),
        rw("qos_algorithm_params", Map("qos_algorithm_params")),
        ro("qos_supported_algorithms", Set("qos_supported_algorithms")),
        rw("other-config", Map("other_config")),
    ],
    defaults: &["uuid", "vm-uuid", "vm-name-label", "vdi-uuid", "empty", "device"],
    implicit: &[],
    order_by: "userdevice",
};

pub const SR: Class = Class {
    prefix: "sr",
    api: "SR",
    noun: "storage repository",
    fields: &[
        ro("uuid", Text("uuid")),
        rw("name-label", Text("name_label")),
        rw("name-description", Text("name_description")),
        ro("host", Custom(sr_host)),
        ro("allowed-operations", SetMapped("allowed_operations", sr_operation)),
        ro("current-operations", Values("current_operations", sr_operation)),
        ro("VDIs", Uuids("VDIs", "VDI")),
        ro("PBDs", Uuids("PBDs", "PBD")),
        ro("virtual-allocation", Int("virtual_allocation")),
        ro("physical-utilisation", Int("physical_utilisation")),
        ro("physical-size", Int("physical_size")),
        ro("type", Text("type")),
        ro("content-type", Text("content_type")),
        rw("shared", Bool("shared")),
        ro("introduced-by", Uuid("introduced_by", "DR_task")),
        ro("is-tools-sr", Bool("is_tools_sr")),
        rw("other-config", Map("other_config")),
        ro("sm-config", Map("sm_config")),
        ro("blobs", Map("blobs")),
        ro("local-cache-enabled", Bool("local_cache_enabled")),
        rw("tags", SetComma("tags")),
        ro("clustered", Bool("clustered")),
    ],
    defaults: &["uuid", "name-label", "name-description", "host", "type", "content-type"],
    implicit: &[],
    order_by: "name_label",
};

pub const PBD: Class = Class {
    prefix: "pbd",
    api: "PBD",
    noun: "connection of a host to a storage repository",
    fields: &[
        ro("uuid", Text("uuid")),
        ro("host", Uuid("host", "host")).deprecated(),
        ro("host-uuid", Uuid("host", "host")),
        ro("host-name-label", Name("host", "host")),
        ro("sr-uuid", Uuid("SR", "SR")),
        ro("sr-name-label", Name("SR", "SR")),
        ro("device-config", Map("device_config")),
        ro("currently-attached", Bool("currently_attached")),
        rw("other-config", Map("other_config")),
    ],
    defaults: &["uuid", "host-uuid", "sr-uuid", "device-config", "currently-attached"],
    implicit: &[],
    order_by: "uuid",
};

pub const SM: Class = Class {
    prefix: "sm",
    api: "SM",
    noun: "storage driver",
    fields: &[
        ro("uuid", Text("uuid")),
        ro("name-label", Text("name_label")),
        ro("name-description", Text("name_description")),
        ro("type", Text("type")),
        ro("vendor", Text("vendor")),
        ro("copyright", Text("copyright")),
        ro("required-api-version", Text("required_api_version")),
        ro("capabilities", Set("capabilities")).deprecated(),
        ro("features", Map("features")),
        ro("configuration", Map("configuration")),
        ro("driver-filename", Text("driver_filename")),
        ro("required-cluster-stack", Set("required_cluster_stack")),
    ],
    defaults: &["uuid", "name-label", "name-description", "type", "vendor", "copyright", "configuration"],
    implicit: &[],
    order_by: "type",
};

fn same(text: &str) -> String {
    text.to_owned()
}

fn vdi_type(api: &str) -> String {
    match api {
        "ha_statefile" => "HA statefile".to_owned(),
        "redo_log" => "Redo log".to_owned(),
        "system" | "user" | "ephemeral" | "suspend" | "crashdump" | "metadata" => {
            api[..1].to_ascii_uppercase() + &api[1..]
        }
        other => other.to_owned(),
    }
}

/// `vdi_create` is shown as `VDI.create`.
fn sr_operation(api: &str) -> String {
    match api.split_once('_') {
        Some((class @ ("vdi" | "pbd"), operation)) => format!("{}.{operation}", class.to_uppercase()),
        _ => api.to_owned(),
    }
}

fn vbd_vdi_name(lookup: &Lookup<'_>, object: &Object) -> Result<String, Failure> {
    if object.record.get("empty").and_then(Value::as_bool) == Some(true) {
        return Ok("<EMPTY>".to_owned());
    }
    Name("VDI", "VDI").text(lookup, object)
}

/// Asks the server; a refusal is the answer.
fn vbd_attachable(lookup: &Lookup<'_>, object: &Object) -> Result<String, Failure> {
    match lookup.api.call("VBD.assert_attachable", vec![Value::from(&object.reference)]) {
        Ok(_) => Ok("true".to_owned()),
        Err(Failure::Api(error)) => Ok(format!("false (error: {error})")),
        Err(other) => Err(other),
    }
}

/// The host's name, or `<shared>` when several hosts see the repository.
fn sr_host(lookup: &Lookup<'_>, object: &Object) -> Result<String, Failure> {
    let mut hosts = BTreeSet::new();
    for pbd in object.record.get("PBDs").and_then(Value::as_set).unwrap_or_default() {
        match lookup.object("PBD", &Ref::from(scalar(pbd)))? {
            Some(pbd) => hosts.insert(Via("host", "host", &Text("name_label")).text(lookup, &pbd)?),
            None => hosts.insert(INVALID_REFERENCE.to_owned()),
        };
    }
    Ok(match hosts.len() {
        0 => NOT_IN_DATABASE.to_owned(),
        1 => hosts.pop_first().unwrap_or_default(),
        _ => "<shared>".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::{sr_operation, vdi_type};

    #[test]
    fn texts_differ_from_the_api() {
        assert_eq!(
            ["user", "ha_statefile", "redo_log", "rrd"].map(vdi_type),
            ["User", "HA statefile", "Redo log", "rrd"]
        );
        assert_eq!(
            ["vdi_create", "pbd_destroy", "scan", "unplug"].map(sr_operation),
            ["VDI.create", "PBD.destroy", "scan", "unplug"]
        );
    }
}
