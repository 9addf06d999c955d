//! A snapshot of two volumes is one instant: records are written to A, then to B, by several writers, while generations
//! are taken; no generation shows on B what it lacks on A, or misses an acknowledged record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use tanada_blockd_api::{Answer, CutPair};
use tanada_e2e::store::{StoreProcess, Verb};
use tanada_nbd::client::Client;
use tanada_witness::{RECORD_BYTES, encode_record, judge_order};
use tokio::runtime::Runtime;
use uuid::Uuid;

const SLOTS: u64 = 256;
const WRITERS: u64 = 4;
const GENERATIONS: u32 = 60;
const VOLUME_BYTES: u64 = WRITERS * SLOTS * RECORD_BYTES as u64;

/// Writes ordered records into this writer's ring until told to stop; counts what was acknowledged on both volumes.
async fn write_records(a: Client, b: Client, ring: u64, done: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Result<()> {
    let base = ring * SLOTS * RECORD_BYTES as u64;
    let mut number = 0;
    let mut record = vec![0; RECORD_BYTES];
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        encode_record(number, &mut record);
        let at = base + number % SLOTS * RECORD_BYTES as u64;
        let bytes: Vec<u8> = record.clone();
        a.write_at(at, bytes.clone().into()).await?;
        // Every other writer asks for durability in between; the order has to hold with and without.
        if ring.is_multiple_of(2) {
            a.flush().await?;
        }
        b.write_at(at, bytes.into()).await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn attach(store: &mut StoreProcess, token: &str, target: Uuid, writable: bool) -> Result<()> {
    store.control(Verb::Attach { token: token.into(), target, writable }).map(drop)
}

async fn read_all(store: &StoreProcess, token: &str) -> Result<Vec<u8>> {
    let client = Client::connect_unix(&store.nbd_socket(), token).await?;
    Ok(client.read_at(0, VOLUME_BYTES as u32).await?.to_vec())
}

#[test]
fn generations_of_two_volumes_are_of_one_instant() -> Result<()> {
    let runtime = Runtime::new().context("a runtime")?;
    let mut store = StoreProcess::start(256 << 20)?;
    let volumes = [Uuid::from_u128(0xa), Uuid::from_u128(0xb)];
    for (volume, token) in volumes.iter().zip(["a", "b"]) {
        store.control(Verb::CreateVolume { volume: *volume, size: VOLUME_BYTES })?;
        attach(&mut store, token, *volume, true)?;
    }
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers = start_writers(&runtime, &store, &stop, &done)?;
    let mut kept = Vec::new();
    for number in 0..GENERATIONS {
        // Each generation waits for new records, so that all are taken under load.
        let before = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < before + 20 {
            if writers.iter().any(tokio::task::JoinHandle::is_finished) {
                bail!("a writer ended early");
            }
            std::thread::yield_now();
        }
        let pair = [u128::from(number) * 2 + 0x1000, u128::from(number) * 2 + 0x1001].map(Uuid::from_u128);
        let group = vec![
            CutPair { volume: volumes[0], generation: pair[0] },
            CutPair { volume: volumes[1], generation: pair[1] },
        ];
        match store.control(Verb::Snapshot { group })? {
            Answer::Cut(report) if report.changed => kept.push(pair),
            other => bail!("a snapshot is answered with {other:?}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        runtime.block_on(writer)??;
    }
    judge_all(&runtime, &mut store, &kept)
}

fn start_writers(
    runtime: &Runtime,
    store: &StoreProcess,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> Result<Vec<tokio::task::JoinHandle<Result<()>>>> {
    let mut writers = Vec::new();
    for ring in 0..WRITERS {
        let a = runtime.block_on(Client::connect_unix(&store.nbd_socket(), "a"))?;
        let b = runtime.block_on(Client::connect_unix(&store.nbd_socket(), "b"))?;
        writers.push(runtime.spawn(write_records(a, b, ring, Arc::clone(done), Arc::clone(stop))));
    }
    Ok(writers)
}

fn judge_all(runtime: &Runtime, store: &mut StoreProcess, kept: &[[Uuid; 2]]) -> Result<()> {
    let mut newest_before = 0;
    for (number, pair) in kept.iter().enumerate() {
        let tokens = [format!("read-a-{number}"), format!("read-b-{number}")];
        for (token, generation) in tokens.iter().zip(pair) {
            attach(store, token, *generation, false)?;
        }
        let [a, b] = [&tokens[0], &tokens[1]].map(|token| runtime.block_on(read_all(store, token)));
        let (a, b) = (a?, b?);
        let mut newest = 0;
        for (ring_a, ring_b) in a.chunks(SLOTS as usize * RECORD_BYTES).zip(b.chunks(SLOTS as usize * RECORD_BYTES)) {
            newest += judge_order(ring_a, ring_b).with_context(|| format!("generation {number}"))?.newest_on_b;
        }
        assert!(newest >= newest_before, "generation {number} is older than the one before it");
        newest_before = newest;
        for token in tokens {
            store.control(Verb::Detach { token })?;
        }
    }
    assert!(newest_before > 0, "nothing was written while generations were taken");
    Ok(())
}
