//! A real Linux guest: its agent, disks that come and go, and the accelerator probe that boots its kernel.

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Served, host, machine, run_as, scratch, start};
use serde_json::json;
use tanada_qemu::accel::Probe;
use tanada_qemu::agent::{ExecRequest, GuestAgent, ShutdownMode};
use tanada_qemu::hotplug::{self, Unplugged};
use tanada_qemu::launch::Machine;
use tanada_qemu::machine::{AGENT_PORT_ID, Accelerator, Boot, MachineSpec};
use tanada_qemu::process::Exit;
use tanada_qemu::qmp::QUICK;

const AMPLE: Duration = Duration::from_secs(120);

/// A file of the demo's guest, which `cargo xtask guest` makes.
fn guest_file(name: &str) -> PathBuf {
    let dir = match std::env::var_os("TANADA_GUEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
    };
    let path = dir.join(name);
    let words = "is missing: make the guest with `cargo xtask guest`, or name its directory in TANADA_GUEST_DIR";
    assert!(path.is_file(), "{} {words}", path.display());
    path.canonicalize().unwrap()
}

/// A machine that boots the demo's guest from a copy of its disk.
fn guest(dir: &Path) -> (Served, MachineSpec) {
    let content = std::fs::read(guest_file("disk.raw")).unwrap();
    let mut root = Served::with_content(dir, &content, content.len() as u64, false);
    root.disk.boot_index = Some(0);
    root.disk.slot = Some(0);
    let mut spec = machine(Boot::Bios);
    spec.disks.push(root.disk.clone());
    (root, spec)
}

/// Runs until the guest has opened its agent port.
async fn agent_of(machine: &mut Machine) -> GuestAgent {
    machine.qmp.execute("cont", json!({}), QUICK).await.unwrap();
    let opened = async {
        loop {
            let event = machine.events.recv().await.unwrap();
            if event.name == "VSERPORT_CHANGE" && event.data["id"] == AGENT_PORT_ID && event.data["open"] == true {
                return;
            }
        }
    };
    tokio::time::timeout(AMPLE, opened).await.expect("the guest's agent opens its port");
    let agent = GuestAgent::new(&machine.dir.agent_socket());
    agent.ping(AMPLE).await.unwrap();
    agent
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest { path: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()], ..ExecRequest::default() }
}

#[tokio::test]
async fn the_agent_runs_programs_moves_files_and_ends_the_guest() {
    let dir = scratch();
    let (_root, spec) = guest(dir.path());
    let mut machine = start(&spec, dir.path()).await;
    let agent = agent_of(&mut machine).await;

    let mut request = shell("cat; echo to-stderr >&2; exit 3");
    request.input = b"through the guest".to_vec();
    let outcome = agent.exec(&request, AMPLE).await.unwrap();
    assert_eq!(outcome.exit_code, Some(3));
    assert_eq!(
        (outcome.stdout.as_slice(), outcome.stderr.as_slice()),
        (&b"through the guest"[..], &b"to-stderr\n"[..])
    );

    let content: Vec<u8> = (0..700_000_u32).map(|index| (index % 251) as u8).collect();
    agent.write_file("/tmp/file", &content, AMPLE).await.unwrap();
    assert_eq!(agent.read_file("/tmp/file", 1 << 20, AMPLE).await.unwrap(), content);
    assert!(agent.read_file("/tmp/file", 1000, AMPLE).await.is_err(), "a file over the limit is refused");
    assert!(!agent.is_frozen(AMPLE).await.unwrap());
    assert!(agent.osinfo().await.unwrap().get("kernel-release").is_some());

    agent.shutdown(ShutdownMode::Powerdown).await.unwrap();
    let exit = tokio::time::timeout(AMPLE, machine.process.exited()).await.expect("the guest powers itself off");
    assert_eq!(exit, Exit::Code(0));
}

#[tokio::test]
async fn disks_come_and_go_while_the_guest_runs() {
    let dir = scratch();
    let (cold, hot) = (Served::new(dir.path(), 8 << 20, false), Served::new(dir.path(), 16 << 20, true));
    let (_root, mut spec) = guest(dir.path());
    spec.disks.push(cold.disk.clone());
    let mut machine = start(&spec, dir.path()).await;
    let agent = agent_of(&mut machine).await;

    let by_serial = |serial: &str| {
        let find = format!(
            "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = {serial} ] && echo $(cat $d/size) $(cat $d/ro); done; true"
        );
        shell(&find)
    };
    let seen = agent.exec(&by_serial(&cold.disk.serial), AMPLE).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "16384 0");

    hotplug::plug(&machine.qmp, &hot.disk).await.unwrap();
    let wait = format!("until cat /sys/block/vd*/serial | grep -q {}; do sleep 0.1; done", hot.disk.serial);
    agent.exec(&shell(&wait), AMPLE).await.unwrap();
    let seen = agent.exec(&by_serial(&hot.disk.serial), AMPLE).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "32768 1");

    assert_eq!(hotplug::unplug(&machine.qmp, hot.disk.id, AMPLE).await.unwrap(), Unplugged::Removed);
    let seen = agent.exec(&by_serial(&hot.disk.serial), AMPLE).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "");
    machine.process.kill().await;
}

#[tokio::test]
async fn the_probe_boots_a_kernel_to_its_first_program() {
    let dir = scratch();
    // Where QEMU's user can read it.
    let kernel = dir.path().join("vmlinuz");
    std::fs::copy(guest_file("vmlinuz"), &kernel).unwrap();
    let binary = host().binary;
    let probe = Probe { binary: &binary, kernel: Some(&kernel), run_as: run_as(), state_dir: dir.path(), limit: AMPLE };
    probe.boots(Accelerator::Tcg, &kernel).await.unwrap();

    let no_kernel = dir.path().join("not-a-kernel");
    std::fs::write(&no_kernel, b"nothing that boots").unwrap();
    let error = probe.boots(Accelerator::Tcg, &no_kernel).await.unwrap_err();
    assert!(error.contains("not-a-kernel"), "{error}");
}
