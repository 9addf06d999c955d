//! The durable half: one SQLite file, write-ahead log, a sync per commit.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, params};
use tanada_xapi::{DateTime, Ref, Value, classes, json};

use super::RUNTIME_CLASSES;
use super::record::Record;
use super::relations::is_derived;
use super::tx::Changes;
use super::vault::Vault;

/// What was about to be done to storage or to a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    pub id: String,
    pub kind: String,
    pub body: serde_json::Value,
    pub created: DateTime,
}

/// Entry `n` brings a file from schema version `n` to `n + 1`. Never changed once released, only added to.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE objects (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        class TEXT NOT NULL,
        ref TEXT NOT NULL,
        uuid TEXT NOT NULL,
        json TEXT NOT NULL,
        UNIQUE (class, ref)
    ) STRICT;
    CREATE TABLE intents (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        json TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"];

/// Before the names of notes in the table `meta`.
const NOTE_PREFIX: &str = "note/";

pub(super) struct Sqlite {
    connection: Connection,
    vault: Vault,
}

/// The field whose text is sealed.
const SEALED: (&str, &str) = ("secret", "value");

/// Why a change could not be made durable.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    Seal(anyhow::Error),
}

impl Sqlite {
    pub fn open(path: &Path) -> anyhow::Result<Sqlite> {
        let vault = Vault::open(&path.with_file_name("secret.key"))?;
        let connection = Connection::open(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Sqlite::prepare(connection, vault)
    }

    pub fn in_memory() -> anyhow::Result<Sqlite> {
        Sqlite::prepare(Connection::open_in_memory()?, Vault::ephemeral()?)
    }

    fn prepare(mut connection: Connection, vault: Vault) -> anyhow::Result<Sqlite> {
        // We are the only writer; somebody looking in with sqlite3 may hold us up for a moment, not for long.
        connection.busy_timeout(std::time::Duration::from_millis(500))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > MIGRATIONS.len() {
            let known = MIGRATIONS.len();
            anyhow::bail!("the database has schema version {version}, this program knows versions up to {known}");
        }
        for (from, migration) in MIGRATIONS.iter().enumerate().skip(version) {
            let transaction = connection.transaction()?;
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", from + 1)?;
            transaction.commit()?;
        }
        Ok(Sqlite { connection, vault })
    }

    /// Every stored object, oldest first. Fields that the table no longer declares are dropped, new ones get their
    /// default, as does a value that no longer fits its type.
    pub fn load_objects(&self) -> anyhow::Result<Vec<Record>> {
        let mut statement = self.connection.prepare("SELECT class, ref, json FROM objects ORDER BY sequence")?;
        let mut rows = statement.query([])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            let (class, id, text): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let Some(class) = classes::class(&class) else {
                tracing::warn!(class, id, "an object of an unknown class was left out");
                continue;
            };
            let mut record = Record::new(class, Ref::from(id));
            let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)?;
            for (name, value) in fields.into_iter().filter(|(name, _)| class.field(name).is_some()) {
                let mut value = json::from_json(value);
                if let (true, Some(sealed)) = ((class.name, name.as_str()) == SEALED, value.as_str()) {
                    let opened = self.vault.unseal(sealed, record.id().as_str());
                    value = Value::from(opened.with_context(|| format!("the secret {}", record.id()))?);
                }
                if let Err(e) = record.put(&name, value) {
                    tracing::warn!(class = class.name, id = %record.id(), error = %e, "a stored field was reset");
                }
            }
            records.push(record);
        }
        Ok(records)
    }

    /// Makes the changes durable, all or none.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), CommitError> {
        let durable = |class: &str| !RUNTIME_CLASSES.contains(&class);
        let intents = !changes.intents_put.is_empty() || !changes.intents_cleared.is_empty();
        if !intents && changes.notes.is_empty() && !changes.objects.keys().any(|(class, _)| durable(class)) {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        // In order of creation, so that rows keep it.
        let mut objects: Vec<_> = changes.objects.iter().filter(|((class, _), _)| durable(class)).collect();
        objects.sort_by_key(|(_, change)| change.as_ref().map_or(0, |r| r.sequence));
        for ((class, id), change) in objects {
            match change {
                Some(record) => upsert(&transaction, &self.vault, record)?,
                None => {
                    let delete = "DELETE FROM objects WHERE class = ?1 AND ref = ?2";
                    transaction.prepare_cached(delete)?.execute(params![class, id.as_str()])?;
                }
            }
        }
        for intent in &changes.intents_put {
            let put = "INSERT INTO intents (id, kind, json, created) VALUES (?1, ?2, ?3, ?4)
                       ON CONFLICT (id) DO UPDATE SET kind = ?2, json = ?3";
            let values = params![intent.id, intent.kind, intent.body.to_string(), intent.created.unix()];
            transaction.prepare_cached(put)?.execute(values)?;
        }
        for id in &changes.intents_cleared {
            transaction.prepare_cached("DELETE FROM intents WHERE id = ?1")?.execute(params![id])?;
        }
        for (name, text) in &changes.notes {
            let name = format!("{NOTE_PREFIX}{name}");
            match text {
                Some(text) => {
                    let put =
                        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
                    transaction.prepare_cached(put)?.execute(params![name, text])?;
                }
                None => drop(transaction.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute(params![name])?),
            }
        }
        Ok(transaction.commit()?)
    }

    /// Every note by its name.
    pub fn load_notes(&self) -> rusqlite::Result<BTreeMap<String, String>> {
        let mut statement = self.connection.prepare("SELECT key, value FROM meta")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(rows.into_iter().filter_map(|(key, text)| Some((key.strip_prefix(NOTE_PREFIX)?.to_owned(), text))).collect())
    }

    pub fn intents(&self) -> rusqlite::Result<Vec<Intent>> {
        let query = "SELECT id, kind, json, created FROM intents ORDER BY sequence";
        let mut statement = self.connection.prepare(query)?;
        let rows = statement.query_map([], |row| {
            let text: String = row.get(2)?;
            let body = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
            Ok(Intent { id: row.get(0)?, kind: row.get(1)?, body, created: DateTime::from_unix(row.get(3)?) })
        })?;
        rows.collect()
    }
}

fn upsert(connection: &Connection, vault: &Vault, record: &Record) -> Result<(), CommitError> {
    let class = record.class();
    let fields = record.fields().filter(|(field, _)| !is_derived(class.name, field));
    let mut fields: serde_json::Map<_, _> =
        fields.map(|(name, value)| (name.to_owned(), json::to_json(value))).collect();
    if class.name == SEALED.0 {
        let sealed = vault.seal(record.str(SEALED.1), record.id().as_str()).map_err(CommitError::Seal)?;
        fields.insert(SEALED.1.to_owned(), sealed.into());
    }
    let uuid = if class.field("uuid").is_some() { record.uuid() } else { "" };
    let text = serde_json::Value::Object(fields).to_string();
    let put = "INSERT INTO objects (class, ref, uuid, json) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (class, ref) DO UPDATE SET uuid = ?3, json = ?4";
    connection.prepare_cached(put)?.execute(params![class.name, record.id().as_str(), uuid, text])?;
    Ok(())
}
