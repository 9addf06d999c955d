//! What an administrator asks for, per VM, by keys of `VM.other_config`.
//!
//! | key | values | default |
//! |---|---|---|
//! | `tanada-quiesce` | `force`: quiesced or no snapshot; `prefer`: quiesced if possible, else crash-consistent, said so; `skip`: the guest is not asked | `prefer` |
//! | `tanada-freeze-seconds` | 1 to 600: how long the guest may take to freeze | 30, Windows 90 |
//! | `tanada-hooks` | `declared`: freeze hooks of this (Linux) guest bring its programs to rest | not declared |

use std::time::Duration;

pub const POLICY_KEY: &str = "tanada-quiesce";
pub const FREEZE_SECONDS_KEY: &str = "tanada-freeze-seconds";
pub const HOOKS_KEY: &str = "tanada-hooks";

const FREEZE_SECONDS_MAX: u64 = 600;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    Force,
    #[default]
    Prefer,
    Skip,
}

impl Policy {
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Force => "force",
            Policy::Prefer => "prefer",
            Policy::Skip => "skip",
        }
    }

    pub fn from_name(name: &str) -> Option<Policy> {
        [Policy::Force, Policy::Prefer, Policy::Skip].into_iter().find(|policy| policy.name() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    pub policy: Policy,
    /// `None`: what the guest's system needs usually.
    pub freeze_limit: Option<Duration>,
    pub hooks_declared: bool,
}

/// A key of `other_config` that holds what nobody can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("other_config:{key} is '{value}'; {accepted} is accepted")]
pub struct BadSetting {
    pub key: &'static str,
    pub value: String,
    pub accepted: &'static str,
}

impl Settings {
    /// Reads the keys with `lookup`, which answers with a key's value.
    ///
    /// # Errors
    /// A value that is not among the accepted ones: a policy that is misspelt must not be taken for the default.
    pub fn read<'a>(lookup: impl Fn(&str) -> Option<&'a str>) -> Result<Settings, BadSetting> {
        let bad = |key, value: &str, accepted| BadSetting { key, value: value.to_owned(), accepted };
        let policy = match lookup(POLICY_KEY) {
            None => Policy::default(),
            Some(name) => Policy::from_name(name).ok_or_else(|| bad(POLICY_KEY, name, "force, prefer or skip"))?,
        };
        let freeze_limit = match lookup(FREEZE_SECONDS_KEY) {
            None => None,
            Some(text) => {
                let seconds = text.parse().ok().filter(|seconds| (1..=FREEZE_SECONDS_MAX).contains(seconds));
                let seconds =
                    seconds.ok_or_else(|| bad(FREEZE_SECONDS_KEY, text, "a whole number of seconds from 1 to 600"))?;
                Some(Duration::from_secs(seconds))
            }
        };
        let hooks_declared = match lookup(HOOKS_KEY) {
            None => false,
            Some("declared") => true,
            Some(value) => return Err(bad(HOOKS_KEY, value, "declared (or no such key)")),
        };
        Ok(Settings { policy, freeze_limit, hooks_declared })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{BadSetting, Policy, Settings};

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, BadSetting> {
        let map: BTreeMap<&str, &str> = pairs.iter().copied().collect();
        Settings::read(|key| map.get(key).copied())
    }

    #[test]
    fn absent_keys_mean_the_defaults() {
        assert_eq!(read(&[("folder", "x")]), Ok(Settings::default()));
    }

    #[test]
    fn every_key_is_read() {
        let settings =
            read(&[("tanada-quiesce", "force"), ("tanada-freeze-seconds", "45"), ("tanada-hooks", "declared")]);
        let expected =
            Settings { policy: Policy::Force, freeze_limit: Some(Duration::from_secs(45)), hooks_declared: true };
        assert_eq!(settings, Ok(expected));
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_what_is_accepted() {
        for (key, value) in [
            ("tanada-quiesce", "Force"),
            ("tanada-quiesce", ""),
            ("tanada-freeze-seconds", "0"),
            ("tanada-freeze-seconds", "601"),
            ("tanada-freeze-seconds", "-3"),
            ("tanada-freeze-seconds", "ten"),
            ("tanada-hooks", "yes"),
        ] {
            let words = read(&[(key, value)]).unwrap_err().to_string();
            assert!(words.starts_with(&format!("other_config:{key} is '{value}'; ")), "{words}");
        }
    }
}
