//! `cargo xtask conformance`: the conformance suite over the embedded store and both simulated arrays, side by side.
//!
//! Each runs as the test that it is in its crate and prints its tables; they are joined here by their first column.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, sh};

/// Arguments of `cargo test`: the package, its test, the case.
const RUNS: [[&str; 5]; 3] = [
    ["--package", "tanada-conformance", "--test", "embedded", "the_embedded_store"],
    ["--package", "tanada-ontap", "--test", "simulator", "conformance"],
    ["--package", "tanada-equallogic", "--test", "conformance", ""],
];

const DOCUMENT: &str = "docs/drivers.md";
const BEGIN: &str = "<!-- made by: cargo xtask conformance --write -->\n";
const END: &str = "<!-- end of what is made -->";

/// Runs all three and prints the tables; with `--write` puts them into the documentation.
pub fn run(args: &[&str]) -> Result<()> {
    let write = match args {
        [] => false,
        ["--write"] => true,
        other => bail!("{other:?} is not known; --write is"),
    };
    setup::packages()?;
    sh::run("cargo", &["build", "--quiet", "--package", "tanada"])?;
    let mut texts = Vec::new();
    for arguments in RUNS {
        let command = [&["test", "--quiet"], &arguments[..], &["--", "--nocapture"]].concat();
        let command: Vec<&str> = command.into_iter().filter(|word| !word.is_empty()).collect();
        println!("cargo {}", command.join(" "));
        texts.push(sh::output("cargo", &command)?);
    }
    let tables = join(&texts)?;
    println!("{tables}");
    if write { put(&tables) } else { Ok(()) }
}

/// Rows of the first text with the last cells of the others behind them.
fn join(texts: &[String]) -> Result<String> {
    let rows: Vec<Vec<&str>> =
        texts.iter().map(|text| text.lines().filter(|line| line.starts_with('|')).collect()).collect();
    let Some((first, others)) = rows.split_first() else { return Ok(String::new()) };
    ensure!(!first.is_empty(), "a run printed no table");
    let mut all = String::new();
    for (number, row) in first.iter().enumerate() {
        if row.starts_with("| case |") {
            all.push('\n');
        }
        all.push_str(row);
        for other in others {
            let same = other.get(number).with_context(|| format!("a run has no row for {row:?}"))?;
            let (what, cell) = cells(same).with_context(|| format!("{same:?} is no row of two cells"))?;
            ensure!(cells(row).is_some_and(|(own, _)| own == what), "{row:?} and {same:?} are of different cases");
            all.push_str(cell);
        }
        all.push('\n');
    }
    Ok(all)
}

/// `| what | cell |` in its two parts: `| what ` and ` cell |`.
fn cells(row: &str) -> Option<(&str, &str)> {
    let at = row.strip_prefix('|')?.find('|')? + 1;
    Some((&row[..at], &row[at + 1..]))
}

fn put(tables: &str) -> Result<()> {
    let path = sh::root().join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{DOCUMENT} has no line {BEGIN:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{DOCUMENT} has no line {END:?}"))?;
    fs::write(&path, format!("{before}{BEGIN}{tables}{END}{after}")).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn tables_are_joined_by_their_first_column() {
        let one = "noise\n| case | `a` |\n|---|---|\n| x: y | passed |\n".to_owned();
        let two = "| case | `b` |\n|---|---|\n| x: y | not offered: z |\nmore".to_owned();
        let joined = join(&[one.clone(), two]).expect("the same rows");
        assert_eq!(joined, "\n| case | `a` | `b` |\n|---|---|---|\n| x: y | passed | not offered: z |\n");
        let other = "| case | `b` |\n|---|---|\n| q: y | passed |\n".to_owned();
        assert!(join(&[one, other]).is_err());
    }
}
