//! What a run came to, as a table.

use std::fmt::{self, Display};

use super::server::Mode;

/// One snapshot's figures.
#[derive(Debug, Clone)]
pub struct Row {
    pub mode: Mode,
    pub level: String,
    /// From the request to freeze to its answer, hooks included, and from there to the thaw; microseconds, 0 where nothing
    /// was frozen.
    pub freeze_us: u64,
    pub frozen_us: u64,
    pub pause_us: u64,
    /// Longest time without an acknowledgement, over all clients.
    pub wait_ms: u64,
    /// File systems of its copy that replayed a journal.
    pub replays: usize,
    pub recovered: bool,
    pub required: usize,
    pub lost: usize,
}

impl Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}; froze within {} ms, frozen {} ms, write pause {} us, clients waited {} ms; {} journals replayed, {}; \
             {} committed, {} lost",
            self.level,
            self.freeze_us / 1000,
            self.frozen_us / 1000,
            self.pause_us,
            self.wait_ms,
            self.replays,
            if self.recovered { "database recovered" } else { "database clean" },
            self.required,
            self.lost
        )
    }
}

/// The table, one line per mode.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<7} {:>3} {:<12} {:>13} {:>13} {:>13} {:>15} {:>8} {:>9} {:>9} {:>4}\n",
        "mode",
        "n",
        "level",
        "freeze ms",
        "frozen ms",
        "pause us",
        "clients wait ms",
        "replays",
        "recovered",
        "committed",
        "lost"
    );
    for mode in Mode::ALL {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.mode == mode).collect();
        if rows.is_empty() {
            continue;
        }
        let mut levels: Vec<&str> = rows.iter().map(|row| row.level.as_str()).collect();
        levels.dedup();
        text += &format!(
            "{:<7} {:>3} {:<12} {:>13} {:>13} {:>13} {:>15} {:>8} {:>9} {:>9} {:>4}\n",
            mode.name(),
            rows.len(),
            levels.join(","),
            spread(rows.iter().map(|row| row.freeze_us / 1000)),
            spread(rows.iter().map(|row| row.frozen_us / 1000)),
            spread(rows.iter().map(|row| row.pause_us)),
            spread(rows.iter().map(|row| row.wait_ms)),
            rows.iter().map(|row| row.replays).sum::<usize>(),
            rows.iter().filter(|row| row.recovered).count(),
            rows.iter().map(|row| row.required).max().unwrap_or(0),
            rows.iter().map(|row| row.lost).sum::<usize>(),
        );
    }
    text
}

/// Median and maximum.
pub fn spread(values: impl Iterator<Item = u64>) -> String {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    match values[..] {
        [] => "-".to_owned(),
        _ => format!("{} / {}", values[values.len() / 2], values[values.len() - 1]),
    }
}
