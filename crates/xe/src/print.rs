//! The layout of output: records, `--minimal` lines.
//!
//! A record is one line a field. The first name stands left, the others right, in a column four wider than the longest
//! name with its flag; two empty lines follow.

use std::fmt::Write;

/// One field of one record as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Name and flag: `name-label ( RW)`.
    pub heading: String,
    pub value: String,
}

impl Cell {
    pub fn new(heading: impl Into<String>, value: impl Into<String>) -> Cell {
        Cell { heading: heading.into(), value: value.into() }
    }
}

pub fn record(cells: &[Cell]) -> String {
    let width = 4 + cells.iter().map(|cell| cell.heading.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (index, cell) in cells.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = if index == 0 {
            writeln!(text, "{:<width$}: {}", cell.heading, cell.value)
        } else {
            writeln!(text, "{:>width$}: {}", cell.heading, cell.value)
        };
    }
    text.push_str("\n\n");
    text
}

/// The first cell of each record, joined by commas, on one line.
pub fn minimal(records: &[Vec<Cell>]) -> String {
    let firsts: Vec<&str> = records.iter().filter_map(|cells| cells.first()).map(|cell| cell.value.as_str()).collect();
    minimal_items(&firsts)
}

pub fn minimal_items(items: &[&str]) -> String {
    let escaped: Vec<String> = items.iter().map(|item| item.replace('\\', "\\\\").replace(',', "\\,")).collect();
    escaped.join(",") + "\n"
}

pub fn records(records_shown: &[Vec<Cell>], is_minimal: bool) -> String {
    if is_minimal {
        return minimal(records_shown);
    }
    records_shown.iter().filter(|cells| !cells.is_empty()).map(|cells| record(cells)).collect()
}

/// Words separated by commas on lines of at most 74 characters, indented by four.
pub fn wrapped(words: &[&str]) -> String {
    const WIDTH: usize = 74;
    let mut text = String::new();
    let mut line = String::new();
    for (index, word) in words.iter().enumerate() {
        let item = if index + 1 < words.len() { format!("{word}, ") } else { (*word).to_owned() };
        if !line.is_empty() && 4 + line.len() + item.trim_end().len() > WIDTH {
            let _ = writeln!(text, "    {}", line.trim_end());
            line.clear();
        }
        line.push_str(&item);
    }
    if !line.is_empty() {
        let _ = writeln!(text, "    {}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Cell, minimal, minimal_items, record, wrapped};

    #[test]
    fn a_record_is_aligned_as_scripts_expect() {
        let cells = [
            Cell::new("uuid ( RO)", "3e3a5f6c"),
            Cell::new("name-label ( RW)", "web1"),
            Cell::new("power-state ( RO)", "halted"),
        ];
        let expected =
            "uuid ( RO)           : 3e3a5f6c\n     name-label ( RW): web1\n    power-state ( RO): halted\n\n\n";
        assert_eq!(record(&cells), expected);
    }

    #[test]
    fn minimal_lines_escape_and_are_never_missing() {
        assert_eq!(minimal(&[]), "\n");
        assert_eq!(minimal(&[vec![Cell::new("a", "x,y")], vec![Cell::new("a", r"z\")]]), "x\\,y,z\\\\\n");
        assert_eq!(minimal_items(&["a", "b"]), "a,b\n");
    }

    #[test]
    fn long_lists_are_wrapped() {
        let words = ["appliance-create"; 9];
        let text = wrapped(&words);
        assert!(text.lines().all(|line| line.len() <= 74 && line.starts_with("    ")), "{text}");
        assert_eq!(text.matches("appliance-create").count(), 9);
    }
}
