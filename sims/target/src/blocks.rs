//! Disks as sparse files.
//!
//! A copy is `FICLONE` where the file system shares extents (XFS, Btrfs), else the data extents are copied and holes stay
//! holes. On a file system that cannot share (ext4), the copy takes as long as the data takes: instants cut by
//! [`crate::Target::copy_at_one_instant`] then stall I/O that long, which says nothing about an array.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::error::{Result, io};

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).map_err(io(path.display().to_string()))
}

/// Makes a disk of `size` bytes, all holes. An existing file is an error.
pub fn create(path: &Path, size: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(io(path.display().to_string()))?;
    file.set_len(size).map_err(io(path.display().to_string()))
}

/// Grows or shrinks a disk to `size` bytes. A LUN that shows it has to be presented again.
pub fn resize(path: &Path, size: u64) -> Result<()> {
    open(path)?.set_len(size).map_err(io(path.display().to_string()))
}

/// Bytes that the disk occupies.
pub fn allocated(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(io(path.display().to_string()))?.blocks() * 512)
}

/// Size of the disk in bytes.
pub fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(io(path.display().to_string()))?.len())
}

/// Makes `to` a disk with the contents of `from`. An existing file is an error; after an error there is no new one.
/// Returns the bytes physically copied.
pub fn copy(from: &Path, to: &Path) -> Result<u64> {
    create(to, 0)?;
    overwrite(from, to).inspect_err(|_| {
        // The error that led here is the one to tell.
        let _ = std::fs::remove_file(to);
    })
}

/// Gives `to`, which may be presented as a LUN, the size and contents of `from`, in place. Returns the bytes copied.
pub fn overwrite(from: &Path, to: &Path) -> Result<u64> {
    let (source, target) = (open(from)?, open(to)?);
    let what = || io(format!("copying {} to {}", from.display(), to.display()));
    let length = source.metadata().map_err(what())?.len();
    let before = target.metadata().map_err(what())?.len();
    match ioctl_ficlone(&target, &source) {
        Ok(()) => {
            target.set_len(length).map_err(what())?;
            return Ok(0);
        }
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::NOTTY) => {}
        Err(error) => return Err(what()(error.into())),
    }
    if before > 0 {
        fallocate(&target, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, before)
            .map_err(|error| what()(error.into()))?;
    }
    target.set_len(length).map_err(what())?;
    copy_extents(&source, &target, length).map_err(what())
}

fn copy_extents(source: &File, target: &File, length: u64) -> io::Result<u64> {
    let (mut at, mut copied) = (0, 0);
    while at < length {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data from here to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(start))?;
        let (mut from, mut to) = (start, start);
        while from < end {
            let step = usize::try_from(end - from).unwrap_or(usize::MAX);
            if copy_file_range(source, Some(&mut from), target, Some(&mut to), step)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        copied += end - start;
        at = end;
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::{allocated, copy, create, overwrite, size};
    use std::os::unix::fs::FileExt;

    #[test]
    fn copies_keep_holes_and_overwriting_leaves_nothing_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        create(&a, 64 << 20).unwrap();
        std::fs::OpenOptions::new().write(true).open(&a).unwrap().write_all_at(&[7; 8192], 32 << 20).unwrap();
        copy(&a, &b).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert!(allocated(&b).unwrap() < 1 << 20, "{} bytes for 8 KiB of data", allocated(&b).unwrap());
        std::fs::OpenOptions::new().write(true).open(&b).unwrap().write_all_at(&[9; 8192], 0).unwrap();
        let c = dir.path().join("c");
        create(&c, 1 << 20).unwrap();
        overwrite(&c, &b).unwrap();
        assert_eq!((size(&b).unwrap(), allocated(&b).unwrap()), (1 << 20, 0));
        assert!(create(&c, 1).is_err(), "a disk is never made over another");
    }
}
