//! Tasks, consoles, schedules, secrets, messages, roles.

use crate::record::Class;
use crate::record::field::Shown::{Bool, Float, Int, Map, Name, Set, SetMapped, Text, Time, Uuid, Uuids, Values};
use crate::record::field::{ro, rw};

pub const TASK: Class = Class {
    prefix: "task",
    api: "task",
    noun: "task",
    fields: &[
        ro("uuid", Text("uuid")),
        ro("name-label", Text("name_label")),
        ro("name-description", Text("name_description")),
        ro("subtask_of", Uuid("subtask_of", "task")),
        ro("subtasks", Uuids("subtasks", "task")),
        ro("resident-on", Uuid("resident_on", "host")),
        ro("status", Text("status")),
        ro("progress", Float("progress")),
        ro("type", Text("type")),
        ro("result", Text("result")),
        ro("created", Time("created")),
        ro("finished", Time("finished")),
        ro("error_info", Set("error_info")),
        ro("allowed_operations", SetMapped("allowed_operations", capital)),
        ro("current_operations", Values("current_operations", capital)),
        rw("other-config", Map("other_config")),
    ],
    defaults: &["uuid", "name-label", "name-description", "status", "progress"],
    implicit: &[],
    order_by: "created",
};

pub const CONSOLE: Class = Class {
    prefix: "console",
    api: "console",
    noun: "console",
    fields: &[
        ro("uuid", Text("uuid")),
        ro("vm-uuid", Uuid("VM", "VM")),
        ro("vm-name-label", Name("VM", "VM")),
        ro("protocol", Text("protocol")),
        ro("location", Text("location")),
        rw("other-config", Map("other_config")),
    ],
    defaults: &["uuid", "vm-uuid", "vm-name-label", "protocol", "location"],
    implicit: &[],
    order_by: "uuid",
};

pub const VMSS: Class = Class {
    prefix: "vmss",
    api: "VMSS",
    noun: "snapshot schedule",
    fields: &[
        ro("uuid", Text("uuid")),
        rw("name-label", Text("name_label")),
        rw("name-description", Text("name_description")),
        rw("enabled", Bool("enabled")),
        rw("type", Text("type")),
        rw("retained-snapshots", Int("retained_snapshots")),
        rw("frequency", Text("frequency")),
        rw("schedule", Map("schedule")).checked(),
        ro("last-run-time", Time("last_run_time")),
        ro("VMs", Uuids("VMs", "VM")),
    ],
    defaults: &[],
    implicit: &[],
    order_by: "name_label",
};

pub const SECRET: Class = Class {
    prefix: "secret",
    api: "secret",
    noun: "secret",
    fields: &[ro("uuid", Text("uuid")), rw("value", Text("value")), rw("other-config", Map("other_config"))],
    defaults: &[],
    implicit: &[],
    order_by: "uuid",
};

pub const MESSAGE: Class = Class {
    prefix: "message",
    api: "message",
    noun: "message",
    fields: &[
        ro("uuid", Text("uuid")),
        ro("name", Text("name")),
        ro("priority", Int("priority")),
        ro("class", Text("cls")),
        ro("obj-uuid", Text("obj_uuid")),
        ro("timestamp", Time("timestamp")),
        ro("body", Text("body")),
    ],
    defaults: &[],
    implicit: &[],
    order_by: "timestamp",
};

pub const ROLE: Class = Class {
    prefix: "role",
    api: "role",
    noun: "role",
    fields: &[
        ro("uuid", Text("uuid")),
        ro("name", Text("name_label")),
        ro("description", Text("name_description")),
        ro("subroles", Uuids("subroles", "role")),
    ],
    defaults: &[],
    implicit: &[],
    order_by: "name_label",
};

fn capital(api: &str) -> String {
    let mut chars = api.chars();
    chars.next().map(|first| first.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}
