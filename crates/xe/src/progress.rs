//! A progress bar on stderr, only where stderr is a terminal.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Often enough to look alive, seldom enough to cost nothing.
const REDRAW: Duration = Duration::from_millis(100);
const BAR_WIDTH: usize = 30;

pub struct Bar {
    label: String,
    on_terminal: bool,
    started: Instant,
    drawn: Option<Instant>,
    fraction: Option<f64>,
    bytes: u64,
}

impl Bar {
    pub fn new(label: &str) -> Bar {
        Bar { on_terminal: stderr().is_terminal(), label: label.to_owned(), ..Bar::silent() }
    }

    /// One that is never drawn.
    pub fn silent() -> Bar {
        let (label, on_terminal) = (String::new(), false);
        Bar { label, on_terminal, started: Instant::now(), drawn: None, fraction: None, bytes: 0 }
    }

    /// 0 to 1; a negative number means that nobody knows.
    pub fn fraction(&mut self, fraction: f64) {
        self.fraction = (fraction >= 0.0).then(|| fraction.min(1.0));
        self.draw();
    }

    /// Bytes transferred so far.
    pub fn bytes(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.draw();
    }

    fn draw(&mut self) {
        if !self.on_terminal || self.drawn.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        let line = line(&self.label, self.fraction, self.bytes, self.started.elapsed());
        // A terminal that went away does not stop the work.
        let _ = write!(stderr(), "\r{line}\x1b[K");
    }

    /// Wipes the bar.
    pub fn finish(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(label: &str, fraction: Option<f64>, bytes: u64, elapsed: Duration) -> String {
    let mut line = label.to_owned();
    if let Some(fraction) = fraction {
        let full = (fraction * BAR_WIDTH as f64) as usize;
        let _ = write!(line, " [{}{}] {:3.0} %", "#".repeat(full), " ".repeat(BAR_WIDTH - full), fraction * 100.0);
    }
    if bytes > 0 {
        let mib = bytes as f64 / f64::from(1 << 20);
        let rate = mib / elapsed.as_secs_f64().max(0.001);
        let _ = write!(line, "  {mib:.0} MiB  {rate:.0} MiB/s");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::line;
    use std::time::Duration;

    #[test]
    fn the_line_shows_what_is_known() {
        let second = Duration::from_secs(1);
        assert_eq!(line("x", None, 0, second), "x");
        assert_eq!(line("x", Some(0.5), 0, second), format!("x [{}{}]  50 %", "#".repeat(15), " ".repeat(15)));
        assert_eq!(line("x", None, 3 << 20, second), "x  3 MiB  3 MiB/s");
    }
}
