//! Objects that are always there: a record for each kind of storage, a template to begin with, a network to name.

use tanada_driver::registry::DriverType;
use tanada_units::MIB;
use tanada_xapi::{ApiResult, Value};

use super::machine::create::make;
use crate::context::Daemon;
use crate::db::{Tx, View};

/// Makes what is missing; brings the kinds of storage up to date with the program.
pub fn objects(daemon: &Daemon) -> ApiResult<()> {
    let registry = daemon.storage.registry();
    daemon.db.write(|tx| {
        for facts in registry.types() {
            storage_kind(tx, facts)?;
        }
        for old in tx.all("SM") {
            if registry.get(old.str("type")).is_none() {
                tx.destroy("SM", old.id())?;
            }
        }
        if tx.all("network").is_empty() {
            network(tx)?;
        }
        if tx.all("VM").iter().all(|vm| !vm.bool("is_default_template")) {
            template(tx)?;
        }
        Ok(())
    })
}

fn storage_kind(tx: &mut Tx<'_>, facts: &DriverType) -> ApiResult<()> {
    let fields = [
        ("type", Value::from(facts.name)),
        ("name_label", Value::from(facts.name_label)),
        ("name_description", Value::from(facts.description)),
        ("vendor", Value::from(facts.vendor)),
        ("copyright", Value::from(facts.copyright)),
        ("version", Value::from(facts.version)),
        ("required_api_version", Value::from(facts.required_api_version)),
        ("configuration", Value::map(facts.configuration.iter().map(|key| (key.key, key.description)))),
        ("capabilities", Value::set(facts.features.iter().map(|(name, _)| *name))),
        ("features", Value::map(facts.features.iter().map(|(name, version)| (*name, *version)))),
    ];
    let known = tx.all("SM").into_iter().find(|sm| sm.str("type") == facts.name);
    match known {
        Some(sm) => tx.set_all("SM", sm.id(), fields),
        None => tx.create("SM", fields).map(drop),
    }
}

fn network(tx: &mut Tx<'_>) -> ApiResult<()> {
    let fields = [
        ("name_label", Value::from("Guest network")),
        ("name_description", Value::from("Addresses and a way out for guests, by the host")),
        ("managed", Value::from(true)),
    ];
    tx.create("network", fields).map(drop)
}

/// What a machine is installed from when nothing fits better: no disks, boots from what it is given.
fn template(tx: &mut Tx<'_>) -> ApiResult<()> {
    let memory = i64::try_from(256 * MIB).unwrap_or(i64::MAX);
    let fields = vec![
        ("name_label", Value::from("Other install media")),
        (
            "name_description",
            Value::from("Template which allows a machine to be installed from any media or disk image"),
        ),
        ("is_a_template", Value::from(true)),
        ("is_default_template", Value::from(true)),
        ("memory_static_max", Value::from(memory)),
        ("memory_dynamic_max", Value::from(memory)),
        ("memory_dynamic_min", Value::from(memory)),
        ("memory_static_min", Value::from(memory)),
        ("VCPUs_max", Value::from(1)),
        ("VCPUs_at_startup", Value::from(1)),
        ("actions_after_shutdown", Value::from("destroy")),
        ("actions_after_reboot", Value::from("restart")),
        ("actions_after_crash", Value::from("restart")),
        ("HVM_boot_policy", Value::from("BIOS order")),
        ("HVM_boot_params", Value::map([("order", "cdn")])),
        ("platform", Value::map([("acpi", "1"), ("apic", "true")])),
        ("domain_type", Value::from("hvm")),
        ("other_config", Value::map([("default_template", "true"), ("install-methods", "cdrom,disk")])),
    ];
    make(tx, fields).map(drop)
}
