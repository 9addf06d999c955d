//! Passwords and logins.
//!
//! Local callers come through a unix socket that root alone may open: they are root, whatever password they send.
//! Remote callers need root's password, which is kept as a salted PBKDF2 hash in the state directory; until one is set
//! (`--root-password-file`, or `session.change_password` from a local session) nobody logs in remotely.
//! A wrong guess is answered late, and an address that guesses too often is refused without looking.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use tanada_xapi::{ApiError, ApiResult, Value};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::context::{Args, Daemon};
use crate::rpc::dispatch::Peer;
use crate::rpc::session::Role;

/// The one account.
pub const ROOT: &str = "root";

/// Work factor of a hash: some 50 ms here, which a caller does not notice and a guesser does.
const ITERATIONS: u32 = 210_000;
/// Guesses of one address before it is refused for the rest of the window.
const GUESSES_MAX: usize = 10;
const GUESS_WINDOW: Duration = Duration::from_secs(300);
/// Addresses remembered; beyond that the memory is emptied, which only forgives.
const ADDRESSES_MAX: usize = 10_000;
/// How late a wrong guess is answered.
pub const FAILURE_DELAY: Duration = Duration::from_secs(5);
/// Hashes computed at a time, so that guesses cannot take the machine.
const HASHES_AT_ONCE: usize = 2;

pub struct Passwords {
    file: PathBuf,
    failures: Mutex<HashMap<IpAddr, Vec<Instant>>>,
    hashing: Semaphore,
    failure_delay: Duration,
}

impl Passwords {
    pub fn new(state_dir: &Path, failure_delay: Duration) -> Passwords {
        Passwords {
            file: state_dir.join("root.password"),
            failures: Mutex::default(),
            hashing: Semaphore::new(HASHES_AT_ONCE),
            failure_delay,
        }
    }

    /// Replaces root's password.
    pub fn set(&self, password: &str) -> anyhow::Result<()> {
        let mut salt = [0u8; 16];
        SystemRandom::new().fill(&mut salt).map_err(|_| anyhow::anyhow!("no random numbers"))?;
        let mut hash = [0u8; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations(ITERATIONS)?, &salt, password.as_bytes(), &mut hash);
        let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
        let text = format!("pbkdf2-sha256 {ITERATIONS} {salt} {hash}\n");
        crate::files::write_private(&self.file, text.as_bytes())?;
        Ok(())
    }

    /// Is this root's password? Takes the same time whether or not; `false` while none is set.
    fn matches(&self, password: &str) -> anyhow::Result<bool> {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let parts: Vec<&str> = text.split_whitespace().collect();
        let ["pbkdf2-sha256", rounds, salt, hash] = parts[..] else {
            anyhow::bail!("{} is not a password file of this program", self.file.display());
        };
        let (salt, hash) = (STANDARD_NO_PAD.decode(salt)?, STANDARD_NO_PAD.decode(hash)?);
        let rounds = iterations(rounds.parse()?)?;
        Ok(pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &hash).is_ok())
    }

    /// May this address still guess?
    fn may_guess(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address else { return true };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(times) = failures.get_mut(&address) else { return true };
        times.retain(|t| t.elapsed() < GUESS_WINDOW);
        times.len() < GUESSES_MAX
    }

    fn note_failure(&self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() > ADDRESSES_MAX {
            failures.clear();
        }
        failures.entry(address).or_default().push(Instant::now());
    }

    /// Is this root, who says so from `address`? A wrong guess is noted before the next one gets its turn, so that many at once
    /// are no more than many in a row.
    async fn proves(self: &Arc<Self>, user: &str, password: String, address: Option<IpAddr>) -> ApiResult<bool> {
        let _turn = self.hashing.acquire().await.map_err(ApiError::internal)?;
        if !self.may_guess(address) {
            return Ok(false);
        }
        let right = self.compared(password).await? && user == ROOT;
        if !right {
            self.note_failure(address);
        }
        Ok(right)
    }

    async fn check(self: &Arc<Self>, password: String) -> ApiResult<bool> {
        let _turn = self.hashing.acquire().await.map_err(ApiError::internal)?;
        self.compared(password).await
    }

    async fn compared(self: &Arc<Self>, password: String) -> ApiResult<bool> {
        let passwords = self.clone();
        let checked = tokio::task::spawn_blocking(move || passwords.matches(&password)).await;
        checked.map_err(ApiError::internal)?.map_err(ApiError::internal)
    }
}

fn iterations(n: u32) -> anyhow::Result<NonZeroU32> {
    NonZeroU32::new(n).ok_or_else(|| anyhow::anyhow!("a password hash with no iterations"))
}

/// The messages that open a session.
pub fn is_login(class: &str, message: &str) -> bool {
    class == "session" && matches!(message, "login_with_password" | "slave_local_login_with_password")
}

/// Opens a session; its reference.
pub async fn login(daemon: &Arc<Daemon>, peer: Peer, args: Args) -> ApiResult<Value> {
    let (user, password) = (args.string("uname")?, args.string("pwd")?);
    let originator = args.string("originator").unwrap_or_default();
    prove(daemon, peer, &user, password).await?;
    let session = daemon.sessions.open(&daemon.db, ROOT, &originator, Role::PoolAdmin, peer.local)?;
    // Every xe on this host logs in; only those from elsewhere are news.
    if peer.local {
        tracing::debug!(user, originator, local = peer.local, address = ?peer.address, "login");
    } else {
        tracing::info!(user, originator, local = peer.local, address = ?peer.address, "login");
    }
    Ok(Value::from(session.id()))
}

/// `SESSION_AUTHENTICATION_FAILED`, late, unless the caller is who it says.
pub async fn prove(daemon: &Arc<Daemon>, peer: Peer, user: &str, password: String) -> ApiResult<()> {
    if peer.local && (user == ROOT || user.is_empty()) {
        return Ok(());
    }
    let passwords = &daemon.passwords;
    let guess = passwords.may_guess(peer.address);
    if guess && passwords.proves(user, password, peer.address).await? {
        return Ok(());
    }
    if !guess {
        // Whoever goes on guessing stays shut out.
        passwords.note_failure(peer.address);
    }
    tracing::warn!(user, address = ?peer.address, refused = !guess, "login failed");
    tokio::time::sleep(passwords.failure_delay).await;
    Err(ApiError::session_authentication_failed(user, "Authentication failure"))
}

/// Sets root's password after the old one was proved; a local session need not prove it.
pub async fn change_password(daemon: &Arc<Daemon>, local: bool, old: String, new: String) -> ApiResult<()> {
    if new.is_empty() {
        return Err(ApiError::invalid_value("new_pwd", ""));
    }
    if !local && !daemon.passwords.check(old).await? {
        tokio::time::sleep(daemon.passwords.failure_delay).await;
        return Err(ApiError::session_authentication_failed(ROOT, "Authentication failure"));
    }
    let passwords = daemon.passwords.clone();
    let set = tokio::task::spawn_blocking(move || passwords.set(&new)).await;
    set.map_err(ApiError::internal)?.map_err(ApiError::internal)
}
