//! A daemon in a temporary directory, for tests.

use std::sync::Arc;
use std::time::Duration;

use tanada_xapi::{ApiResult, Ref, Value};
use tempfile::TempDir;

use crate::config::Config;
use crate::context::{Daemon, Handlers};
use crate::db::Db;
use crate::rpc::dispatch::{self, Peer, Reply};
use crate::rpc::session::Role;
use crate::rpc::setup;

pub const LOCAL: Peer = Peer { local: true, address: None };

/// A daemon that is not served anywhere, with these handlers over the built-in ones.
pub struct TestDaemon {
    pub daemon: Arc<Daemon>,
    /// An open session of root.
    pub session: Ref,
    pub dir: TempDir,
}

impl TestDaemon {
    pub fn new(handlers: Handlers) -> TestDaemon {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: dir.path().join("state"),
            runtime_dir: dir.path().join("run"),
            unix_socket: dir.path().join("run/xapi"),
            login_failure_delay: Duration::ZERO,
            ..Config::default()
        };
        crate::files::create_private_dir(&config.state_dir).unwrap();
        crate::files::create_private_dir(&config.runtime_dir).unwrap();
        let db = Db::in_memory().unwrap();
        setup::ensure(&db, &config).unwrap();
        let daemon = Daemon::new(config, db, handlers).unwrap();
        let session = daemon.sessions.open(&daemon.db, "root", "", Role::PoolAdmin, true).unwrap();
        TestDaemon { session: session.id().clone(), daemon, dir }
    }

    /// A call in the session of root.
    pub async fn call(&self, method: &str, params: impl IntoIterator<Item = Value>) -> ApiResult<Value> {
        self.call_as(&self.session, method, params).await
    }

    pub async fn call_as(
        &self,
        session: &Ref,
        method: &str,
        params: impl IntoIterator<Item = Value>,
    ) -> ApiResult<Value> {
        let params = std::iter::once(Value::from(session)).chain(params).collect();
        self.call_raw(LOCAL, method, params).await
    }

    pub async fn call_raw(&self, peer: Peer, method: &str, params: Vec<Value>) -> ApiResult<Value> {
        match dispatch::call(&self.daemon, peer, method, params).await {
            Reply::Enveloped(result) => result,
            Reply::Bare(value) => Ok(value),
        }
    }
}
