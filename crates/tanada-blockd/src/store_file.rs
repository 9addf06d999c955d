//! The file or device that carries a store: opening, locking, growing.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

/// An open store file. The lock belongs to the very open file that carries the I/O, so that it is released only when the
/// last operation of a dead process has let go of it (rule J7).
pub(crate) struct StoreFile {
    file: File,
    path: PathBuf,
    /// True for a regular file, which may be extended.
    pub(crate) can_grow: bool,
}

impl StoreFile {
    /// Opens without the page cache where the file system allows it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<StoreFile> {
        let open = |flags: i32| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let file = match open(libc::O_DIRECT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!(store = %path.display(), "no direct I/O here: all data passes through the page cache");
                open(0)
            }
            other => other,
        };
        let file = file.with_context(|| format!("open the store {}", path.display()))?;
        let kind = file.metadata().with_context(|| format!("look at the store {}", path.display()))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("the store {} is neither a file nor a block device", path.display());
        }
        Ok(StoreFile { file, path: path.to_owned(), can_grow: kind.is_file() })
    }

    /// Waits until no other process serves this store.
    pub(crate) fn lock(&self) -> anyhow::Result<()> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error).with_context(|| format!("lock {}", self.path.display())),
        }
        tracing::info!(store = %self.path.display(), "waiting for another process to let go of the store");
        loop {
            match rustix::fs::flock(&self.file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).with_context(|| format!("lock {}", self.path.display())),
            }
        }
    }

    /// Takes the lock or fails at once.
    pub(crate) fn try_lock(&self) -> anyhow::Result<()> {
        rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{} is in use by another process", self.path.display()))
    }

    pub(crate) fn size_bytes(&self) -> io::Result<u64> {
        // Seeking works for block devices too, whose metadata has no size.
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Extends a file to `length` bytes; a device must be that long already.
    pub(crate) fn grow(&self, length: u64) -> io::Result<()> {
        let size = self.size_bytes()?;
        if length <= size {
            return Ok(());
        }
        if !self.can_grow {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.file.set_len(length)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::StoreFile;

    /// As the kernel does for operations of a dead process: a descriptor of the same open file lives on.
    #[test]
    fn the_lock_is_held_until_the_last_hold_on_the_open_file_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = StoreFile::open(file.path()).unwrap();
        first.lock().unwrap();
        let in_flight = first.file().try_clone().unwrap();
        drop(first);
        let second = StoreFile::open(file.path()).unwrap();
        let refused = second.try_lock().unwrap_err();
        assert!(refused.to_string().contains("in use by another process"), "{refused}");
        let waits = std::thread::spawn(move || second.lock().map(|()| second));
        drop(in_flight);
        let second = waits.join().unwrap().unwrap();
        assert!(StoreFile::open(file.path()).unwrap().try_lock().is_err());
        drop(second);
    }
}
