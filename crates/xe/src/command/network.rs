//! Networks and the interfaces of VMs.

use crate::command::select::each_vm;
use crate::command::vm::ANY;
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::record::Object;
use crate::record::field::scalar;
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new("vm-vif-list", &[], &[], "Lists the network interfaces of VMs.", vif_list).selects_vms(),
    Command::new(
        "vif-create",
        &["vm-uuid", "network-uuid", "device"],
        &["mac", "mtu"],
        "Creates a network interface of a VM.",
        vif_create,
    ),
    Command::new("vif-destroy", &["uuid"], &[], "Destroys a network interface.", |x| x.message("VIF.destroy")),
    Command::new("vif-plug", &["uuid"], &[], "Plugs a network interface in.", |x| x.message("VIF.plug")),
    Command::new("vif-unplug", &["uuid"], &[], "Unplugs a network interface.", |x| x.message("VIF.unplug")),
    Command::new(
        "network-create",
        &["name-label"],
        &["name-description", "bridge", "mtu"],
        "Creates a network.",
        network,
    ),
    Command::new("network-destroy", &["uuid"], &[], "Destroys a network.", |x| x.message("network.destroy")),
];

fn vif_list(ctx: &mut Ctx<'_>) -> Outcome {
    let Some(table) = crate::record::class("vif") else { return Ok(()) };
    each_vm(ctx, &ANY, |ctx, vm| {
        let mut shown = Vec::new();
        for vif in vm.record.get("VIFs").and_then(Value::as_set).unwrap_or_default() {
            let reference = Ref::from(scalar(vif));
            if let Some(record) = ctx.api()?.record("VIF", &reference)? {
                let names = ["uuid", "device", "MAC", "network-uuid", "network-name-label", "vm-name-label"];
                shown.push(ctx.cells(table, &Object { reference, record }, &names)?);
            }
        }
        ctx.records(&shown)
    })
}

fn vif_create(ctx: &mut Ctx<'_>) -> Outcome {
    let mac = match ctx.params.or("mac", "") {
        "random" => "",
        mac => mac,
    };
    let record = Value::map([
        ("VM", Value::from(ctx.by_uuid_param("vm-uuid", "VM")?)),
        ("network", Value::from(ctx.by_uuid_param("network-uuid", "network")?)),
        ("device", Value::from(ctx.params.need("device")?)),
        ("MAC", Value::from(mac)),
        ("MTU", Value::Int(ctx.params.int_or("mtu", 1500)?)),
        ("other_config", Value::empty_map()),
        ("qos_algorithm_type", Value::from("")),
        ("qos_algorithm_params", Value::empty_map()),
    ]);
    let vif = ctx.call("VIF.create", vec![record])?;
    ctx.print_uuid("VIF", &vif)
}

fn network(ctx: &mut Ctx<'_>) -> Outcome {
    let record = Value::map([
        ("name_label", Value::from(ctx.params.need("name-label")?)),
        ("name_description", Value::from(ctx.params.or("name-description", ""))),
        ("MTU", Value::Int(ctx.params.int_or("mtu", 1500)?)),
        ("other_config", Value::empty_map()),
        ("bridge", Value::from(ctx.params.or("bridge", ""))),
        ("managed", Value::Bool(ctx.params.get("bridge").is_none())),
        ("tags", Value::empty_set()),
    ]);
    let network = ctx.call("network.create", vec![record])?;
    ctx.print_uuid("network", &network)
}
