//! A new array: nodes, aggregates, SVMs with their root volumes, iSCSI services and interfaces.

use std::collections::BTreeMap;

use anyhow::Result;
use sim_target::{ISCSI_PORT, free_loopback};
use uuid::Uuid;

use crate::model::state::{
    Aggregate, Autosize, Cluster, Credential, Interface, IscsiService, Node, State, Svm, Volume,
};
use crate::model::timestamp;
use crate::options::Options;

const NODES: usize = 2;
const ROOT_BYTES: u64 = 1 << 30;

pub fn state(options: &Options) -> Result<State> {
    let nodes: Vec<Node> = (1..=NODES)
        .map(|number| Node {
            name: format!("{}-{number:02}", options.cluster),
            uuid: Uuid::new_v4(),
            serial_number: format!("72100000{number:04}"),
            model: "SIMBOX".into(),
        })
        .collect();
    let home = |number: usize| nodes[number % NODES].name.clone();
    let aggregates: Vec<Aggregate> = options
        .aggregates
        .iter()
        .enumerate()
        .map(|(number, (name, size))| Aggregate {
            name: name.clone(),
            uuid: Uuid::new_v4(),
            node: home(number),
            size: *size,
        })
        .collect();
    let mut state = State {
        cluster: Cluster { name: options.cluster.clone(), uuid: Uuid::new_v4(), version: options.version },
        nodes: nodes.clone(),
        svms: Vec::new(),
        interfaces: Vec::new(),
        volumes: BTreeMap::new(),
        luns: BTreeMap::new(),
        snapshots: BTreeMap::new(),
        igroups: BTreeMap::new(),
        maps: Vec::new(),
        credentials: Vec::new(),
        splits: Vec::new(),
        groups: BTreeMap::new(),
        qos: BTreeMap::new(),
        last_serial: 0,
        aggregates,
    };
    for (position, name) in options.svms.iter().enumerate() {
        let uuid = Uuid::new_v4();
        state.svms.push(Svm {
            name: name.clone(),
            uuid,
            aggregates: options.aggregates.iter().map(|(name, _)| name.clone()).collect(),
            state: "running".into(),
            iscsi: Some(IscsiService::of(uuid, position, name, true)),
        });
        state.credentials.push(Credential::open(name));
        for number in 0..options.interfaces {
            state.interfaces.push(Interface {
                name: format!("{name}_iscsi{}", number + 1),
                uuid: Uuid::new_v4(),
                svm: name.clone(),
                node: home(number),
                address: free_loopback(ISCSI_PORT)?,
                enabled: true,
                up: true,
            });
        }
        if let Some((aggregate, _)) = options.aggregates.first() {
            let root = root_volume(name, aggregate);
            state.volumes.insert(root.uuid, root);
        }
    }
    Ok(state)
}

impl IscsiService {
    /// The service of the SVM at this position; the target's name is made of the SVM's uuid.
    pub fn of(svm: Uuid, position: usize, alias: &str, enabled: bool) -> IscsiService {
        let target = format!("iqn.1992-08.com.netapp:sn.{}:vs.{}", svm.simple(), position + 2);
        IscsiService { enabled, target, alias: alias.to_string() }
    }
}

impl Credential {
    /// The default of a new service: nobody has to prove anything.
    pub fn open(svm: &str) -> Credential {
        Credential { svm: svm.into(), initiator: "default".into(), kind: "none".into(), inbound: None, outbound: None }
    }
}

fn root_volume(svm: &str, aggregate: &str) -> Volume {
    Volume {
        uuid: Uuid::new_v4(),
        name: format!("{svm}_root"),
        svm: svm.to_string(),
        aggregate: aggregate.to_string(),
        size: ROOT_BYTES,
        state: "online".into(),
        comment: String::new(),
        guarantee: "volume".into(),
        snapshot_policy: "none".into(),
        snapshot_directory: true,
        reserve_percent: 5,
        fractional_reserve: 100,
        autosize: Autosize {
            mode: "off".into(),
            maximum: ROOT_BYTES,
            minimum: ROOT_BYTES,
            grow_threshold: 85,
            shrink_threshold: 50,
        },
        efficiency: BTreeMap::new(),
        tiering: "none".into(),
        qos: None,
        create_time: timestamp(),
        is_svm_root: true,
        clone: None,
    }
}
