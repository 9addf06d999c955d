//! `sim-agent --socket PATH [--scenario NAME | --file FILE]`: a stand-in as a program.
//!
//! Prints one line of JSON with the facts about its guest, and another after each command on its standard input: `facts`,
//! `advance MS`, `release`, `kill`, `restart`, `reset`, `disconnect`. Ends with its input, or on a signal.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sim_agent::{Agent, Scenario, named};

const USAGE: &str = "\
usage: sim-agent --socket PATH [--scenario NAME | --file FILE]
  --socket PATH     where to listen; must not exist
  --scenario NAME   how the guest behaves; --list names them; windows-2022 if none is given
  --file FILE       the same as JSON, see sims/agent/src/scenario.rs
  --list            names the scenarios and ends
Commands on standard input: facts, advance MS, release, kill, restart, reset, disconnect.";

fn main() -> Result<()> {
    let Some((socket, scenario)) = options(std::env::args().skip(1))? else { return Ok(()) };
    let agent = Agent::start(&socket, scenario).with_context(|| socket.display().to_string())?;
    let outcome = serve(&agent);
    drop(agent);
    // Its name goes with it, as QEMU's socket goes with QEMU.
    std::fs::remove_file(&socket).with_context(|| socket.display().to_string())?;
    outcome
}

fn serve(agent: &Agent) -> Result<()> {
    tell(agent)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("reading commands")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] | ["facts"] => {}
            ["advance", ms] => agent.advance(Duration::from_millis(ms.parse().context("advance takes milliseconds")?)),
            ["release"] => agent.release(),
            ["kill"] => agent.kill(),
            ["restart"] => agent.restart(),
            ["reset"] => agent.reset(),
            ["disconnect"] => agent.disconnect(),
            _ => bail!("{line:?} is not known\n{USAGE}"),
        }
        tell(agent)?;
    }
    Ok(())
}

fn tell(agent: &Agent) -> Result<()> {
    let facts = agent.facts();
    let line = json!({
        "held": facts.is_held, "says_frozen": facts.says_frozen, "alive": facts.is_alive, "busy": facts.is_busy,
        "client": facts.has_client, "freezes": facts.freezes, "thaws": facts.thaws, "commands": agent.commands(),
    });
    println!("{line}");
    std::io::stdout().flush().context("telling the facts")
}

/// None where there is nothing more to do.
fn options(mut words: impl Iterator<Item = String>) -> Result<Option<(PathBuf, Scenario)>> {
    let (mut socket, mut scenario) = (None, Scenario::default());
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--list" => {
                named().iter().for_each(|named| println!("{:<32} {}", named.name, named.what));
                return Ok(None);
            }
            "--help" => {
                println!("{USAGE}");
                return Ok(None);
            }
            "--socket" => socket = Some(PathBuf::from(value()?)),
            "--scenario" => {
                let name = value()?;
                let found = named().into_iter().find(|named| named.name == name);
                scenario = found.with_context(|| format!("{name} is no scenario; --list names them"))?.scenario;
            }
            "--file" => {
                let file = value()?;
                let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
                scenario = serde_json::from_str(&text).with_context(|| file.clone())?;
            }
            _ => bail!("{word} is not known\n{USAGE}"),
        }
    }
    match socket {
        Some(socket) => Ok(Some((socket, scenario))),
        None => bail!("--socket is missing\n{USAGE}"),
    }
}
