//! Operations on volumes and generations. All are one event and one group of records; all answer when that is durable
//! (W6), and guests are not held meanwhile.

use tanada_disk::DiskOp;
use tanada_format::geometry::SEGMENT_BLOCKS;
use tanada_format::record::GROUP_MAX;
use tanada_format::version::{VERSION_SLOTS_MAX, VOLUME_BYTES_MAX};
use tanada_format::{Member, Record, VersionKind};
use uuid::Uuid;

use crate::api::{Control, ExportId, ExtentKind, Reply, RequestId, VolumeInfo};
use crate::failure::{EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, Failure};
use crate::guest::Export;
use crate::guest::stream::Stream;
use crate::state::{BLOCK, Handle, State};
use crate::tasks::exec::slot;
use crate::versions::{Version, VersionId};

type Answer = Result<Reply, Failure>;

impl Handle {
    pub async fn control(self, request: RequestId, control: Control) {
        let result = match control {
            Control::Close { export } => return self.with(|state| state.close(request, export)),
            Control::Settle => return self.with(|state| state.wait_to_settle(request)),
            control => self.carry_out(control).await,
        };
        self.with(|state| state.reply(request, result));
    }

    async fn carry_out(&self, control: Control) -> Answer {
        match control {
            Control::Open { id, writable } => self.with(|state| state.open_export(id, writable)),
            Control::CreateVolume { id, size } => self.change(|state| state.decide_create(id, size)).await,
            Control::Destroy { id } => self.change(|state| state.decide_destroy(id)).await,
            Control::Resize { id, size } => self.change(|state| state.decide_resize(id, size)).await,
            Control::Snapshot { group } => self.snapshot(group).await,
            Control::Clone { source, volume } => self.change(|state| state.decide_clone(source, volume)).await,
            Control::Revert { volume, generation } => {
                self.change(|state| state.decide_revert(volume, generation)).await
            }
            Control::Difference { from, to, offset, extents_max } => {
                let extents = self.difference(from, to, offset, u64::MAX, extents_max).await?;
                Ok(Reply::Extents(extents.into_iter().filter(|extent| extent.kind != ExtentKind::Same).collect()))
            }
            Control::Stat { id } => self.stat(id).await,
            Control::List => Ok(Reply::List(self.with(|state| state.list()))),
            Control::StoreStat => {
                self.with(State::recount_ghosts);
                Ok(Reply::Store(Box::new(self.with(|state| state.store_stat()))))
            }
            Control::Checkpoint => self.checkpointed().await.map(|()| Reply::Done),
            Control::GrowStore { size } => self.grow(size).await,
            Control::ScrubStart { rate, from, damage } => {
                let changed = self.with(|state| state.scrub_start(rate, from, damage))?;
                Ok(Reply::Changed { changed })
            }
            Control::ScrubStop => Ok(Reply::Changed { changed: self.with(State::scrub_stop) }),
            Control::ScrubStatus => Ok(Reply::Scrub(Box::new(self.with(|state| state.scrub_status())))),
            Control::Close { .. } | Control::Settle => unreachable!("answered by the caller"),
        }
    }

    /// Waits until the journal takes a control record.
    async fn journal_room(&self) -> Result<(), Failure> {
        loop {
            let wait = self.with(|state| {
                state.check_writable()?;
                let has_room = state.journal.has_control_room();
                if has_room && !state.pairs.is_busy() {
                    return Ok(None);
                }
                let (filler, slot) = slot();
                state.room_waiters.push(filler);
                if !has_room && !state.journal.has_late_write() {
                    state.need_checkpoint();
                }
                Ok(Some(slot))
            })?;
            match wait {
                None => return Ok(()),
                Some(slot) => slot.await,
            }
        }
    }

    /// Decides and records at one instant, then waits until it is durable.
    async fn decide(
        &self,
        decide: impl FnOnce(&mut State) -> Result<Vec<Record>, Failure>,
    ) -> Result<Vec<Record>, Failure> {
        self.journal_room().await?;
        let (records, durable) = self.with(|state| {
            let records = decide(state)?;
            if !records.is_empty() {
                state.record(&records).map_err(|message| Failure::new(EINVAL, message))?;
            }
            // Where nothing changed, what made it so may still wait for its sync.
            let seq = state.journal.last_seq();
            Ok::<_, Failure>((records, state.durable(seq)))
        })?;
        durable.await?;
        Ok(records)
    }

    async fn change(&self, decide: impl FnOnce(&mut State) -> Result<Vec<Record>, Failure>) -> Answer {
        let records = self.decide(decide).await?;
        Ok(Reply::Changed { changed: !records.is_empty() })
    }

    async fn snapshot(&self, group: Vec<(Uuid, Uuid)>) -> Answer {
        let mut at = 0;
        let records = self
            .decide(|state| {
                at = state.now;
                state.decide_snapshot(&group)
            })
            .await?;
        Ok(Reply::Cut { changed: !records.is_empty(), at })
    }

    async fn grow(&self, size: u64) -> Answer {
        let (blocks, old, device, can_grow) = self.with(|state| {
            let geometry = state.alloc.geometry();
            let blocks = size / BLOCK / SEGMENT_BLOCKS * SEGMENT_BLOCKS;
            (blocks, geometry.store_blocks(), state.config.device_bytes, state.config.device_can_grow)
        });
        if blocks < old {
            let message = format!("a store of {} bytes cannot shrink to {size}", old * BLOCK);
            return Err(Failure::new(EINVAL, message));
        }
        if blocks * BLOCK > device {
            if can_grow {
                let grown = self.disk(DiskOp::Grow { length: blocks * BLOCK }).await;
                grown.map_err(|error| State::data_failure(error.errno, "extending the device"))?;
            }
            // A device that cannot be extended from here has been by the shell, which knows its size.
            self.with(|state| state.config.device_bytes = state.config.device_bytes.max(blocks * BLOCK));
        }
        let changed = if blocks > old { vec![Record::Grow { store_blocks: blocks }] } else { Vec::new() };
        self.change(|_| Ok(changed)).await
    }

    /// Completes when a checkpoint whose cut comes after now is durable.
    pub async fn checkpointed(&self) -> Result<(), Failure> {
        let slot = self.with(|state| {
            state.check_writable()?;
            let (filler, slot) = slot();
            let cut = state.checkpoint.cuts + 1;
            state.checkpoint.waiters.push((cut, filler));
            state.want_checkpoint();
            Ok::<_, Failure>(slot)
        })?;
        slot.await
    }
}

impl State {
    pub fn live(&self, id: Uuid) -> Result<&Version, Failure> {
        self.versions
            .named(id)
            .filter(|version| !version.hidden)
            .ok_or_else(|| Failure::new(ENOENT, format!("the store has neither a volume nor a generation {id}")))
    }

    fn live_kind(&self, id: Uuid, kind: VersionKind) -> Result<&Version, Failure> {
        let version = self.live(id)?;
        let (is, wanted) = (kind_name(version.kind), kind_name(kind));
        if version.kind == kind {
            Ok(version)
        } else {
            Err(Failure::new(EINVAL, format!("{id} is a {is}, not a {wanted}")))
        }
    }

    pub fn open_count(&self, version: VersionId) -> u32 {
        self.exports.values().filter(|export| export.version == version).count() as u32
    }

    fn open_export(&mut self, id: Uuid, writable: bool) -> Answer {
        if let crate::state::Phase::Opening | crate::state::Phase::Refused(_) = &self.phase {
            self.check_writable()?;
        }
        let version = self.live(id)?;
        let (version_id, size, generation) = (version.id, version.size, version.kind == VersionKind::Generation);
        if generation && writable {
            return Err(Failure::new(EINVAL, format!("{id} is a generation: it can be opened for reading only")));
        }
        let kind = if generation { crate::api::VolumeKind::Generation } else { crate::api::VolumeKind::Volume };
        let export = self.next_export;
        self.next_export += 1;
        let held =
            Export { uuid: id, version: version_id, writable, in_flight: 0, closing: None, stream: Stream::default() };
        self.exports.insert(export, held);
        Ok(Reply::Opened { export: ExportId(export), size, writable, kind })
    }

    /// Refuses new versions a little before space ends: at 2 % free (store notes section 6).
    fn check_space(&self) -> Result<(), Failure> {
        let (free, total) = (self.alloc.free(), self.alloc.geometry().allocatable_blocks());
        if free < self.reserve() + total / 50 {
            let message = format!("{} bytes are free, too few for new volumes and generations", free * BLOCK);
            return Err(Failure::new(ENOSPC, message));
        }
        // What a group at its largest takes; so what changes volumes that are there finds slots for long after.
        self.check_slots(GROUP_MAX as u64)
    }

    /// True where the version table has slots for `more` versions.
    pub fn has_slots(&self, more: u64) -> bool {
        self.versions.len() + more <= self.config.versions_max.min(VERSION_SLOTS_MAX)
    }

    fn check_slots(&self, more: u64) -> Result<(), Failure> {
        if self.has_slots(more) {
            return Ok(());
        }
        let (there, most) = (self.versions.len(), self.config.versions_max.min(VERSION_SLOTS_MAX));
        let message =
            format!("the store has {there} versions, those being deleted among them, and holds {most} at most");
        Err(Failure::new(ENOSPC, message))
    }

    fn check_new_name(&self, id: Uuid) -> Result<(), Failure> {
        match self.versions.named(id) {
            None if id.is_nil() => Err(Failure::new(EINVAL, "the nil UUID names nothing")),
            None => Ok(()),
            Some(taken) => Err(Failure::new(EEXIST, format!("{id} names a {} already", kind_name(taken.kind)))),
        }
    }

    fn decide_create(&mut self, id: Uuid, size: u64) -> Result<Vec<Record>, Failure> {
        let size = whole_blocks(size)?;
        if let Some(there) = self.versions.named(id)
            && there.kind == VersionKind::Head
            && there.size == size
        {
            return Ok(Vec::new());
        }
        self.check_new_name(id)?;
        self.check_space()?;
        Ok(vec![Record::Create { head: self.versions.next_id, size, uuid: id }])
    }

    fn decide_destroy(&mut self, id: Uuid) -> Result<Vec<Record>, Failure> {
        let Some(version) = self.versions.named(id).filter(|version| !version.hidden) else { return Ok(Vec::new()) };
        let open = self.open_count(version.id);
        if open > 0 {
            return Err(Failure::new(EBUSY, format!("{id} is held open by {open} clients")));
        }
        Ok(vec![Record::Destroy { version: version.id }])
    }

    fn decide_snapshot(&mut self, group: &[(Uuid, Uuid)]) -> Result<Vec<Record>, Failure> {
        if group.is_empty() || group.len() > GROUP_MAX {
            let message =
                format!("a snapshot of {} volumes at one instant; 1 to {GROUP_MAX} are possible", group.len());
            return Err(Failure::new(EINVAL, message));
        }
        let there = group.iter().filter(|(volume, generation)| self.is_generation_of(*generation, *volume)).count();
        if there == group.len() {
            return Ok(Vec::new());
        }
        let mut members = Vec::with_capacity(group.len());
        for (n, (volume, generation)) in group.iter().enumerate() {
            let head = self.live_kind(*volume, VersionKind::Head)?.id;
            self.check_new_name(*generation)?;
            if group[..n].iter().any(|(v, g)| v == volume || g == generation) {
                return Err(Failure::new(EINVAL, format!("{volume} or {generation} is in the group twice")));
            }
            members.push(Member { head, uuid: *generation });
        }
        self.check_space()?;
        let (first_id, ended) = (self.versions.next_id, self.versions.epoch);
        Ok(vec![Record::Snapshot { first_id, ended, hidden: false, members }])
    }

    /// True where the generation exists in the family of the volume: the snapshot asked for was taken.
    fn is_generation_of(&self, generation: Uuid, volume: Uuid) -> bool {
        let (Some(generation), Some(volume)) = (self.versions.named(generation), self.versions.named(volume)) else {
            return false;
        };
        generation.kind == VersionKind::Generation
            && self.versions.family(generation.id) == self.versions.family(volume.id)
    }

    fn decide_clone(&mut self, source: Uuid, volume: Uuid) -> Result<Vec<Record>, Failure> {
        let from = self.live(source)?;
        let (from, is_head) = (from.id, from.kind == VersionKind::Head);
        if let Some(there) = self.versions.named(volume)
            && there.kind == VersionKind::Head
            && there.id != from
            && self.versions.family(there.id) == self.versions.family(from)
        {
            return Ok(Vec::new());
        }
        self.check_new_name(volume)?;
        self.check_space()?;
        let head = self.versions.next_id;
        if !is_head {
            return Ok(vec![Record::Clone { head, generation: from, uuid: volume }]);
        }
        // A hidden generation under both; nobody names it, so it is a ghost until one of them is left.
        let (generation, ended, uuid) = (head, self.versions.epoch, self.hidden_uuid());
        let members = vec![Member { head: from, uuid }];
        Ok(vec![
            Record::Snapshot { first_id: generation, ended, hidden: true, members },
            Record::Clone { head: generation + 1, generation, uuid: volume },
            Record::Destroy { version: generation },
        ])
    }

    fn decide_revert(&mut self, volume: Uuid, generation: Uuid) -> Result<Vec<Record>, Failure> {
        let old_head = self.live_kind(volume, VersionKind::Head)?.id;
        let to = self.live_kind(generation, VersionKind::Generation)?.id;
        if self.versions.family(old_head) != self.versions.family(to) {
            let message = format!("{generation} is not of the family of {volume}");
            return Err(Failure::new(EINVAL, message));
        }
        if self.exports.values().any(|export| export.version == old_head && export.writable) {
            return Err(Failure::new(EBUSY, format!("{volume} is open for writing")));
        }
        self.check_slots(1)?;
        let head = self.versions.next_id;
        // Readers of the volume go on with its new content.
        for export in self.exports.values_mut().filter(|export| export.version == old_head) {
            export.version = head;
        }
        Ok(vec![Record::Revert { head, generation: to, old_head }])
    }

    fn decide_resize(&mut self, id: Uuid, size: u64) -> Result<Vec<Record>, Failure> {
        let size = whole_blocks(size)?;
        let version = self.live_kind(id, VersionKind::Head)?;
        let (head, old) = (version.id, version.size);
        if size == old {
            return Ok(Vec::new());
        }
        let resize = Record::Resize { head, size };
        if size > old {
            return Ok(vec![resize]);
        }
        if self.exports.values().any(|export| export.version == head && export.in_flight > 0) {
            return Err(Failure::new(EBUSY, format!("{id} cannot shrink while requests to it are under way")));
        }
        let (place, blocks) = (size / BLOCK, (old - size) / BLOCK);
        let unmap = Record::Unmap { head, place, blocks };
        if self.versions.may_unmap(head, blocks) {
            return Ok(vec![unmap, resize]);
        }
        self.check_slots(1)?;
        let (first_id, ended, uuid) = (self.versions.next_id, self.versions.epoch, self.hidden_uuid());
        let members = vec![Member { head, uuid }];
        Ok(vec![
            Record::Snapshot { first_id, ended, hidden: true, members },
            unmap,
            resize,
            Record::Destroy { version: first_id },
        ])
    }

    fn list(&self) -> Vec<VolumeInfo> {
        self.versions.iter().filter(|version| !version.hidden).map(|version| self.info(version)).collect()
    }
}

fn kind_name(kind: VersionKind) -> &'static str {
    match kind {
        VersionKind::Head => "volume",
        VersionKind::Generation => "generation",
    }
}

fn whole_blocks(size: u64) -> Result<u64, Failure> {
    if size == 0 || size > VOLUME_BYTES_MAX {
        let message = format!("a size of {size} bytes; 1 to {VOLUME_BYTES_MAX} are possible");
        return Err(Failure::new(EINVAL, message));
    }
    Ok(size.next_multiple_of(BLOCK))
}
