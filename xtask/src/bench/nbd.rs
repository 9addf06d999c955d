//! A small NBD client of our own, for what fio cannot do: a counted number of writes without fio's start of a third of a
//! second, and the time of every single answer around a snapshot.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use tanada_nbd::plain;
use tanada_nbd::proto::{CMD_DISC, CMD_WRITE, RequestHeader, SimpleReply};

use crate::random::Random;

const BLOCK: u64 = 4096;
/// A server that answers nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Random 4 KiB writes to one export, several in flight.
#[derive(Debug)]
pub struct Writer {
    stream: BufReader<UnixStream>,
    bytes: u64,
    random: Random,
    /// When each write in flight was sent, by its cookie.
    sent: Vec<Instant>,
    /// Requests put together, sent in one piece.
    out: Vec<u8>,
    next: u64,
}

/// One write: when it was sent and when it was answered.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    pub sent: Instant,
    pub answered: Instant,
}

impl Writer {
    /// Connects; `depth` writes will be in flight.
    pub fn connect(socket: &Path, export: &str, depth: usize, seed: u64) -> Result<Writer> {
        let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let bytes = plain::enter(&mut stream, export).with_context(|| format!("entering the export '{export}'"))?;
        // Nothing is read ahead before this: a server says no more until it is asked.
        let stream = BufReader::with_capacity(16 * depth.max(64), stream);
        let now = Instant::now();
        Ok(Writer { stream, bytes, random: Random(seed), sent: vec![now; depth], out: Vec::new(), next: 0 })
    }

    /// So many writes (at least as many as fit in flight), all answered when it returns.
    pub fn overwrite(&mut self, count: u64) -> Result<()> {
        self.overwrite_seen(count, &mut |_| {})
    }

    /// The same; `seen` is told the offset of each.
    pub fn overwrite_seen(&mut self, count: u64, seen: &mut dyn FnMut(u64)) -> Result<()> {
        // What is in flight already when the last answer but these comes need not be followed by anything.
        let mut left = count.saturating_sub(self.sent.len() as u64);
        self.keep_busy(
            &mut |_| {
                let more = left > 0;
                left = left.saturating_sub(1);
                more
            },
            seen,
        )
    }

    /// Writes until `stop` is set; every write with its times.
    pub fn write_until(&mut self, stop: &AtomicBool) -> Result<Vec<Timed>> {
        let mut all = Vec::with_capacity(1 << 20);
        let mut more = |timed| {
            all.push(timed);
            !stop.load(Ordering::Relaxed)
        };
        self.keep_busy(&mut more, &mut |_| {})?;
        Ok(all)
    }

    /// Keeps all writes in flight until `more` says no, then waits for the rest. `more` sees every answer, `seen` the offset
    /// of every request.
    fn keep_busy(&mut self, more: &mut dyn FnMut(Timed) -> bool, seen: &mut dyn FnMut(u64)) -> Result<()> {
        let depth = self.sent.len();
        for cookie in 0..depth {
            seen(self.prepare(cookie));
        }
        self.send()?;
        let (mut in_flight, mut goes_on) = (depth, true);
        while in_flight > 0 {
            let cookie = self.answer()?;
            in_flight -= 1;
            goes_on &= more(Timed { sent: self.sent[cookie], answered: Instant::now() });
            if goes_on {
                seen(self.prepare(cookie));
                in_flight += 1;
            }
            // What the server answered together is followed by requests sent together.
            if self.stream.buffer().len() < 16 {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Puts one more write behind those to send; its offset.
    fn prepare(&mut self, cookie: usize) -> u64 {
        self.next += 1;
        self.sent[cookie] = Instant::now();
        let offset = self.random.below(self.bytes / BLOCK) * BLOCK;
        self.request(CMD_WRITE, cookie as u64, offset, BLOCK as u32);
        let start = self.out.len();
        self.out.resize(start + BLOCK as usize, 0x5a);
        // No two blocks are alike, and none is zero.
        self.out[start..start + 8].copy_from_slice(&self.next.to_le_bytes());
        offset
    }

    fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        self.out.extend_from_slice(&RequestHeader { flags: 0, command, cookie, offset, length }.encode());
    }

    fn send(&mut self) -> Result<()> {
        if !self.out.is_empty() {
            self.stream.get_mut().write_all(&self.out).context("sending NBD requests")?;
            self.out.clear();
        }
        Ok(())
    }

    /// The cookie of the next answer.
    fn answer(&mut self) -> Result<usize> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).context("waiting for an NBD answer")?;
        let SimpleReply { error, cookie } = SimpleReply::decode(&reply)?;
        if error != 0 {
            bail!("a write was refused with errno {error}");
        }
        let cookie = cookie as usize;
        if cookie >= self.sent.len() {
            bail!("an NBD answer to request {cookie}, which was never sent");
        }
        Ok(cookie)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.out.clear();
        self.request(CMD_DISC, 0, 0, 0);
        // A server that is gone needs no goodbye.
        let _ = self.send();
    }
}
