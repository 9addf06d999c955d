//! Who may log in: for each attachment one access record and one CHAP account, both made and removed with it.
//!
//! ```text
//!   attach: chapuser create ─▶ access create ─▶ (multihost-access enable) ─▶ online
//!   detach: access delete ─▶ offline when nobody is left ─▶ chapuser delete
//! ```
//! The account's name holds the token and is first to come and last to go, so the accounts of the group are the list of
//! attachments, whatever was interrupted. Its secret follows from the token and the password of the group's own account:
//! nothing has to be remembered, and a repeated `attach` gives the same answer. Only one initiator at a time gets in
//! unless a second attachment asks for it: the group itself then refuses a machine that would run twice.
//!
//! A generation is attached as a snapshot that is online and read-only. Access records for snapshots count for all
//! snapshots of a volume; those that are not attached are offline. Which one an account is for is in its name.

use ring::hmac;
use tanada_driver::{AttachRequest, Chap, DriverError, DriverErrorKind, DriverResult, Endpoint, Moved, Secret};
use uuid::Uuid;

use crate::array::AccessRecord;
use crate::driver::{Generation, Group};
use crate::error::sm;
use crate::names::{self, Role};
use crate::volumes::CHANGED;

/// The limit of all firmware; access policies (8 and later) are not used.
const RECORDS_MAX: usize = 16;
const ISCSI_PORT: u16 = 3260;
/// Every volume and snapshot is a target of its own with one unit.
const LUN: u32 = 0;
/// What old firmware and all initiators take: 12 to 16 characters.
const SECRET_CHARACTERS: usize = 16;

/// What a token is attached to.
enum Target {
    Volume(String),
    Snapshot(Generation),
}

impl Target {
    fn volume(&self) -> &str {
        match self {
            Target::Volume(volume) => volume,
            Target::Snapshot(generation) => &generation.volume,
        }
    }

    fn generation(&self) -> Option<Uuid> {
        match self {
            Target::Volume(_) => None,
            Target::Snapshot(generation) => Some(generation.id),
        }
    }

    fn applies_to(&self) -> &'static str {
        match self {
            Target::Volume(_) => "volume",
            Target::Snapshot(_) => "snapshot",
        }
    }
}

impl Group {
    pub async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint> {
        let target = self.attach_target(request).await?;
        let user = names::account(self.sr, &request.token, target.generation()).ok_or_else(|| {
            let words = format!(
                "a token of {} bytes; some 36 letters, digits and '-' fit into a CHAP account's name",
                request.token.len()
            );
            invalid(words)
        })?;
        if !is_initiator(&request.initiator) {
            return Err(invalid(format!("{:?} is not the iSCSI name of an initiator", request.initiator)));
        }
        let secret = self.secret(&request.token);
        let volume = target.volume();
        let records = self.array.access(volume).await?;
        if !records.iter().any(|record| record.user == user) {
            if records.len() >= RECORDS_MAX {
                let words = format!("volume {volume} has {} access records, as many as a group allows", records.len());
                return Err(DriverError::new(DriverErrorKind::Busy, words));
            }
            self.let_in(&target, request, &user, &secret).await?;
        }
        self.hints().tokens.insert(request.token.clone(), volume.to_string());
        let others = records.iter().any(|record| record.user != user);
        if others && self.page(volume).await?.is_some_and(|page| !page.multihost) {
            self.array.on_volume(volume, "multihost-access enable").await?;
        }
        let iqn = self.bring_online(&target).await?;
        let portals = vec![self.portal().await?];
        let chap = Some(Chap { user, secret });
        Ok(Endpoint::Iscsi { portals, iqn, lun: LUN, initiator: request.initiator.clone(), chap })
    }

    async fn attach_target(&self, request: &AttachRequest) -> DriverResult<Target> {
        if request.target.is_nil() {
            return Ok(Target::Volume(names::management(self.sr)));
        }
        if let Some(ours) = self.disk(request.target).await? {
            return Ok(Target::Volume(ours.page.name));
        }
        let Some(generation) = self.generation(request.target).await? else {
            return Err(self.missing(request.target));
        };
        if request.writable {
            return Err(invalid(format!("generation {} cannot be written", generation.id)));
        }
        Ok(Target::Snapshot(generation))
    }

    async fn let_in(&self, target: &Target, request: &AttachRequest, user: &str, secret: &Secret) -> DriverResult<()> {
        let create = format!("chapuser create {user} password {}", secret.expose());
        match self.array.run(&create).await {
            // Of an attempt that was interrupted, with a secret of which only the array is sure.
            Err(failure) if failure.is_existing() => {
                self.array.run(&format!("chapuser delete {user}")).await?;
                self.array.run(&create).await?;
            }
            other => {
                other?;
            }
        }
        let (initiator, applies_to) = (&request.initiator, target.applies_to());
        let words =
            format!("access create initiator {initiator} authmethod chap username {user} apply-to {applies_to}");
        self.array.on_volume(target.volume(), &words).await?;
        Ok(())
    }

    /// Answers the target's name.
    async fn bring_online(&self, target: &Target) -> DriverResult<String> {
        match target {
            Target::Volume(volume) => {
                let page = self.page(volume).await?.ok_or_else(|| gone(volume))?;
                if !page.online {
                    self.array.on_volume(volume, "online").await?;
                }
                Ok(page.iqn)
            }
            Target::Snapshot(Generation { volume, snapshot, .. }) => {
                let page = self.array.snapshot(volume, snapshot).await?.ok_or_else(|| gone(snapshot))?;
                if !page.online {
                    // Before anybody can log in: a group lets snapshots be written.
                    self.array.on_snapshot(volume, snapshot, "read-only").await?;
                    self.array.on_snapshot(volume, snapshot, "online").await?;
                }
                Ok(page.iqn)
            }
        }
    }

    async fn portal(&self) -> DriverResult<String> {
        if let Some(portal) = &self.options.portal {
            return Ok(portal.clone());
        }
        let address = self.array.group_address().await?;
        if address.parse::<std::net::IpAddr>().is_err() {
            let words = format!("the group gives {address:?} as its address");
            return Err(DriverError::new(DriverErrorKind::Io, words).with_sm(sm::TARGET_IP));
        }
        Ok(if address.contains(':') { format!("[{address}]:{ISCSI_PORT}") } else { format!("{address}:{ISCSI_PORT}") })
    }

    pub async fn detach(&self, token: &str) -> DriverResult<Moved> {
        let users = self.array.chap_users().await?;
        let mut done = Moved::default();
        for user in users.iter().filter(|user| names::token_of(self.sr, user) == Some(token)) {
            match self.find_record(token, user).await? {
                Some((volume, records)) => self.let_out(&volume, records, user).await?,
                // Interrupted after the record was deleted: something may still be online for nobody.
                None => self.close_unused().await?,
            }
            match self.array.run(&format!("chapuser delete {user}")).await {
                Err(failure) if !failure.is_missing() => return Err(failure.into()),
                _ => done = CHANGED,
            }
        }
        self.hints().tokens.remove(token);
        Ok(done)
    }

    /// The volume with a record of this account, and its records.
    async fn find_record(&self, token: &str, user: &str) -> DriverResult<Option<(String, Vec<AccessRecord>)>> {
        let hint = self.hints().tokens.get(token).cloned();
        let rows = self.rows().await?.into_iter().filter(|(_, role)| *role != Role::Template);
        for volume in hint.into_iter().chain(rows.map(|(row, _)| row.name)) {
            let records = self.array.access(&volume).await?;
            if records.iter().any(|record| record.user == user) {
                return Ok(Some((volume, records)));
            }
        }
        Ok(None)
    }

    async fn let_out(&self, volume: &str, mut records: Vec<AccessRecord>, user: &str) -> DriverResult<()> {
        // One at a time and looked at again: ids are small numbers that are given again.
        while let Some(record) = records.iter().find(|record| record.user == user) {
            self.array.on_volume(volume, &format!("access delete {}", record.id)).await?;
            records = self.array.access(volume).await?;
        }
        self.close_volume(volume, &records).await?;
        if records.len() == 1 && self.page(volume).await?.is_some_and(|page| page.multihost) {
            self.array.on_volume(volume, "multihost-access disable").await?;
        }
        Ok(())
    }

    /// Takes offline what none of these records is for. A volume stays online for somebody else's record; generations are
    /// online by our doing alone.
    async fn close_volume(&self, volume: &str, records: &[AccessRecord]) -> DriverResult<()> {
        let ours = |record: &AccessRecord| names::token_of(self.sr, &record.user).is_some();
        let foreign = records.iter().any(|record| !ours(record));
        for generation in self.generations(volume).await? {
            if generation.online && !self.is_for(records, generation.id) {
                self.array.on_snapshot(volume, &generation.snapshot, "offline").await?;
            }
        }
        let used = foreign || records.iter().any(|record| ours(record) && names::mark_of(&record.user).is_none());
        match self.page(volume).await? {
            Some(page) if !used => self.take_offline(&page).await,
            _ => Ok(()),
        }
    }

    fn is_for(&self, records: &[AccessRecord], generation: Uuid) -> bool {
        let mark = names::mark(generation);
        let ours = records.iter().filter(|record| names::token_of(self.sr, &record.user).is_some());
        ours.filter_map(|record| names::mark_of(&record.user)).any(|found| found == mark)
    }

    async fn close_unused(&self) -> DriverResult<()> {
        for (row, role) in self.rows().await? {
            if role != Role::Template && (row.online || row.snapshots > 0) {
                let records = self.array.access(&row.name).await?;
                self.close_volume(&row.name, &records).await?;
            }
        }
        Ok(())
    }

    /// `Busy` while somebody may log in to the volume itself by our doing.
    pub async fn refuse_attached(&self, volume: &str) -> DriverResult<()> {
        let records = self.array.access(volume).await?;
        let ours = |record: &&AccessRecord| names::token_of(self.sr, &record.user).is_some();
        match records.iter().filter(ours).find(|record| names::mark_of(&record.user).is_none()) {
            None => Ok(()),
            Some(record) => Err(attached(volume, &record.initiator)),
        }
    }

    /// `Busy` while somebody may log in to the generation; else it is offline afterwards.
    pub async fn close_generation(&self, generation: &Generation) -> DriverResult<()> {
        if !generation.online {
            return Ok(());
        }
        let records = self.array.access(&generation.volume).await?;
        if self.is_for(&records, generation.id) {
            return Err(attached(&generation.snapshot, "a machine"));
        }
        self.array.on_snapshot(&generation.volume, &generation.snapshot, "offline").await?;
        Ok(())
    }

    fn secret(&self, token: &str) -> Secret {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.options.password.expose().as_bytes());
        let tag = hmac::sign(&key, format!("tanada chap {} {token}", self.sr).as_bytes());
        let characters = tag.as_ref().iter().take(SECRET_CHARACTERS);
        Secret::new(characters.map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect::<String>())
    }
}

fn attached(name: &str, initiator: &str) -> DriverError {
    DriverError::new(DriverErrorKind::Busy, format!("{name} is attached to {initiator}"))
}

fn is_initiator(name: &str) -> bool {
    let known = name.starts_with("iqn.") || name.starts_with("eui.") || name.starts_with("naa.");
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-".contains(&byte));
    known && plain && name.len() <= 223
}

fn invalid(words: String) -> DriverError {
    DriverError::new(DriverErrorKind::InvalidArgument, words)
}

fn gone(name: &str) -> DriverError {
    DriverError::new(DriverErrorKind::NotFound, format!("{name} is gone from the group"))
}
