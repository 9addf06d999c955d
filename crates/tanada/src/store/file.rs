//! A store in a file or on a block device, opened for reading only.

use std::fs::{File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tanada_format::check::ReadAt;

pub struct StoreFile {
    file: File,
}

impl StoreFile {
    /// Opens without any right to write. With `alone`, refuses a store that is being served: what is read would change
    /// under the reader.
    pub fn open(path: &Path, alone: bool) -> Result<StoreFile, String> {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) if alone => {
                Err(format!("{} is in use: stop the process that serves it first", path.display()))
            }
            _ => Ok(StoreFile { file }),
        }
    }
}

impl ReadAt for StoreFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        self.file.read_exact_at(bytes, offset).map_err(|error| format!("{} bytes at {offset}: {error}", bytes.len()))
    }
}
