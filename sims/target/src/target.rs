//! The target side of a simulated array: targets, LUNs and accounts in one tgtd, and copies at one instant.
//!
//! tgt keeps LUN 0 of every target for a controller of its own. Arrays have disks there: numbers here are the array's, in
//! tgtd they are one higher, and the router puts them right in every PDU.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::blocks;
use crate::error::{Result, TargetError};
use crate::mgmt::{Mode, Op, Request};
use crate::tgtd::Tgtd;

/// tgt's numbers for "commands are under way".
const LUN_ACTIVE: u32 = 20;
const DEVICE_ACTIVE: u32 = 21;
/// How long a LUN that goes away may still have commands under way.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// What a LUN says of itself in INQUIRY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// At most 8, 16 and 4 characters.
    pub vendor: String,
    pub product: String,
    pub revision: String,
    /// VPD page 0x80.
    pub serial: String,
}

/// Name and secret by which one side proves itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Chap {
    pub user: String,
    pub secret: String,
}

impl std::fmt::Debug for Chap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chap {{ user: {:?} }}", self.user)
    }
}

/// Accounts of a target. In tgtd names are global, so they are numbered there; the router translates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    /// (what the initiator calls it, what tgtd calls it)
    pub inbound: Option<(String, String)>,
    pub outbound: Option<(String, String)>,
}

struct Entry {
    id: i32,
    accounts: Accounts,
}

#[derive(Default)]
struct Table {
    targets: BTreeMap<String, Entry>,
    last_id: i32,
    last_account: u64,
}

/// A running tgtd with what it shows.
pub struct Target {
    /// Held during every call and while tgtd is stopped: a stopped tgtd answers nobody.
    table: Mutex<Table>,
    tgtd: Tgtd,
}

impl Target {
    /// Starts a tgtd with nothing to show; socket and log are in `dir`.
    pub fn start(dir: &Path) -> Result<Target> {
        Ok(Target { tgtd: Tgtd::start(dir)?, table: Mutex::default() })
    }

    /// Where tgtd itself listens. Initiators go through a router, or LUN numbers are off by one.
    pub fn backend(&self) -> SocketAddrV4 {
        self.tgtd.portal()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(table: &Table, target: &str) -> Result<i32> {
        let found = table.targets.get(target).map(|entry| entry.id);
        found.ok_or_else(|| TargetError::Invalid(format!("there is no target {target}")))
    }

    /// A new target without LUNs. Who may log in is the router's question.
    pub fn add_target(&self, target: &str) -> Result<()> {
        let mut table = self.table();
        if table.targets.contains_key(target) {
            return Err(TargetError::Invalid(format!("there is a target {target} already")));
        }
        table.last_id += 1;
        let id = table.last_id;
        let mgmt = self.tgtd.mgmt();
        mgmt.call(&Request::new(Mode::Target, Op::New).target(id).text(format!("targetname={target}")))?;
        mgmt.call(&Request::new(Mode::Target, Op::Bind).target(id).text("initiator-address=ALL".into()))?;
        table.targets.insert(target.to_string(), Entry { id, accounts: Accounts::default() });
        Ok(())
    }

    /// Whether there is such a target.
    pub fn has_target(&self, target: &str) -> bool {
        self.table().targets.contains_key(target)
    }

    /// Ends a target with its LUNs; sessions are cut.
    pub fn remove_target(&self, target: &str) -> Result<()> {
        let mut table = self.table();
        let id = Self::id(&table, target)?;
        self.tgtd.mgmt().call(&Request::new(Mode::Target, Op::Delete).target(id).force())?;
        let Some(entry) = table.targets.remove(target) else { return Ok(()) };
        self.forget(&entry.accounts)
    }

    fn forget(&self, accounts: &Accounts) -> Result<()> {
        for (_, account) in accounts.inbound.iter().chain(&accounts.outbound) {
            self.tgtd.mgmt().call(&Request::new(Mode::Account, Op::Delete).text(format!("user={account}")))?;
        }
        Ok(())
    }

    /// From now on, logins have to prove themselves with `inbound` (none: nobody has to), and tgtd does with `outbound`.
    pub fn set_chap(&self, target: &str, inbound: Option<&Chap>, outbound: Option<&Chap>) -> Result<()> {
        let mut table = self.table();
        let id = Self::id(&table, target)?;
        let mut accounts = Accounts::default();
        for (chap, is_outgoing) in [(inbound, false), (outbound, true)] {
            let Some(chap) = chap else { continue };
            table.last_account += 1;
            let name = format!("account{}", table.last_account);
            let text = format!("user={name},password={}", chap.secret);
            self.tgtd.mgmt().call(&Request::new(Mode::Account, Op::New).text(text))?;
            let bind = Request::new(Mode::Account, Op::Bind).target(id).text(format!("user={name}"));
            self.tgtd.mgmt().call(&if is_outgoing { bind.outgoing() } else { bind })?;
            let slot = if is_outgoing { &mut accounts.outbound } else { &mut accounts.inbound };
            *slot = Some((chap.user.clone(), name));
        }
        let Some(entry) = table.targets.get_mut(target) else { return Ok(()) };
        let before = std::mem::replace(&mut entry.accounts, accounts);
        self.forget(&before)
    }

    pub(crate) fn accounts(&self, target: &str) -> Accounts {
        self.table().targets.get(target).map(|entry| entry.accounts.clone()).unwrap_or_default()
    }

    /// Shows the disk at `path` as LUN `lun`. `thin`: UNMAP is offered and punches holes.
    pub fn add_lun(
        &self,
        target: &str,
        lun: u16,
        path: &Path,
        identity: &Identity,
        thin: bool,
        read_only: bool,
    ) -> Result<()> {
        let table = self.table();
        let id = Self::id(&table, target)?;
        let request = |op| Request::new(Mode::Device, op).target(id).lun(u64::from(lun) + 1);
        self.tgtd.mgmt().call(&request(Op::New).text(format!("path={}", path.display())))?;
        let facts = format!(
            "vendor_id={},product_id={},product_rev={},scsi_sn={},thin_provisioning={},readonly={}",
            identity.vendor,
            identity.product,
            identity.revision,
            identity.serial,
            u8::from(thin),
            u8::from(read_only)
        );
        self.tgtd.mgmt().call(&request(Op::Update).text(facts))
    }

    /// Takes a LUN away, waiting until commands under way have ended.
    pub fn remove_lun(&self, target: &str, lun: u16) -> Result<()> {
        let start = Instant::now();
        loop {
            let table = self.table();
            let id = Self::id(&table, target)?;
            let request = Request::new(Mode::Device, Op::Delete).target(id).lun(u64::from(lun) + 1);
            match self.tgtd.mgmt().call(&request) {
                Err(TargetError::Refused { code: LUN_ACTIVE | DEVICE_ACTIVE, .. })
                    if start.elapsed() < BUSY_PATIENCE => {}
                done => return done,
            }
            drop(table);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Switches a LUN between writable and read-only under running sessions.
    pub fn set_read_only(&self, target: &str, lun: u16, read_only: bool) -> Result<()> {
        self.update(target, lun, format!("readonly={}", u8::from(read_only)))
    }

    /// Takes a LUN offline (not ready) or back.
    pub fn set_online(&self, target: &str, lun: u16, online: bool) -> Result<()> {
        self.update(target, lun, format!("online={}", u8::from(online)))
    }

    fn update(&self, target: &str, lun: u16, facts: String) -> Result<()> {
        let table = self.table();
        let id = Self::id(&table, target)?;
        let request = Request::new(Mode::Device, Op::Update).target(id).lun(u64::from(lun) + 1);
        self.tgtd.mgmt().call(&request.text(facts))
    }

    /// Runs `at` while nothing is written through this target. `at` may not call the target.
    pub fn at_one_instant<T>(&self, at: impl FnOnce() -> T) -> Result<T> {
        let _table = self.table();
        self.tgtd.stopped(at)
    }

    /// Copies every disk to a new file, all at one instant: an array's crash-consistent group snapshot.
    /// On failure none of the copies is left. Returns the bytes physically copied.
    pub fn copy_at_one_instant(&self, pairs: &[(&Path, &Path)]) -> Result<u64> {
        let copied = self.at_one_instant(|| {
            let mut bytes = 0;
            for (number, (from, to)) in pairs.iter().enumerate() {
                match blocks::copy(from, to) {
                    Ok(copied) => bytes += copied,
                    Err(error) => {
                        for (_, made) in &pairs[..number] {
                            // The first error is the one to tell.
                            let _ = std::fs::remove_file(made);
                        }
                        return Err(error);
                    }
                }
            }
            Ok(bytes)
        });
        copied?
    }
}
