//! A disk attached to the daemon itself for as long as a transfer runs.

use std::path::Path;
use std::sync::Arc;

use tanada_driver::Endpoint;
use tanada_driver::bridge::Bridge;
use tanada_nbd::client::Client;
use tanada_xapi::{ApiError, ApiResult, Ref};

pub use super::error::disk_error;
use crate::context::Daemon;
use crate::storage;

/// Ended by [`Attached::release`]; when it is dropped before (an error, a cancelled transfer), the end follows by itself.
pub struct Attached {
    daemon: Arc<Daemon>,
    token: Option<String>,
    bridge: Option<Bridge>,
    client: Option<Client>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Attached {
    pub async fn open(daemon: &Arc<Daemon>, vdi: &Ref, access: Access) -> ApiResult<Attached> {
        let (token, endpoint) = storage::attach_vdi(daemon, vdi, &Ref::null(), access == Access::Write).await?;
        let mut attached = Attached { daemon: daemon.clone(), token: Some(token), bridge: None, client: None };
        match attached.connect(&endpoint, access).await {
            Ok(()) => Ok(attached),
            Err(error) => {
                attached.release().await;
                Err(error)
            }
        }
    }

    async fn connect(&mut self, endpoint: &Endpoint, access: Access) -> ApiResult<()> {
        let bridge = self.daemon.storage.bridges().open(endpoint, access == Access::Write).await;
        let bridge = self.bridge.insert(bridge.map_err(storage::driver_error)?);
        self.client = Some(bridge.connect().await.map_err(disk_error)?);
        Ok(())
    }

    /// Where it is served as NBD, and under which name. The name is a secret.
    pub fn way(&self) -> Option<(&Path, &str)> {
        self.bridge.as_ref().map(|bridge| (bridge.socket(), bridge.export()))
    }

    /// The connection; every clone has to be gone before [`Attached::release`] for the end to be a clean one.
    pub fn client(&self) -> ApiResult<Client> {
        self.client.clone().ok_or_else(|| ApiError::internal("a disk was used after its end"))
    }

    pub async fn release(mut self) {
        self.client = None;
        if let Some(bridge) = self.bridge.take() {
            bridge.close().await;
        }
        if let Some(token) = self.token.take() {
            storage::detach_used(&self.daemon, &token).await;
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.client = None;
        let bridge = self.bridge.take();
        if let Some(token) = self.token.take() {
            let daemon = self.daemon.clone();
            tokio::spawn(async move {
                if let Some(bridge) = bridge {
                    bridge.close().await;
                }
                storage::detach_used(&daemon, &token).await;
            });
        }
    }
}
