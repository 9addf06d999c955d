//! Memory out of an image, into a machine that waits for it.

use std::sync::Arc;

use bytes::Bytes;
use tanada_qemu::QemuError;
use tanada_qemu::memory::Transfer;
use tanada_xapi::{ApiError, ApiResult, Ref};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;

use super::image::{FRAME_BYTES, HEAD_BYTES, Head, ImageError, disk_bytes};
use super::pipe;
use crate::context::Daemon;
use crate::rpc::task::TaskHandle;
use crate::transfer::attached::{Access, Attached};
use crate::transfer::disk::{Chunk, DiskReader, Tally};
use crate::transfer::error::disk_error;
use crate::vmm::Running;

/// An image that has a head which makes sense.
pub struct Image {
    pub head: Head,
    vdi: Ref,
    disk: Attached,
}

impl Image {
    /// Reads the head. `SUSPEND_IMAGE_NOT_ACCESSIBLE` where there is none or it is damaged.
    pub async fn open(daemon: &Arc<Daemon>, vdi: &Ref) -> ApiResult<Image> {
        let disk = Attached::open(daemon, vdi, Access::Read).await?;
        let read = async {
            let client = disk.client()?;
            let size = client.size();
            let length = u32::try_from(size).unwrap_or(u32::MAX).min(HEAD_BYTES as u32);
            let bytes = client.read_at(0, length).await.map_err(disk_error)?;
            Head::decode(&bytes, size).map_err(|error| refused(vdi, &error))
        };
        match read.await {
            Ok(head) => Ok(Image { head, vdi: vdi.clone(), disk }),
            Err(error) => {
                disk.release().await;
                Err(error)
            }
        }
    }

    /// Reads the image into a machine. It stands still afterwards, its memory as it was; after an error it has to be
    /// ended.
    pub async fn load(&self, machine: &Running, task: &TaskHandle) -> ApiResult<()> {
        let (read, write) = pipe()?;
        let sender = Sender::from_owned_fd(write).map_err(ApiError::internal)?;
        let mut transfer = Transfer::begin_load(&machine.qmp(), read).await.map_err(ApiError::internal)?;
        let both = async { tokio::join!(self.feed(sender, task), transfer.ended()) };
        let (fed, ended) = task.until_cancelled(both).await?;
        // What is wrong with the image explains why QEMU did not understand it.
        fed?;
        ended.map_err(|error| self.not_understood(machine, &error))
    }

    /// Sends the checked stream; a QEMU that takes no more says itself why.
    async fn feed(&self, mut sender: Sender, task: &TaskHandle) -> ApiResult<()> {
        let size = disk_bytes(self.head.stream_bytes);
        let mut reader = DiskReader::new(self.disk.client()?, size, &Tally::default());
        let mut done = 0;
        while let Some(chunk) = reader.next().await.map_err(disk_error)? {
            done += chunk.length();
            let Some(frame) = (done / FRAME_BYTES).checked_sub(2) else { continue };
            let bytes = match chunk {
                Chunk::Data(bytes) => bytes,
                Chunk::Zeros(_) => Bytes::new(),
            };
            let payload = self.head.frame(frame, &bytes).map_err(|error| refused(&self.vdi, &error))?;
            if let Err(error) = sender.write_all(&payload).await {
                tracing::debug!(%error, "a machine takes no more of its memory");
                return Ok(());
            }
            task.progress(done as f64 / size as f64);
        }
        Ok(())
    }

    fn not_understood(&self, machine: &Running, error: &QemuError) -> ApiError {
        let words = format!("QEMU does not take the memory: {error}; {}", machine.dir.stderr_tail());
        ApiError::new("SUSPEND_IMAGE_NOT_ACCESSIBLE", vec![self.vdi.to_string(), words])
    }

    pub async fn release(self) {
        self.disk.release().await;
    }
}

fn refused(vdi: &Ref, error: &ImageError) -> ApiError {
    ApiError::new("SUSPEND_IMAGE_NOT_ACCESSIBLE", vec![vdi.to_string(), error.to_string()])
}
