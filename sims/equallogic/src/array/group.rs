//! The group's records, as they are kept across restarts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::array::blocks::{DiskId, Export};
use crate::array::size::{PAGE_MB, Pages};
use crate::array::volume::{AppliesTo, Volume};
use crate::array::{Outcome, Refused, name};

/// `cli-settings` of an account. They outlive the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub paging: bool,
    pub events: bool,
    pub format_output: bool,
    pub confirmation: bool,
    pub reprint_bad_input: bool,
    pub idle_logout: bool,
    pub display_in_mb: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            paging: true,
            events: true,
            format_output: true,
            confirmation: true,
            reprint_bad_input: true,
            idle_logout: true,
            display_in_mb: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountKind {
    GroupAdmin,
    ReadOnly,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Account {
    pub password: String,
    pub kind: AccountKind,
    pub settings: Settings,
}

impl Account {
    /// Only the first eight characters of a password count.
    pub fn admits(&self, password: &str) -> bool {
        let eight = |text: &str| text.chars().take(8).collect::<String>();
        eight(&self.password) == eight(password)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    pub capacity: Pages,
}

impl Pool {
    /// Whole pages of so many megabytes.
    pub fn of_mb(mb: u64) -> Pool {
        Pool { capacity: Pages(mb / PAGE_MB) }
    }
}

/// A snapshot of one volume of a collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSnapshot {
    pub volume: String,
    pub snapshot: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapCollection {
    pub name: String,
    pub description: String,
    pub created_ms: u64,
    pub members: Vec<MemberSnapshot>,
}

/// Volumes whose snapshots are taken at one instant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Collection {
    pub description: String,
    pub volumes: Vec<String>,
    /// Oldest first.
    pub snapshots: Vec<SnapCollection>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Group {
    /// Also the prompt.
    pub name: String,
    /// Address of the iSCSI portal, without its port.
    pub address: String,
    pub firmware: String,
    /// Part of every target name.
    pub ident: u64,
    /// The last number given to a volume or snapshot.
    pub serial: u64,
    pub info_messages: bool,
    pub accounts: BTreeMap<String, Account>,
    pub pools: BTreeMap<String, Pool>,
    pub volumes: BTreeMap<String, Volume>,
    pub collections: BTreeMap<String, Collection>,
    /// CHAP user to secret.
    pub chap: BTreeMap<String, String>,
}

impl Group {
    /// A group fresh from its set-up: one pool called `default`, one account `grpadmin`.
    pub fn fresh(name: &str, address: &str, ident: u64, capacity_mb: u64, password: &str) -> Group {
        let admin = Account { password: password.into(), kind: AccountKind::GroupAdmin, settings: Settings::default() };
        Group {
            name: name.into(),
            address: address.into(),
            firmware: "V10.0.3 (R468147)".into(),
            ident,
            serial: 0,
            info_messages: true,
            accounts: BTreeMap::from([("grpadmin".to_string(), admin)]),
            pools: BTreeMap::from([("default".to_string(), Pool::of_mb(capacity_mb))]),
            volumes: BTreeMap::new(),
            collections: BTreeMap::new(),
            chap: BTreeMap::new(),
        }
    }

    pub fn volume(&self, name: &str) -> Outcome<&Volume> {
        self.volumes.get(name).ok_or_else(|| Refused::missing("Volume", name))
    }

    pub fn volume_mut(&mut self, name: &str) -> Outcome<&mut Volume> {
        self.volumes.get_mut(name).ok_or_else(|| Refused::missing("Volume", name))
    }

    pub fn collection_mut(&mut self, name: &str) -> Outcome<&mut Collection> {
        self.collections.get_mut(name).ok_or_else(|| Refused::missing("Volume collection", name))
    }

    /// Disk and target name for something new.
    pub(super) fn number(&mut self, name: &str) -> (DiskId, String) {
        self.serial += 1;
        (DiskId(self.serial), name::iqn(self.ident, self.serial, name))
    }

    /// Space set aside in a pool.
    pub fn reserved(&self, pool: &str) -> Pages {
        let volumes = self.volumes.values().filter(|volume| volume.pool == pool);
        volumes.fold(Pages(0), |sum, volume| sum.plus(volume.reserve).plus(volume.snap_reserve_pages()))
    }

    pub fn free(&self, pool: &str) -> Pages {
        self.pools.get(pool).map_or(Pages(0), |found| found.capacity.minus(self.reserved(pool)))
    }

    /// The disks of all volumes and snapshots.
    pub fn disks(&self) -> impl Iterator<Item = DiskId> {
        let of = |volume: &Volume| -> Vec<DiskId> {
            volume.snapshots.iter().map(|snapshot| snapshot.disk).chain([volume.disk]).collect()
        };
        self.volumes.values().flat_map(of)
    }

    /// The targets that exist by now.
    pub fn exports(&self) -> Vec<Export> {
        let mut exports = Vec::new();
        for volume in self.volumes.values() {
            let volume_chap = self.accounts_of(volume, AppliesTo::Volume);
            if volume.is_online() {
                exports.push(Export {
                    iqn: volume.iqn.clone(),
                    disk: volume.disk,
                    pages: volume.pages,
                    read_only: volume.read_only,
                    thin: volume.thin.is_some(),
                    chap: volume_chap,
                });
            }
            let chap = self.accounts_of(volume, AppliesTo::Snapshot);
            for snapshot in volume.snapshots.iter().filter(|one| one.online && volume.trouble.is_none()) {
                exports.push(Export {
                    iqn: snapshot.iqn.clone(),
                    disk: snapshot.disk,
                    pages: snapshot.pages,
                    read_only: snapshot.read_only,
                    thin: volume.thin.is_some(),
                    chap: chap.clone(),
                });
            }
        }
        exports
    }

    /// CHAP accounts that the records for volumes or snapshots name.
    fn accounts_of(&self, volume: &Volume, what: AppliesTo) -> Vec<(String, String)> {
        let records = volume.access.values().filter(|one| one.applies_to == AppliesTo::Both || one.applies_to == what);
        let mut users: Vec<&String> = records.filter_map(|record| record.chap_user.as_ref()).collect();
        users.sort();
        users.dedup();
        users.into_iter().filter_map(|user| Some((user.clone(), self.chap.get(user)?.clone()))).collect()
    }
}
