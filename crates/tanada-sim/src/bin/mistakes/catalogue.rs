//! The mistakes as files: `crates/tanada-sim/mistakes/NAME.mistake`.
//!
//! ```text
//!   rule: V2
//!   what: A node is born with the newest pointer below it, not with its last change.
//!   caught by: model                  or: sim KIND, by runs of that kind
//!   === find
//!   text that stands once in the sources of engine and format; white space counts as one blank
//!   === write
//!   what stands there instead; PLANTED is true in the run that wants this mistake and false in all others
//! ```
//! Several pairs of find and write are one mistake. Text is looked for in all source files, so code may move between them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use tanada_sim::Kind;

/// Who must notice a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Catcher {
    /// Trees and versions against flat maps (`tanada-engine`, module `model`).
    Model,
    /// The other tests of engine and format.
    Tests,
    /// Whole stores by seed, of all kinds or of one.
    Sim(Option<Kind>),
    /// Every subset of the unsynced writes at each event of a run.
    Replay,
    /// Flipped bits.
    Rot,
}

impl Catcher {
    pub const ALL: [Catcher; 5] = [Catcher::Model, Catcher::Tests, Catcher::Sim(None), Catcher::Replay, Catcher::Rot];

    fn named(name: &str) -> Result<Catcher, String> {
        if let Some(kind) = name.strip_prefix("sim ") {
            return Kind::named(kind).map(|kind| Catcher::Sim(Some(kind)));
        }
        Catcher::ALL.into_iter().find(|catcher| catcher.to_string() == name).ok_or_else(|| {
            let names: Vec<String> = Catcher::ALL.iter().map(Catcher::to_string).collect();
            format!("caught by: {name}: one of {} is accepted", names.join(", "))
        })
    }
}

impl fmt::Display for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Catcher::Model => f.write_str("model"),
            Catcher::Tests => f.write_str("tests"),
            Catcher::Sim(None) => f.write_str("sim"),
            Catcher::Sim(Some(kind)) => write!(f, "sim {}", kind.name()),
            Catcher::Replay => f.write_str("replay"),
            Catcher::Rot => f.write_str("rot"),
        }
    }
}

/// One place where a mistake differs from the store.
#[derive(Debug, Clone)]
pub struct Hunk {
    pub find: String,
    pub write: String,
}

#[derive(Debug, Clone)]
pub struct Mistake {
    pub name: String,
    pub rule: String,
    pub what: String,
    pub catcher: Catcher,
    pub hunks: Vec<Hunk>,
}

/// A source file of the store.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// Bytes `from..to` of source `file` give way to `write`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub file: usize,
    pub from: usize,
    pub to: usize,
    pub write: String,
}

/// All mistakes, by name.
pub fn load(dir: &Path) -> Result<Vec<Mistake>, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut mistakes = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| format!("{}: {error}", dir.display()))?.path();
        if path.extension().is_none_or(|extension| extension != "mistake") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        mistakes.push(parse(name, &text).map_err(|message| format!("{}: {message}", path.display()))?);
    }
    mistakes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mistakes)
}

fn parse(name: String, text: &str) -> Result<Mistake, String> {
    let mut parts = text.split("=== ");
    let head = parts.next().unwrap_or_default();
    let field = |label: &str| {
        let found = head.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(": "));
        found.map(str::to_owned).ok_or_else(|| format!("the line `{label}: ...` is missing"))
    };
    let mut hunks = Vec::new();
    while let Some(find) = parts.next() {
        let write = parts.next().unwrap_or_default();
        match (find.strip_prefix("find\n"), write.strip_prefix("write\n")) {
            (Some(find), Some(write)) => hunks.push(Hunk { find: find.to_owned(), write: write.to_owned() }),
            _ => return Err("after the head come pairs of `=== find` and `=== write`".to_owned()),
        }
    }
    if hunks.is_empty() {
        return Err("it changes nothing".to_owned());
    }
    Ok(Mistake {
        name,
        rule: field("rule")?,
        what: field("what")?,
        catcher: Catcher::named(&field("caught by")?)?,
        hunks,
    })
}

/// The source files of engine and format under `root`, without what only tests use.
pub fn sources(root: &Path) -> Result<Vec<Source>, String> {
    let mut found = Vec::new();
    for name in ["tanada-engine", "tanada-format"] {
        collect(&root.join("crates").join(name).join("src"), &mut found)?;
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn collect(dir: &Path, found: &mut Vec<Source>) -> Result<(), String> {
    for entry in fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))? {
        let path = entry.map_err(|error| format!("{}: {error}", dir.display()))?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("model.rs")
            && !path.ends_with("testing.rs")
        {
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            found.push(Source { path, text });
        }
    }
    Ok(())
}

impl Mistake {
    /// Where it is to be planted. Errors where a text is not there, or there more than once.
    pub fn edits(&self, sources: &[Source]) -> Result<Vec<Edit>, String> {
        self.hunks.iter().map(|hunk| self.edit(hunk, sources)).collect()
    }

    fn edit(&self, hunk: &Hunk, sources: &[Source]) -> Result<Edit, String> {
        let (wanted, _) = squeeze(&hunk.find);
        let mut places = Vec::new();
        for (file, source) in sources.iter().enumerate() {
            let (text, origins) = squeeze(&source.text);
            let ends =
                text.match_indices(&wanted).map(|(at, _)| (file, origins[at], origins[at + wanted.len() - 1] + 1));
            places.extend(ends);
        }
        let [(file, from, to)] = places[..] else {
            return Err(format!(
                "{}: this text stands {} times in the sources, not once: {wanted}",
                self.name,
                places.len()
            ));
        };
        let in_format = sources[file].path.components().any(|part| part.as_os_str() == "tanada-format");
        let home = if in_format { "crate" } else { "tanada_format" };
        let planted = format!("{home}::planted::is(\"{}\")", self.name);
        Ok(Edit { file, from, to, write: hunk.write.trim_end().replace("PLANTED", &planted) })
    }
}

/// The text with each stretch of white space as one blank, none at the ends, and where each of its bytes comes from.
fn squeeze(text: &str) -> (String, Vec<usize>) {
    let (mut squeezed, mut origins) = (String::new(), Vec::new());
    let mut gap = false;
    for (at, letter) in text.char_indices() {
        if letter.is_whitespace() {
            gap = true;
            continue;
        }
        if gap && !squeezed.is_empty() {
            squeezed.push(' ');
            origins.push(at);
        }
        gap = false;
        squeezed.push(letter);
        origins.extend(std::iter::repeat_n(at, letter.len_utf8()));
    }
    (squeezed, origins)
}

/// The sources with `edits` carried out; they must not overlap.
pub fn apply(sources: &[Source], mut edits: Vec<Edit>) -> Vec<Source> {
    edits.sort_by_key(|edit| std::cmp::Reverse((edit.file, edit.from)));
    let mut changed = sources.to_vec();
    for edit in edits {
        changed[edit.file].text.replace_range(edit.from..edit.to, &edit.write);
    }
    changed
}

/// True where the two cannot be planted side by side.
pub fn collide(a: &[Edit], b: &[Edit]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.file == b.file && a.from < b.to && b.from < a.to))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Hunk, Mistake, Source, apply, collide, load, parse, sources};

    fn mistake(find: &str, write: &str) -> Mistake {
        let text = format!("rule: X1\nwhat: a test\ncaught by: sim\n=== find\n{find}\n=== write\n{write}\n");
        parse("test".to_owned(), &text).expect("well-formed")
    }

    fn source(text: &str) -> Vec<Source> {
        vec![Source { path: "crates/tanada-engine/src/x.rs".into(), text: text.to_owned() }]
    }

    #[test]
    fn text_is_found_whatever_its_white_space_and_only_where_it_stands_once() {
        let sources = source("let a =\n    one(two);\nlet b = 1;");
        let edits = mistake("one(two); let b", "PLANTED").edits(&sources).expect("there once");
        let changed = apply(&sources, edits);
        assert_eq!(changed[0].text, "let a =\n    tanada_format::planted::is(\"test\") = 1;");
        assert!(mistake("let", "").edits(&sources).is_err(), "there twice");
        assert!(mistake("three", "").edits(&sources).is_err(), "not there");
    }

    #[test]
    fn neighbours_may_be_planted_together_and_overlaps_not() {
        let sources = source("one two three");
        let edits = |find| mistake(find, "x").edits(&sources).expect("there once");
        assert!(collide(&edits("one two"), &edits("two three")));
        assert!(!collide(&edits("one two"), &edits("three")));
    }

    #[test]
    fn a_file_without_its_lines_is_refused() {
        assert!(parse("x".to_owned(), "rule: V1\n=== find\na\n=== write\nb\n").is_err());
        assert!(parse("x".to_owned(), "rule: V1\nwhat: y\ncaught by: nobody\n=== find\na\n=== write\nb\n").is_err());
        assert!(parse("x".to_owned(), "rule: V1\nwhat: y\ncaught by: sim\n").is_err());
        let Mistake { hunks, .. } = mistake("a", "b");
        assert!(matches!(&hunks[..], [Hunk { find, write }] if find == "a\n" && write == "b\n"));
    }

    /// Code moves on; a mistake that no longer finds its place has to be planted anew.
    #[test]
    fn every_mistake_finds_its_place() {
        let home = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mistakes = load(&home.join("mistakes")).unwrap_or_else(|message| panic!("{message}"));
        let sources = sources(&home.join("../..")).unwrap_or_else(|message| panic!("{message}"));
        let lost: Vec<String> = mistakes.iter().filter_map(|mistake| mistake.edits(&sources).err()).collect();
        assert!(lost.is_empty(), "adapt these files in crates/tanada-sim/mistakes:\n{}", lost.join("\n"));
    }
}
