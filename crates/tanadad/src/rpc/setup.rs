//! The objects that every installation has: pool, host, its metrics, the root user, the roles.
//!
//! Made at the first start; what can change between starts (memory, kernel, addresses) is brought up to date at each.

use std::net::SocketAddr;

use tanada_xapi::{ApiResult, DateTime, Map, Ref, Value};

use crate::config::Config;
use crate::db::{Db, Tx, View};
use crate::rpc::login::ROOT;
use crate::rpc::session::Role;

/// The version of XenAPI that the class table follows.
const API_VERSION: (i64, i64) = (2, 21);

/// Makes what is missing and refreshes what the machine says.
pub fn ensure(db: &Db, config: &Config) -> ApiResult<()> {
    let machine = Machine::look(config);
    db.write(|tx| {
        ensure_roles(tx)?;
        if tx.all("user").is_empty() {
            tx.create("user", [("short_name", Value::from(ROOT)), ("fullname", Value::from("Superuser"))])?;
        }
        let host = ensure_host(tx, &machine)?;
        refresh_host(tx, &host, &machine)?;
        if tx.all("pool").is_empty() {
            tx.create("pool", [("master", Value::from(&host)), ("name_label", Value::from(""))])?;
        }
        Ok(())
    })
}

fn ensure_roles(tx: &mut Tx<'_>) -> ApiResult<()> {
    let descriptions = [
        "everything",
        "everything but users and roles",
        "power of machines, snapshots with memory, migration",
        "machines and their disks",
        "starting, stopping and media of machines",
        "looking",
    ];
    for (role, description) in Role::ALL.into_iter().zip(descriptions) {
        if tx.by_name("role", role.name()).is_empty() {
            let fields = [("name_label", Value::from(role.name())), ("name_description", Value::from(description))];
            tx.create("role", fields)?;
        }
    }
    Ok(())
}

fn ensure_host(tx: &mut Tx<'_>, machine: &Machine) -> ApiResult<Ref> {
    if let Some(host) = tx.all("host").first() {
        return Ok(host.id().clone());
    }
    let metrics = tx.create("host_metrics", [("live", Value::Bool(true))])?;
    tx.create(
        "host",
        [
            ("name_label", Value::from(&machine.hostname)),
            ("metrics", Value::from(metrics)),
            ("API_version_vendor", Value::from("XenSource")),
            ("enabled", Value::Bool(true)),
            ("edition", Value::from("free")),
        ],
    )
}

fn refresh_host(tx: &mut Tx<'_>, host: &Ref, machine: &Machine) -> ApiResult<()> {
    let metrics = tx.get("host", host)?.reference("metrics");
    let (total, free) = memory();
    let measured = [
        ("live", Value::Bool(true)),
        ("memory_total", Value::Int(total)),
        ("memory_free", Value::Int(free)),
        ("last_updated", Value::DateTime(DateTime::now())),
    ];
    tx.set_all("host_metrics", &metrics, measured)?;
    let mut other_config = tx.get("host", host)?.map("other_config").clone();
    other_config.insert("agent_start_time".into(), Value::from(format!("{}.", DateTime::now().unix())));
    other_config.insert("boot_time".into(), Value::from(format!("{}.", machine.boot_time)));
    tx.set_all(
        "host",
        host,
        [
            ("hostname", Value::from(&machine.hostname)),
            ("address", Value::from(&machine.address)),
            ("cpu_info", Value::Map(machine.cpu_info.clone())),
            ("software_version", Value::Map(machine.software.clone())),
            ("bios_strings", Value::Map(machine.bios.clone())),
            ("other_config", Value::Map(other_config)),
            ("API_version_major", Value::Int(API_VERSION.0)),
            ("API_version_minor", Value::Int(API_VERSION.1)),
        ],
    )
}

/// Brings the figures of memory up to date; nothing is written when they moved by less than a hundredth.
pub fn refresh_metrics(db: &Db) -> ApiResult<()> {
    let (total, free) = memory();
    let Ok(host) = db.read(|s| s.only("host")) else { return Ok(()) };
    let metrics = host.reference("metrics");
    let shown = db.read(|s| s.find("host_metrics", &metrics).map(|m| m.int("memory_free")));
    if shown.is_some_and(|shown| (shown - free).abs() < total / 100) {
        return Ok(());
    }
    db.write(|tx| {
        tx.set("host_metrics", &metrics, "memory_free", free)?;
        tx.set("host_metrics", &metrics, "last_updated", DateTime::now())
    })
}

/// Bytes of memory in all, and of those free for machines.
pub fn memory() -> (i64, i64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let kib: i64 = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0);
        kib * 1024
    };
    (bytes("MemTotal"), bytes("MemAvailable"))
}

/// What the operating system says about this machine.
struct Machine {
    hostname: String,
    address: String,
    boot_time: i64,
    cpu_info: Map,
    software: Map,
    bios: Map,
}

impl Machine {
    fn look(config: &Config) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let stat = read("/proc/stat");
        let boot_time = stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
        Machine {
            hostname: read("/proc/sys/kernel/hostname"),
            address: address(config.listen),
            boot_time,
            cpu_info: cpu_info(&read("/proc/cpuinfo")),
            software: software(&read("/proc/sys/kernel/osrelease")),
            bios: bios(read),
        }
    }
}

/// The address that clients should use: the one we listen on, or that of the route to the outside.
fn address(listen: Option<SocketAddr>) -> String {
    match listen {
        Some(addr) if !addr.ip().is_unspecified() => addr.ip().to_string(),
        _ => {
            // A datagram socket that is connected sends nothing, but knows which address it would send from.
            let probe = std::net::UdpSocket::bind(("0.0.0.0", 0)).and_then(|s| {
                s.connect(("192.0.2.1", 9))?;
                s.local_addr()
            });
            probe.map_or_else(|_| "127.0.0.1".to_owned(), |a| a.ip().to_string())
        }
    }
}

fn text_map<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Map {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect()
}

fn cpu_info(cpuinfo: &str) -> Map {
    let values = |key: &str| {
        let key = key.to_owned();
        cpuinfo.lines().filter_map(move |l| {
            let (name, value) = l.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        })
    };
    let first = |key: &str| values(key).next().unwrap_or_default();
    let sockets: std::collections::BTreeSet<String> = values("physical id").collect();
    text_map([
        ("cpu_count", values("processor").count().max(1).to_string()),
        ("socket_count", sockets.len().max(1).to_string()),
        ("vendor", first("vendor_id")),
        ("modelname", first("model name")),
        ("speed", first("cpu MHz")),
        ("family", first("cpu family")),
        ("model", first("model")),
        ("stepping", first("stepping")),
        ("flags", first("flags")),
    ])
}

fn software(kernel: &str) -> Map {
    let version = env!("CARGO_PKG_VERSION");
    text_map([
        ("product_brand", "Tanada".to_owned()),
        ("product_version", version.to_owned()),
        ("product_version_text", version.to_owned()),
        ("platform_name", "Tanada".to_owned()),
        ("platform_version", version.to_owned()),
        ("build_number", "0".to_owned()),
        ("xapi", format!("{}.{}", API_VERSION.0, API_VERSION.1)),
        ("linux", kernel.to_owned()),
    ])
}

fn bios(read: impl Fn(&str) -> String) -> Map {
    let names = [
        ("bios-vendor", "bios_vendor"),
        ("bios-version", "bios_version"),
        ("system-manufacturer", "sys_vendor"),
        ("system-product-name", "product_name"),
        ("system-version", "product_version"),
        ("baseboard-manufacturer", "board_vendor"),
        ("baseboard-product-name", "board_name"),
    ];
    text_map(names.map(|(key, file)| (key, read(&format!("/sys/class/dmi/id/{file}")))))
}
