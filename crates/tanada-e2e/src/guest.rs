//! The small test guest: its files, machines that boot from them, and a way in.
//!
//! `cargo xtask guest` makes the files; they are looked for in `target/guest`, or where `TANADA_GUEST_DIR` says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Scratch;

/// An emulated guest boots in five seconds on a quiet machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);

fn dir() -> PathBuf {
    let dir = std::env::var_os("TANADA_GUEST_DIR").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"));
    let words = "is missing: make the guest with `cargo xtask guest`, or name its directory in TANADA_GUEST_DIR";
    assert!(dir.join("disk.raw").is_file(), "{} {words}", dir.display());
    dir
}

/// A disk that boots.
pub fn root_image() -> PathBuf {
    dir().join("disk.raw")
}

/// A file system to mount.
pub fn ext4_image(path: &Path, bytes: u64) -> PathBuf {
    File::create(path).and_then(|file| file.set_len(bytes)).expect("a file");
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(path).status().expect("mke2fs");
    assert!(made.success(), "mke2fs: {made}");
    path.to_path_buf()
}

/// A daemon that need not find out what accelerates machines here: where KVM hangs that takes twenty seconds.
pub fn host() -> Scratch {
    Scratch::start_prepared(|state| {
        let known = dir().join("accelerator.json");
        if known.is_file() {
            fs::copy(known, state.join("accelerator.json")).expect("the accelerator's verdict");
        }
    })
}

/// An SR in a file of its own.
pub fn store(scratch: &Scratch, name: &str) -> String {
    let location = format!("device-config:location={}", scratch.path(&format!("{name}.store")).display());
    let name = format!("name-label={name}");
    scratch.xe_ok(["sr-create", "type=tanada", &name, &location, "physical-size=4GiB"])
}

/// A disk with the content of a file, as the disk `device` of a machine; its VDI and VBD.
pub fn disk(scratch: &Scratch, vm: &str, device: &str, sr: &str, image: &Path) -> (String, String) {
    let bytes = fs::metadata(image).expect("the disk's image").len();
    let (place, name) = (format!("sr-uuid={sr}"), format!("name-label=disk{device}"));
    let vdi = scratch.xe_ok(["vdi-create", &place, &name, &format!("virtual-size={bytes}"), "type=user"]);
    let file = format!("filename={}", image.display());
    scratch.xe_ok(["vdi-import", &format!("uuid={vdi}"), &file, "format=raw"]);
    let place = [format!("vm-uuid={vm}"), format!("vdi-uuid={vdi}"), format!("device={device}")];
    let bootable = format!("bootable={}", device == "0");
    let vbd = scratch.xe_ok(["vbd-create", &place[0], &place[1], &place[2], &bootable, "type=Disk", "mode=RW"]);
    (vdi, vbd)
}

/// A running machine with these disks, each a file's content on an SR; the first one boots.
pub fn start(scratch: &Scratch, name: &str, disks: &[(&str, &Path)]) -> String {
    let vm = scratch.xe_ok(["vm-create", &format!("name-label={name}")]);
    for (device, (sr, image)) in disks.iter().enumerate() {
        disk(scratch, &vm, &device.to_string(), sr, image);
    }
    let network = scratch.xe_ok(["network-list", "--minimal"]);
    let network = network.split(',').next().expect("a network").to_owned();
    let vif = [format!("vm-uuid={vm}"), format!("network-uuid={network}")];
    scratch.xe_ok(["vif-create", &vif[0], &vif[1], "device=0", "mac=random"]);
    scratch.xe_ok(["vm-start", &format!("uuid={vm}")]);
    vm
}

/// Runs a command in the guest, as soon as its agent answers; what it printed. It must succeed.
#[track_caller]
pub fn run(scratch: &mut Scratch, vm: &str, command: &str) -> String {
    let args = [
        "vm-call-plugin".to_owned(),
        format!("vm-uuid={vm}"),
        "plugin=guest-agent".into(),
        "fn=exec".into(),
        format!("args:command={command}"),
    ];
    let answer = scratch.eventually_within(BOOT_DEADLINE, "the guest's agent answers", |scratch| {
        let ran = scratch.xe(&args);
        if ran.status == 0 { Ok(ran.out) } else { Err(ran.err) }
    });
    let answer: Value = serde_json::from_str(&answer).expect("the agent's answer");
    assert_eq!(answer["exitcode"], 0, "{command}: {answer}");
    answer["stdout"].as_str().unwrap_or_default().trim().to_owned()
}
