//! What dies around a freeze: the control plane, or the guard that thaws for it. The guest is thawed every time.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::eventually;
use super::machine::Machine;
use super::world::World;

const PATIENCE: Duration = Duration::from_secs(300);
/// From the start of the guard: it connects, freezes within some tens of milliseconds, and is told to thaw.
const BLOWS_MS: [u64; 4] = [0, 60, 120, 250];
const GUARD_BLOWS_MS: [u64; 2] = [30, 120];

/// The control plane is killed while its guard is at work. The guard thaws before another control plane is there.
pub fn control_plane_dies(world: &mut World, origin: &Machine) -> Result<()> {
    for (round, delay_ms) in BLOWS_MS.into_iter().enumerate() {
        let name = format!("frozen-{round}");
        let snapshot =
            world.xe_command(&["vm-snapshot", &format!("uuid={}", origin.uuid), &format!("new-name-label={name}")]);
        let found = strike(snapshot, origin, |_| {
            sleep(Duration::from_millis(delay_ms));
            world.kill_daemon()
        })?;
        eventually("the guard has ended", PATIENCE, || match guard_of(origin)? {
            Some(pid) => bail!("guard {pid} is still there"),
            None => Ok(()),
        })?;
        let status = agent_says(world, origin, "guest-fsfreeze-status")?;
        if status != "thawed" {
            bail!("the control plane was killed in a freeze and the guest says '{status}' without it");
        }
        world.start_daemon()?;
        origin.wait_for_agent(world)?;
        origin.guest(world, "echo thawed > /data/thawed && sync && rm /data/thawed")?;
        let left = world.xe(&["snapshot-list", &format!("name-label={name}"), "--minimal"])?;
        let left = if left.is_empty() { "undone" } else { remove(world, &left)? };
        world.note(format!(
            "control plane killed {delay_ms} ms after guard {found}: guest thawed without it, snapshot {left}"
        ));
    }
    Ok(())
}

/// The guard is killed; the control plane thaws, and the snapshot says what it is worth.
pub fn guard_dies(world: &mut World, origin: &Machine) -> Result<()> {
    for (round, delay_ms) in GUARD_BLOWS_MS.into_iter().enumerate() {
        let name = format!("unguarded-{round}");
        let snapshot =
            world.xe_command(&["vm-snapshot", &format!("uuid={}", origin.uuid), &format!("new-name-label={name}")]);
        strike(snapshot, origin, |pid| {
            sleep(Duration::from_millis(delay_ms));
            // SAFETY: kill has no preconditions; the process was found by its command line, which names this machine.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            Ok(())
        })?;
        let uuid = world.xe(&["snapshot-list", &format!("name-label={name}"), "--minimal"])?;
        let level = world.param_key("snapshot", &uuid, "snapshot-info", "consistency")?;
        origin.guest(world, "echo thawed > /data/thawed && sync && rm /data/thawed")?;
        remove(world, &uuid)?;
        world
            .note(format!("guard killed {delay_ms} ms after its start: the snapshot says '{level}', the guest writes"));
    }
    Ok(())
}

fn remove(world: &World, uuid: &str) -> Result<&'static str> {
    Machine { uuid: uuid.to_string() }.judge(world)?;
    world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={uuid}"), "force=true"])?;
    Ok("whole")
}

/// Starts a snapshot, waits for its guard and strikes; the guard's process. Returns when the snapshot's command has ended.
fn strike(mut snapshot: std::process::Command, origin: &Machine, blow: impl FnOnce(i32) -> Result<()>) -> Result<i32> {
    let mut child = snapshot.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting xe")?;
    let began = Instant::now();
    let guard = loop {
        match guard_of(origin)? {
            Some(pid) => break pid,
            None if child.try_wait()?.is_some() || began.elapsed() > PATIENCE => {
                bail!("no guard was seen while a snapshot was taken")
            }
            None => sleep(Duration::from_millis(1)),
        }
    };
    let struck = blow(guard);
    child.wait()?;
    struck.map(|()| guard)
}

/// The guard of this machine's agent, by its command line.
fn guard_of(origin: &Machine) -> Result<Option<i32>> {
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.contains("quiesce-guard") && command.contains(&origin.uuid) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Asks the guest's agent without any control plane.
fn agent_says(world: &World, origin: &Machine, command: &str) -> Result<String> {
    let socket = world.dir.join("run/vm").join(&origin.uuid).join("agent.sock");
    let mut stream = UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Junk of an earlier client ends at the mark.
    stream.write_all(b"\xff")?;
    writeln!(stream, "{}", json!({ "execute": command, "id": "demo" }))?;
    for line in BufReader::new(stream).split(b'\n') {
        let line = line?;
        let start = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
        let Ok(answer) = serde_json::from_slice::<Value>(&line[start..]) else { continue };
        if answer["id"] == "demo" {
            return Ok(answer["return"].as_str().unwrap_or_default().to_owned());
        }
    }
    bail!("the agent went away before it answered {command}")
}
