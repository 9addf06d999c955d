//! The file that keeps journal blocks until the store has them (rule J6b): it outlives this process, not the boot.
//!
//! ```text
//!   0        4 KiB
//!   | header | copy | copy | copy | ...      places as the engine gives them out, 4 KiB each
//!   header: magic 8, places 8, boot id 36
//! ```
//! The file lies in the runtime directory and is mapped; what is copied there is the kernel's, and stays when the process
//! is killed at any moment. After a restart of the machine the store may have lost what had not been synced, so blocks of
//! another boot do not count, whatever file system the runtime directory is on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use anyhow::{Context, bail};
use tanada_engine::{KEPT_COPIES, KeptBlock, KeptMemory, KeptPlaces};
use tanada_units::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
const MAGIC: [u8; 8] = *b"TANADAKM";
const BOOT_ID_BYTES: usize = 36;
const HEADER_BYTES: usize = 16 + BOOT_ID_BYTES;

/// Journal blocks kept at a time. At depth 32 a handful are on their way to the store; the rest is for a slow device.
const PLACES: u64 = 128;
const FILE_BYTES: usize = BLOCK + PLACES as usize * KEPT_COPIES * BLOCK;

pub(crate) struct KeptFile {
    start: NonNull<u8>,
    places: KeptPlaces,
}

impl KeptFile {
    /// Opens or makes the file of a runtime directory. Returns what a former process of this boot left as well.
    /// Errors where that cannot be read: guests rely on it. Where nothing can be kept from now on, writes are
    /// acknowledged when the store has their journal block: slower, as safe.
    pub(crate) fn open(runtime_dir: &Path) -> anyhow::Result<(Option<KeptFile>, KeptMemory)> {
        let path = runtime_dir.join("journal.kept");
        let header = header()?;
        let mut open = OpenOptions::new();
        open.read(true).write(true).mode(0o600);
        let found = match open.open(&path) {
            Ok(file) => load(&file, &header).with_context(|| format!("read {}", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        let mapped = open.create(true).open(&path).and_then(|file| {
            if found.is_empty() {
                make(&file, &header)?;
            }
            map(&file)
        });
        let start = match mapped {
            Ok(start) => start,
            Err(error) => {
                tracing::warn!(%error, "journal blocks cannot be kept in {}", path.display());
                return Ok((None, KeptMemory { places: 0, found }));
            }
        };
        let file = KeptFile { start, places: KeptPlaces::new(PLACES) };
        Ok((Some(file), KeptMemory { places: PLACES, found }))
    }

    /// The store has everything that was found: it must not be taken for what is kept from now on.
    pub(crate) fn clear(&mut self) {
        for at in 0..PLACES as usize * KEPT_COPIES {
            self.copy(at, &[0; BLOCK]);
        }
    }

    /// Out of the process when this returns.
    pub(crate) fn keep(&mut self, block: &KeptBlock) {
        let at = self.places.next(block.seq);
        self.copy(at, &block.bytes);
    }

    fn copy(&mut self, at: usize, bytes: &[u8; BLOCK]) {
        assert!(at < PLACES as usize * KEPT_COPIES, "place {at} of {PLACES} places for kept blocks");
        // SAFETY: the mapping is FILE_BYTES long and ours alone in this process; `at` was checked against its end; the
        // source is not in it.
        unsafe { self.start.add(BLOCK + at * BLOCK).copy_from_nonoverlapping(NonNull::from(bytes).cast(), BLOCK) };
        // A dying process leaves what its instructions have stored: the compiler must not move this behind an answer.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        // SAFETY: `start` came from mmap with this very length and is not used any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), FILE_BYTES) };
    }
}

fn header() -> anyhow::Result<[u8; HEADER_BYTES]> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let boot = boot.trim().as_bytes();
    if boot.len() != BOOT_ID_BYTES {
        bail!("the boot id has {} characters, not {BOOT_ID_BYTES}", boot.len());
    }
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&PLACES.to_le_bytes());
    header[16..].copy_from_slice(boot);
    Ok(header)
}

/// Every copy in the file; none where it is not of this boot and shape.
fn load(file: &File, header: &[u8; HEADER_BYTES]) -> io::Result<Vec<Vec<u8>>> {
    if file.metadata()?.len() != FILE_BYTES as u64 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; FILE_BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    if !bytes.starts_with(header) {
        return Ok(Vec::new());
    }
    Ok(bytes[BLOCK..].chunks_exact(BLOCK).map(<[u8]>::to_vec).collect())
}

/// Written, not merely sized: a page that the file system has no room for would end the process when it is touched.
fn make(file: &File, header: &[u8; HEADER_BYTES]) -> io::Result<()> {
    file.set_len(0)?;
    let mut bytes = vec![0; FILE_BYTES];
    bytes[..HEADER_BYTES].copy_from_slice(header);
    file.write_all_at(&bytes, 0)
}

fn map(file: &File) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of an open file, at a place of the kernel's choosing, overlaps nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            FILE_BYTES,
            protection,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            file.as_raw_fd(),
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, FILE_BYTES, KeptFile, PLACES};
    use tanada_engine::{KEPT_COPIES, KeptBlock};

    #[test]
    fn what_is_kept_is_found_and_another_boot_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = || KeptFile::open(dir.path()).unwrap();
        let (mut kept, memory) = (open().0.unwrap(), open().1);
        assert_eq!(memory.places, PLACES);
        for seq in [1, 1, PLACES - 1] {
            kept.keep(&KeptBlock { seq, bytes: Box::new([seq as u8; BLOCK]) });
        }
        drop(kept);
        let (mut kept, memory) = (open().0.unwrap(), open().1);
        let full = |byte: u8| memory.found.iter().filter(|copy| copy.iter().all(|found| *found == byte)).count();
        assert_eq!((full(1), full(PLACES as u8 - 1)), (2, 1));
        assert_eq!(memory.found.len(), PLACES as usize * KEPT_COPIES);
        kept.clear();
        assert!(open().1.found.iter().all(|copy| copy.iter().all(|byte| *byte == 0)));
        let path = dir.path().join("journal.kept");
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), FILE_BYTES);
        bytes[20] ^= 1; // in the boot id
        std::fs::write(&path, bytes).unwrap();
        assert!(open().1.found.is_empty());
    }
}
