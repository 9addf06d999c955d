//! `docs/mistakes.md`: a table of all mistakes, with what the last run with `--write` found of each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::catalogue::Mistake;
use crate::catch::Caught;

const HEAD: &str = "| mistake | rule | what is wrong | caught by | after | how |\n|---|---|---|---|---|---|\n";

/// The page; what it says of each mistake by its name.
pub struct Page {
    path: PathBuf,
    text: String,
    found: BTreeMap<String, String>,
}

impl Page {
    pub fn read(path: &Path) -> Result<Page, String> {
        let whole = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let (text, rows) = whole.split_once("| mistake |").unwrap_or((&whole, ""));
        let row = |line: &str| {
            let cells: Vec<&str> = line.split(" | ").collect();
            let name = cells.first()?.strip_prefix("| ")?.to_owned();
            let found = cells.get(4..).filter(|found| !found.is_empty())?;
            Some((name, found.join(" | ").trim_end_matches(" |").to_owned()))
        };
        Ok(Page { path: path.to_owned(), text: text.to_owned(), found: rows.lines().filter_map(row).collect() })
    }

    /// Takes up how a mistake was caught.
    pub fn note(&mut self, mistake: &Mistake, caught: &Caught) {
        let found = match caught {
            Caught::By { after, how, .. } => format!("{:.1} s | {}", after.as_secs_f64(), plain(how)),
            other => format!("- | {}", plain(&other.to_string())),
        };
        self.found.insert(mistake.name.clone(), found);
    }

    /// Writes the page anew, with a row for each of `all`.
    pub fn write(&self, all: &[Mistake]) -> Result<(), String> {
        let rows: String = all.iter().map(|mistake| self.row(mistake)).collect();
        let page = format!("{}{HEAD}{rows}", self.text);
        fs::write(&self.path, page).map_err(|error| format!("{}: {error}", self.path.display()))
    }

    fn row(&self, mistake: &Mistake) -> String {
        let Mistake { name, rule, what, catcher, .. } = mistake;
        let found = self.found.get(name).map_or("- | -", String::as_str);
        format!("| {name} | {rule} | {what} | {catcher} | {found} |\n")
    }
}

/// Text for a cell of the table.
fn plain(text: &str) -> String {
    text.replace('|', "/").replace(['<', '>'], "")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{HEAD, Page};
    use crate::catalogue::load;
    use crate::root;

    #[test]
    fn the_page_lists_them_all() {
        let all = load(&root().join("crates/tanada-sim/mistakes")).unwrap_or_else(|message| panic!("{message}"));
        let path = root().join("docs/mistakes.md");
        let page = Page::read(&path).unwrap_or_else(|message| panic!("{message}"));
        let rows: String = all.iter().map(|mistake| page.row(mistake)).collect();
        let text = fs::read_to_string(&path).expect("docs/mistakes.md");
        assert!(text.ends_with(&format!("{HEAD}{rows}")), "run `cargo xtask mistakes --write` for docs/mistakes.md");
    }
}
