//! What the array model asks of the thing that keeps its blocks.

use std::io;

use serde::{Deserialize, Serialize};

use crate::array::Group;
use crate::array::size::Pages;

/// A volume's or snapshot's blocks. Numbers are never used twice in the life of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub u64);

/// One target that initiators may see: an online volume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub iqn: String,
    pub disk: DiskId,
    pub pages: Pages,
    pub read_only: bool,
    /// Whether blocks may be given back by UNMAP.
    pub thin: bool,
    /// CHAP accounts (user, secret) that access records of this target ask for.
    pub chap: Vec<(String, String)>,
}

/// A logged-in initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub iqn: String,
    pub initiator: String,
    pub address: String,
}

/// Disks behind the model. All calls are done when they return.
pub trait Blocks: Send {
    /// A disk full of zeroes.
    fn create(&mut self, disk: DiskId, pages: Pages) -> io::Result<()>;
    fn resize(&mut self, disk: DiskId, pages: Pages) -> io::Result<()>;
    fn remove(&mut self, disk: DiskId) -> io::Result<()>;
    /// Copies (source, new disk), all at one instant.
    fn copy(&mut self, pairs: &[(DiskId, DiskId)]) -> io::Result<()>;
    /// Pages that were ever written.
    fn used(&mut self, disk: DiskId) -> io::Result<Pages>;
    /// Pages in which two disks differ.
    fn differing(&mut self, one: DiskId, other: DiskId) -> io::Result<Pages>;
    /// Makes exactly the targets of [`Group::exports`] exist, ending the sessions of those that go, and lets in whom
    /// [`Group::admit`] lets in from now on.
    fn publish(&mut self, group: &Group) -> io::Result<()>;
    /// Who is logged in.
    fn logins(&self) -> Vec<Login>;
}
