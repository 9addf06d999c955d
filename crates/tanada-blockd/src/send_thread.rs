//! A second thread that sends batches of small answers, so that the engine's thread goes on with the next requests.
//!
//! ```text
//!   engine's thread                                    "sender"
//!   SendThread::send --jobs, `sender_sleeps`? wake-->  ring of its own: send, wait
//!   SendThread::take_done <--done, `engine_waits`? wake--+
//! ```
//! Why: a send wakes its client, and the scheduler likes to put who is woken beside who woke him. With one thread a
//! client with many reads in flight and the engine share one processor while another one is idle; with two, the client
//! settles beside the sender. What it brings and where it does not is in docs/performance.md; [`is_worth_it`] says when.
//!
//! Invariants:
//! 1. A connection has one send under way at a time, here or in the engine's ring, so answers keep their order.
//! 2. The engine's thread keeps the descriptor open until the send is among those that [`SendThread::take_done`] gives.
//! 3. Nobody sleeps over work: each side says that it is about to wait, then looks once more; who brings work looks
//!    at that flag afterwards. (Both flags are sequentially consistent with the queues' locks.)

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::EventfdFlags;

use crate::outgoing::Outgoing;
use crate::ring::{Completion, Ring};

/// Batches below this are not worth the way to another thread: a client that has few requests in flight waits for them
/// (measured with 4 to 16 in flight, where a lower bound costs up to a third) ...
const BATCH_BYTES_MIN: usize = 96 << 10;
/// ... and neither are those with larger pieces: the copy is most of the work then, and the data is in this
/// processor's cache.
const PIECE_BYTES_MAX: usize = 8 << 10;

/// True where `outgoing` is better sent by the other thread.
pub(crate) fn is_worth_it(outgoing: &Outgoing) -> bool {
    let size = outgoing.size();
    size.total >= BATCH_BYTES_MIN && size.largest <= PIECE_BYTES_MAX
}

/// A batch to be sent.
struct Job {
    conn: u32,
    fd: RawFd,
    outgoing: Outgoing,
}

/// A batch that was sent, or could not be.
pub(crate) struct Done {
    pub(crate) conn: u32,
    pub(crate) result: io::Result<()>,
    pub(crate) outgoing: Outgoing,
}

struct Shared {
    jobs: Mutex<Vec<Job>>,
    sender_sleeps: AtomicBool,
    sender_wake: OwnedFd,
    done: Mutex<Vec<Done>>,
    engine_waits: AtomicBool,
    engine_wake: OwnedFd,
}

/// The engine's side.
pub(crate) struct SendThread(Arc<Shared>);

impl SendThread {
    pub(crate) fn start() -> io::Result<SendThread> {
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            sender_sleeps: AtomicBool::new(false),
            sender_wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
            done: Mutex::default(),
            engine_waits: AtomicBool::new(false),
            engine_wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
        });
        let own = Arc::clone(&shared);
        let work = move || {
            let Err(error) = own.work();
            // Answers would be lost without a word. The keeper starts another blockd, and clients ask it again.
            tracing::error!(%error, "the thread that sends answers has failed");
            std::process::abort();
        };
        thread::Builder::new().name("sender".to_owned()).spawn(work)?;
        Ok(SendThread(shared))
    }

    /// The eventfd that becomes readable when something is done while the engine waits.
    pub(crate) fn wake_fd(&self) -> RawFd {
        self.0.engine_wake.as_raw_fd()
    }

    pub(crate) fn send(&self, conn: u32, fd: RawFd, outgoing: Outgoing) {
        lock(&self.0.jobs).push(Job { conn, fd, outgoing });
        ring_bell(&self.0.sender_sleeps, &self.0.sender_wake);
    }

    /// What has ended since the last call.
    pub(crate) fn take_done(&self) -> Vec<Done> {
        self.0.engine_waits.store(false, Ordering::SeqCst);
        std::mem::take(&mut *lock(&self.0.done))
    }

    /// Says that the engine's thread is going to wait, until [`SendThread::take_done`]; false where it must not, because
    /// something is done already.
    pub(crate) fn may_wait(&self) -> bool {
        self.0.engine_waits.store(true, Ordering::SeqCst);
        lock(&self.0.done).is_empty()
    }
}

impl Shared {
    /// Sends for ever.
    fn work(&self) -> io::Result<std::convert::Infallible> {
        let mut ring = Ring::new(Duration::ZERO)?;
        ring.wake(self.sender_wake.as_raw_fd())?;
        let (mut completions, mut done) = (Vec::new(), Vec::new());
        loop {
            let jobs = std::mem::take(&mut *lock(&self.jobs));
            let is_idle = jobs.is_empty();
            for Job { conn, fd, outgoing } in jobs {
                ring.send(conn, fd, outgoing)?;
            }
            self.sender_sleeps.store(is_idle, Ordering::SeqCst);
            let may_sleep = is_idle && lock(&self.jobs).is_empty();
            ring.wait((!may_sleep).then_some(Duration::ZERO))?;
            self.sender_sleeps.store(false, Ordering::SeqCst);
            ring.reap(&mut completions)?;
            for completion in completions.drain(..) {
                match completion {
                    Completion::Sent { conn, result, outgoing } => done.push(Done { conn, result, outgoing }),
                    Completion::Woken { fd } => ring.wake(fd)?,
                    Completion::Accepted { .. } | Completion::Received { .. } | Completion::Disk { .. } => {}
                }
            }
            if !done.is_empty() {
                lock(&self.done).append(&mut done);
                ring_bell(&self.engine_waits, &self.engine_wake);
            }
        }
    }
}

/// Wakes the other side where it said that it waits.
fn ring_bell(waits: &AtomicBool, wake: &OwnedFd) {
    if waits.swap(false, Ordering::SeqCst) {
        // Fails only where the counter is about to overflow, and then it is readable anyway.
        let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
    }
}

/// A panic of the other side ends the process; the queues are whole at any time.
fn lock<T>(queue: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use tanada_disk::Buf;

    use super::{Done, SendThread, is_worth_it};
    use crate::outgoing::Outgoing;
    use crate::ring::{Completion, Ring};

    fn batch(pieces: usize, bytes: usize, fill: u8) -> Outgoing {
        let mut outgoing = Outgoing::default();
        for _ in 0..pieces {
            outgoing.heads().extend_from_slice(&[0; 16]);
            outgoing.push_data(Buf::copy_from(&vec![fill; bytes]));
        }
        outgoing
    }

    #[test]
    fn batches_of_small_answers_are_worth_it() {
        assert!(!is_worth_it(&batch(8, 4096, 1)), "few answers");
        assert!(is_worth_it(&batch(24, 4096, 1)));
        assert!(!is_worth_it(&batch(8, 128 << 10, 1)), "large pieces");
        assert!(!is_worth_it(&batch(0, 0, 1)));
    }

    /// Who sleeps longer than this was not woken.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Waits as the engine's thread does.
    fn wait_for_one(ring: &mut Ring, thread: &SendThread) -> Vec<Done> {
        let began = Instant::now();
        loop {
            let timeout = if thread.may_wait() { PATIENCE } else { Duration::ZERO };
            ring.wait(Some(timeout)).unwrap();
            assert!(began.elapsed() < PATIENCE, "nobody woke the engine's thread");
            let mut completions = Vec::new();
            ring.reap(&mut completions).unwrap();
            if completions.iter().any(|completion| matches!(completion, Completion::Woken { .. })) {
                ring.wake(thread.wake_fd()).unwrap();
            }
            let done = thread.take_done();
            if !done.is_empty() {
                return done;
            }
        }
    }

    #[test]
    fn everything_arrives_in_order_and_nobody_sleeps_over_it() {
        const ROUNDS: usize = 2000;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all)
        });
        let (thread, mut ring) = (SendThread::start().unwrap(), Ring::new(Duration::ZERO).unwrap());
        ring.wake(thread.wake_fd()).unwrap();
        for round in 0..ROUNDS {
            thread.send(7, ours.as_raw_fd(), batch(2, 4096, round as u8));
            let done = wait_for_one(&mut ring, &thread);
            assert!(done.len() == 1 && done[0].conn == 7 && done[0].result.is_ok());
        }
        drop(ours);
        let all = client.join().unwrap().unwrap();
        let expected: Vec<u8> = (0..ROUNDS).flat_map(|round| [round as u8; 2]).collect();
        let arrived: Vec<u8> = all.chunks_exact(16 + 4096).map(|answer| answer[16]).collect();
        assert_eq!((all.len(), arrived), (ROUNDS * 2 * (16 + 4096), expected));
    }

    #[test]
    fn who_does_not_read_keeps_nobody_waiting() {
        let (stuck, _unread) = UnixStream::pair().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (thread, mut ring) = (SendThread::start().unwrap(), Ring::new(Duration::ZERO).unwrap());
        ring.wake(thread.wake_fd()).unwrap();
        thread.send(1, stuck.as_raw_fd(), batch(256, 4096, 1));
        thread.send(2, ours.as_raw_fd(), batch(2, 4096, 2));
        let done = wait_for_one(&mut ring, &thread);
        assert_eq!(done.iter().map(|done| done.conn).collect::<Vec<_>>(), [2]);
        theirs.read_exact(&mut [0; 2 * (16 + 4096)]).unwrap();
        stuck.shutdown(std::net::Shutdown::Both).unwrap();
        let done = wait_for_one(&mut ring, &thread);
        assert!(done[0].conn == 1 && done[0].result.is_err(), "cut off in the middle");
    }
}
