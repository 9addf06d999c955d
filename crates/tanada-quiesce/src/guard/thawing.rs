//! Thawing until the guest says so.

use std::io::ErrorKind;
use std::time::Duration;

use tanada_qemu::QemuError;
use tanada_qemu::agent::GuestAgent;
use tokio::time::sleep;

use super::Answer;
use crate::cause;

/// For questions that the agent answers from memory.
pub const FLAG_LIMIT: Duration = Duration::from_secs(2);
/// Between attempts with a guest that does not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// How thawing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest says that it is thawed.
    Thawed,
    /// Nobody listens on the agent's socket any more: the machine has ended, and the freeze with it.
    Gone,
}

/// One attempt: the agent's answer, and whether the guest is thawed for certain.
pub async fn once(agent: &GuestAgent, limit: Duration) -> (Answer, bool) {
    match agent.thaw(limit).await {
        Ok(count) => (Answer::Count(count), true),
        // It complains and may have thawed all the same (a hook that failed, VSS that lapsed).
        Err(QemuError::Refused { message, .. }) => (Answer::Error(message), holds_nothing(agent).await),
        Err(error) => (Answer::Unanswered(error.to_string()), false),
    }
}

/// Does an agent that refused to thaw say that nothing is frozen? One on Windows without its VSS provider can neither thaw
/// nor tell its flag, and has frozen nothing: Windows lets go of what an agent before it froze.
async fn holds_nothing(agent: &GuestAgent) -> bool {
    match agent.is_frozen(FLAG_LIMIT).await {
        Ok(frozen) => !frozen,
        Err(error) => cause::is_without_vss(&error.to_string()),
    }
}

/// Thaws until the guest answers that it is thawed, or its machine is gone.
pub async fn until_thawed(agent: &GuestAgent, limit: Duration) -> End {
    loop {
        match agent.thaw(limit).await {
            Ok(_) => return End::Thawed,
            // Anything else (a full backlog: QEMU takes one client and lets two wait) says nothing about the machine.
            Err(QemuError::Connect { socket, source })
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                tracing::info!(socket = %socket.display(), %source, "a machine has ended while it was frozen");
                return End::Gone;
            }
            Err(QemuError::Refused { message, .. }) => {
                if holds_nothing(agent).await {
                    return End::Thawed;
                }
                tracing::warn!(message, "a guest refuses to thaw; asking again");
            }
            Err(error) => tracing::warn!(%error, "a guest does not answer to thaw; asking again"),
        }
        sleep(PAUSE).await;
    }
}
