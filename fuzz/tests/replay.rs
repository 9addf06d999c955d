//! The kept inputs, once more, with the stable toolchain: the corpus and what the fuzzer ever found.

use std::fs;
use std::path::{Path, PathBuf};

use tanada_fuzz::target;

/// None where nothing was ever found.
fn inputs(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    if !folder.exists() {
        return Vec::new();
    }
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn replay(name: &str) {
    let run = target(name).expect("a target");
    let all = [inputs(&format!("corpus/{name}")), inputs(&format!("regressions/{name}"))].concat();
    assert!(!all.is_empty(), "no inputs for {name}");
    for path in all {
        println!("{}", path.display());
        run(&fs::read(&path).expect("an input"));
    }
}

#[test]
fn superblock() {
    replay("superblock");
}

#[test]
fn store() {
    replay("store");
}

#[test]
fn nbd() {
    replay("nbd");
}

#[test]
fn image() {
    replay("image");
}
