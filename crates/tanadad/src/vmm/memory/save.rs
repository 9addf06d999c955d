//! Memory out of a machine, into an image.
//!
//! ```text
//!   save ──▶ Standing: the guest stands still, its memory is out ──(cut)──▶ go_on ──▶ complete: frames durable, then the head
//!    └ error, cancel: the guest goes on, nothing of the image counts
//! ```
//! A guest that writes faster than its memory is saved would never be done: after [`place::patience_bytes`] it is
//! stopped, so that what is left is final. That bounds the image, and is told as the pause that it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tanada_nbd::client::Client;
use tanada_qemu::memory::{self as qemu, Transfer};
use tanada_xapi::{ApiError, ApiResult};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;
use tokio::time::interval;
use uuid::Uuid;

use super::hardware::Hardware;
use super::image::{FRAME_BYTES, FRAME_HEADER, Head, PAYLOAD_BYTES, blank_frame, offset, seal};
use super::{give_up, pipe, place};
use crate::rpc::task::TaskHandle;
use crate::transfer::disk::{Before, DiskWriter, Tally};
use crate::transfer::error::disk_error;
use crate::vmm::Running;

/// Between two looks at how much has come.
const LOOK: Duration = Duration::from_millis(100);
/// `stop` waits for the requests in flight.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A machine whose memory is out, and that stands still until [`Standing::go_on`].
#[must_use = "the guest stands still until it is let go"]
pub struct Standing {
    machine: Arc<Running>,
    transfer: Transfer,
    hardware: Hardware,
    client: Client,
    number: u64,
    /// Bytes of the stream, once all of them have come.
    drained: JoinHandle<ApiResult<u64>>,
}

/// Saves the memory of a machine that runs, or that was stopped before. On an error it goes on.
///
/// `TASK_CANCELLED` where somebody asked the task to end.
pub async fn save(
    machine: &Arc<Running>,
    hardware: Hardware,
    client: Client,
    task: &TaskHandle,
) -> ApiResult<Standing> {
    machine.set_held(true);
    let (number, _) = Uuid::new_v4().as_u64_pair();
    let begun = async {
        let (read, write) = pipe()?;
        let come = Arc::new(AtomicU64::new(0));
        let reader = Receiver::from_owned_fd(read).map_err(ApiError::internal)?;
        let drained = tokio::spawn(drain(reader, client.clone(), number, come.clone()));
        let transfer = Transfer::begin_save(&machine.qmp(), write).await.map_err(not_savable(machine))?;
        Ok::<_, ApiError>((transfer, drained, come))
    };
    let outcome = match begun.await {
        Ok((mut transfer, drained, come)) => {
            match until_out(machine, &mut transfer, hardware.memory_bytes, &come, task).await {
                Ok(()) => Ok((transfer, drained)),
                // What the disk said explains why the stream broke.
                Err(error) if drained.is_finished() => Err(joined(drained).await.err().unwrap_or(error)),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok((transfer, drained)) => {
            Ok(Standing { machine: machine.clone(), transfer, hardware, client, number, drained })
        }
        Err(error) => {
            give_up(machine).await?;
            Err(error)
        }
    }
}

/// A device that cannot be saved is the guest's owner's to know about.
fn not_savable(machine: &Running) -> impl FnOnce(tanada_qemu::QemuError) -> ApiError {
    let vm = machine.vm.clone();
    move |error| ApiError::vm_non_suspendable(vm, error)
}

/// Waits until QEMU has written everything, and stops a guest that does not let it come to an end.
async fn until_out(
    machine: &Running,
    transfer: &mut Transfer,
    memory_bytes: u64,
    come: &AtomicU64,
    task: &TaskHandle,
) -> ApiResult<()> {
    let mut clock = interval(LOOK);
    let mut stopped = false;
    loop {
        tokio::select! {
            biased;
            ended = transfer.ended() => return ended.map_err(ApiError::internal),
            () = task.cancelled() => return Err(ApiError::task_cancelled(task.id())),
            _ = clock.tick() => {
                let come = come.load(Ordering::Relaxed);
                task.progress(come as f64 / memory_bytes.max(1) as f64);
                if come > place::patience_bytes(memory_bytes) && !stopped {
                    stopped = true;
                    tracing::info!(vm = %machine.uuid, come, "the guest writes faster than its memory is saved; it is stopped");
                    machine.qmp().execute("stop", json!({}), STOP_LIMIT).await.map_err(ApiError::internal)?;
                }
            }
        }
    }
}

impl Standing {
    /// Lets the guest go on; answers for how long it stood still, in microseconds, where QEMU told.
    pub async fn go_on(&mut self) -> ApiResult<Option<u64>> {
        let gone_on = qemu::go_on(&self.machine.qmp()).await;
        self.machine.set_held(false);
        gone_on.map_err(ApiError::internal)?;
        Ok(self.transfer.stood_still_us())
    }

    /// Waits until all of it is durable and makes it an image. Answers the bytes of the stream.
    pub async fn complete(self) -> ApiResult<u64> {
        let stream_bytes = joined(self.drained).await?;
        let head = Head { number: self.number, vm: self.machine.uuid, stream_bytes, hardware: self.hardware };
        let bytes = head.encode().ok_or_else(|| ApiError::internal("a machine with too many devices for an image"))?;
        self.client.write_at_durably(0, bytes).await.map_err(disk_error)?;
        Ok(stream_bytes)
    }
}

async fn joined(drained: JoinHandle<ApiResult<u64>>) -> ApiResult<u64> {
    drained.await.map_err(ApiError::internal)?
}

/// Cuts the stream into frames and writes them. Everything is durable when it returns; the end of this is the end of the
/// pipe, which QEMU notices.
async fn drain(mut stream: Receiver, client: Client, image: u64, come: Arc<AtomicU64>) -> ApiResult<u64> {
    let places = (client.size() / FRAME_BYTES).saturating_sub(1);
    let mut writer = DiskWriter::new(client, Before::Anything, &Tally::default());
    let mut stream_bytes = 0;
    for number in 0.. {
        let mut frame = blank_frame();
        let mut part = (&mut stream).take(PAYLOAD_BYTES);
        while part.read_buf(&mut frame).await.map_err(ApiError::internal)? > 0 {}
        let length = (frame.len() - FRAME_HEADER) as u64;
        if length == 0 {
            break;
        }
        if u64::from(number) >= places {
            return Err(ApiError::internal(format!("a memory image does not fit into its disk of {places} frames")));
        }
        stream_bytes += length;
        come.store(stream_bytes, Ordering::Relaxed);
        writer.data(offset(u64::from(number)), seal(frame, number, image)).await.map_err(disk_error)?;
        if length < PAYLOAD_BYTES {
            break;
        }
    }
    writer.finish().await.map_err(disk_error)?;
    Ok(stream_bytes)
}
