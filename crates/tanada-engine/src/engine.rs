//! The engine's face: events in, actions out.

use std::collections::VecDeque;

use tanada_disk::DiskResult;

use crate::api::{Action, Failure, IoId, Reply, Request, RequestId};
use crate::config::EngineConfig;

/// One open store.
pub struct Engine {
    actions: VecDeque<Action>,
}

impl Engine {
    /// Starts opening a store: emits device operations, ends with [`Action::Opened`].
    pub fn open(_config: EngineConfig, _now: u64) -> Engine {
        let mut actions = VecDeque::new();
        actions.push_back(Action::Opened(Err(not_yet())));
        Engine { actions }
    }

    /// Takes a request; its answer is an [`Action::Reply`], in this turn or a later one.
    pub fn submit(&mut self, _now: u64, id: RequestId, _request: Request) {
        let result: Result<Reply, Failure> = Err(not_yet());
        self.actions.push_back(Action::Reply { request: id, result });
    }

    /// Reports the end of a device operation.
    pub fn complete(&mut self, _now: u64, _io: IoId, _result: DiskResult) {}

    /// Moves everything on that the events since the last turn made possible.
    pub fn turn(&mut self, _now: u64) {}

    /// The next thing to do, if any.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Engine::turn`] must be called even if nothing arrives, in microseconds of the shell's clock.
    pub fn deadline(&self) -> Option<u64> {
        None
    }
}

fn not_yet() -> Failure {
    Failure { errno: 38, message: "the store's engine cannot open stores yet".to_owned() }
}
