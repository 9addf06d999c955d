//! `cargo xtask …`: everything a developer or CI runs.

mod guest;
mod setup;
mod sh;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND
  setup   installs the Debian packages that demo and tests need (as root)
  guest   makes the test guest from Debian packages";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["setup"] => setup::packages(),
        ["guest"] => setup::packages().and_then(|()| guest::build()).map(|guest| println!("{}", guest.disk.display())),
        _ => bail!(USAGE),
    }
}
