//! What an incremental backup costs: `cargo run -p tanada-e2e --example incremental`.
//!
//! A disk of 20 GiB with 1 GiB in it, backed up by `examples/incremental_backup.py` over TLS; then 1 % of the disk is written,
//! 64 KiB here and there over all of it, and backed up again. `TANADA_BIN` names another binary than this build's.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tanada_blockd_api::Command as Verb;
use tanada_e2e::Scratch;
use tanada_e2e::store::Door;

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const DISK: u64 = 20 * GIB;
const PIECE: u64 = 64 * KIB;

fn main() -> Result<()> {
    let scratch = Scratch::start();
    let location = format!("device-config:location={}", scratch.path("fast.store").display());
    let sr = scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, "physical-size=8GiB"]);
    let vm = scratch.xe_ok(["vm-create", "name-label=db1"]);
    let size = format!("disk-size={DISK}");
    scratch.xe_ok(["vm-disk-add", "vm=db1", "device=0", &size, &format!("sr-uuid={sr}")]);
    let vdi = scratch.xe_ok(["vbd-list", &format!("vm-uuid={vm}"), "params=vdi-uuid", "--minimal"]);
    let dir = scratch.path("run/sr").join(&sr);

    write(&dir, &vdi, (0..GIB / (64 << 20)).map(|n| (n * (64 << 20), 64 << 20)))?;
    night(&scratch, "1 GiB of 20, the first night")?;
    // Every hundredth piece, on average; which one of its hundred goes round.
    let pieces = (0..DISK / PIECE / 100).map(|n| ((n * 100 + n * 37 % 100) * PIECE, PIECE));
    write(&dir, &vdi, pieces)?;
    night(&scratch, "1 % of 20 GiB changed")
}

/// Writes as a guest would, past the control plane: places and lengths in bytes.
fn write(dir: &Path, vdi: &str, places: impl Iterator<Item = (u64, u64)>) -> Result<()> {
    let mut door = Door::open(dir)?;
    let token = String::from("a-guest");
    door.control(Verb::Attach { token: token.clone(), target: vdi.parse()?, writable: true })?;
    let mut program = Command::new("qemu-io");
    program.args(["-f", "raw"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut running = program.arg(format!("nbd+unix:///{token}?socket={}", dir.join("nbd.sock").display())).spawn()?;
    let mut commands = running.stdin.take().context("qemu-io's input")?;
    for (offset, length) in places {
        writeln!(commands, "write -P {} {offset} {length}", 1 + offset / PIECE % 255)?;
    }
    writeln!(commands, "flush\nquit")?;
    drop(commands);
    ensure!(running.wait()?.success(), "qemu-io failed");
    door.control(Verb::Detach { token })?;
    Ok(())
}

fn night(scratch: &Scratch, what: &str) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/incremental_backup.py");
    let start = Instant::now();
    let mut program = Command::new("python3");
    program.arg(script).args(["backup", "--vm", "db1", "--host", &scratch.https_url(), "--password-file"]);
    program
        .arg(scratch.path("password"))
        .arg("--ca")
        .arg(scratch.path("state/tls/cert.pem"))
        .arg("--to")
        .arg(scratch.path("backups"));
    let output = program.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the backup failed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().next().unwrap_or_default();
    println!("{what}: {line}; {:.1} s with snapshot, logins and clean-up", start.elapsed().as_secs_f64());
    Ok(())
}
