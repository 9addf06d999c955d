//! What a group's command line shows, as a pure function of the bytes it sent.
//!
//! ```text
//!   send COMMAND CR ─▶ echo ─▶ lines ─▶ "GROUP> "              the answer
//!                        │        ├─▶ "--More--"               the pager is on: a space goes on
//!                        │        ├─▶ "... delete ...? [n] "   a question: only a deletion is confirmed
//!                        │        └─▶ "% Error" "GROUP> COMMAND"  refused, and the bad text waits to be edited: the
//!                        │                                     session is given up, or the next command is added to it
//!                        └─▶ (end of the channel)              lost; nothing is known of the effect
//! ```
//! The prompt counts only as the whole last line. Event lines (`process:1234.56:file.c:78:INFO:1.2.3:text`) may come in
//! between although they are switched off: another script with the same account can switch them on again.

/// Columns that are asked for with `stty columns`.
pub const COLUMNS: usize = 255;
/// More than this without a prompt is no answer to any of our commands (a `pool show` of 1,024 volumes has 200 KiB).
pub const SCREEN_BYTES_MAX: usize = 8 << 20;

/// What the last line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Unfinished,
    Prompt,
    /// The bad command stands behind the prompt again.
    Reprinted,
    Pager,
    Question(String),
}

/// All that came since a command was sent.
#[derive(Debug, Default)]
pub struct Screen {
    text: Vec<u8>,
}

impl Screen {
    /// False when there is too much.
    #[must_use]
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        self.text.extend_from_slice(bytes);
        self.text.len() <= SCREEN_BYTES_MAX
    }

    /// Where a session stands that waits for `prompt` after `command`.
    pub fn seen(&self, prompt: &str, command: &str) -> Seen {
        let last = self.last_line();
        if last == prompt {
            return Seen::Prompt;
        }
        if let Some(rest) = last.strip_prefix(prompt) {
            let refused = || lines(&self.text).iter().any(|line| is_error(line));
            let again = !command.is_empty() && rest.trim() == command.trim() && refused();
            return if again { Seen::Reprinted } else { Seen::Unfinished };
        }
        let low = last.trim().to_ascii_lowercase();
        if (low.starts_with('-') && low.contains("more")) || low.contains("press any key") {
            return Seen::Pager;
        }
        let asks = ["(y/n)", "[y/n]", "[y|n]", "[yes/no]", "[n]", "[y]", "(y/n):"];
        let opens = ["do you", "are you"].iter().any(|start| low.starts_with(start));
        if asks.iter().any(|end| low.ends_with(end)) || (opens && low.ends_with('?')) {
            return Seen::Question(last.trim().to_string());
        }
        Seen::Unfinished
    }

    /// The prompt of a group whose name is not known yet: `NAME> ` as the whole last line.
    pub fn first_prompt(&self) -> Option<String> {
        let last = self.last_line();
        let name = last.strip_suffix("> ")?;
        let fits = !name.is_empty()
            && name.len() <= 63
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_');
        fits.then_some(last)
    }

    /// What came, for the words of an error: one line, at most 200 characters.
    pub fn words(&self) -> String {
        let text = lines(&self.text).join(" ");
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
    }

    /// The answer alone: without what was before the echo, the echo, pagers, questions, events and the prompt.
    pub fn answer(&self, prompt: &str, command: &str) -> Vec<String> {
        let all = lines(&self.text);
        let body = &all[..all.len().saturating_sub(1)];
        let mut answer = Vec::new();
        let mut event_goes_on = false;
        for line in &body[echo_end(body, prompt, command)..] {
            if event_goes_on || is_event(line) {
                event_goes_on = line.len() >= COLUMNS;
            } else if !is_noise(line) {
                answer.push(line.trim_end().to_string());
            }
        }
        answer
    }

    fn last_line(&self) -> String {
        let start = self.text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        clean(&self.text[start..])
    }
}

/// The number of lines up to and with the echo of `command`, which may be broken at the width of the terminal. None of
/// them where there is no echo.
fn echo_end(lines: &[String], prompt: &str, command: &str) -> usize {
    for start in 0..lines.len() {
        let first = lines[start].strip_prefix(prompt).unwrap_or(&lines[start]);
        let mut joined = String::new();
        for (at, line) in lines.iter().enumerate().skip(start) {
            joined.push_str(if at == start { first } else { line });
            if joined.trim_end() == command {
                return at + 1;
            }
            if joined.is_empty() || !command.starts_with(joined.as_str()) {
                break;
            }
        }
    }
    0
}

/// Lines without their ends; the last one is what stands after the last line feed.
fn lines(text: &[u8]) -> Vec<String> {
    text.split(|byte| *byte == b'\n').map(clean).collect()
}

/// Text without terminal controls; a backspace takes the character before it.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{8}' => {
                out.pop();
            }
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                while characters.next().is_some_and(|part| !('@'..='~').contains(&part)) {}
            }
            '\t' => out.push(' '),
            control if control.is_control() => {}
            other => out.push(other),
        }
    }
    out
}

fn is_noise(line: &str) -> bool {
    let low = line.trim().to_ascii_lowercase();
    low.starts_with('-') && low.contains("more") && low.len() < 40
}

/// `process:epoch.cc:file.c:line:SEVERITY:a.b.c:text`.
pub fn is_event(line: &str) -> bool {
    const SEVERITIES: [&str; 6] = ["INFO", "WARNING", "ERROR", "AUDIT", "FATAL", "DEBUG"];
    let parts: Vec<&str> = line.splitn(7, ':').collect();
    let [_, epoch, file, number, severity, code, _] = parts[..] else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    digits(epoch) && file.contains('.') && digits(number) && SEVERITIES.contains(&severity) && digits(code)
}

pub fn is_error(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("% Error") || line.starts_with("Error:")
}

/// The words of the errors in an answer; `None` where it holds none and the command succeeded.
pub fn refusal(answer: &[String]) -> Option<String> {
    let first = answer.iter().position(|line| is_error(line))?;
    let words: Vec<&str> = answer[first..].iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    let text = words.join(" ");
    let text = text.trim_start_matches("% Error").trim_start_matches("Error:");
    Some(text.trim_start_matches([' ', '-', ':']).chars().take(400).collect())
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
