//! What can be known of a guest before it is asked to freeze.

use serde_json::Value;
use tanada_qemu::QemuError;
use tanada_qemu::agent::{GuestAgent, QUICK};
use tanada_qemu::text::printable;

use crate::GuestFacts;
use crate::verdict::Os;
use crate::{Cause, Downgrade, cause};

/// A guest cannot fill a certificate: longer texts are cut, and lists end.
const TEXT_CHARS_MAX: usize = 256;
const MOUNTS_MAX: usize = 64;
/// File systems that no kernel freezes.
const NEVER_FROZEN: &[&str] = &["vfat", "msdos", "exfat", "iso9660", "udf", "squashfs", "tmpfs", "overlay"];
const NEEDED: [&str; 3] = ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status"];

/// A guest that can be asked to freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub facts: GuestFacts,
    pub os: Os,
    /// Found frozen by nobody knows whom, and thawed.
    pub stray_freeze: bool,
    pub mounts: Vec<Mount>,
}

/// A mounted file system that can freeze, and the serial number of one disk under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub serial: String,
    pub path: String,
}

/// Asks the guest. An error is why freezing it need not be tried; what is known of the guest comes with it.
pub async fn probe(agent: &GuestAgent) -> Result<Probe, (GuestFacts, Downgrade)> {
    let nobody = |error: QemuError| {
        let words = format!("the guest's agent does not answer: {error}");
        (GuestFacts::default(), Downgrade::new(Cause::AgentSilent, words))
    };
    let mut without_vss = false;
    let stray_freeze = match agent.is_frozen(QUICK).await {
        Ok(true) => {
            tracing::warn!(socket = %agent.socket().display(), "a guest is found frozen; it is thawed first");
            agent.thaw(QUICK).await.map_err(nobody)?;
            true
        }
        Err(QemuError::Refused { message, .. }) => {
            without_vss = cause::is_without_vss(&message);
            false
        }
        Ok(false) => false,
        Err(error) => return Err(nobody(error)),
    };
    let info = agent.info().await.map_err(nobody)?;
    let osinfo = agent.osinfo().await.ok();
    let os = system(osinfo.as_ref());
    let facts = GuestFacts {
        os: osinfo.as_ref().map(pretty_name).unwrap_or_default(),
        os_id: osinfo.as_ref().map(|info| text(info, "id")).unwrap_or_default(),
        agent: format!("qemu-ga {}", text(&info, "version")).trim_end().to_owned(),
    };
    if without_vss {
        let words = "the agent's VSS provider is not installed or does not work";
        return Err((facts, Downgrade::new(Cause::VssMissing, words)));
    }
    if let Some(missing) = NEEDED.into_iter().find(|command| !enabled(&info, command)) {
        let (cause, words) = match os {
            Os::Windows => (Cause::VssMissing, "the agent's VSS provider is not installed or does not work"),
            Os::Linux | Os::Other => (Cause::FreezeUnsupported, "it is unknown to the agent, or forbidden"),
        };
        return Err((facts, Downgrade::new(cause, format!("the guest's agent does not do {missing}: {words}"))));
    }
    let mounts = agent.fsinfo().await.map(|list| mounts(&list)).unwrap_or_default();
    Ok(Probe { facts, os, stray_freeze, mounts })
}

fn text(value: &Value, member: &str) -> String {
    printable(value.get(member).and_then(Value::as_str).unwrap_or_default(), TEXT_CHARS_MAX)
}

/// Linux agents always tell the kernel, and the distribution where the guest knows it.
fn system(osinfo: Option<&Value>) -> Os {
    let Some(info) = osinfo else { return Os::Other };
    match text(info, "id").as_str() {
        "mswindows" => Os::Windows,
        "freebsd" | "openbsd" | "netbsd" | "dragonfly" | "macos" => Os::Other,
        "" if text(info, "kernel-release").is_empty() => Os::Other,
        _ => Os::Linux,
    }
}

fn pretty_name(info: &Value) -> String {
    let pretty = text(info, "pretty-name");
    if !pretty.is_empty() {
        return pretty;
    }
    let (name, kernel) = (text(info, "name"), text(info, "kernel-release"));
    if name.is_empty() && !kernel.is_empty() { format!("kernel {kernel}") } else { name }
}

fn enabled(info: &Value, name: &str) -> bool {
    let mut commands = info.get("supported_commands").and_then(Value::as_array).into_iter().flatten();
    commands.any(|command| {
        command.get("name").and_then(Value::as_str) == Some(name)
            && command.get("enabled").and_then(Value::as_bool) == Some(true)
    })
}

fn mounts(list: &Value) -> Vec<Mount> {
    let mut found = Vec::new();
    for file_system in list.as_array().into_iter().flatten() {
        if NEVER_FROZEN.contains(&text(file_system, "type").as_str()) {
            continue;
        }
        for disk in file_system.get("disk").and_then(Value::as_array).into_iter().flatten() {
            let mount = Mount { serial: text(disk, "serial"), path: text(file_system, "mountpoint") };
            if found.len() < MOUNTS_MAX && !mount.serial.is_empty() && !found.contains(&mount) {
                found.push(mount);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Mount, Os, mounts, pretty_name, system};

    #[test]
    fn systems_are_told_apart_and_a_silent_one_is_no_proof() {
        for (info, os) in [
            (json!({ "id": "mswindows", "kernel-release": "17763" }), Os::Windows),
            (json!({ "id": "debian", "kernel-release": "6.1.0" }), Os::Linux),
            (json!({ "kernel-release": "6.1.0" }), Os::Linux),
            (json!({ "id": "freebsd", "kernel-release": "14.1" }), Os::Other),
            (json!({}), Os::Other),
            (json!(null), Os::Other),
        ] {
            assert_eq!(system(Some(&info)), os, "{info}");
        }
        assert_eq!(system(None), Os::Other);
        assert_eq!(pretty_name(&json!({ "kernel-release": "6.1.0" })), "kernel 6.1.0");
    }

    #[test]
    fn file_systems_that_can_freeze_are_found_by_their_disks() {
        let list = json!([
            { "mountpoint": "/", "type": "ext4", "disk": [{ "serial": "a" }, { "serial": "b" }] },
            { "mountpoint": "/boot/efi", "type": "vfat", "disk": [{ "serial": "a" }] },
            { "mountpoint": "/x", "type": "xfs", "disk": [{ "bus": 1 }] },
            "junk"
        ]);
        let mount = |serial: &str| Mount { serial: serial.into(), path: "/".into() };
        assert_eq!(mounts(&list), [mount("a"), mount("b")]);
    }
}
