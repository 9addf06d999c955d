//! The house rules that a program can hold: who may depend on whom, how long files may get, what may not be in the tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom. What is not listed is refused; dev-dependencies count too.
const ARROWS: &[(&str, &[&str])] = &[
    ("tanada-units", &[]),
    ("tanada-format", &["tanada-units"]),
    ("tanada-disk", &["tanada-units"]),
    ("tanada-engine", &["tanada-units", "tanada-format", "tanada-disk"]),
    ("tanada-sim", &["tanada-units", "tanada-format", "tanada-disk", "tanada-engine"]),
    ("tanada-nbd", &["tanada-units"]),
    ("tanada-blockd-api", &["tanada-units"]),
    (
        "tanada-blockd",
        &["tanada-units", "tanada-format", "tanada-disk", "tanada-engine", "tanada-nbd", "tanada-blockd-api"],
    ),
    ("tanada-driver", &["tanada-units", "tanada-blockd-api", "tanada-nbd"]),
    ("tanada-ontap", &["tanada-units", "tanada-driver", "sim-target", "sim-ontap", "tanada-conformance"]),
    ("tanada-conformance", &["tanada-units", "tanada-driver", "tanada-nbd"]),
    ("tanada-qemu", &["tanada-units", "sim-target"]),
    ("tanada-certificate", &[]),
    // The stand-in of a guest's agent plays in its tests.
    ("tanada-quiesce", &["tanada-certificate", "tanada-qemu", "sim-agent"]),
    ("tanada-xapi", &[]),
    ("tanada-xva", &["tanada-xapi"]),
    ("tanada-schedule", &[]),
    // Its tests take their content from the witness, as those of the whole do.
    ("tanada-image", &["tanada-xva", "tanada-witness"]),
    (
        "tanadad",
        &[
            "tanada-units",
            "tanada-xapi",
            "tanada-driver",
            "tanada-ontap",
            "tanada-equallogic",
            "tanada-qemu",
            "tanada-quiesce",
            "tanada-nbd",
            "tanada-schedule",
            "tanada-xva",
            "tanada-image",
        ],
    ),
    ("xe", &["tanada-xapi", "tanada-certificate"]),
    (
        "tanada",
        &[
            "tanada-blockd",
            "tanada-blockd-api",
            "tanada-engine",
            "tanada-format",
            "tanada-disk",
            "tanadad",
            "tanada-driver",
            "tanada-quiesce",
            "tanada-conformance",
            "xe",
            "tanada-units",
        ],
    ),
    ("tanada-e2e", &["tanada-xapi", "tanada-blockd-api", "tanada-nbd", "tanada-qemu", "tanada-witness", "sim-agent"]),
    ("tanada-witness", &[]),
    // Simulators imitate arrays, so they know nothing of the drivers (nor drivers of them outside tests).
    ("sim-target", &["tanada-witness", "tanada-nbd"]),
    ("sim-equallogic", &["sim-target"]),
    ("tanada-equallogic", &["tanada-driver", "tanada-conformance", "sim-equallogic", "sim-target", "tanada-nbd"]),
    ("sim-ontap", &["sim-target"]),
    ("sim-agent", &[]),
    ("xtask", &["tanada-witness", "tanadad", "tanada-sim", "tanada-blockd-api", "tanada-nbd", "sim-agent"]),
];

/// Longest file, in lines. A ratchet: lower it when the longest one shrinks, look for the missing noun when it would grow.
const FILE_LINES_MAX: usize = 800;
/// Lines of the file in the middle, over all crates.
const FILE_LINES_MEDIAN_MAX: usize = 260;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

fn manifests() -> Vec<PathBuf> {
    let folders = ["crates", "sims"].map(|folder| fs::read_dir(root().join(folder)).expect(folder));
    let crates = folders.into_iter().flatten();
    let mut all: Vec<PathBuf> = crates.map(|entry| entry.expect("an entry").path().join("Cargo.toml")).collect();
    all.push(root().join("xtask/Cargo.toml"));
    all
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() && !entry.ends_with("target") {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&root().join("crates"), &mut found);
    sources(&root().join("sims"), &mut found);
    sources(&root().join("xtask"), &mut found);
    found
}

/// Names of our own crates that a manifest uses, in any dependency table.
fn own_dependencies(manifest: &str, own: &[&str]) -> Vec<String> {
    let words = manifest.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    words.filter(|word| own.contains(word)).map(str::to_string).collect()
}

#[test]
fn dependencies_point_one_way() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let own: Vec<&str> = arrows.keys().copied().collect();
    for path in manifests() {
        let text = fs::read_to_string(&path).expect("a manifest");
        let name =
            text.lines().find_map(|line| line.strip_prefix("name = ")).expect("a name").trim_matches('"').to_string();
        let allowed =
            arrows.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the table of arrows: add it there"));
        for used in own_dependencies(&text, &own) {
            assert!(allowed.contains(&used.as_str()), "{name} uses {used}: the table of arrows does not allow that");
        }
    }
}

#[test]
fn files_stay_readable() {
    let mut lengths: Vec<(usize, PathBuf)> = all_sources()
        .into_iter()
        .map(|path| (fs::read_to_string(&path).expect("a source file").lines().count(), path))
        .collect();
    lengths.sort();
    let (longest, path) = lengths.last().expect("sources");
    assert!(*longest <= FILE_LINES_MAX, "{} has {longest} lines, at most {FILE_LINES_MAX} are allowed", path.display());
    let median = lengths[lengths.len() / 2].0;
    assert!(
        median <= FILE_LINES_MEDIAN_MAX,
        "the median file has {median} lines, at most {FILE_LINES_MEDIAN_MAX} are allowed"
    );
}

#[test]
fn nothing_unfinished_is_in_the_tree() {
    // Put together here so that this file does not find itself.
    let marks = ["to", "do!("].concat();
    let ignored = ["#[ig", "nore"].concat();
    for path in all_sources() {
        let text = fs::read_to_string(&path).expect("a source file");
        for mark in [&marks, &ignored] {
            assert!(!text.contains(mark.as_str()), "{} contains {mark}", path.display());
        }
    }
}

#[test]
fn every_crate_has_the_workspace_lints() {
    for path in manifests() {
        let text = fs::read_to_string(&path).expect("a manifest");
        assert!(text.contains("[lints]\nworkspace = true"), "{} does not take the workspace's lints", path.display());
    }
}
