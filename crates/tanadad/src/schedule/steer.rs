//! A clock that is moved from outside, for tests and demonstrations: `tanada daemon --clock SOCKET`.
//!
//! A client writes lines and reads one line for each, when nothing that follows from it is under way any more:
//!
//! ```text
//! at 2027-03-28T02:00:00Z         jumps there; runs on the way are missed, as in downtime
//! through 2027-03-30T00:00:00Z    goes there by every moment at which something is to be done
//!
//! ok now=2027-03-30T00:00:00Z taken=2 failed=0 removed=1 missed=0 waiting=0
//! error ...
//! ```

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::ending;

/// Longest line that is read, in bytes.
const LINE_MAX: usize = 200;

/// Where the clock goes, and who waits for it to be there.
pub struct Order {
    pub to: Timestamp,
    /// By every moment on the way, not at once.
    pub through: bool,
    pub done: oneshot::Sender<Tally>,
}

/// What came of an order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub taken: u64,
    pub failed: u64,
    pub removed: u64,
    pub missed: u64,
    /// Machines that are due and have to wait.
    pub waiting: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { taken, failed, removed, missed, waiting } = self;
        write!(f, "taken={taken} failed={failed} removed={removed} missed={missed} waiting={waiting}")
    }
}

/// Opens the socket, for root alone, and passes on what comes in.
pub fn listen(socket: &Path, mut stopping: watch::Receiver<bool>) -> anyhow::Result<mpsc::Receiver<Order>> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let (orders, taken) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ending(&mut stopping) => return,
            };
            match accepted {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, orders.clone()))),
                Err(error) => tracing::warn!(%error, "a connection to the clock failed"),
            }
        }
    });
    Ok(taken)
}

async fn serve(stream: UnixStream, orders: mpsc::Sender<Order>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match carry_out(&line, &orders).await {
            Ok((now, tally)) => format!("ok now={now} {tally}\n"),
            Err(error) => format!("error {error}\n"),
        };
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn carry_out(line: &str, orders: &mpsc::Sender<Order>) -> Result<(Timestamp, Tally), String> {
    let (to, through) = parse(line)?;
    let (done, tally) = oneshot::channel();
    orders.send(Order { to, through, done }).await.map_err(|_| "the daemon is ending".to_owned())?;
    Ok((to, tally.await.map_err(|_| "the daemon is ending".to_owned())?))
}

fn parse(line: &str) -> Result<(Timestamp, bool), String> {
    let wrong = || format!("{line:?} is not understood; give `at` or `through` and a time as 2027-03-28T02:00:00Z");
    if line.len() > LINE_MAX {
        return Err("the line is too long".to_owned());
    }
    let (verb, time) = line.trim().split_once(' ').ok_or_else(wrong)?;
    let through = match verb {
        "at" => false,
        "through" => true,
        _ => return Err(wrong()),
    };
    let to: Timestamp = time.trim().parse().map_err(|_| wrong())?;
    Ok((Timestamp::from_second(to.as_second()).map_err(|_| wrong())?, through))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn orders_are_read() {
        assert_eq!(
            parse("at 2027-03-28T04:00:00+02:00").map(|(to, _)| to.to_string()),
            Ok("2027-03-28T02:00:00Z".into())
        );
        assert_eq!(parse("through 2027-03-28T02:00:00Z").map(|(_, through)| through), Ok(true));
        for wrong in ["", "at", "at noon", "until 2027-03-28T02:00:00Z", "at 2027-03-28"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
