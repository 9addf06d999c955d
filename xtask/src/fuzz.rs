//! `cargo xtask fuzz`: the parsers of outside bytes before anything that outside may send.
//!
//! ```text
//!   fuzz/corpus/T       inputs that reach everything so far; small, kept in the repository
//!   fuzz/regressions/T  inputs that once broke something; replayed for ever
//!   fuzz/found/T        what a run adds; not kept, `--keep` merges what reaches more into the corpus
//!   fuzz/artifacts/T    an input that broke something now
//! ```
//! The fuzzer needs a nightly toolchain and `cargo-fuzz`. Where there is no nightly toolchain, the kept inputs are
//! replayed with the stable one, and that is said.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::sh;

/// All targets, in the order in which they run.
pub const TARGETS: [&str; 4] = ["superblock", "store", "nbd", "image"];

/// What one input may take: memory of the whole process in MiB; seconds by the clock on the wall, on machines that do
/// other things, too.
const MEMORY_MIB: u32 = 2048;
const INPUT_SECONDS: u32 = 600;
/// Inputs are scripts with so many changes at most: what comes behind them would not be looked at.
const INPUT_BYTES_MAX: [(&str, u32); 4] = [("superblock", 256), ("store", 320), ("nbd", 2048), ("image", 256)];

/// Inputs that CI tries, the same ones each time for the same code: half a minute of each target or so.
const SHORT_INPUTS: [(&str, u64); 4] =
    [("superblock", 20_000), ("store", 5_000), ("nbd", 1_000_000), ("image", 100_000)];

/// How long a target runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Seconds(u64),
    /// So many inputs, from a fixed seed.
    Inputs(u64),
}

/// What the command line may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Seconds for each target.
    pub seconds: u64,
    /// Targets to run; all where none is named.
    pub targets: Vec<String>,
    /// Merges what was found into the corpus instead of running.
    pub keep: bool,
}

impl Options {
    pub fn parse(args: &[&str]) -> Result<Options> {
        let mut options = Options { seconds: 60, targets: Vec::new(), keep: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--minutes" => {
                    let value = args.next().context("--minutes needs a number")?;
                    let minutes: u64 =
                        value.parse().with_context(|| format!("--minutes {value}: a whole number expected"))?;
                    options.seconds = 60 * minutes;
                }
                "--keep" => options.keep = true,
                target if TARGETS.contains(&target) => options.targets.push(target.to_owned()),
                other => bail!("fuzz: {other} is not known; --minutes N, --keep and targets ({TARGETS:?}) are"),
            }
        }
        if options.targets.is_empty() {
            options.targets = TARGETS.map(str::to_owned).to_vec();
        }
        Ok(options)
    }
}

/// Runs the targets, or merges what earlier runs found.
pub fn run(options: &Options) -> Result<()> {
    if !has_nightly() {
        bail!("the fuzzer needs a nightly toolchain: `rustup toolchain install nightly`");
    }
    install()?;
    for target in &options.targets {
        if options.keep { keep(target)? } else { fuzz(target, Length::Seconds(options.seconds))? }
    }
    Ok(())
}

/// What CI runs: the kept inputs with the stable toolchain and, where there is a nightly one, a fixed run of the fuzzer,
/// so that what it says depends on the code alone.
pub fn short() -> Result<()> {
    let manifest = folder("Cargo.toml").to_string_lossy().into_owned();
    sh::run("cargo", &["test", "--quiet", "--manifest-path", &manifest])?;
    if !has_nightly() {
        println!("fuzz: kept inputs replayed; no nightly toolchain here, so nothing new was tried");
        return Ok(());
    }
    install()?;
    SHORT_INPUTS.iter().try_for_each(|(target, inputs)| fuzz(target, Length::Inputs(*inputs)))
}

fn folder(name: &str) -> PathBuf {
    sh::root().join("fuzz").join(name)
}

fn has_nightly() -> bool {
    succeeds("cargo", &["+nightly", "--version"])
}

fn install() -> Result<()> {
    if succeeds("cargo", &["fuzz", "--version"]) {
        return Ok(());
    }
    println!("installing cargo-fuzz");
    sh::run("cargo", &["install", "--quiet", "--locked", "cargo-fuzz"])
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn fuzz(target: &str, length: Length) -> Result<()> {
    println!("fuzz {target}: {length:?}");
    let mut folders = ["found", "corpus", "regressions"].map(|name| folder(name).join(target));
    if let Length::Inputs(_) = length {
        // A fixed run begins with what the repository keeps.
        folders[0] = folder("found").join(format!("{target}-fixed"));
        if folders[0].exists() {
            std::fs::remove_dir_all(&folders[0]).with_context(|| format!("clearing {}", folders[0].display()))?;
        }
    }
    for folder in &folders {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let end = match length {
        Length::Seconds(seconds) => vec![format!("-max_total_time={seconds}")],
        Length::Inputs(inputs) => vec![format!("-runs={inputs}"), "-seed=1".to_owned()],
    };
    let mut limits = vec![
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-timeout={INPUT_SECONDS}"),
        "-print_final_stats=1".to_owned(),
    ];
    let bytes_max = INPUT_BYTES_MAX.iter().find(|(name, _)| *name == target);
    limits.extend(bytes_max.map(|(_, bytes)| format!("-max_len={bytes}")));
    limits.extend(end);
    libfuzzer(target, &folders, &limits)
}

/// Adds to the corpus what reaches code that it does not reach, the smallest inputs first.
fn keep(target: &str) -> Result<()> {
    let folders = ["corpus", "found"].map(|name| folder(name).join(target));
    libfuzzer(target, &folders, &["-set_cover_merge=1".to_owned()])
}

/// The code is safe Rust but for the buffers: no sanitizer, which is five times the speed. Overflow checks and debug
/// assertions are on. Inputs of the stores' targets are scripts, in which no number of the code is found: tracing
/// comparisons there would only slow down what computes checksums.
fn libfuzzer(target: &str, folders: &[PathBuf], options: &[String]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz", "run", "--sanitizer", "none", "--features", "fuzzer", "--no-trace-compares"]);
    command.arg(target).args(folders).arg("--").args(options).current_dir(sh::root()).stdin(Stdio::null());
    let status = command.status().context("starting cargo fuzz")?;
    if !status.success() {
        bail!("target {target} ended with {status}; the input is in {}", folder("artifacts").join(target).display());
    }
    Ok(())
}
