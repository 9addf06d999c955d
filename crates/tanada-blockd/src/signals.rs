//! Signals as something to wait for, never as handlers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Signals that are blocked in this thread, and in all threads that it starts from here on.
pub(crate) struct Signals {
    fd: OwnedFd,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    Signal(i32),
    /// The other descriptor is readable, or its far end is closed.
    Readable,
    Timeout,
}

impl Signals {
    pub(crate) fn block(signals: &[i32]) -> io::Result<Signals> {
        // SAFETY: a signal set is plain memory, initialised by sigemptyset before anything else.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a valid signal set of this function; the calls touch nothing else.
        let result = unsafe {
            libc::sigemptyset(&mut set);
            for &signal in signals {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
        };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: the set is valid; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Waits for one of the signals, for `other` to become readable, or for `timeout` to pass.
    pub(crate) fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<Wake> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
            fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(Wake::Timeout),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !fds[0].revents().is_empty() {
                // A signalfd_siginfo has 128 bytes and begins with the number of the signal.
                let mut info = [0u8; 128];
                match rustix::io::read(&self.fd, &mut info) {
                    Ok(_) => return Ok(Wake::Signal(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(Wake::Readable);
        }
    }
}
