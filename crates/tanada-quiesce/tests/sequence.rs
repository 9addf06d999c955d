//! The sequence in this process, with a real guard: what is not tried, and what is left alone.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{AMPLE, Agent, State};
use tanada_qemu::agent::GuestAgent;
use tanada_quiesce::guard::client::{Ledger, Limits};
use tanada_quiesce::guard::thawing::{End, until_thawed};
use tanada_quiesce::probe::probe;
use tanada_quiesce::sequence::{Outcome, Request, run};
use tanada_quiesce::verdict::Evidence;
use tanada_quiesce::{Cause, Settings};
use tokio::net::UnixStream;

/// Debts made and paid; none can be made where it is broken.
#[derive(Default)]
struct Book {
    broken: bool,
    owed: AtomicUsize,
    paid: AtomicUsize,
}

impl Ledger for Book {
    fn owe(&self) -> Result<(), String> {
        if self.broken {
            return Err("the disk is full".into());
        }
        self.owed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn paid(&self) {
        self.paid.fetch_add(1, Ordering::SeqCst);
    }
}

/// What is asked for; the rest is as usual.
struct Ask<'a> {
    program: &'a str,
    expected: Duration,
    insist: bool,
    book: Arc<Book>,
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Ask {
            program: env!("CARGO_BIN_EXE_quiesce-rig"),
            expected: Duration::ZERO,
            insist: false,
            book: Arc::default(),
        }
    }
}

async fn play(agent: &Agent, ask: Ask<'_>) -> Outcome<&'static str> {
    play_with(&GuestAgent::new(&agent.socket), ask).await
}

async fn play_with(client: &GuestAgent, ask: Ask<'_>) -> Outcome<&'static str> {
    play_cut(client, ask, async { "cut" }).await
}

async fn play_cut<T>(client: &GuestAgent, ask: Ask<'_>, cut: impl Future<Output = T>) -> Outcome<T> {
    let probe = probe(client).await.unwrap();
    let request = Request {
        program: Path::new(ask.program),
        agent: client,
        probe: &probe,
        settings: &Settings::default(),
        limits: Limits { freeze: AMPLE, window: Duration::from_secs(8), thaw: AMPLE },
        expected: ask.expected,
        insist: ask.insist,
    };
    let ledger: Arc<dyn Ledger> = ask.book;
    run(&request, &ledger, cut).await
}

fn cause(outcome: &Outcome<&str>) -> Option<Cause> {
    match &outcome.evidence {
        Evidence::NotFrozen(downgrade) => downgrade.cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_storage_that_is_too_slow_is_not_frozen_for() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State::default());
    let slow = Duration::from_millis(7001);
    let outcome = play(&agent, Ask { expected: slow, ..Ask::default() }).await;
    assert_eq!((cause(&outcome), outcome.cut), (Some(Cause::StorageTooSlow), Some("cut")));
    // Who insists gets no cut either.
    let outcome = play(&agent, Ask { expected: slow, insist: true, ..Ask::default() }).await;
    assert_eq!((cause(&outcome), outcome.cut), (Some(Cause::StorageTooSlow), None));
    assert_eq!(agent.counts(), (0, 0));
    // What just fits is tried.
    let outcome = play(&agent, Ask { expected: Duration::from_secs(7), ..Ask::default() }).await;
    assert!(matches!(outcome.evidence, Evidence::Frozen { .. }), "{outcome:?}");
    assert_eq!((agent.counts(), agent.state().frozen), ((1, 1), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_frozen_without_a_guard_or_without_the_debt_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State::default());
    let outcome = play(&agent, Ask { program: "/nowhere/guard", ..Ask::default() }).await;
    assert_eq!(cause(&outcome), Some(Cause::GuardFailed));
    // A program that is no guard ends at once, after the debt was made: it is paid by a thaw.
    let book = Arc::new(Book::default());
    let outcome = play(&agent, Ask { program: "/bin/true", book: book.clone(), ..Ask::default() }).await;
    assert_eq!(cause(&outcome), Some(Cause::GuardFailed));
    agent.wait("thawed", |state| state.log.iter().any(|name| name == "fsfreeze-thaw"));
    let broken = Arc::new(Book { broken: true, ..Book::default() });
    let outcome = play(&agent, Ask { book: broken, ..Ask::default() }).await;
    assert_eq!(cause(&outcome), Some(Cause::GuardFailed));
    assert_eq!((agent.counts().0, book.owed.load(Ordering::SeqCst)), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_has_gone_mad_is_ended() {
    let frozen = r#"{"frozen":{"count":2,"asked_us":1}}"#;
    let thawed =
        r#"{"thawed":{"why":"asked","after_us":1,"lasted_us":2,"flag":true,"answer":{"count":2},"confirmed":true}}"#;
    let lines = |words: &[&str]| words.iter().map(|line| format!("{line}\n")).collect::<String>();
    // What it says before it hangs, and whether it was taken for frozen.
    for (said, is_frozen) in [
        (lines(&["what?"]), false),
        (lines(&[thawed]), false),
        (lines(&[frozen, frozen]), true),
        (lines(&[frozen, "what?"]), true),
        // It has done its part, and the port comes back all the same.
        (lines(&["\"alive\"", frozen, thawed]), true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("guard"), &said).unwrap();
        let agent = Agent::start(dir.path(), State::default());
        let book = Arc::new(Book::default());
        let client = GuestAgent::new(&agent.socket);
        let outcome = play_with(&client, Ask { book: book.clone(), ..Ask::default() }).await;
        if is_frozen {
            assert!(matches!(outcome.evidence, Evidence::Frozen { .. }), "{said}: {outcome:?}");
        } else {
            assert_eq!(cause(&outcome), Some(Cause::GuardFailed), "{said}");
        }
        // The port is lent until the task has ended and the debt is paid.
        client.ping(AMPLE).await.unwrap();
        assert_eq!((book.owed.load(Ordering::SeqCst), book.paid.load(Ordering::SeqCst)), (1, 1), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_leaves_a_thawed_guest() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State::default());
    let client = GuestAgent::new(&agent.socket);
    let book = Arc::new(Book::default());
    {
        let playing = play_cut(&client, Ask { book: book.clone(), ..Ask::default() }, std::future::pending::<()>());
        let frozen = async {
            while agent.state().frozen == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            outcome = playing => panic!("{outcome:?}"),
            () = frozen => {}
        }
    }
    client.ping(AMPLE).await.unwrap();
    assert_eq!((agent.counts(), agent.state().frozen), ((1, 1), 0));
    assert_eq!(book.paid.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_hangs_in_its_freeze_is_waited_for_no_longer_than_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State { hold_freeze: true, ..State::default() });
    let client = GuestAgent::new(&agent.socket);
    let probe = probe(&client).await.unwrap();
    let book = Arc::new(Book::default());
    let request = Request {
        program: Path::new(env!("CARGO_BIN_EXE_quiesce-rig")),
        agent: &client,
        probe: &probe,
        settings: &Settings::default(),
        limits: Limits { freeze: Duration::from_secs(1), window: AMPLE, thaw: AMPLE },
        expected: Duration::ZERO,
        insist: true,
    };
    let ledger: Arc<dyn Ledger> = book.clone();
    let outcome = run(&request, &ledger, async { "cut" }).await;
    assert_eq!((cause(&outcome), outcome.cut), (Some(Cause::FreezeTimeout), None));
    // It freezes after all: the debt stands until it has thawed.
    assert_eq!(book.paid.load(Ordering::SeqCst), 0);
    agent.change(|state| state.hold_freeze = false);
    agent.wait("thawed", |state| state.frozen == 0 && state.log.iter().any(|name| name == "fsfreeze-thaw"));
    client.ping(AMPLE).await.unwrap();
    assert_eq!(book.paid.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_turns_us_away_is_not_a_machine_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State { frozen: 2, ..State::default() });
    // One client that says nothing, and as many behind it as may wait.
    let mut others = vec![UnixStream::connect(&agent.socket).await.unwrap()];
    agent.wait("a client", |state| state.clients == 1);
    while let Ok(other) = UnixStream::connect(&agent.socket).await {
        others.push(other);
    }
    let socket = agent.socket.clone();
    let thawing = tokio::spawn(async move { until_thawed(&GuestAgent::new(&socket), AMPLE).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(others);
    assert_eq!(thawing.await.unwrap(), End::Thawed);
    assert_eq!(agent.state().frozen, 0);
    // A machine that has ended leaves a socket that nobody listens on, or none.
    assert_eq!(until_thawed(&GuestAgent::new(&dir.path().join("gone.sock")), AMPLE).await, End::Gone);
}
