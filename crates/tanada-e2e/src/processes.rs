//! Finding and ending the processes of one scratch directory.

use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

/// Supervisors go first, or they would start again what is ended under them.
const SUPERVISORS_FIRST: [&str; 3] = ["daemon", "blockd-keeper", ""];

/// Ends every process whose command line names `directory`, whose name no other process can know.
pub fn end_all_of(directory: &Path) {
    let name = directory.to_string_lossy().into_owned();
    for word in SUPERVISORS_FIRST {
        for (pid, words) in of(&name) {
            if word.is_empty() || words.iter().any(|w| w == word) {
                // It may be gone already, which is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
    let start = Instant::now();
    while !of(&name).is_empty() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes with their arguments.
fn of(directory: &str) -> Vec<(Pid, Vec<String>)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> =
                command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            let is_ours = pid != std::process::id() as i32 && words.iter().any(|word| word.contains(directory));
            Some((Pid::from_raw(pid)?, words)).filter(|_| is_ours)
        })
        .collect()
}
