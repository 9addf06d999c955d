//! The control client against a store server that goes away in the middle.

use std::path::Path;
use std::time::Duration;

use tanada_blockd_api::{Answer, Command, Envelope, Event, Failure, Greeting, Outcome, PROTOCOL_MAJOR, Response};
use tanada_driver::control::{ControlClient, ControlError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use uuid::Uuid;

/// One accepted connection, greeted.
struct Peer {
    stream: BufReader<UnixStream>,
}

impl Peer {
    async fn accept(listener: &UnixListener) -> Peer {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = Peer { stream: BufReader::new(stream) };
        let greeting = Greeting { protocol_major: PROTOCOL_MAJOR, store: Uuid::nil(), incarnation: 1, pid: 1 };
        peer.say(&serde_json::to_string(&greeting).unwrap()).await;
        peer
    }

    async fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Envelope {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn answer(&mut self, id: u64, outcome: Outcome) {
        self.say(&serde_json::to_string(&Response { id, outcome }).unwrap()).await;
    }
}

fn listen(path: &Path) -> UnixListener {
    drop(std::fs::remove_file(path));
    UnixListener::bind(path).unwrap()
}

#[tokio::test]
async fn a_call_that_a_restart_interrupts_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = listen(&socket);
    let client = ControlClient::start(socket, None);
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.call(Command::Checkpoint).await });
    let mut first = Peer::accept(&listener).await;
    let heard = first.hear().await;
    drop(first);
    let mut second = Peer::accept(&listener).await;
    let again = second.hear().await;
    assert_eq!((again.id, &again.command), (heard.id, &heard.command));
    second.answer(again.id, Outcome::Ok(Answer::Changed { changed: true })).await;
    assert_eq!(call.await.unwrap(), Ok(Answer::Changed { changed: true }));
}

#[tokio::test]
async fn answers_come_in_any_order_and_refusals_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = listen(&socket);
    let client = ControlClient::start(socket, None);
    let mut peer = Peer::accept(&listener).await;
    let (one, two) = (client.clone(), client.clone());
    let one = tokio::spawn(async move { one.call(Command::Checkpoint).await });
    let first = peer.hear().await;
    let two = tokio::spawn(async move { two.call(Command::Settle).await });
    let second = peer.hear().await;
    let failure = Failure { errno: 28, message: "no room".into() };
    peer.answer(second.id, Outcome::Error(failure.clone())).await;
    assert_eq!(two.await.unwrap(), Err(ControlError::Refused(failure)));
    peer.answer(first.id, Outcome::Ok(Answer::Changed { changed: false })).await;
    assert_eq!(one.await.unwrap(), Ok(Answer::Changed { changed: false }));
}

#[tokio::test]
async fn events_reach_those_who_listen() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = listen(&socket);
    let client = ControlClient::start(socket, None);
    let mut events = client.events();
    let mut peer = Peer::accept(&listener).await;
    let event = Event::NearlyFull { free: 1, physical: 2 };
    peer.say(&serde_json::to_string(&event).unwrap()).await;
    assert_eq!(events.recv().await.unwrap(), event);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_when_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let client = ControlClient::start(dir.path().join("nobody"), None);
    let ended = client.call_within(Command::List, Duration::from_millis(20)).await;
    assert!(matches!(ended, Err(ControlError::Deadline { .. })), "{ended:?}");
}

#[tokio::test]
async fn another_protocol_is_not_spoken_to() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = listen(&socket);
    let client = ControlClient::start(socket, None);
    let (mut stream, _) = listener.accept().await.unwrap();
    let greeting = Greeting { protocol_major: PROTOCOL_MAJOR + 1, store: Uuid::nil(), incarnation: 1, pid: 1 };
    let line = serde_json::to_string(&greeting).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    // The client turns away and tries again.
    drop(Peer::accept(&listener).await);
    assert!(client.greeted(Duration::from_secs(5)).await.unwrap().protocol_major == PROTOCOL_MAJOR);
}
