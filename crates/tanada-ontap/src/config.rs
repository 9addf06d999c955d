//! What `device_config` says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tanada_driver::{DriverError, DriverErrorKind, DriverResult, Secret};

use crate::error::sm;
use crate::tls::{Trust, parse_fingerprint};

pub const FLEXVOLS_DEFAULT: u32 = 8;
const FLEXVOLS_MAX: u32 = 32;
const ISCSI_PORT: u16 = 3260;

/// One array, and how this SR uses it.
#[derive(Debug, Clone)]
pub struct Config {
    pub host: String,
    pub port: u16,
    pub username: String,
    pub password: Secret,
    pub trust: Trust,
    /// Needed where the account sees several.
    pub svm: Option<String>,
    /// Needed where a new SR is made.
    pub aggregate: Option<String>,
    /// The SR grows to so many FlexVols.
    pub flexvols_max: u32,
    pub thin: bool,
    pub dedupe: bool,
    pub chap: Option<(String, Secret)>,
    pub iscsi_port: u16,
}

impl Config {
    pub fn parse(map: &BTreeMap<String, String>) -> DriverResult<Config> {
        let text = |key: &str| map.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
        let needed = |key: &str, number| text(key).map(str::to_owned).ok_or_else(|| missing(key, number));
        let target = needed("target", sm::TARGET)?;
        let (host, named_port) = split_target(&target)?;
        if text("usehttps").is_some_and(|value| value != "true") {
            return Err(wrong("usehttps", text("usehttps"), "true: passwords are not sent in the clear"));
        }
        let port = match text("port").or(text("controlport")) {
            Some(port) => port.parse().map_err(|_| wrong("port", Some(port), "1 to 65535"))?,
            None => named_port.unwrap_or(443),
        };
        let password = map.get("password").filter(|value| !value.is_empty()).cloned();
        Ok(Config {
            host,
            port,
            username: needed("username", sm::USER)?,
            password: Secret::new(password.ok_or_else(|| missing("password", sm::PASSWORD))?),
            trust: trust(text("cacert"), text("fingerprint"))?,
            svm: text("svm").map(str::to_owned),
            aggregate: text("aggregate").map(str::to_owned),
            flexvols_max: flexvols(text("FlexVols"))?,
            thin: choice("allocation", text("allocation"), "thin", "thick")?,
            dedupe: !choice("asis", text("asis"), "false", "true")?,
            chap: chap(text("chapuser"), map.get("chappassword").map(String::as_str))?,
            iscsi_port: match text("iscsiport") {
                Some(port) => port.parse().map_err(|_| wrong("iscsiport", Some(port), "1 to 65535"))?,
                None => ISCSI_PORT,
            },
        })
    }
}

/// `host`, `host:port`, `[address]:port` or an address alone.
fn split_target(target: &str) -> DriverResult<(String, Option<u16>)> {
    let bad = || DriverError {
        sm: Some(sm::TARGET),
        ..wrong("target", Some(target), "a host name or address, with :port if it is not 443")
    };
    if let Some(rest) = target.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(bad)?;
        let port = port.strip_prefix(':').map(|port| port.parse().map_err(|_| bad())).transpose()?;
        return Ok((host.to_owned(), port));
    }
    match target.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => Ok((host.to_owned(), Some(port.parse().map_err(|_| bad())?))),
        _ => Ok((target.to_owned(), None)),
    }
}

fn trust(cacert: Option<&str>, fingerprint: Option<&str>) -> DriverResult<Trust> {
    match (cacert, fingerprint) {
        (_, Some(text)) => parse_fingerprint(text).map(Trust::Pinned).ok_or_else(|| {
            wrong("fingerprint", Some(text), "the SHA-256 of the array's certificate, 64 hexadecimal digits")
        }),
        (Some(path), None) if path.starts_with('/') => Ok(Trust::Authority(PathBuf::from(path))),
        (Some(path), None) => Err(wrong("cacert", Some(path), "the absolute path of a PEM file")),
        (None, None) => Ok(Trust::System),
    }
}

fn flexvols(text: Option<&str>) -> DriverResult<u32> {
    let Some(text) = text else { return Ok(FLEXVOLS_DEFAULT) };
    let number = text.parse().ok().filter(|number| (1..=FLEXVOLS_MAX).contains(number));
    number.ok_or_else(|| DriverError { sm: Some(sm::FLEXVOLS), ..wrong("FlexVols", Some(text), "1 to 32") })
}

/// True where the value is `first`, which is also the default.
fn choice(key: &str, value: Option<&str>, first: &str, second: &str) -> DriverResult<bool> {
    match value {
        None => Ok(true),
        Some(value) if value == first => Ok(true),
        Some(value) if value == second => Ok(false),
        other => Err(wrong(key, other, &format!("{first} or {second}"))),
    }
}

/// Both keys or none. Open-iscsi and arrays agree on 12 to 16 characters only.
fn chap(user: Option<&str>, password: Option<&str>) -> DriverResult<Option<(String, Secret)>> {
    match (user, password.filter(|password| !password.is_empty())) {
        (None, None) => Ok(None),
        (Some(_), Some(password)) if !(12..=16).contains(&password.len()) => {
            Err(invalid(format!("chappassword has {} characters; 12 to 16 are needed", password.len())))
        }
        (Some(user), Some(password)) => Ok(Some((user.to_owned(), Secret::new(password)))),
        _ => Err(invalid(String::from("chapuser and chappassword are given together, or neither is"))),
    }
}

fn missing(key: &str, number: u32) -> DriverError {
    invalid(format!("device-config:{key} is missing")).with_sm(number)
}

fn wrong(key: &str, value: Option<&str>, accepted: &str) -> DriverError {
    invalid(format!("device-config:{key} is {:?}; accepted: {accepted}", value.unwrap_or_default()))
}

fn invalid(message: String) -> DriverError {
    DriverError::new(DriverErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::Config;
    use crate::tls::Trust;
    use std::collections::BTreeMap;

    fn config(more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let base = [("target", "array.example"), ("username", "u"), ("password", "top secret")];
        base.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_not_said_has_defaults() {
        let read = Config::parse(&config(&[])).unwrap();
        assert_eq!((read.host.as_str(), read.port, read.iscsi_port), ("array.example", 443, 3260));
        assert!(read.thin && !read.dedupe && read.chap.is_none() && read.aggregate.is_none());
        assert_eq!((read.flexvols_max, read.trust.clone()), (8, Trust::System));
        assert!(!format!("{read:?}").contains("top secret"));
    }

    #[test]
    fn missing_keys_have_their_numbers() {
        for (key, number) in [("target", 120), ("username", 121), ("password", 122)] {
            let mut map = config(&[]);
            map.insert(key.to_owned(), String::new());
            assert_eq!(Config::parse(&map).unwrap_err().sm, Some(number), "{key}");
        }
    }

    #[test]
    fn targets_may_name_a_port() {
        let at = |target| Config::parse(&config(&[("target", target)])).map(|read| (read.host, read.port));
        assert_eq!(at("10.0.0.1:8443").unwrap(), ("10.0.0.1".into(), 8443));
        assert_eq!(at("[fd00::1]:8443").unwrap(), ("fd00::1".into(), 8443));
        assert_eq!(at("fd00::1").unwrap(), ("fd00::1".into(), 443));
        assert_eq!(at("a:b").unwrap_err().sm, Some(120));
    }

    #[test]
    fn wrong_values_are_named_with_what_would_do() {
        let cases = [
            ("FlexVols", "33", Some(127)),
            ("FlexVols", "x", Some(127)),
            ("allocation", "fat", None),
            ("usehttps", "false", None),
            ("cacert", "ca.pem", None),
            ("fingerprint", "12", None),
            ("chapuser", "alone", None),
            ("port", "70000", None),
        ];
        for (key, value, number) in cases {
            let error = Config::parse(&config(&[(key, value)])).unwrap_err();
            assert_eq!(error.sm, number, "{key}");
            assert!(error.message.contains(key), "{}", error.message);
        }
        let short = Config::parse(&config(&[("chapuser", "u"), ("chappassword", "short")])).unwrap_err();
        assert!(!short.message.contains("short\""), "{}", short.message);
    }
}
