//! Blocks that exist only as numbers, for tests of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::array::blocks::{Blocks, DiskId, Login};
use crate::array::size::Pages;
use crate::array::{Array, Group};

#[derive(Default)]
struct Inside {
    /// Page to the number of its last write.
    disks: BTreeMap<DiskId, BTreeMap<u64, u64>>,
    writes: u64,
    copies: Vec<usize>,
}

#[derive(Clone, Default)]
pub struct FakeBlocks(Arc<Mutex<Inside>>);

impl FakeBlocks {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().expect("no test panicked inside")
    }

    pub fn write(&self, disk: DiskId, pages: Range<u64>) {
        let mut inside = self.inside();
        inside.writes += 1;
        let stamp = inside.writes;
        inside.disks.get_mut(&disk).expect("a disk").extend(pages.map(|page| (page, stamp)));
    }

    pub fn disks(&self) -> usize {
        self.inside().disks.len()
    }

    pub fn same(&self, one: DiskId, other: DiskId) -> bool {
        self.inside_of(one) == self.inside_of(other)
    }

    fn inside_of(&self, disk: DiskId) -> BTreeMap<u64, u64> {
        self.inside().disks[&disk].clone()
    }

    /// How many disks each copy took.
    pub fn copies(&self) -> Vec<usize> {
        self.inside().copies.clone()
    }
}

impl Blocks for FakeBlocks {
    fn create(&mut self, disk: DiskId, _: Pages) -> io::Result<()> {
        assert!(self.inside().disks.insert(disk, BTreeMap::new()).is_none(), "a number was used twice");
        Ok(())
    }

    fn resize(&mut self, disk: DiskId, pages: Pages) -> io::Result<()> {
        self.inside().disks.get_mut(&disk).expect("a disk").retain(|page, _| *page < pages.0);
        Ok(())
    }

    fn remove(&mut self, disk: DiskId) -> io::Result<()> {
        assert!(self.inside().disks.remove(&disk).is_some(), "removed what is not there");
        Ok(())
    }

    fn copy(&mut self, pairs: &[(DiskId, DiskId)]) -> io::Result<()> {
        let mut inside = self.inside();
        inside.copies.push(pairs.len());
        for (from, to) in pairs {
            let pages = inside.disks[from].clone();
            assert!(inside.disks.insert(*to, pages).is_none(), "a number was used twice");
        }
        Ok(())
    }

    fn used(&mut self, disk: DiskId) -> io::Result<Pages> {
        Ok(Pages(self.inside().disks[&disk].len() as u64))
    }

    fn differing(&mut self, one: DiskId, other: DiskId) -> io::Result<Pages> {
        let (one, other) = (self.inside_of(one), self.inside_of(other));
        let pages: BTreeSet<&u64> = one.keys().chain(other.keys()).collect();
        Ok(Pages(pages.into_iter().filter(|page| one.get(page) != other.get(page)).count() as u64))
    }

    fn publish(&mut self, _: &Group) -> io::Result<()> {
        Ok(())
    }

    fn logins(&self) -> Vec<Login> {
        Vec::new()
    }
}

/// A fresh group with a pool of so many megabytes.
pub fn array(capacity_mb: u64) -> (Array, FakeBlocks) {
    let blocks = FakeBlocks::default();
    let group = Group::fresh("group1", "127.0.0.1", 0x1a2b3c40d, capacity_mb, "grpadmin");
    (Array::new(group, Box::new(blocks.clone())), blocks)
}
