//! An addition of ours to the archive: the older states of a machine's disks behind the newest one.
//!
//! ```text
//! ova.xml                  the machine alone, as in every archive
//! Ref:0003/00000000 ...    its disks
//! generations.xml          its snapshots: objects as in ova.xml, and which disk is told by which
//! Ref:0021/00000004.delta  what differs in the fifth MiB ([`crate::delta`])
//! Ref:0021/00000004.delta.xxhash
//! ...
//! two zero blocks
//! ```
//! An older state is told by what differs from a newer one, so an archive with thirty nights is as large as the disks and
//! thirty nights' changes. The newest state comes first and is told in full, by itself: whoever knows XVA alone
//! reads the machine and finds nothing in it that could be taken for a disk and is none.
//!
//! The disks stand in the order in which an importer makes them. Each is told by **its base**: none (all zero), a disk of
//! `ova.xml` that no other disk is told by, or the disk right before it in this list. So one disk is enough to make all of
//! them, going back in time.

use std::collections::{BTreeMap, BTreeSet};

use tanada_xapi::Value;
use tanada_xapi::xmlrpc::{Limits, decode_value_within, encode_value};

use crate::DiskPlan;
use crate::error::{XvaError, XvaResult};
use crate::limits::{self, GENERATIONS};
use crate::ova::{Object, Ova, check_size};

/// Name of the member.
pub const MEMBER: &str = "generations.xml";

/// A disk of an older state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaPlan {
    pub id: String,
    /// In bytes; what lies past the end of the base is told by zeros.
    pub size: u64,
    /// Id of the disk that it is told by.
    pub base: Option<String>,
}

/// The snapshots of the machine in `ova.xml`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generations {
    /// None of them has an id of `ova.xml`; references may lead there.
    pub objects: Vec<Object>,
    /// The snapshot that the machine goes on from; empty where it is none of these.
    pub parent: String,
    pub disks: Vec<DeltaPlan>,
}

impl Generations {
    pub fn to_xml(&self) -> String {
        let disk = |disk: &DeltaPlan| {
            let base = disk.base.clone().unwrap_or_default();
            Value::map([("id", Value::from(&disk.id)), ("base", Value::from(&base))])
        };
        encode_value(&Value::map([
            ("objects", Value::Set(self.objects.iter().map(Object::to_value).collect())),
            ("parent", Value::from(&self.parent)),
            ("disks", Value::Set(self.disks.iter().map(disk).collect())),
        ]))
    }

    /// Reads the snapshots of the machine in `ova`.
    pub fn from_xml(xml: &[u8], ova: &Ova) -> XvaResult<Generations> {
        let wrong = |why: String| XvaError::invalid(format!("{MEMBER}: {why}"));
        let text = std::str::from_utf8(xml).map_err(|error| wrong(error.to_string()))?;
        let bounds = Limits { depth: limits::OVA_DEPTH, values: GENERATIONS.elements };
        let top = decode_value_within(text, bounds).map_err(|error| wrong(error.to_string()))?;
        let items = |name: &str| top.get(name).and_then(Value::as_set).ok_or_else(|| wrong(format!("no {name}")));
        let objects = items("objects")?;
        if objects.len() > GENERATIONS.objects {
            return Err(wrong(format!("{} objects; at most {} are accepted", objects.len(), GENERATIONS.objects)));
        }
        let objects = objects.iter().map(Object::from_value).collect::<XvaResult<Vec<Object>>>()?;
        let mut ids: BTreeSet<&str> = ova.objects.iter().map(|object| object.id.as_str()).collect();
        if let Some(twice) = objects.iter().find(|object| !ids.insert(&object.id)) {
            return Err(wrong(format!("the id {} is used twice", twice.id)));
        }
        let vdis = objects.iter().filter(|object| object.class == "VDI");
        let vdis: BTreeMap<&str, &Object> = vdis.map(|object| (object.id.as_str(), object)).collect();
        let disks = items("disks")?.iter().map(|disk| plan(disk, &vdis).map_err(wrong));
        let disks = disks.collect::<XvaResult<Vec<DeltaPlan>>>()?;
        check(&disks, &ova.disks()?).map_err(wrong)?;
        let parent = top.get("parent").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Generations { objects, parent, disks })
    }
}

fn plan(disk: &Value, vdis: &BTreeMap<&str, &Object>) -> Result<DeltaPlan, String> {
    let text = |name: &str| disk.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (id, base) = (text("id"), text("base"));
    let object = vdis.get(id.as_str()).ok_or_else(|| format!("the disk {id:?} is no VDI of it"))?;
    let size = object.int("virtual_size").and_then(|size| u64::try_from(size).ok());
    let size = size.ok_or_else(|| format!("VDI {id}: no usable virtual_size"))?;
    Ok(DeltaPlan { id, size, base: Some(base).filter(|base| !base.is_empty()) })
}

/// What both reader and writer ask of the list; the error is the reason.
pub(crate) fn check(disks: &[DeltaPlan], newest: &[DiskPlan]) -> Result<(), String> {
    if disks.len() > limits::GENERATION_DISKS {
        return Err(format!("{} disks; at most {} are accepted", disks.len(), limits::GENERATION_DISKS));
    }
    let mut free: BTreeSet<&str> = newest.iter().map(|disk| disk.id.as_str()).collect();
    let mut seen = BTreeSet::new();
    let mut before = None;
    for disk in disks {
        check_size(&disk.id, disk.size)?;
        if disk.size == 0 || !disk.size.is_multiple_of(512) {
            return Err(format!("disk {} has {} bytes; sizes are multiples of 512 and not 0", disk.id, disk.size));
        }
        if !seen.insert(&disk.id) {
            return Err(format!("the disk {} is there twice", disk.id));
        }
        match disk.base.as_deref() {
            Some(base) if before != Some(base) && !free.remove(base) => {
                return Err(format!("disk {} cannot be told by {base}", disk.id));
            }
            _ => before = Some(disk.id.as_str()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DeltaPlan, check};
    use crate::DiskPlan;

    #[test]
    fn disks_are_told_by_what_an_importer_has_at_hand() {
        let newest = [DiskPlan { id: "Ref:1".into(), size: 512 }, DiskPlan { id: "Ref:2".into(), size: 512 }];
        let told = |disks: &[(&str, &str)]| {
            let plan = |(id, base): &(&str, &str)| DeltaPlan {
                id: (*id).into(),
                size: 512,
                base: Some((*base).to_owned()).filter(|base| !base.is_empty()),
            };
            check(&disks.iter().map(plan).collect::<Vec<_>>(), &newest)
        };
        assert_eq!(told(&[("a", "Ref:1"), ("b", "a"), ("c", "Ref:2"), ("d", ""), ("e", "d")]), Ok(()));
        assert!(told(&[("a", "Ref:3")]).unwrap_err().contains("cannot be told by Ref:3"));
        assert!(told(&[("a", "Ref:1"), ("b", "Ref:1")]).unwrap_err().contains("cannot be told by Ref:1"));
        assert!(told(&[("a", ""), ("b", ""), ("c", "a")]).unwrap_err().contains("cannot be told by a"));
        assert!(told(&[("a", "a")]).unwrap_err().contains("cannot be told by a"));
        assert!(told(&[("a", ""), ("a", "")]).unwrap_err().contains("twice"));
        let odd = [DeltaPlan { id: "a".into(), size: 513, base: None }];
        assert!(check(&odd, &newest).unwrap_err().contains("multiples of 512"));
    }
}
