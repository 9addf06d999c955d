//! What came of a run, for people: a table in Markdown.

use std::fmt;
use std::time::Duration;

use tanada_driver::Capabilities;

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// With what was seen, for instance a figure; may be empty.
    Passed(String),
    /// The storage says that it cannot, and refuses as it should.
    NotOffered(String),
    Failed(String),
}

#[derive(Debug, Clone)]
pub struct CaseReport {
    pub name: &'static str,
    pub what: &'static str,
    pub verdict: Verdict,
    pub took: Duration,
}

/// All cases of a run over one storage.
#[derive(Debug, Clone)]
pub struct Report {
    /// The SR's type.
    pub storage: &'static str,
    pub capabilities: Capabilities,
    pub cases: Vec<CaseReport>,
}

impl Report {
    pub fn failures(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| matches!(case.verdict, Verdict::Failed(_)))
    }

    /// What the storage does by itself, as rows of a table.
    pub fn abilities(&self) -> [(&'static str, bool); 8] {
        let Capabilities {
            thin,
            offloaded,
            group_snapshot,
            constant_time,
            revert_in_place,
            exact_difference,
            shared,
            clone_is_copy,
            resize_online: _,
        } = self.capabilities;
        [
            ("thin", thin),
            ("offloaded: no byte of a snapshot, clone or revert passes the host", offloaded),
            ("atomic: several disks are cut at one instant", group_snapshot),
            ("constant time: snapshot and clone do not depend on the size", constant_time),
            ("revert in place", revert_in_place),
            ("exact difference of two generations", exact_difference),
            ("shared by several hosts", shared),
            ("clones share space with their source", !clone_is_copy),
        ]
    }
}

/// Two tables with a column for this storage; `cargo xtask conformance` puts those of several side by side.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| the storage by itself | `{}` |\n|---|---|", self.storage)?;
        for (what, can) in self.abilities() {
            writeln!(f, "| {what} | {} |", if can { "yes" } else { "no" })?;
        }
        writeln!(f, "\n| case | `{}` |\n|---|---|", self.storage)?;
        for case in &self.cases {
            writeln!(f, "| {}: {} | {} |", case.name, case.what, words(&case.verdict))?;
        }
        Ok(())
    }
}

/// One line, safe inside a table.
fn words(verdict: &Verdict) -> String {
    let (word, more) = match verdict {
        Verdict::Passed(more) => ("passed", more),
        Verdict::NotOffered(more) => ("not offered", more),
        Verdict::Failed(more) => ("**FAILED**", more),
    };
    let more = more.replace(['\n', '|'], " ");
    if more.is_empty() { word.to_owned() } else { format!("{word}: {more}") }
}
