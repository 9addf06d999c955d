//! fio as the client, and what it says.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::process;

/// One way of loading a disk.
#[derive(Debug)]
pub struct Workload {
    pub id: &'static str,
    pub name: &'static str,
    rw: &'static str,
    block_bytes: u32,
    depth: u32,
    /// Requests a second at most; 0 for as many as there can be.
    paced: u32,
    /// A flush after each write.
    flushes: bool,
    reads: bool,
}

const fn workload(id: &'static str, name: &'static str, rw: &'static str, block_bytes: u32, depth: u32) -> Workload {
    Workload { id, name, rw, block_bytes, depth, paced: 0, flushes: false, reads: false }
}

pub const RANDWRITE: Workload = workload("randwrite", "4 KiB random write, QD 32", "randwrite", 4096, 32);
pub const RANDREAD: Workload =
    Workload { reads: true, ..workload("randread", "4 KiB random read, QD 32", "randread", 4096, 32) };
pub const SEQWRITE: Workload = workload("seqwrite", "128 KiB sequential write, QD 8", "write", 128 << 10, 8);
pub const SEQREAD: Workload =
    Workload { reads: true, ..workload("seqread", "128 KiB sequential read, QD 8", "read", 128 << 10, 8) };
pub const FLUSH: Workload =
    Workload { flushes: true, ..workload("flush", "4 KiB write + flush, QD 1", "randwrite", 4096, 1) };

/// A guest with work to do, but not as much as there can be.
pub const PACED_RANDWRITE: Workload = Workload {
    paced: 500,
    ..workload("paced-randwrite", "4 KiB random write, 500 a second, QD 4", "randwrite", 4096, 4)
};
pub const PACED_RANDREAD: Workload = Workload {
    paced: 500,
    reads: true,
    ..workload("paced-randread", "4 KiB random read, 500 a second, QD 4", "randread", 4096, 4)
};

/// All that are not paced, in an order in which none spoils the state that a later one needs: sequential reading first, while the
/// volume is as it was filled.
pub const ALL: [&Workload; 5] = [&SEQREAD, &RANDREAD, &SEQWRITE, &FLUSH, &RANDWRITE];

impl Workload {
    /// Sequential rows are told in MB/s, the others in requests a second.
    pub fn is_sequential(&self) -> bool {
        self.block_bytes > 4096
    }
}

/// What fio connects to or opens.
#[derive(Debug, Clone)]
pub enum Place {
    Nbd(String),
    /// Directly, O_DIRECT and io_uring: the bare medium.
    File(PathBuf),
}

/// What one run gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub iops: f64,
    pub mb_per_s: f64,
    /// Completion latency, microseconds.
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// The server's processor time per request, microseconds; NaN where nobody serves.
    pub cpu_us: f64,
}

/// Runs a workload for some seconds over the first `bytes`; `server` is whose processor time counts.
pub fn run(workload: &Workload, place: &Place, bytes: u64, seconds: u32, server: Option<u32>) -> Result<Figures> {
    let mut args = common(place, bytes);
    args.extend([
        format!("--rw={}", workload.rw),
        format!("--bs={}", workload.block_bytes),
        format!("--iodepth={}", workload.depth),
        "--norandommap".into(),
        "--time_based".into(),
        format!("--runtime={seconds}"),
    ]);
    if workload.paced > 0 {
        args.push(format!("--rate_iops={}", workload.paced));
    }
    if workload.flushes {
        // The nbd engine knows one kind of sync, a flush.
        args.push(if matches!(place, Place::Nbd(_)) { "--fsync=1".into() } else { "--fdatasync=1".into() });
    }
    let before = server.and_then(process::cpu_seconds);
    let text = fio(&args, Duration::from_secs(u64::from(seconds) + 60))?;
    let after = server.and_then(process::cpu_seconds);
    let (mut figures, requests) = figures(&text, if workload.reads { "read" } else { "write" })?;
    if let (Some(before), Some(after)) = (before, after) {
        figures.cpu_us = (after - before) * 1e6 / requests.max(1.0);
    }
    Ok(figures)
}

/// Writes everything once, in order.
pub fn fill(place: &Place, bytes: u64) -> Result<()> {
    let mut args = common(place, bytes);
    args.extend(["--rw=write", "--bs=1M", "--iodepth=8"].map(String::from));
    fio(&args, process::BOUND).map(drop)
}

/// Reads everything once, in order.
pub fn read_all(place: &Place, bytes: u64) -> Result<()> {
    let mut args = common(place, bytes);
    args.extend(["--rw=read", "--bs=128k", "--iodepth=8"].map(String::from));
    fio(&args, process::BOUND).map(drop)
}

/// Overwrites so many bytes at random, 4 KiB each, no block twice before all were written once.
pub fn overwrite(place: &Place, bytes: u64, overwritten: u64) -> Result<()> {
    let mut args = common(place, bytes);
    args.extend(["--rw=randwrite", "--bs=4k", "--iodepth=32"].map(String::from));
    args.push(format!("--io_size={overwritten}"));
    fio(&args, process::BOUND).map(drop)
}

/// One 4 KiB write into each `stride` bytes: maps little, but everywhere.
pub fn touch_everywhere(place: &Place, bytes: u64, stride: u64) -> Result<()> {
    let mut args = common(place, bytes);
    args.extend([format!("--rw=write:{}", stride - 4096), "--bs=4k".into(), "--iodepth=32".into()]);
    args.push(format!("--io_size={}", bytes / stride * 4096));
    fio(&args, process::BOUND).map(drop)
}

fn common(place: &Place, bytes: u64) -> Vec<String> {
    let mut args: Vec<String> = ["--name=bench", "--output-format=json", "--randrepeat=0"].map(String::from).to_vec();
    match place {
        Place::Nbd(uri) => args.extend(["--ioengine=nbd".into(), format!("--uri={uri}")]),
        Place::File(path) => args.extend([
            "--ioengine=io_uring".into(),
            "--direct=1".into(),
            "--thread".into(),
            format!("--filename={}", path.display()),
        ]),
    }
    args.push(format!("--size={bytes}"));
    args
}

fn fio(args: &[String], bound: Duration) -> Result<String> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    process::output_within("fio", &args, bound)
}

/// The figures of one direction, and how many requests there were (flushes not counted).
fn figures(output: &str, direction: &str) -> Result<(Figures, f64)> {
    // fio prints warnings in front of the JSON.
    let start = output.find('{').context("fio printed no JSON")?;
    let value: Value = serde_json::from_str(&output[start..]).context("fio's JSON")?;
    let part = &value["jobs"][0][direction];
    let number = |name: &str| part[name].as_f64().with_context(|| format!("fio tells no {name}"));
    let percentile = |name: &str| part["clat_ns"]["percentile"][name].as_f64().unwrap_or(f64::NAN) / 1000.0;
    let figures = Figures {
        iops: number("iops")?,
        mb_per_s: number("bw_bytes")? / 1e6,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        cpu_us: f64::NAN,
    };
    Ok((figures, number("total_ios")?))
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn what_fio_says_is_read() {
        let text = r#"fio: a warning
            {"jobs":[{"write":{"iops":12.5,"bw_bytes":2000000,"total_ios":25,
            "clat_ns":{"percentile":{"50.000000":1000,"99.000000":3000,"99.900000":4000}}}}]}"#;
        let (found, requests) = figures(text, "write").unwrap();
        assert_eq!((found.iops, found.mb_per_s, found.p99_us, requests), (12.5, 2.0, 3.0, 25.0));
        assert!(figures("no figures", "write").is_err() && figures(text, "read").is_err());
    }
}
