//! `tanada driver-test`: the conformance suite over an administrator's own storage.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use tanada_conformance::{CaseReport, Scale, Subject, Verdict, names, run};
use tanada_driver::registry::{Backend, SrConfig};
use tanadad::config::Config;
use tanadad::storage::Storage;
use uuid::Uuid;

const USAGE: &str = "\
usage: tanada driver-test --type TYPE --config KEY=VALUE ... [OPTION ...]
Plays the conformance suite over a storage and prints what it does by itself and what passed. Makes an SR of its own
there and erases it at the end; nothing else on the storage is touched.
  --type TYPE         tanada, netapp, equal
  --config KEY=VALUE  a key of device-config, as for sr-create; KEY=@FILE takes the value from a file (passwords)
  --sr UUID           uses this SR instead of making one; it must exist, be empty, and be attached to no host
  --only NAME,NAME    these cases alone
  --small             smaller disks, fewer repetitions
  --yes               does not ask before it writes
  --list              names the cases and ends";

#[derive(Default)]
struct Options {
    kind: String,
    config: BTreeMap<String, String>,
    sr: Option<Uuid>,
    only: Vec<String>,
    small: bool,
    yes: bool,
}

/// Exit codes: 0 all passed, 1 a case failed, 2 it could not be run.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let words: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    if words.as_deref() == Some(&["--list"]) {
        names().for_each(|(name, what)| println!("{name:<14} {what}"));
        return ExitCode::SUCCESS;
    }
    let outcome =
        words.ok_or_else(|| anyhow!("an argument is not UTF-8")).and_then(|words| parse(&words)).and_then(test);
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tanada driver-test: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn parse(words: &[&str]) -> Result<Options> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| anyhow!("{word} needs a value\n{USAGE}"));
        match *word {
            "--type" => options.kind = value()?.to_lowercase(),
            "--config" => {
                let pair = value()?;
                let (key, text) = pair.split_once('=').ok_or_else(|| anyhow!("{pair:?} is not KEY=VALUE"))?;
                options.config.insert(key.to_owned(), content(text)?);
            }
            "--sr" => {
                let text = value()?;
                options.sr = Some(Uuid::parse_str(text).map_err(|_| anyhow!("{text:?} is no UUID"))?);
            }
            "--only" => options.only = value()?.split(',').map(|name| name.trim().to_owned()).collect(),
            "--small" => options.small = true,
            "--yes" => options.yes = true,
            other => bail!("{other:?} is not known\n{USAGE}"),
        }
    }
    if options.kind.is_empty() {
        bail!("--type is missing\n{USAGE}");
    }
    if let Some(unknown) = options.only.iter().find(|only| names().all(|(name, _)| name != only.as_str())) {
        bail!("{unknown:?} is no case; --list names them");
    }
    Ok(options)
}

/// `@FILE` stands for the first line of that file.
fn content(text: &str) -> Result<String> {
    let Some(path) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    let all = fs::read_to_string(path).with_context(|| path.to_owned())?;
    Ok(all.lines().next().unwrap_or_default().to_owned())
}

/// True where every case passed.
fn test(options: Options) -> Result<bool> {
    let place = Place::make()?;
    let daemon = Config { state_dir: place.0.join("state"), runtime_dir: place.0.join("run"), ..Config::default() };
    let storage = Storage::from_config(&daemon);
    let registry = storage.registry();
    let Some(backend) = registry.get(&options.kind).cloned() else {
        let known: Vec<&str> = registry.types().map(|kind| kind.name).collect();
        bail!("{:?} is no type of storage; known are {}", options.kind, known.join(", "));
    };
    if let Some(missing) = backend.facts().missing_key(&options.config) {
        bail!("--config {}=... is missing: {}", missing.key, missing.description);
    }
    let sr = options.sr.unwrap_or_else(Uuid::new_v4);
    let config = SrConfig {
        sr,
        device_config: options.config.clone(),
        name_label: "driver-test".to_owned(),
        initiator: format!("iqn.2026-01.org.tanada:driver-test-{}", sr.simple()),
        ..SrConfig::default()
    };
    if !options.yes {
        ask(&options, sr)?;
    }
    let subject = Subject { backend, config, bridges: storage.bridges().clone() };
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(play(&subject, &options))
}

async fn play(subject: &Subject, options: &Options) -> Result<bool> {
    let backend: &Arc<dyn Backend> = &subject.backend;
    let is_ours = options.sr.is_none();
    if is_ours {
        backend.create(&subject.config).await.context("making an SR for the test")?;
    }
    let scale = if options.small { Scale::SMALL } else { Scale::FULL };
    let report = run(subject, scale, &options.only, &told).await;
    let ended = match is_ours {
        true => backend.erase(&subject.config).await.context("erasing the test's SR"),
        false => backend.close(&subject.config).await.context("closing the SR"),
    };
    let report = report?;
    println!("\n{report}");
    ended?;
    Ok(report.failures().next().is_none())
}

fn told(case: &CaseReport) {
    let word = match &case.verdict {
        Verdict::Passed(_) => "passed",
        Verdict::NotOffered(_) => "not offered",
        Verdict::Failed(_) => "FAILED",
    };
    println!("{:<14} {word:<12} {:>8.1} s", case.name, case.took.as_secs_f64());
}

/// Asks whether to go on; a "no" is an error, and so is nobody to ask.
fn ask(options: &Options, sr: Uuid) -> Result<()> {
    let keys: Vec<&str> = options.config.keys().map(String::as_str).collect();
    println!("This writes to a storage of type {} ({}).", options.kind, keys.join(", "));
    match options.sr {
        Some(_) => println!("It makes disks in the SR {sr}, which must be empty, and destroys them."),
        None => println!("It makes an SR {sr} there, with disks, and erases it at the end."),
    }
    if !io::stdin().is_terminal() {
        bail!("there is nobody to ask whether to go on; --yes says so beforehand");
    }
    print!("Go on? [yes/no] ");
    io::stdout().flush().context("asking")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("reading the answer")?;
    if answer.trim() == "yes" { Ok(()) } else { Err(anyhow!("nothing was done")) }
}

/// A directory for sockets that goes with its owner.
struct Place(PathBuf);

impl Place {
    fn make() -> Result<Place> {
        // Short: paths of sockets end at 108 bytes.
        let name = Uuid::new_v4().simple().to_string();
        let path = std::env::temp_dir().join(format!("tanada-{}", &name[..8]));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| shown(&path))?;
        Ok(Place(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: nothing but sockets and logs is left in it.
        drop(fs::remove_dir_all(&self.0));
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
