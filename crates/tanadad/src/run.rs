//! From start to end of the daemon.
//!
//! Start: directories, the lock of the instance, database, the objects that are always there, storage, running
//! machines, and last the doors. End: the doors close, calls under way get a moment, machines are let go. Machines and
//! storage run on; the next start finds them again.

use std::ffi::OsString;
use std::fs::File;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::FlockOperation;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{self, Command, USAGE};
use crate::config::Config;
use crate::context::{Daemon, Handlers};
use crate::db::Db;
use crate::rpc::{messages, setup, task};
use crate::{files, http, nbd, ops, schedule, storage, transfer, vmm};

/// How often ended tasks and unused sessions are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How often machines' logs are looked at: a serial port writes some 10 MiB in a second at most.
const LOGS: Duration = Duration::from_secs(10);
/// Descriptors for as many connections, machines and disks as the other bounds let in.
const DESCRIPTORS: u64 = 65_536;

/// The program: reads options, logs to standard error, runs until it is told to end.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let config = match args::parse(args) {
        Ok(Command::Run(config)) => *config,
        Ok(Command::Help) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("tanada daemon: {error}");
            return ExitCode::from(2);
        }
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_max_level(config.log).with_ansi(colours).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no threads to run on");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every handler there is beside the built-in ones.
pub fn handlers() -> Handlers {
    ops::handlers().into_iter().chain(nbd::handlers()).chain(transfer::handlers()).collect()
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let _instance = prepare(&config)?;
    raise_descriptors();
    let daemon = start(config).await?;
    let disks = nbd::serve(&daemon).await?;
    let server = http::serve(&daemon, transfer::routes()).await?;
    tracing::info!(
        unix = %daemon.config.unix_socket.display(), https = ?server.address, http = ?server.plain_address,
        nbd = ?daemon.nbd.address(), "ready"
    );
    let housekeeping = [
        tokio::spawn(keep_house(daemon.clone())),
        tokio::spawn(clear_up(daemon.clone())),
        tokio::spawn(keep_logs_short(daemon.clone())),
    ];
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending");
    server.stop().await;
    disks.stop().await;
    housekeeping.iter().for_each(|task| task.abort());
    vmm::stop(&daemon).await;
    ops::stop(&daemon).await;
    Ok(())
}

/// Makes the directories and takes the lock of the instance, which lasts as long as the file is open.
fn prepare(config: &Config) -> anyhow::Result<File> {
    for dir in [&config.state_dir, &config.runtime_dir] {
        files::create_private_dir(dir).with_context(|| format!("cannot make directory {}", dir.display()))?;
    }
    let path = config.state_dir.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another daemon runs on {}", config.state_dir.display()))?;
    Ok(lock)
}

async fn start(config: Config) -> anyhow::Result<Arc<Daemon>> {
    let path = config.database();
    let db = Db::open(&path).with_context(|| format!("cannot open the database {}", path.display()))?;
    setup::ensure(&db, &config)?;
    let daemon = Daemon::new(config, db, handlers())?;
    if let Some(file) = &daemon.config.root_password_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let password = text.lines().next().filter(|p| !p.is_empty());
        let password = password.with_context(|| format!("{} holds no password", file.display()))?;
        daemon.passwords.set(password)?;
    }
    ops::start(&daemon).await?;
    vmm::start(&daemon).await?;
    ops::after_machines(&daemon).await;
    transfer::undo_leftovers(&daemon).await?;
    schedule::start(&daemon).await?;
    Ok(daemon)
}

/// What the storage could not do at its time. On its own: it may take long to say no again.
async fn clear_up(daemon: Arc<Daemon>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        ops::reconcile::end_left(&daemon).await;
        storage::end_left(&daemon).await;
    }
}

async fn keep_logs_short(daemon: Arc<Daemon>) {
    let mut clock = tokio::time::interval(LOGS);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        vmm::bound_logs(&daemon).await;
    }
}

/// Without descriptors neither machines nor disks can be reached, and the usual bound is below what the doors let in.
fn raise_descriptors() {
    let bounds = getrlimit(Resource::Nofile);
    let wanted = bounds.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    if bounds.current.is_none_or(|current| current >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..bounds }) {
        tracing::warn!(%error, "the bound on open files stays as it is");
    }
}

async fn keep_house(daemon: Arc<Daemon>) {
    let mut clock = tokio::time::interval(HOUSEKEEPING);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let results =
            [daemon.sessions.expire(&daemon.db), task::collect_garbage(&daemon), setup::refresh_metrics(&daemon.db)];
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "housekeeping failed");
        }
        if let Err(error) = messages::bound(&daemon.db) {
            tracing::warn!(%error, "old messages could not be removed");
        }
        daemon.registrations.expire(&daemon);
    }
}
