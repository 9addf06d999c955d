//! The guard itself. Its standard input is the door: a stream socket whose other end the daemon holds.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tanada_qemu::QemuError;
use tanada_qemu::agent::GuestAgent;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::thawing::{self, FLAG_LIMIT};
use super::{Ask, BEAT, Failure, Said, Thawed, Why};

/// A daemon that hangs lets the door fill up with beats.
const SAY_LIMIT: Duration = Duration::from_secs(1);

/// The program: `quiesce-guard --agent SOCKET`, its door on standard input.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let socket = match args.as_slice() {
        [option, socket] if option == "--agent" => PathBuf::from(socket),
        _ => {
            eprintln!("usage: tanada quiesce-guard --agent SOCKET, with a socket of the daemon as standard input");
            return ExitCode::from(2);
        }
    };
    // Signals to the daemon's group or terminal are not for us.
    if let Err(error) = rustix::process::setsid() {
        eprintln!("tanada quiesce-guard: no session of its own: {error}");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tanada quiesce-guard: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&socket)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tanada quiesce-guard: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the daemon says, as lines.
struct Ear {
    lines: BufReader<OwnedReadHalf>,
    terminate: Signal,
}

/// What the daemon is told.
struct Mouth(OwnedWriteHalf);

fn door_on_standard_input() -> io::Result<(Ear, Mouth)> {
    let descriptor = io::stdin().as_fd().try_clone_to_owned()?;
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    let (read, answers) = UnixStream::from_std(stream)?.into_split();
    Ok((Ear { lines: BufReader::new(read), terminate: signal(SignalKind::terminate())? }, Mouth(answers)))
}

impl Ear {
    /// The next request; `None` when the daemon is gone, says what cannot be understood, or we are told to end.
    /// May be dropped while it waits: a line that was begun is only thrown away where the door closes anyway.
    async fn ask(&mut self) -> Option<Ask> {
        let mut line = String::new();
        tokio::select! {
            read = self.lines.read_line(&mut line) => match read {
                Ok(length) if length > 0 => serde_json::from_str(&line).ok(),
                _ => None,
            },
            _ = self.terminate.recv() => None,
        }
    }
}

impl Mouth {
    /// A daemon that is gone, or does not read, hears nothing; that is no reason to stop.
    async fn say(&mut self, said: &Said) {
        let line = serde_json::to_string(said).unwrap_or_default() + "\n";
        match timeout(SAY_LIMIT, self.0.write_all(line.as_bytes())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("tanada quiesce-guard: the daemon does not listen: {error}"),
            Err(_) => eprintln!("tanada quiesce-guard: the daemon does not listen"),
        }
    }

    /// Does the work, and says every now and then that it is being done.
    async fn beating<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            self.beat();
            if let Ok(done) = timeout(BEAT, &mut work).await {
                return done;
            }
        }
    }

    /// Never waits: a daemon that hangs does not read, and the guest is to be thawed all the same.
    fn beat(&self) {
        let line = serde_json::to_string(&Said::Alive).unwrap_or_default() + "\n";
        // Gone, or full of beats that nobody read.
        let _ = self.0.try_write(line.as_bytes());
    }
}

async fn run(socket: &Path) -> io::Result<()> {
    let (mut ear, mut mouth) = door_on_standard_input()?;
    let Some(Ask::Freeze { limit, window, thaw }) = mouth.beating(ear.ask()).await else { return Ok(()) };
    let [limit, window, thaw] = [limit, window, thaw].map(Duration::from_millis);
    let agent = GuestAgent::new(socket);
    let began = Instant::now();
    let freezing = async {
        tokio::select! {
            frozen = agent.freeze(limit) => Some(frozen),
            // Whatever is said now means that the freeze is not wanted any more. It may be queued in the guest.
            _ = ear.ask() => None,
        }
    };
    match mouth.beating(freezing).await {
        Some(Ok(count)) => {
            let since = Instant::now();
            mouth.say(&Said::Frozen { count, asked_us: micros(began.elapsed()) }).await;
            hold(&mut ear, &mut mouth, &agent, since, window, thaw).await;
        }
        Some(Err(error)) => {
            let (failure, words) = told(error);
            mouth.say(&Said::NotFrozen { failure, words }).await;
            mouth.beating(thawing::until_thawed(&agent, thaw)).await;
        }
        None => {
            mouth.beating(thawing::until_thawed(&agent, thaw)).await;
        }
    }
    Ok(())
}

/// The guest is frozen. Ends when it is not.
async fn hold(ear: &mut Ear, mouth: &mut Mouth, agent: &GuestAgent, since: Instant, window: Duration, thaw: Duration) {
    let holding = async {
        tokio::select! {
            ask = ear.ask() => if ask == Some(Ask::Thaw) { Why::Asked } else { Why::Abandoned },
            () = sleep(window.saturating_sub(since.elapsed())) => Why::Deadline,
        }
    };
    let why = mouth.beating(holding).await;
    let after_us = micros(since.elapsed());
    // The flag is only asked for when somebody is there to judge by it.
    let flag = match why {
        Why::Asked => mouth.beating(agent.is_frozen(FLAG_LIMIT)).await.ok(),
        Why::Deadline | Why::Abandoned => None,
    };
    let (answer, confirmed) = mouth.beating(thawing::once(agent, thaw)).await;
    let lasted_us = micros(since.elapsed());
    mouth.say(&Said::Thawed(Thawed { why, after_us, lasted_us, flag, answer, confirmed })).await;
    if !confirmed {
        mouth.beating(thawing::until_thawed(agent, thaw)).await;
    }
}

fn told(error: QemuError) -> (Failure, String) {
    match error {
        QemuError::Refused { message, .. } => (Failure::Refused, message),
        QemuError::Deadline { .. } => (Failure::Deadline, error.to_string()),
        error => (Failure::Absent, error.to_string()),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
