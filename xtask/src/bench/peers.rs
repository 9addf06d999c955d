//! Those who are measured: qemu-nbd over raw and qcow2 files, and Tanada's blockd.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{VOLUME_BYTES, fio, report::Row};
use crate::sh;

const VOLUME: &str = "11111111-1111-4111-8111-111111111111";
/// Size of the volumes that are written while they are cut.
const PAUSE_BYTES: u64 = 256 << 20;
/// Cuts and clones measured at the end.
const CUTS: usize = 50;

/// A server that is measured.
pub struct Peer {
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    QemuNbd { file: PathBuf, format: &'static str, socket: PathBuf, server: Option<Child> },
    Tanada { dir: PathBuf, next: usize },
}

/// The three of every run.
pub fn all(dir: &Path) -> Result<Vec<Peer>> {
    let raw = dir.join("peer.raw");
    File::create(&raw)?.set_len(VOLUME_BYTES)?;
    let qcow2 = dir.join("peer.qcow2");
    sh::output("qemu-img", &["create", "-q", "-f", "qcow2", &qcow2.to_string_lossy(), &VOLUME_BYTES.to_string()])?;
    Ok(vec![
        Peer {
            name: "qemu-nbd raw",
            kind: Kind::QemuNbd { file: raw, format: "raw", socket: dir.join("raw.sock"), server: None },
        },
        Peer {
            name: "qemu-nbd qcow2",
            kind: Kind::QemuNbd { file: qcow2, format: "qcow2", socket: dir.join("qcow2.sock"), server: None },
        },
        Peer { name: "tanada", kind: start_tanada(dir)? },
    ])
}

fn start_tanada(dir: &Path) -> Result<Kind> {
    let store = dir.join("peer.store").to_string_lossy().into_owned();
    let binary = sh::target_dir().join("release/tanada").to_string_lossy().into_owned();
    let run = dir.join("run");
    std::fs::create_dir_all(&run)?;
    sh::output(&binary, &["store", "format", &store, "--size", &(VOLUME_BYTES * 16).to_string()])?;
    sh::output(&binary, &["blockd-keeper", "--daemonize", "--store", &store, "--runtime-dir", &run.to_string_lossy()])?;
    let dir = run;
    control(&dir, "create_volume", json!({"volume": VOLUME, "size": VOLUME_BYTES}))?;
    control(&dir, "attach", json!({"token": "bench", "target": VOLUME, "writable": true}))?;
    Ok(Kind::Tanada { dir, next: 0 })
}

impl Peer {
    /// Where fio reaches it; starts the server where it is not running.
    pub fn uri(&mut self) -> Result<String> {
        match &mut self.kind {
            Kind::QemuNbd { file, format, socket, server } => {
                if server.is_none() {
                    *server = Some(serve(file, format, socket)?);
                }
                Ok(format!("nbd+unix:///?socket={}", socket.display()))
            }
            Kind::Tanada { dir, .. } => Ok(format!("nbd+unix:///bench?socket={}", dir.join("nbd.sock").display())),
        }
    }

    /// Takes generations with overwrites between them. Raw files know none: they are only overwritten.
    pub fn keep_generations(&mut self, count: usize, overwrites: u32) -> Result<()> {
        for number in 0..count {
            let uri = self.uri()?;
            fio::overwrite(&uri, overwrites)?;
            match &mut self.kind {
                Kind::QemuNbd { format: "raw", .. } => {}
                Kind::QemuNbd { file, server, .. } => {
                    stop(server.take())?;
                    sh::output("qemu-img", &["snapshot", "-c", &format!("g{number}"), &file.to_string_lossy()])?;
                }
                Kind::Tanada { dir, next } => {
                    *next += 1;
                    control(dir, "snapshot", json!({"group": [{"volume": VOLUME, "generation": generation(*next)}]}))?;
                }
            }
        }
        Ok(())
    }

    /// What only this server can be asked: snapshot and clone times.
    pub fn own_figures(&mut self) -> Result<Vec<Row>> {
        let Kind::Tanada { dir, next } = &mut self.kind else { return Ok(Vec::new()) };
        let mut cuts = Vec::new();
        let mut clones = Vec::new();
        for _ in 0..CUTS {
            *next += 1;
            let start = Instant::now();
            control(dir, "snapshot", json!({"group": [{"volume": VOLUME, "generation": generation(*next)}]}))?;
            cuts.push(start.elapsed().as_secs_f64() * 1e6);
            let clone = format!("33333333-3333-4333-8333-{:012}", *next);
            let start = Instant::now();
            control(dir, "clone", json!({"source": generation(*next), "volume": clone}))?;
            clones.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let mut rows =
            vec![Row::spread("snapshot, durable, idle", "us", cuts), Row::spread("clone, durable", "us", clones)];
        for disks in [1, 3] {
            rows.push(pause(dir, disks)?);
        }
        Ok(rows)
    }

    pub fn stop(self) -> Result<()> {
        match self.kind {
            Kind::QemuNbd { server, .. } => stop(server),
            Kind::Tanada { dir, .. } => {
                let pid = std::fs::read_to_string(dir.join("keeper.pid")).context("the keeper's pid file")?;
                sh::output("kill", &[pid.trim()]).map(drop)
            }
        }
    }
}

/// The slowest write of those that overlapped each of [`CUTS`] group snapshots, while each volume is written at random at
/// depth 32: an upper bound of what a snapshot makes writers wait.
fn pause(dir: &Path, disks: usize) -> Result<Row> {
    let volume = |disk: usize| format!("44444444-4444-4444-8444-{:012}", disks * 100 + disk);
    let mut loads = Vec::new();
    for disk in 0..disks {
        let token = format!("pause-{disks}-{disk}");
        control(dir, "create_volume", json!({"volume": volume(disk), "size": PAUSE_BYTES}))?;
        control(dir, "attach", json!({"token": token, "target": volume(disk), "writable": true}))?;
        loads.push(fio::load(&format!("nbd+unix:///{token}?socket={}", dir.join("nbd.sock").display()), PAUSE_BYTES)?);
    }
    let mut slowest = Vec::new();
    for cut in 0..CUTS {
        let pair = |disk| json!({"volume": volume(disk), "generation": format!("55555555-5555-4555-8{disks:01}{disk:02}-{cut:012}")});
        let group: Vec<Value> = (0..disks).map(pair).collect();
        // Paced, so that each cut meets a steady load; how long exactly does not matter.
        std::thread::sleep(Duration::from_millis(100));
        let answer = control(dir, "snapshot", json!({"group": group}))?;
        slowest.push(
            answer["cut"]["slowest_write_us"].as_f64().with_context(|| format!("a cut is answered with {answer}"))?,
        );
    }
    for mut load in loads {
        load.kill().context("ending fio")?;
        load.wait().context("waiting for fio")?;
    }
    Ok(Row::spread(&format!("slowest write during a snapshot of {disks} loaded disk(s)"), "us", slowest))
}

fn generation(number: usize) -> String {
    format!("22222222-2222-4222-8222-{number:012}")
}

fn serve(file: &Path, format: &str, socket: &Path) -> Result<Child> {
    let server = Command::new("qemu-nbd")
        .args(["-f", format, "--cache=none", "--aio=io_uring", "-t", "-e", "8", "-k"])
        .args([socket, file])
        .stdin(Stdio::null())
        // It complains about every client that hangs up, as fio does.
        .stderr(Stdio::null())
        .spawn()
        .context("starting qemu-nbd")?;
    let start = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("qemu-nbd does not listen on {}", socket.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}

fn stop(server: Option<Child>) -> Result<()> {
    if let Some(mut server) = server {
        // SAFETY: kill has no preconditions; the child is ours and not yet waited for.
        unsafe { libc::kill(server.id() as i32, libc::SIGTERM) };
        server.wait().context("waiting for qemu-nbd")?;
    }
    Ok(())
}

/// One command to blockd; its answer.
fn control(dir: &Path, method: &str, params: Value) -> Result<Value> {
    let socket = dir.join("control.sock");
    let stream = UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    lines.next().context("no greeting")??;
    writeln!(&stream, "{}", json!({"id": 1, "method": method, "params": params}))?;
    loop {
        let line = lines.next().context("blockd closed the connection")??;
        let answer: Value = serde_json::from_str(&line).context("blockd's answer")?;
        if answer["id"] == 1 {
            return match answer.get("error") {
                Some(error) => bail!("{method}: {error}"),
                None => Ok(answer["ok"].clone()),
            };
        }
    }
}
