//! A disk attached to the daemon itself for as long as a transfer runs.

use std::sync::Arc;

use tanada_driver::Endpoint;
use tanada_nbd::client::Client;
use tanada_xapi::{ApiError, ApiResult, Ref};

pub use super::error::disk_error;
use crate::context::Daemon;
use crate::storage;

/// Ended by [`Attached::release`]; when it is dropped before (an error, a cancelled transfer), the end follows by itself.
pub struct Attached {
    daemon: Arc<Daemon>,
    token: Option<String>,
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
        let mut attached = Attached { daemon: daemon.clone(), token: Some(token), client: None };
        let Endpoint::NbdUnix { socket, export } = endpoint else {
            attached.release().await;
            return Err(ApiError::not_implemented("transfers from and to disks that are not reached by NBD"));
        };
        match Client::connect_unix(&socket, &export).await {
            Ok(client) => attached.client = Some(client),
            Err(error) => {
                attached.release().await;
                return Err(disk_error(error));
            }
        }
        Ok(attached)
    }

    /// The connection; every clone has to be gone before [`Attached::release`] for the end to be a clean one.
    pub fn client(&self) -> ApiResult<Client> {
        self.client.clone().ok_or_else(|| ApiError::internal("a disk was used after its end"))
    }

    pub async fn release(mut self) {
        self.client = None;
        if let Some(token) = self.token.take() {
            end(&self.daemon, &token).await;
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.client = None;
        if let Some(token) = self.token.take() {
            let daemon = self.daemon.clone();
            tokio::spawn(async move { end(&daemon, &token).await });
        }
    }
}

async fn end(daemon: &Arc<Daemon>, token: &str) {
    if let Err(error) = storage::detach_vdi(daemon, token).await {
        tracing::warn!(%error, "a disk could not be detached after a transfer; it will be at the next start");
    }
}
