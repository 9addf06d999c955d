//! What an administrator configures: `device_config` of the SR, `sm_config` of a disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tanada_driver::registry::ConfigKey;
use tanada_driver::{DriverError, DriverErrorKind, DriverResult, Secret};

use crate::error::sm;
use crate::ssh::{HostKey, SshOptions};

/// Where an administrator's own list of host keys is.
const KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts";
/// More is not possible on any firmware.
pub const SNAP_RESERVE_MAX: u64 = 10_000;

pub static KEYS: [ConfigKey; 15] = [
    ConfigKey::required("target", "host name or address of the group", sm::TARGET_MISSING),
    ConfigKey::required("username", "account of the group's command line", sm::USER_MISSING),
    ConfigKey::required("password", "its password", sm::PASSWORD_MISSING),
    ConfigKey::optional("storagepool", "the pool that volumes are made in; needed by SR.create"),
    ConfigKey::optional("hostkey", "SHA-256 fingerprint of the group's SSH host key: SHA256:..."),
    ConfigKey::optional("knownhosts", "file with the group's SSH host key, where no fingerprint is given"),
    ConfigKey::optional("port", "SSH port, 22 by default"),
    ConfigKey::optional("portal", "host:port of iSCSI, the group's address and 3260 by default"),
    ConfigKey::optional("sshalgorithms", "names of old SSH algorithms to allow, separated by commas"),
    ConfigKey::optional("allocation", "thin (default) or thick"),
    ConfigKey::optional(
        "snap-reserve-percentage",
        "snapshot reserve from the first, in percent; 0: it comes with snapshots",
    ),
    ConfigKey::optional("snap-depletion", "delete-oldest (default) or volume-offline"),
    ConfigKey::optional("clones", "thin (default): instances of a generation share a template; full: they are copies"),
    ConfigKey::optional("chapuser", "taken for compatibility: each attachment gets an account of its own"),
    ConfigKey::optional("chappassword", "taken for compatibility, as chapuser"),
];

/// Keys of a disk's `sm_config`.
pub static DISK_KEYS: &[&str] = &["allocation", "snap-reserve-percentage", "snap-depletion"];

/// How volumes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    pub thin: bool,
    /// Snapshot reserve of a new volume; it is raised as snapshots need it.
    pub reserve_percent: u64,
    /// Else the volume goes offline.
    pub delete_oldest: bool,
}

impl DiskOptions {
    pub const DEFAULT: DiskOptions = DiskOptions { thin: true, reserve_percent: 0, delete_oldest: true };

    /// `self` with what `keys` change.
    pub fn with(mut self, keys: &BTreeMap<String, String>) -> DriverResult<DiskOptions> {
        match keys.get("allocation").map(String::as_str) {
            None | Some("") => {}
            Some("thin") => self.thin = true,
            Some("thick") => self.thin = false,
            Some(other) => return Err(wrong("allocation", other, "thin or thick", None)),
        }
        match keys.get("snap-reserve-percentage").map(String::as_str) {
            None | Some("") => {}
            Some(text) => match text.parse() {
                Ok(percent) if percent <= SNAP_RESERVE_MAX => self.reserve_percent = percent,
                _ => return Err(wrong("snap-reserve-percentage", text, "0 to 10000", Some(sm::SNAP_RESERVE))),
            },
        }
        match keys.get("snap-depletion").map(String::as_str) {
            None | Some("") => {}
            Some("delete-oldest") => self.delete_oldest = true,
            Some("volume-offline") => self.delete_oldest = false,
            Some(other) => {
                let wanted = "delete-oldest or volume-offline";
                return Err(wrong("snap-depletion", other, wanted, Some(sm::SNAP_DEPLETION)));
            }
        }
        Ok(self)
    }

    pub fn depletion(&self) -> &'static str {
        if self.delete_oldest { "delete-oldest" } else { "volume-offline" }
    }
}

/// A whole `device_config`, checked.
#[derive(Debug, Clone)]
pub struct Options {
    pub ssh: SshOptions,
    pub password: Secret,
    /// Empty where none was given.
    pub pool: String,
    pub portal: Option<String>,
    pub disks: DiskOptions,
    pub thin_clones: bool,
}

impl Options {
    pub fn parse(config: &BTreeMap<String, String>) -> DriverResult<Options> {
        let get = |key: &str| config.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
        let missing = |key: &ConfigKey| {
            DriverError::new(DriverErrorKind::InvalidArgument, format!("device-config:{} is missing", key.key))
                .with_sm(key.missing_error)
        };
        if let Some(key) = KEYS.iter().find(|key| key.required && get(key.key).is_none()) {
            return Err(missing(key));
        }
        let text = |key: &str| get(key).unwrap_or_default().to_string();
        let plain = |key: &str, extra: &[u8]| {
            let value = text(key);
            let fits = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte));
            if fits { Ok(value) } else { Err(wrong(key, &value, "letters, digits, '-' and '.'", None)) }
        };
        let port = match get("port") {
            None => 22,
            Some(text) => {
                text.parse().map_err(|_| wrong("port", text, "a number from 1 to 65535", Some(sm::TARGET_PORT)))?
            }
        };
        let host_key = match (get("hostkey"), get("knownhosts")) {
            (Some(print), _) if print.starts_with("SHA256:") => HostKey::Fingerprint(print.to_string()),
            (Some(other), _) => return Err(wrong("hostkey", other, "SHA256: and 43 characters", None)),
            (None, file) => HostKey::KnownHosts(PathBuf::from(file.unwrap_or(KNOWN_HOSTS))),
        };
        let legacy = text("sshalgorithms");
        let legacy = legacy.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_string).collect();
        let thin_clones = match get("clones") {
            None | Some("thin") => true,
            Some("full") => false,
            Some(other) => return Err(wrong("clones", other, "thin or full", None)),
        };
        let ssh = SshOptions {
            host: plain("target", b"-.:")?,
            port,
            user: text("username"),
            password: Secret::new(config.get("password").map(String::as_str).unwrap_or_default()),
            host_key,
            legacy,
        };
        Ok(Options {
            password: ssh.password.clone(),
            ssh,
            pool: plain("storagepool", b"-.")?,
            portal: get("portal").map(str::to_string),
            disks: DiskOptions::DEFAULT.with(config)?,
            thin_clones,
        })
    }
}

fn wrong(key: &str, value: &str, wanted: &str, number: Option<u32>) -> DriverError {
    let words = format!("{key}={value:?}: {wanted} is accepted");
    crate::error_with(DriverErrorKind::InvalidArgument, words, number)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tanada_driver::DriverResult;

    use super::{KEYS, Options};

    fn parse(pairs: &[(&str, &str)]) -> DriverResult<Options> {
        let base = [("target", "10.0.0.1"), ("username", "tanada"), ("password", "hush")];
        let all = base.iter().chain(pairs).map(|(key, value)| (key.to_string(), value.to_string()));
        Options::parse(&all.collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn defaults_are_thin_and_keep_generations_until_told_otherwise() {
        let options = parse(&[]).unwrap();
        assert!(options.disks.thin && options.disks.delete_oldest && options.thin_clones);
        assert_eq!((options.disks.reserve_percent, options.ssh.port), (0, 22));
        assert!(!format!("{options:?}").contains("hush"));
    }

    #[test]
    fn wrong_values_have_their_numbers() {
        let number = |pairs: &[(&str, &str)]| parse(pairs).err().and_then(|failure| failure.sm);
        assert_eq!(number(&[("snap-reserve-percentage", "10001")]), Some(165));
        assert_eq!(number(&[("snap-reserve-percentage", "-1")]), Some(165));
        assert_eq!(number(&[("snap-depletion", "never")]), Some(166));
        assert_eq!(number(&[("port", "ssh")]), Some(171));
        assert!(parse(&[("hostkey", "aa:bb")]).is_err());
        assert!(parse(&[("allocation", "fat")]).is_err());
        assert!(parse(&[("storagepool", "a b")]).is_err());
        for (key, missing) in KEYS.iter().zip([160, 161, 162]) {
            assert_eq!(number(&[(key.key, "")]), Some(missing));
        }
    }
}
