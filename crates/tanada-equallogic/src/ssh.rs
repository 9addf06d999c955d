//! The one place that knows the SSH library: a password login with a checked host key, and a shell without a terminal.
//!
//! A host key is never accepted because it is the first one seen: it is named by its SHA-256 fingerprint in the SR's
//! configuration, or found in a `known_hosts` file.

use std::borrow::Cow;
use std::fmt::{Debug, Formatter};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use russh::client::{AuthResult, Handle, Handler};
use russh::keys::{HashAlg, PublicKeyOrCertificate, check_known_hosts_path};
use russh::{Channel, ChannelMsg, Disconnect, Preferred, cipher, client, kex, mac};

use tanada_driver::Secret;

use crate::error::CliError;
use crate::session::{Connect, Shell};

/// Time for the TCP connection, the key exchange, the login and the shell together.
const LOGIN_DEADLINE: Duration = Duration::from_secs(30);
/// A dead group is noticed after this long, thrice, without an answer.
const KEEPALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKey {
    /// As `ssh-keygen -l` prints it: `SHA256:...`.
    Fingerprint(String),
    KnownHosts(PathBuf),
}

#[derive(Clone)]
pub struct SshOptions {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Secret,
    pub host_key: HostKey,
    /// Algorithms beyond the library's own choice, for old firmware.
    pub legacy: Vec<String>,
}

impl Debug for SshOptions {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "SshOptions({}@{}:{})", self.user, self.host, self.port)
    }
}

/// Compares the key that the group shows with the expected one and keeps its fingerprint for the words of an error.
struct KeyCheck {
    options: SshOptions,
    shown: Arc<Mutex<Option<String>>>,
}

impl Handler for KeyCheck {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let known = match &self.options.host_key {
            HostKey::Fingerprint(expected) => *expected == fingerprint,
            HostKey::KnownHosts(path) => {
                check_known_hosts_path(&self.options.host, self.options.port, key, path).unwrap_or(false)
            }
        };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(fingerprint);
        Ok(known)
    }
}

/// The library's choice, then what the administrator allows for this group.
fn preferred(legacy: &[String]) -> Result<Preferred, CliError> {
    let mut preferred = Preferred::DEFAULT;
    let (mut kexes, mut ciphers, mut macs) =
        (preferred.kex.into_owned(), preferred.cipher.into_owned(), preferred.mac.into_owned());
    for name in legacy.iter().map(String::as_str).filter(|name| !matches!(*name, "none" | "clear")) {
        if let Ok(found) = kex::Name::try_from(name) {
            kexes.push(found);
        } else if let Ok(found) = cipher::Name::try_from(name) {
            ciphers.push(found);
        } else if let Ok(found) = mac::Name::try_from(name) {
            macs.push(found);
        } else {
            return Err(CliError::NotTrusted(format!(
                "sshalgorithms: {name:?} is neither a key exchange, a cipher nor a MAC of the SSH library"
            )));
        }
    }
    preferred.kex = Cow::Owned(kexes);
    preferred.cipher = Cow::Owned(ciphers);
    preferred.mac = Cow::Owned(macs);
    Ok(preferred)
}

#[async_trait]
impl Connect for SshOptions {
    async fn connect(&self) -> Result<Box<dyn Shell>, CliError> {
        match tokio::time::timeout(LOGIN_DEADLINE, login(self)).await {
            Ok(shell) => Ok(Box::new(shell?)),
            Err(_) => Err(CliError::NoSession(format!(
                "{}:{}: no SSH login within {} s",
                self.host,
                self.port,
                LOGIN_DEADLINE.as_secs()
            ))),
        }
    }
}

async fn login(options: &SshOptions) -> Result<SshShell, CliError> {
    let place = format!("{}:{}", options.host, options.port);
    let shown = Arc::new(Mutex::new(None));
    let check = KeyCheck { options: options.clone(), shown: shown.clone() };
    let config = client::Config {
        preferred: preferred(&options.legacy)?,
        keepalive_interval: Some(KEEPALIVE),
        nodelay: true,
        ..client::Config::default()
    };
    let connected = client::connect(Arc::new(config), (options.host.as_str(), options.port), check).await;
    let mut handle = connected.map_err(|failure| {
        let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (failure, shown) {
            (russh::Error::UnknownKey, Some(shown)) => CliError::NotTrusted(format!(
                "{place} shows the host key {shown}, which is not the expected one ({}); compare it with the group's and give it as device-config:hostkey",
                match &options.host_key {
                    HostKey::Fingerprint(expected) => expected.clone(),
                    HostKey::KnownHosts(path) => format!("none for it in {}", path.display()),
                }
            )),
            (failure @ russh::Error::NoCommonAlgo { .. }, _) => CliError::NotTrusted(format!(
                "{place}: {failure}; what the group speaks can be allowed by device-config:sshalgorithms"
            )),
            (failure, _) => CliError::NoSession(format!("{place}: {failure}")),
        }
    })?;
    let lost = |failure: russh::Error| CliError::NoSession(format!("{place}: {failure}"));
    let answer = handle.authenticate_password(&options.user, options.password.expose()).await.map_err(lost)?;
    if !matches!(answer, AuthResult::Success) {
        return Err(CliError::NotTrusted(format!("{place}: the password of {:?} is refused", options.user)));
    }
    let channel = handle.channel_open_session().await.map_err(lost)?;
    channel.request_shell(true).await.map_err(lost)?;
    Ok(SshShell { handle, channel })
}

struct SshShell {
    handle: Handle<KeyCheck>,
    channel: Channel<client::Msg>,
}

#[async_trait]
impl Shell for SshShell {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.channel.data(bytes).await.map_err(|failure| CliError::Lost(format!("the SSH session: {failure}")))
    }

    async fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.channel.wait().await? {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => return Some(data.to_vec()),
                ChannelMsg::Eof | ChannelMsg::Close | ChannelMsg::Failure => return None,
                _ => {}
            }
        }
    }

    /// Closes the channel first: one that is left open counts against the group's limit of sessions.
    async fn close(&mut self) {
        let _ = self.channel.close().await;
        let _ = self.handle.disconnect(Disconnect::ByApplication, "", "en").await;
    }
}
