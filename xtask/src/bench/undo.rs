//! What has to be put right at the end, however the end comes: servers ended, mounts undone, files removed.
//!
//! Each thing made is registered with the act that undoes it. Dropping the guard performs the act; SIGINT and SIGTERM
//! perform all that are left, newest first, and end the program. A SIGKILL leaves everything behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A process that does not heed SIGTERM for so long is killed.
const GRACE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone)]
pub enum Act {
    /// SIGTERM to a child of ours, its end awaited.
    End(i32),
    Unmount(PathBuf),
    DetachLoop(String),
    /// A file or a folder with all that is in it.
    Remove(PathBuf),
}

/// Set once a signal has come.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Does not return where a signal is ending the program: what fails then is no news.
pub fn stop_if_ending() {
    while ENDING.load(Ordering::Acquire) {
        std::thread::park();
    }
}

static LEFT: Mutex<(u64, BTreeMap<u64, Act>)> = Mutex::new((0, BTreeMap::new()));

/// Performs its act when dropped.
#[derive(Debug)]
#[must_use]
pub struct Guard(u64);

impl Guard {
    pub fn new(act: Act) -> Guard {
        let mut left = LEFT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        left.0 += 1;
        let number = left.0;
        left.1.insert(number, act);
        Guard(number)
    }

    /// Nothing is left to undo.
    pub fn forget(self) {
        drop(take(self.0));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(act) = take(self.0) {
            perform(&act);
        }
    }
}

fn take(number: u64) -> Option<Act> {
    LEFT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1.remove(&number)
}

/// Call first, before other threads exist: they must not take these signals.
pub fn watch_signals() {
    // SAFETY: the set is initialised by sigemptyset before use; the calls have no other preconditions.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both point to live values of ours.
        unsafe { libc::sigwait(&set, &mut signal) };
        ENDING.store(true, Ordering::Release);
        eprintln!("bench: ended by signal {signal}; cleaning up");
        loop {
            let newest = LEFT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1.pop_last();
            let Some((_, act)) = newest else { break };
            perform(&act);
        }
        std::process::exit(128 + signal);
    });
}

/// Children must not inherit the blocked signals. Async-signal-safe, for use between fork and exec.
pub fn unblock_signals() -> std::io::Result<()> {
    // SAFETY: the set is initialised by sigfillset before use.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        // Servers end with the thread that measures, even where that one is killed.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
    }
    Ok(())
}

fn perform(act: &Act) {
    let failed = match act {
        Act::End(pid) => return end(*pid),
        Act::Unmount(path) => !quietly(Command::new("umount").arg(path)),
        Act::DetachLoop(device) => !quietly(Command::new("losetup").args(["--detach", device])),
        Act::Remove(path) if path.is_dir() => fs::remove_dir_all(path).is_err(),
        Act::Remove(path) => path.exists() && fs::remove_file(path).is_err(),
    };
    if failed {
        eprintln!("bench: could not undo: {act:?}");
    }
}

fn quietly(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn end(pid: i32) {
    // SAFETY: kill has no preconditions; the child is ours and not yet waited for.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let start = Instant::now();
    loop {
        // SAFETY: as above; no status is asked for.
        if unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } != 0 {
            return;
        }
        if start.elapsed() > GRACE {
            eprintln!("bench: process {pid} did not end on SIGTERM; killing it");
            // SAFETY: as above.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
