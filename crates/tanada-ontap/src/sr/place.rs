//! Which FlexVol a new disk goes to.
//!
//! Disks of one machine lie together: then one FlexVol snapshot cuts them all. An array takes some 500 LUNs in a FlexVol,
//! and snapshots and clones stay where their source is; so a new disk goes to the emptiest FlexVol, and another one is
//! made before any is crowded.

use std::collections::BTreeMap;

use tanada_driver::{CreateRequest, DriverError, DriverErrorKind, DriverResult};
use tanada_units::{GIB, MIB};

use super::Sr;
use crate::array::FlexVolSpec;
use crate::error::sm;
use crate::model::FlexVol;
use crate::names;

/// LUNs in a FlexVol, snapshots included, beyond which no new disk goes there (what is left is for snapshots).
pub const LUNS_SOFT_MAX: usize = 400;
/// A FlexVol with so many is joined by another one while there may be more.
const LUNS_COMFORTABLE: usize = 100;
/// A new thin FlexVol. It takes no room; LUNs may be larger.
const THIN_BYTES: u64 = 1024 * GIB;
/// A new thick FlexVol, before it is grown for its first LUN.
const THICK_BYTES: u64 = 4 * GIB;
/// FlexVols grow by themselves up to this, which all releases accept.
const SIZE_MAX: u64 = 100 * 1024 * GIB;

/// Key of `sm_config` that names a FlexVol by its number.
pub const VMHINT: &str = "vmhint";

/// Where a disk goes.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Existing(String),
    /// A FlexVol of this number has to be made.
    New(u32),
    Full,
}

/// `counts` are LUNs by FlexVol, `beside` the FlexVol of the machine's other disks.
fn choose(counts: &BTreeMap<String, usize>, beside: Option<&str>, flexvols_max: u32) -> Choice {
    if let Some(name) = beside.filter(|name| counts.get(*name).is_some_and(|count| *count < LUNS_SOFT_MAX)) {
        return Choice::Existing(name.to_owned());
    }
    let used: Vec<u32> =
        counts.keys().filter_map(|name| names::parse_flexvol(name).map(|(_, number)| number)).collect();
    let free = (1..=flexvols_max).find(|number| !used.contains(number));
    let emptiest = counts.iter().min_by_key(|(name, count)| (**count, name.len(), *name));
    match (emptiest, free) {
        (Some((name, count)), _) if *count < LUNS_COMFORTABLE => Choice::Existing(name.clone()),
        (_, Some(number)) => Choice::New(number),
        (Some((name, count)), None) if *count < LUNS_SOFT_MAX => Choice::Existing(name.clone()),
        _ => Choice::Full,
    }
}

/// XenServer's hint is a machine or the number of a FlexVol; machines are kept together without it.
fn hint(options: &BTreeMap<String, String>) -> Option<u32> {
    options.get(VMHINT)?.trim().parse().ok()
}

impl Sr {
    /// The FlexVol for a disk of `size` bytes, made or grown where needed.
    pub(super) async fn place(&self, request: &CreateRequest, size: u64) -> DriverResult<String> {
        let _one_at_a_time = self.placing.lock().await;
        let flexvols = self.flexvols().await?;
        let near = request.near;
        let mut counts: BTreeMap<String, usize> =
            flexvols.iter().filter(|one| one.state == "online").map(|one| (one.name.clone(), 0)).collect();
        let mut beside = None;
        for lun in self.array.lun_paths(&self.pattern()).await? {
            if let Some(count) = counts.get_mut(lun.flexvol()) {
                *count += 1;
            }
            if near.is_some_and(|near| lun.base() == near.to_string()) {
                beside = Some(lun.flexvol().to_owned());
            }
        }
        let hinted = hint(&request.options).filter(|number| (1..=self.config.flexvols_max).contains(number));
        let choice = match hinted.map(|number| (number, names::flexvol(self.sr, number))) {
            Some((number, name)) if !counts.contains_key(&name) => Choice::New(number),
            Some((_, name)) => choose(&counts, Some(&name), self.config.flexvols_max),
            None => choose(&counts, beside.as_deref(), self.config.flexvols_max),
        };
        match choice {
            Choice::Existing(name) => {
                let found = flexvols.iter().find(|one| one.name == name);
                self.make_room(found, size).await?;
                Ok(name)
            }
            Choice::New(number) => {
                let made = self.make_flexvol(number, self.aggregate_of(&flexvols)?, size).await?;
                Ok(made.name)
            }
            Choice::Full => {
                let words = format!(
                    "SR {} has {} FlexVols with {LUNS_SOFT_MAX} LUNs or more; raise device-config:FlexVols (now {}) or delete snapshots",
                    self.sr,
                    flexvols.len(),
                    self.config.flexvols_max
                );
                Err(DriverError::new(DriverErrorKind::NoSpace, words).with_sm(sm::FLEXVOLS))
            }
        }
    }

    fn aggregate_of(&self, flexvols: &[FlexVol]) -> DriverResult<String> {
        let existing = flexvols.iter().find_map(|one| one.aggregates.first()).map(|aggregate| aggregate.name.clone());
        existing.or_else(|| self.config.aggregate.clone()).ok_or_else(|| {
            DriverError::new(DriverErrorKind::InvalidArgument, "device-config:aggregate is missing")
                .with_sm(sm::AGGREGATE)
        })
    }

    /// Makes FlexVol `number`, or adopts it.
    pub async fn make_flexvol(&self, number: u32, aggregate: String, room: u64) -> DriverResult<FlexVol> {
        let size = if self.config.thin { THIN_BYTES } else { THICK_BYTES.max(thick_size(room)) };
        let spec = FlexVolSpec {
            name: names::flexvol(self.sr, number),
            aggregate,
            size,
            size_max: SIZE_MAX,
            thin: self.config.thin,
            dedupe: self.config.dedupe,
            comment: self.container.comment(),
        };
        Ok(self.array.create_flexvol(&spec).await?)
    }

    /// A thick FlexVol has to hold what is promised; a thin one grows by itself.
    pub(super) async fn make_room(&self, flexvol: Option<&FlexVol>, size: u64) -> DriverResult<()> {
        let Some(flexvol) = flexvol.filter(|_| !self.config.thin) else { return Ok(()) };
        let needed = thick_size(size);
        if flexvol.space.available < needed {
            let grown = flexvol.size + (needed - flexvol.space.available).div_ceil(MIB) * MIB;
            self.array.resize_flexvol(&flexvol.uuid, grown).await?;
        }
        Ok(())
    }
}

/// A LUN and the array's own records about it.
fn thick_size(size: u64) -> u64 {
    size.saturating_add(size / 10).saturating_add(GIB)
}

#[cfg(test)]
mod tests {
    use super::{Choice, LUNS_COMFORTABLE, LUNS_SOFT_MAX, choose};
    use crate::names::flexvol;
    use std::collections::BTreeMap;
    use uuid::Uuid;

    #[test]
    fn disks_lie_together_and_crowds_are_avoided() {
        let sr = Uuid::new_v4();
        let name = |number| flexvol(sr, number);
        let counts = |all: &[(u32, usize)]| -> BTreeMap<String, usize> {
            all.iter().map(|(number, count)| (name(*number), *count)).collect()
        };
        assert_eq!(choose(&counts(&[]), None, 8), Choice::New(1));
        assert_eq!(choose(&counts(&[(1, 5)]), None, 8), Choice::Existing(name(1)));
        assert_eq!(choose(&counts(&[(1, 50), (2, 5)]), None, 8), Choice::Existing(name(2)));
        assert_eq!(choose(&counts(&[(1, 50), (2, 5)]), Some(&name(1)), 8), Choice::Existing(name(1)));
        // As many as are comfortable: another FlexVol, with the lowest number that is free.
        let comfortable = [(1, LUNS_COMFORTABLE), (3, LUNS_COMFORTABLE)];
        assert_eq!(choose(&counts(&comfortable), None, 8), Choice::New(2));
        let both = [(1, LUNS_COMFORTABLE), (2, LUNS_COMFORTABLE + 1)];
        assert_eq!(choose(&counts(&both), None, 2), Choice::Existing(name(1)));
        let full = [(1, LUNS_SOFT_MAX), (2, LUNS_SOFT_MAX)];
        assert_eq!(choose(&counts(&full), Some(&name(1)), 2), Choice::Full);
        assert_eq!(choose(&counts(&full), Some(&name(1)), 3), Choice::New(3));
    }
}
