//! Step 12: processes die in the middle. Guests go on, nothing acknowledged is lost, nothing half done stays.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::eventually;
use super::machine::{DATA_BYTES, Machine, RING_SLOTS};
use super::prepare::writer_progress;
use super::world::World;

/// Whoever waits longer has found a hang, also on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(300);

/// The control plane is killed while it takes a snapshot; the guest does not notice.
pub fn control_plane(world: &mut World, origin: &Machine) -> Result<()> {
    let process_before = qemu_of(world, origin)?;
    let before = writer_progress(world, origin)?;
    // The later the blow, the further the snapshot has come; which step it hits differs from run to run.
    for (round, delay_ms) in [0, 20, 40, 80, 160, 320].into_iter().enumerate() {
        let name = format!("interrupted-{round}");
        let mut snapshot =
            world.xe_command(&["vm-snapshot", &format!("uuid={}", origin.uuid), &format!("new-name-label={name}")]);
        let mut child = snapshot.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting xe")?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        world.kill_daemon()?;
        let _ = child.wait();
        world.start_daemon()?;
        let found = world.xe(&["snapshot-list", &format!("name-label={name}"), "--minimal"])?;
        let state = if found.is_empty() { "undone".to_string() } else { check_whole(world, &found)? };
        world.note(format!("killed {delay_ms} ms into a snapshot: {state}"));
    }
    if world.param("vm", &origin.uuid, "power-state")? != "running" || qemu_of(world, origin)? != process_before {
        bail!("the machine does not run as the process it ran as before");
    }
    origin.wait_for_agent(world)?;
    let after = writer_advances(world, origin, before)?;
    world.note(format!("the writer went on from {before} to {after}"));
    Ok(())
}

/// A snapshot that a killed control plane left must be a whole one; it is removed again.
fn check_whole(world: &World, uuid: &str) -> Result<String> {
    let snapshot = Machine { uuid: uuid.to_string() };
    snapshot.judge(world)?;
    world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={uuid}"), "force=true"])?;
    Ok("finished".into())
}

/// The data plane is killed under the writing guest, `deaths` times, each after a pause; then the guest's disks are judged
/// and its writer has ended.
pub fn data_plane(world: &mut World, origin: &Machine, deaths: u64, pause: &mut dyn FnMut() -> Duration) -> Result<()> {
    for round in 1..=deaths {
        let before = writer_progress(world, origin)?;
        std::thread::sleep(pause());
        let pid = blockd_pid(world)?;
        // SAFETY: kill has no preconditions; the pid is blockd's, from its own file.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        let successor = eventually("another blockd takes over", PATIENCE, || {
            let now = blockd_pid(world)?;
            if now == pid {
                bail!("the pid file still names {pid}, which was killed");
            }
            Ok(now)
        })?;
        // What the writer did during the pause proves nothing.
        let at_death = writer_progress(world, origin)?;
        let after = writer_advances(world, origin, at_death)?;
        world.note(format!(
            "round {round}: blockd {pid} killed, {successor} took over, the writer went on from {before} to {after}"
        ));
    }
    judge_the_guest(world, origin)
}

/// The writer ends; no record is missing and the guest's kernel has nothing to say.
fn judge_the_guest(world: &mut World, origin: &Machine) -> Result<()> {
    origin.guest(world, "killall tanada-witness; sleep 0.5; true")?;
    let order =
        origin.guest(world, &format!("tanada-witness verify-ordered /dev/vdb /dev/vdc {DATA_BYTES} {RING_SLOTS}"))?;
    origin.guest(world, "tanada-witness check /dev/vdc 0 8388608 7 && cd /data && sha256sum -c known.sha256")?;
    let kernel = origin.guest(world, "dmesg | grep -ciE 'i/o error|ext4-fs error' || true")?;
    if kernel.trim() != "0" {
        bail!("the guest's kernel reports {kernel} I/O errors");
    }
    world.note(format!("no record missing: {order}; no I/O error in the guest"));
    Ok(())
}

/// The array's controller restarts under the writing guest, `times` times: its connections break, the guest goes on.
pub fn controller_restart(world: &mut World, origin: &Machine, times: u32) -> Result<()> {
    for round in 1..=times {
        let before = writer_progress(world, origin)?;
        world.array()?.restart_controller()?;
        let after = writer_advances(world, origin, before)?;
        world.note(format!(
            "round {round}: all connections of the array broken, the writer went on from {before} to {after}"
        ));
    }
    judge_the_guest(world, origin)
}

/// Waits until the writer has passed `before` by far more than what was in flight.
fn writer_advances(world: &World, origin: &Machine, before: u64) -> Result<u64> {
    eventually("the guest's writer goes on", PATIENCE, || {
        let now = writer_progress(world, origin)?;
        if now < before + 64 {
            bail!("the writer is at {now}, it was at {before}");
        }
        Ok(now)
    })
}

/// The guest's process, by the machine's uuid in its arguments.
fn qemu_of(_world: &World, origin: &Machine) -> Result<u32> {
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if command.contains("qemu-system") && command.contains(&origin.uuid) {
            return Ok(pid);
        }
    }
    bail!("no QEMU process runs machine {}", origin.uuid)
}

/// The process that serves the store now.
fn blockd_pid(world: &World) -> Result<i32> {
    eventually("blockd's pid file", Duration::from_secs(10), || {
        let found =
            find_file(&world.dir.join("run"), "blockd.pid").context("no blockd.pid below the runtime directory")?;
        let text = fs::read_to_string(&found)?;
        text.trim().parse().with_context(|| format!("{} holds '{text}'", found.display()))
    })
}

fn find_file(dir: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in fs::read_dir(dir).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        if path.file_name().is_some_and(|file| file == name) {
            return Some(path);
        }
        if path.is_dir()
            && let Some(found) = find_file(&path, name)
        {
            return Some(found);
        }
    }
    None
}
