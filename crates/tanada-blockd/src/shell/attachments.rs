//! Which export names lead where. The table outlives the process, so that clients can come back before anyone else does.
//!
//! ```text
//!   attach: (token) Opening --engine opened--> Open --saved--> answered
//!   detach: Open --> Closing (connections are cut) --last one gone--> engine closes --saved--> answered
//!   start:  every token of the saved table goes through Opening again before the first client is let in
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tanada_blockd_api::{Answer, Attachment};
use tanada_engine::ExportId;
use tanada_nbd::server::{ExportInfo, Exports};
use uuid::Uuid;

use crate::control::Ticket;

/// Longest token, in bytes.
pub(crate) const TOKEN_BYTES_MAX: usize = 256;

pub(crate) struct Entry {
    pub(crate) target: Uuid,
    /// What was asked for.
    pub(crate) writable: bool,
    pub(crate) state: EntryState,
    /// NBD connections in the transmission phase.
    pub(crate) connections: u32,
}

pub(crate) enum EntryState {
    Opening,
    Open(Opened),
    /// The engine still holds it open until the last connection is gone.
    Closing {
        opened: Opened,
        ticket: Ticket,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) export: ExportId,
    /// In bytes.
    pub(crate) size: u64,
}

#[derive(Default)]
pub(crate) struct Attachments {
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl Attachments {
    /// The open attachment of this name.
    pub(crate) fn opened(&self, token: &str) -> Option<Opened> {
        match self.entries.get(token)?.state {
            EntryState::Open(opened) => Some(opened),
            _ => None,
        }
    }

    pub(crate) fn has_writer(&self, target: Uuid) -> bool {
        self.entries.values().any(|entry| entry.target == target && entry.writable)
    }

    pub(crate) fn list(&self) -> Vec<Attachment> {
        self.entries
            .iter()
            .map(|(token, entry)| Attachment {
                token: token.clone(),
                target: entry.target,
                writable: entry.writable,
                connections: entry.connections,
            })
            .collect()
    }

    pub(crate) fn table(&self) -> Table {
        let attachments = self
            .entries
            .iter()
            .filter(|(_, entry)| !matches!(entry.state, EntryState::Closing { .. }))
            .map(|(token, entry)| TableRow { token: token.clone(), target: entry.target, writable: entry.writable })
            .collect();
        Table { boot_id: boot_id(), attachments }
    }
}

impl Exports for Attachments {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let opened = self.opened(name)?;
        Some(ExportInfo { size: opened.size, read_only: !self.entries.get(name)?.writable })
    }
}

/// What is kept in the runtime directory. It counts for the boot it was written in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    boot_id: String,
    pub(crate) attachments: Vec<TableRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableRow {
    pub(crate) token: String,
    pub(crate) target: Uuid,
    pub(crate) writable: bool,
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn table_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("attachments.json")
}

/// What was attached when the process before this one ended; empty after a boot.
pub(crate) fn load(runtime_dir: &Path) -> anyhow::Result<Vec<TableRow>> {
    let path = table_path(runtime_dir);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let table: Table = serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))?;
    Ok(if table.boot_id == boot_id() { table.attachments } else { Vec::new() })
}

/// Writes the table beside the engine's thread and answers once it is in place.
pub(crate) struct Saver {
    jobs: mpsc::Sender<(Table, Option<Ticket>, Answer)>,
}

impl Saver {
    pub(crate) fn start(runtime_dir: &Path) -> io::Result<Saver> {
        let (jobs, todo) = mpsc::channel::<(Table, Option<Ticket>, Answer)>();
        let path = table_path(runtime_dir);
        thread::Builder::new().name("attachments".to_owned()).spawn(move || {
            for (table, ticket, answer) in todo {
                let result = save(&path, &table);
                if let Err(error) = &result {
                    tracing::error!(path = %path.display(), %error, "attachments not saved");
                }
                match (ticket, result) {
                    (None, _) => {}
                    (Some(ticket), Ok(())) => ticket.answer(Ok(answer)),
                    (Some(ticket), Err(error)) => {
                        ticket.refuse(
                            error.raw_os_error().unwrap_or(libc::EIO),
                            format!("write {}: {error}", path.display()),
                        );
                    }
                }
            }
        })?;
        Ok(Saver { jobs })
    }

    pub(crate) fn save(&self, table: Table, ticket: Option<Ticket>, answer: Answer) {
        // The thread ends with the process only.
        let _ = self.jobs.send((table, ticket, answer));
    }
}

/// The file is replaced as a whole. It need not survive a power cut: nor do the attachments.
fn save(path: &Path, table: &Table) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = std::os::unix::fs::OpenOptionsExt::mode(
        std::fs::OpenOptions::new().write(true).create(true).truncate(true),
        0o600,
    )
    .open(&new)?;
    serde_json::to_writer(&mut file, table)?;
    file.write_all(b"\n")?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::{Table, TableRow, boot_id, load, save, table_path};
    use uuid::Uuid;

    #[test]
    fn a_table_counts_for_its_boot_only() {
        let dir = std::env::temp_dir().join(format!("tanada-attachments-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = table_path(&dir);
        let row = TableRow { token: "t".to_owned(), target: Uuid::max(), writable: true };
        assert_eq!(load(&dir).unwrap(), []);
        save(&path, &Table { boot_id: boot_id(), attachments: vec![row.clone()] }).unwrap();
        assert_eq!(load(&dir).unwrap(), std::slice::from_ref(&row));
        save(&path, &Table { boot_id: "another".to_owned(), attachments: vec![row] }).unwrap();
        assert_eq!(load(&dir).unwrap(), []);
        std::fs::write(&path, b"{").unwrap();
        assert!(load(&dir).unwrap_err().to_string().contains("attachments.json"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
