//! The group manager's command line: words, grammar, what the commands do, how answers look, and the line discipline.
//!
//! ```text
//!  bytes ─▶ session ─▶ words ─▶ grammar ─▶ Request ─┐
//!                                                    ▼  (run by the front, which holds the array)
//!  bytes ◀─ session ◀─ layout ◀───────────── Reply ◀─ verbs
//! ```
//! Nothing here does I/O or reads a clock: a [`Session`] is fed bytes and asked what to do next.

mod access;
mod collection;
mod grammar;
mod group;
mod layout;
mod session;
#[cfg(test)]
mod session_tests;
mod snapshot;
mod verbs;
mod volume;
mod words;

use crate::array::{Array, Refused};
use crate::cli::words::Word;

pub use grammar::Request;
pub use layout::Block;
pub use session::{Session, Step, View};

/// An answer that begins with `% Error - `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    pub text: String,
    /// The line itself was bad; the array offers it again for editing.
    pub syntax: bool,
}

impl CliError {
    pub fn syntax(text: impl Into<String>) -> CliError {
        CliError { text: text.into(), syntax: true }
    }

    pub fn refused(text: impl Into<String>) -> CliError {
        CliError { text: text.into(), syntax: false }
    }
}

impl From<Refused> for CliError {
    fn from(refused: Refused) -> CliError {
        CliError::refused(refused.0)
    }
}

/// What a command changes about the session that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Words in front of all that is typed from now on, and how the prompt names that.
    Enter {
        words: Vec<Word>,
        label: String,
    },
    Leave,
    Logout,
    Columns(usize),
    HardWrap(bool),
}

/// A command's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub blocks: Vec<Block>,
    pub effect: Option<Effect>,
}

impl Reply {
    pub fn silent() -> Reply {
        Reply::default()
    }

    pub fn text(lines: &[&str]) -> Reply {
        Reply { blocks: lines.iter().map(|line| Block::Text((*line).into())).collect(), effect: None }
    }

    pub fn effect(effect: Effect) -> Reply {
        Reply { blocks: Vec::new(), effect: Some(effect) }
    }

    pub fn blocks(blocks: Vec<Block>) -> Reply {
        Reply { blocks, effect: None }
    }
}

/// Runs a command. The caller settles the array afterwards.
pub fn run(array: &mut Array, account: &str, request: &Request) -> Result<Reply, CliError> {
    verbs::run(array, account, request)
}
