//! A virtual machine of the demo, as `xe` shows it, and its guest, through the guest agent.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tanada_witness::{OrderReport, RECORD_BYTES, judge_order};

use super::eventually;
use super::world::World;

/// Both data disks: a file system or known pattern in front, the ring of ordered records behind.
pub const DATA_BYTES: u64 = 64 << 20;
pub const RING_SLOTS: u64 = 1024;
pub const DISK_BYTES: u64 = DATA_BYTES + RING_SLOTS * RECORD_BYTES as u64;

/// How long a guest without hardware help may take to boot and answer.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How long a command in the guest may take, where nothing else is said.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// A VM or a template, by uuid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub uuid: String,
}

impl Machine {
    /// Starts it and waits until the guest agent answers.
    pub fn start(&self, world: &World) -> Result<()> {
        world.xe(&["vm-start", &format!("uuid={}", self.uuid)])?;
        self.wait_for_agent(world)
    }

    pub fn wait_for_agent(&self, world: &World) -> Result<()> {
        eventually("the guest agent answers", BOOT_LIMIT, || self.plugin(world, "ping", &[])).map(drop)
    }

    pub fn stop_hard(&self, world: &World) -> Result<()> {
        world.xe(&["vm-shutdown", &format!("uuid={}", self.uuid), "force=true"]).map(drop)
    }

    /// Runs a shell command in the guest; its output, or an error with what it said.
    pub fn guest(&self, world: &World, command: &str) -> Result<String> {
        self.guest_within(world, command, COMMAND_LIMIT)
    }

    /// The same for commands that may need long.
    pub fn guest_within(&self, world: &World, command: &str, limit: Duration) -> Result<String> {
        let args = [format!("args:command={command}"), format!("args:timeout={}", limit.as_secs())];
        let answer = self.plugin(world, "exec", &args)?;
        let answer: serde_json::Value =
            serde_json::from_str(&answer).with_context(|| format!("answer of the guest agent: {answer}"))?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_string();
        if answer["exitcode"].as_i64() != Some(0) {
            bail!(
                "in the guest, `{command}` ended with {}: {} {}",
                answer["exitcode"],
                text("stdout").trim(),
                text("stderr").trim()
            );
        }
        Ok(text("stdout").trim_end().to_string())
    }

    fn plugin(&self, world: &World, function: &str, args: &[String]) -> Result<String> {
        let mut all = vec![
            "vm-call-plugin".to_string(),
            format!("vm-uuid={}", self.uuid),
            "plugin=guest-agent".into(),
            format!("fn={function}"),
        ];
        all.extend_from_slice(args);
        world.xe(&all)
    }

    /// The VDI behind a device number.
    pub fn disk(&self, world: &World, device: &str) -> Result<String> {
        let vdi = world.xe(&[
            "vbd-list",
            &format!("vm-uuid={}", self.uuid),
            &format!("userdevice={device}"),
            "params=vdi-uuid",
            "--minimal",
        ])?;
        if vdi.len() != 36 {
            bail!("machine {} shows '{vdi}' as disk {device}: one uuid expected", self.uuid);
        }
        Ok(vdi)
    }

    /// Writes a whole disk to a file, as a backup would.
    pub fn export_disk(&self, world: &World, device: &str, file: &Path) -> Result<()> {
        let vdi = self.disk(world, device)?;
        if file.exists() {
            fs::remove_file(file)?;
        }
        world
            .xe(&["vdi-export", &format!("uuid={vdi}"), &format!("filename={}", file.display()), "format=raw"])
            .map(drop)
    }

    /// Reads both data disks of a snapshot and judges the order of their records; also one digest over both.
    pub fn judge(&self, world: &World) -> Result<Judgement> {
        let file = world.dir.join("judged.raw");
        let mut rings = Vec::new();
        let mut digests = Vec::new();
        for device in ["1", "2"] {
            self.export_disk(world, device, &file)?;
            let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            // Arrays round sizes up.
            if (bytes.len() as u64) < DISK_BYTES {
                bail!("disk {device} of {} exports as {} bytes, {DISK_BYTES} expected", self.uuid, bytes.len());
            }
            digests.push(sha256(&file)?);
            rings.push(bytes[DATA_BYTES as usize..DISK_BYTES as usize].to_vec());
        }
        let order = judge_order(&rings[0], &rings[1]).with_context(|| format!("the disks of {}", self.uuid))?;
        Ok(Judgement { order, digest: digests.join(" ") })
    }
}

/// What an outsider finds on the two data disks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub order: OrderReport,
    /// SHA-256 of both disks.
    pub digest: String,
}

/// SHA-256 of a file, by an outside program.
pub fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).stderr(Stdio::inherit()).output().context("starting sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .next()
        .map(str::to_string)
        .with_context(|| format!("sha256sum of {} said nothing", file.display()))
}
