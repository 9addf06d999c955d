//! Letting a process make a mistake, and seeing whether it is caught.

use std::fmt;
use std::io::Read;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::catalogue::{Catcher, Mistake};
use crate::scratch::{Scratch, WANTED};

/// A catcher ends by itself, a run of the simulation after so many steps. One that takes so much longer than twice its
/// time hangs, however much else the machine has to do.
const LAST_RUN: Duration = Duration::from_secs(60);

/// What became of a mistake.
#[derive(Debug)]
pub enum Caught {
    By {
        catcher: Catcher,
        after: Duration,
        how: String,
    },
    /// Noticed, but not by whom its file names.
    ByAnother {
        expected: Catcher,
        catcher: Catcher,
        how: String,
    },
    Not,
}

impl Caught {
    pub fn is_as_expected(&self) -> bool {
        matches!(self, Caught::By { .. })
    }
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caught::By { catcher, after, how } => {
                write!(f, "caught by {catcher} after {:.1} s: {how}", after.as_secs_f64())
            }
            Caught::ByAnother { expected, catcher, how } => {
                write!(f, "NOT CAUGHT by {expected}, but by {catcher}: {how}")
            }
            Caught::Not => f.write_str("NOT CAUGHT"),
        }
    }
}

/// Lets the expected catcher try, then, where it fails, the others.
pub fn catch(scratch: &Scratch, mistake: &Mistake, time: Duration) -> Result<Caught, String> {
    let expected = mistake.catcher;
    let begun = Instant::now();
    if let Some(how) = attempt(scratch, mistake, expected, time)? {
        return Ok(Caught::By { catcher: expected, after: begun.elapsed(), how });
    }
    for catcher in Catcher::ALL.into_iter().filter(|catcher| *catcher != expected) {
        if let Some(how) = attempt(scratch, mistake, catcher, time)? {
            return Ok(Caught::ByAnother { expected, catcher, how });
        }
    }
    Ok(Caught::Not)
}

/// How the catcher noticed it; `None` where it did not.
fn attempt(scratch: &Scratch, mistake: &Mistake, catcher: Catcher, time: Duration) -> Result<Option<String>, String> {
    let programs = match catcher {
        Catcher::Model => with(scratch.tests(&["tanada_engine"]), &["model::"]),
        Catcher::Tests => {
            let names = [
                "tanada_engine",
                "basics",
                "edges",
                "failing",
                "limits",
                "pairs",
                "read_ahead",
                "ring",
                "tanada_format",
                "checker",
                "roundtrip",
            ];
            with(scratch.tests(&names), &["--skip", "model::"])
        }
        Catcher::Sim(kind) => {
            let seconds = time.as_secs().to_string();
            let of_kind = kind.map(|kind| ["--kind", kind.name()]);
            let fixed = ["--seed", "1", "--runs", "1000000", "--seconds", &seconds];
            with(
                vec![scratch.simulation()],
                &[&fixed[..], of_kind.as_ref().map_or(&[], |of_kind| &of_kind[..])].concat(),
            )
        }
        Catcher::Replay => with(scratch.tests(&["seeds"]), &["every_subset"]),
        Catcher::Rot => with(scratch.tests(&["seeds"]), &["flipped_bit"]),
    };
    for mut program in programs {
        let child = program.env(WANTED, &mistake.name).spawn();
        let child = child.map_err(|error| format!("starting the {catcher}: {error}"))?;
        if let Some(how) = end_of(child, time * 2 + LAST_RUN)? {
            return Ok(Some(how));
        }
    }
    Ok(None)
}

fn with(mut programs: Vec<Command>, arguments: &[&str]) -> Vec<Command> {
    for program in &mut programs {
        program.args(arguments);
    }
    programs
}

/// What a failing process said last; `None` where it succeeded. One that does not end by `limit` is stopped: it hangs,
/// which is a way of failing.
fn end_of(mut child: Child, limit: Duration) -> Result<Option<String>, String> {
    let mut reader = child.stdout.take();
    let said = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(reader) = &mut reader {
            let _ = reader.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let mut errors = child.stderr.take();
    let complained = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(errors) = &mut errors {
            let _ = errors.read_to_end(&mut bytes);
        }
    });
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if begun.elapsed() > limit => {
                child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let said = said.join().unwrap_or_default();
    let _ = complained.join();
    Ok(match status {
        None => Some("it does not end".to_owned()),
        Some(status) if status.success() => None,
        Some(_) => Some(telling(&said)),
    })
}

/// The line of a failing test or run that says what is wrong, not too long.
fn telling(said: &str) -> String {
    let panic = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    let line =
        said.lines().find(|line| line.contains("is broken")).or(panic).or(said.lines().last()).unwrap_or_default();
    line.chars().take(160).collect()
}
