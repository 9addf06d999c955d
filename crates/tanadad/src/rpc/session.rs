//! Sessions: who is calling.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};

use crate::db::{Db, View};

/// A session ends after this long without use.
pub const IDLE_SECONDS_MAX: i64 = 24 * 60 * 60;
/// `last_active` is shown to this precision, so that a busy client does not flood the state with changes.
const LAST_ACTIVE_STEP_SECONDS: i64 = 600;
/// Sessions of one user from one originator; the least recently used goes when there are more.
pub const SESSIONS_MAX: usize = 500;

/// What a session may do, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    ReadOnly,
    VmOperator,
    VmAdmin,
    VmPowerAdmin,
    PoolOperator,
    PoolAdmin,
}

impl Role {
    pub const ALL: [Role; 6] =
        [Role::PoolAdmin, Role::PoolOperator, Role::VmPowerAdmin, Role::VmAdmin, Role::VmOperator, Role::ReadOnly];

    pub const fn name(self) -> &'static str {
        match self {
            Role::ReadOnly => "read-only",
            Role::VmOperator => "vm-operator",
            Role::VmAdmin => "vm-admin",
            Role::VmPowerAdmin => "vm-power-admin",
            Role::PoolOperator => "pool-operator",
            Role::PoolAdmin => "pool-admin",
        }
    }
}

/// The caller of a call. Cheap to clone. Its reference is a secret while it is open, so it is not in what is printed of it.
#[derive(Clone)]
pub struct Session {
    id: Ref,
    user: Arc<str>,
    originator: Arc<str>,
    role: Role,
    local: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { id: _, user, originator, role, local } = self;
        let mut shown = f.debug_struct("Session");
        shown.field("user", user).field("originator", originator).field("role", role).field("local", local);
        shown.finish_non_exhaustive()
    }
}

impl Session {
    /// The daemon itself.
    pub fn internal() -> Session {
        Session { id: Ref::null(), user: "root".into(), originator: "".into(), role: Role::PoolAdmin, local: true }
    }

    /// Null for the daemon itself.
    pub fn id(&self) -> &Ref {
        &self.id
    }

    /// The name that was given at login.
    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn originator(&self) -> &str {
        &self.originator
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Opened through our unix socket, so by root of this machine.
    pub fn is_local(&self) -> bool {
        self.local
    }

    pub fn may(&self, least: Role) -> bool {
        self.role >= least
    }
}

#[derive(Debug)]
struct Entry {
    session: Session,
    last_used: i64,
    shown_active: i64,
}

/// The sessions that are open.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<Ref, Entry>>,
}

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ref, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session for a user whose identity has been proved.
    pub fn open(&self, db: &Db, user: &str, originator: &str, role: Role, local: bool) -> ApiResult<Session> {
        let now = DateTime::now();
        self.make_room(db, user, originator)?;
        let id = db.write(|tx| {
            let host = tx.all("host").first().map_or_else(Ref::null, |h| h.id().clone());
            let users = tx.all("user");
            let account = users.iter().find(|u| u.str("short_name") == user);
            let account = account.map_or_else(Ref::null, |u| u.id().clone());
            tx.create(
                "session",
                [
                    ("this_host", Value::from(host)),
                    ("this_user", Value::from(account)),
                    ("last_active", Value::DateTime(now)),
                    ("validation_time", Value::DateTime(now)),
                    ("pool", Value::Bool(false)),
                    ("is_local_superuser", Value::Bool(role == Role::PoolAdmin)),
                    ("auth_user_name", Value::from(user)),
                    ("originator", Value::from(originator)),
                ],
            )
        })?;
        let session = Session { id: id.clone(), user: user.into(), originator: originator.into(), role, local };
        let entry = Entry { session: session.clone(), last_used: now.unix(), shown_active: now.unix() };
        self.lock().insert(id, entry);
        Ok(session)
    }

    fn make_room(&self, db: &Db, user: &str, originator: &str) -> ApiResult<()> {
        let oldest = {
            let open = self.lock();
            let same: Vec<_> =
                open.values().filter(|e| &*e.session.user == user && &*e.session.originator == originator).collect();
            if same.len() < SESSIONS_MAX {
                return Ok(());
            }
            same.iter().min_by_key(|e| e.last_used).map(|e| e.session.id.clone())
        };
        oldest.map_or(Ok(()), |id| self.close(db, &id))
    }

    /// The session of that reference, marked as used. `SESSION_INVALID` when there is none.
    pub fn get(&self, db: &Db, id: &Ref) -> ApiResult<Session> {
        let now = DateTime::now().unix();
        let mut open = self.lock();
        let Some(entry) = open.get_mut(id) else { return Err(ApiError::session_invalid(id)) };
        if now - entry.last_used > IDLE_SECONDS_MAX {
            drop(open);
            self.close(db, id)?;
            return Err(ApiError::session_invalid(id));
        }
        entry.last_used = now;
        let show = now - entry.shown_active >= LAST_ACTIVE_STEP_SECONDS;
        if show {
            entry.shown_active = now;
        }
        let session = entry.session.clone();
        drop(open);
        if show {
            db.write(|tx| tx.set("session", id, "last_active", DateTime::from_unix(now)))?;
        }
        Ok(session)
    }

    pub fn is_open(&self, id: &Ref) -> bool {
        self.lock().contains_key(id)
    }

    /// Ends a session; whoever waits for events in it is woken by the change.
    pub fn close(&self, db: &Db, id: &Ref) -> ApiResult<()> {
        self.lock().remove(id);
        db.write(|tx| match tx.find("session", id) {
            Some(_) => tx.destroy("session", id),
            None => Ok(()),
        })
    }

    /// Ends the sessions that nobody used for long.
    pub fn expire(&self, db: &Db) -> ApiResult<()> {
        let now = DateTime::now().unix();
        let idle = |e: &&Entry| now - e.last_used > IDLE_SECONDS_MAX;
        let expired: Vec<Ref> = self.lock().values().filter(idle).map(|e| e.session.id.clone()).collect();
        expired.iter().try_for_each(|id| self.close(db, id))
    }
}

#[cfg(test)]
mod tests {
    use super::{Role, Session};

    #[test]
    fn what_is_printed_of_a_session_opens_nothing() {
        let session = Session { id: "OpaqueRef:secret".into(), role: Role::VmAdmin, ..Session::internal() };
        let shown = format!("{session:?}");
        assert!(shown.contains("VmAdmin") && !shown.contains("secret"), "{shown}");
    }
}
