//! What is kept of a store's scrubs from one process to the next: one file in the state directory, replaced as a whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tanada_blockd_api::{Answer, ScrubReport};
use uuid::Uuid;

use crate::control::Ticket;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) store: Uuid,
    pub(crate) report: ScrubReport,
}

pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("scrub.json")
}

/// The report kept for `store`; `None` where there is none, or one of another store.
pub(crate) fn load(path: &Path, store: Uuid) -> anyhow::Result<Option<ScrubReport>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let saved: Saved = serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))?;
    Ok(Some(saved.report).filter(|_| saved.store == store))
}

fn save(path: &Path, saved: &Saved) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    serde_json::to_writer(&mut file, saved)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Somebody to be answered once the report is in place.
pub(crate) type Waiting = (Ticket, Answer);

/// Writes reports beside the engine's thread; of those that wait only the newest.
pub(crate) struct Reporter {
    jobs: mpsc::Sender<(Saved, Option<Waiting>)>,
}

impl Reporter {
    pub(crate) fn start(path: PathBuf) -> io::Result<Reporter> {
        let (jobs, todo) = mpsc::channel::<(Saved, Option<Waiting>)>();
        thread::Builder::new().name("scrub-report".to_owned()).spawn(move || {
            while let Ok((mut newest, waiting)) = todo.recv() {
                let mut all = vec![waiting];
                for (newer, waiting) in todo.try_iter() {
                    newest = newer;
                    all.push(waiting);
                }
                let result = save(&path, &newest);
                if let Err(error) = &result {
                    tracing::error!(path = %path.display(), %error, "how the scrub stands was not saved");
                }
                for (ticket, answer) in all.into_iter().flatten() {
                    match &result {
                        Ok(()) => ticket.answer(Ok(answer)),
                        Err(error) => ticket.refuse(
                            error.raw_os_error().unwrap_or(libc::EIO),
                            format!("write {}: {error}", path.display()),
                        ),
                    }
                }
            }
        })?;
        Ok(Reporter { jobs })
    }

    pub(crate) fn save(&self, saved: Saved, waiting: Option<Waiting>) {
        // The thread ends with the process only.
        let _ = self.jobs.send((saved, waiting));
    }
}

#[cfg(test)]
mod tests {
    use super::{Saved, load, path, save};
    use tanada_blockd_api::{ScrubReport, ScrubState};
    use uuid::Uuid;

    #[test]
    fn a_report_counts_for_its_store_only() {
        let dir = std::env::temp_dir().join(format!("tanada-scrub-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = path(&dir);
        let report = ScrubReport { state: ScrubState::Running, place: 7, ..ScrubReport::default() };
        assert_eq!(load(&path, Uuid::max()).unwrap(), None);
        save(&path, &Saved { store: Uuid::max(), report: report.clone() }).unwrap();
        assert_eq!(load(&path, Uuid::max()).unwrap(), Some(report));
        assert_eq!(load(&path, Uuid::nil()).unwrap(), None);
        std::fs::write(&path, b"{").unwrap();
        assert!(load(&path, Uuid::max()).unwrap_err().to_string().contains("scrub.json"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
