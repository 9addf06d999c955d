//! The data plane: one process a store, serving its volumes over NBD, and what belongs to it.
//!
//! ```text
//!   keeper (holds the sockets) --starts, restarts--> blockd
//!     clients ==NBD==> shell (one thread, one ring) <--> engine (decides) <--> ring <--> store file
//!     control plane --JSON lines--> control (threads) --queue, eventfd--> shell
//! ```
//! - [`main_blockd`], [`main_keeper`], [`main_format`], [`main_scrub`], [`main_grow`]: the programs.
//! - `ring`: all of io_uring. `shell`: the turn. `send_thread`: batches of answers that leave by another thread.
//!   `control`: the other socket. `keeper`: the supervisor.

mod ask;
mod blockd;
mod control;
mod format;
mod grow;
mod keeper;
mod kept;
mod listen;
mod options;
mod outgoing;
mod report;
mod ring;
mod scrub;
mod send_thread;
mod shell;
mod signals;
mod slab;
mod store_file;
mod translate;

use std::ffi::OsString;
use std::process::ExitCode;

/// `tanada blockd`: serves one store until it is told to end. `args` are those after the program's words.
pub fn main_blockd(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    log_to_stderr();
    conclude("blockd", blockd::run(args.into_iter().collect()))
}

/// `tanada blockd-keeper`: holds the sockets of one store and keeps its blockd alive.
pub fn main_keeper(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    log_to_stderr();
    conclude("blockd-keeper", keeper::run(args.into_iter().collect()))
}

/// `tanada store format`: makes an empty store.
pub fn main_format(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    conclude("store format", format::run(args.into_iter().collect()))
}

/// `tanada store scrub`: has a served store verify itself, and tells how that stands.
pub fn main_scrub(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    conclude("store scrub", scrub::run(args.into_iter().collect()))
}

/// `tanada store grow`: gives a served store more space.
pub fn main_grow(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    conclude("store grow", grow::run(args.into_iter().collect()))
}

/// Words for the administrator go to standard error; the keeper's caller decides where that leads.
fn log_to_stderr() {
    // Whoever embeds a program may have chosen already.
    let _ = tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).try_init();
}

fn conclude(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tanada {program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
