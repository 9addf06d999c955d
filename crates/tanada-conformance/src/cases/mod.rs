//! The cases, in the order in which they are played: the later ones lean on what the earlier ones showed.

mod access;
mod contents;
mod creation;
mod deletion;
mod instant;
mod offload;
mod repeated;
mod restart;
mod scan;

use anyhow::Result;
use futures_util::future::BoxFuture;
use tanada_driver::{DriverErrorKind, DriverResult};

use crate::report::Verdict;
use crate::scratch::Scratch;

/// One subject of the suite.
pub struct Case {
    pub name: &'static str,
    pub what: &'static str,
    pub play: for<'a> fn(&'a Scratch) -> BoxFuture<'a, Result<Verdict>>,
}

macro_rules! case {
    ($name:literal, $what:literal, $play:path) => {
        Case { name: $name, what: $what, play: |scratch| Box::pin($play(scratch)) }
    };
}

pub const CASES: &[Case] = &[
    case!("create", "a new disk has at least the size asked for and reads as zeros", creation::sizes),
    case!("thin", "a large disk takes next to no room until it is written", creation::thin),
    case!("limits", "what cannot be is refused, and nothing is left of it", creation::limits),
    case!("names", "labels with any characters harm nobody", creation::names),
    case!("access", "a generation is never written, an ended attachment reaches nothing", access::play),
    case!("snapshot", "a generation keeps what the disk held", contents::snapshot),
    case!("clone", "disks over a generation or disk share nothing they write", contents::clone),
    case!("revert", "a disk goes back to a generation, older and newer ones stay", contents::revert),
    case!("resize", "a disk grows, keeps its content, and the rest is zeros", contents::resize),
    case!("difference", "changed extents between two generations are exact", contents::difference),
    case!("instant", "several disks under writers are cut at one instant", instant::play),
    case!("deletion", "disks, generations and clones go in any order, the others stay whole", deletion::play),
    case!("repeated", "every verb may be repeated", repeated::play),
    case!("restart", "a verb abandoned on its way is repeated after a restart, and nothing is doubled", restart::play),
    case!("side by side", "many disks are worked on at the same time", repeated::side_by_side),
    case!("scan", "who attaches the storage anew finds everything", scan::play),
    case!("offload", "no byte of snapshot, clone and revert passes the host", offload::bytes),
    case!("time", "how long a snapshot and a clone take, small and large", offload::time),
];

fn passed() -> Result<Verdict> {
    Ok(Verdict::Passed(String::new()))
}

/// Fails unless the verb was refused for one of these reasons.
fn must_refuse<T>(what: &str, result: DriverResult<T>, kinds: &[DriverErrorKind]) -> Result<()> {
    match result {
        Ok(_) => anyhow::bail!("{what} was not refused"),
        Err(error) if kinds.contains(&error.kind) => Ok(()),
        Err(error) => anyhow::bail!("{what} was refused as {:?}, not as one of {kinds:?}: {error}", error.kind),
    }
}
