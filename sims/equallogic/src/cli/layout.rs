//! How answers look: property pages, tables with cells that wrap inside their columns, and the terminal's own wrapping.

use crate::array::Settings;

/// Columns of a table: name and width.
pub type Columns = &'static [(&'static str, usize)];

/// Width of a section title.
const TITLE_WIDTH: usize = 77;
/// Width of one of the two columns of a formatted property page.
const HALF: usize = 38;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    Text(String),
    Page { title: String, pairs: Vec<(String, String)> },
    Table { title: Option<String>, columns: Columns, rows: Vec<Vec<String>> },
}

/// The terminal's lines for an answer. Lines longer than `width` go on in the first column of the next one where hard
/// wrapping is on; tables are laid out for 80 columns whatever the width.
pub fn render(blocks: &[Block], settings: &Settings, width: usize, hard_wrap: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for block in blocks {
        match block {
            Block::Text(text) => lines.push(text.clone()),
            Block::Page { title, pairs } => {
                lines.push(title_line(title));
                match settings.format_output {
                    true => two_columns(pairs, &mut lines),
                    false => lines.extend(pairs.iter().map(|(key, value)| format!("{key}: {value}"))),
                }
            }
            Block::Table { title, columns, rows } => {
                lines.extend(title.iter().map(|title| title_line(title)));
                table(columns, rows, &mut lines);
            }
        }
    }
    match hard_wrap {
        true => lines.iter().flat_map(|line| cut(line, width.max(1))).collect(),
        false => lines,
    }
}

fn title_line(title: &str) -> String {
    let bare = TITLE_WIDTH.saturating_sub(title.chars().count() + 2);
    format!("{} {title} {}", "_".repeat(bare / 2), "_".repeat(bare - bare / 2))
}

/// Pieces of at most `width` characters; at least one, even if empty.
fn cut(text: &str, width: usize) -> Vec<String> {
    let all: Vec<char> = text.chars().collect();
    if all.is_empty() {
        return vec![String::new()];
    }
    all.chunks(width).map(|piece| piece.iter().collect()).collect()
}

/// A cell's lines: the second and further ones are indented by two.
fn cell(text: &str, width: usize) -> Vec<String> {
    let count = text.chars().count().min(width);
    let at = text.char_indices().nth(count).map_or(text.len(), |(at, _)| at);
    let (first, rest) = text.split_at(at);
    let mut lines = vec![first.to_string()];
    if !rest.is_empty() {
        lines.extend(cut(rest, width.saturating_sub(2).max(1)).into_iter().map(|piece| format!("  {piece}")));
    }
    lines
}

fn table(columns: Columns, rows: &[Vec<String>], lines: &mut Vec<String>) {
    let padded = |cells: Vec<String>| -> String {
        let cells = cells.into_iter().zip(columns).map(|(text, (_, width))| format!("{text:<width$}", width = *width));
        cells.collect::<Vec<_>>().join(" ").trim_end().to_string()
    };
    lines.push(padded(columns.iter().map(|(name, _)| name.to_string()).collect()));
    lines.push(padded(columns.iter().map(|(_, width)| "-".repeat(*width)).collect()));
    for row in rows {
        let cells: Vec<Vec<String>> = row.iter().zip(columns).map(|(text, (_, width))| cell(text, *width)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..height {
            lines.push(padded(cells.iter().map(|cell| cell.get(at).cloned().unwrap_or_default()).collect()));
        }
    }
}

fn two_columns(pairs: &[(String, String)], lines: &mut Vec<String>) {
    for two in pairs.chunks(2) {
        let cells: Vec<Vec<String>> = two.iter().map(|(key, value)| cell(&format!("{key}: {value}"), HALF)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..height {
            let left = cells[0].get(at).map_or("", String::as_str);
            let right = cells.get(1).and_then(|cell| cell.get(at)).map_or("", String::as_str);
            lines.push(format!("{left:<HALF$} {right}").trim_end().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, Columns, render};
    use crate::array::Settings;

    const ACCESS: Columns =
        &[("ID", 3), ("Initiator", 29), ("Ipaddress", 15), ("AuthMethod", 10), ("UserName", 10), ("Apply-To", 8)];

    fn plain() -> Settings {
        Settings { format_output: false, ..Settings::default() }
    }

    #[test]
    fn a_cell_wraps_inside_its_column_whatever_the_width() {
        let row = |id: &str, initiator: &str| -> Vec<String> {
            [id, initiator, "*.*.*.*", "none", "", "both"].map(str::to_string).to_vec()
        };
        let rows = vec![row("1", "iqn.1993-08.org.debian:01:2227dab76162"), row("2", &"x".repeat(60))];
        let block = Block::Table { title: None, columns: ACCESS, rows };
        let lines = render(&[block], &plain(), 255, true);
        assert_eq!(
            lines,
            [
                "ID  Initiator                     Ipaddress       AuthMethod UserName   Apply-To",
                "--- ----------------------------- --------------- ---------- ---------- --------",
                "1   iqn.1993-08.org.debian:01:222 *.*.*.*         none                  both",
                "      7dab76162",
                "2   xxxxxxxxxxxxxxxxxxxxxxxxxxxxx *.*.*.*         none                  both",
                "      xxxxxxxxxxxxxxxxxxxxxxxxxxx",
                "      xxxx",
            ]
        );
    }

    #[test]
    fn a_page_has_a_title_and_a_pair_on_each_line() {
        let pairs = vec![("Name".to_string(), "disk7".to_string()), ("Description".to_string(), String::new())];
        let page = Block::Page { title: "Volume Information".into(), pairs };
        let lines = render(std::slice::from_ref(&page), &plain(), 80, true);
        let title = "____________________________ Volume Information _____________________________";
        assert_eq!(lines, [title, "Name: disk7", "Description: "]);
        let lines = render(&[page], &Settings::default(), 80, true);
        assert_eq!(lines[1], "Name: disk7                            Description:");
    }

    #[test]
    fn long_lines_break_at_the_terminals_width() {
        let text = Block::Text("x".repeat(100));
        let lines = render(std::slice::from_ref(&text), &plain(), 80, true);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [80, 20]);
        assert_eq!(render(&[text], &plain(), 80, false).len(), 1);
    }
}
