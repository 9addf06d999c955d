//! The two layouts in which a group shows what it has: property pages and tables. Pure, and tolerant: whatever is not
//! understood is left out, never guessed.

use std::collections::BTreeMap;

/// `Key: value` lines, by key. A value that goes on in the next line is put together again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    values: BTreeMap<String, String>,
}

impl Page {
    /// Reads pairs up to the first table: sections with tables (`Access Records`, connections) have pages of their own.
    pub fn parse(lines: &[String]) -> Page {
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        let mut last: Option<String> = None;
        for (at, line) in lines.iter().enumerate() {
            if is_title(line) {
                last = None;
                continue;
            }
            if line.trim().is_empty() || widths(line).is_some() {
                continue;
            }
            if lines.get(at + 1).is_some_and(|next| widths(next).is_some()) {
                break;
            }
            if let Some((key, value)) = pair(line) {
                // The first section is the volume's own; later ones may use a key again.
                if values.contains_key(key) {
                    last = None;
                } else {
                    values.insert(key.to_string(), value.to_string());
                    last = Some(key.to_string());
                }
            } else if let Some(value) = last.as_ref().and_then(|key| values.get_mut(key)) {
                value.push_str(line);
            }
        }
        Page { values: values.into_iter().map(|(key, value)| (key, value.trim().to_string())).collect() }
    }

    /// Empty where the key is not there: a page shows empty values as `Key: `.
    pub fn get(&self, key: &str) -> &str {
        self.values.get(key).map_or("", String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// A section's title: underscores, words, underscores.
fn is_title(line: &str) -> bool {
    line.starts_with("___") && line.ends_with("___")
}

/// Keys are short and have no blanks at their ends; `Key:` alone is an empty value whose blank was cut off.
fn pair(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(": ").or_else(|| line.strip_suffix(':').map(|key| (key, "")))?;
    let fits = !key.is_empty() && key.len() <= 40 && !key.starts_with(' ') && !key.contains([':', '=', ',']);
    fits.then_some((key, value))
}

/// Rows under a header, cut at the widths of the dashes and put together where a cell is broken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The first table in `lines`; empty where there is none.
    pub fn parse(lines: &[String]) -> Table {
        let Some(dashes) =
            (1..lines.len()).find(|at| widths(&lines[*at]).is_some() && !lines[at - 1].trim().is_empty())
        else {
            return Table::default();
        };
        let columns = widths(&lines[dashes]).unwrap_or_default();
        let header = cut(&lines[dashes - 1], &columns);
        let mut rows: Vec<Vec<String>> = Vec::new();
        for line in &lines[dashes + 1..] {
            if line.trim().is_empty() || is_title(line) || widths(line).is_some() {
                break;
            }
            let cells = cut(line, &columns);
            match rows.last_mut().filter(|_| line.starts_with(' ')) {
                Some(row) => row.iter_mut().zip(&cells).for_each(|(whole, part)| whole.push_str(part)),
                None => rows.push(cells),
            }
        }
        Table { header, rows }
    }

    /// The number of the column with this title.
    pub fn column(&self, title: &str) -> Option<usize> {
        self.header.iter().position(|found| found.eq_ignore_ascii_case(title))
    }
}

/// Start and length of each run of dashes, in characters; `None` for a line with anything else in it. A line of a single
/// long run is a rule, not a header, unless it is the only column; both read alike.
fn widths(line: &str) -> Option<Vec<(usize, usize)>> {
    let line = line.trim_end();
    if !line.starts_with('-') || line.bytes().any(|byte| byte != b'-' && byte != b' ') {
        return None;
    }
    let mut columns = Vec::new();
    let mut at = 0;
    for run in line.split(' ') {
        if !run.is_empty() {
            columns.push((at, run.len()));
        }
        at += run.len() + 1;
    }
    Some(columns)
}

/// Cells of a line. The last column takes the rest of the line; a name that is wider than its column does not happen, the
/// group breaks it.
fn cut(line: &str, columns: &[(usize, usize)]) -> Vec<String> {
    let characters: Vec<char> = line.chars().collect();
    let cell = |(at, (start, length)): (usize, &(usize, usize))| {
        let end = if at + 1 == columns.len() { characters.len() } else { (start + length).min(characters.len()) };
        let part: String = characters.get(*start..end).unwrap_or_default().iter().collect();
        part.trim().to_string()
    };
    columns.iter().enumerate().map(cell).collect()
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
