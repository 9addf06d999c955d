//! fio as the client, and what it says.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sh;

/// One way of loading a disk.
#[derive(Debug)]
pub struct Workload {
    pub name: &'static str,
    args: &'static [&'static str],
    /// The direction whose figures count.
    direction: &'static str,
}

/// What one run gave.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub iops: f64,
    /// 99th percentile of completion latency, microseconds.
    pub p99_us: f64,
}

impl Workload {
    /// Writes everything once.
    pub const FILL: Workload =
        Workload { name: "fill", args: &["--rw=write", "--bs=1M", "--iodepth=8"], direction: "write" };

    pub const MEASURED: &'static [Workload] = &[
        Workload {
            name: "4 KiB random write, depth 32",
            args: &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
            direction: "write",
        },
        Workload {
            name: "4 KiB random read, depth 32",
            args: &["--rw=randread", "--bs=4k", "--iodepth=32"],
            direction: "read",
        },
        Workload {
            name: "4 KiB write + flush, depth 1",
            args: &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
            direction: "write",
        },
        Workload {
            name: "128 KiB sequential write, depth 8",
            args: &["--rw=write", "--bs=128k", "--iodepth=8"],
            direction: "write",
        },
        Workload {
            name: "128 KiB sequential read, depth 8",
            args: &["--rw=read", "--bs=128k", "--iodepth=8"],
            direction: "read",
        },
    ];
}

/// Runs a workload for some seconds (a fill: once over everything).
pub fn run(workload: &Workload, uri: &str, seconds: u32) -> Result<Figures> {
    let mut args = common(uri);
    args.extend(workload.args.iter().map(ToString::to_string));
    if workload.name != Workload::FILL.name {
        args.extend(["--time_based".to_string(), format!("--runtime={seconds}")]);
    }
    figures(&sh::output("fio", &args)?, workload.direction)
}

/// So many random 4 KiB overwrites.
pub fn overwrite(uri: &str, count: u32) -> Result<()> {
    let mut args = common(uri);
    args.extend(["--rw=randwrite", "--bs=4k", "--iodepth=32"].map(String::from));
    args.push(format!("--number_ios={count}"));
    sh::output("fio", &args).map(drop)
}

/// Random 4 KiB writes at depth 32 in the background, until killed.
pub fn load(uri: &str, bytes: u64) -> Result<Child> {
    let mut args = common(uri);
    args.extend(["--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=600"].map(String::from));
    // One process, so that killing it ends the load.
    args.extend(["--thread".to_string(), format!("--size={bytes}")]);
    Command::new("fio")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting fio")
}

fn common(uri: &str) -> Vec<String> {
    let fixed = [
        "--name=bench",
        "--ioengine=nbd",
        "--output-format=json",
        "--norandommap",
        "--randrepeat=0",
        "--refill_buffers",
    ];
    let mut args: Vec<String> = fixed.map(String::from).to_vec();
    args.extend([format!("--uri={uri}"), format!("--size={}", super::VOLUME_BYTES)]);
    args
}

fn figures(output: &str, direction: &str) -> Result<Figures> {
    // fio prints warnings in front of the JSON.
    let start = output.find('{').context("fio printed no JSON")?;
    let value: Value = serde_json::from_str(&output[start..]).context("fio's JSON")?;
    let part = &value["jobs"][0][direction];
    let iops = part["iops"].as_f64().context("fio tells no IOPS")?;
    let p99 = part["clat_ns"]["percentile"]["99.000000"].as_f64().unwrap_or(0.0);
    Ok(Figures { iops, p99_us: p99 / 1000.0 })
}
