//! Volumes, their snapshots and who may log in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::array::blocks::DiskId;
use crate::array::size::Pages;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Standard,
    Template,
    /// Shares the pages of this template.
    ThinClone(String),
}

/// Thin provisioning; percentages of the reported size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thin {
    pub min_reserve: u64,
    pub growth_warn: u64,
    pub growth_max: u64,
}

impl Default for Thin {
    fn default() -> Thin {
        Thin { min_reserve: 10, growth_warn: 60, growth_max: 100 }
    }
}

/// What happens when the snapshots of a volume need more than their reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Depletion {
    DeleteOldest,
    VolumeOffline,
}

impl Depletion {
    pub fn word(self) -> &'static str {
        match self {
            Depletion::DeleteOldest => "delete-oldest",
            Depletion::VolumeOffline => "volume-offline",
        }
    }

    pub fn parse(word: &str) -> Option<Depletion> {
        [Depletion::DeleteOldest, Depletion::VolumeOffline].into_iter().find(|policy| policy.word() == word)
    }
}

/// Why something that should be online is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    SnapReserveMet,
    ThinMaxGrowthMet,
    NoSpaceForAutoGrow,
}

impl Trouble {
    pub fn words(self) -> &'static str {
        match self {
            Trouble::SnapReserveMet => "snap reserve met",
            Trouble::ThinMaxGrowthMet => "thin max growth met",
            Trouble::NoSpaceForAutoGrow => "no space for auto grow",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppliesTo {
    Volume,
    Snapshot,
    Both,
}

impl AppliesTo {
    pub fn word(self) -> &'static str {
        match self {
            AppliesTo::Volume => "volume",
            AppliesTo::Snapshot => "snapshot",
            AppliesTo::Both => "both",
        }
    }
}

/// Lets in whoever meets all of its conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    /// `None` is everybody.
    pub initiator: Option<String>,
    /// Dotted quad; an octet may be `*`.
    pub address: String,
    /// CHAP account, where the record asks for one.
    pub chap_user: Option<String>,
    pub applies_to: AppliesTo,
}

impl AccessRecord {
    pub fn unrestricted() -> AccessRecord {
        AccessRecord { initiator: None, address: "*.*.*.*".into(), chap_user: None, applies_to: AppliesTo::Both }
    }

    pub fn matches(&self, initiator: &str, address: &str, snapshot: bool) -> bool {
        let kind = match self.applies_to {
            AppliesTo::Both => true,
            AppliesTo::Volume => !snapshot,
            AppliesTo::Snapshot => snapshot,
        };
        kind && self.initiator.as_deref().is_none_or(|name| name == initiator)
            && address_matches(&self.address, address)
    }
}

fn address_matches(pattern: &str, address: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('.'), address.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some("*"), _) => {}
            (one, other) if one == other => {}
            _ => return false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: String,
    pub iqn: String,
    pub disk: DiskId,
    /// Size as asked for, in MB, and as it is.
    pub size_mb: u64,
    pub pages: Pages,
    pub description: String,
    pub read_only: bool,
    pub online: bool,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Pages of the reserve that it holds: what was overwritten between it and its successor.
    pub held: Pages,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub alias: String,
    pub iqn: String,
    pub disk: DiskId,
    /// Size as asked for, in MB; shown as `Size`.
    pub size_mb: u64,
    /// Size as it is, and as READ CAPACITY tells.
    pub pages: Pages,
    pub pool: String,
    pub description: String,
    pub kind: Kind,
    pub thin: Option<Thin>,
    /// Space set aside, and how much of it holds data.
    pub reserve: Pages,
    pub in_use: Pages,
    pub read_only: bool,
    /// What the administrator asked for.
    pub online: bool,
    /// Why it is offline all the same.
    pub trouble: Option<Trouble>,
    pub multihost: bool,
    pub access: BTreeMap<u32, AccessRecord>,
    /// Percent of the volume reserve.
    pub snap_reserve: u64,
    pub snap_warn: u64,
    pub depletion: Depletion,
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
    pub sector_bytes: u32,
    pub created_ms: u64,
}

impl Volume {
    pub fn is_online(&self) -> bool {
        self.online && self.trouble.is_none()
    }

    pub fn status(&self) -> String {
        match self.trouble {
            Some(trouble) if self.online => format!("offline ({})", trouble.words()),
            _ if self.online => "online".into(),
            _ => "offline".into(),
        }
    }

    /// Pages set aside for snapshots.
    pub fn snap_reserve_pages(&self) -> Pages {
        self.reserve.percent(self.snap_reserve)
    }

    /// Pages of that which snapshots hold.
    pub fn snap_held(&self) -> Pages {
        self.snapshots.iter().fold(Pages(0), |sum, snapshot| sum.plus(snapshot.held))
    }

    pub fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::{AccessRecord, AppliesTo};

    #[test]
    fn all_conditions_of_a_record_count() {
        let record = AccessRecord {
            initiator: Some("iqn.a".into()),
            address: "10.0.*.7".into(),
            chap_user: None,
            applies_to: AppliesTo::Volume,
        };
        assert!(record.matches("iqn.a", "10.0.3.7", false));
        assert!(!record.matches("iqn.b", "10.0.3.7", false));
        assert!(!record.matches("iqn.a", "10.0.3.8", false));
        assert!(!record.matches("iqn.a", "10.0.3.7", true));
        assert!(AccessRecord::unrestricted().matches("iqn.b", "127.0.0.1", true));
    }
}
