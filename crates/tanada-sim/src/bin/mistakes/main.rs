//! `tanada-mistakes [--only NAME] [--seconds N] [--list]`: plants each mistake in a scratch copy of the store and sees
//! it caught. A proof that cannot fail proves nothing.

mod catalogue;
mod catch;
mod scratch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use catalogue::{Mistake, load, sources};
use catch::{Caught, catch};
use scratch::{Scratch, batches};

/// What to do.
struct Options {
    only: Vec<String>,
    /// For each catcher.
    time: Duration,
    list: bool,
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
    let mut options = Options { only: Vec::new(), time: Duration::from_secs(180), list: false };
    while let Some(argument) = arguments.next() {
        if argument == "--list" {
            options.list = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--only" => options.only.extend(value.split(',').map(str::to_owned)),
            "--seconds" => {
                let seconds = value.parse().map_err(|_| format!("--seconds {value}: a whole number is accepted"))?;
                options.time = Duration::from_secs(seconds);
            }
            _ => return Err(format!("{argument}: accepted are --only NAME[,NAME], --seconds N, --list")),
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
    let wanted = |mistake: &&Mistake| options.only.is_empty() || options.only.contains(&mistake.name);
    let mistakes: Vec<&Mistake> = all.iter().filter(wanted).collect();
    if options.list {
        print!("{}", table(&mistakes));
        return Ok(true);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let sources = sources(&root)?;
    let mut missed = Vec::new();
    for batch in batches(&mistakes, &sources)? {
        let edits = batch.iter().flat_map(|(_, edits)| edits.clone()).collect();
        let mut scratch = Scratch::make(&root, &target.join("mistakes"), &sources, edits)?;
        scratch.build()?;
        for (mistake, _) in batch {
            let caught = catch(&scratch, mistake, options.time)?;
            println!("{:24} {:4} {caught}", mistake.name, mistake.rule);
            if !matches!(caught, Caught::By { .. }) {
                missed.push(mistake.name.clone());
            }
        }
    }
    println!("{} mistakes planted, {} caught", mistakes.len(), mistakes.len() - missed.len());
    if !missed.is_empty() {
        println!("not caught as they should be: {}", missed.join(", "));
    }
    Ok(missed.is_empty())
}

/// The table of `docs/mistakes.md`.
fn table(mistakes: &[&Mistake]) -> String {
    let mut text = String::from("| mistake | rule | what is wrong | caught by |\n|---|---|---|---|\n");
    for mistake in mistakes {
        let Mistake { name, rule, what, catcher, .. } = mistake;
        text += &format!("| {name} | {rule} | {what} | {} |\n", catcher.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Mistake, load, root, table};

    #[test]
    fn the_page_lists_them_all() {
        let all = load(&root().join("crates/tanada-sim/mistakes")).unwrap_or_else(|message| panic!("{message}"));
        let page = std::fs::read_to_string(root().join("docs/mistakes.md")).expect("docs/mistakes.md");
        let table = table(&all.iter().collect::<Vec<&Mistake>>());
        assert!(page.ends_with(&table), "put the table of `cargo xtask mistakes --list` into docs/mistakes.md");
    }
}
