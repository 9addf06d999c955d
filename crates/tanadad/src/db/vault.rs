//! Secrets at rest: sealed by AES-256-GCM under a key that lies beside the database, readable by us alone.
//!
//! This keeps passwords of arrays out of copies of the database and out of what `sqlite3` shows. It does not protect from
//! somebody who can read the whole state directory.

use std::path::Path;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::files;

const KEY_LEN: usize = 32;
/// Before sealed text, so that a change of method can be told.
const PREFIX: &str = "sealed1:";

pub struct Vault {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Vault {
    /// Reads the key in `path`, or makes one.
    pub fn open(path: &Path) -> anyhow::Result<Vault> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let bytes = random_key()?;
                files::write_private(path, &bytes)?;
                bytes.to_vec()
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        Vault::from_key(&bytes).with_context(|| format!("{} holds no key of {KEY_LEN} bytes", path.display()))
    }

    /// A key that is gone with the value.
    pub fn ephemeral() -> anyhow::Result<Vault> {
        Vault::from_key(&random_key()?)
    }

    fn from_key(bytes: &[u8]) -> anyhow::Result<Vault> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| anyhow::anyhow!("not a key"))?;
        Ok(Vault { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// Sealed text, bound to the object that it belongs to.
    pub fn seal(&self, text: &str, owner: &str) -> anyhow::Result<String> {
        let mut nonce = [0u8; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| anyhow::anyhow!("no random numbers"))?;
        let mut sealed = text.as_bytes().to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        let done = self.key.seal_in_place_append_tag(unique, Aad::from(owner.as_bytes()), &mut sealed);
        done.map_err(|_| anyhow::anyhow!("a secret could not be sealed"))?;
        Ok(format!("{PREFIX}{}", STANDARD_NO_PAD.encode([&nonce[..], &sealed].concat())))
    }

    /// The text again; an error when key, owner or content are not those it was sealed with.
    pub fn unseal(&self, sealed: &str, owner: &str) -> anyhow::Result<String> {
        let encoded = sealed.strip_prefix(PREFIX).context("not sealed by this program")?;
        let mut bytes = STANDARD_NO_PAD.decode(encoded)?;
        anyhow::ensure!(bytes.len() > NONCE_LEN, "too short");
        let mut sealed = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(|_| anyhow::anyhow!("no nonce"))?;
        let opened = self.key.open_in_place(nonce, Aad::from(owner.as_bytes()), &mut sealed);
        let opened = opened.map_err(|_| anyhow::anyhow!("sealed under another key, or damaged"))?;
        Ok(String::from_utf8(opened.to_vec())?)
    }
}

fn random_key() -> anyhow::Result<[u8; KEY_LEN]> {
    let mut bytes = [0u8; KEY_LEN];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("no random numbers"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::Vault;

    #[test]
    fn what_is_sealed_opens_for_its_owner_alone() {
        let vault = Vault::ephemeral().unwrap();
        let sealed = vault.seal("geheim", "a").unwrap();
        assert!(!sealed.contains("geheim"));
        assert_ne!(vault.seal("geheim", "a").unwrap(), sealed);
        assert_eq!(vault.unseal(&sealed, "a").unwrap(), "geheim");
        assert!(vault.unseal(&sealed, "b").is_err());
        assert!(Vault::ephemeral().unwrap().unseal(&sealed, "a").is_err());
        for rubbish in ["", "geheim", "sealed1:", "sealed1:AAAA", "sealed1:!"] {
            assert!(vault.unseal(rubbish, "a").is_err(), "{rubbish}");
        }
    }
}
