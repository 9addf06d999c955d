//! Commands of the control plane: most pass straight to the engine, a few need the shell.

use std::collections::btree_map::Entry as Place;

use tanada_blockd_api::{Answer, Command, CutPair, GROUP_MAX, ScrubReport};
use tanada_engine::{Control, Failure, Reply, Request};
use tanada_units::BLOCK_BYTES;
use uuid::Uuid;

use super::attachments::{Entry, EntryState, Opened, TOKEN_BYTES_MAX};
use super::cut::CutWatch;
use super::{Pending, Shell, Stage};
use crate::control::Ticket;
use crate::translate;

/// A command at the engine.
pub(super) enum CommandPending {
    /// Its answer needs nothing but translation.
    Plain {
        ticket: Ticket,
    },
    /// `watch` is the number of its watch in `Shell::cuts`.
    Cut {
        ticket: Ticket,
        watch: u32,
    },
    Resize {
        ticket: Ticket,
        volume: Uuid,
        size: u64,
    },
    Attach {
        ticket: Ticket,
        token: String,
    },
    Detach {
        ticket: Ticket,
    },
    /// `before` is what the book said before it was asked for.
    ScrubStart {
        ticket: Ticket,
        before: Box<ScrubReport>,
    },
    /// Asked how the scrub stands.
    Scrub {
        ticket: Ticket,
    },
    ScrubStop {
        ticket: Ticket,
    },
    /// Asked how the scrub stands that was stopped just now.
    ScrubStopped {
        ticket: Ticket,
        changed: bool,
    },
}

impl Shell {
    pub(super) fn command(&mut self, ticket: Ticket, command: Command) {
        if self.stage != Stage::Serving {
            return ticket.refuse(libc::ESHUTDOWN, "blockd is ending; ask again when it is back");
        }
        let control = match command {
            Command::CreateVolume { volume, size } => Control::CreateVolume { id: volume, size },
            Command::Destroy { target } => Control::Destroy { id: target },
            Command::Clone { source, volume } => Control::Clone { source, volume },
            Command::Revert { volume, generation } => Control::Revert { volume, generation },
            Command::Difference { from, to, offset, extents_max } => {
                Control::Difference { from, to, offset, extents_max }
            }
            Command::Usage { target } => Control::Stat { id: target },
            Command::List => Control::List,
            Command::StoreStat => Control::StoreStat,
            Command::Settle => Control::Settle,
            Command::Checkpoint => Control::Checkpoint,
            Command::GrowStore { size } => {
                if let Err(error) = self.store.grow(size) {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    return ticket.refuse(errno, format!("grow the store to {size} bytes: {error}"));
                }
                Control::GrowStore { size }
            }
            Command::Resize { volume, size } => {
                let pending = CommandPending::Resize { ticket, volume, size };
                return self.ask(Pending::Command(pending), Request::Control(Control::Resize { id: volume, size }));
            }
            Command::ScrubStart { rate, anew } => return self.scrub_start(ticket, rate, anew),
            Command::ScrubStop => {
                let pending = Pending::Command(CommandPending::ScrubStop { ticket });
                return self.ask(pending, Request::Control(Control::ScrubStop));
            }
            Command::ScrubStatus => {
                let pending = CommandPending::Scrub { ticket };
                return self.ask(Pending::Command(pending), Request::Control(Control::ScrubStatus));
            }
            Command::Snapshot { group } => return self.snapshot(ticket, group),
            Command::Attach { token, target, writable } => return self.attach(ticket, token, target, writable),
            Command::Detach { token } => return self.detach(ticket, token),
            Command::Attachments => {
                return ticket.answer(Ok(Answer::Attachments { attachments: self.attachments.list() }));
            }
        };
        self.ask(Pending::Command(CommandPending::Plain { ticket }), Request::Control(control));
    }

    fn snapshot(&mut self, ticket: Ticket, group: Vec<CutPair>) {
        if group.len() > GROUP_MAX {
            let message = format!("a group of {} volumes, at most {GROUP_MAX} can be cut together", group.len());
            return ticket.refuse(libc::EINVAL, message);
        }
        let entries = self.attachments.entries.values();
        let exports = entries
            .filter(|entry| entry.writable && group.iter().any(|pair| pair.volume == entry.target))
            .filter_map(|entry| match entry.state {
                EntryState::Open(opened) | EntryState::Closing { opened, .. } => Some(opened.export),
                EntryState::Opening => None,
            })
            .collect();
        let watch = self.cuts.insert(CutWatch::start(self.now, exports));
        let group = group.into_iter().map(|pair| (pair.volume, pair.generation)).collect();
        let pending = Pending::Command(CommandPending::Cut { ticket, watch });
        self.ask(pending, Request::Control(Control::Snapshot { group }));
    }

    fn attach(&mut self, ticket: Ticket, token: String, target: Uuid, writable: bool) {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            let message = format!("a token of {} bytes; 1 to {TOKEN_BYTES_MAX} are accepted", token.len());
            return ticket.refuse(libc::EINVAL, message);
        }
        if let Some(entry) = self.attachments.entries.get(&token) {
            let is_same = entry.target == target && entry.writable == writable;
            return match &entry.state {
                EntryState::Open(_) if is_same => ticket.answer(Ok(Answer::Changed { changed: false })),
                EntryState::Open(_) => {
                    let other = entry.target;
                    ticket.refuse(libc::EEXIST, format!("the token leads to {other} (writable: {})", entry.writable))
                }
                EntryState::Opening | EntryState::Closing { .. } => {
                    ticket.refuse(libc::EBUSY, "the token is being attached or detached")
                }
            };
        }
        if writable && self.attachments.has_writer(target) {
            return ticket.refuse(libc::EBUSY, format!("{target} is attached for writing under another token"));
        }
        let entry = Entry { target, writable, state: EntryState::Opening, connections: 0 };
        self.attachments.entries.insert(token.clone(), entry);
        let pending = Pending::Command(CommandPending::Attach { ticket, token });
        self.ask(pending, Request::Control(Control::Open { id: target, writable }));
    }

    fn detach(&mut self, ticket: Ticket, token: String) {
        let entry = match self.attachments.entries.entry(token) {
            Place::Vacant(_) => return ticket.answer(Ok(Answer::Changed { changed: false })),
            Place::Occupied(entry) => entry,
        };
        let EntryState::Open(opened) = entry.get().state else {
            return ticket.refuse(libc::EBUSY, "the token is being attached or detached");
        };
        let token = entry.key().clone();
        let entry = entry.into_mut();
        entry.state = EntryState::Closing { opened, ticket };
        if entry.connections == 0 {
            return self.close_attachment(token);
        }
        let numbers: Vec<u32> = self.conns.iter().filter(|(_, conn)| conn.token == token).map(|(at, _)| at).collect();
        for number in numbers {
            if let Some(conn) = self.conns.get_mut(number) {
                conn.cut();
            }
            self.touch(number);
        }
    }

    pub(super) fn command_answered(&mut self, pending: CommandPending, result: Result<Reply, Failure>) {
        let (pending, reply) = match (pending, result) {
            (pending, Err(failure)) => return self.command_failed(pending, failure),
            (pending, Ok(reply)) => (pending, reply),
        };
        match (pending, reply) {
            (CommandPending::Plain { ticket }, reply) => ticket.answer(translate::answer(reply)),
            (CommandPending::Cut { ticket, watch }, Reply::Cut { changed, .. }) => {
                self.cut_ended(ticket, watch, changed)
            }
            (CommandPending::Resize { ticket, volume, size }, reply) => {
                self.resized(volume, size.next_multiple_of(BLOCK_BYTES));
                ticket.answer(translate::answer(reply));
            }
            (CommandPending::Attach { ticket, token }, Reply::Opened { export, size, .. }) => {
                if let Some(entry) = self.attachments.entries.get_mut(&token) {
                    entry.state = EntryState::Open(Opened { export, size });
                }
                self.saver.save(self.attachments.table(), Some(ticket), Answer::Changed { changed: true });
            }
            (CommandPending::Detach { ticket }, _) => {
                self.saver.save(self.attachments.table(), Some(ticket), Answer::Changed { changed: true });
            }
            (CommandPending::ScrubStart { ticket, before }, Reply::Changed { changed }) => {
                self.scrub_started(ticket, *before, Ok(changed));
            }
            (CommandPending::Scrub { ticket }, Reply::Scrub(status)) => self.scrub_asked(*status, ticket),
            (CommandPending::ScrubStop { ticket }, Reply::Changed { changed }) => self.scrub_stopped(ticket, changed),
            (CommandPending::ScrubStopped { ticket, changed }, Reply::Scrub(status)) => {
                self.scrub_seen(*status, Some((ticket, Answer::Changed { changed })));
            }
            (pending, reply) => {
                let message = format!("the engine answered {reply:?}, which fits no such command");
                self.command_failed(pending, Failure { errno: libc::EIO, message });
            }
        }
    }

    fn command_failed(&mut self, pending: CommandPending, failure: Failure) {
        let ticket = match pending {
            CommandPending::Attach { ticket, token } => {
                self.attachments.entries.remove(&token);
                ticket
            }
            CommandPending::Cut { ticket, watch } => {
                self.cuts.remove(watch);
                ticket
            }
            CommandPending::ScrubStart { ticket, before } => {
                return self.scrub_started(ticket, *before, Err(failure));
            }
            CommandPending::Plain { ticket }
            | CommandPending::Scrub { ticket }
            | CommandPending::ScrubStop { ticket }
            | CommandPending::ScrubStopped { ticket, .. }
            | CommandPending::Resize { ticket, .. }
            | CommandPending::Detach { ticket } => ticket,
        };
        ticket.answer(Err(translate::failure(failure)));
    }

    fn cut_ended(&mut self, ticket: Ticket, number: u32, changed: bool) {
        let Some(watch) = self.cuts.get_mut(number) else { return ticket.refuse(libc::EIO, "internal error") };
        let under_way = self
            .requests
            .iter()
            .filter_map(|(_, pending)| match pending {
                Pending::Guest(pending) => pending.write_on(watch.exports()),
                _ => None,
            })
            .collect();
        if watch.cut_ended(self.now, changed, ticket, under_way) {
            self.answer_cut(number);
        }
    }

    pub(super) fn answer_cut(&mut self, number: u32) {
        if let Some(watch) = self.cuts.remove(number) {
            watch.answer(self.now);
        }
    }

    /// Clients see a new size when they connect again; what they may address changes at once.
    fn resized(&mut self, volume: Uuid, bytes: u64) {
        for (token, entry) in &mut self.attachments.entries {
            if entry.target != volume {
                continue;
            }
            if let EntryState::Open(opened) = &mut entry.state {
                opened.size = bytes;
            }
            for (_, conn) in self.conns.iter_mut().filter(|(_, conn)| conn.token == *token) {
                conn.session.set_size(bytes);
            }
        }
    }
}
