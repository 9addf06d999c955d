//! A bound on messages to administrators: schedules and storage leave some every day, and nobody clears them all.

use std::cmp::Reverse;

use tanada_xapi::ApiResult;

use crate::db::{Db, View};

/// Messages that are kept.
pub const MESSAGES_MAX: usize = 10_000;
/// So many go at once, so that not every new one costs a search.
const ROOM: usize = MESSAGES_MAX / 20;

/// Removes what is beyond the bound: the least urgent first, of those the oldest.
pub fn bound(db: &Db) -> ApiResult<()> {
    if db.read(|state| state.count("message")) <= MESSAGES_MAX {
        return Ok(());
    }
    db.write(|tx| {
        let mut all = tx.all("message");
        let surplus = (all.len() + ROOM).saturating_sub(MESSAGES_MAX);
        // In order of creation already, and the sort is stable.
        all.sort_by_key(|message| Reverse(message.int("priority")));
        all.iter().take(surplus).try_for_each(|message| tx.destroy("message", message.id()))
    })
}

#[cfg(test)]
mod tests {
    use tanada_xapi::Value;

    use super::{MESSAGES_MAX, ROOM, bound};
    use crate::db::{Db, View};
    use crate::ops::records::message;

    #[test]
    fn the_least_urgent_and_oldest_go() {
        let db = Db::in_memory().unwrap();
        let made = db.write(|tx| {
            message(tx, "URGENT", 1, "SR", "", "the very first")?;
            (0..MESSAGES_MAX).try_for_each(|number| message(tx, "USUAL", 5, "VM", "", &number.to_string()).map(drop))
        });
        made.unwrap();
        bound(&db).unwrap();
        let left = db.read(|state| state.all("message"));
        assert_eq!(left.len(), MESSAGES_MAX - ROOM);
        assert_eq!((left[0].str("name"), left[1].value("body")), ("URGENT", &Value::from((ROOM + 1).to_string())));
        bound(&db).unwrap();
        assert_eq!(db.read(|state| state.count("message")), left.len());
    }
}
