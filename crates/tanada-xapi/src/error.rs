//! XenAPI errors: a code and its parameters, all strings, in the order of the wire.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Display;

pub type ApiResult<T> = Result<T, ApiError>;

/// What a failed call answers: `ErrorDescription` is `code` followed by `params`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub code: Cow<'static, str>,
    pub params: Vec<String>,
}

impl ApiError {
    pub fn new(code: impl Into<Cow<'static, str>>, params: Vec<String>) -> ApiError {
        ApiError { code: code.into(), params }
    }

    /// Code and parameters in one list, as `ErrorDescription` and `task.error_info` hold them.
    pub fn to_list(&self) -> Vec<String> {
        std::iter::once(self.code.to_string()).chain(self.params.iter().cloned()).collect()
    }

    /// From `ErrorDescription`; an empty list becomes an internal error.
    pub fn from_list(list: Vec<String>) -> ApiError {
        let mut items = list.into_iter();
        match items.next() {
            Some(code) => ApiError { code: Cow::Owned(code), params: items.collect() },
            None => ApiError::internal("the server answered a failure without a code"),
        }
    }

    /// Has this error the code `code`?
    pub fn is(&self, code: &str) -> bool {
        self.code == code
    }

    /// `SR_BACKEND_FAILURE_<number>`: numbers in the error table of storage drivers (44 no space, 46 VDI unavailable ...).
    pub fn sr_backend_failure(number: u32, message: impl Display) -> ApiError {
        let code = format!("SR_BACKEND_FAILURE_{number}");
        ApiError::new(code, vec![String::new(), message.to_string(), String::new()])
    }

    /// The catch-all for what should not happen.
    pub fn internal(message: impl Display) -> ApiError {
        ApiError::internal_error(message)
    }
}

impl Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.params.is_empty() {
            write!(f, " [{}]", self.params.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

macro_rules! codes {
    ($( $name:ident = $code:literal ( $($param:ident),* ) ; )*) => {
        impl ApiError {
            $(
                #[doc = concat!("`", $code, "`")]
                pub fn $name($($param: impl Display),*) -> ApiError {
                    ApiError::new($code, vec![$($param.to_string()),*])
                }
            )*
        }

        /// Every code with its own constructor, with the number of its parameters.
        pub const CODES: &[(&str, usize)] = &[ $( ($code, codes!(@count $($param)*)) ),* ];
    };
    (@count) => { 0 };
    (@count $head:ident $($tail:ident)*) => { 1 + codes!(@count $($tail)*) };
}

codes! {
    // general
    internal_error = "INTERNAL_ERROR"(message);
    message_method_unknown = "MESSAGE_METHOD_UNKNOWN"(method);
    message_parameter_count_mismatch = "MESSAGE_PARAMETER_COUNT_MISMATCH"(method, expected, received);
    message_removed = "MESSAGE_REMOVED"();
    message_deprecated = "MESSAGE_DEPRECATED"();
    session_authentication_failed = "SESSION_AUTHENTICATION_FAILED"(user, message);
    session_invalid = "SESSION_INVALID"(handle);
    session_not_registered = "SESSION_NOT_REGISTERED"(handle);
    host_is_slave = "HOST_IS_SLAVE"(coordinator);
    host_still_booting = "HOST_STILL_BOOTING"();
    rbac_permission_denied = "RBAC_PERMISSION_DENIED"(permission, message);
    permission_denied = "PERMISSION_DENIED"(message);
    handle_invalid = "HANDLE_INVALID"(class, handle);
    uuid_invalid = "UUID_INVALID"(class, uuid);
    invalid_value = "INVALID_VALUE"(field, value);
    field_type_error = "FIELD_TYPE_ERROR"(field);
    value_not_supported = "VALUE_NOT_SUPPORTED"(field, value, reason);
    map_duplicate_key = "MAP_DUPLICATE_KEY"(class, field, object, key);
    db_uniqueness_constraint_violation = "DB_UNIQUENESS_CONSTRAINT_VIOLATION"(table, field, value);
    not_implemented = "NOT_IMPLEMENTED"(function);
    operation_not_allowed = "OPERATION_NOT_ALLOWED"(reason);
    operation_blocked = "OPERATION_BLOCKED"(object, text);
    other_operation_in_progress = "OTHER_OPERATION_IN_PROGRESS"(class, object, operation, task);
    task_cancelled = "TASK_CANCELLED"(task);
    too_many_pending_tasks = "TOO_MANY_PENDING_TASKS"();
    too_busy = "TOO_BUSY"();
    cannot_contact_host = "CANNOT_CONTACT_HOST"(host);
    events_lost = "EVENTS_LOST"();
    event_subscription_parse_failure = "EVENT_SUBSCRIPTION_PARSE_FAILURE"(subscription);
    event_from_token_parse_failure = "EVENT_FROM_TOKEN_PARSE_FAILURE"(token);
    out_of_space = "OUT_OF_SPACE"(location);
    role_not_found = "ROLE_NOT_FOUND"();
    user_is_not_local_superuser = "USER_IS_NOT_LOCAL_SUPERUSER"(message);
    // VM
    vm_bad_power_state = "VM_BAD_POWER_STATE"(vm, expected, actual);
    vm_is_template = "VM_IS_TEMPLATE"(vm, operation);
    vm_is_snapshot = "VM_IS_SNAPSHOT"(vm, operation);
    vm_cannot_delete_default_template = "VM_CANNOT_DELETE_DEFAULT_TEMPLATE"(vm);
    provision_only_allowed_on_template = "PROVISION_ONLY_ALLOWED_ON_TEMPLATE"();
    revert_only_allowed_on_snapshot = "REVERT_ONLY_ALLOWED_ON_SNAPSHOT"();
    provision_failed_out_of_space = "PROVISION_FAILED_OUT_OF_SPACE"();
    vm_missing_pv_drivers = "VM_MISSING_PV_DRIVERS"(vm);
    vm_lacks_feature = "VM_LACKS_FEATURE"(vm);
    vm_non_suspendable = "VM_NON_SUSPENDABLE"(vm, reason);
    vm_snapshot_with_quiesce_not_supported = "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED"(vm, error);
    vm_snapshot_with_quiesce_failed = "VM_SNAPSHOT_WITH_QUIESCE_FAILED"(vm, error);
    vm_snapshot_with_quiesce_timeout = "VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT"(vm);
    vm_snapshot_with_quiesce_plugin_does_not_respond = "VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND"(vm);
    vm_revert_failed = "VM_REVERT_FAILED"(snapshot, vm);
    vm_checkpoint_suspend_failed = "VM_CHECKPOINT_SUSPEND_FAILED"(vm);
    vm_checkpoint_resume_failed = "VM_CHECKPOINT_RESUME_FAILED"(vm);
    vm_has_too_many_snapshots = "VM_HAS_TOO_MANY_SNAPSHOTS"(vm);
    vm_has_checkpoint = "VM_HAS_CHECKPOINT"(vm);
    vm_no_suspend_sr = "VM_NO_SUSPEND_SR"(vm);
    vm_has_no_suspend_vdi = "VM_HAS_NO_SUSPEND_VDI"(vm);
    vm_requires_sr = "VM_REQUIRES_SR"(vm, sr);
    vm_requires_network = "VM_REQUIRES_NETWORK"(vm, network);
    vm_requires_vdi = "VM_REQUIRES_VDI"(vm, vdi);
    vm_is_part_of_an_appliance = "VM_IS_PART_OF_AN_APPLIANCE"(vm, appliance);
    vm_assigned_to_protection_policy = "VM_ASSIGNED_TO_PROTECTION_POLICY"(vm, vmpp);
    vm_assigned_to_snapshot_schedule = "VM_ASSIGNED_TO_SNAPSHOT_SCHEDULE"(vm, vmss);
    vm_duplicate_vbd_device = "VM_DUPLICATE_VBD_DEVICE"(vm, vbd, device);
    vm_memory_size_too_low = "VM_MEMORY_SIZE_TOO_LOW"(vm);
    vm_no_vcpus = "VM_NO_VCPUS"(vm);
    vm_too_many_vcpus = "VM_TOO_MANY_VCPUS"(vm);
    vm_is_immobile = "VM_IS_IMMOBILE"(vm);
    vm_failed_shutdown_acknowledgment = "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT"(vm);
    vm_crashed = "VM_CRASHED"(vm);
    vm_rebooted = "VM_REBOOTED"(vm);
    vm_halted = "VM_HALTED"(vm);
    vm_shutdown_timeout = "VM_SHUTDOWN_TIMEOUT"(vm, timeout);
    vm_suspend_timeout = "VM_SUSPEND_TIMEOUT"(vm, timeout);
    vm_to_import_is_not_newer_version = "VM_TO_IMPORT_IS_NOT_NEWER_VERSION"(vm, existing, new);
    vm_bios_strings_already_set = "VM_BIOS_STRINGS_ALREADY_SET"();
    no_hosts_available = "NO_HOSTS_AVAILABLE"();
    host_not_enough_free_memory = "HOST_NOT_ENOUGH_FREE_MEMORY"(needed, available);
    host_disabled = "HOST_DISABLED"(host);
    memory_constraint_violation = "MEMORY_CONSTRAINT_VIOLATION"(constraint);
    memory_constraint_violation_order = "MEMORY_CONSTRAINT_VIOLATION_ORDER"();
    duplicate_vm = "DUPLICATE_VM"(vm);
    duplicate_mac_seed = "DUPLICATE_MAC_SEED"(seed);
    mac_invalid = "MAC_INVALID"(mac);
    vmss_has_vm = "VMSS_HAS_VM"();
    // storage
    sr_has_no_pbds = "SR_HAS_NO_PBDS"(sr);
    sr_has_pbd = "SR_HAS_PBD"(sr);
    sr_has_multiple_pbds = "SR_HAS_MULTIPLE_PBDS"(pbd);
    sr_not_empty = "SR_NOT_EMPTY"();
    sr_not_sharable = "SR_NOT_SHARABLE"(sr, host);
    sr_operation_not_supported = "SR_OPERATION_NOT_SUPPORTED"(sr);
    sr_uuid_exists = "SR_UUID_EXISTS"(uuid);
    sr_unknown_driver = "SR_UNKNOWN_DRIVER"(driver);
    sr_full = "SR_FULL"(requested, maximum);
    sr_suspend_space_insufficient = "SR_SUSPEND_SPACE_INSUFFICIENT"(sr);
    sr_indestructible = "SR_INDESTRUCTIBLE"(sr);
    sr_attach_failed = "SR_ATTACH_FAILED"(sr);
    sr_not_attached = "SR_NOT_ATTACHED"(sr);
    sr_device_in_use = "SR_DEVICE_IN_USE"();
    pbd_exists = "PBD_EXISTS"(sr, host, pbd);
    unimplemented_in_sm_backend = "UNIMPLEMENTED_IN_SM_BACKEND"(message);
    vdi_in_use = "VDI_IN_USE"(vdi, operation);
    vdi_readonly = "VDI_READONLY"(vdi);
    vdi_not_managed = "VDI_NOT_MANAGED"(vdi);
    vdi_is_sharable = "VDI_IS_SHARABLE"(vdi);
    vdi_is_not_iso = "VDI_IS_NOT_ISO"(vdi, kind);
    vdi_incompatible_type = "VDI_INCOMPATIBLE_TYPE"(vdi, kind);
    vdi_too_small = "VDI_TOO_SMALL"(vdi, minimum);
    vdi_too_large = "VDI_TOO_LARGE"(vdi, maximum);
    vdi_missing = "VDI_MISSING"(sr, vdi);
    vdi_location_missing = "VDI_LOCATION_MISSING"(sr, location);
    vdi_content_id_missing = "VDI_CONTENT_ID_MISSING"();
    location_not_unique = "LOCATION_NOT_UNIQUE"(sr, location);
    vdi_not_available = "VDI_NOT_AVAILABLE"(vdi);
    vdi_not_sparse = "VDI_NOT_SPARSE"(vdi);
    vdi_needs_vm_for_migrate = "VDI_NEEDS_VM_FOR_MIGRATE"(vdi);
    vdi_cbt_enabled = "VDI_CBT_ENABLED"(vdi);
    vdi_no_cbt_metadata = "VDI_NO_CBT_METADATA"(vdi);
    vdi_on_boot_mode_incompatible_with_operation = "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"();
    vdi_copy_failed = "VDI_COPY_FAILED"();
    vdi_io_error = "VDI_IO_ERROR"(device);
    device_already_attached = "DEVICE_ALREADY_ATTACHED"(device);
    device_already_detached = "DEVICE_ALREADY_DETACHED"(device);
    device_already_exists = "DEVICE_ALREADY_EXISTS"(device);
    invalid_device = "INVALID_DEVICE"(device);
    device_detach_rejected = "DEVICE_DETACH_REJECTED"(kind, object, message);
    device_attach_timeout = "DEVICE_ATTACH_TIMEOUT"(kind, object);
    device_detach_timeout = "DEVICE_DETACH_TIMEOUT"(kind, object);
    vbd_not_removable_media = "VBD_NOT_REMOVABLE_MEDIA"(vbd);
    vbd_not_unpluggable = "VBD_NOT_UNPLUGGABLE"(vbd);
    vbd_not_empty = "VBD_NOT_EMPTY"(vbd);
    vbd_is_empty = "VBD_IS_EMPTY"(vbd);
    vbd_tray_locked = "VBD_TRAY_LOCKED"(vbd);
    vbd_cds_must_be_readonly = "VBD_CDS_MUST_BE_READONLY"();
    disk_vbd_must_be_readwrite_for_hvm = "DISK_VBD_MUST_BE_READWRITE_FOR_HVM"(vbd);
    default_sr_not_found = "DEFAULT_SR_NOT_FOUND"(sr);
    import_error = "IMPORT_ERROR"(message);
    import_error_cannot_handle_chunked = "IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"();
    import_error_premature_eof = "IMPORT_ERROR_PREMATURE_EOF"();
    import_error_some_checksums_failed = "IMPORT_ERROR_SOME_CHECKSUMS_FAILED"();
    import_error_attached_disks_not_found = "IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND"();
    import_error_failed_to_find_object = "IMPORT_ERROR_FAILED_TO_FIND_OBJECT"(id);
    import_error_unexpected_file = "IMPORT_ERROR_UNEXPECTED_FILE"(expected, found);
    import_incompatible_version = "IMPORT_INCOMPATIBLE_VERSION"();
    network_contains_vif = "NETWORK_CONTAINS_VIF"(vifs);
    network_contains_pif = "NETWORK_CONTAINS_PIF"(pifs);
}

#[cfg(test)]
mod tests {
    use super::{ApiError, CODES};

    #[test]
    fn a_code_has_one_constructor() {
        let mut names: Vec<_> = CODES.iter().map(|c| c.0).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn lists_go_both_ways() {
        let error = ApiError::vm_bad_power_state("OpaqueRef:1", "halted, suspended", "running");
        assert_eq!(ApiError::from_list(error.to_list()), error);
        assert!(ApiError::from_list(Vec::new()).is("INTERNAL_ERROR"));
        assert_eq!(ApiError::sr_backend_failure(44, "no space").params, ["", "no space", ""]);
    }
}
