//! The API's resources, one kind per file: how they look, and which call does what to the array.

mod aggregates;
mod cluster;
mod counters;
mod file_clone;
mod groups;
mod igroups;
mod interfaces;
mod iscsi;
mod jobs;
mod lun_attributes;
mod lun_maps;
mod luns;
mod others;
mod policies;
mod snapshots;
mod svms;
mod volumes;

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::jobs::Jobs;
use crate::api::resource::Resource;
use crate::model::Array;

/// All resources. Longer paths need not come first: a path fits one only.
pub fn all(jobs: &Arc<Jobs>) -> Vec<Box<dyn Resource>> {
    vec![
        Box::new(cluster::ClusterItself),
        Box::new(cluster::Nodes),
        Box::new(jobs::JobRecords::new(Arc::clone(jobs))),
        Box::new(svms::Svms),
        Box::new(aggregates::Aggregates),
        Box::new(volumes::Volumes),
        Box::new(snapshots::Snapshots),
        Box::new(luns::Luns),
        Box::new(lun_attributes::LunAttributes),
        Box::new(lun_maps::LunMaps),
        Box::new(lun_maps::ReportingNodes),
        Box::new(igroups::Igroups),
        Box::new(igroups::Initiators),
        Box::new(iscsi::Services),
        Box::new(iscsi::Credentials),
        Box::new(iscsi::Sessions),
        Box::new(interfaces::Interfaces),
        Box::new(groups::Groups),
        Box::new(groups::GroupSnapshots),
        Box::new(file_clone::FileClone),
        Box::new(file_clone::SplitStatus),
        Box::new(file_clone::SplitLoads),
        Box::new(policies::SnapshotPolicies),
        Box::new(policies::QosPolicies),
        Box::new(counters::Tables),
        Box::new(counters::Rows),
        Box::new(others::ApplicationLogs),
        Box::new(others::Licenses),
        Box::new(others::Disks),
        Box::new(others::Relationships),
    ]
}

/// `{"name", "uuid"}` of an SVM.
fn svm_ref(array: &Array, name: &str) -> Value {
    let uuid = array.state.svms.iter().find(|svm| svm.name == name).map(|svm| svm.uuid);
    json!({ "name": name, "uuid": uuid })
}

fn node_ref(array: &Array, name: &str) -> Value {
    let uuid = array.state.nodes.iter().find(|node| node.name == name).map(|node| node.uuid);
    json!({ "name": name, "uuid": uuid })
}

fn volume_ref(array: &Array, uuid: Uuid) -> Value {
    json!({ "name": array.state.volumes.get(&uuid).map(|volume| &volume.name), "uuid": uuid })
}
