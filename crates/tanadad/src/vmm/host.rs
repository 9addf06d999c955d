//! How this host runs QEMU.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tanada_qemu::accel::{PROBE_LIMIT, Probe, Verdict};
use tanada_qemu::launch::HostSettings;
use tanada_qemu::process::RunAs;
use tanada_xapi::{ApiError, ApiResult};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::config::Config;

/// Users tried in this order when none is configured.
const USERS: [&str; 2] = ["tanada-qemu", "nobody"];

/// What the administrator may choose about machines.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    pub qemu: PathBuf,
    /// The user QEMU runs as; None takes the first of `tanada-qemu` and `nobody` that exists.
    pub user: Option<String>,
    /// Kernel for the accelerator's probe; None takes the newest of /boot.
    pub probe_kernel: Option<PathBuf>,
    /// Directories from which VMs may boot kernels directly (`VM.PV_kernel`).
    pub kernel_dirs: Vec<PathBuf>,
    /// What guards of frozen guests are started from; None takes this program itself.
    pub program: Option<PathBuf>,
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            user: None,
            probe_kernel: None,
            kernel_dirs: vec!["/boot".into(), "/var/lib/tanada/kernels".into()],
            program: None,
        }
    }
}

/// The host's side of all machines. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    config: MachineConfig,
    runtime_dir: PathBuf,
    state_dir: PathBuf,
    verdict: Arc<OnceCell<Verdict>>,
}

impl Host {
    pub fn new(config: &Config) -> Host {
        Host {
            config: config.machines.clone(),
            runtime_dir: config.runtime_dir.clone(),
            state_dir: config.state_dir.clone(),
            verdict: Arc::default(),
        }
    }

    /// What processes beside the daemon are started from. Resolved by the child itself, so that it is this program also
    /// when its file has been replaced by another version.
    pub fn program(&self) -> &Path {
        self.config.program.as_deref().unwrap_or(Path::new("/proc/self/exe"))
    }

    /// Makes the directory of the machines.
    pub fn prepare(&self) -> anyhow::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(self.machines_dir())?;
        self.open_way_to(&self.machines_dir())?;
        Ok(())
    }

    fn machines_dir(&self) -> PathBuf {
        self.runtime_dir.join("vm")
    }

    /// Sockets and logs of one machine.
    pub fn machine_dir(&self, uuid: Uuid) -> PathBuf {
        self.machines_dir().join(uuid.to_string())
    }

    /// Removes what the machine of a destroyed VM left: its logs and sockets.
    pub fn forget_machine(&self, uuid: &str) {
        let Ok(uuid) = Uuid::parse_str(uuid) else { return };
        let dir = self.machine_dir(uuid);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "a machine's directory stays behind");
            }
            _ => {}
        }
    }

    /// The machines that left a directory.
    pub fn machine_dirs(&self) -> anyhow::Result<Vec<Uuid>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.machines_dir())? {
            found.extend(entry?.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok()));
        }
        Ok(found)
    }

    /// The user of QEMU; None where we are not root and cannot change it.
    pub fn run_as(&self) -> ApiResult<Option<RunAs>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let names: Vec<&str> = match &self.config.user {
            Some(name) => vec![name.as_str()],
            None => USERS.to_vec(),
        };
        for name in &names {
            if let Some(user) = RunAs::by_name(name).map_err(ApiError::internal)? {
                return Ok(Some(user));
            }
        }
        Err(ApiError::internal(format!("no user {} to run QEMU as", names.join(" or "))))
    }

    /// Everything a launch needs; waits for the accelerator's probe where it is not over yet.
    pub async fn settings(&self) -> ApiResult<HostSettings> {
        let run_as = self.run_as()?;
        let accelerator = self.accelerator().await.accelerator;
        Ok(HostSettings { binary: self.config.qemu.clone(), run_as, accelerator })
    }

    /// Which accelerator machines use here, and why.
    pub async fn accelerator(&self) -> &Verdict {
        let probe = async {
            let probe = Probe {
                binary: &self.config.qemu,
                kernel: self.config.probe_kernel.as_deref(),
                // The probe runs a kernel of ours, not a guest's; the state directory is closed to QEMU's user.
                run_as: None,
                state_dir: &self.state_dir,
                limit: PROBE_LIMIT,
            };
            probe.verdict().await
        };
        self.verdict.get_or_init(|| probe).await
    }

    /// The probe takes its time where KVM hangs; nobody should wait for it before there is a machine to start.
    pub fn choose_accelerator_in_background(&self) {
        let host = self.clone();
        tokio::spawn(async move {
            host.accelerator().await;
        });
    }

    /// Lets QEMU's user reach a socket of ours: it may walk through our directories above it and, being of its group,
    /// connect. Others still may not; the exports' names are secrets besides.
    pub fn open_socket(&self, socket: &Path) -> ApiResult<()> {
        let Some(user) = self.run_as()? else { return Ok(()) };
        let failed = |error: std::io::Error| ApiError::internal(format!("{}: {error}", socket.display()));
        if let Some(parent) = socket.parent() {
            self.open_way_to(parent).map_err(failed)?;
        }
        let facts = fs::metadata(socket).map_err(failed)?;
        if facts.gid() != user.gid || facts.mode() & 0o060 != 0o060 {
            chown(socket, None, Some(user.gid)).map_err(failed)?;
            fs::set_permissions(socket, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        }
        Ok(())
    }

    /// Everybody may walk through (not list) the directories from the runtime directory down to this one.
    fn open_way_to(&self, dir: &Path) -> std::io::Result<()> {
        for step in dir.ancestors().take_while(|step| step.starts_with(&self.runtime_dir)) {
            let mode = fs::metadata(step)?.mode() & 0o7777;
            if mode & 0o011 != 0o011 {
                fs::set_permissions(step, fs::Permissions::from_mode(mode | 0o011))?;
            }
        }
        Ok(())
    }

    /// `HOST_NOT_ENOUGH_FREE_MEMORY` where a guest of this size would push others out.
    pub fn check_memory(&self, needed_bytes: u64) -> ApiResult<()> {
        let text = fs::read_to_string("/proc/meminfo").map_err(ApiError::internal)?;
        let available =
            text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok());
        let available_bytes: u64 = available.map_or(u64::MAX, |kib: u64| kib << 10);
        if needed_bytes > available_bytes {
            return Err(ApiError::host_not_enough_free_memory(needed_bytes, available_bytes));
        }
        Ok(())
    }

    /// A kernel or RAM disk that a VM names: only files below the configured directories.
    pub fn boot_file(&self, path: &str) -> ApiResult<PathBuf> {
        let real =
            fs::canonicalize(path).map_err(|error| ApiError::invalid_value("PV_kernel", format!("{path}: {error}")))?;
        let inside = |dir: &PathBuf| fs::canonicalize(dir).is_ok_and(|dir| real.starts_with(dir));
        if self.config.kernel_dirs.iter().any(inside) {
            return Ok(real);
        }
        let dirs: Vec<String> = self.config.kernel_dirs.iter().map(|dir| dir.display().to_string()).collect();
        let words = format!("{path}: only files below {} are accepted", dirs.join(", "));
        Err(ApiError::invalid_value("PV_kernel", words))
    }
}
