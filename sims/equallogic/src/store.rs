//! What a simulated group keeps in its directory: `group.json`, `hostkey`, and `disks/`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ring::rand::{SecureRandom, SystemRandom};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;

use crate::array::Group;

pub struct Store {
    dir: PathBuf,
    /// What is on disk.
    last: String,
}

impl Store {
    pub fn open(dir: &Path) -> Result<Store> {
        fs::create_dir_all(dir.join("disks")).with_context(|| format!("making {}", dir.display()))?;
        Ok(Store { dir: dir.to_path_buf(), last: String::new() })
    }

    /// The group that was kept, if any.
    pub fn load(&mut self) -> Result<Option<Group>> {
        let path = self.dir.join("group.json");
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
            Ok(text) => {
                let group = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
                self.last = text;
                Ok(Some(group))
            }
        }
    }

    /// Keeps the group, if it changed.
    pub fn save(&mut self, group: &Group) -> io::Result<()> {
        let text = serde_json::to_string(group)?;
        if text != self.last {
            replace(&self.dir.join("group.json"), text.as_bytes())?;
            self.last = text;
        }
        Ok(())
    }

    /// The SSH host key, made at the first start.
    pub fn host_key(&self) -> Result<PrivateKey> {
        let path = self.dir.join("hostkey");
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            return PrivateKey::from_openssh(text).with_context(|| format!("{} is not a private key", path.display()));
        }
        let mut seed = [0u8; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| anyhow::anyhow!("no random bytes"))?;
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        let text = key.to_openssh(LineEnding::LF).context("writing the host key")?;
        replace(&path, text.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
        Ok(key)
    }

    /// A number by which this group differs from others.
    pub fn identity() -> Result<u64> {
        let mut bytes = [0u8; 8];
        SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("no random bytes"))?;
        Ok(u64::from_le_bytes(bytes) & 0xf_ffff_ffff)
    }
}

/// Secrets are inside: nobody else may read it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    fs::rename(&new, path)
}
