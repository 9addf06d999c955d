//! Which kinds of storage there are, as data. SM records, the checks of SR.create and what an SR may do all follow from
//! the facts here; adding a back end adds a table, not a branch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use crate::{Driver, DriverResult};

/// What an administrator reads about a kind of SR, and what it can do.
#[derive(Debug, Clone, Copy)]
pub struct DriverType {
    /// The `type` of SRs, in lower case.
    pub name: &'static str,
    pub name_label: &'static str,
    pub description: &'static str,
    pub vendor: &'static str,
    pub copyright: &'static str,
    pub version: &'static str,
    pub required_api_version: &'static str,
    /// Whether several hosts may attach one SR.
    pub shared: bool,
    /// XenAPI capability names with their versions.
    pub features: &'static [(&'static str, i64)],
    /// Keys of `device_config`; the values of those that end in `password` are kept as secrets. Those that only
    /// [`Backend::create`] needs are not marked as required.
    pub configuration: &'static [ConfigKey],
    /// Keys of a VDI's `sm_config` that reach the back end as [`crate::CreateRequest::options`].
    pub options: &'static [&'static str],
}

/// A key of `device_config`.
#[derive(Debug, Clone, Copy)]
pub struct ConfigKey {
    pub key: &'static str,
    pub description: &'static str,
    pub required: bool,
    /// SM error number that says that it is missing (`SR_BACKEND_FAILURE_<n>`).
    pub missing_error: u32,
}

impl ConfigKey {
    /// A key that the back end itself looks for; `missing_error` is for those that it needs.
    pub const fn optional(key: &'static str, description: &'static str) -> ConfigKey {
        ConfigKey { key, description, required: false, missing_error: 115 }
    }

    pub const fn required(key: &'static str, description: &'static str, missing_error: u32) -> ConfigKey {
        ConfigKey { key, description, required: true, missing_error }
    }
}

impl DriverType {
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|(name, _)| *name == feature)
    }

    /// The first required key that `config` lacks.
    pub fn missing_key(&self, config: &BTreeMap<String, String>) -> Option<&ConfigKey> {
        self.configuration.iter().find(|key| key.required && config.get(key.key).is_none_or(|value| value.is_empty()))
    }
}

/// One SR as its back end sees it.
///
/// `device_config` may hold passwords; `Debug` shows its keys alone.
#[derive(Clone, Default)]
pub struct SrConfig {
    pub sr: Uuid,
    pub device_config: BTreeMap<String, String>,
    /// Bytes asked for when a new container is made; `None` leaves it to the back end.
    pub physical_size: Option<u64>,
    /// For people who look at the storage, and for [`Backend::probe`] later. May be empty.
    pub name_label: String,
    pub name_description: String,
    /// IQN under which this host itself logs in, for what a back end reads and writes on its own (metadata).
    pub initiator: String,
}

impl fmt::Debug for SrConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&str> = self.device_config.keys().map(String::as_str).collect();
        f.debug_struct("SrConfig").field("sr", &self.sr).field("device_config", &keys).finish_non_exhaustive()
    }
}

/// Something that looks like an SR.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub sr: Uuid,
    pub size: u64,
    /// Empty where the storage keeps none.
    pub name_label: String,
    pub name_description: String,
}

/// A kind of storage: makes, opens, closes and erases SRs. All verbs may be repeated.
#[async_trait]
pub trait Backend: Send + Sync {
    fn facts(&self) -> &'static DriverType;

    /// Makes the container of a new SR. A container that holds another SR is refused with `Exists`. Where the key that
    /// names the container is missing, the error's `detail` lists what there is.
    async fn create(&self, config: &SrConfig) -> DriverResult<()>;
    /// Makes the SR usable on this host.
    async fn open(&self, config: &SrConfig) -> DriverResult<Arc<dyn Driver>>;
    /// Ends the use on this host. The SR that is not open succeeds.
    async fn close(&self, config: &SrConfig) -> DriverResult<()>;
    /// Removes the container with all in it. It is closed first.
    async fn erase(&self, config: &SrConfig) -> DriverResult<()>;
    /// What is at the place that `device_config` names.
    async fn probe(&self, device_config: &BTreeMap<String, String>) -> DriverResult<Vec<Found>>;
}

/// All kinds known to a program.
#[derive(Clone, Default)]
pub struct Registry {
    backends: BTreeMap<&'static str, Arc<dyn Backend>>,
}

impl Registry {
    pub fn new(backends: impl IntoIterator<Item = Arc<dyn Backend>>) -> Registry {
        Registry { backends: backends.into_iter().map(|backend| (backend.facts().name, backend)).collect() }
    }

    /// `name` in any case.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Backend>> {
        self.backends.get(name.to_ascii_lowercase().as_str())
    }

    pub fn types(&self) -> impl Iterator<Item = &'static DriverType> + '_ {
        self.backends.values().map(|backend| backend.facts())
    }
}
