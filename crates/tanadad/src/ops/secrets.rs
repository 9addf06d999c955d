//! Passwords of `device_config`: kept as secrets, never as words in a record.
//!
//! As XenServer does it, a key that ends in `password` becomes `<key>_secret` with the uuid of a `secret` object; a client
//! may as well name a secret itself. The secret belongs to the one PBD (or plan) that names it and goes with it.

use std::collections::BTreeMap;

use tanada_xapi::{ApiError, ApiResult, Value};

use crate::db::{Tx, View};

const SUFFIX: &str = "_secret";

fn is_password(key: &str) -> bool {
    key.ends_with("password")
}

/// `chappassword` of `chappassword_secret`.
fn hidden_key(key: &str) -> Option<&str> {
    key.strip_suffix(SUFFIX).filter(|plain| is_password(plain))
}

/// The configuration as it may be seen; its secrets are new ones, also where the client named some.
pub fn hide(tx: &mut Tx<'_>, config: &BTreeMap<String, String>) -> ApiResult<BTreeMap<String, String>> {
    let mut hidden = BTreeMap::new();
    for (key, value) in reveal(tx, config)? {
        if is_password(&key) {
            let secret = tx.create("secret", [("value", Value::from(value))])?;
            hidden.insert(format!("{key}{SUFFIX}"), tx.get("secret", &secret)?.uuid().to_owned());
        } else {
            hidden.insert(key, value);
        }
    }
    Ok(hidden)
}

/// The configuration as a back end needs it. `SR_BACKEND_FAILURE_20` where a secret is gone.
pub fn reveal(view: &impl View, config: &BTreeMap<String, String>) -> ApiResult<BTreeMap<String, String>> {
    let open = |(key, value): (&String, &String)| match hidden_key(key) {
        None => Ok((key.clone(), value.clone())),
        Some(plain) => match view.find_by_uuid("secret", value) {
            Some(secret) => Ok((plain.to_owned(), secret.str("value").to_owned())),
            None => Err(ApiError::sr_backend_failure(20, format!("device-config:{key} names no secret ({value})"))),
        },
    };
    config.iter().map(open).collect()
}

/// Destroys the secrets that a hidden configuration names.
pub fn forget(tx: &mut Tx<'_>, config: &BTreeMap<String, String>) -> ApiResult<()> {
    for (key, value) in config {
        if hidden_key(key).is_some()
            && let Some(secret) = tx.find_by_uuid("secret", value)
        {
            tx.destroy("secret", secret.id())?;
        }
    }
    Ok(())
}
