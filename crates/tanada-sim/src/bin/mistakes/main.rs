//! `tanada-mistakes [--only NAME[,NAME]] [--short] [--seconds N] [--write] [--list]`: plants each mistake in a scratch
//! copy of the store and sees it caught. A proof that cannot fail proves nothing.

mod catalogue;
mod catch;
mod page;
mod scratch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use catalogue::{Mistake, load, sources};
use catch::catch;
use page::Page;
use scratch::{Scratch, batches};

/// Caught in a second or two each, one for each part of the store and each way of catching: what CI tries.
const SHORT: [&str; 15] = [
    "answer-before-leaving",
    "birth-at-submit",
    "birth-newest-below",
    "busy-blocks-ignored",
    "cursor-not-saved",
    "flush-without-sync",
    "inherited-entry-dropped",
    "journal-trimmed-early",
    "no-verification",
    "pair-not-voided",
    "read-unverified",
    "readers-not-counted",
    "saved-bitmap-is-busy",
    "scrub-mark-too-far",
    "superblock-with-nodes",
];

/// What to do.
struct Options {
    only: Vec<String>,
    /// For each catcher.
    time: Duration,
    list: bool,
    /// Puts what was found into docs/mistakes.md.
    write: bool,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("tanada-mistakes: {message}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { only: Vec::new(), time: Duration::from_secs(120), list: false, write: false };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => options.list = true,
            "--write" => options.write = true,
            "--short" => options.only.extend(SHORT.map(str::to_owned)),
            "--only" => {
                let names = arguments.next().ok_or("--only needs names")?;
                options.only.extend(names.split(',').map(str::to_owned));
            }
            "--seconds" => {
                let value = arguments.next().ok_or("--seconds needs a number")?;
                let seconds = value.parse().map_err(|_| format!("--seconds {value}: a whole number is accepted"))?;
                options.time = Duration::from_secs(seconds);
            }
            _ => {
                let accepted = "--only NAME[,NAME], --short, --seconds N, --write, --list";
                return Err(format!("{argument}: accepted are {accepted}"));
            }
        }
    }
    Ok(options)
}

fn root() -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    home.parent().and_then(Path::parent).unwrap_or(home).to_path_buf()
}

/// True where all mistakes were caught.
fn run(options: &Options) -> Result<bool, String> {
    let root = root();
    let all = load(&root.join("crates/tanada-sim/mistakes"))?;
    if let Some(unknown) = options.only.iter().find(|name| all.iter().all(|mistake| mistake.name != **name)) {
        return Err(format!("there is no mistake {unknown}; --list shows all"));
    }
    if options.list {
        all.iter().for_each(|mistake| println!("{:28} {:5} {}", mistake.name, mistake.rule, mistake.what));
        return Ok(true);
    }
    let is_wanted = |mistake: &Mistake| options.only.is_empty() || options.only.contains(&mistake.name);
    let mut page = Page::read(&root.join("docs/mistakes.md"))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let sources = sources(&root)?;
    let (mut tried, mut missed) = (0, Vec::new());
    // All are planted whatever is wanted: one build serves every call.
    for batch in batches(&all, &sources)? {
        let wanted: Vec<&Mistake> =
            batch.iter().map(|(mistake, _)| *mistake).filter(|mistake| is_wanted(mistake)).collect();
        if wanted.is_empty() {
            continue;
        }
        let edits = batch.iter().flat_map(|(_, edits)| edits.clone()).collect();
        let mut scratch = Scratch::make(&root, &target.join("mistakes"), &sources, edits)?;
        scratch.build()?;
        for mistake in wanted {
            let caught = catch(&scratch, mistake, options.time)?;
            println!("{:28} {:5} {caught}", mistake.name, mistake.rule);
            tried += 1;
            if !caught.is_as_expected() {
                missed.push(mistake.name.clone());
            }
            page.note(mistake, &caught);
        }
    }
    println!("{tried} mistakes planted, {} caught", tried - missed.len());
    if !missed.is_empty() {
        println!("not caught as they should be: {}", missed.join(", "));
    }
    if options.write {
        page.write(&all)?;
    }
    Ok(missed.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{SHORT, batches, load, root, sources};

    #[test]
    fn what_ci_tries_needs_one_build() {
        let all = load(&root().join("crates/tanada-sim/mistakes")).unwrap_or_else(|message| panic!("{message}"));
        let sources = sources(&root()).unwrap_or_else(|message| panic!("{message}"));
        let batches = batches(&all, &sources).unwrap_or_else(|message| panic!("{message}"));
        let first: Vec<&str> = batches[0].iter().map(|(mistake, _)| mistake.name.as_str()).collect();
        let others: Vec<&str> = SHORT.into_iter().filter(|name| !first.contains(name)).collect();
        assert!(others.is_empty(), "not planted together with the first: {others:?}");
    }
}
