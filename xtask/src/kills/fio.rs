//! fio as the outside witness: it writes and verifies through a QEMU that reconnects, and must never notice a death.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use super::plane::{Plane, end};
use super::writer::Shared;

/// Part of the volume that fio works on.
const AREA: &str = "24m";

/// `qemu-storage-daemon` between fio and the store. Ends with this.
struct Front {
    daemon: Child,
}

impl Front {
    /// `None` where the run was over before it listened.
    fn start(plane: &Plane, token: &str, socket: &Path, shared: &Shared) -> Result<Option<Front>> {
        let mut front = Front { daemon: Front::spawn(plane, token, socket)? };
        let listens = super::plane::patiently("qemu-storage-daemon listens", || {
            if shared.is_over() {
                return Ok(false);
            }
            // It waits for a blockd that went away, but not while it connects for the first time.
            if let Some(status) = front.daemon.try_wait()? {
                front.daemon = Front::spawn(plane, token, socket)?;
                bail!("qemu-storage-daemon ended with {status}");
            }
            std::os::unix::net::UnixStream::connect(socket).map(|_| true).context("connecting")
        })?;
        Ok(listens.then_some(front))
    }

    fn spawn(plane: &Plane, token: &str, socket: &Path) -> Result<Child> {
        let disk = format!(
            "driver=nbd,node-name=disk,server.type=unix,server.path={},export={token},reconnect-delay=300",
            plane.nbd_socket().display()
        );
        let log = std::fs::File::create(plane.dir.join("qemu.log")).context("creating QEMU's log")?;
        Command::new("qemu-storage-daemon")
            .args(["--blockdev", &disk, "--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())])
            .args(["--export", "type=nbd,id=out,name=out,node-name=disk,writable=on"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting qemu-storage-daemon")
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.daemon.id() as i32) {
            // It has nothing to say at its end; what counts is what fio said.
            let _ = end(pid, Signal::TERM);
        }
        let _ = self.daemon.wait();
    }
}

/// Lets fio write and verify until the run is over; returns how often it came through.
pub fn run(plane: &Plane, token: &str, shared: &Shared, seed: u64) -> Result<u64> {
    let socket = plane.dir.join("fio.sock");
    let Some(_front) = Front::start(plane, token, &socket, shared)? else { return Ok(0) };
    let mut rounds = 0;
    while !shared.is_over() {
        let output = Command::new("fio")
            .args(["--name=verify", "--ioengine=nbd", "--iodepth=16", "--rw=randwrite", "--bsrange=512-64k"])
            .args(["--bs_unaligned=0", "--blockalign=512", "--verify=crc32c", "--verify_fatal=1"])
            .args(["--verify_state_save=0", "--rate_iops=1500"])
            .args([format!("--size={AREA}"), format!("--randseed={}", seed + rounds)])
            .arg(format!("--uri=nbd+unix:///out?socket={}", socket.display()))
            .stdin(Stdio::null())
            .output()
            .context("starting fio")?;
        if !output.status.success() {
            bail!(
                "fio ended with {}: {}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        rounds += 1;
    }
    Ok(rounds)
}
