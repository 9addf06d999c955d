//! Records of the array, as far as the driver reads them. Fields that were not asked for are absent, so all have defaults.

use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    pub name: String,
    pub uuid: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Version {
    pub full: String,
    pub generation: u32,
    pub major: u32,
    pub minor: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Cluster {
    pub name: String,
    pub version: Version,
    /// True on ASA r2, which has no FlexVols.
    pub disaggregated: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Svm {
    pub name: String,
    pub uuid: String,
    pub state: String,
    pub subtype: String,
    pub aggregates: Vec<Named>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Aggregate {
    pub name: String,
    pub uuid: String,
    pub state: String,
    pub space: AggregateSpace,
    pub block_storage: AggregateBlocks,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct AggregateSpace {
    pub block_storage: BlockSpace,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct BlockSpace {
    pub size: u64,
    pub available: u64,
    pub used: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct AggregateBlocks {
    pub primary: AggregatePrimary,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct AggregatePrimary {
    pub raid_type: String,
    pub disk_type: String,
    pub disk_count: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct IscsiService {
    pub svm: Named,
    pub enabled: bool,
    pub target: Named,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Interface {
    pub name: String,
    pub ip: Address,
    pub enabled: bool,
    pub state: String,
    pub location: InterfaceLocation,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    pub address: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct InterfaceLocation {
    pub node: Named,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct FlexVol {
    pub uuid: String,
    pub name: String,
    pub state: String,
    pub comment: String,
    pub size: u64,
    pub space: FlexVolSpace,
    pub aggregates: Vec<Named>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct FlexVolSpace {
    pub size: u64,
    pub available: u64,
    pub used: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Lun {
    pub uuid: String,
    pub name: String,
    pub serial_number: String,
    pub comment: String,
    pub attributes: Vec<Attribute>,
    pub location: LunLocation,
    pub space: LunSpace,
    pub status: LunStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Attribute {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LunLocation {
    pub logical_unit: String,
    pub volume: Named,
    pub node: Named,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LunSpace {
    pub size: u64,
    pub used: u64,
    pub guarantee: LunGuarantee,
    pub scsi_thin_provisioning_support_enabled: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LunGuarantee {
    pub requested: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LunStatus {
    pub state: String,
}

impl Lun {
    /// The last part of the path.
    pub fn base(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// The FlexVol's name, from the path.
    pub fn flexvol(&self) -> &str {
        self.name.split('/').nth(2).unwrap_or_default()
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|attribute| attribute.name == name).map(|attribute| attribute.value.as_str())
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    pub uuid: String,
    pub name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Igroup {
    pub uuid: String,
    pub name: String,
    pub initiators: Vec<Named>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LunMap {
    pub lun: Named,
    pub igroup: Named,
    pub logical_unit_number: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SplitStatus {
    pub pending_splits: u64,
}

#[cfg(test)]
mod tests {
    use super::{Lun, LunMap};

    #[test]
    fn records_read_with_what_was_asked_for_only() {
        let text = r#"{"uuid":"7b0c","name":"/vol/fv0/3f2a","space":{"size":10737418240,"guarantee":{"requested":false}},
            "attributes":[{"name":"k","value":"v","_links":{}}],"status":{"state":"online"},"_links":{}}"#;
        let lun: Lun = serde_json::from_str(text).unwrap();
        assert_eq!((lun.base(), lun.flexvol(), lun.attribute("k")), ("3f2a", "fv0", Some("v")));
        assert_eq!(lun.space.size, 10_737_418_240);
        let map: LunMap = serde_json::from_str(r#"{"lun":{"uuid":"1"},"logical_unit_number":3}"#).unwrap();
        assert_eq!(map.logical_unit_number, Some(3));
        assert_eq!(Lun::default().flexvol(), "");
    }
}
