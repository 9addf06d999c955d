//! What a guest feels while a generation of its disk is exported: p99 of a steady load with nobody exporting, during an
//! export that goes as fast as it can, and during one with a bound.
//!
//! The whole way of an export is in it: daemon, archive, HTTP, client. The load is that of a guest with work to do, not one
//! that asks for all there is: so many requests a second, a few at a time, and what is told is how long they take. In the
//! same rounds stands how fast the export itself is, beside `qemu-img convert` of the same generation.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::bench::blockd::{Control, binary};
use crate::bench::fio::{self, Figures, PACED_RANDREAD, PACED_RANDWRITE, Place, Workload};
use crate::bench::process::{self, Server};
use crate::bench::stats::median;
use crate::bench::undo::{Act, Guard};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "export",
    what: "p99 of a guest's requests while a generation is exported, and the export's speed",
    rows: &[
        "export-randwrite-p99",
        "export-randread-p99",
        "export-unbounded-randwrite-p99",
        "export-unbounded-randread-p99",
        "export-mb",
    ],
    play,
    full_gib: 12,
    quick_gib: 7,
    quick_seconds: 60,
    is_quick: false,
};

/// Bytes per second of the export with a bound.
const BOUND: u64 = 32 << 20;
/// How long the control plane may take to begin.
const START: Duration = Duration::from_secs(60);

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(4 * GIB, GIB);
    let generations = bench.size(400, 40);
    let plane = Plane::start(&bench.dir.join("export"), bytes * 5 / 2)?;
    let guest = plane.guest(bytes)?;
    fio::fill(&guest.place, bytes)?;
    for _ in 0..generations {
        fio::overwrite(&guest.place, bytes, 4 << 20)?;
        plane.cut(&guest)?;
    }
    let snapshot = plane.xe(&["vm-snapshot", &format!("uuid={}", guest.vm), "new-name-label=exported"])?;
    bench.report.note(format!("export: {} GiB, {generations} generations kept", bytes / GIB));
    let cases = [
        (&PACED_RANDWRITE, "export-randwrite-p99", "export-unbounded-randwrite-p99"),
        (&PACED_RANDREAD, "export-randread-p99", "export-unbounded-randread-p99"),
    ];
    for (load, bounded, unbounded) in cases {
        if bench.wants(bounded) || bench.wants(unbounded) {
            compare(bench, &plane, &guest, &snapshot, bytes, load, [bounded, unbounded])?;
        }
    }
    if bench.wants("export-mb") {
        speed(bench, &plane, &snapshot, bytes)?;
    }
    Ok(())
}

/// Rounds of: quiet, during an export without a bound, during one with.
fn compare(
    bench: &mut Bench,
    plane: &Plane,
    guest: &Guest,
    snapshot: &str,
    bytes: u64,
    load: &Workload,
    [bounded, unbounded]: [&'static str; 2],
) -> Result<()> {
    let (mut quiet, mut free, mut slow) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..bench.options.rounds {
        if round >= 2 && bench.is_late() {
            break;
        }
        let measure = || fio::run(load, &guest.place, bytes, bench.options.seconds, None);
        quiet.push(measure()?);
        free.push(plane.during_export(snapshot, None, measure)?);
        slow.push(plane.during_export(snapshot, Some(BOUND), measure)?);
    }
    let p99 = |runs: &[Figures]| runs.iter().map(|run| run.p99_us).collect::<Vec<f64>>();
    let p50 = |runs: &[Figures]| median(&runs.iter().map(|run| run.p50_us).collect::<Vec<f64>>());
    let ratios = |runs: &[Figures]| runs.iter().zip(&quiet).map(|(run, quiet)| run.p99_us / quiet.p99_us).collect();
    for (id, runs) in [(bounded, &slow), (unbounded, &free)] {
        bench.report.compared(id, p99(runs), ratios(runs));
        bench.report.detail(id, "quiet_p99_us", json!(median(&p99(&quiet))));
        bench.report.detail(id, "p50_us", json!(p50(runs)));
        bench.report.detail(id, "quiet_p50_us", json!(p50(&quiet)));
    }
    bench.report.note(format!(
        "{}: p99 {:.0} us quiet, {:.0} during an export with a bound of {} MiB/s, {:.0} without; p50 {:.0}, {:.0}, {:.0}",
        load.name,
        median(&p99(&quiet)),
        median(&p99(&slow)),
        BOUND >> 20,
        median(&p99(&free)),
        p50(&quiet),
        p50(&slow),
        p50(&free),
    ));
    Ok(())
}

/// Export of the disk as a raw image beside `qemu-img convert` of the same generation to a raw file.
fn speed(bench: &mut Bench, plane: &Plane, snapshot: &str, bytes: u64) -> Result<()> {
    let disk = plane.disk(snapshot)?;
    let mut control = plane.control()?;
    control.call("attach", json!({"token": "convert", "target": disk, "writable": false}))?;
    let Place::Nbd(source) = plane.place("convert") else { bail!("a store is reached over NBD") };
    let (own, theirs) = (bench.dir.join("export.raw"), bench.dir.join("convert.raw"));
    let mb_per_s = |begun: Instant| bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
    let (mut exported, mut converted) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        let begun = Instant::now();
        plane.xe(&["vdi-export", &format!("uuid={disk}"), &format!("filename={}", own.display()), "format=raw"])?;
        exported.push(mb_per_s(begun));
        let begun = Instant::now();
        let to = theirs.to_string_lossy();
        process::output("qemu-img", &["convert", "-f", "raw", "-O", "raw", "-T", "none", &source, &to])?;
        process::output("sync", &[&to])?;
        converted.push(mb_per_s(begun));
        for file in [&own, &theirs] {
            std::fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
        }
    }
    control.call("detach", json!({"token": "convert"}))?;
    let ratios = exported.iter().zip(&converted).map(|(own, theirs)| own / theirs).collect();
    bench.report.note(format!(
        "export of a raw image {:.0} MB/s, qemu-img convert of the same generation {:.0} MB/s",
        median(&exported),
        median(&converted)
    ));
    bench.report.compared("export-mb", exported, ratios);
    bench.report.detail("export-mb", "qemu_img_convert_mb_s", json!(median(&converted)));
    Ok(())
}

/// A control plane with one store.
struct Plane {
    run: PathBuf,
    sr: String,
    _daemon: Server,
    _keeper: Guard,
    _files: Guard,
}

/// A halted machine whose disk is loaded as its guest would.
struct Guest {
    vm: String,
    disk: String,
    place: Place,
}

impl Plane {
    fn start(dir: &Path, bytes: u64) -> Result<Plane> {
        std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        let files = Guard::new(Act::Remove(dir.to_owned()));
        let run = dir.join("run");
        let mut command = Command::new(binary());
        command.arg("daemon").arg("--state-dir").arg(dir.join("state")).arg("--runtime-dir").arg(&run);
        command.arg("--unix-socket").arg(run.join("xapi.sock")).args(["--listen", "127.0.0.1:0"]);
        let daemon = Server::start(command, &dir.join("log"))?;
        let begun = Instant::now();
        while let Err(error) = xe(&run, &["host-list", "--minimal"]) {
            if begun.elapsed() > START {
                return Err(error.context("the control plane does not answer"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        let location = format!("device-config:location={}", dir.join("store").display());
        let size = format!("physical-size={bytes}");
        let sr = xe(&run, &["sr-create", "type=tanada", "name-label=export", &location, &size])?;
        let pid = run.join("sr").join(&sr).join("keeper.pid");
        let pid = std::fs::read_to_string(&pid).with_context(|| format!("reading {}", pid.display()))?;
        let keeper = Guard::new(Act::End(pid.trim().parse().context("the keeper's process id")?));
        Ok(Plane { run, sr, _daemon: daemon, _keeper: keeper, _files: files })
    }

    fn xe(&self, args: &[&str]) -> Result<String> {
        xe(&self.run, args)
    }

    fn control(&self) -> Result<Control> {
        Control::connect(&self.run.join("sr").join(&self.sr).join("control.sock"))
    }

    fn place(&self, token: &str) -> Place {
        let socket = self.run.join("sr").join(&self.sr).join("nbd.sock");
        Place::Nbd(format!("nbd+unix:///{token}?socket={}", socket.display()))
    }

    fn guest(&self, bytes: u64) -> Result<Guest> {
        let vm = self.xe(&["vm-create", "name-label=guest"])?;
        let (sr, size) = (format!("sr-uuid={}", self.sr), format!("disk-size={bytes}"));
        self.xe(&["vm-disk-add", "vm=guest", &size, "device=0", &sr])?;
        let disk = self.disk(&vm)?;
        self.control()?.call("attach", json!({"token": "guest", "target": disk, "writable": true}))?;
        Ok(Guest { vm, disk, place: self.place("guest") })
    }

    fn disk(&self, vm: &str) -> Result<String> {
        self.xe(&["vbd-list", &format!("vm-uuid={vm}"), "params=vdi-uuid", "--minimal"])
    }

    /// A generation that no record knows: only the store has to keep it.
    fn cut(&self, guest: &Guest) -> Result<()> {
        let generation = uuid::Uuid::new_v4();
        let group = json!({"group": [{"volume": guest.disk, "generation": generation}]});
        self.control()?.call("snapshot", group).map(drop)
    }

    /// Measures while exports run one after another. An export that fails is an error: it would have disturbed nobody.
    fn during_export(
        &self,
        snapshot: &str,
        bound: Option<u64>,
        measure: impl FnOnce() -> Result<Figures>,
    ) -> Result<Figures> {
        let mut args =
            vec!["snapshot-export-to-template".to_owned(), format!("uuid={snapshot}"), "filename=".to_owned()];
        args.extend(bound.map(|rate| format!("rate={rate}")));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let exports = scope.spawn(|| -> Result<()> {
                while !over.load(Ordering::Relaxed) {
                    let mut child = command(&self.run, &args).stdout(Stdio::null()).spawn().context("starting xe")?;
                    let status = loop {
                        match child.try_wait()? {
                            Some(status) => break status,
                            None if over.load(Ordering::Relaxed) => {
                                child.kill()?;
                                child.wait()?;
                                return Ok(());
                            }
                            None => thread::sleep(Duration::from_millis(20)),
                        }
                    };
                    if !status.success() {
                        bail!("an export ended with {status}");
                    }
                }
                Ok(())
            });
            // The export is under way before the first request is timed.
            thread::sleep(Duration::from_millis(500));
            let figures = measure();
            over.store(true, Ordering::Relaxed);
            match exports.join() {
                Ok(exported) => exported?,
                Err(_) => bail!("the thread that exports panicked"),
            }
            figures
        })
    }
}

fn command(run: &Path, args: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(binary());
    command.arg("xe").args(args.iter().map(AsRef::as_ref)).env("TANADA_SOCKET", run.join("xapi.sock"));
    command.stdin(Stdio::null());
    command
}

fn xe(run: &Path, args: &[&str]) -> Result<String> {
    let output = command(run, args).output().context("starting xe")?;
    if !output.status.success() {
        bail!("xe {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
