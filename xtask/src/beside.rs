//! A command that runs over and over beside something that is measured.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Long enough for a transfer to be under way before the first request is timed.
const HEAD_START: Duration = Duration::from_millis(500);

/// Measures while what `command` makes runs, again each time it has ended. One that fails is an error: it would have disturbed
/// nobody. The last one is killed.
pub fn repeatedly<T>(command: impl Fn() -> Command + Sync, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let others = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                run(command(), &over)?;
            }
            Ok(())
        });
        thread::sleep(HEAD_START);
        let measured = measure();
        over.store(true, Ordering::Relaxed);
        match others.join() {
            Ok(ended) => ended?,
            Err(_) => bail!("the thread that runs the other command panicked"),
        }
        measured
    })
}

fn run(mut command: Command, over: &AtomicBool) -> Result<()> {
    let mut child = command.stdout(Stdio::null()).spawn().with_context(|| format!("starting {command:?}"))?;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("{command:?} ended with {status}"),
            None if over.load(Ordering::Relaxed) => {
                child.kill()?;
                child.wait()?;
                return Ok(());
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::repeatedly;

    #[test]
    fn it_runs_while_something_is_measured_and_its_failure_is_told() {
        assert_eq!(repeatedly(|| Command::new("true"), || Ok(7)).unwrap(), 7);
        let endless = || {
            let mut sleep = Command::new("sleep");
            sleep.arg("1000");
            sleep
        };
        assert_eq!(repeatedly(endless, || Ok(8)).unwrap(), 8);
        let failed = repeatedly(|| Command::new("false"), || Ok(())).unwrap_err();
        assert!(failed.to_string().contains("false"), "{failed}");
    }
}
