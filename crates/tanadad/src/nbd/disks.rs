//! Disks that NBD clients have open: attached once, however many there are.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tanada_xapi::{ApiResult, Ref};
use tokio::sync::OnceCell;

use crate::context::Daemon;
use crate::transfer::attached::{Access, Attached};

/// A disk that is attached, or is about to be. It is detached when the last holder lets it go.
#[derive(Default)]
pub struct Disk(OnceCell<Attached>);

impl Disk {
    /// Where it is served, and under which name. The name is a secret.
    pub fn way(&self) -> Option<(&Path, &str)> {
        self.0.get().and_then(Attached::way)
    }
}

#[derive(Default)]
pub struct Disks(Mutex<HashMap<Ref, Weak<Disk>>>);

impl Disks {
    /// The disk, attached for reading.
    pub async fn open(&self, daemon: &Arc<Daemon>, vdi: &Ref) -> ApiResult<Arc<Disk>> {
        let disk = self.slot(vdi);
        // Others that want the same disk wait here; those that want another do not.
        disk.0.get_or_try_init(|| Attached::open(daemon, vdi, Access::Read)).await?;
        Ok(disk)
    }

    fn slot(&self, vdi: &Ref) -> Arc<Disk> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, disk| disk.strong_count() > 0);
        if let Some(disk) = open.get(vdi).and_then(Weak::upgrade) {
            return disk;
        }
        let disk = Arc::new(Disk::default());
        open.insert(vdi.clone(), Arc::downgrade(&disk));
        disk
    }
}
