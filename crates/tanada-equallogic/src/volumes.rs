//! Making, growing and ending volumes, and tidying up what an interrupted verb left.
//!
//! A volume whose generations are wanted cannot be deleted, they would die with it. It becomes a *husk*: offline, without
//! access records, hidden from scans, deleted with its last generation. A husk holds the space of its disk.

use tanada_driver::{CreateRequest, DriverError, DriverErrorKind, DriverResult, Moved};
use uuid::Uuid;

use crate::array::VolumePage;
use crate::driver::{Generation, Group, Ours};
use crate::error::CliError;
use crate::names::{self, Description, Kind, Role};
use crate::size::{PAGE_BYTES, VOLUME_BYTES_MAX, request_mb};

pub const CHANGED: Moved = Moved { changed: true, bytes_by_host: 0, bytes_by_storage: 0 };

fn error(kind: DriverErrorKind, words: String) -> DriverError {
    DriverError::new(kind, words)
}

impl Group {
    pub async fn create(&self, request: &CreateRequest) -> DriverResult<(u64, Moved)> {
        let disks = self.options.disks.with(&request.options)?;
        let name = names::volume(self.sr, request.volume);
        let size_mb = self.size_mb(request.size)?;
        let told = Description::new(Kind::Disk, request.volume);
        let mut done = Moved::default();
        let page = match self.page(&name).await? {
            Some(page) => page,
            None => {
                self.make(&name, size_mb, &told, disks.thin).await?;
                done = CHANGED;
                self.page(&name).await?.ok_or_else(|| self.missing(request.volume))?
            }
        };
        if Description::parse(&page.description).is_none_or(|found| found.kind != Kind::Disk || found.id != told.id)
            || page.size != size_mb << 20
        {
            let words = format!("volume {} exists with {} bytes; {} were asked for", name, page.size, size_mb << 20);
            return Err(error(DriverErrorKind::Exists, words));
        }
        self.start_reserve(&page, disks.reserve_percent).await?;
        if page.reserve.deletes_oldest != disks.delete_oldest {
            self.array.on_volume(&name, &format!("snap-depletion {}", disks.depletion())).await?;
        }
        Ok((page.size, done))
    }

    /// `volume create`, in this SR's pool; offline and with nobody let in.
    pub async fn make(&self, name: &str, size_mb: u64, told: &Description, thin: bool) -> DriverResult<()> {
        let pool = &self.options.pool;
        let thin = if thin { "thin-provision " } else { "" };
        let text = told.encode();
        let command = format!("volume create {name} {size_mb}MB pool {pool} {thin}description \"{text}\" offline");
        match self.array.run(&command).await {
            // A lost command that took effect after all: the caller looks at what is there.
            Err(failure) if failure.is_existing() => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    fn size_mb(&self, bytes: u64) -> DriverResult<u64> {
        if bytes == 0 || bytes > VOLUME_BYTES_MAX - PAGE_BYTES {
            let words = format!("a size of {bytes} bytes; a volume has 1 to {} bytes", VOLUME_BYTES_MAX - PAGE_BYTES);
            return Err(error(DriverErrorKind::InvalidArgument, words));
        }
        Ok(request_mb(bytes))
    }

    pub async fn resize(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)> {
        let size_mb = self.size_mb(size)?;
        let ours = self.need_disk(volume).await?;
        let wanted = size_mb << 20;
        if wanted == ours.page.size {
            return Ok((wanted, Moved::default()));
        }
        if wanted < ours.page.size {
            let words = format!("volume {volume} has {} bytes; it can grow only, not to {wanted}", ours.page.size);
            return Err(error(DriverErrorKind::Unsupported, words));
        }
        // Without no-snap the group makes a snapshot first, which nobody here would know of.
        self.array.on_volume(&ours.page.name, &format!("size {size_mb}MB no-snap")).await?;
        let grown = self.need_disk(volume).await?;
        Ok((grown.page.size, CHANGED))
    }

    pub async fn destroy(&self, target: Uuid) -> DriverResult<Moved> {
        if let Some(page) = self.page(&names::volume(self.sr, target)).await? {
            let told = Description::parse(&page.description);
            if told.as_ref().is_some_and(|told| told.kind == Kind::Husk) {
                return Ok(Moved::default());
            }
            return self.destroy_disk(target, page, told).await;
        }
        match self.generation(target).await? {
            Some(generation) => self.destroy_generation(&generation).await,
            None => {
                // The end of something that was interrupted before it had its name.
                self.tidy().await?;
                Ok(Moved::default())
            }
        }
    }

    async fn destroy_disk(&self, id: Uuid, page: VolumePage, told: Option<Description>) -> DriverResult<Moved> {
        self.refuse_attached(&page.name).await?;
        self.take_offline(&page).await?;
        if !self.generations(&page.name).await?.is_empty() {
            let told = told.unwrap_or_else(|| Description::new(Kind::Disk, id));
            self.describe(&page.name, &Description { kind: Kind::Husk, ..told }).await?;
            return Ok(CHANGED);
        }
        self.delete(&page.name).await?;
        match told {
            Some(told) => self.drop_template(told.template).await?,
            // What was interrupted before it was described may have been a thin clone.
            None => self.tidy().await?,
        }
        Ok(CHANGED)
    }

    async fn destroy_generation(&self, generation: &Generation) -> DriverResult<Moved> {
        self.close_generation(generation).await?;
        self.delete_snapshot(&generation.volume, &generation.snapshot).await?;
        self.hints().generations.remove(&generation.id);
        self.give_room_back(&generation.volume).await?;
        self.end_husk(&generation.volume).await?;
        self.drop_template(Some(generation.id)).await?;
        Ok(CHANGED)
    }

    /// Deletes a husk without generations.
    async fn end_husk(&self, volume: &str) -> DriverResult<()> {
        let Some(page) = self.page(volume).await? else { return Ok(()) };
        let Some(told) = Description::parse(&page.description).filter(|told| told.kind == Kind::Husk) else {
            return Ok(());
        };
        if self.generations(volume).await?.is_empty() {
            self.take_offline(&page).await?;
            self.delete(volume).await?;
            self.drop_template(told.template).await?;
        }
        Ok(())
    }

    /// Deletes the template of a generation, unless thin clones depend on it: the group knows that best and refuses.
    pub async fn drop_template(&self, generation: Option<Uuid>) -> DriverResult<()> {
        let Some(generation) = generation else { return Ok(()) };
        let Some(page) = self.page(&names::template(self.sr, generation)).await? else { return Ok(()) };
        self.take_offline(&page).await?;
        match self.array.run(&format!("volume delete {}", page.name)).await {
            Err(failure) if failure.is_missing() || failure.is_needed() => Ok(()),
            // Perhaps the same in words that are not known here.
            Err(failure @ CliError::Refused { .. }) => match self.is_needed(generation).await? {
                true => Ok(()),
                false => Err(failure.into()),
            },
            other => Ok(other.map(|_| ())?),
        }
    }

    /// Whether a disk says that it is a thin clone of this generation.
    async fn is_needed(&self, generation: Uuid) -> DriverResult<bool> {
        for (row, role) in self.rows().await? {
            if role == Role::Disk && self.told(&row.name).await?.and_then(|told| told.template) == Some(generation) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub async fn told(&self, volume: &str) -> DriverResult<Option<Description>> {
        Ok(self.page(volume).await?.and_then(|page| Description::parse(&page.description)))
    }

    pub async fn delete(&self, volume: &str) -> DriverResult<()> {
        match self.array.run(&format!("volume delete {volume}")).await {
            Err(failure) if failure.is_missing() => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    pub async fn delete_snapshot(&self, volume: &str, snapshot: &str) -> DriverResult<()> {
        match self.array.on_volume(volume, &format!("snapshot delete {snapshot}")).await {
            Err(failure) if failure.is_missing() => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    /// Removes what is provably ours and belongs to nothing: unfinished snapshots, collections of cuts, husks without
    /// generations, templates without instances, marks of a finished revert. Nothing of it is in use, since verbs run one
    /// at a time here.
    pub async fn tidy(&self) -> DriverResult<()> {
        self.drop_collections().await?;
        let rows = self.rows().await?;
        let mut instances = Vec::new();
        for (row, _) in rows.iter().filter(|(_, role)| *role == Role::Disk) {
            if row.snapshots > 0 {
                self.drop_unfinished(&row.name).await?;
            }
            let Some(page) = self.page(&row.name).await? else { continue };
            let Some(told) = Description::parse(&page.description) else { continue };
            if told.kind == Kind::Husk && self.generations(&row.name).await?.is_empty() {
                self.take_offline(&page).await?;
                self.delete(&row.name).await?;
                continue;
            }
            instances.extend(told.template);
            if told.reverting.is_some() {
                self.end_revert(&Ours { page, told }, None).await?;
            }
        }
        for (row, _) in rows.iter().filter(|(_, role)| *role == Role::Template) {
            let needed = instances.iter().any(|generation| names::template(self.sr, *generation) == row.name);
            if !needed && let Some(page) = self.page(&row.name).await? {
                let generation = Description::parse(&page.description).map(|told| told.id);
                match generation {
                    Some(generation) => self.drop_template(Some(generation)).await?,
                    // Not yet described, so not yet a template.
                    None => {
                        self.take_offline(&page).await?;
                        self.delete(&row.name).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes snapshots that we made and did not come to name.
    async fn drop_unfinished(&self, volume: &str) -> DriverResult<()> {
        for row in self.array.snapshots(volume).await? {
            // One that somebody renamed is not unfinished.
            let is_automatic = row.name.starts_with(&names::prefix(self.sr));
            if !is_automatic || names::parse_snapshot(&row.name).is_some() {
                continue;
            }
            let Some(page) = self.array.snapshot(volume, &row.name).await? else { continue };
            if names::is_unfinished(&page.description) {
                self.delete_snapshot(volume, &row.name).await?;
            }
        }
        Ok(())
    }
}
