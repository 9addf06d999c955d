//! Deaths: of blockd, polite and not, under those who go on.

use std::collections::HashMap;
use std::io;
use std::process::{Command as Process, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tanada_blockd_api::{Answer, Command};
use tanada_nbd::proto::CMD_WRITE;

use crate::support::{MIB, Nbd, Plane, fail, succeed, succeeded, text};

const BLOCK: usize = 4096;

/// A client that writes without ever flushing and comes back when its server dies, like a guest's disk driver: what was
/// not acknowledged is sent again, what was acknowledged is believed.
struct Writer<'a> {
    plane: &'a Plane,
    nbd: Nbd,
    blocks: u64,
    /// Stamp by block: acknowledged, and sent but not acknowledged.
    acknowledged: HashMap<u64, u64>,
    under_way: HashMap<u64, u64>,
    stamp: u64,
}

fn content(block: u64, stamp: u64) -> Vec<u8> {
    let mut content = vec![stamp as u8; BLOCK];
    content[..8].copy_from_slice(&block.to_le_bytes());
    content[8..16].copy_from_slice(&stamp.to_le_bytes());
    content
}

impl Writer<'_> {
    const DEPTH: usize = 16;

    /// Writes until `count` more blocks are acknowledged.
    fn write(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            match self.step() {
                Ok(()) => left -= 1,
                Err(_) => self.come_back(),
            }
        }
    }

    /// Keeps the queue full and takes one answer.
    fn step(&mut self) -> io::Result<()> {
        while self.under_way.len() < Self::DEPTH {
            self.stamp += 1;
            let block = self.stamp.wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.blocks;
            if self.under_way.contains_key(&block) {
                continue;
            }
            // Noted first: it may arrive even if sending fails.
            self.under_way.insert(block, self.stamp);
            self.send(block, self.stamp)?;
        }
        self.take_answer()
    }

    fn send(&mut self, block: u64, stamp: u64) -> io::Result<()> {
        let data = content(block, stamp);
        self.nbd.send(CMD_WRITE, block, block * BLOCK as u64, BLOCK as u32, &data)
    }

    fn take_answer(&mut self) -> io::Result<()> {
        let reply = self.nbd.reply()?;
        succeeded(reply).expect("the store takes writes");
        let stamp = self.under_way.remove(&reply.cookie).expect("an answer to what was asked");
        self.acknowledged.insert(reply.cookie, stamp);
        Ok(())
    }

    fn come_back(&mut self) {
        loop {
            let Ok(nbd) = self.plane.nbd("disk") else { continue };
            self.nbd = nbd;
            let again: Vec<(u64, u64)> = self.under_way.iter().map(|(block, stamp)| (*block, *stamp)).collect();
            if again.into_iter().all(|(block, stamp)| self.send(block, stamp).is_ok()) {
                return;
            }
        }
    }

    fn check(&mut self) {
        for (block, stamp) in &self.acknowledged {
            if self.under_way.contains_key(block) {
                continue;
            }
            let found = self.nbd.read(block * BLOCK as u64, BLOCK).unwrap();
            assert!(found == content(*block, *stamp), "block {block} is not what was acknowledged as {stamp}");
        }
    }
}

fn writer(plane: &Plane, blocks: u64) -> Writer<'_> {
    let nbd = plane.nbd("disk").unwrap();
    Writer { plane, nbd, blocks, acknowledged: HashMap::new(), under_way: HashMap::new(), stamp: 0 }
}

#[test]
fn kill_9_loses_nothing_acknowledged_flushed_or_not() {
    let plane = Plane::start(512 * MIB);
    plane.volume("disk", 32 * MIB);
    let mut writer = writer(&plane, 32 * MIB / BLOCK as u64);
    let first = plane.control().greeting.incarnation;
    for round in 0..6 {
        writer.write(1500 + 700 * round);
        plane.end_blockd(Signal::KILL);
        // Nothing else has happened to the client: it finds out by itself.
        writer.write(Writer::DEPTH + 1);
        while !writer.under_way.is_empty() {
            writer.take_answer().unwrap();
        }
        writer.check();
    }
    assert!(plane.control().greeting.incarnation >= first + 6);
}

#[test]
fn what_is_acknowledged_outlives_keeper_and_blockd_together() {
    let plane = Plane::start(512 * MIB);
    plane.volume("disk", 32 * MIB);
    let mut writer = writer(&plane, 32 * MIB / BLOCK as u64);
    for round in 0..3 {
        writer.write(800 + 900 * round);
        let blockd = Pid::from_raw(plane.control().greeting.pid as i32).unwrap();
        kill_process(plane.pid("keeper.pid").unwrap(), Signal::KILL).unwrap();
        // It may be quicker to end with its keeper.
        let _ = kill_process(blockd, Signal::KILL);
        while !plane.keeper().output().unwrap().status.success() {}
        // Before anything is sent again: what was under way may be there or not, what was acknowledged must be.
        writer.nbd = plane.nbd("disk").unwrap();
        writer.check();
        writer.come_back();
    }
}

#[test]
fn qemu_goes_on_when_blockd_is_killed() {
    let plane = Plane::start(512 * MIB);
    plane.volume("disk", 64 * MIB);
    let socket = plane.file("qemu.sock");
    let disk = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},export=disk,reconnect-delay=120",
        plane.nbd_socket().display()
    );
    let pid_file = plane.file("qemu.pid");
    let mut qemu = Process::new("qemu-storage-daemon");
    qemu.args(["--daemonize", "--pidfile", pid_file.to_str().unwrap(), "--blockdev", &disk, "--nbd-server"]);
    qemu.arg(format!("addr.type=unix,addr.path={}", socket.display()));
    qemu.args(["--export", "type=nbd,id=out,node-name=disk,writable=on"]);
    qemu.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(qemu.status().unwrap().success());
    let mut fio = Process::new("fio");
    fio.args(["--name=verify", "--ioengine=nbd", "--iodepth=16", "--size=48m", "--rw=randwrite", "--bs=4k"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0", "--rate_iops=4000"]);
    fio.arg(format!("--uri=nbd+unix:///disk?socket={}", socket.display()));
    let mut fio = fio.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Some writes must have gone through before each death, or it would prove nothing.
    let mut control = plane.control();
    for _ in 0..3 {
        let written = used(&mut control);
        while used(&mut control) < written + MIB {
            assert!(fio.try_wait().unwrap().is_none(), "fio ended before its server was killed");
        }
        plane.end_blockd(Signal::KILL);
        control = plane.control();
    }
    let output = fio.wait_with_output().unwrap();
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    succeed(Process::new("kill").arg(pid.trim()));
    assert!(output.status.success(), "{}", text(&output));
}

fn used(control: &mut crate::support::Control) -> u64 {
    match control.call(Command::StoreStat) {
        Ok(Answer::Store(stat)) => stat.used,
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections_made_while_blockd_is_away_are_served_by_the_next() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", MIB);
    for round in 0..6u8 {
        plane.end_blockd(if round % 2 == 0 { Signal::KILL } else { Signal::TERM });
        let mut client = plane.nbd("disk").unwrap();
        assert_eq!(client.size, MIB);
        client.write(0, &[round; 512]).unwrap();
        assert_eq!(client.read(0, 512).unwrap(), [round; 512]);
    }
}

#[test]
fn a_clean_end_leaves_a_checkpoint_and_no_traces() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", MIB);
    plane.nbd("disk").unwrap().write(0, &[9; 4096]).unwrap();
    let before = plane.control().greeting.incarnation;
    plane.stop();
    for name in ["nbd.sock", "control.sock", "keeper.pid", "blockd.pid"] {
        assert!(!plane.runtime_dir().join(name).exists(), "{name} is left");
    }
    plane.keep();
    let mut control = plane.control();
    assert!(control.greeting.incarnation > before);
    // Attachments end with the boot, not with the keeper.
    assert_eq!(plane.nbd("disk").unwrap().read(0, 4096).unwrap(), [9; 4096]);
    assert!(matches!(control.call(Command::StoreStat), Ok(Answer::Store(stat)) if stat.failed.is_none()));
}

#[test]
fn a_keeper_tells_why_it_cannot_start() {
    let plane = Plane::start(256 * MIB);
    let told = fail(&mut plane.keeper());
    assert!(told.contains("already"), "{told}");
    plane.stop();
    std::fs::write(plane.store(), vec![0; 64 * MIB as usize]).unwrap();
    let told = fail(&mut plane.keeper());
    assert!(told.contains("store"), "{told}");
    std::fs::remove_file(plane.store()).unwrap();
    let told = fail(&mut plane.keeper());
    assert!(told.contains("No such file"), "{told}");
}

#[test]
fn a_keeper_takes_over_from_one_that_was_killed() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", MIB);
    plane.nbd("disk").unwrap().write(4096, &[4; 4096]).unwrap();
    let keeper = plane.pid("keeper.pid").unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    // Its lock goes with it; until then the next one is turned away.
    while !plane.keeper().output().unwrap().status.success() {}
    assert_eq!(plane.nbd("disk").unwrap().read(4096, 4096).unwrap(), [4; 4096]);
}
