//! `tanada-witness`: leaves evidence on disks and checks it. Runs inside the test guest and on the host.
//!
//! ```text
//! tanada-witness fill  PATH OFFSET LENGTH SEED          known pattern, flushed at the end
//! tanada-witness check PATH OFFSET LENGTH SEED
//! tanada-witness write-ordered  A B OFFSET SLOTS STATUS  until killed; STATUS is a file with progress
//! tanada-witness verify-ordered A B OFFSET SLOTS
//! tanada-witness pace read|write PATH LENGTH A_SECOND SECONDS   how long requests take; SIGTERM ends it early
//! ```

use std::alloc::{Layout, alloc_zeroed};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tanada_witness::pace::{self, Pace, Way};
use tanada_witness::{RECORD_BYTES, check_block, decode_record, encode_record, fill_block, judge_order};

const USAGE: &str = "usage: tanada-witness fill|check PATH OFFSET LENGTH SEED | \
                     write-ordered A B OFFSET SLOTS STATUS | verify-ordered A B OFFSET SLOTS | \
                     pace read|write PATH LENGTH A_SECOND SECONDS";
const BLOCK_BYTES: u64 = 4096;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tanada-witness: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    match args {
        ["fill", path, offset, length, seed] => fill(path, number(offset)?, number(length)?, number(seed)?),
        ["check", path, offset, length, seed] => check(path, number(offset)?, number(length)?, number(seed)?),
        ["write-ordered", a, b, offset, slots, status] => write_ordered(a, b, number(offset)?, number(slots)?, status),
        ["verify-ordered", a, b, offset, slots] => verify_ordered(a, b, number(offset)?, number(slots)?),
        ["pace", way, path, length, a_second, seconds] => {
            let (way, length) = (Way::parse(way)?, number(length)?);
            measure(path, &Pace { way, length, a_second: number(a_second)?, seconds: number(seconds)? })
        }
        _ => bail!(USAGE),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("'{text}': a whole number expected"))
}

fn open(path: &str, writable: bool, direct: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .with_context(|| format!("opening {path}"))
}

/// One block that O_DIRECT accepts; lives as long as the process.
fn aligned_block() -> &'static mut [u8] {
    let layout = Layout::from_size_align(RECORD_BYTES, 4096).expect("a constant layout");
    // SAFETY: non-zero size; the memory is never freed and handed out once per call.
    unsafe {
        let start = alloc_zeroed(layout);
        assert!(!start.is_null(), "no memory for one block");
        std::slice::from_raw_parts_mut(start, RECORD_BYTES)
    }
}

fn fill(path: &str, offset: u64, length: u64, seed: u64) -> Result<()> {
    let file = open(path, true, false)?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    for index in 0..length / BLOCK_BYTES {
        fill_block(seed, index, &mut block);
        file.write_all_at(&block, offset + index * BLOCK_BYTES).with_context(|| format!("writing {path}"))?;
    }
    file.sync_all().with_context(|| format!("flushing {path}"))
}

fn check(path: &str, offset: u64, length: u64, seed: u64) -> Result<()> {
    let file = open(path, false, false)?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    for index in 0..length / BLOCK_BYTES {
        file.read_exact_at(&mut block, offset + index * BLOCK_BYTES).with_context(|| format!("reading {path}"))?;
        if !check_block(seed, index, &block) {
            bail!("{path}: block {index} from offset {offset} does not hold the pattern of seed {seed}");
        }
    }
    println!("ok {} blocks", length / BLOCK_BYTES);
    Ok(())
}

fn measure(path: &str, pace: &Pace) -> Result<()> {
    static STOP: AtomicBool = AtomicBool::new(false);
    extern "C" fn stop(_: i32) {
        STOP.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler only stores to an atomic.
    unsafe { libc::signal(libc::SIGTERM, stop as *const () as libc::sighandler_t) };
    let disk = open(path, true, true)?;
    println!("{}", pace::load(&disk, pace, aligned_block(), &STOP)?);
    Ok(())
}

fn write_ordered(a: &str, b: &str, offset: u64, slots: u64, status: &str) -> Result<()> {
    if slots == 0 {
        bail!("SLOTS is 0: at least 1 expected");
    }
    let (disk_a, disk_b) = (open(a, true, true)?, open(b, true, true)?);
    let block = aligned_block();
    // A may be one ahead: it gets that record once more, so that B does not go without it.
    let mut newest = newest_record(&disk_b, offset, slots, block)?;
    let mut slowest_us = 0u64;
    loop {
        newest += 1;
        encode_record(newest, block);
        let at = offset + newest % slots * BLOCK_BYTES;
        let start = Instant::now();
        disk_a.write_all_at(block, at).with_context(|| format!("writing record {newest} to {a}"))?;
        slowest_us = slowest_us.max(start.elapsed().as_micros() as u64);
        disk_a.sync_data().with_context(|| format!("flushing {a}"))?;
        let start = Instant::now();
        disk_b.write_all_at(block, at).with_context(|| format!("writing record {newest} to {b}"))?;
        slowest_us = slowest_us.max(start.elapsed().as_micros() as u64);
        if newest.is_multiple_of(16) {
            fs::write(status, format!("{newest} {slowest_us}\n")).with_context(|| format!("writing {status}"))?;
        }
    }
}

fn newest_record(disk: &File, offset: u64, slots: u64, block: &mut [u8]) -> Result<u64> {
    let mut newest = 0;
    for slot in 0..slots {
        disk.read_exact_at(block, offset + slot * BLOCK_BYTES).context("reading the ring")?;
        newest = newest.max(decode_record(block)?.unwrap_or(0));
    }
    Ok(newest)
}

fn verify_ordered(a: &str, b: &str, offset: u64, slots: u64) -> Result<()> {
    let read = |path: &str| -> Result<Vec<u8>> {
        let mut ring = vec![0; slots as usize * RECORD_BYTES];
        open(path, false, false)?.read_exact_at(&mut ring, offset).with_context(|| format!("reading {path}"))?;
        Ok(ring)
    };
    let report = judge_order(&read(a)?, &read(b)?)?;
    println!("ok a={} b={} compared={}", report.newest_on_a, report.newest_on_b, report.records_compared);
    Ok(())
}
