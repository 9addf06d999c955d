//! Running other programs: what was run and what it said is in every error.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where built things go: cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The program under test: what `TANADA_BIN` names, or built for the purpose (`dev`: without optimisation).
pub fn tanada(dev: bool) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("TANADA_BIN") {
        return Ok(given.into());
    }
    program("tanada", dev)
}

/// A program of the workspace whose package has its name: the one beside what `TANADA_BIN` names, or built (`dev`: without
/// optimisation).
pub fn program(name: &str, dev: bool) -> Result<PathBuf> {
    let beside = std::env::var_os("TANADA_BIN").map(|given| Path::new(&given).with_file_name(name));
    if let Some(beside) = beside.filter(|beside| beside.is_file()) {
        return Ok(beside);
    }
    println!("building {name}");
    let profile = if dev { "dev" } else { "release" };
    run("cargo", &["build", "--quiet", "--profile", profile, "--package", name])?;
    Ok(target_dir().join(if dev { "debug" } else { "release" }).join(name))
}

/// Runs a program to its end with its output shown; an error where it fails.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<()> {
    let status = command(program, args).status().with_context(|| format!("starting {program}"))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(program, args));
    }
    Ok(())
}

/// Runs a program silently and returns its standard output; its standard error is in the error where it fails.
pub fn output<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<String> {
    let output = command(program, args).output().with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            shown(program, args),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {program}"))
}

fn command<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).stdin(Stdio::null());
    command
}

fn shown<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
    format!("`{program} {}`", args.join(" "))
}
