//! What the storage reports by itself becomes messages for administrators.

use std::sync::Arc;

use tanada_driver::{Alert, Driver};
use tanada_units::MIB;
use tanada_xapi::{ApiResult, DateTime, Ref, Value};
use tokio::sync::broadcast::error::RecvError;

use crate::context::Daemon;
use crate::db::View;

/// Keeps the driver of an SR that has been attached, and listens to it until it is let go.
pub fn adopt(daemon: &Arc<Daemon>, sr: &Ref, driver: Arc<dyn Driver>) {
    let mut alerts = driver.alerts();
    daemon.storage.put_driver(sr, driver);
    let (daemon, sr) = (Arc::downgrade(daemon), sr.clone());
    tokio::spawn(async move {
        loop {
            let alert = match alerts.recv().await {
                Ok(alert) => alert,
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(%sr, missed, "alerts of an SR came too fast");
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            let Some(daemon) = daemon.upgrade() else { return };
            tracing::warn!(%sr, ?alert, "the storage reports");
            if let Err(error) = tell(&daemon, &sr, &alert) {
                tracing::error!(%sr, %error, "an alert could not be recorded");
            }
        }
    });
}

fn tell(daemon: &Daemon, sr: &Ref, alert: &Alert) -> ApiResult<()> {
    daemon.db.write(|tx| {
        let (name, priority, body) = words(alert);
        let disk = match alert {
            Alert::Damage { volume, .. } => {
                let at = tx.having("VDI", "location", &volume.to_string());
                at.into_iter().find(|vdi| vdi.reference("SR") == *sr)
            }
            _ => None,
        };
        let (class, object) = match (disk, tx.find("SR", sr)) {
            (Some(vdi), _) => ("VDI", vdi.uuid().to_owned()),
            (None, Some(sr)) => ("SR", sr.uuid().to_owned()),
            (None, None) => return Ok(()),
        };
        let fields = [
            ("name", Value::from(name)),
            ("priority", Value::from(priority)),
            ("cls", Value::from(class)),
            ("obj_uuid", Value::from(object)),
            ("timestamp", Value::from(DateTime::now())),
            ("body", Value::from(body)),
        ];
        tx.create("message", fields).map(drop)
    })
}

/// Name, priority (1 is the highest) and text of a message.
fn words(alert: &Alert) -> (&'static str, i64, String) {
    match alert {
        Alert::Damage { volume, offset, message } => {
            ("STORAGE_DAMAGE", 1, format!("volume {volume} at byte {offset}: {message}"))
        }
        Alert::ReadOnly { message } => ("STORAGE_READ_ONLY", 1, message.clone()),
        Alert::NearlyFull { free, physical } => {
            ("STORAGE_NEARLY_FULL", 2, format!("{} of {} MiB are free", free / MIB, physical / MIB))
        }
        Alert::Full => ("STORAGE_FULL", 1, String::from("machines that write are stopped until there is room")),
        Alert::ScrubFinished { bytes, damaged: 0 } => {
            ("STORAGE_VERIFIED", 5, format!("all {} MiB in use were read and are sound", bytes / MIB))
        }
        Alert::ScrubFinished { bytes, damaged } => {
            ("STORAGE_VERIFIED", 1, format!("of {} MiB in use {damaged} blocks are damaged", bytes / MIB))
        }
        Alert::RoomAgain { free } => ("STORAGE_ROOM_AGAIN", 4, format!("{} MiB are free", free / MIB)),
    }
}
