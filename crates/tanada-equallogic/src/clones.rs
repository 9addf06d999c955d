//! Clones. A group knows two kinds:
//!
//! - *full*: independent of its source, usable at once, and copied by the array behind it. All clones of disks are full.
//! - *thin*: shares the blocks of a template, a volume that is made read-only for good. Instances of a generation are thin
//!   unless the SR says `clones=full`: the first one lets the array copy the generation into a template (once), all others
//!   take no copy and no room. The template goes with the last of them.
//!
//! ```text
//!   generation ──clone──▶ volume ──offline, read-only, convert-to template──▶ template ──create-thin-clone──▶ instance
//! ```
//! Where the firmware refuses templates, the instance is a full clone. A generation of a thin clone needs no template: its
//! clones are thin clones of the same one.

use tanada_driver::{CloneRequest, DriverError, DriverErrorKind, DriverResult, Moved};

use crate::driver::{Generation, Group, Ours};
use crate::names::{self, Description, Kind};
use crate::volumes::CHANGED;

impl Group {
    pub async fn clone_volume(&self, request: &CloneRequest) -> DriverResult<Moved> {
        let name = names::volume(self.sr, request.volume);
        if let Some(page) = self.page(&name).await? {
            let told = Description::parse(&page.description);
            let is_this = told.is_some_and(|told| told.id == request.volume && told.parent == Some(request.source));
            if is_this {
                self.take_offline(&page).await?;
                return Ok(Moved::default());
            }
            if !page.description.is_empty() {
                let words = format!("volume {} exists and is no clone of {}", request.volume, request.source);
                return Err(DriverError::new(DriverErrorKind::Exists, words));
            }
            // Made by a clone that was interrupted before it was described; made anew, since of what is not known.
            self.take_offline(&page).await?;
            self.delete(&name).await?;
        }
        let told = Description { parent: Some(request.source), ..Description::new(Kind::Disk, request.volume) };
        match self.disk(request.source).await? {
            Some(source) => self.clone_disk(&source, &name, told).await,
            None => match self.generation(request.source).await? {
                Some(source) => self.clone_generation(&source, &name, told).await,
                None => Err(self.missing(request.source)),
            },
        }
    }

    async fn clone_disk(&self, source: &Ours, name: &str, told: Description) -> DriverResult<Moved> {
        let told = Description { template: source.told.template, ..told };
        let command = format!("clone {name} description \"{}\"", told.encode());
        self.array.on_volume(&source.page.name, &command).await?;
        self.finish(name, &told).await?;
        Ok(Moved { bytes_by_storage: source.page.in_use, ..CHANGED })
    }

    async fn clone_generation(&self, source: &Generation, name: &str, told: Description) -> DriverResult<Moved> {
        let Some(volume) = self.page(&source.volume).await? else { return Err(self.missing(source.id)) };
        let of = Description::parse(&volume.description).and_then(|of| of.template);
        if of.is_none() && self.options.thin_clones {
            match self.clone_thin(source, volume.in_use, name, &told).await {
                // The firmware has no templates, or not of this volume.
                Err(failure)
                    if matches!(failure.kind, DriverErrorKind::Unsupported | DriverErrorKind::Io)
                        && self.page(name).await?.is_none() =>
                {
                    tracing::info!(%failure, generation = %source.id, "no thin clone: a full one is made");
                    self.drop_template(Some(source.id)).await?;
                }
                other => return other,
            }
        }
        let told = Description { template: of, ..told };
        self.array.on_snapshot(&source.volume, &source.snapshot, &format!("clone {name}")).await?;
        self.finish(name, &told).await?;
        Ok(Moved { bytes_by_storage: volume.in_use, ..CHANGED })
    }

    /// Describes a new clone and sees to it that it is offline.
    async fn finish(&self, name: &str, told: &Description) -> DriverResult<()> {
        let page = self.page(name).await?.ok_or_else(|| self.missing(told.id))?;
        if page.description != told.encode() {
            self.describe(name, told).await?;
        }
        self.start_reserve(&page, self.options.disks.reserve_percent).await?;
        self.take_offline(&page).await
    }

    async fn clone_thin(&self, source: &Generation, bytes: u64, name: &str, told: &Description) -> DriverResult<Moved> {
        let template = names::template(self.sr, source.id);
        let copied = self.make_template(source, &template).await?;
        let told = Description { template: Some(source.id), ..told.clone() };
        self.array.on_volume(&template, &format!("create-thin-clone {name}")).await?;
        self.finish(name, &told).await?;
        Ok(Moved { bytes_by_storage: if copied { bytes } else { 0 }, ..CHANGED })
    }

    /// True when the array has to copy the generation for it. Goes on where an earlier attempt was interrupted.
    async fn make_template(&self, source: &Generation, template: &str) -> DriverResult<bool> {
        let mut copied = false;
        let page = match self.page(template).await? {
            Some(page) => page,
            None => {
                self.array.on_snapshot(&source.volume, &source.snapshot, &format!("clone {template}")).await?;
                copied = true;
                self.page(template).await?.ok_or_else(|| self.missing(source.id))?
            }
        };
        if page.template {
            return Ok(copied);
        }
        let told = Description::new(Kind::Template, source.id);
        if page.description != told.encode() {
            self.describe(template, &told).await?;
        }
        self.start_reserve(&page, 0).await?;
        self.take_offline(&page).await?;
        if !page.read_only {
            self.array.on_volume(template, "read-only").await?;
        }
        self.array.on_volume(template, "convert-to template").await?;
        Ok(copied)
    }
}
