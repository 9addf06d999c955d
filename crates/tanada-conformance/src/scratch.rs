//! The SR under test as cases see it: a driver, and disks that are really attached, written and read.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tanada_driver::bridge::Bridge;
use tanada_driver::{AttachRequest, CloneRequest, CreateRequest, CutPair, Driver, DriverErrorKind};
use tanada_nbd::client::Client;
use tanada_units::{BLOCK_BYTES, MIB};
use uuid::Uuid;

use crate::pattern;
use crate::run::{Scale, Subject};

/// Bytes in one request.
const PIECE_BYTES: u64 = MIB;
/// How often a verb that is told "busy" is repeated while something else on the storage ends.
const BUSY_TRIES: u32 = 60;

pub struct Scratch {
    subject: Subject,
    pub scale: Scale,
    driver: RwLock<Arc<dyn Driver>>,
    /// Everything that was asked for, whether it came to be or not.
    made: Mutex<BTreeSet<Uuid>>,
    tokens: Mutex<BTreeSet<String>>,
}

impl Scratch {
    pub async fn open(subject: &Subject, scale: Scale) -> Result<Scratch> {
        let driver = subject.backend.open(&subject.config).await.context("opening the SR")?;
        let found = driver.scan().await.context("looking what the SR holds")?;
        ensure!(
            found.is_empty(),
            "the SR {} holds {} disks: only an empty one is tested",
            subject.config.sr,
            found.len()
        );
        Ok(Scratch {
            subject: subject.clone(),
            scale,
            driver: RwLock::new(driver),
            made: Mutex::default(),
            tokens: Mutex::default(),
        })
    }

    pub fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// A driver that knows nothing of what was done before, as after a restart of the control plane.
    pub async fn reopen(&self) -> Result<Arc<dyn Driver>> {
        let driver = self.subject.backend.open(&self.subject.config).await.context("opening the SR again")?;
        *self.driver.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&driver);
        Ok(driver)
    }

    /// A name for something new; it is cleaned up after the case whatever becomes of it.
    pub fn new_id(&self) -> Uuid {
        let id = Uuid::new_v4();
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        id
    }

    pub async fn create(&self, size: u64) -> Result<Uuid> {
        let id = self.new_id();
        self.driver().create(&CreateRequest::new(id, size)).await.with_context(|| format!("creating {size} bytes"))?;
        Ok(id)
    }

    /// Beside `near`, as for a disk of the same machine.
    pub async fn create_near(&self, size: u64, near: Uuid) -> Result<Uuid> {
        let id = self.new_id();
        let request = CreateRequest { near: Some(near), ..CreateRequest::new(id, size) };
        self.driver().create(&request).await.with_context(|| format!("creating {size} bytes"))?;
        Ok(id)
    }

    pub async fn snapshot(&self, volume: Uuid) -> Result<Uuid> {
        let generation = self.new_id();
        self.driver().snapshot(&[CutPair { volume, generation }]).await.context("a snapshot")?;
        Ok(generation)
    }

    pub async fn clone_of(&self, source: Uuid) -> Result<Uuid> {
        let volume = self.new_id();
        self.driver().clone_volume(&CloneRequest::new(source, volume)).await.context("a clone")?;
        Ok(volume)
    }

    pub async fn destroy(&self, target: Uuid) -> Result<bool> {
        for _ in 0..BUSY_TRIES {
            match self.driver().destroy(target).await {
                Err(error) if error.kind == DriverErrorKind::Busy => {
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                }
                other => return Ok(other.with_context(|| format!("destroying {target}"))?.changed),
            }
        }
        bail!("{target} stays busy")
    }

    /// Ids in a scan, of volumes and generations.
    pub async fn ids(&self) -> Result<BTreeSet<Uuid>> {
        Ok(self.driver().scan().await.context("a scan")?.iter().map(|entry| entry.id).collect())
    }

    pub async fn disk(&self, target: Uuid, writable: bool) -> Result<Disk> {
        let token = Uuid::new_v4().simple().to_string();
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone());
        let initiator = self.subject.config.initiator.clone();
        let request = AttachRequest { token: token.clone(), target, writable, initiator };
        let driver = self.driver();
        let endpoint = driver.attach(&request).await.with_context(|| format!("attaching {target}"))?;
        let bridge = self.subject.bridges.open(&endpoint, writable).await.context("reaching an attached disk")?;
        let client = bridge.connect().await.context("connecting to an attached disk")?;
        Ok(Disk { client, bridge, token, driver })
    }

    /// Writes `pattern` over blocks of a volume, durably.
    pub async fn write(&self, volume: Uuid, seed: u64, first: u64, count: u64) -> Result<()> {
        let disk = self.disk(volume, true).await?;
        disk.write(seed, first, count).await?;
        disk.close().await
    }

    /// Fails unless these blocks hold that pattern.
    pub async fn expect(&self, target: Uuid, seed: Option<u64>, first: u64, count: u64) -> Result<()> {
        let disk = self.disk(target, false).await?;
        let seen = disk.expect(seed, first, count).await;
        disk.close().await?;
        seen.with_context(|| format!("reading {target}"))
    }

    /// Ends everything that was asked for, and looks that nothing is left.
    pub async fn clean(&self) -> Result<()> {
        let driver = self.driver();
        let tokens = std::mem::take(&mut *self.tokens.lock().unwrap_or_else(PoisonError::into_inner));
        for token in tokens {
            driver.detach(&token).await.context("detaching")?;
        }
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for id in made {
            self.destroy(id).await?;
        }
        driver.settle().await.context("settling")?;
        let left = self.ids().await?;
        ensure!(left.is_empty(), "left over: {left:?}");
        let attached = driver.attachments().await.context("the attachments")?;
        ensure!(attached.is_empty(), "still attached: {attached:?}");
        Ok(())
    }
}

/// An attached disk.
pub struct Disk {
    client: Client,
    bridge: Bridge,
    token: String,
    driver: Arc<dyn Driver>,
}

impl Disk {
    /// Bytes that the hypervisor sees.
    pub fn size(&self) -> u64 {
        self.client.size()
    }

    pub async fn write(&self, seed: u64, first: u64, count: u64) -> Result<()> {
        let mut at = first;
        while at < first + count {
            let blocks = (first + count - at).min(PIECE_BYTES / BLOCK_BYTES);
            let bytes = Bytes::from(pattern::blocks(seed, at, blocks));
            self.client.write_at(at * BLOCK_BYTES, bytes).await.context("writing")?;
            at += blocks;
        }
        self.client.flush().await.context("flushing")
    }

    /// One block, answered but not flushed.
    pub async fn write_block(&self, number: u64, bytes: Vec<u8>) -> Result<()> {
        self.client.write_at(number * BLOCK_BYTES, Bytes::from(bytes)).await.context("writing")
    }

    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes> {
        self.client.read_at(offset, u32::try_from(length)?).await.context("reading")
    }

    /// Fails unless these blocks hold that pattern; `None`: zeros.
    pub async fn expect(&self, seed: Option<u64>, first: u64, count: u64) -> Result<()> {
        let mut at = first;
        while at < first + count {
            let blocks = (first + count - at).min(PIECE_BYTES / BLOCK_BYTES);
            let bytes = self.read(at * BLOCK_BYTES, blocks * BLOCK_BYTES).await?;
            for (number, found) in (at..).zip(bytes.chunks_exact(BLOCK_BYTES as usize)) {
                let right = match seed {
                    Some(seed) => found == pattern::block(seed, number),
                    None => found.iter().all(|byte| *byte == 0),
                };
                let wanted = seed.map_or_else(|| "zeros".to_owned(), |seed| format!("pattern {seed}"));
                ensure!(right, "block {number} does not hold {wanted} but begins with {:02x?}", &found[..8]);
            }
            at += blocks;
        }
        Ok(())
    }

    pub async fn close(self) -> Result<()> {
        drop(self.client);
        self.bridge.close().await;
        self.driver.detach(&self.token).await.context("detaching")?;
        Ok(())
    }
}
