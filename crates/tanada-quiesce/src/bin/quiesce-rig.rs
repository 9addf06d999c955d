//! For tests: a process that plays the daemon's part of the sequence over an agent's socket, and can be killed at any
//! step. It starts itself as the guard.
//!
//! `quiesce-rig manage SOCKET STOP-AT CUT-MS WINDOW-MS THAW-MS` prints a line at each step it reaches (`probed`, `owed`, `cutting`,
//! `cut`, `judged`, `paid`, then the verdict's level and cause) and stays at the step named STOP-AT until it reads a line.
//!
//! Beside a socket with a file named `guard` it is a guard that has gone mad: it says what is in the file and hangs.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tanada_qemu::agent::GuestAgent;
use tanada_quiesce::guard::client::{Ledger, Limits};
use tanada_quiesce::probe::probe;
use tanada_quiesce::sequence::{self, Request};
use tanada_quiesce::{Cause, Settings, guard, verdict};

/// Enough for a loaded machine; what is to hang hangs longer.
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|word| word == "quiesce-guard") {
        if let Some(lines) =
            args.get(2).and_then(|socket| std::fs::read(Path::new(socket).with_file_name("guard")).ok())
        {
            return go_mad(&lines);
        }
        return guard::process::main(args.into_iter().skip(1));
    }
    let words: Vec<&str> = args.iter().filter_map(|word| word.to_str()).collect();
    let ["manage", socket, stop_at, cut_ms, window_ms, thaw_ms] = words.as_slice() else {
        eprintln!("usage: quiesce-rig manage SOCKET STOP-AT CUT-MS WINDOW-MS THAW-MS");
        return ExitCode::from(2);
    };
    let (Ok(cut_ms), Ok(window_ms), Ok(thaw_ms)) = (cut_ms.parse(), window_ms.parse(), thaw_ms.parse()) else {
        eprintln!("quiesce-rig: times are milliseconds");
        return ExitCode::from(2);
    };
    let steps = Arc::new(Steps { stop_at: (*stop_at).to_owned(), paid: Mutex::default(), told: Condvar::new() });
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quiesce-rig: {error}");
            return ExitCode::FAILURE;
        }
    };
    let [cut, window, thaw] = [cut_ms, window_ms, thaw_ms].map(Duration::from_millis);
    runtime.block_on(manage(Path::new(socket), &steps, cut, Limits { freeze: LIMIT, window, thaw }))
}

/// Its standard input is the daemon's door.
fn go_mad(lines: &[u8]) -> ExitCode {
    let door = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    if let Err(error) = door.and_then(|mut door| door.write_all(lines)) {
        eprintln!("quiesce-rig: {error}");
        return ExitCode::FAILURE;
    }
    loop {
        std::thread::park();
    }
}

/// The steps reached, told on standard output.
struct Steps {
    stop_at: String,
    paid: Mutex<bool>,
    told: Condvar,
}

impl Steps {
    fn reach(&self, step: &str) {
        println!("{step}");
        // Whoever reads acts on the line at once.
        let _ = std::io::stdout().flush();
        if step == self.stop_at && !matches!(std::io::stdin().read_line(&mut String::new()), Ok(1..)) {
            loop {
                std::thread::park();
            }
        }
    }

    /// The end of a debt may be told from the background.
    fn wait_until_paid(&self) {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        while !*paid {
            paid = self.told.wait(paid).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Ledger for Steps {
    fn owe(&self) -> Result<(), String> {
        self.reach("owed");
        Ok(())
    }

    fn paid(&self) {
        self.reach("paid");
        *self.paid.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }
}

async fn manage(socket: &Path, steps: &Arc<Steps>, cut: Duration, limits: Limits) -> ExitCode {
    let agent = GuestAgent::new(socket);
    let probe = match probe(&agent).await {
        Ok(probe) => probe,
        Err((_, downgrade)) => {
            println!("crash {}", downgrade.cause.map_or("", Cause::code));
            return ExitCode::SUCCESS;
        }
    };
    steps.reach("probed");
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let settings = Settings::default();
    let request = Request {
        program: &program,
        agent: &agent,
        probe: &probe,
        settings: &settings,
        limits,
        expected: Duration::ZERO,
        insist: false,
    };
    let ledger: Arc<dyn Ledger> = steps.clone();
    let cutting = async {
        steps.reach("cutting");
        tokio::time::sleep(cut).await;
        steps.reach("cut");
    };
    let outcome = sequence::run(&request, &ledger, cutting).await;
    let verdict = verdict::judge(&outcome.evidence);
    steps.reach("judged");
    steps.wait_until_paid();
    let cause = verdict.downgrade.and_then(|downgrade| downgrade.cause).map_or("-", Cause::code);
    println!("{} {cause}", verdict.level.name());
    ExitCode::SUCCESS
}
