//! Copies of several disks are of one instant, and LUNs grow, under writers.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::array::{ALICE, Array, identity};
use sim_target::blocks;
use tanada_nbd::client::Client;
use tanada_witness::{RECORD_BYTES, encode_record, judge_order};

const SLOTS: u64 = 64;
const RING_BYTES: u64 = SLOTS * RECORD_BYTES as u64;
const INSTANTS: usize = 20;

/// LUNs of the array as NBD exports, by QEMU.
struct Bridge {
    daemon: Child,
    socket: PathBuf,
}

impl Bridge {
    fn start(array: &Array, luns: u16) -> Bridge {
        let socket = array.dir.path().join("nbd");
        let pid = array.dir.path().join("pid");
        let mut command = Command::new("/usr/bin/qemu-storage-daemon");
        for lun in 0..luns {
            command.arg("--blockdev").arg(format!("{},node-name=d{lun}", array.image(ALICE, lun, None)));
        }
        command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
        for lun in 0..luns {
            command.arg("--export").arg(format!("type=nbd,id=e{lun},node-name=d{lun},name=d{lun},writable=on"));
        }
        command.arg("--pidfile").arg(&pid).stdin(Stdio::null());
        let mut bridge = Bridge { daemon: command.spawn().unwrap(), socket };
        // The file is written when everything stands.
        while !pid.exists() {
            assert!(bridge.daemon.try_wait().unwrap().is_none(), "the storage daemon ended");
            std::thread::yield_now();
        }
        bridge
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Writes records to every disk in turn until told to stop; counts rounds that were acknowledged everywhere.
async fn write_records(disks: Vec<Client>, done: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let mut record = vec![0; RECORD_BYTES];
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        encode_record(number, &mut record);
        let at = number % SLOTS * RECORD_BYTES as u64;
        for disk in &disks {
            disk.write_at(at, record.clone().into()).await.unwrap();
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_copied_at_one_instant_and_grows_under_writers() {
    let array = Array::start();
    array.welcome(ALICE, "iqn.inner:1");
    let disks: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| array.disk(name, RING_BYTES)).collect();
    for (lun, disk) in disks.iter().enumerate() {
        array.show("iqn.inner:1", lun as u16, disk);
    }
    let bridge = Bridge::start(&array, disks.len() as u16);
    let mut clients = Vec::new();
    for name in ["d0", "d1", "d2"] {
        clients.push(Client::connect_unix(&bridge.socket, name).await.unwrap());
    }
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn(write_records(clients, Arc::clone(&done), Arc::clone(&stop)));
    let mut newest = 0;
    for instant in 0..INSTANTS {
        let before = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < before + 10 {
            assert!(!writer.is_finished(), "the writer ended early");
            tokio::task::yield_now().await;
        }
        if instant == INSTANTS / 2 {
            // In between, one LUN is taken away and shown again larger: the writer notices a pause at most.
            array.router.held(|| {
                array.target.remove_lun("iqn.inner:1", 1).unwrap();
                blocks::resize(&disks[1], RING_BYTES * 2).unwrap();
                array.target.add_lun("iqn.inner:1", 1, &disks[1], &identity(), true, false).unwrap();
            });
            blocks::resize(&disks[0], RING_BYTES * 2).unwrap();
        }
        let acknowledged = done.load(Ordering::Relaxed);
        let copies: Vec<PathBuf> = (0..3).map(|disk| array.dir.path().join(format!("{instant}-{disk}"))).collect();
        let pairs: Vec<_> = disks.iter().zip(&copies).map(|(disk, copy)| (disk.as_path(), copy.as_path())).collect();
        array.target.copy_at_one_instant(&pairs).unwrap();
        let rings: Vec<Vec<u8>> =
            copies.iter().map(|copy| std::fs::read(copy).unwrap()[..RING_BYTES as usize].to_vec()).collect();
        for pair in rings.windows(2) {
            let report = judge_order(&pair[0], &pair[1]).unwrap_or_else(|error| panic!("instant {instant}: {error}"));
            assert!(report.newest_on_b >= acknowledged, "record {acknowledged} was acknowledged before");
            newest = report.newest_on_b;
        }
        assert!(array.target.copy_at_one_instant(&pairs).is_err(), "copies are never made over others");
        assert!(copies.iter().all(|copy| copy.exists()), "and those others stay");
        for copy in copies {
            std::fs::remove_file(copy).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert!(newest > 0);
}

#[test]
fn sessions_are_seen_and_cut_and_a_closed_portal_opens_again() {
    let array = Array::start();
    array.welcome(ALICE, "iqn.inner:1");
    array.show("iqn.inner:1", 0, &array.disk("a", 1 << 20));
    let bridge = Bridge::start(&array, 1);
    let sessions = array.router.sessions();
    assert_eq!(sessions.len(), 1);
    assert_eq!((sessions[0].login.initiator.as_str(), sessions[0].target.as_str()), (ALICE, "iqn.inner:1"));
    array.router.close(array.portal);
    while !array.router.sessions().is_empty() {
        std::thread::yield_now();
    }
    assert!(std::net::TcpStream::connect(array.portal).is_err(), "nobody listens");
    array.router.open(array.portal).unwrap();
    // libiscsi comes back by itself.
    while array.router.sessions().is_empty() {
        std::thread::yield_now();
    }
    drop(bridge);
}
