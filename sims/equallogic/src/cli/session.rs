//! The line discipline of one session: bytes in, bytes out, and commands to run in between.
//!
//! ```text
//!            line end             yes
//!  Editing ───────────▶ (Asking) ────▶ Running ──▶ (Paging) ──▶ Editing, with a new prompt
//!     ▲                     │ no                      │ q
//!     └─────────────────────┴─────────────────────────┘
//! ```
//! - Every character is echoed once, when it is taken; what arrives while a command runs waits and is echoed later.
//! - CR, LF, CRLF and Ctrl-Z end a line. An empty line gives a new prompt and nothing else.
//! - The prompt comes last, once the command is done, and is never drawn again while a line is typed. Events that happen
//!   meanwhile come out in the middle of the next answer, or at once when nothing was typed.
//! - After a line that was bad in itself the error, the prompt and the bad line come back, ready to be edited.
//! - Ctrl-U kills the line, Ctrl-C gives it up, Backspace and Delete take a character off.

use std::collections::VecDeque;
use std::mem;

use crate::array::Settings;
use crate::cli::grammar::{Request, resolve};
use crate::cli::layout::{Block, render};
use crate::cli::words::{Word, split};
use crate::cli::{CliError, Effect, Reply};

/// Columns and lines of a terminal that did not tell.
const COLUMNS: usize = 80;
const LINES: usize = 24;
/// Longest line taken, in bytes; what is typed beyond is not echoed.
const LINE_MAX: usize = 4096;
/// Most bytes that may wait while a command runs.
const AHEAD_MAX: usize = 1 << 20;

const MORE: &str = "-- More -- (any key: next page, q: quit)";

/// What a session sees of the world around it; asked for anew each time, for another session may change it.
#[derive(Clone, Debug)]
pub struct View {
    pub settings: Settings,
    /// The group's name, or whatever the prompt shall claim.
    pub prompt: String,
}

/// What to do next.
pub enum Step {
    Write(Vec<u8>),
    /// Run this, then call [`Session::finished`].
    Run(Request),
    /// Wait for input.
    Idle,
    Close,
}

enum State {
    Editing,
    Asking(Request),
    /// The echo goes out before the command takes its time.
    Ready(Request),
    Running,
    Paging(Vec<String>),
    Closed,
}

pub struct Session {
    state: State,
    /// A single command without echo, prompt and pages (`ssh host "command"`).
    exec: bool,
    input: VecDeque<u8>,
    line: Vec<u8>,
    /// The last line, as typed.
    given: Vec<u8>,
    after_cr: bool,
    out: Vec<u8>,
    events: Vec<String>,
    /// Sub-modes: the words in front of each command, and the prompt's part in parentheses.
    modes: Vec<(Vec<Word>, String)>,
    columns: usize,
    lines: usize,
    hard_wrap: bool,
}

impl Session {
    /// An interactive session; prints banner and prompt.
    pub fn shell(view: &View) -> Session {
        let mut session = Session::new(false);
        session.banner();
        session.prompt(view);
        session
    }

    /// A session for one command.
    pub fn exec(command: &str) -> Session {
        let mut session = Session::new(true);
        session.input.extend(command.bytes().take_while(|byte| *byte != b'\n'));
        session.input.push_back(b'\n');
        session
    }

    fn new(exec: bool) -> Session {
        Session {
            state: State::Editing,
            exec,
            input: VecDeque::new(),
            line: Vec::new(),
            given: Vec::new(),
            after_cr: false,
            out: Vec::new(),
            events: Vec::new(),
            modes: Vec::new(),
            columns: COLUMNS,
            lines: LINES,
            hard_wrap: true,
        }
    }

    /// The terminal's size, where the client has one.
    pub fn resize(&mut self, columns: usize, lines: usize) {
        if columns > 0 && lines > 0 {
            (self.columns, self.lines) = (columns, lines);
        }
    }

    pub fn input(&mut self, bytes: &[u8]) {
        let room = AHEAD_MAX.saturating_sub(self.input.len());
        self.input.extend(bytes.iter().take(room));
    }

    /// Something happened in the group.
    pub fn notify(&mut self, event: String) {
        if !self.exec {
            self.events.push(event);
        }
    }

    /// What to do next. Call it again after each step until it says [`Step::Idle`] or [`Step::Close`].
    pub fn step(&mut self, view: &View) -> Step {
        loop {
            if !self.out.is_empty() {
                return Step::Write(mem::take(&mut self.out));
            }
            match mem::replace(&mut self.state, State::Running) {
                State::Ready(request) => return Step::Run(request),
                State::Running => return Step::Idle,
                state => self.state = state,
            }
            if matches!(self.state, State::Closed) {
                return Step::Close;
            }
            let Some(byte) = self.input.pop_front() else {
                self.tell_events(view);
                match self.out.is_empty() {
                    true => return Step::Idle,
                    false => continue,
                }
            };
            if mem::take(&mut self.after_cr) && byte == b'\n' {
                continue;
            }
            self.after_cr = byte == b'\r';
            self.take(byte, view);
        }
    }

    /// Handles one byte.
    fn take(&mut self, byte: u8, view: &View) {
        match mem::replace(&mut self.state, State::Editing) {
            State::Paging(rest) => {
                self.out.extend_from_slice(format!("\r{}\r", " ".repeat(MORE.len())).as_bytes());
                match byte {
                    b'q' | b'Q' => self.prompt(view),
                    _ => self.page(rest, view),
                }
            }
            State::Asking(request) if !self.edit(byte) => self.state = State::Asking(request),
            State::Asking(request) => match mem::take(&mut self.line).first() {
                Some(b'y' | b'Y') => self.state = State::Ready(request),
                _ => self.prompt(view),
            },
            state => {
                self.state = state;
                if self.edit(byte) {
                    self.line_done(view);
                }
            }
        }
    }

    /// Edits the line; true once it is complete.
    fn edit(&mut self, byte: u8) -> bool {
        match byte {
            b'\r' | b'\n' | CTRL_Z => {
                self.echo(b"\r\n");
                return true;
            }
            CTRL_C => {
                self.line.clear();
                self.echo(b"^C\r\n");
                return true;
            }
            CTRL_U => {
                let shown = String::from_utf8_lossy(&self.line).chars().count();
                self.line.clear();
                self.echo("\x08 \x08".repeat(shown).as_bytes());
            }
            0x08 | 0x7f if !self.line.is_empty() => {
                // A character of several bytes goes as a whole.
                while self.line.pop().is_some_and(|last| last & 0xc0 == 0x80) {}
                self.echo(b"\x08 \x08");
            }
            0x20..=0x7e | 0x80.. if self.line.len() < LINE_MAX => {
                self.line.push(byte);
                self.echo(&[byte]);
            }
            _ => {}
        }
        false
    }

    fn echo(&mut self, bytes: &[u8]) {
        if !self.exec {
            self.out.extend_from_slice(bytes);
        }
    }

    fn line_done(&mut self, view: &View) {
        self.given = mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&self.given).into_owned();
        let context = self.modes.last().map_or(&[][..], |(words, _)| words);
        let request = match split(&text) {
            Ok(words) if words.is_empty() => return self.prompt(view),
            Ok(words) => resolve(context, &words),
            Err(error) => Err(error),
        };
        match request {
            Err(error) => self.answer(Err(error), view),
            Ok(request) => match request.verb.confirm {
                Some(question) if view.settings.confirmation => {
                    self.out.extend_from_slice(question.as_bytes());
                    self.state = State::Asking(request);
                }
                _ => self.state = State::Ready(request),
            },
        }
    }

    /// The answer to [`Step::Run`].
    pub fn finished(&mut self, result: Result<Reply, CliError>, view: &View) {
        self.state = State::Editing;
        self.answer(result, view);
    }

    fn answer(&mut self, result: Result<Reply, CliError>, view: &View) {
        let mut bad_line = Vec::new();
        let mut lines = match result {
            Ok(reply) => {
                let lines = render(&reply.blocks, &view.settings, self.columns, self.hard_wrap);
                if let Some(effect) = reply.effect {
                    self.apply(effect);
                }
                lines
            }
            Err(error) => {
                if error.syntax && view.settings.reprint_bad_input && !self.exec {
                    bad_line = self.given.clone();
                }
                let block = Block::Text(format!("% Error - {}", error.text));
                render(&[block], &view.settings, self.columns, self.hard_wrap)
            }
        };
        if matches!(self.state, State::Closed) {
            return self.print(&lines);
        }
        let events = self.rendered_events(view);
        let middle = lines.len().min(1);
        lines.splice(middle..middle, events);
        self.page(lines, view);
        if !bad_line.is_empty() && matches!(self.state, State::Editing) {
            self.out.extend_from_slice(&bad_line);
            self.line = bad_line;
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Enter { words, label } => self.modes.push((words, label)),
            Effect::Leave if self.modes.is_empty() => self.state = State::Closed,
            Effect::Leave => {
                self.modes.pop();
            }
            Effect::Logout => self.state = State::Closed,
            Effect::Columns(columns) => self.columns = columns,
            Effect::HardWrap(on) => self.hard_wrap = on,
        }
    }

    /// Prints what fits on the screen, or all of it where nobody pages; then the prompt.
    fn page(&mut self, mut lines: Vec<String>, view: &View) {
        let screen = self.lines.max(2) - 1;
        if self.exec || !view.settings.paging || lines.len() <= screen {
            self.print(&lines);
            return self.prompt(view);
        }
        let rest = lines.split_off(screen);
        self.print(&lines);
        self.out.extend_from_slice(MORE.as_bytes());
        self.state = State::Paging(rest);
    }

    fn print(&mut self, lines: &[String]) {
        for line in lines {
            self.out.extend_from_slice(line.as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn banner(&mut self) {
        let lines =
            ["", "           Welcome to Group Manager", "", "        Copyright 2001-2018 Dell Inc.", "", "", ""];
        self.print(&lines.map(String::from));
    }

    fn prompt(&mut self, view: &View) {
        if self.exec {
            self.state = State::Closed;
            return;
        }
        let mode = self.modes.last().map_or(String::new(), |(_, label)| format!("({label})"));
        self.out.extend_from_slice(format!("{}{mode}> ", view.prompt).as_bytes());
    }

    /// Events show themselves where nothing was typed yet, and push the prompt down.
    fn tell_events(&mut self, view: &View) {
        let quiet = matches!(self.state, State::Editing) && self.line.is_empty() && !self.exec;
        if !quiet || self.events.is_empty() {
            return;
        }
        let events = self.rendered_events(view);
        if !events.is_empty() {
            self.out.extend_from_slice(b"\r\n");
            self.print(&events);
            self.prompt(view);
        }
    }

    fn rendered_events(&mut self, view: &View) -> Vec<String> {
        let blocks: Vec<_> = mem::take(&mut self.events).into_iter().map(Block::Text).collect();
        match view.settings.events {
            true => render(&blocks, &view.settings, self.columns, self.hard_wrap),
            false => Vec::new(),
        }
    }
}

const CTRL_C: u8 = 0x03;
const CTRL_U: u8 = 0x15;
const CTRL_Z: u8 = 0x1a;
