//! The agent's channel: one client at a time, a queue of what it sent, and bytes that answer nothing.
//!
//! A request is a line. A byte 0xFF in it clears the parser: what stood before it is given up (and complained about).

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::Shared;
use crate::guest::Reply;
use crate::scenario::Port;

const DELIMITER: u8 = 0xFF;
/// A client that sends a longer line is cut off.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Requests that wait; the channel of a real guest holds far fewer.
const QUEUE_MAX: usize = 1024;
/// A client that does not read loses its reply rather than stopping the guest.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// What the agent's parser makes of the bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    /// Bytes that are no request.
    Junk,
    Command(Value),
}

/// Requests in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Request>);

impl Queue {
    pub fn pop(&mut self) -> Option<Request> {
        self.0.pop_front()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn push(&mut self, request: Request) {
        if self.0.len() < QUEUE_MAX {
            self.0.push_back(request);
        }
    }
}

/// Takes clients one after another until the listener is shut down. The next one waits in the backlog, as at QEMU.
pub(crate) fn serve(listener: &UnixListener, shared: &Shared) {
    while let Ok((stream, _)) = listener.accept() {
        {
            let mut state = shared.lock();
            if state.is_over {
                return;
            }
            state.client = stream.try_clone().ok();
            state.clients += 1;
        }
        shared.notify();
        read(stream, shared);
        let mut state = shared.lock();
        state.client_gone();
        if state.is_over {
            return;
        }
        drop(state);
        shared.notify();
    }
}

/// Queues what one client sends, until it goes.
fn read(mut stream: UnixStream, shared: &Shared) {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        received.extend_from_slice(&chunk[..count]);
        let mut state = shared.lock();
        while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            let rest = received.split_off(end + 1);
            requests(&received[..end]).into_iter().for_each(|request| state.queue.push(request));
            received = rest;
        }
        drop(state);
        shared.notify();
        if received.len() > LINE_BYTES_MAX {
            return;
        }
    }
}

/// The requests of one line.
fn requests(line: &[u8]) -> Vec<Request> {
    let start = line.iter().rposition(|byte| *byte == DELIMITER);
    let text = &line[start.map_or(0, |at| at + 1)..];
    let mut found = Vec::new();
    if start.is_some() {
        found.push(Request::Junk);
    }
    match serde_json::from_slice::<Value>(text) {
        Ok(value) if value.is_object() => found.push(Request::Command(value)),
        _ if text.iter().all(u8::is_ascii_whitespace) => {}
        _ => found.push(Request::Junk),
    }
    found
}

/// What the agent says about bytes that are no request.
pub(crate) fn complaint() -> Vec<u8> {
    let error = json!({ "error": { "class": "GenericError", "desc": "JSON parse error, stray '\u{fffd}'" } });
    format!("{error}\n").into_bytes()
}

/// A reply as it goes over the wire.
pub(crate) fn reply_bytes(port: &Port, command: &Value, name: &str, reply: Reply) -> Vec<u8> {
    let mut envelope = match reply {
        Ok(value) => json!({ "return": value }),
        Err(refusal) => json!({ "error": refusal.to_json() }),
    };
    if let (Some(id), true) = (command.get("id"), port.echoes_id) {
        envelope["id"] = id.clone();
    }
    let mut bytes = Vec::new();
    if name.starts_with("guest-sync") {
        port.junk.iter().for_each(|line| bytes.extend_from_slice(format!("{line}\n").as_bytes()));
    }
    if name == "guest-sync-delimited" {
        bytes.push(DELIMITER);
    }
    bytes.extend_from_slice(format!("{envelope}\n").as_bytes());
    bytes
}

/// Sends; whoever has gone misses it.
pub(crate) fn send(mut client: &UnixStream, bytes: &[u8]) {
    if client.set_write_timeout(Some(SEND_LIMIT)).is_ok() {
        let _ = client.write_all(bytes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Request, requests};

    #[test]
    fn a_delimiter_clears_what_stood_before_it() {
        let ping = Request::Command(json!({ "execute": "guest-ping" }));
        assert_eq!(requests(b"{\"execute\":\xFF{\"execute\":\"guest-ping\"}"), [Request::Junk, ping.clone()]);
        assert_eq!(requests(b"{\"execute\":\"guest-ping\"}"), [ping]);
        assert_eq!(requests(b"\xFF"), [Request::Junk]);
        assert_eq!(requests(b"what?"), [Request::Junk]);
        assert_eq!(requests(b" \r"), []);
    }
}
