//! The group as one machine that may go away: its connections break, nobody answers, and then it is back.
//!
//! What was acknowledged is kept, as a second controller keeps it: only connections are lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sim_target::router::Router;

use crate::front::Front;

/// How long a restart takes that a fault asks for.
const RESTART: Duration = Duration::from_secs(1);

pub struct Controller {
    pub front: Arc<Front>,
    pub router: Arc<Router>,
    /// The group's portal and the member's.
    pub portals: [SocketAddr; 2],
}

impl Controller {
    /// Breaks all connections and takes no new ones.
    pub fn leave(&self) {
        self.front.set_away(true);
        for portal in self.portals {
            self.router.close(portal);
        }
    }

    pub fn come_back(&self) -> Result<()> {
        for portal in self.portals {
            self.router.open(portal)?;
        }
        self.front.set_away(false);
        Ok(())
    }

    /// Restarts whenever a fault asks for it.
    pub async fn serve(self: Arc<Self>) {
        loop {
            self.front.restart.notified().await;
            self.leave();
            tokio::time::sleep(RESTART).await;
            if let Err(error) = self.come_back() {
                tracing::error!(%error, "the group did not come back from its restart");
            }
        }
    }
}
