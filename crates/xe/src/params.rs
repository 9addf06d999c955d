//! The parameters of one command.

use crate::failure::Failure;
use crate::scalar::{parse_bool, parse_int, parse_size};
use std::collections::BTreeMap;
use tanada_xapi::Value;

/// Parameters that every command takes and that never are conditions.
pub const COMMON: &[&str] =
    &["server", "password", "port", "username", "minimal", "force", "multiple", "all", "message-priority", "trace"];

#[derive(Debug, Clone, Default)]
pub struct Params(pub Vec<(String, String)>);

impl Params {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// An absent or empty parameter counts as missing.
    pub fn need(&self, name: &str) -> Result<&str, Failure> {
        self.get(name).ok_or_else(|| Failure::MissingParameter(name.to_owned()))
    }

    pub fn or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.get(name).unwrap_or(default)
    }

    /// `--name`, `name`, `name=true`.
    pub fn flag(&self, name: &str) -> Result<bool, Failure> {
        self.flag_or(name, false)
    }

    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool, Failure> {
        match self.get(name) {
            None => Ok(default),
            Some("") => Ok(true),
            Some(text) => parse_bool(name, text),
        }
    }

    pub fn size(&self, name: &str) -> Result<i64, Failure> {
        parse_size(name, self.need(name)?)
    }

    pub fn int_or(&self, name: &str, default: i64) -> Result<i64, Failure> {
        self.get(name).map_or(Ok(default), |text| parse_int(name, text))
    }

    /// The entries of a map parameter: `name:key=value`, or `name-key=value` as it was written before.
    pub fn map(&self, name: &str) -> BTreeMap<String, String> {
        let entry = |key: &str| {
            let rest = key.strip_prefix(name)?;
            rest.strip_prefix(':').or_else(|| rest.strip_prefix('-')).filter(|rest| !rest.is_empty()).map(str::to_owned)
        };
        self.0.iter().filter_map(|(key, value)| Some((entry(key)?, value.clone()))).collect()
    }

    pub fn map_value(&self, name: &str) -> Value {
        Value::map(self.map(name))
    }
}

#[cfg(test)]
mod tests {
    use super::Params;

    #[test]
    fn maps_are_read_in_both_spellings() {
        let pairs =
            [("device-config:location", "/a"), ("device-config-x", "1"), ("device-config", "no"), ("name", "n")];
        let params = Params(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        let map = params.map("device-config");
        assert_eq!(map.into_iter().collect::<Vec<_>>(), [("location".into(), "/a".into()), ("x".into(), "1".into())]);
        assert!(!params.flag("force").unwrap());
        assert_eq!(params.get("name"), Some("n"));
    }
}
