//! The SR type `equal`: makes, finds, opens and erases SRs on a group.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use tanada_driver::bridge::Bridges;
use tanada_driver::registry::{Backend, DriverType, Found, SrConfig};
use tanada_driver::{Driver, DriverError, DriverErrorKind, DriverResult, METADATA_BYTES_MAX, metadata};

use crate::array::{Array, PoolRow};
use crate::driver::{EqualDriver, Group, again};
use crate::error::sm;
use crate::names::{self, Description, Kind};
use crate::options::{DISK_KEYS, KEYS, Options};
use crate::session::Sessions;
use crate::size::request_mb;

pub static FACTS: DriverType = DriverType {
    name: "equal",
    name_label: "Dell EqualLogic",
    description: "A volume of a Dell EqualLogic PS group for each virtual disk",
    vendor: "Tanada",
    copyright: "The Tanada contributors",
    version: "1",
    required_api_version: "1.0",
    shared: true,
    features: &[
        ("SR_CREATE", 1),
        ("SR_DELETE", 1),
        ("SR_SCAN", 1),
        ("SR_UPDATE", 1),
        ("SR_PROBE", 1),
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
    ],
    configuration: &KEYS,
    options: DISK_KEYS,
};

/// SRs of this type. Those on one group with one account share its sessions.
pub struct EqualBackend {
    bridges: Bridges,
    groups: Mutex<BTreeMap<String, Weak<Sessions>>>,
}

impl EqualBackend {
    pub fn new(bridges: Bridges) -> EqualBackend {
        EqualBackend { bridges, groups: Mutex::default() }
    }

    fn array(&self, options: &Options) -> Array {
        let ssh = &options.ssh;
        let key = format!("{}@{}:{} {:?} {:?}", ssh.user, ssh.host, ssh.port, ssh.host_key, ssh.legacy);
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, sessions| sessions.strong_count() > 0);
        let known = groups.get(&key).and_then(Weak::upgrade).filter(|sessions| sessions.is_for(&options.password));
        let sessions = known.unwrap_or_else(|| Arc::new(Sessions::new(ssh.clone(), options.password.clone())));
        groups.insert(key, Arc::downgrade(&sessions));
        Array::new(sessions)
    }

    /// [`Backend::open`] with the driver's own type.
    pub async fn open_group(&self, config: &SrConfig) -> DriverResult<Arc<EqualDriver>> {
        let mut group = self.group(config)?;
        let name = names::management(config.sr);
        let Some(_) = group.page(&name).await? else {
            let words = format!("there is no SR {} on the group: no volume {name}", config.sr);
            return Err(DriverError::new(DriverErrorKind::NotFound, words));
        };
        if group.options.pool.is_empty() {
            group.options.pool = group.array.pool_of(&name).await?;
        }
        let group_snapshot = group.has_collections().await?;
        if let Err(failure) = group.tidy().await {
            tracing::warn!(sr = %config.sr, %failure, "leftovers of an earlier time stay for now");
        }
        Ok(Arc::new(EqualDriver::new(group, group_snapshot)))
    }

    fn group(&self, config: &SrConfig) -> DriverResult<Group> {
        let options = Options::parse(&config.device_config)?;
        let array = self.array(&options);
        Ok(Group::new(array, config.sr, options, self.bridges.clone(), config.initiator.clone()))
    }
}

#[async_trait]
impl Backend for EqualBackend {
    fn facts(&self) -> &'static DriverType {
        &FACTS
    }

    /// Makes the management volume, which is the SR.
    async fn create(&self, config: &SrConfig) -> DriverResult<()> {
        let group = self.group(config)?;
        again(|| make(&group, config)).await.map(|_| ())
    }

    async fn open(&self, config: &SrConfig) -> DriverResult<Arc<dyn Driver>> {
        Ok(self.open_group(config).await?)
    }

    async fn close(&self, _config: &SrConfig) -> DriverResult<()> {
        Ok(())
    }

    /// Deletes everything with a name of this SR, the management volume last: until then the SR is found again.
    async fn erase(&self, config: &SrConfig) -> DriverResult<()> {
        let group = self.group(config)?;
        again(|| wipe(&group)).await.map(|_| ())
    }

    async fn probe(&self, device_config: &BTreeMap<String, String>) -> DriverResult<Vec<Found>> {
        let options = Options::parse(device_config)?;
        let array = self.array(&options);
        let rows = array.volumes().await?;
        let mut found = Vec::new();
        for sr in rows.iter().filter_map(|row| names::sr_of_management(&row.name)) {
            let name = names::management(sr);
            let Some(page) = array.volume(&name).await? else { continue };
            let told = Description::parse(&page.description).filter(|told| told.kind == Kind::Sr);
            let size = rows.iter().filter(|row| names::role(sr, &row.name).is_some()).map(|row| row.size).sum();
            let name_label = told.map(|told| told.name).unwrap_or_default();
            found.push(Found { sr, size, name_label, name_description: String::new() });
        }
        Ok(found)
    }
}

async fn make(group: &Group, config: &SrConfig) -> DriverResult<()> {
    let pools = group.array.pools().await?;
    let pool = &group.options.pool;
    if pool.is_empty() {
        let words = "device-config:storagepool is missing";
        let failure = DriverError::new(DriverErrorKind::InvalidArgument, words);
        return Err(failure.with_sm(sm::POOL_MISSING).with_detail(pool_list(&pools)));
    }
    if !pools.iter().any(|row| row.name == *pool) {
        let words = format!("there is no pool {pool:?} on the group");
        let failure = DriverError::new(DriverErrorKind::InvalidArgument, words);
        return Err(failure.with_sm(sm::POOL).with_detail(pool_list(&pools)));
    }
    let name = names::management(config.sr);
    if group.page(&name).await?.is_none() {
        let told = Description { name: config.name_label.clone(), ..Description::new(Kind::Sr, uuid::Uuid::nil()) };
        let size_mb = request_mb(metadata::volume_bytes(METADATA_BYTES_MAX));
        group.make(&name, size_mb, &told, true).await?;
    }
    if let Some(page) = group.page(&name).await? {
        group.start_reserve(&page, 0).await?;
    }
    Ok(())
}

async fn wipe(group: &Group) -> DriverResult<()> {
    group.drop_collections().await?;
    for user in group.array.chap_users().await? {
        if let Some(token) = names::token_of(group.sr, &user) {
            group.detach(token).await?;
        }
    }
    // Thin clones before the templates that they depend on.
    for wanted in [names::Role::Disk, names::Role::Template, names::Role::Management] {
        for (row, role) in group.rows().await? {
            if role == wanted
                && let Some(page) = group.page(&row.name).await?
            {
                group.take_offline(&page).await?;
                group.delete(&row.name).await?;
            }
        }
    }
    Ok(())
}

/// The choices for `storagepool`, as XenServer's clients read them.
fn pool_list(pools: &[PoolRow]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" ?>\n<StoragePools>\n");
    for pool in pools {
        let fields = [
            ("Name", &pool.name),
            ("Default", &pool.is_default),
            ("Members", &pool.members),
            ("Volumes", &pool.volumes),
            ("Capacity", &pool.capacity),
            ("FreeSpace", &pool.free),
        ];
        xml.push_str("  <StoragePool>\n");
        for (tag, text) in fields {
            let _ = writeln!(xml, "    <{tag}>{}</{tag}>", escape(text));
        }
        xml.push_str("  </StoragePool>\n");
    }
    xml.push_str("</StoragePools>\n");
    xml
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::pool_list;
    use crate::array::PoolRow;

    #[test]
    fn choices_are_xml() {
        let pool = |name: &str| PoolRow {
            name: name.to_string(),
            is_default: String::from("true"),
            members: String::from("1"),
            volumes: String::from("3"),
            capacity: String::from("1.5TB"),
            free: String::from("900.5GB"),
        };
        let xml = pool_list(&[pool("default"), pool("a<b")]);
        assert!(xml.contains("<Name>default</Name>") && xml.contains("<FreeSpace>900.5GB</FreeSpace>"), "{xml}");
        assert!(xml.contains("a&lt;b") && xml.matches("<StoragePool>").count() == 2, "{xml}");
    }
}
