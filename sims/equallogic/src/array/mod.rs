//! The array as its administrator knows it: a group with pools, volumes, snapshots, collections, CHAP accounts and
//! access records. No I/O happens here; blocks are asked for through [`Blocks`].
//!
//! ## What is kept true
//! - A volume has whole 15 MB pages; what was asked for is remembered only to be shown.
//! - Space set aside (reserve and snapshot reserve of all volumes of a pool) never exceeds the pool.
//! - Snapshots are born offline, belong to their volume and die with it; there are none of templates' or snapshots' own.
//! - A snapshot holds the pages that were overwritten between it and the next younger one (or the volume). When a volume's
//!   snapshots hold more than their reserve, its depletion policy acts: the oldest ones go, or all of it goes offline.
//! - A thin volume's reserve grows ahead of its use, up to its growth limit; beyond, it goes offline.
//! - A template stays read-only while thin clones share its pages, and cannot be deleted.
//!
//! [`Array::tick`] restores those that writing initiators disturb.

pub mod blocks;
pub mod name;
pub mod size;
pub mod volume;

mod access;
mod collections;
mod group;
mod properties;
mod reserve;
mod snapshots;
#[cfg(test)]
mod testing;
mod volumes;

use std::io;
use std::mem;

pub use access::{Admission, LoginRefusal};
pub use group::{Account, AccountKind, Collection, Group, MemberSnapshot, Pool, Settings, SnapCollection};
pub use properties::Property;
#[cfg(test)]
pub use testing::{FakeBlocks, array};
pub use volumes::{CloneSpec, VolumeSpec};

use blocks::{Blocks, DiskId, Login};

/// What the array answers after `% Error - `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Refused {
    pub fn missing(what: &str, name: &str) -> Refused {
        Refused(format!("{what} {name} does not exist."))
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused(format!("Internal error: {error}"))
    }
}

pub type Outcome<T> = Result<T, Refused>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Info,
    Warning,
    Error,
    Audit,
}

/// Something that happened, told on every session that did not switch events off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub severity: Severity,
    pub text: String,
}

/// The group and its blocks, at work.
pub struct Array {
    pub group: Group,
    blocks: Box<dyn Blocks>,
    /// Milliseconds since 1970; set by whoever calls.
    pub now_ms: u64,
    events: Vec<Event>,
    /// Disks that nothing refers to any more, removed once their targets are gone.
    doomed: Vec<DiskId>,
}

impl Array {
    pub fn new(group: Group, blocks: Box<dyn Blocks>) -> Array {
        Array { group, blocks, now_ms: 0, events: Vec::new(), doomed: Vec::new() }
    }

    pub fn event(&mut self, severity: Severity, text: impl Into<String>) {
        self.events.push(Event { severity, text: text.into() });
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    pub fn logins(&self) -> Vec<Login> {
        self.blocks.logins()
    }

    /// How many initiators are logged in to a target.
    pub fn connections(&self, iqn: &str) -> usize {
        self.blocks.logins().iter().filter(|login| login.iqn == iqn).count()
    }

    /// Brings targets and disks in line with the records. Due after every command.
    pub fn settle(&mut self) -> Outcome<()> {
        self.blocks.publish(&self.group)?;
        for disk in mem::take(&mut self.doomed) {
            self.blocks.remove(disk)?;
        }
        Ok(())
    }

    /// Measures what is in use and lets the policies act. Due now and then.
    pub fn tick(&mut self) -> Outcome<()> {
        self.account()?;
        self.settle()
    }
}
