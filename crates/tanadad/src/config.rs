//! What the daemon is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::rpc::login::FAILURE_DELAY;
use crate::vmm::host::MachineConfig;

/// Where things are and where to listen.
#[derive(Debug, Clone)]
pub struct Config {
    /// Durable state: database, certificate, logs. Created with mode 0700.
    pub state_dir: PathBuf,
    /// Sockets and lock files, gone with a reboot. Created with mode 0700.
    pub runtime_dir: PathBuf,
    /// The API for local callers, who are trusted as root. Mode 0600.
    pub unix_socket: PathBuf,
    /// HTTPS, when wanted.
    pub listen: Option<SocketAddr>,
    /// Plain HTTP, for loopback addresses only; off unless asked for.
    pub listen_plain: Option<SocketAddr>,
    /// Disks over NBD and TLS, when wanted.
    pub nbd_listen: Option<SocketAddr>,
    /// Root's password for remote logins is set to the first line of this file at the start.
    pub root_password_file: Option<PathBuf>,
    /// How late a failed login is answered.
    pub login_failure_delay: Duration,
    /// How machines are run.
    pub machines: MachineConfig,
    /// Embedded stores verify all they hold by themselves so many days after the last time; 0 for never.
    pub scrub_every_days: u32,
    /// Where schedules' time is moved from, instead of going by itself: for tests and demonstrations.
    pub clock: Option<PathBuf>,
    /// Least level that is logged.
    pub log: tracing::Level,
}

pub const STATE_DIR: &str = "/var/lib/tanada";
/// As often as an administrator expects of an array: bits rot slowly, and a month of backups is still there.
const SCRUB_EVERY_DAYS: u32 = 30;

pub const RUNTIME_DIR: &str = "/run/tanada";

impl Default for Config {
    fn default() -> Config {
        Config {
            state_dir: PathBuf::from(STATE_DIR),
            runtime_dir: PathBuf::from(RUNTIME_DIR),
            unix_socket: PathBuf::from(RUNTIME_DIR).join("xapi"),
            listen: None,
            listen_plain: None,
            nbd_listen: None,
            root_password_file: None,
            login_failure_delay: FAILURE_DELAY,
            machines: MachineConfig::default(),
            scrub_every_days: SCRUB_EVERY_DAYS,
            clock: None,
            log: tracing::Level::INFO,
        }
    }
}

impl Config {
    /// The file that holds the database.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("state.db")
    }
}
