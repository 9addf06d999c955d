//! `sim-ontap --dir DIR [--listen A:P] [--svm NAME] [--strict] [--job-ms N] [--split-ms N]`
//!
//! Prints one line of JSON with its addresses, then runs until it is killed; tgtd dies with it and the directory brings the
//! same array back. SIGUSR1 breaks all iSCSI connections. Fault rules are read from `DIR/faults.json` (an array of rules)
//! whenever that file changes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sim_ontap::{Handle, Options};
use tokio::signal::unix::{SignalKind, signal};

/// How often the file of fault rules is looked at.
const LOOK: Duration = Duration::from_millis(200);

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let options = options(std::env::args().skip(1))?;
    let (dir, svm) = (options.dir.clone(), options.svms.first().cloned().unwrap_or_default());
    let handle = sim_ontap::start(options)?;
    let portals: Vec<String> = handle.portals(&svm).iter().map(SocketAddr::to_string).collect();
    let facts = json!({
        "url": handle.url(), "address": handle.address().to_string(), "ca": handle.ca(), "fingerprint": handle.fingerprint(),
        "svm": svm, "portals": portals, "user": "admin", "password": "netapp1!",
    });
    println!("{facts}");
    std::io::stdout().flush()?;
    std::thread::scope(|scope| {
        scope.spawn(|| break_connections(&handle));
        watch_faults(&handle, &dir.join("faults.json"))
    })
}

/// Each SIGUSR1 breaks all iSCSI connections, as a controller that restarts does.
fn break_connections(handle: &Handle) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime for signals")?;
    runtime.block_on(async {
        let mut asked = signal(SignalKind::user_defined1()).context("listening for SIGUSR1")?;
        while asked.recv().await.is_some() {
            handle.cut_iscsi();
        }
        Ok(())
    })
}

fn watch_faults(handle: &Handle, file: &Path) -> ! {
    let mut seen: Option<SystemTime> = None;
    loop {
        let changed = std::fs::metadata(file).and_then(|facts| facts.modified()).ok();
        if changed != seen {
            seen = changed;
            let text = std::fs::read_to_string(file).unwrap_or_else(|_| "[]".into());
            if let Err(error) = handle.faults().set_text(&text) {
                tracing::warn!(file = %file.display(), %error, "these are no fault rules");
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::new("");
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--dir" => options.dir = value()?.into(),
            "--listen" => options.listen = value()?.parse().context("--listen takes ADDRESS:PORT")?,
            "--svm" => {
                let name = value()?;
                for account in options.accounts.iter_mut().filter(|account| account.svm.is_some()) {
                    account.svm = Some(name.clone());
                }
                options.svms = vec![name];
            }
            "--strict" => options.strict = true,
            "--lun-jobs" => options.lun_jobs = true,
            "--job-ms" => options.job_ms = value()?.parse().context("--job-ms takes milliseconds")?,
            "--split-ms" => options.split_ms = value()?.parse().context("--split-ms takes milliseconds")?,
            _ => bail!("unknown option {arg}; see the top of sims/ontap/src/main.rs"),
        }
    }
    if options.dir.as_os_str().is_empty() {
        bail!("--dir DIR is needed: where the array keeps its state and disks");
    }
    Ok(options)
}
