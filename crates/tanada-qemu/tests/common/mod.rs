//! Real QEMU, real disks, a real guest.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tanada_qemu::launch::{self, HostSettings, Machine};
use tanada_qemu::machine::{Accelerator, Boot, DiskSpec, MACHINE_TYPE_DEFAULT, MachineSpec};
use tanada_qemu::process::RunAs;
use tanada_qemu::source::DiskSource;
use uuid::Uuid;

/// A scratch directory that QEMU's user can walk through.
pub fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Root starts QEMU as nobody; anybody else as himself.
pub fn run_as() -> Option<RunAs> {
    if rustix::process::getuid().is_root() { RunAs::by_name("nobody").unwrap() } else { None }
}

pub fn host() -> HostSettings {
    HostSettings { binary: "/usr/bin/qemu-system-x86_64".into(), run_as: run_as(), accelerator: Accelerator::Tcg }
}

pub fn machine(boot: Boot) -> MachineSpec {
    MachineSpec {
        uuid: Uuid::new_v4(),
        name: "test".into(),
        memory_bytes: 256 << 20,
        vcpus: 1,
        machine_type: MACHINE_TYPE_DEFAULT.into(),
        boot,
        disks: Vec::new(),
        nics: Vec::new(),
    }
}

/// A machine that does not outlive a failed test.
pub struct Guarded(Machine);

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.process.kill_now();
    }
}

impl std::ops::Deref for Guarded {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        &self.0
    }
}

impl std::ops::DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.0
    }
}

pub async fn start(spec: &MachineSpec, dir: &Path) -> Guarded {
    Guarded(launch::launch(spec, &host(), &dir.join("vm")).await.unwrap())
}

/// A disk served by qemu-nbd until dropped.
pub struct Served {
    pid: i32,
    pub disk: DiskSpec,
}

impl Served {
    pub fn new(dir: &Path, size_bytes: u64, read_only: bool) -> Served {
        Served::with_content(dir, &[], size_bytes, read_only)
    }

    pub fn with_content(dir: &Path, content: &[u8], size_bytes: u64, read_only: bool) -> Served {
        let id = Uuid::new_v4();
        let (image, socket, pid_file) =
            (dir.join(format!("{id}.raw")), dir.join(format!("{id}.sock")), dir.join(format!("{id}.pid")));
        std::fs::write(&image, content).unwrap();
        std::fs::File::options().write(true).open(&image).unwrap().set_len(size_bytes).unwrap();
        let mut command = Command::new("qemu-nbd");
        command.args(["--fork", "--persistent", "--format=raw", "--export-name=token", "--shared=0"]);
        command.arg("--socket").arg(&socket).arg("--pid-file").arg(&pid_file).arg(&image);
        assert!(command.status().unwrap().success());
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let pid = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let serial = id.to_string()[..20].to_string();
        let disk = DiskSpec {
            id,
            source: DiskSource::Nbd { socket, export: "token".into() },
            read_only,
            serial,
            boot_index: None,
            slot: None,
        };
        Served { pid, disk }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
