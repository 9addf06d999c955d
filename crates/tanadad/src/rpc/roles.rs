//! Which role a message needs.

use tanada_xapi::{ApiError, ApiResult};

use crate::rpc::session::{Role, Session};

/// `RBAC_PERMISSION_DENIED` when the session's role does not reach.
pub fn check(session: &Session, class: &str, message: &str) -> ApiResult<()> {
    let least = least_role(class, message);
    if session.may(least) {
        return Ok(());
    }
    Err(denied(session, &format!("{class}.{message}").to_ascii_lowercase(), least))
}

/// The refusal of a permission.
pub fn denied(session: &Session, permission: &str, least: Role) -> ApiError {
    let role = session.role().name();
    ApiError::rbac_permission_denied(permission, format!("needs role {}, the session has {role}", least.name()))
}

/// The least role that may send the message. What is not named here needs the most.
pub fn least_role(class: &str, message: &str) -> Role {
    let reads = ["get_", "assert_", "query_", "compute_", "list_"].iter().any(|p| message.starts_with(p));
    match class {
        // Their values open other doors.
        "secret" => Role::PoolOperator,
        // A session may ask about itself; others' sessions are shown by reference only to those who hold it.
        "session" | "event" if message != "change_password" => Role::ReadOnly,
        // What it answers opens the disk; and a comparison is work for the storage.
        "VDI" if message == "get_nbd_info" => Role::VmAdmin,
        "VDI" if message == "list_changed_blocks" => Role::VmOperator,
        _ if reads => Role::ReadOnly,
        "task" if message == "create" => Role::ReadOnly,
        "task" => Role::VmOperator,
        "message" => Role::PoolOperator,
        "VM" => vm_role(message),
        "VBD" if matches!(message, "insert" | "eject") => Role::VmOperator,
        "VM_appliance" if matches!(message, "start" | "clean_shutdown" | "hard_shutdown" | "shutdown") => {
            Role::VmOperator
        }
        "VBD" | "VIF" | "VDI" | "VM_appliance" | "VM_metrics" | "VM_guest_metrics" | "console" | "blob" => {
            Role::VmAdmin
        }
        "VMSS" | "SR" | "PBD" | "SM" | "network" | "PIF" | "host" | "host_metrics" | "pool" => Role::PoolOperator,
        _ => Role::PoolAdmin,
    }
}

fn vm_role(message: &str) -> Role {
    match message {
        "start" | "start_on" | "shutdown" | "clean_shutdown" | "hard_shutdown" | "clean_reboot" | "hard_reboot"
        | "pause" | "unpause" | "suspend" | "resume" | "resume_on" => Role::VmOperator,
        "checkpoint"
        | "pool_migrate"
        | "migrate_send"
        | "set_memory_dynamic_range"
        | "set_memory_dynamic_min"
        | "set_memory_dynamic_max"
        | "send_sysrq"
        | "send_trigger" => Role::VmPowerAdmin,
        "set_is_default_template" | "set_snapshot_schedule" => Role::PoolOperator,
        _ => Role::VmAdmin,
    }
}

#[cfg(test)]
mod tests {
    use super::least_role;
    use crate::rpc::session::Role;

    #[test]
    fn roles_grow_with_reach() {
        let cases = [
            ("VM", "get_record", Role::ReadOnly),
            ("VM", "start", Role::VmOperator),
            ("VM", "snapshot", Role::VmAdmin),
            ("VM", "checkpoint", Role::VmPowerAdmin),
            ("SR", "create", Role::PoolOperator),
            ("secret", "get_value", Role::PoolOperator),
            ("session", "change_password", Role::PoolAdmin),
            ("subject", "create", Role::PoolAdmin),
            ("event", "from", Role::ReadOnly),
            ("task", "create", Role::ReadOnly),
            ("task", "cancel", Role::VmOperator),
            ("message", "destroy", Role::PoolOperator),
        ];
        for (class, message, role) in cases {
            assert_eq!(least_role(class, message), role, "{class}.{message}");
        }
    }
}
