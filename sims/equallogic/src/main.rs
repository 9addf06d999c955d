//! `sim-equallogic`: a simulated group as a program. Prints one line of JSON once it serves, and ends on SIGINT or SIGTERM.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sim_equallogic::{Handle, Options, start};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: sim-equallogic --dir DIR [--ssh-port PORT] [--portal ADDRESS:PORT] [--group NAME] \
                     [--password PASSWORD] [--pool NAME=MB]... [--sessions N]
Faults: DIR/faults.json, a JSON array of rules, is read whenever it changes. SIGUSR1 restarts the group.";

/// How often the file of fault rules is looked at.
const LOOK: Duration = Duration::from_millis(200);

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let options = parse(std::env::args().skip(1))?;
    let rules = options.dir.join("faults.json");
    let handle = start(options)?;
    let ready = serde_json::json!({
        "ssh": handle.ssh().to_string(),
        "portal": handle.portal().to_string(),
        "fingerprint": handle.fingerprint(),
        "user": "grpadmin",
    });
    println!("{ready}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the main thread")?;
    runtime.block_on(async {
        let mut stop = signal(SignalKind::terminate())?;
        let mut restart = signal(SignalKind::user_defined1())?;
        let mut look = tokio::time::interval(LOOK);
        let mut known = None;
        loop {
            tokio::select! {
                _ = stop.recv() => return Ok(()),
                done = tokio::signal::ctrl_c() => return done.context("waiting for SIGINT"),
                _ = restart.recv() => handle.restart(),
                _ = look.tick() => {
                    let changed = fs::metadata(&rules).and_then(|facts| facts.modified()).ok();
                    if changed != known {
                        known = changed;
                        read_rules(&handle, &rules);
                    }
                }
            }
        }
    })
}

/// No file is no rules; a bad one leaves those that were.
fn read_rules(handle: &Handle, path: &Path) {
    let text = fs::read_to_string(path).unwrap_or_else(|_| "[]".into());
    if let Err(error) = handle.faults().set_text(&text) {
        tracing::error!(%error, path = %path.display(), "these are not rules for faults");
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::new(PathBuf::new());
    let mut pools = Vec::new();
    while let Some(word) = words.next() {
        if word == "--help" {
            println!("{USAGE}");
            std::process::exit(0);
        }
        let value = words.next().with_context(|| format!("{word} needs a value\n{USAGE}"))?;
        let bad = || format!("{word} {value} is not understood\n{USAGE}");
        match word.as_str() {
            "--dir" => options.dir = value.into(),
            "--ssh-port" => {
                let port = value.parse().with_context(bad)?;
                options.ssh = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
            }
            "--ssh" => options.ssh = value.parse().with_context(bad)?,
            "--portal" => options.portal = value.parse().with_context(bad)?,
            "--group" => options.group = value,
            "--password" => options.password = value,
            "--sessions" => options.sessions_max = value.parse().with_context(bad)?,
            "--pool" => {
                let (name, mb) = value.split_once('=').with_context(bad)?;
                pools.push((name.to_string(), mb.parse().with_context(bad)?));
            }
            _ => bail!("{word} is not known\n{USAGE}"),
        }
    }
    if options.dir.as_os_str().is_empty() {
        bail!("--dir is missing\n{USAGE}");
    }
    if !pools.is_empty() {
        options.pools = pools;
    }
    Ok(options)
}
