//! A scratch copy of the store's crates with many mistakes planted, each asleep until a run asks for it by name: one
//! build serves them all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::catalogue::{Edit, Mistake, Source, apply, collide};

/// What the simulation needs to be built.
const CRATES: [&str; 5] = ["tanada-units", "tanada-disk", "tanada-format", "tanada-engine", "tanada-sim"];

/// Names the mistake that a process is to make.
pub const WANTED: &str = "TANADA_PLANTED";

/// Added to the format crate, which the engine uses too.
const PLANTED: &str = "\
use std::sync::LazyLock;

static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(\"TANADA_PLANTED\").ok());

pub fn is(name: &str) -> bool {
    WANTED.as_deref() == Some(name)
}
";

/// Mistakes that can be planted side by side, each with its edits.
pub type Batch<'m> = Vec<(&'m Mistake, Vec<Edit>)>;

/// As many at a time as possible.
pub fn batches<'m>(mistakes: &'m [Mistake], sources: &[Source]) -> Result<Vec<Batch<'m>>, String> {
    let mut batches: Vec<Batch<'_>> = Vec::new();
    for mistake in mistakes {
        let edits = mistake.edits(sources)?;
        let fits = |batch: &&mut Batch<'_>| batch.iter().all(|(_, other)| !collide(other, &edits));
        match batches.iter_mut().find(fits) {
            Some(batch) => batch.push((mistake, edits)),
            None => batches.push(vec![(mistake, edits)]),
        }
    }
    Ok(batches)
}

/// The scratch copy.
pub struct Scratch {
    tree: PathBuf,
    target: PathBuf,
    /// Test programs, once built.
    tests: Vec<PathBuf>,
}

impl Scratch {
    /// Copies the crates from `root` to `dir` with `edits` carried out on `sources`.
    pub fn make(root: &Path, dir: &Path, sources: &[Source], edits: Vec<Edit>) -> Result<Scratch, String> {
        let tree = dir.join("tree");
        for name in CRATES {
            let (from, to) = (root.join("crates").join(name), tree.join("crates").join(name));
            copy(&from, &to)?;
            remove_gone(&from, &to)?;
        }
        for file in ["Cargo.lock", "Cargo.toml"] {
            let text = fs::read_to_string(root.join(file)).map_err(|error| format!("{file}: {error}"))?;
            write(&tree.join(file), &few_members(&text))?;
        }
        // Tests hold it to the code.
        let page = "docs/format.md";
        let text = fs::read_to_string(root.join(page)).map_err(|error| format!("{page}: {error}"))?;
        write(&tree.join(page), &text)?;
        for source in apply(sources, edits) {
            let place = source.path.strip_prefix(root).map_err(|error| error.to_string())?;
            write(&tree.join(place), &source.text)?;
        }
        let format = tree.join("crates/tanada-format/src");
        write(&format.join("planted.rs"), PLANTED)?;
        let lib = fs::read_to_string(format.join("lib.rs")).map_err(|error| error.to_string())?;
        write(&format.join("lib.rs"), &(lib + "\npub mod planted;\n"))?;
        Ok(Scratch { tree, target: dir.join("target"), tests: Vec::new() })
    }

    fn cargo(&self, verb: &[&str]) -> Result<String, String> {
        let packages =
            ["--quiet", "--package", "tanada-engine", "--package", "tanada-format", "--package", "tanada-sim"];
        let mut command = Command::new("cargo");
        command.args(verb).args(packages).current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        let made = command.stdin(Stdio::null()).output().map_err(|error| format!("starting cargo: {error}"))?;
        if !made.status.success() {
            return Err(format!("the mistakes do not compile:\n{}", String::from_utf8_lossy(&made.stderr)));
        }
        Ok(String::from_utf8_lossy(&made.stdout).into_owned())
    }

    /// Builds the simulation and all tests.
    pub fn build(&mut self) -> Result<(), String> {
        self.cargo(&["build"])?;
        let told = self.cargo(&["test", "--no-run", "--message-format", "json"])?;
        let program = |line: &str| Some(PathBuf::from(line.split_once("\"executable\":\"")?.1.split_once('"')?.0));
        self.tests = told.lines().filter_map(program).collect();
        Ok(())
    }

    /// A test program: `tanada_engine` are the unit tests of that crate, other names those of its folder `tests`.
    pub fn tests(&self, names: &[&str]) -> Vec<Command> {
        let is_meant = |path: &&PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.rsplit_once('-').is_some_and(|(name, _)| names.contains(&name))
        };
        self.tests.iter().filter(is_meant).map(|path| self.command(path)).collect()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.tree.join("crates/tanada-engine"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The simulation's program.
    pub fn simulation(&self) -> Command {
        self.command(&self.target.join("debug/tanada-sim"))
    }
}

/// The workspace's manifest for the crates that are copied.
fn few_members(manifest: &str) -> String {
    let line =
        |line: &str| if line.starts_with("members = ") { "members = [\"crates/*\"]" } else { line }.to_owned() + "\n";
    manifest.lines().map(line).collect()
}

/// Writes only what differs, so that cargo builds only what changed.
fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Removes from `to` what `from` does not have any more: files that moved since the last copy.
fn remove_gone(from: &Path, to: &Path) -> Result<(), String> {
    for entry in fs::read_dir(to).map_err(|error| format!("{}: {error}", to.display()))? {
        let path = entry.map_err(|error| format!("{}: {error}", to.display()))?.path();
        let origin = from.join(path.file_name().unwrap_or_default());
        let removed = match (origin.exists(), path.is_dir()) {
            (true, true) => remove_gone(&origin, &path),
            (true, false) => Ok(()),
            (false, true) => fs::remove_dir_all(&path).map_err(|error| format!("{}: {error}", path.display())),
            (false, false) => fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display())),
        };
        removed?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    for entry in fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))? {
        let path = entry.map_err(|error| format!("{}: {error}", from.display()))?.path();
        let place = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &place)?;
        } else if let Ok(text) = fs::read_to_string(&path) {
            write(&place, &text)?;
        }
    }
    Ok(())
}
