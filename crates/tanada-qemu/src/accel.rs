//! Does KVM run a real kernel on this host? Found out by booting one.
//!
//! On some nested hosts /dev/kvm opens, QEMU starts and even a boot sector runs, but a Linux kernel never prints a line.
//! So the probe boots the kernel it is given, with an initial RAM disk made here whose only program writes a mark to the
//! console: page tables, interrupts, timers and user mode all have to work for it to appear. The verdict holds until the
//! host boots again, and is kept in a file. Any doubt ends in TCG, with the reason.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::machine::Accelerator;
use crate::process::{RunAs, drop_rights};

/// Where a kernel that works takes one or two seconds under KVM, and ten under TCG on a slow host.
pub const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// Written by the guest's first program.
const MARK: &str = "tanada-accelerator-works\n";
/// Console output read before the guest counts as babbling.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Clone)]
pub struct Probe<'a> {
    pub binary: &'a Path,
    /// An x86-64 kernel image; None takes the newest of /boot.
    pub kernel: Option<&'a Path>,
    pub run_as: Option<RunAs>,
    /// Holds the verdict and, while it runs, the RAM disk.
    pub state_dir: &'a Path,
    pub limit: Duration,
}

/// What to use, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub accelerator: Accelerator,
    pub reason: String,
    /// The boot of the host, the kernel and the QEMU for which it holds.
    boot_id: String,
    kernel: Option<PathBuf>,
    binary: PathBuf,
}

impl Probe<'_> {
    /// The kept verdict of this boot, or a new one. Never fails: what cannot be found out ends in TCG.
    pub async fn verdict(&self) -> Verdict {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string();
        let kernel = self.kernel.map(Path::to_path_buf).or_else(newest_kernel);
        if let Some(kept) = self.kept()
            && kept.boot_id == boot_id
            && kept.kernel == kernel
            && kept.binary == self.binary
        {
            return kept;
        }
        let (accelerator, reason) = match self.try_kvm(kernel.as_deref()).await {
            Ok(()) => (Accelerator::Kvm, "a kernel booted under KVM".to_string()),
            Err(reason) => (Accelerator::Tcg, reason),
        };
        let verdict = Verdict { accelerator, reason, boot_id, kernel, binary: self.binary.to_path_buf() };
        tracing::info!(accelerator = ?verdict.accelerator, reason = verdict.reason, "accelerator chosen");
        if let Err(error) = self.keep(&verdict) {
            tracing::warn!(%error, "the accelerator's verdict is not kept; the next start probes again");
        }
        verdict
    }

    async fn try_kvm(&self, kernel: Option<&Path>) -> Result<(), String> {
        if !Path::new("/dev/kvm").exists() {
            return Err("/dev/kvm does not exist".into());
        }
        let kernel = kernel.ok_or("no kernel to try KVM with: none configured, none in /boot")?;
        self.boots(Accelerator::Kvm, kernel).await
    }

    /// Boots a kernel to its first program, or says what happened instead.
    pub async fn boots(&self, accelerator: Accelerator, kernel: &Path) -> Result<(), String> {
        let disk = self.state_dir.join(format!("accelerator-probe-{}.img", std::process::id()));
        let readable = fs::Permissions::from_mode(0o644);
        let prepared = fs::write(&disk, ram_disk()).and_then(|()| fs::set_permissions(&disk, readable));
        prepared.map_err(|error| format!("{}: {error}", disk.display()))?;
        let result = boots_with(self, accelerator, kernel, &disk).await;
        if let Err(error) = fs::remove_file(&disk) {
            tracing::warn!(%error, file = %disk.display(), "a scratch file stays behind");
        }
        result
    }

    fn verdict_file(&self) -> PathBuf {
        self.state_dir.join("accelerator.json")
    }

    fn kept(&self) -> Option<Verdict> {
        serde_json::from_slice(&fs::read(self.verdict_file()).ok()?).ok()
    }

    fn keep(&self, verdict: &Verdict) -> io::Result<()> {
        let next = self.state_dir.join("accelerator.json.new");
        fs::write(&next, serde_json::to_vec_pretty(verdict)?)?;
        fs::rename(next, self.verdict_file())
    }
}

async fn boots_with(probe: &Probe<'_>, accelerator: Accelerator, kernel: &Path, disk: &Path) -> Result<(), String> {
    if let Some(user) = probe.run_as {
        for path in [kernel, disk] {
            user.check_reach(path).map_err(|error| error.to_string())?;
        }
    }
    let mut command = Command::new(probe.binary);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "256"]);
    match accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg => command.args(["-accel", "tcg", "-cpu", "max"]),
    };
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(disk);
    command.args(["-append", "console=ttyS0 panic=-1 quiet", "-no-reboot", "-serial", "stdio"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let (run_as, groups) = (probe.run_as, crate::launch::device_group(accelerator).into_iter().collect::<Vec<_>>());
    // SAFETY: only async-signal-safe system calls, on values copied before the fork.
    unsafe {
        command.pre_exec(move || drop_rights(run_as, &groups));
    }
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", probe.binary.display()))?;
    let output = child.stdout.take().ok_or("no pipe from QEMU")?;
    let found = timeout(probe.limit, wait_for_mark(output)).await;
    // It has done its work or never will; an error means that it has ended already.
    let _ = child.kill().await;
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{} ended under {accelerator:?} without reaching user mode", kernel.display())),
        Err(_) => {
            let limit_s = probe.limit.as_secs();
            Err(format!("{} did not reach user mode under {accelerator:?} within {limit_s} s", kernel.display()))
        }
    }
}

async fn wait_for_mark(mut output: impl tokio::io::AsyncRead + Unpin) -> bool {
    let mark = MARK.trim_end().as_bytes();
    let mut seen = Vec::new();
    while seen.len() < OUTPUT_BYTES_MAX {
        match output.read_buf(&mut seen).await {
            Ok(0) | Err(_) => return false,
            Ok(_) if seen.windows(mark.len()).any(|window| window == mark) => return true,
            Ok(_) => {}
        }
    }
    false
}

/// The kernel in /boot with the newest date.
pub fn newest_kernel() -> Option<PathBuf> {
    let entries = fs::read_dir("/boot").ok()?.flatten();
    let kernels = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"));
    let dated = kernels.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())));
    dated.max().map(|(_, path)| path)
}

/// A cpio archive (format "newc") with a console and a program that writes the mark and then sleeps.
fn ram_disk() -> Vec<u8> {
    const DIRECTORY: u32 = 0o040755;
    const CHARACTER_DEVICE: u32 = 0o020600;
    const PROGRAM: u32 = 0o100755;
    let mut archive = Vec::new();
    append(&mut archive, "dev", DIRECTORY, (0, 0), &[]);
    append(&mut archive, "dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    append(&mut archive, "init", PROGRAM, (0, 0), &program());
    append(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

fn append(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    // inode, mode, uid, gid, links, mtime, size, device of the file (2), device it names (2), length of name, checksum
    let inode = u32::try_from(archive.len()).unwrap_or(u32::MAX);
    let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    archive.extend_from_slice(b"070701");
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

/// A static ELF program for x86-64, written by hand: write(1, MARK), then pause() for ever.
fn program() -> Vec<u8> {
    const LOADED_AT: u64 = 0x40_0000;
    const HEADERS_BYTES: u64 = 64 + 56;
    const CODE_BYTES: u8 = 33;
    let mark_bytes = u8::try_from(MARK.len()).unwrap_or(u8::MAX);
    let code = [
        0xb8,
        1,
        0,
        0,
        0, // mov eax, 1 (write)
        0xbf,
        1,
        0,
        0,
        0, // mov edi, 1
        0x48,
        0x8d,
        0x35,
        CODE_BYTES - 17,
        0,
        0,
        0, // lea rsi, [rip + the rest of the code]
        0xba,
        mark_bytes,
        0,
        0,
        0, // mov edx, length
        0x0f,
        0x05, // syscall
        0xb8,
        34,
        0,
        0,
        0, // mov eax, 34 (pause)
        0x0f,
        0x05, // syscall
        0xeb,
        0xf7, // back to the pause
    ];
    let total = HEADERS_BYTES + code.len() as u64 + MARK.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend_from_slice(&value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend_from_slice(&value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend_from_slice(&value.to_le_bytes());
    // Executable for x86-64, version 1, entry behind the headers, one program header right after this one.
    half(&mut file, 2);
    half(&mut file, 62);
    word(&mut file, 1);
    long(&mut file, LOADED_AT + HEADERS_BYTES);
    long(&mut file, 64);
    long(&mut file, 0);
    word(&mut file, 0);
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut file, value);
    }
    // One segment: the whole file, readable and executable.
    word(&mut file, 1);
    word(&mut file, 5);
    for value in [0, LOADED_AT, LOADED_AT, total, total, 0x1000] {
        long(&mut file, value);
    }
    file.extend_from_slice(&code);
    file.extend_from_slice(MARK.as_bytes());
    file
}

#[cfg(test)]
mod tests {
    use super::{program, ram_disk};

    #[test]
    fn the_hand_made_program_runs_here() {
        use std::io::Read;
        use std::os::unix::fs::PermissionsExt;
        use std::process::{Command, Stdio};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = vec![0; super::MARK.len()];
        child.stdout.take().unwrap().read_exact(&mut output).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(output, super::MARK.as_bytes());
    }

    #[test]
    fn the_archive_has_whole_headers() {
        let archive = ram_disk();
        assert_eq!(archive.len() % 4, 0);
        assert_eq!(archive.windows(6).filter(|window| window == b"070701").count(), 4);
    }
}
