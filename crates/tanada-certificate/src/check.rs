//! What was seen when a freeze was tried out: `tanada doctor quiesce`, as data and for people.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use crate::certificate::{Certificate, Level};
use crate::keys::Info;
use crate::text::{Clean, Time};

/// How one step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// It works, and somebody should look all the same.
    Warning,
    Failed,
    /// It could not be looked at, or was not.
    Unknown,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Warning => "WARNING",
            Outcome::Failed => "FAILED",
            Outcome::Unknown => "-",
        }
    }
}

/// One step, in the order taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub outcome: Outcome,
    pub took_us: u64,
    /// What was seen; parts of it are the guest's words.
    pub words: String,
}

/// Everything that was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub steps: Vec<Step>,
    /// What a snapshot would have got, as `snapshot_info` keeps it.
    pub certificate: Info,
    /// What to do, the most important first.
    pub advice: Vec<String>,
}

impl Check {
    /// The level that a snapshot would have got.
    pub fn level(&self) -> Level {
        Certificate::from_map(&self.certificate).map_or(Level::Crash, |certificate| certificate.level)
    }

    /// Would a snapshot be better than crash-consistent?
    pub fn is_quiesced(&self) -> bool {
        matches!(self.level(), Level::FileSystem | Level::Application)
    }

    /// As it travels from the daemon.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// # Errors
    /// In words, where the text is no check.
    pub fn from_json(text: &str) -> Result<Check, String> {
        serde_json::from_str(text).map_err(|error| format!("the answer is no quiesce check: {error}"))
    }

    pub fn add(&mut self, name: &str, outcome: Outcome, took_us: u64, words: impl Into<String>) {
        self.steps.push(Step { name: name.to_owned(), outcome, took_us, words: words.into() });
    }
}

impl Display for Check {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let took = if step.took_us == 0 { String::new() } else { Time(step.took_us).to_string() };
            writeln!(f, "{:<8} {:<14} {took:>9}  {}", step.outcome.word(), step.name, Clean(&step.words))?;
        }
        let level = self.level();
        writeln!(f, "A snapshot would be: {} ({})", level.name(), level.meaning())?;
        self.advice.iter().try_for_each(|advice| writeln!(f, "Advice: {}", Clean(advice)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, Outcome};
    use crate::certificate::{Certificate, Level};

    #[test]
    fn it_reads_line_by_line_and_survives_json() {
        let mut check = Check::default();
        assert!(!check.is_quiesced());
        check.add("port", Outcome::Ok, 0, "the guest's agent has opened its port");
        check.add("freeze", Outcome::Warning, 52_000, "2 file systems\u{1b}[2J");
        check.certificate = Certificate { level: Level::FileSystem, ..Certificate::default() }.to_map();
        check.advice.push("look".into());
        let expected = "\
ok       port                      the guest's agent has opened its port
WARNING  freeze             52 ms  2 file systems\\u{1b}[2J
A snapshot would be: file system (file systems need no recovery; programs find their files as after a power cut)
Advice: look
";
        assert_eq!(check.to_string(), expected);
        assert!(check.is_quiesced());
        assert_eq!(Check::from_json(&check.to_json()), Ok(check));
        assert!(Check::from_json("{}").is_err());
    }
}
