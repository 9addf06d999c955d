//! Clients with many requests in flight: their answers leave by another thread than those of the others.

use tanada_nbd::proto::{CMD_READ, RequestHeader};

use crate::support::{MIB, Nbd, Plane, succeeded};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 8 * MIB / BLOCK;
/// Enough for batches of answers that the engine's thread does not send itself.
const DEPTH: u64 = 200;

/// What block `number` holds; none is zero.
fn content(number: u64) -> Vec<u8> {
    (number * 2 + 1).to_le_bytes().repeat(BLOCK as usize / 8)
}

/// A disk with [`content`] everywhere.
fn filled() -> Plane {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", BLOCKS * BLOCK);
    let all: Vec<u8> = (0..BLOCKS).flat_map(content).collect();
    plane.nbd("disk").unwrap().write(0, &all).unwrap();
    plane
}

/// Asks for so many blocks at once; the cookie is the block's number.
fn ask(client: &mut Nbd, blocks: impl Iterator<Item = u64>) {
    let request = |number: u64| RequestHeader {
        flags: 0,
        command: CMD_READ,
        cookie: number,
        offset: number * BLOCK,
        length: BLOCK as u32,
    };
    let requests: Vec<u8> = blocks.flat_map(|number| request(number).encode()).collect();
    client.send_raw(&requests).unwrap();
}

#[test]
fn every_answer_of_a_deep_queue_has_its_own_content() {
    let plane = filled();
    let mut client = plane.nbd("disk").unwrap();
    for round in 0..100 {
        // Different depths, so that batches for either thread follow each other on one connection.
        let depth = if round % 3 == 0 { 2 } else { DEPTH };
        let blocks = (0..depth).map(|at| (at * 37 + round * 101) % BLOCKS);
        ask(&mut client, blocks.clone());
        let mut left: Vec<u64> = blocks.collect();
        while !left.is_empty() {
            let reply = client.reply().unwrap();
            let number = reply.cookie;
            succeeded(reply).unwrap();
            let at = left.iter().position(|asked| *asked == number).expect("an answer to what was asked");
            left.swap_remove(at);
            assert!(client.data(BLOCK as usize).unwrap() == content(number), "block {number} has other content");
        }
    }
}

#[test]
fn who_asks_much_and_reads_nothing_disturbs_nobody() {
    let plane = filled();
    let mut mute = plane.nbd("disk").unwrap();
    ask(&mut mute, 0..DEPTH);
    let mut other = plane.nbd("disk").unwrap();
    for number in 0..BLOCKS {
        assert!(other.read(number * BLOCK, BLOCK as usize).unwrap() == content(number), "block {number}");
    }
    drop(mute);
    ask(&mut other, 0..DEPTH);
    for _ in 0..DEPTH {
        succeeded(other.reply().unwrap()).unwrap();
        other.data(BLOCK as usize).unwrap();
    }
}
