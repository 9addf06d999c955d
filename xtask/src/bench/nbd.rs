//! A small NBD client of our own, for what fio cannot do: a counted number of writes without fio's start of a third of a
//! second, and the time of every single answer around a snapshot.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::stats::Random;

const BLOCK: u64 = 4096;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
/// Both sides leave out the zeros behind the export's size.
const NO_ZEROES: u32 = 2;
const FIXED_NEWSTYLE: u32 = 1;
const OPTION_EXPORT_NAME: u32 = 1;
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
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::with_capacity(16 * depth.max(64), stream);
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).context("NBD greeting")?;
        if greeting[..16] != *b"NBDMAGICIHAVEOPT" {
            bail!("{} speaks no NBD", socket.display());
        }
        let mut out = (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
        out.extend_from_slice(b"IHAVEOPT");
        out.extend_from_slice(&OPTION_EXPORT_NAME.to_be_bytes());
        out.extend_from_slice(&(export.len() as u32).to_be_bytes());
        out.extend_from_slice(export.as_bytes());
        stream.get_mut().write_all(&out)?;
        let mut info = [0; 10];
        stream.read_exact(&mut info).with_context(|| format!("the export '{export}' is refused"))?;
        let mut size = [0; 8];
        size.copy_from_slice(&info[..8]);
        let bytes = u64::from_be_bytes(size);
        let now = Instant::now();
        Ok(Writer { stream, bytes, random: Random::new(seed), sent: vec![now; depth], out: Vec::new(), next: 0 })
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
        self.request(WRITE, cookie as u64, offset, BLOCK as u32);
        let start = self.out.len();
        self.out.resize(start + BLOCK as usize, 0x5a);
        // No two blocks are alike, and none is zero.
        self.out[start..start + 8].copy_from_slice(&self.next.to_le_bytes());
        offset
    }

    fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        self.out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&0u16.to_be_bytes());
        self.out.extend_from_slice(&command.to_be_bytes());
        self.out.extend_from_slice(&cookie.to_be_bytes());
        self.out.extend_from_slice(&offset.to_be_bytes());
        self.out.extend_from_slice(&length.to_be_bytes());
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
        let word = |at: usize| u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        if word(0) != REPLY_MAGIC {
            bail!("an NBD answer begins with {:#x}", word(0));
        }
        if word(4) != 0 {
            bail!("a write was refused with errno {}", word(4));
        }
        let cookie = word(12) as usize;
        if cookie >= self.sent.len() {
            bail!("an NBD answer to request {cookie}, which was never sent");
        }
        Ok(cookie)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.out.clear();
        self.request(DISCONNECT, 0, 0, 0);
        // A server that is gone needs no goodbye.
        let _ = self.send();
    }
}
