//! SR type `netapp`: makes, opens and erases SRs on an SVM, and lists what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use tanada_driver::bridge::Bridges;
use tanada_driver::registry::{Backend, ConfigKey, DriverType, Found, SrConfig};
use tanada_driver::{Driver, DriverError, DriverErrorKind, DriverResult};
use uuid::Uuid;

use crate::array::{Array, connect};
use crate::config::Config;
use crate::driver::OntapDriver;
use crate::error::sm;
use crate::model::{Aggregate, FlexVol};
use crate::names::{self, Container};
use crate::rest::Patience;
use crate::sr::{Sr, VMHINT};

pub static FACTS: DriverType = DriverType {
    name: "netapp",
    name_label: "NetApp ONTAP",
    description: "A thin LUN for each disk in FlexVols of an SVM; snapshots, clones and reverts are the array's",
    vendor: "Tanada",
    copyright: "The Tanada contributors",
    version: env!("CARGO_PKG_VERSION"),
    required_api_version: "1.0",
    shared: true,
    features: &[
        ("SR_CREATE", 1),
        ("SR_DELETE", 1),
        ("SR_ATTACH", 1),
        ("SR_DETACH", 1),
        ("SR_SCAN", 1),
        ("SR_PROBE", 1),
        ("SR_UPDATE", 1),
        ("VDI_CREATE", 1),
        ("VDI_DELETE", 1),
        ("VDI_ATTACH", 1),
        ("VDI_DETACH", 1),
        ("VDI_RESIZE", 1),
        ("VDI_RESIZE_ONLINE", 1),
        ("VDI_CLONE", 1),
        ("VDI_SNAPSHOT", 1),
        ("VDI_UPDATE", 1),
        ("VDI_INTRODUCE", 1),
        ("VDI_REVERT", 1),
        ("LARGE_VDI", 1),
        ("THIN_PROVISIONING", 1),
    ],
    configuration: &[
        ConfigKey::required("target", "management address of the cluster or SVM, host or host:port", sm::TARGET),
        ConfigKey::required("username", "account with the privileges that docs/drivers.md lists", sm::USER),
        ConfigKey::required("password", "its password", sm::PASSWORD),
        ConfigKey::optional("aggregate", "aggregate that a new SR is made in"),
        ConfigKey::optional("svm", "SVM, where the account sees several"),
        ConfigKey::optional("cacert", "PEM file with the authority of the array's certificate"),
        ConfigKey::optional("fingerprint", "SHA-256 of the array's certificate, instead of an authority"),
        ConfigKey::optional("FlexVols", "number of FlexVols that the SR may grow to, 1 to 32 (8)"),
        ConfigKey::optional("allocation", "thin (the default) or thick"),
        ConfigKey::optional("asis", "true: background deduplication of the FlexVols"),
        ConfigKey::optional("chapuser", "CHAP account for all initiators, instead of one for each"),
        ConfigKey::optional("chappassword", "its password, 12 to 16 characters"),
        ConfigKey::optional("usehttps", "true; plain HTTP is not spoken"),
        ConfigKey::optional("port", "HTTPS port (443)"),
        ConfigKey::optional("controlport", "the same, as older clients call it"),
        ConfigKey::optional("iscsiport", "iSCSI port of the portals (3260)"),
    ],
    options: &[VMHINT],
};

pub struct OntapBackend {
    bridges: Bridges,
    patience: Patience,
}

impl OntapBackend {
    pub fn new(bridges: Bridges) -> OntapBackend {
        OntapBackend { bridges, patience: Patience::default() }
    }

    /// With another patience than the usual one.
    pub fn with_patience(bridges: Bridges, patience: Patience) -> OntapBackend {
        OntapBackend { bridges, patience }
    }

    async fn sr(&self, config: &SrConfig) -> DriverResult<Sr> {
        let read = Config::parse(&config.device_config)?;
        let array = connect(&read, self.patience.clone()).await?;
        let container =
            Container { sr: config.sr, name: config.name_label.clone(), description: config.name_description.clone() };
        Ok(Sr::new(array, read, container, config.initiator.clone(), self.bridges.clone()))
    }
}

#[async_trait]
impl Backend for OntapBackend {
    fn facts(&self) -> &'static DriverType {
        &FACTS
    }

    async fn create(&self, config: &SrConfig) -> DriverResult<()> {
        let wanted = Config::parse(&config.device_config)?.aggregate;
        let sr = self.sr(config).await?;
        check_iscsi(sr.array()).await?;
        let aggregates = sr.array().aggregates().await?;
        let choice = |words: String| {
            DriverError::new(DriverErrorKind::InvalidArgument, words)
                .with_sm(sm::AGGREGATE)
                .with_detail(aggregates_xml(&aggregates))
        };
        let Some(wanted) = wanted else {
            return Err(choice(String::from("device-config:aggregate is missing; the list says what there is")));
        };
        let known: Vec<&str> = aggregates.iter().map(|one| one.name.as_str()).collect();
        // An account of an SVM without assigned aggregates sees none; the array then judges the name.
        if !known.is_empty() && !known.contains(&wanted.as_str()) {
            return Err(choice(format!("there is no aggregate {wanted}; there are {}", known.join(", "))));
        }
        sr.make_flexvol(1, wanted, 0).await.map(drop)
    }

    async fn open(&self, config: &SrConfig) -> DriverResult<Arc<dyn Driver>> {
        let sr = self.sr(config).await?;
        check_iscsi(sr.array()).await?;
        sr.describe().await?;
        Ok(Arc::new(OntapDriver::start(sr)))
    }

    async fn close(&self, _config: &SrConfig) -> DriverResult<()> {
        Ok(())
    }

    async fn erase(&self, config: &SrConfig) -> DriverResult<()> {
        self.sr(config).await?.erase().await
    }

    async fn probe(&self, device_config: &BTreeMap<String, String>) -> DriverResult<Vec<Found>> {
        let config = Config::parse(device_config)?;
        let array = connect(&config, self.patience.clone()).await?;
        Ok(found(&array.flexvols("tanada_*_fv*").await?))
    }
}

/// Without a portal no disk could be reached, whatever else works.
async fn check_iscsi(array: &Array) -> DriverResult<()> {
    let svm = &array.svm().name;
    let fault = |number, words| Err(DriverError::new(DriverErrorKind::InvalidArgument, words).with_sm(number));
    match array.iscsi_service().await? {
        Some(service) if service.enabled && service.target.name.is_empty() => {
            return fault(sm::TARGET_IQN, format!("SVM {svm} does not tell its iSCSI target name"));
        }
        Some(service) if service.enabled => {}
        _ => return fault(sm::ISCSI_OFF, format!("SVM {svm} does not serve iSCSI; create and enable the service")),
    }
    if array.portals().await?.is_empty() {
        return fault(sm::ISCSI_OFF, format!("SVM {svm} has no interface that is up and serves data_iscsi"));
    }
    Ok(())
}

/// SRs by their FlexVols. Names are those of the first FlexVol that has some.
fn found(flexvols: &[FlexVol]) -> Vec<Found> {
    let mut all: BTreeMap<Uuid, Found> = BTreeMap::new();
    for flexvol in flexvols {
        let Some((sr, _)) = names::parse_flexvol(&flexvol.name) else { continue };
        let Some(said) = Container::parse(&flexvol.comment).filter(|said| said.sr == sr) else { continue };
        let one = all.entry(sr).or_insert_with(|| Found { sr, ..Found::default() });
        one.size = one.size.saturating_add(flexvol.size);
        if one.name_label.is_empty() {
            (one.name_label, one.name_description) = (said.name, said.description);
        }
    }
    all.into_values().collect()
}

/// What XenServer's clients read to let an administrator choose.
fn aggregates_xml(aggregates: &[Aggregate]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\"?><Aggrlist>");
    let mut seen = BTreeSet::new();
    for aggregate in aggregates.iter().filter(|one| seen.insert(one.name.as_str())) {
        let blocks = &aggregate.block_storage.primary;
        let fields = [
            ("Name", aggregate.name.clone()),
            ("Size", aggregate.space.block_storage.size.to_string()),
            ("FreeSpace", aggregate.space.block_storage.available.to_string()),
            ("Disks", blocks.disk_count.to_string()),
            ("RAIDType", blocks.raid_type.clone()),
            ("ASIS_Dedup", String::from("true")),
        ];
        xml.push_str("<Aggr>");
        for (name, value) in fields {
            xml.push_str(&format!("<{name}>{}</{name}>", quick_xml::escape::escape(value.as_str())));
        }
        xml.push_str("</Aggr>");
    }
    xml.push_str("</Aggrlist>");
    xml
}

#[cfg(test)]
mod tests {
    use super::{aggregates_xml, found};
    use crate::model::{Aggregate, FlexVol};
    use crate::names::{Container, flexvol};
    use uuid::Uuid;

    #[test]
    fn srs_are_found_by_name_and_comment_together() {
        let (sr, other) = (Uuid::new_v4(), Uuid::new_v4());
        let one = |name: String, comment: String| FlexVol { name, comment, size: 10, ..FlexVol::default() };
        let said = Container { sr, name: "fast".into(), description: String::new() }.comment();
        let all = [
            one(flexvol(sr, 1), said.clone()),
            one(flexvol(sr, 2), said.clone()),
            one(flexvol(other, 1), said.clone()),
            one(flexvol(other, 2), String::new()),
            one("vol0".into(), said),
        ];
        let found = found(&all);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].sr, found[0].size, found[0].name_label.as_str()), (sr, 20, "fast"));
    }

    #[test]
    fn choices_are_xml_whatever_the_names_are() {
        let odd = Aggregate { name: "a<b&c".into(), ..Aggregate::default() };
        let xml = aggregates_xml(&[odd.clone(), odd]);
        assert_eq!(xml.matches("<Aggr>").count(), 1);
        assert!(xml.contains("<Name>a&lt;b&amp;c</Name>"), "{xml}");
    }
}
