//! Machines without a guest: start, plug, find again, end.

mod common;
#[path = "machine/iscsi.rs"]
mod iscsi;

use std::time::Duration;

use common::{Served, host, machine, run_as, scratch, start};
use serde_json::json;
use tanada_qemu::QemuError;
use tanada_qemu::hotplug::{self, IoStatus, Unplugged};
use tanada_qemu::launch::{self, RunState};
use tanada_qemu::machine::Boot;
use tanada_qemu::process::Exit;
use tanada_qemu::qmp::QUICK;
use tanada_qemu::source::DiskSource;

#[tokio::test]
async fn a_machine_starts_is_found_again_and_ends() {
    let dir = scratch();
    let served = Served::new(dir.path(), 8 << 20, false);
    let mut spec = machine(Boot::Bios);
    spec.disks.push(served.disk.clone());
    spec.disks[0].boot_index = Some(0);
    spec.disks[0].slot = Some(3);
    let home = dir.path().join("vm");

    let first = launch::launch(&spec, &host(), &home).await.unwrap();
    assert_eq!(launch::run_state(&first.qmp).await.unwrap(), RunState::Prelaunch);
    first.qmp.execute("cont", json!({}), QUICK).await.unwrap();
    assert_eq!(launch::run_state(&first.qmp).await.unwrap(), RunState::Running);
    if let Some(user) = run_as() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", first.process.pid())).unwrap();
        let ids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(ids.split_whitespace().skip(1).all(|id| id == user.uid.to_string()), "{ids}");
    }
    let pid = first.process.pid();
    drop(first);

    let second = launch::reattach(spec.uuid, &home).await.unwrap().expect("it runs");
    assert_eq!(second.process.pid(), pid);
    assert_eq!(launch::run_state(&second.qmp).await.unwrap(), RunState::Running);
    let disks = hotplug::disks(&second.qmp).await.unwrap();
    assert_eq!(disks.len(), 1);
    assert_eq!((disks[0].id, disks[0].slot, disks[0].io_status), (served.disk.id, Some(3), IoStatus::Ok));
    assert_eq!(second.process.end(Duration::from_secs(60)).await, Exit::Code(0));
    second.qmp.closed().await;

    assert!(launch::reattach(spec.uuid, &home).await.unwrap().is_none());
}

/// A boot sector that runs `code`.
fn boot_sector(code: &[u8]) -> Vec<u8> {
    let mut sector = code.to_vec();
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector
}

#[tokio::test]
async fn the_firmware_boots_the_disk_with_the_lowest_index() {
    let dir = scratch();
    // hlt; jump back: the wrong disk stops here.
    let wrong = Served::with_content(dir.path(), &boot_sector(&[0xf4, 0xeb, 0xfd]), 1 << 20, false);
    // mov al, 0xfe; out 0x64, al; hlt: the right one resets the machine, which is an event.
    let right = Served::with_content(dir.path(), &boot_sector(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4]), 1 << 20, false);
    let mut spec = machine(Boot::Bios);
    spec.disks = vec![wrong.disk.clone(), right.disk.clone()];
    for (slot, disk) in spec.disks.iter_mut().enumerate() {
        disk.slot = Some(slot as u32);
        disk.boot_index = Some(1 - slot as u32);
    }
    let mut machine = start(&spec, dir.path()).await;
    machine.qmp.execute("cont", json!({}), QUICK).await.unwrap();
    let reset = async {
        loop {
            let event = machine.events.recv().await.unwrap();
            if event.name == "RESET" && event.data["guest"] == true {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), reset).await.expect("the boot sector of the right disk runs");
}

#[tokio::test]
async fn a_disk_is_plugged_and_unplugged_whatever_state_the_last_attempt_left() {
    let dir = scratch();
    let served = Served::new(dir.path(), 8 << 20, false);
    let machine = start(&machine(Boot::Bios), dir.path()).await;
    machine.qmp.execute("cont", json!({}), QUICK).await.unwrap();
    let disk = &served.disk;

    let slot = hotplug::plug(&machine.qmp, disk).await.unwrap();
    assert_eq!(hotplug::plug(&machine.qmp, disk).await.unwrap(), slot, "a second plug changes nothing");
    // There is no operating system to let go; a reset lets go for it.
    assert_eq!(hotplug::unplug(&machine.qmp, disk.id, Duration::from_millis(200)).await.unwrap(), Unplugged::Pending);
    let mut events = machine.qmp.events();
    machine.qmp.execute("system_reset", json!({}), QUICK).await.unwrap();
    loop {
        if hotplug::deleted_disk(&events.recv().await.unwrap()) == Some(disk.id) {
            break;
        }
    }
    hotplug::forget_node(&machine.qmp, disk.id).await.unwrap();
    assert_eq!(hotplug::unplug(&machine.qmp, disk.id, Duration::ZERO).await.unwrap(), Unplugged::Absent);
    assert_eq!(hotplug::disks(&machine.qmp).await.unwrap(), []);

    let mut absent = disk.clone();
    let DiskSource::Nbd { export, .. } = &mut absent.source else { panic!("it is served over NBD") };
    *export = "no-such-export".into();
    let error = hotplug::plug(&machine.qmp, &absent).await.unwrap_err();
    assert!(matches!(error, QemuError::Refused { .. }), "{error}");
    assert_eq!(hotplug::unplug(&machine.qmp, disk.id, Duration::ZERO).await.unwrap(), Unplugged::Absent);
    machine.process.kill().await;
}

#[tokio::test]
async fn qemus_own_words_explain_a_machine_that_cannot_be_built() {
    let dir = scratch();
    let mut spec = machine(Boot::Bios);
    spec.machine_type = "pc-q35-0.1".into();
    let error = launch::launch(&spec, &host(), &dir.path().join("vm")).await.err().unwrap();
    assert!(error.to_string().contains("machine type"), "{error}");
    assert!(matches!(error, QemuError::EndedEarly { .. }), "{error}");
}

#[tokio::test]
async fn a_qmp_error_names_the_command_and_its_class() {
    let dir = scratch();
    let machine = start(&machine(Boot::Bios), dir.path()).await;
    let error = machine.qmp.execute("no-such-command", json!({}), QUICK).await.unwrap_err();
    assert!(error.is_class("CommandNotFound") && error.to_string().contains("no-such-command"), "{error}");
    assert_eq!(machine.process.kill().await, Exit::Signal(9));
}
