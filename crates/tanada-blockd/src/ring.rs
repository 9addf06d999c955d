//! The one room for io_uring: operations go in with the memory they need and come out with it when they have ended.
//!
//! ```text
//!   accept / receive / send / disk / wake --> Flight (owns fd numbers, buffers, iovecs) --> submission queue
//!                                                    |
//!   Completion (gives the buffers back) <-- reap() <-+  short transfers go round again
//! ```
//! Invariants:
//! 1. Memory that the kernel may touch belongs to a [`Flight`] in `flights` from submission to completion; a flight lies
//!    in a box and is not looked at meanwhile.
//! 2. File descriptors are borrowed: whoever asks keeps them open until the completion is there.
//! 3. Every operation leads to exactly one completion.
//!
//! It does not order anything, knows no protocol and no time but the timeout of [`Ring::wait`].

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use tanada_disk::{Buf, BufMut, BufPool, DiskError, DiskOp, DiskResult};
use tanada_engine::IoId;

use crate::outgoing::Outgoing;
use crate::slab::Slab;

/// Submissions gathered before the kernel is entered, and completions it may hold back.
const SUBMISSIONS_MAX: u32 = 1024;
const COMPLETIONS_MAX: u32 = 8192;
/// The kernel's limit of vectors in one call (UIO_MAXIOV).
const VECTORS_MAX: usize = 1024;
/// A sync is done by the thread itself only where the last one took no longer.
const SYNC_HERE_MAX: Duration = Duration::from_micros(500);
/// IORING_ENTER_GETEVENTS: run what has ended, so that its completions are seen.
const ENTER_GETEVENTS: u32 = 1;

/// A payload on its way from a socket into its final memory.
pub(crate) struct Payload {
    pub(crate) buf: BufMut,
    /// Bytes that are there.
    pub(crate) filled: usize,
}

impl Payload {
    pub(crate) fn missing(&self) -> usize {
        self.buf.len() - self.filled
    }
}

/// What an operation led to. `conn` is what was given with it.
pub(crate) enum Completion {
    Accepted {
        result: io::Result<RawFd>,
    },
    /// Bytes went first into the payload (whose `filled` has moved), then into the buffer; `result` counts the latter,
    /// and tells whether anything came at all.
    Received {
        conn: u32,
        result: io::Result<Received>,
        payload: Option<Payload>,
        buffer: Vec<u8>,
    },
    Sent {
        conn: u32,
        result: io::Result<()>,
        outgoing: Outgoing,
    },
    Disk {
        io: IoId,
        result: DiskResult,
    },
    /// The eventfd given to [`Ring::wake`] was written to.
    Woken {
        fd: RawFd,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Bytes that came into the buffer.
    pub(crate) buffered: usize,
    /// The peer will send nothing any more.
    pub(crate) is_end: bool,
}

enum Kind {
    Accept,
    Receive { conn: u32, payload: Option<Payload>, buffer: Vec<u8> },
    Send { conn: u32, outgoing: Outgoing },
    Disk { io: IoId, op: DiskOp, buffer: Option<BufMut> },
    Wake { count: u64 },
}

struct Flight {
    kind: Kind,
    fd: RawFd,
    vectors: Vec<libc::iovec>,
    /// Vectors before this one are done with.
    at: usize,
    /// Bytes done and still to do (transfers only).
    done: u64,
    left: u64,
    header: libc::msghdr,
    /// When a sync was asked for.
    begun: Option<Instant>,
}

pub(crate) struct Ring {
    ring: IoUring,
    // The boxes keep flights in place while the slab grows.
    #[allow(clippy::vec_box)]
    flights: Slab<Box<Flight>>,
    ended: Vec<(u64, i32)>,
    /// Store operations in flight.
    at_store: usize,
    /// Before sleeping, completions of the store are looked for so long.
    spin: Duration,
    /// What ended without the kernel's ring.
    ready: Vec<Completion>,
    /// How long the last sync of the store took.
    last_sync: Option<Duration>,
}

impl Ring {
    /// Must be called by the thread that uses the ring. `spin`: how long to look for completions of the store before
    /// sleeping; it saves wake-ups and costs processor time.
    pub(crate) fn new(spin: Duration) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS_MAX).setup_single_issuer().setup_defer_taskrun();
        let ring = builder.build(SUBMISSIONS_MAX).or_else(|error| {
            // Kernels before 6.1 know neither flag.
            tracing::info!(%error, "io_uring without deferred task work");
            IoUring::builder().setup_cqsize(COMPLETIONS_MAX).build(SUBMISSIONS_MAX)
        })?;
        Ok(Ring {
            ring,
            flights: Slab::new(),
            ended: Vec::new(),
            at_store: 0,
            spin,
            ready: Vec::new(),
            last_sync: None,
        })
    }

    pub(crate) fn accept(&mut self, fd: RawFd) -> io::Result<()> {
        self.launch(Kind::Accept, fd)
    }

    /// Gives up waiting for clients: they stay in the backlog for whoever listens next.
    pub(crate) fn cancel_accept(&mut self) -> io::Result<()> {
        let number =
            self.flights.iter().find(|(_, flight)| matches!(flight.kind, Kind::Accept)).map(|(number, _)| number);
        let Some(number) = number else { return Ok(()) };
        // Its own end is of no interest; no flight has this number.
        let entry = opcode::AsyncCancel::new(number.into()).build().user_data(u64::from(u32::MAX));
        self.push(&entry)
    }

    /// Receives what is missing of `payload`, then into `buffer` from `from` on; at least one byte.
    pub(crate) fn receive(
        &mut self,
        conn: u32,
        fd: RawFd,
        payload: Option<Payload>,
        buffer: Vec<u8>,
        from: usize,
    ) -> io::Result<()> {
        let mut flight = Flight::new(Kind::Receive { conn, payload, buffer }, fd);
        let Flight { kind: Kind::Receive { payload, buffer, .. }, vectors, .. } = &mut *flight else { unreachable!() };
        if let Some(payload) = payload {
            vectors.push(vector_mut(&mut payload.buf.as_mut_slice()[payload.filled..]));
        }
        vectors.push(vector_mut(&mut buffer[from..]));
        self.start(flight)
    }

    pub(crate) fn send(&mut self, conn: u32, fd: RawFd, outgoing: Outgoing) -> io::Result<()> {
        let mut flight = Flight::new(Kind::Send { conn, outgoing }, fd);
        let Flight { kind: Kind::Send { outgoing, .. }, vectors, left, .. } = &mut *flight else { unreachable!() };
        outgoing.pieces(|piece| {
            vectors.push(vector(piece));
            *left += piece.len() as u64;
        });
        self.start(flight)
    }

    /// Carries out `op`, which is not `Grow`. Buffers for reads come from `pool`.
    pub(crate) fn disk(&mut self, io: IoId, fd: RawFd, op: DiskOp, pool: &mut BufPool) -> io::Result<()> {
        let buffer = match &op {
            DiskOp::Read { length, .. } => Some(pool.take(*length as usize)),
            _ => None,
        };
        let mut flight = Flight::new(Kind::Disk { io, op, buffer }, fd);
        let Flight { kind: Kind::Disk { op, buffer, .. }, vectors, left, .. } = &mut *flight else { unreachable!() };
        match (op, buffer) {
            (DiskOp::Read { length, .. }, Some(buffer)) => {
                vectors.push(vector_mut(buffer.as_mut_slice()));
                *left = u64::from(*length);
            }
            (DiskOp::Write { parts, .. }, _) => {
                vectors.extend(parts.iter().map(|part| vector(part)));
                *left = parts.iter().map(|part| part.len() as u64).sum();
            }
            _ => {}
        }
        self.start(flight)
    }

    /// True where a sync is better done by the calling thread: the kernel would hand it to a thread of its own, and the way there and
    /// back costs half as much again as a quick device needs. Whoever else asks meanwhile waits for so long; so nothing else may be under
    /// way, and the device must have been quick the last time.
    pub(crate) fn may_sync_here(&self) -> bool {
        self.at_store == 0 && self.last_sync.is_some_and(|last| last <= SYNC_HERE_MAX)
    }

    /// Syncs the store, before it returns; the completion comes with the next ones.
    pub(crate) fn sync_here(&mut self, io: IoId, fd: RawFd) -> io::Result<()> {
        // Clients read their answers meanwhile. What cannot go now goes with the next wait.
        match self.ring.submit() {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => return Err(error),
        }
        let begun = Instant::now();
        let result = loop {
            // SAFETY: the caller keeps the descriptor open.
            if unsafe { libc::fdatasync(fd) } == 0 {
                break Ok(None);
            }
            match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                // As in the kernel's ring: a signal is no failure of the medium, which would be final.
                libc::EINTR => {}
                errno => break Err(DiskError { errno }),
            }
        };
        self.last_sync = Some(begun.elapsed());
        self.ready.push(Completion::Disk { io, result });
        Ok(())
    }

    /// Waits for an eventfd.
    pub(crate) fn wake(&mut self, fd: RawFd) -> io::Result<()> {
        self.launch(Kind::Wake { count: 0 }, fd)
    }

    /// Submits everything and waits until something has ended, at most `timeout`.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = if self.ready.is_empty() { timeout } else { Some(Duration::ZERO) };
        if self.at_store > 0 && !self.spin.is_zero() && self.look_busily()? {
            return Ok(());
        }
        let result = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let time = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Time is up, a signal came, or the kernel wants completions to be taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Submits everything and looks for completions without sleeping; true where there is one.
    fn look_busily(&mut self) -> io::Result<bool> {
        let until = Instant::now() + self.spin;
        loop {
            let pending = self.ring.submission().len() as u32;
            // SAFETY: no argument is passed; what is submitted was pushed under the invariants above.
            let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, 0, ENTER_GETEVENTS, None) };
            match entered.map_err(|error| error.raw_os_error()) {
                Ok(_) | Err(Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(errno) => return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO))),
            }
            if !self.ring.completion().is_empty() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    /// Takes everything that has ended since the last call.
    pub(crate) fn reap(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.ready);
        let mut ended = std::mem::take(&mut self.ended);
        ended.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (number, result) in ended.drain(..) {
            let Some(flight) = self.flights.remove(number as u32) else { continue };
            self.at_store -= usize::from(flight.is_at_store());
            if let Some(completion) = self.end(flight, result)? {
                completions.push(completion);
            }
        }
        self.ended = ended;
        Ok(())
    }

    fn launch(&mut self, kind: Kind, fd: RawFd) -> io::Result<()> {
        self.start(Flight::new(kind, fd))
    }

    fn start(&mut self, flight: Box<Flight>) -> io::Result<()> {
        self.at_store += usize::from(flight.is_at_store());
        let number = self.flights.insert(flight);
        let Some(flight) = self.flights.get_mut(number) else { unreachable!() };
        let entry = flight.entry().user_data(u64::from(number));
        self.push(&entry)
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        loop {
            // SAFETY: all memory the entry points to belongs to its flight, which stays in its box in `flights` until
            // the completion is taken (invariant 1); the descriptor is kept open by the caller (invariant 2).
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            // Full: hand over what is there. EBUSY means that completions must be taken first, which makes room.
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    let taken = self.ring.completion().map(|entry| (entry.user_data(), entry.result()));
                    self.ended.extend(taken);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Decides whether a flight has come to its end or goes on.
    fn end(&mut self, mut flight: Box<Flight>, result: i32) -> io::Result<Option<Completion>> {
        let is_interrupted = matches!(-result, libc::EINTR | libc::EAGAIN);
        if is_interrupted || (result > 0 && flight.is_transfer() && flight.advance(result as u64)) {
            self.start(flight)?;
            return Ok(None);
        }
        let outcome = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
        Ok(Some(match flight.kind {
            Kind::Accept => Completion::Accepted { result: outcome },
            Kind::Wake { .. } => Completion::Woken { fd: flight.fd },
            Kind::Receive { conn, mut payload, buffer } => {
                let result = outcome.map(|count| {
                    let mut buffered = count as usize;
                    if let Some(payload) = &mut payload {
                        let taken = payload.missing().min(buffered);
                        payload.filled += taken;
                        buffered -= taken;
                    }
                    Received { buffered, is_end: count == 0 }
                });
                Completion::Received { conn, result, payload, buffer }
            }
            Kind::Send { conn, outgoing } => {
                let result = outcome.and_then(|_| match flight.left {
                    0 => Ok(()),
                    _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
                });
                Completion::Sent { conn, result, outgoing }
            }
            Kind::Disk { io, op, buffer } => {
                if let (DiskOp::Sync, Some(begun)) = (&op, flight.begun) {
                    self.last_sync = Some(begun.elapsed());
                }
                Completion::Disk { io, result: disk_result(&op, buffer, result, flight.left) }
            }
        }))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write into the memory of what is in flight: let it have that memory for good.
        std::mem::forget(std::mem::replace(&mut self.flights, Slab::new()));
    }
}

impl Flight {
    fn new(kind: Kind, fd: RawFd) -> Box<Flight> {
        // SAFETY: a message header of zeros is valid: null pointers with zero lengths.
        let header = unsafe { std::mem::zeroed() };
        let is_sync = matches!(kind, Kind::Disk { op: DiskOp::Sync, .. });
        let begun = is_sync.then(Instant::now);
        Box::new(Flight { kind, fd, vectors: Vec::new(), at: 0, done: 0, left: 0, header, begun })
    }

    fn is_at_store(&self) -> bool {
        matches!(self.kind, Kind::Disk { .. })
    }

    /// True where a short count means that the rest is still to be transferred.
    fn is_transfer(&self) -> bool {
        match &self.kind {
            Kind::Send { .. } => true,
            Kind::Disk { op, .. } => matches!(op, DiskOp::Read { .. } | DiskOp::Write { .. }),
            _ => false,
        }
    }

    /// Accounts for `count` bytes; true where some are left.
    fn advance(&mut self, count: u64) -> bool {
        self.done += count;
        self.left = self.left.saturating_sub(count);
        let mut count = count as usize;
        while count > 0 && self.at < self.vectors.len() {
            let vector = &mut self.vectors[self.at];
            let taken = vector.iov_len.min(count);
            vector.iov_base = vector.iov_base.wrapping_byte_add(taken);
            vector.iov_len -= taken;
            count -= taken;
            if vector.iov_len == 0 {
                self.at += 1;
            }
        }
        self.left > 0
    }

    fn entry(&mut self) -> Entry {
        let fd = Fd(self.fd);
        let vectors_end = self.vectors.len().min(self.at + VECTORS_MAX);
        let vectors = &mut self.vectors[self.at..vectors_end];
        let (first, count) = (vectors.as_mut_ptr(), vectors.len());
        match &mut self.kind {
            Kind::Accept => {
                opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build()
            }
            Kind::Wake { count } => opcode::Read::new(fd, (&raw mut *count).cast(), size_of::<u64>() as u32).build(),
            Kind::Receive { .. } => {
                self.header.msg_iov = first;
                self.header.msg_iovlen = count;
                opcode::RecvMsg::new(fd, &raw mut self.header).build()
            }
            Kind::Send { .. } => {
                self.header.msg_iov = first;
                self.header.msg_iovlen = count;
                let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
                opcode::SendMsg::new(fd, &raw const self.header).flags(flags).build()
            }
            Kind::Disk { op, .. } => match op {
                DiskOp::Read { at, .. } => {
                    // One buffer, and a short read has left the rest of it in the only vector.
                    let (base, length) =
                        vectors.first().map_or((std::ptr::null_mut(), 0), |rest| (rest.iov_base, rest.iov_len));
                    opcode::Read::new(fd, base.cast(), length as u32).offset(*at + self.done).build()
                }
                DiskOp::Write { at, .. } => {
                    opcode::Writev::new(fd, first, count as u32).offset(*at + self.done).build()
                }
                DiskOp::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
                DiskOp::Punch { at, length } => opcode::Fallocate::new(fd, *length)
                    .offset(*at)
                    .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                    .build(),
                // Growing is not an operation of the ring; the caller has done it.
                DiskOp::Grow { .. } => opcode::Nop::new().build(),
            },
        }
    }
}

fn disk_result(op: &DiskOp, buffer: Option<BufMut>, result: i32, left: u64) -> DiskResult {
    if result < 0 {
        return Err(DiskError { errno: -result });
    }
    match op {
        // Nothing more came although something was missing: the file ends there.
        DiskOp::Read { .. } | DiskOp::Write { .. } if left > 0 => Err(DiskError::EIO),
        DiskOp::Read { .. } => Ok(buffer.map(BufMut::freeze)),
        _ => Ok(None::<Buf>),
    }
}

fn vector_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// For the kernel to read from only.
fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use tanada_disk::{BufPool, DiskOp};
    use tanada_engine::IoId;

    use super::{Completion, Ring};

    fn reaped(ring: &mut Ring) -> Vec<(IoId, bool)> {
        let mut completions = Vec::new();
        ring.wait(Some(Duration::from_secs(60))).unwrap();
        ring.reap(&mut completions).unwrap();
        let ended = |completion| match completion {
            Completion::Disk { io, result } => (io, result.is_ok()),
            _ => panic!("only the store was asked"),
        };
        completions.into_iter().map(ended).collect()
    }

    #[test]
    fn a_sync_is_done_here_only_where_nothing_is_under_way_and_the_last_one_was_quick() {
        let (file, mut pool) = (tempfile::tempfile().unwrap(), BufPool::new(0));
        let mut ring = Ring::new(Duration::ZERO).unwrap();
        assert!(!ring.may_sync_here(), "nobody knows how long it takes");
        ring.disk(IoId(1), file.as_raw_fd(), DiskOp::Sync, &mut pool).unwrap();
        assert!(!ring.may_sync_here(), "one is under way");
        assert_eq!(reaped(&mut ring), [(IoId(1), true)]);
        ring.last_sync = Some(Duration::from_micros(50));
        assert!(ring.may_sync_here());
        ring.sync_here(IoId(2), file.as_raw_fd()).unwrap();
        assert_eq!(reaped(&mut ring), [(IoId(2), true)]);
        ring.last_sync = Some(Duration::from_millis(20));
        assert!(!ring.may_sync_here(), "a slow device");
    }

    #[test]
    fn a_sync_that_fails_here_is_told_like_any_other() {
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ring = Ring::new(Duration::ZERO).unwrap();
        ring.sync_here(IoId(3), end.as_raw_fd()).unwrap();
        assert_eq!(reaped(&mut ring), [(IoId(3), false)], "sockets cannot be synced");
    }
}
