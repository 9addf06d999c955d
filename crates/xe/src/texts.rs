//! English for error codes, with the names of their parameters in the order of the wire.
//!
//! A code that is missing here is shown as `Error code:` and `Error parameters:`. Scripts know some codes in that form
//! (`VM_IS_SNAPSHOT`, `VDI_IS_SHARABLE`, `SR_BACKEND_FAILURE_<n>`), so these stay out.

pub struct Text {
    pub code: &'static str,
    pub params: &'static [&'static str],
    pub english: &'static str,
}

pub fn find(code: &str) -> Option<&'static Text> {
    TEXTS.iter().find(|text| text.code == code)
}

const fn t(code: &'static str, params: &'static [&'static str], english: &'static str) -> Text {
    Text { code, params, english }
}

static TEXTS: &[Text] = &[
    // general
    t("CANNOT_CONTACT_HOST", &["host"], "Cannot contact the other host."),
    t("EVENTS_LOST", &[], "Some events have been lost from the queue and cannot be retrieved."),
    t("FIELD_TYPE_ERROR", &["field"], "The value specified is of the wrong type."),
    t(
        "HANDLE_INVALID",
        &["class", "handle"],
        "You gave an invalid object reference. The object may have recently been deleted.",
    ),
    t("HOST_DISABLED", &["host"], "The specified host is disabled."),
    t(
        "HOST_IS_SLAVE",
        &["Master IP address"],
        "You cannot make regular API calls directly on a supporter. Pass API calls via the coordinator host.",
    ),
    t(
        "HOST_NOT_ENOUGH_FREE_MEMORY",
        &["needed", "available"],
        "Not enough server memory is available to perform this operation.",
    ),
    t("HOST_STILL_BOOTING", &[], "The host toolstack is still initializing. Wait, then try again."),
    t(
        "INTERNAL_ERROR",
        &["message"],
        "The server failed to handle your request, due to an internal error. The given message may give details useful for debugging the problem.",
    ),
    t("INVALID_VALUE", &["field", "value"], "The value given is invalid"),
    t(
        "MAP_DUPLICATE_KEY",
        &["type", "param_name", "uuid", "key"],
        "You tried to add a key-value pair to a map, but that key is already there.",
    ),
    t("MESSAGE_DEPRECATED", &[], "This message has been deprecated."),
    t(
        "MESSAGE_METHOD_UNKNOWN",
        &["method"],
        "You tried to call a method that does not exist. The method name that you used is echoed.",
    ),
    t(
        "MESSAGE_PARAMETER_COUNT_MISMATCH",
        &["method", "expected", "received"],
        "You tried to call a method with the incorrect number of parameters.",
    ),
    t("MESSAGE_REMOVED", &[], "This function is no longer available."),
    t("NOT_IMPLEMENTED", &["function"], "The function is not implemented"),
    t(
        "OPERATION_BLOCKED",
        &["ref", "code"],
        "You attempted an operation that was explicitly blocked (see the blocked_operations field of the given object).",
    ),
    t("OPERATION_NOT_ALLOWED", &["reason"], "You attempted an operation that was not allowed."),
    t(
        "OTHER_OPERATION_IN_PROGRESS",
        &["class", "object", "operation_type", "operation_ref"],
        "Another operation involving the object is currently in progress",
    ),
    t("OUT_OF_SPACE", &["location"], "There is not enough space to upload the update"),
    t("PERMISSION_DENIED", &["message"], "You do not have the required permissions to perform the operation."),
    t("RBAC_PERMISSION_DENIED", &["permission", "message"], "RBAC permission denied."),
    t(
        "SESSION_INVALID",
        &["handle"],
        "You gave an invalid session reference. It may have been invalidated by a server restart, or timed out. Get a new session handle, using one of the session.login_ calls.",
    ),
    t("TASK_CANCELLED", &["task"], "The request was asynchronously canceled."),
    t("TOO_BUSY", &[], "The request was rejected because the server is too busy."),
    t(
        "TOO_MANY_PENDING_TASKS",
        &[],
        "The request was rejected because there are too many pending tasks on the server.",
    ),
    t("UUID_INVALID", &["type", "uuid"], "The uuid you supplied was invalid."),
    t(
        "VALUE_NOT_SUPPORTED",
        &["field", "value", "reason"],
        "You attempted to set a value that is not supported by this implementation. The fully-qualified field name and the value that you tried to set are returned. Also returned is a developer-only diagnostic reason.",
    ),
    // VM
    t("DUPLICATE_VM", &["vm"], "Cannot restore this VM because it would create a duplicate"),
    t("DUPLICATE_MAC_SEED", &["seed"], "This MAC seed is already in use by a VM in the pool"),
    t(
        "MEMORY_CONSTRAINT_VIOLATION",
        &["constraint"],
        "The dynamic memory range does not satisfy the following constraint.",
    ),
    t(
        "MEMORY_CONSTRAINT_VIOLATION_ORDER",
        &[],
        "The dynamic memory range violates constraint static_min <= dynamic_min <= dynamic_max <= static_max.",
    ),
    t("NO_HOSTS_AVAILABLE", &[], "There were no servers available to complete the specified operation."),
    t("PROVISION_FAILED_OUT_OF_SPACE", &[], "The provision call failed because it ran out of space."),
    t(
        "PROVISION_ONLY_ALLOWED_ON_TEMPLATE",
        &[],
        "The provision call can only be invoked on templates, not regular VMs.",
    ),
    t("REVERT_ONLY_ALLOWED_ON_SNAPSHOT", &[], "You attempted to revert to something that is not a snapshot."),
    t(
        "VM_BAD_POWER_STATE",
        &["vm", "expected", "actual"],
        "You attempted an operation on a VM that was not in an appropriate power state at the time; for example, you attempted to start a VM that was already running. The parameters returned are the VM's handle, and the expected and actual VM state at the time of the call.",
    ),
    t("VM_BIOS_STRINGS_ALREADY_SET", &[], "The BIOS strings for this VM have already been set and cannot be changed."),
    t("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", &["vm"], "You cannot delete the specified default template."),
    t("VM_CRASHED", &["vm"], "The VM crashed"),
    t("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", &["vm"], "VM didn't acknowledge the need to shutdown."),
    t("VM_HALTED", &["vm"], "The VM unexpectedly halted"),
    t("VM_HAS_TOO_MANY_SNAPSHOTS", &["vm"], "The VM has too many snapshots."),
    t("VM_IS_IMMOBILE", &["VM"], "The VM is configured in a way that prevents it from being mobile."),
    t("VM_IS_TEMPLATE", &["vm", "operation"], "The operation attempted is not valid for a template VM"),
    t("VM_LACKS_FEATURE", &["vm"], "You attempted an operation on a VM which lacks the feature."),
    t("VM_MEMORY_SIZE_TOO_LOW", &["vm"], "The specified VM has too little memory to be started."),
    t(
        "VM_MISSING_PV_DRIVERS",
        &["vm"],
        "You attempted an operation on a VM which requires PV drivers to be installed but the drivers were not detected.",
    ),
    t("VM_NO_SUSPEND_SR", &["vm"], "No suspend image location could be found for this VM."),
    t("VM_NO_VCPUS", &["vm"], "You need at least 1 VCPU to start a VM"),
    t("VM_NON_SUSPENDABLE", &["vm", "reason"], "You attempted an operation on a VM which is not suspendable."),
    t("VM_REBOOTED", &["vm"], "The VM unexpectedly rebooted"),
    t(
        "VM_REQUIRES_NETWORK",
        &["vm", "network"],
        "You attempted to run a VM on a host which doesn't have a PIF on a network needed by the VM.",
    ),
    t(
        "VM_REQUIRES_SR",
        &["vm", "sr"],
        "You attempted to run a VM on a host which doesn't have access to an SR needed by the VM.",
    ),
    t("VM_REQUIRES_VDI", &["vm", "vdi"], "VM cannot be started because it requires a VDI which cannot be attached"),
    t(
        "VM_REVERT_FAILED",
        &["snapshot", "vm"],
        "An error occurred while reverting the specified virtual machine to the specified snapshot",
    ),
    t("VM_SHUTDOWN_TIMEOUT", &["vm", "timeout"], "VM failed to shutdown before the timeout expired"),
    t(
        "VM_SNAPSHOT_WITH_QUIESCE_FAILED",
        &["vm", "error"],
        "The quiesced-snapshot operation failed for an unexpected reason",
    ),
    t("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", &["vm", "error"], "The VM does not support a snapshot with quiesce."),
    t("VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND", &["vm"], "The VSS plug-in cannot be contacted"),
    t("VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT", &["vm"], "The VSS plug-in has timed out"),
    t("VM_SUSPEND_TIMEOUT", &["vm", "timeout"], "VM failed to suspend before the timeout expired"),
    t("VM_TOO_MANY_VCPUS", &["vm"], "Too many VCPUs to start this VM"),
    t("VMSS_HAS_VM", &[], "The snapshot schedule cannot be deleted while VMs are assigned to it."),
    // storage and devices
    t("DEFAULT_SR_NOT_FOUND", &["sr"], "The default SR reference does not point to a valid SR"),
    t("DEVICE_ALREADY_ATTACHED", &["device"], "The device is already attached to a VM"),
    t("DEVICE_ALREADY_DETACHED", &["device"], "The device is not currently attached"),
    t("DEVICE_ALREADY_EXISTS", &["device"], "A device with the name given already exists on the selected VM"),
    t("DEVICE_ATTACH_TIMEOUT", &["type", "ref"], "A timeout happened while attempting to attach a device to a VM."),
    t("DEVICE_DETACH_REJECTED", &["type", "ref", "msg"], "The VM rejected the attempt to detach the device."),
    t("DEVICE_DETACH_TIMEOUT", &["type", "ref"], "A timeout happened while attempting to detach a device from a VM."),
    t("DISK_VBD_MUST_BE_READWRITE_FOR_HVM", &["vbd"], "All VBDs of type 'disk' must be read/write for HVM guests"),
    t("IMPORT_ERROR", &["msg"], "The VM could not be imported."),
    t(
        "IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND",
        &[],
        "The VM could not be imported because attached disks could not be found.",
    ),
    t("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED", &[], "Cannot import VM using chunked encoding."),
    t(
        "IMPORT_ERROR_FAILED_TO_FIND_OBJECT",
        &["id"],
        "The VM could not be imported because a required object could not be found.",
    ),
    t("IMPORT_ERROR_PREMATURE_EOF", &[], "The VM could not be imported; the end of the file was reached prematurely."),
    t("IMPORT_ERROR_SOME_CHECKSUMS_FAILED", &[], "Some data checksums were incorrect; the VM may be corrupt."),
    t(
        "IMPORT_ERROR_UNEXPECTED_FILE",
        &["filename_expected", "filename_found"],
        "The VM could not be imported because the XVA file is invalid: an unexpected file was encountered.",
    ),
    t(
        "IMPORT_INCOMPATIBLE_VERSION",
        &[],
        "The import failed because this export has been created by a different (incompatible) product version",
    ),
    t("INVALID_DEVICE", &["device"], "The device name is invalid"),
    t("LOCATION_NOT_UNIQUE", &["SR", "location"], "A VDI with the specified location already exists within the SR"),
    t("MAC_INVALID", &["MAC"], "The MAC address specified is not valid."),
    t("PBD_EXISTS", &["sr", "host", "pbd"], "A PBD already exists connecting the SR to the server."),
    t("SR_ATTACH_FAILED", &["sr"], "Attaching this SR failed."),
    t(
        "SR_DEVICE_IN_USE",
        &[],
        "The SR operation cannot be performed because a device underlying the SR is in use by the server.",
    ),
    t("SR_FULL", &["requested", "maximum"], "The SR is full. Requested new size exceeds the maximum size"),
    t(
        "SR_HAS_MULTIPLE_PBDS",
        &["PBD"],
        "The SR.shared flag cannot be set to false while the SR remains connected to multiple servers.",
    ),
    t("SR_HAS_NO_PBDS", &["sr"], "The SR has no attached PBDs"),
    t("SR_HAS_PBD", &["sr"], "The SR is still connected to a host via a PBD. It cannot be destroyed or forgotten."),
    t("SR_INDESTRUCTIBLE", &["sr"], "The SR could not be destroyed because the 'indestructible' flag was set on it."),
    t("SR_NOT_ATTACHED", &["sr"], "The SR is not attached."),
    t("SR_NOT_EMPTY", &[], "The SR operation cannot be performed because the SR is not empty."),
    t(
        "SR_NOT_SHARABLE",
        &["sr", "host"],
        "The PBD could not be plugged because the SR is in use by another host and is not marked as sharable.",
    ),
    t(
        "SR_OPERATION_NOT_SUPPORTED",
        &["sr"],
        "The SR backend does not support the operation (check the SR's allowed operations)",
    ),
    t("SR_UNKNOWN_DRIVER", &["driver"], "The SR could not be connected because the driver was not recognised."),
    t("SR_UUID_EXISTS", &["uuid"], "An SR with that uuid already exists."),
    t("UNIMPLEMENTED_IN_SM_BACKEND", &["message"], "You have attempted a function which is not implemented"),
    t("VBD_CDS_MUST_BE_READONLY", &[], "Read/write CDs are not supported"),
    t("VBD_IS_EMPTY", &["vbd"], "Operation could not be performed because the drive is empty"),
    t("VBD_NOT_EMPTY", &["vbd"], "Operation could not be performed because the drive is not empty"),
    t("VBD_NOT_REMOVABLE_MEDIA", &["vbd"], "Media could not be ejected because it is not removable"),
    t("VBD_NOT_UNPLUGGABLE", &["vbd"], "Drive could not be hot-unplugged because it is not marked as unpluggable"),
    t("VBD_TRAY_LOCKED", &["vbd"], "This VM has locked the DVD drive tray, so the disk cannot be ejected"),
    t(
        "VDI_CBT_ENABLED",
        &["vdi"],
        "The requested operation is not allowed for VDIs with CBT enabled or VMs having such VDIs, and CBT is enabled for the specified VDI.",
    ),
    t("VDI_COPY_FAILED", &[], "The VDI copy action has failed"),
    t(
        "VDI_INCOMPATIBLE_TYPE",
        &["vdi", "type"],
        "This operation cannot be performed because the specified VDI is of an incompatible type (eg: an HA statefile cannot be attached to a guest)",
    ),
    t(
        "VDI_IN_USE",
        &["vdi", "operation"],
        "This operation cannot be performed because this VDI is in use by some other operation",
    ),
    t("VDI_IO_ERROR", &["device"], "An I/O error was detected while operating on the VDI."),
    t(
        "VDI_IS_NOT_ISO",
        &["vdi", "type"],
        "This operation can only be performed on CD VDIs (iso files or CDROM drives)",
    ),
    t(
        "VDI_LOCATION_MISSING",
        &["sr", "location"],
        "This operation cannot be performed because the specified VDI could not be found in the specified SR",
    ),
    t(
        "VDI_MISSING",
        &["sr", "vdi"],
        "This operation cannot be performed because the specified VDI could not be found on the storage substrate",
    ),
    t("VDI_NEEDS_VM_FOR_MIGRATE", &["vdi"], "Cannot migrate a VDI which is not attached to a running VM."),
    t(
        "VDI_NO_CBT_METADATA",
        &["vdi"],
        "The requested operation is not allowed because the specified VDI does not have changed block tracking metadata.",
    ),
    t(
        "VDI_NOT_AVAILABLE",
        &["vdi"],
        "This operation cannot be performed because this VDI could not be properly attached to the VM.",
    ),
    t("VDI_NOT_MANAGED", &["vdi"], "This operation cannot be performed because the system does not manage this VDI"),
    t(
        "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION",
        &[],
        "This operation is not permitted on VDIs in the 'on-boot=reset' mode, or on VMs having such VDIs.",
    ),
    t("VDI_READONLY", &["vdi"], "The operation required write access but this VDI is read-only"),
    t("VDI_TOO_LARGE", &["vdi", "maximum size"], "The VDI is too large."),
    t(
        "VDI_TOO_SMALL",
        &["vdi", "minimum size"],
        "The VDI is too small. Please resize it to at least the minimum size.",
    ),
];

#[cfg(test)]
mod tests {
    use super::{TEXTS, find};

    #[test]
    fn a_code_has_one_text() {
        for text in TEXTS {
            assert!(std::ptr::eq(find(text.code).unwrap(), text), "{} twice", text.code);
        }
    }

    #[test]
    fn texts_name_all_parameters_of_codes_that_the_api_table_knows() {
        for text in TEXTS {
            if let Some((_, count)) = tanada_xapi::error::CODES.iter().find(|(code, _)| *code == text.code) {
                assert_eq!(text.params.len(), *count, "{}", text.code);
            }
        }
    }
}
