//! What the guest says about itself, as `VM_guest_metrics`. All of it is the guest's claim; nothing is decided by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tanada_qemu::text::printable;
use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};

use super::Running;
use crate::context::Daemon;
use crate::db::{Record, Tx, View};

/// An agent that needs longer is asked again later.
const PING_LIMIT: Duration = Duration::from_secs(5);
/// A guest cannot fill the database: longer texts are cut.
const TEXT_CHARS_MAX: usize = 256;
const ADDRESSES_MAX: usize = 64;

type Texts = BTreeMap<String, String>;

/// What was learnt in one round of questions; None where the agent gave no answer, and what it said before stands.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts {
    os: Option<Texts>,
    /// Its version, and what it can do.
    agent: Option<(Texts, Texts)>,
    interfaces: Option<Vec<Interface>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Interface {
    mac: String,
    ipv4: Vec<String>,
    ipv6: Vec<String>,
}

/// Asks the guest and writes its answers down. A frozen guest answers little, and some questions may be forbidden.
pub async fn refresh(daemon: &Arc<Daemon>, machine: &Running) -> ApiResult<()> {
    let agent = machine.agent();
    agent.ping(PING_LIMIT).await.map_err(ApiError::internal)?;
    let facts = Facts {
        os: agent.osinfo().await.ok().map(|info| os_facts(&info)),
        // While frozen, the agent calls its commands disabled: not the answer that was asked for.
        agent: match agent.is_frozen(PING_LIMIT).await {
            Ok(true) => None,
            Ok(false) | Err(_) => agent.info().await.ok().map(|info| agent_facts(&info)),
        },
        interfaces: agent.network_interfaces().await.ok().map(|list| interfaces(&list)),
    };
    if !machine.agent_present() {
        return Ok(());
    }
    daemon.db.write(|tx| write(tx, &machine.vm, &facts))
}

/// The agent left: what it said stays readable, marked as no longer live.
pub(super) fn gone(tx: &mut Tx<'_>, vm: &Ref) -> ApiResult<()> {
    let metrics = tx.get("VM", vm)?.reference("guest_metrics");
    match tx.find("VM_guest_metrics", &metrics) {
        Some(_) => tx.set("VM_guest_metrics", &metrics, "live", false),
        None => Ok(()),
    }
}

fn write(tx: &mut Tx<'_>, vm: &Ref, facts: &Facts) -> ApiResult<()> {
    let Some(record) = tx.find("VM", vm).filter(|vm| vm.str("power_state") != "Halted") else { return Ok(()) };
    let vifs = tx.resolve("VIF", &record.refs("VIFs"));
    let mut metrics = record.reference("guest_metrics");
    if tx.find("VM_guest_metrics", &metrics).is_none() {
        metrics = tx.create("VM_guest_metrics", [("live", Value::from(true))])?;
        tx.set("VM", vm, "guest_metrics", &metrics)?;
    }
    tx.set_all(
        "VM_guest_metrics",
        &metrics,
        [
            ("last_updated", Value::from(DateTime::now())),
            ("live", Value::from(true)),
            ("PV_drivers_detected", Value::from(true)),
            ("PV_drivers_up_to_date", Value::from(true)),
            ("can_use_hotplug_vbd", Value::from("yes")),
            ("can_use_hotplug_vif", Value::from("no")),
        ],
    )?;
    if let Some(os) = &facts.os {
        tx.set("VM_guest_metrics", &metrics, "os_version", texts(os))?;
    }
    if let Some((version, other)) = &facts.agent {
        tx.set("VM_guest_metrics", &metrics, "PV_drivers_version", texts(version))?;
        tx.set("VM_guest_metrics", &metrics, "other", texts(other))?;
    }
    if let Some(interfaces) = &facts.interfaces {
        tx.set("VM_guest_metrics", &metrics, "networks", texts(&networks(interfaces, &vifs)))?;
    }
    Ok(())
}

fn texts(map: &Texts) -> Value {
    Value::map(map.iter().map(|(key, value)| (key.clone(), value.clone())))
}

fn text(value: &Json, member: &str) -> Option<String> {
    Some(printable(value.get(member)?.as_str()?, TEXT_CHARS_MAX))
}

fn os_facts(info: &Json) -> Texts {
    let mut facts = Texts::new();
    let mut put = |key: &str, value: Option<String>| value.map(|value| facts.insert(key.to_owned(), value));
    put("name", text(info, "pretty-name").or_else(|| text(info, "name")));
    put("distro", text(info, "id"));
    put("uname", text(info, "kernel-release"));
    let version = text(info, "version-id").unwrap_or_default();
    let (major, minor) = version.split_once('.').unwrap_or((&version, ""));
    for (key, number) in [("major", major), ("minor", minor)] {
        put(key, Some(number.to_owned()).filter(|number| !number.is_empty()));
    }
    facts
}

/// The agent's version, and what it can do in XenServer's words.
fn agent_facts(info: &Json) -> (Texts, Texts) {
    let mut version = Texts::new();
    let words = text(info, "version").unwrap_or_default();
    for (key, number) in ["major", "minor", "micro"].into_iter().zip(words.split(['.', '-', ' '])) {
        version.insert(key.to_owned(), number.to_owned());
    }
    let enabled = |name: &str| {
        let mut commands = info.get("supported_commands").and_then(Json::as_array).into_iter().flatten();
        commands.any(|command| {
            command.get("name").and_then(Json::as_str) == Some(name)
                && command.get("enabled").and_then(Json::as_bool) == Some(true)
        })
    };
    let mut other = Texts::from([("agent".to_owned(), format!("qemu-ga {words}"))]);
    for (feature, command) in [
        ("feature-shutdown", "guest-shutdown"),
        ("feature-reboot", "guest-shutdown"),
        ("feature-quiesce", "guest-fsfreeze-freeze"),
        ("feature-snapshot", "guest-fsfreeze-freeze"),
    ] {
        if enabled(command) {
            other.insert(feature.to_owned(), "1".to_owned());
        }
    }
    (version, other)
}

fn interfaces(list: &Json) -> Vec<Interface> {
    let mut found = Vec::new();
    for interface in list.as_array().into_iter().flatten().take(ADDRESSES_MAX) {
        let Some(mac) = text(interface, "hardware-address") else { continue };
        let addresses = interface.get("ip-addresses").and_then(Json::as_array);
        let of_kind = |kind: &str| {
            let all = addresses.into_iter().flatten().take(ADDRESSES_MAX);
            let wanted = all.filter(|address| address.get("ip-address-type").and_then(Json::as_str) == Some(kind));
            wanted.filter_map(|address| text(address, "ip-address")).collect()
        };
        found.push(Interface { mac: mac.to_lowercase(), ipv4: of_kind("ipv4"), ipv6: of_kind("ipv6") });
    }
    found
}

/// XenServer's keys: `<VIF device>/ip`, `<VIF device>/ipv4/<n>`, `<VIF device>/ipv6/<n>`.
fn networks(interfaces: &[Interface], vifs: &[Arc<Record>]) -> Texts {
    let mut networks = Texts::new();
    for interface in interfaces {
        let Some(vif) = vifs.iter().find(|vif| vif.str("MAC").to_lowercase() == interface.mac) else { continue };
        let device = vif.str("device");
        if let Some(first) = interface.ipv4.first() {
            networks.insert(format!("{device}/ip"), first.clone());
        }
        for (kind, addresses) in [("ipv4", &interface.ipv4), ("ipv6", &interface.ipv6)] {
            for (number, address) in addresses.iter().enumerate() {
                networks.insert(format!("{device}/{kind}/{number}"), address.clone());
            }
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tanada_xapi::Value;

    use super::{Facts, agent_facts, interfaces, os_facts, write};
    use crate::db::{Db, View};

    #[test]
    fn the_guests_words_become_xenservers_keys() {
        let db = Db::in_memory().unwrap();
        let vm = db.write(|tx| tx.create("VM", [("power_state", Value::from("Running"))])).unwrap();
        db.write(|tx| {
            tx.create("VIF", [("VM", Value::from(&vm)), ("device", "1".into()), ("MAC", "52:54:00:AA:00:01".into())])
        })
        .unwrap();
        let os = json!({ "id": "debian", "version-id": "12.7", "pretty-name": "Debian 12", "kernel-release": "6.1.0" });
        let info = json!({ "version": "7.2.22", "supported_commands": [
            { "name": "guest-shutdown", "enabled": true }, { "name": "guest-fsfreeze-freeze", "enabled": false } ] });
        let list = json!([{ "name": "lo" }, { "name": "eth0", "hardware-address": "52:54:00:aa:00:01", "ip-addresses": [
            { "ip-address-type": "ipv4", "ip-address": "10.0.2.15" }, { "ip-address-type": "ipv6", "ip-address": "fe80::1" } ] }]);
        let facts =
            Facts { os: Some(os_facts(&os)), agent: Some(agent_facts(&info)), interfaces: Some(interfaces(&list)) };
        db.write(|tx| write(tx, &vm, &facts)).unwrap();
        // A frozen guest says nothing: what was known stays.
        db.write(|tx| write(tx, &vm, &Facts::default())).unwrap();
        let metrics =
            db.read(|state| state.get("VM_guest_metrics", &state.get("VM", &vm)?.reference("guest_metrics"))).unwrap();
        assert_eq!(metrics.entry("os_version", "minor"), Some("7"));
        assert_eq!(metrics.entry("networks", "1/ip"), Some("10.0.2.15"));
        assert_eq!(metrics.entry("networks", "1/ipv6/0"), Some("fe80::1"));
        assert_eq!(metrics.entry("PV_drivers_version", "micro"), Some("22"));
        assert_eq!(
            (metrics.entry("other", "feature-shutdown"), metrics.entry("other", "feature-quiesce")),
            (Some("1"), None)
        );
        assert!(metrics.bool("live") && metrics.bool("PV_drivers_detected"));
    }
}
