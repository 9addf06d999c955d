//! Attachments: who may log in and sees which LUN.
//!
//! ```text
//!  attach   token on the LUN ─▶ igroup ─▶ map ─▶ CHAP credential ─▶ endpoint
//!  detach   map ─▶ igroup and credential, with the last map ─▶ token
//! ```
//! The token is the first to come and the last to go, so that `detach` finds whatever was done in between. An initiator
//! has one igroup on the SVM, whichever SRs its disks are of. Authorisation is by igroup alone; CHAP proves who logs in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ring::hmac;
use tanada_driver::{AttachRequest, Chap, DriverError, DriverErrorKind, DriverResult, Endpoint, Moved, Secret};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::Sr;
use super::volume::moved;
use crate::error::{code, sm};
use crate::model::Lun;
use crate::names::{self, Attachment, Identity, Kind, METADATA_LUN, TOKEN_PREFIX};

/// One lock for each initiator, over all SRs of the process.
static INITIATORS: Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>> = Mutex::new(BTreeMap::new());
/// An igroup can go between being found and being mapped, where another host ends its last map.
const MAP_ATTEMPTS: u32 = 3;
/// Arrays and initiators agree on 12 to 16 characters.
const SECRET_CHARS: usize = 16;
const CHAP_USER: &str = "tanada";

async fn alone(initiator: &str) -> OwnedMutexGuard<()> {
    let lock = {
        let mut all = INITIATORS.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody waits for need not be remembered.
        all.retain(|name, lock| name == initiator || Arc::strong_count(lock) > 1);
        all.entry(initiator.to_owned()).or_default().clone()
    };
    lock.lock_owned().await
}

impl Sr {
    pub async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint> {
        if !request.initiator.starts_with("iqn.") || request.token.is_empty() {
            let words = format!("initiator {:?} cannot attach; an iqn. name and a token are needed", request.initiator);
            return Err(DriverError::new(DriverErrorKind::InvalidArgument, words));
        }
        let (lun, identity) = self.disk(request.target).await?;
        if request.writable && identity.kind == Kind::Generation {
            let words = format!("{} is a snapshot and cannot be attached for writing", request.target);
            return Err(DriverError::new(DriverErrorKind::InvalidArgument, words));
        }
        let wanted = Attachment {
            token: request.token.clone(),
            writable: request.writable,
            initiator: request.initiator.clone(),
        };
        self.expose(&lun, &wanted).await
    }

    /// Notes the attachment on the LUN and lets its initiator see it.
    pub(super) async fn expose(&self, lun: &Lun, wanted: &Attachment) -> DriverResult<Endpoint> {
        let _alone = alone(&wanted.initiator).await;
        let all = Attachment::all_of(lun);
        match all.iter().find(|one| one.token == wanted.token) {
            Some(found) if found == wanted => {}
            Some(_) => {
                let words = format!("token {} names another attachment of LUN {}", wanted.token, lun.name);
                return Err(DriverError::new(DriverErrorKind::Exists, words));
            }
            None => {
                let other = all.iter().find(|one| one.initiator != wanted.initiator && one.writable);
                if let Some(writer) = other.filter(|_| wanted.writable) {
                    let words = format!("LUN {} is attached for writing by {}", lun.name, writer.initiator);
                    return Err(DriverError::new(DriverErrorKind::Busy, words));
                }
                self.array.set_attribute(&lun.uuid, &wanted.attribute(), &wanted.value(lun.base())).await?;
            }
        }
        let number = self.map(lun, &wanted.initiator).await?;
        let chap = self.chap(&wanted.initiator);
        self.array.ensure_credential(&wanted.initiator, &chap).await?;
        self.endpoint(lun, number, &wanted.initiator, chap).await
    }

    async fn map(&self, lun: &Lun, initiator: &str) -> DriverResult<u32> {
        let name = names::igroup(initiator);
        let mut attempt = 1;
        loop {
            let igroup = self.array.ensure_igroup(&name, initiator).await?;
            match self.array.ensure_map(&lun.uuid, &igroup.uuid).await {
                Err(error) if error.is_any(code::IGROUP_UNKNOWN) && attempt < MAP_ATTEMPTS => attempt += 1,
                other => return Ok(other?),
            }
        }
    }

    /// Portals on the LUN's own node come first: the others reach it through the partner.
    async fn endpoint(&self, lun: &Lun, number: u32, initiator: &str, chap: Chap) -> DriverResult<Endpoint> {
        let service = self.array.iscsi_service().await?.filter(|service| service.enabled);
        let off = || format!("SVM {} does not serve iSCSI now", self.array.svm().name);
        let service =
            service.ok_or_else(|| DriverError::new(DriverErrorKind::Unreachable, off()).with_sm(sm::ISCSI_OFF))?;
        let mut portals = self.array.portals().await?;
        if portals.is_empty() {
            return Err(DriverError::new(DriverErrorKind::Unreachable, off()).with_sm(sm::ISCSI_OFF));
        }
        let node = &lun.location.node.name;
        portals.sort_by_key(|portal| node.is_empty() || portal.location.node.name != *node);
        let port = self.config.iscsi_port;
        let place = |address: &str| match address.contains(':') {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        };
        Ok(Endpoint::Iscsi {
            portals: portals.iter().map(|portal| place(&portal.ip.address)).collect(),
            iqn: service.target.name,
            lun: number,
            initiator: initiator.to_owned(),
            chap: Some(chap),
        })
    }

    /// The administrator's CHAP account, or one of the initiator's own. The latter is not kept anywhere: it follows from
    /// the array's password, so that every attachment of an initiator has the same and no initiator knows another's.
    fn chap(&self, initiator: &str) -> Chap {
        if let Some((user, secret)) = &self.config.chap {
            return Chap { user: user.clone(), secret: secret.clone() };
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.config.password.expose().as_bytes());
        let tag = hmac::sign(&key, format!("tanada chap {} {initiator}", self.array.svm().uuid).as_bytes());
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let letter = |byte: &u8| char::from(ALPHABET[usize::from(byte % 32)]);
        let secret: String = tag.as_ref().iter().take(SECRET_CHARS).map(letter).collect();
        Chap { user: CHAP_USER.to_owned(), secret: Secret::new(secret) }
    }

    async fn luns_with(&self, attribute: &str) -> DriverResult<Vec<Lun>> {
        let found = self.array.luns_with(&self.pattern(), attribute).await?;
        Ok(found.into_iter().filter(|lun| self.owns_flexvol(lun.flexvol())).collect())
    }

    pub async fn detach(&self, token: &str) -> DriverResult<Moved> {
        let mut changed = false;
        for lun in self.luns_with(&format!("{TOKEN_PREFIX}{token}")).await? {
            if let Some(found) = Attachment::all_of(&lun).into_iter().find(|one| one.token == token) {
                self.conceal(&lun, &found).await?;
                changed = true;
            }
        }
        Ok(moved(changed))
    }

    /// Ends one attachment; what another one of the same initiator needs stays.
    pub(super) async fn conceal(&self, lun: &Lun, gone: &Attachment) -> DriverResult<()> {
        let _alone = alone(&gone.initiator).await;
        // Others may have come or gone since the LUN was looked at.
        let Some(lun) = self.array.lun_by_uuid(&lun.uuid).await? else { return Ok(()) };
        let needed =
            Attachment::all_of(&lun).iter().any(|one| one.initiator == gone.initiator && one.token != gone.token);
        if !needed {
            if let Some(igroup) = self.array.igroup(&names::igroup(&gone.initiator)).await? {
                self.array.delete_map(&lun.uuid, &igroup.uuid).await?;
            }
            self.forget_initiator(&gone.initiator).await?;
        }
        self.array.delete_attribute(&lun.uuid, &gone.attribute()).await?;
        Ok(())
    }

    /// With the last map go the igroup and the credential.
    async fn forget_initiator(&self, initiator: &str) -> DriverResult<()> {
        if let Some(igroup) = self.array.igroup(&names::igroup(initiator)).await? {
            if !self.array.maps("igroup.uuid", &igroup.uuid).await?.is_empty() {
                return Ok(());
            }
            match self.array.delete_igroup(&igroup.uuid).await {
                Err(error) if error.is(code::IGROUP_MAPPED) => return Ok(()),
                other => drop(other?),
            }
        }
        self.array.delete_credential(initiator).await?;
        Ok(())
    }

    /// Ends maps of a LUN to igroups of ours for which no token stands. Those of others stay.
    pub(super) async fn drop_stray_maps(&self, lun: &Lun) -> DriverResult<()> {
        let attached = Attachment::all_of(lun);
        for map in self.array.maps("lun.uuid", &lun.uuid).await? {
            let stands = attached.iter().any(|one| names::igroup(&one.initiator) == map.igroup.name);
            if map.igroup.name.starts_with("tanada_") && !stands {
                self.array.delete_map(&lun.uuid, &map.igroup.uuid).await?;
            }
        }
        Ok(())
    }

    /// Tokens of all hosts; the driver's own use of the metadata LUN is not shown.
    pub async fn attachments(&self) -> DriverResult<Vec<String>> {
        let luns = self.luns_with(&format!("{TOKEN_PREFIX}*")).await?;
        let shown = luns.iter().filter(|lun| lun.base() != METADATA_LUN && Identity::of(lun).is_some());
        Ok(shown.flat_map(|lun| Attachment::all_of(lun).into_iter().map(|one| one.token)).collect())
    }
}
