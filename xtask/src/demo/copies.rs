//! A disk between repositories of different types: onto the array and back, through the host, without its holes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, copy};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::eventually;
use super::world::World;
use crate::sh;

/// A multiple of the 15 MiB that volumes of an EqualLogic group are made of, so that a copy there is no larger.
const DISK_BYTES: u64 = 17 * (15 << 20);
/// Where the image holds data, in bytes: behind a hole, so that a copy shows progress before it has moved anything, and at
/// the very end.
const DATA: [(u64, u64); 2] = [(64 << 20, 48 << 20), (DISK_BYTES - 4096, 4096)];
/// A copy may move more than the data, for a chunk that is mapped in part goes as a whole, but not much.
const MOVED_BYTES_MAX: u64 = 64 << 20;
/// Size of the second repository.
const STORE_BYTES: u64 = 1 << 30;

const START_LIMIT: Duration = Duration::from_secs(30);
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// A small embedded store beside the array; a sparse disk goes from it to the array and back, and stays what it is.
pub fn there_and_back(world: &mut World, array: &str) -> Result<()> {
    let store = world.dir.join("beside.store");
    let embedded = world.xe(&[
        "sr-create",
        "type=tanada",
        "name-label=beside",
        &format!("device-config:location={}", store.display()),
        &format!("device-config:size={STORE_BYTES}"),
    ])?;
    let image = sparse_image(world)?;
    let original = world.xe(&[
        "vdi-create",
        &format!("sr-uuid={embedded}"),
        "name-label=travels",
        &format!("virtual-size={DISK_BYTES}"),
        "type=user",
    ])?;
    world.xe(&["vdi-import", &format!("uuid={original}"), &format!("filename={image}"), "format=raw"])?;
    let there = copied(world, &original, array, &image)?;
    let back = copied(world, &there, &embedded, &image)?;
    for vdi in [&original, &there, &back] {
        world.xe(&["vdi-destroy", &format!("uuid={vdi}")])?;
    }
    let pbd = world.xe(&["pbd-list", &format!("sr-uuid={embedded}"), "--minimal"])?;
    world.xe(&["pbd-unplug", &format!("uuid={pbd}")])?;
    world.xe(&["sr-destroy", &format!("uuid={embedded}")])?;
    std::fs::remove_file(&image).with_context(|| format!("removing {image}"))
}

fn sparse_image(world: &World) -> Result<String> {
    let path = world.dir.join("travels.raw");
    let mut noise = File::open("/dev/urandom").context("opening /dev/urandom")?;
    let mut write = || {
        let mut file = File::create(&path)?;
        file.set_len(DISK_BYTES)?;
        for (offset, length) in DATA {
            file.seek(SeekFrom::Start(offset))?;
            copy(&mut (&mut noise).take(length), &mut file)?;
        }
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

/// A copy on `sr`, judged: it holds what the image holds, its task showed progress and moved the data alone.
fn copied(world: &mut World, vdi: &str, sr: &str, image: &str) -> Result<String> {
    let start = Instant::now();
    let (copy, told) = copy_and_watch(world, vdi, sr)?;
    let took = start.elapsed();
    let data: u64 = DATA.iter().map(|(_, length)| length).sum();
    if !(data..=MOVED_BYTES_MAX).contains(&told.by_host) || told.by_storage != 0 {
        bail!("a copy of {data} bytes of data in {DISK_BYTES} moved {told:?}; the data and little more expected");
    }
    if !told.progress.iter().any(|shown| (0.01..1.0).contains(shown)) {
        bail!("the task of a copy that took {took:?} showed no progress on its way: {told:?}");
    }
    let exported = world.dir.join("travelled.raw");
    world.xe(&["vdi-export", &format!("uuid={copy}"), &format!("filename={}", exported.display()), "format=raw"])?;
    sh::output("cmp", &[Path::new(image), &exported]).with_context(|| format!("the copy {copy} on {sr}"))?;
    std::fs::remove_file(&exported).with_context(|| format!("removing {}", exported.display()))?;
    let kind = world.param("sr", sr, "type")?;
    world.note(format!(
        "onto {kind}: {} MiB in {} ms, {} MiB moved by the host, progress {}; the same bytes",
        DISK_BYTES >> 20,
        took.as_millis(),
        told.by_host >> 20,
        told.progress.iter().map(|shown| format!("{shown:.2}")).collect::<Vec<_>>().join(" "),
    ));
    Ok(copy)
}

/// What the task of a copy said.
#[derive(Debug, Default)]
struct Told {
    /// Each value once, in order.
    progress: Vec<f64>,
    by_host: u64,
    by_storage: u64,
}

/// Runs `xe vdi-copy`. It removes its task when that has ended, so it is held until the task has been read.
fn copy_and_watch(world: &World, vdi: &str, sr: &str) -> Result<(String, Told)> {
    let args = ["vdi-copy".to_owned(), format!("uuid={vdi}"), format!("sr-uuid={sr}")];
    let xe = world.xe_command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting xe")?;
    let pid = i32::try_from(xe.id()).context("a process id")?;
    let signal = |signal| {
        // SAFETY: kill has no preconditions; the process is our child and not reaped.
        unsafe { libc::kill(pid, signal) };
    };
    let task = eventually("the copy's task begins", START_LIMIT, || {
        let task = world.xe(&["task-list", "name-label=Async.VDI.copy", "status=pending", "--minimal"])?;
        if task.is_empty() { bail!("there is none") } else { Ok(task) }
    });
    signal(libc::SIGSTOP);
    let told = task.and_then(|task| watch(world, &task));
    signal(libc::SIGCONT);
    let output = xe.wait_with_output().context("waiting for xe vdi-copy")?;
    if !output.status.success() {
        bail!("xe {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok((String::from_utf8_lossy(&output.stdout).trim().to_owned(), told?))
}

/// Follows a task to its end.
fn watch(world: &World, task: &str) -> Result<Told> {
    let mut told = Told::default();
    let start = Instant::now();
    loop {
        let text = world.param("task", task, "progress")?;
        let shown: f64 = text.parse().with_context(|| format!("task {task}: progress is '{text}'"))?;
        if told.progress.last() != Some(&shown) {
            told.progress.push(shown);
        }
        // All of the data is copied some time before the task ends.
        if shown >= 1.0 && world.param("task", task, "status")? != "pending" {
            break;
        }
        if start.elapsed() > COPY_LIMIT {
            bail!("task {task} has not ended within {COPY_LIMIT:?}: {told:?}");
        }
    }
    for (key, bytes) in [("bytes_moved_by_host", &mut told.by_host), ("bytes_moved_by_storage", &mut told.by_storage)] {
        let text = world.param_key("task", task, "other-config", key)?;
        *bytes = text.parse().with_context(|| format!("task {task}: {key} is '{text}'"))?;
    }
    Ok(told)
}
