//! Making an empty store.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use tanada_disk::{Buf, BufMut};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::superblock::MAGIC;
use tanada_format::{BLOCK_BYTES, format_image};
use tanada_units::MIB;
use uuid::Uuid;

use crate::options;
use crate::store_file::StoreFile;

/// Zeros are written in pieces of this size.
const PIECE_BYTES: usize = 4 * MIB as usize;

pub(crate) fn run(args: Vec<OsString>) -> anyhow::Result<()> {
    let options = options::format(args)?;
    let path = options.path.display();
    create(&options.path)?;
    let store = StoreFile::open(&options.path)?;
    store.try_lock()?;
    let size = store.size_bytes().with_context(|| format!("size of {path}"))?;
    if !options.force && holds_store(store.file(), size)? {
        bail!("{path} holds a store already; --force makes a new one and loses it");
    }
    let device_bytes = match options.size_bytes {
        None if size == 0 => bail!("{path} is empty: say with --size how large the store is to be"),
        None => size,
        Some(wanted) if wanted >= size => wanted,
        Some(wanted) => bail!("{path} has {size} bytes already, more than the {wanted} asked for"),
    };
    let image = format_image(&tanada_format::FormatOptions {
        store: options.store.unwrap_or_else(Uuid::new_v4),
        device_bytes,
        journal_bytes: options.journal_bytes,
    })?;
    let image = if options.preallocate { image.keep_space() } else { image };
    store.grow(device_bytes).with_context(|| format!("extend {path} to {device_bytes} bytes"))?;
    for range in &image.zero {
        write_zeros(store.file(), range).with_context(|| format!("write zeros to {path}"))?;
    }
    store.file().sync_all().with_context(|| format!("sync {path}"))?;
    for (at, bytes) in &image.writes {
        store.file().write_all_at(&Buf::copy_from(bytes), *at).with_context(|| format!("write {path}"))?;
    }
    store.file().sync_all().with_context(|| format!("sync {path}"))?;
    sync_folder(&options.path)?;
    println!("{path}: store {} of {device_bytes} bytes", image.superblock.store);
    Ok(())
}

/// Makes an empty file that only its owner may read, where there is nothing.
fn create(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.with_context(|| format!("create {}", path.display()))?;
    Ok(())
}

/// True where any superblock's place holds one, even a damaged one or one of a newer version.
fn holds_store(file: &File, size: u64) -> anyhow::Result<bool> {
    for block in SUPERBLOCK_AT.into_iter().flatten() {
        let at = block * BLOCK_BYTES as u64;
        if at + BLOCK_BYTES as u64 > size {
            continue;
        }
        let mut bytes = BufMut::zeroed(BLOCK_BYTES);
        file.read_exact_at(bytes.as_mut_slice(), at).context("look for a store")?;
        if bytes.as_mut_slice().starts_with(&MAGIC) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Written, not punched: space that was never written is slow to write to for the first time.
fn write_zeros(file: &File, range: &Range<u64>) -> std::io::Result<()> {
    let zeros = BufMut::zeroed(PIECE_BYTES).freeze();
    let mut at = range.start;
    while at < range.end {
        let count = (range.end - at).min(PIECE_BYTES as u64);
        file.write_all_at(&zeros[..count as usize], at)?;
        at += count;
    }
    Ok(())
}

/// A new file's name is durable once its folder is.
fn sync_folder(path: &Path) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let result = File::open(folder).and_then(|folder| folder.sync_all());
    result.with_context(|| format!("sync {}", folder.display()))
}
