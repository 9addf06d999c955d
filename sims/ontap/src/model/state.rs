//! What the array remembers: kept as one JSON file, so that a simulator started again is the same array.
//! Sizes are bytes, times RFC 3339 in UTC, deadlines milliseconds since 1970.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub cluster: Cluster,
    pub nodes: Vec<Node>,
    pub aggregates: Vec<Aggregate>,
    pub svms: Vec<Svm>,
    pub interfaces: Vec<Interface>,
    pub volumes: BTreeMap<Uuid, Volume>,
    pub luns: BTreeMap<Uuid, Lun>,
    pub snapshots: BTreeMap<Uuid, Snapshot>,
    pub igroups: BTreeMap<Uuid, Igroup>,
    pub maps: Vec<LunMap>,
    pub credentials: Vec<Credential>,
    pub splits: Vec<Split>,
    pub groups: BTreeMap<Uuid, ConsistencyGroup>,
    pub qos: BTreeMap<Uuid, QosPolicy>,
    /// Of the next LUN.
    pub last_serial: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    pub uuid: Uuid,
    pub version: [u32; 3],
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub uuid: Uuid,
    pub serial_number: String,
    pub model: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Aggregate {
    pub name: String,
    pub uuid: Uuid,
    pub node: String,
    pub size: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Svm {
    pub name: String,
    pub uuid: Uuid,
    pub aggregates: Vec<String>,
    pub state: String,
    pub iscsi: Option<IscsiService>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IscsiService {
    pub enabled: bool,
    pub target: String,
    pub alias: String,
}

/// A LIF. Its address is a loopback address of its own, with iSCSI's real port.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub uuid: Uuid,
    pub svm: String,
    pub node: String,
    pub address: SocketAddrV4,
    pub enabled: bool,
    pub up: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    pub uuid: Uuid,
    pub name: String,
    pub svm: String,
    pub aggregate: String,
    pub size: u64,
    pub state: String,
    pub comment: String,
    /// "none": thin; "volume": the aggregate keeps the whole size for it.
    pub guarantee: String,
    pub snapshot_policy: String,
    pub snapshot_directory: bool,
    pub reserve_percent: u64,
    pub fractional_reserve: u64,
    pub autosize: Autosize,
    pub efficiency: BTreeMap<String, String>,
    pub tiering: String,
    pub qos: Option<String>,
    pub create_time: String,
    pub is_svm_root: bool,
    pub clone: Option<VolumeClone>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Autosize {
    pub mode: String,
    pub maximum: u64,
    pub minimum: u64,
    pub grow_threshold: u64,
    pub shrink_threshold: u64,
}

/// A FlexClone volume's parent, until it is split off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeClone {
    pub parent: Uuid,
    pub snapshot: Uuid,
    /// Set while a split runs: when it ends.
    pub split_until: Option<u64>,
}

/// What a LUN is apart from its place; a snapshot holds the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LunFacts {
    /// `/vol/<volume>/<base>`
    pub name: String,
    pub os_type: String,
    pub size: u64,
    pub comment: String,
    pub reserved: bool,
    pub attributes: BTreeMap<String, String>,
    /// Blocks that came with a clone, thus shared: bytes. An approximation, see `model::space`.
    pub shared: u64,
    /// LUNs and snapshots with blocks in common.
    pub family: Uuid,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lun {
    pub uuid: Uuid,
    pub volume: Uuid,
    pub facts: LunFacts,
    pub serial: String,
    /// UNMAP is honoured, and a full volume makes writes fail rather than the LUN go offline.
    pub thin: bool,
    pub enabled: bool,
    /// The volume was full when it wrote.
    pub space_error: bool,
    pub auto_delete: bool,
    pub qos: Option<String>,
    pub create_time: String,
    pub created_as_clone: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    pub uuid: Uuid,
    pub volume: Uuid,
    pub name: String,
    pub comment: String,
    pub create_time: String,
    pub expiry_time: Option<String>,
    pub group: Option<Uuid>,
    /// By the uuid of the LUN at that time, which names the file.
    pub luns: BTreeMap<Uuid, LunFacts>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Igroup {
    pub uuid: Uuid,
    pub name: String,
    pub svm: String,
    pub protocol: String,
    pub os_type: String,
    pub comment: String,
    pub initiators: Vec<String>,
    pub delete_on_unmap: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LunMap {
    pub lun: Uuid,
    pub igroup: Uuid,
    pub number: u16,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Credential {
    pub svm: String,
    /// "default" for all without one of their own.
    pub initiator: String,
    /// "none", "chap" or "deny".
    pub kind: String,
    pub inbound: Option<Account>,
    pub outbound: Option<Account>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential {{ svm: {:?}, initiator: {:?}, kind: {:?} }}", self.svm, self.initiator, self.kind)
    }
}

/// Block sharing of a LUN clone that is not complete yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Split {
    pub volume: Uuid,
    /// The FlexVol snapshot that it came from: busy until then.
    pub snapshot: Option<Uuid>,
    pub bytes: u64,
    pub until: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConsistencyGroup {
    pub uuid: Uuid,
    pub name: String,
    pub svm: String,
    pub volumes: Vec<Uuid>,
    pub snapshots: BTreeMap<Uuid, GroupSnapshot>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupSnapshot {
    pub uuid: Uuid,
    pub name: String,
    pub comment: String,
    pub create_time: String,
    /// Members' snapshots by volume.
    pub members: BTreeMap<Uuid, Uuid>,
    pub write_fence: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QosPolicy {
    pub uuid: Uuid,
    pub name: String,
    pub svm: String,
    /// `fixed` or `adaptive`, as given.
    pub settings: serde_json::Value,
}
