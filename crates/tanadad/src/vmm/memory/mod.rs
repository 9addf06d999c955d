//! A machine's memory as an image on a disk: written while the guest runs or stands still, read into a new process.
//!
//! ```text
//!   QEMU ──pipe──▶ frames with checksums ──NBD──▶ VDI of type suspend       (save)
//!   VDI ──NBD──▶ head and frames checked ──pipe──▶ QEMU that waits          (load)
//! ```
//! Invariants
//! 1. An image without a head is none: the head is written last, after everything else is durable.
//! 2. No byte goes into a QEMU that was not checked before, and no QEMU is asked to read the memory of another machine:
//!    what the guest could notice (type, memory, processors, disks and network cards at their places) is in the head.
//! 3. A machine whose saving fails or is cancelled goes on, whatever the reason; one that a crash of the daemon leaves
//!    in the middle goes on at the next start (an intent of kind `memory`).
//!
//! | module | what |
//! |---|---|
//! | [`image`] | the format |
//! | [`hardware`] | what the machine of an image was, and whether this host can be it |
//! | [`save`] | memory out of a machine |
//! | [`load`] | memory into a machine |
//! | [`place`] | the disk of an image: where it lies, how it is made and thrown away |

pub mod hardware;
pub mod image;
pub mod load;
pub mod place;
pub mod save;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tanada_qemu::memory as qemu;
use tanada_xapi::{ApiError, ApiResult, Ref};

use super::Running;
use crate::context::Daemon;
use crate::ops::intents;

/// A pipe for a stream: the end to read, the end to write.
fn pipe() -> ApiResult<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(ApiError::internal)?;
    if let Err(error) = fcntl_setpipe_size(&read, qemu::PIPE_BYTES) {
        tracing::debug!(%error, "a pipe stays small; the stream takes longer");
    }
    Ok((read, write))
}

/// Gives up a transfer and lets the machine go on. A machine that has ended needs neither.
pub async fn give_up(machine: &Running) -> ApiResult<()> {
    let qmp = machine.qmp();
    let given_up = async {
        qemu::cancel(&qmp).await?;
        qemu::go_on(&qmp).await
    };
    let given_up = given_up.await;
    machine.set_held(false);
    match given_up {
        Err(error) if qmp.is_closed() => {
            tracing::debug!(vm = %machine.uuid, %error, "a machine ended while its memory was being saved");
            Ok(())
        }
        other => other.map_err(ApiError::internal),
    }
}

/// For a machine whose memory an earlier life of the daemon was saving: it goes on.
pub async fn give_up_leftover(daemon: &Arc<Daemon>, vm: &Ref, intent: &str) {
    let gone_on = match daemon.vmm.machine(vm) {
        Some(machine) => give_up(&machine).await,
        None => Ok(()),
    };
    if let Err(error) = gone_on.and_then(|()| intents::clear(daemon, intent)) {
        tracing::error!(%vm, %error, "a machine whose memory was being saved does not go on");
        daemon.left.add(intent);
    }
}
