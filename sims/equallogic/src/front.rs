//! The array as all sessions share it: one command at a time, faults on request, events to everybody.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sim_target::faults::{Action, Faults};
use tokio::sync::{Notify, broadcast};

use crate::array::volume::Trouble;
use crate::array::{Account, Array, Event, Severity};
use crate::cli::{self, CliError, Reply, Request, View};
use crate::store::Store;

/// Events that a slow session may lag behind.
const EVENTS_KEPT: usize = 1024;
/// Lines of an event storm.
const STORM: usize = 200;

/// What becomes of the connection after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Answer,
    /// It ends without an answer.
    Cut,
    /// It ends in the middle of the answer.
    CutMidway,
    /// The answer never comes.
    Hang,
    /// The answer comes with a prompt that nobody waits for.
    WrongPrompt,
}

/// The outcome of a command.
pub struct Ran {
    pub result: Result<Reply, CliError>,
    pub after: After,
}

pub struct Front {
    /// Held while a command works; copies take their time.
    inside: Mutex<Inside>,
    /// What sessions ask for at every turn, as of the last change.
    desk: Mutex<Desk>,
    pub faults: Faults,
    events: broadcast::Sender<String>,
    pub sessions_max: usize,
    pub idle: Duration,
    sessions: AtomicUsize,
    event_number: AtomicUsize,
    /// Sockets of SSH connections, to be cut.
    wires: Mutex<Vec<Weak<TcpStream>>>,
    away: AtomicBool,
    /// Asks for a restart.
    pub restart: Notify,
}

struct Inside {
    array: Array,
    store: Store,
}

struct Desk {
    name: String,
    accounts: BTreeMap<String, Account>,
}

impl Desk {
    fn of(array: &Array) -> Desk {
        Desk { name: array.group.name.clone(), accounts: array.group.accounts.clone() }
    }
}

impl Front {
    pub fn new(array: Array, store: Store, faults: Faults, sessions_max: usize, idle: Duration) -> Front {
        Front {
            desk: Mutex::new(Desk::of(&array)),
            inside: Mutex::new(Inside { array, store }),
            faults,
            events: broadcast::Sender::new(EVENTS_KEPT),
            sessions_max,
            idle,
            sessions: AtomicUsize::new(0),
            event_number: AtomicUsize::new(0),
            wires: Mutex::default(),
            away: AtomicBool::new(false),
            restart: Notify::new(),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn events(&self) -> broadcast::Receiver<String> {
        self.events.subscribe()
    }

    /// Whether this account has this password.
    pub fn admits(&self, account: &str, password: &str) -> bool {
        let admitted = self.desk().accounts.get(account).is_some_and(|known| known.admits(password));
        let (severity, what) = match admitted {
            true => (Severity::Info, "succeeded"),
            false => (Severity::Warning, "failed"),
        };
        self.tell(Event { severity, text: format!("CLI: Login to account {account} {what}.") });
        if admitted {
            self.tell(Event { severity: Severity::Audit, text: format!("CLI: Account {account} logged in.") });
        }
        admitted
    }

    /// A connection began. False where the group is away.
    pub fn connected(&self, wire: &Arc<TcpStream>) -> bool {
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        wires.retain(|known| known.strong_count() > 0);
        wires.push(Arc::downgrade(wire));
        !self.away.load(Ordering::SeqCst)
    }

    /// Away: connections are cut, and new ones end at once.
    pub fn set_away(&self, away: bool) {
        let wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        self.away.store(away, Ordering::SeqCst);
        for wire in wires.iter().filter_map(Weak::upgrade).filter(|_| away) {
            // It may have ended by itself.
            let _ = wire.shutdown(Shutdown::Both);
        }
    }

    /// Whoever tries again at once finds nobody, however late the controller hears of it.
    pub fn request_restart(&self) {
        self.set_away(true);
        self.restart.notify_one();
    }

    /// One more session, unless there are too many.
    pub fn enter(self: &Arc<Self>) -> Option<Slot> {
        let full = self.faults.take("session") == Some(Action::Other("full".into()));
        let taken = self.sessions.try_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            (!full && count < self.sessions_max).then_some(count + 1)
        });
        taken.is_ok().then(|| Slot(Arc::clone(self)))
    }

    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::SeqCst)
    }

    pub fn view(&self, account: &str) -> View {
        let desk = self.desk();
        let settings = desk.accounts.get(account).map(|known| known.settings).unwrap_or_default();
        View { settings, prompt: desk.name.clone() }
    }

    /// Runs a command, with the fault that was asked for. May take its time: not for the event loop's thread.
    pub fn run(&self, account: &str, request: &Request) -> Ran {
        let action = self.faults.take(&request.name());
        let failed = |text: &str, after| Ran { result: Err(CliError::refused(text)), after };
        match action {
            Some(Action::FailBefore(text)) => return failed(&text, After::Answer),
            Some(Action::DropBefore) => return failed("", After::Cut),
            Some(Action::NoSpace) => return failed("Not enough free space in pool default.", After::Answer),
            Some(Action::DelayMs(time)) => std::thread::sleep(Duration::from_millis(time)),
            Some(Action::Other(ref what)) => self.trouble(what, request.arguments.first().map_or("", String::as_str)),
            _ => {}
        }
        let result = self.execute(account, request);
        match action {
            Some(Action::FailAfter(text)) => failed(&text, After::Answer),
            Some(Action::DropAfter) => Ran { result, after: After::Cut },
            Some(Action::Other(what)) if what == "restart" => {
                self.request_restart();
                Ran { result, after: After::Cut }
            }
            Some(Action::Other(what)) => Ran { result, after: after(&what) },
            _ => Ran { result, after: After::Answer },
        }
    }

    fn execute(&self, account: &str, request: &Request) -> Result<Reply, CliError> {
        let mut inside = self.inside();
        inside.array.now_ms = now_ms();
        let result = cli::run(&mut inside.array, account, request);
        if request.verb.changes {
            let text = format!("CLI: Account {account}: {}.", request.name());
            inside.array.event(Severity::Audit, text);
        }
        self.commit(&mut inside)?;
        result
    }

    fn commit(&self, inside: &mut Inside) -> Result<(), CliError> {
        let settled = inside.array.settle();
        *self.desk() = Desk::of(&inside.array);
        let saved = inside.store.save(&inside.array.group);
        let quiet = !inside.array.group.info_messages;
        for event in inside.array.take_events() {
            if !(quiet && event.severity == Severity::Info) {
                self.tell(event);
            }
        }
        settled?;
        saved.map_err(|error| CliError::refused(format!("Internal error: {error}")))
    }

    /// Measures space and lets the reserve policies act.
    pub fn tick(&self) {
        let mut inside = self.inside();
        inside.array.now_ms = now_ms();
        let measured = inside.array.tick().map_err(CliError::from);
        if let Err(error) = measured.and_then(|()| self.commit(&mut inside)) {
            tracing::warn!(error = error.text, "measuring the array failed");
        }
    }

    /// Trouble that befalls the volume a command names, just before it.
    fn trouble(&self, what: &str, volume: &str) {
        if what == "event-storm" {
            for number in 0..STORM {
                self.tell(Event {
                    severity: Severity::Warning,
                    text: format!("Fan tray speed warning number {number}."),
                });
            }
            return;
        }
        let mut inside = self.inside();
        let array = &mut inside.array;
        match what {
            "delete-oldest" => {
                let oldest = array.group.volume(volume).ok().and_then(|found| found.snapshots.first()).cloned();
                if let Some(snapshot) = oldest {
                    // As the array does it: sessions end first, and only an event tells.
                    let gone = array
                        .set_snapshot_online(volume, &snapshot.name, false)
                        .and_then(|()| array.delete_snapshot(volume, &snapshot.name));
                    debug_assert!(gone.is_ok());
                    array.event(
                        Severity::Warning,
                        format!("Snapshot '{}' was deleted to free snapshot reserve.", snapshot.name),
                    );
                }
            }
            "volume-offline" => {
                if let Ok(found) = array.group.volume_mut(volume) {
                    found.trouble = Some(Trouble::SnapReserveMet);
                }
            }
            _ => return,
        }
        if let Err(error) = self.commit(&mut inside) {
            tracing::warn!(error = error.text, "an arranged trouble failed");
        }
    }

    fn tell(&self, event: Event) {
        let number = self.event_number.fetch_add(1, Ordering::Relaxed);
        let (severity, source) = match event.severity {
            Severity::Info => ("INFO", "7.2.15"),
            Severity::Warning => ("WARNING", "8.3.7"),
            Severity::Error => ("ERROR", "8.4.2"),
            Severity::Audit => ("AUDIT", "22.7.0"),
        };
        let line =
            format!("{}:{number}:agent:{}.cc:{severity}:{source}:{}", 100 + number % 60, number % 997, event.text);
        // Without sessions nobody listens.
        let _ = self.events.send(line);
    }

    /// Works on the array itself, for tests that arrange what no command can.
    pub fn with_array<T>(&self, work: impl FnOnce(&mut Array) -> T) -> T {
        let mut inside = self.inside();
        let result = work(&mut inside.array);
        if let Err(error) = self.commit(&mut inside) {
            tracing::warn!(error = error.text, "settling the array failed");
        }
        result
    }
}

fn after(what: &str) -> After {
    match what {
        "cut-midway" => After::CutMidway,
        "hang" => After::Hang,
        "wrong-prompt" => After::WrongPrompt,
        _ => After::Answer,
    }
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// A place among the sessions, given back when dropped.
pub struct Slot(Arc<Front>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::SeqCst);
    }
}
