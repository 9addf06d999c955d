//! What initiators see: every (SVM, initiator) has a target of its own in tgtd, kept in line with maps and credentials.
//!
//! [`Doorkeeper`] answers the router. It has its own lock: the router asks it while commands are under way, and the array
//! may be waiting for just those commands to end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sim_target::router::{Director, Discovery, Login, Refusal, Route};
use sim_target::{Chap, Identity};
use uuid::Uuid;

use crate::api::error::ApiResult;
use crate::model::Array;
use crate::model::state::{Credential, Lun};

/// 60 0a 09 80, then the serial number.
const NAA_PREFIX: [u8; 4] = [0x60, 0x0a, 0x09, 0x80];

/// A LUN as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    lun: Uuid,
    volume: Uuid,
    size: u64,
    serial: String,
    thin: bool,
    read_only: bool,
    online: bool,
}

impl Shown {
    /// Whether another state of a LUN needs it to be taken away and shown again.
    fn is_same_disk(&self, other: &Shown) -> bool {
        (self.lun, self.volume, self.size, self.thin) == (other.lun, other.volume, other.size, other.thin)
    }
}

#[derive(Default)]
struct View {
    target: String,
    luns: BTreeMap<u16, Shown>,
    chap: (Option<Chap>, Option<Chap>),
}

#[derive(Default)]
struct Views {
    /// By SVM and initiator.
    views: BTreeMap<(String, String), View>,
    made: u64,
}

impl Views {
    /// One initiator is of one SVM at a portal.
    fn lun(&self, login: &Login, number: u16) -> Option<&Shown> {
        self.views.iter().find_map(|((_, initiator), view)| {
            (*initiator == login.initiator).then(|| view.luns.get(&number)).flatten()
        })
    }
}

/// Judges logins for the router.
#[derive(Default)]
pub struct Doorkeeper {
    views: Mutex<Views>,
    array: Mutex<Weak<Mutex<Array>>>,
}

impl Doorkeeper {
    fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The array is made after its doorkeeper.
    pub fn serve(&self, array: &Arc<Mutex<Array>>) {
        *self.array.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(array);
    }

    fn array(&self) -> Option<Arc<Mutex<Array>>> {
        self.array.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    fn judge(&self, login: &Login) -> Result<String, Refusal> {
        let array = self.array().ok_or(Refusal::SERVICE_UNAVAILABLE)?;
        let mut array = array.lock().unwrap_or_else(PoisonError::into_inner);
        let svm = array.svm_of_portal(login.portal).ok_or(Refusal::SERVICE_UNAVAILABLE)?;
        let service = array.svm(&svm).ok().and_then(|svm| svm.iscsi.clone()).filter(|service| service.enabled);
        let service = service.ok_or(Refusal::SERVICE_UNAVAILABLE)?;
        if service.target != login.target {
            return Err(Refusal::NOT_FOUND);
        }
        if array.credential_for(&svm, &login.initiator).is_some_and(|found| found.kind == "deny") {
            return Err(Refusal::AUTHENTICATION);
        }
        // Anybody may log in; without maps there is nothing to see.
        array.open_view(&svm, &login.initiator).map_err(|error| {
            tracing::warn!(message = error.message, "a target could not be made");
            Refusal::SERVICE_UNAVAILABLE
        })
    }
}

impl Director for Doorkeeper {
    fn login(&self, login: &Login) -> Route {
        self.judge(login).map_or_else(Route::Refuse, |target| Route::Accept { target })
    }

    fn discover(&self, initiator: &str, portal: SocketAddr) -> Result<Discovery, Refusal> {
        let array = self.array().ok_or(Refusal::SERVICE_UNAVAILABLE)?;
        let array = array.lock().unwrap_or_else(PoisonError::into_inner);
        let svm = array.svm_of_portal(portal).ok_or(Refusal::SERVICE_UNAVAILABLE)?;
        let service = array.svm(&svm).ok().and_then(|svm| svm.iscsi.clone()).filter(|service| service.enabled);
        let service = service.ok_or(Refusal::SERVICE_UNAVAILABLE)?;
        let credential = array.credential_for(&svm, initiator);
        if credential.is_some_and(|found| found.kind == "deny") {
            return Err(Refusal::AUTHENTICATION);
        }
        let usable = array.state.interfaces.iter().filter(|lif| lif.svm == svm && lif.enabled && lif.up);
        // One target portal group per LIF.
        let portals = usable.enumerate().map(|(number, lif)| format!("{},{}", lif.address, 1027 + number)).collect();
        let chap = credential.and_then(|found| chaps(found).0);
        Ok(Discovery { targets: vec![(service.target, portals)], chap })
    }

    fn naa(&self, login: &Login, lun: u16) -> Option<[u8; 16]> {
        let serial = self.views().lun(login, lun)?.serial.clone();
        let mut naa = [0; 16];
        naa[..4].copy_from_slice(&NAA_PREFIX);
        naa[4..].copy_from_slice(serial.as_bytes().get(..12)?);
        Some(naa)
    }

    fn is_full(&self, login: &Login, lun: u16) -> bool {
        // Nothing else makes a LUN read-only here.
        self.views().lun(login, lun).is_some_and(|shown| shown.read_only)
    }
}

fn chaps(credential: &Credential) -> (Option<Chap>, Option<Chap>) {
    if credential.kind != "chap" {
        return (None, None);
    }
    [&credential.inbound, &credential.outbound]
        .map(|account| account.as_ref().map(|it| Chap { user: it.user.clone(), secret: it.password.clone() }))
        .into()
}

impl Array {
    fn svm_of_portal(&self, portal: SocketAddr) -> Option<String> {
        let lif = self.state.interfaces.iter().find(|lif| SocketAddr::V4(lif.address) == portal)?;
        (lif.enabled && lif.up).then(|| lif.svm.clone())
    }

    fn credential_for(&self, svm: &str, initiator: &str) -> Option<&Credential> {
        self.credential(svm, initiator).or_else(|| self.credential(svm, "default"))
    }

    /// The target of an initiator, made if need be.
    fn open_view(&mut self, svm: &str, initiator: &str) -> ApiResult<String> {
        let key = (svm.to_string(), initiator.to_string());
        let target = {
            let doorkeeper = Arc::clone(&self.doorkeeper);
            let mut views = doorkeeper.views();
            if let Some(view) = views.views.get(&key) {
                return Ok(view.target.clone());
            }
            views.made += 1;
            let target = format!("iqn.1992-08.sim.ontap:view.{}", views.made);
            self.target.add_target(&target)?;
            views.views.insert(key, View { target: target.clone(), ..View::default() });
            target
        };
        self.present()?;
        Ok(target)
    }

    /// What an initiator is to see.
    fn wanted(&self, svm: &str, initiator: &str) -> BTreeMap<u16, Shown> {
        let maps = self.state.maps.iter().filter(|map| {
            let igroup = self.state.igroups.get(&map.igroup);
            igroup.is_some_and(|igroup| igroup.svm == svm && igroup.initiators.iter().any(|name| name == initiator))
        });
        maps.filter_map(|map| Some((map.number, self.shown(self.state.luns.get(&map.lun)?)?))).collect()
    }

    fn shown(&self, lun: &Lun) -> Option<Shown> {
        let volume = self.state.volumes.get(&lun.volume)?;
        Some(Shown {
            lun: lun.uuid,
            volume: lun.volume,
            size: lun.facts.size,
            serial: lun.serial.clone(),
            thin: lun.thin,
            read_only: lun.space_error && lun.thin,
            online: lun.enabled && volume.state == "online",
        })
    }

    /// Brings every target in line with the maps. Views exist for initiators that logged in.
    pub(super) fn present(&mut self) -> ApiResult<()> {
        let doorkeeper = Arc::clone(&self.doorkeeper);
        let keys: Vec<(String, String)> = doorkeeper.views().views.keys().cloned().collect();
        for (svm, initiator) in keys {
            let wanted = self.wanted(&svm, &initiator);
            let chap = self.credential_for(&svm, &initiator).map(chaps).unwrap_or_default();
            let key = (svm, initiator);
            let (target, before, chap_before) = match doorkeeper.views().views.get(&key) {
                Some(view) => (view.target.clone(), view.luns.clone(), view.chap.clone()),
                None => continue,
            };
            if chap != chap_before {
                self.target.set_chap(&target, chap.0.as_ref(), chap.1.as_ref())?;
            }
            // Known before the first command can ask for it.
            if let Some(view) = doorkeeper.views().views.get_mut(&key) {
                view.chap = chap;
                view.luns.clone_from(&wanted);
            }
            if let Err(error) = self.show(&target, &before, &wanted) {
                // Half shown: what is not known to be there is tried again next time.
                if let Some(view) = doorkeeper.views().views.get_mut(&key) {
                    view.luns = before;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn show(&self, target: &str, before: &BTreeMap<u16, Shown>, wanted: &BTreeMap<u16, Shown>) -> ApiResult<()> {
        let revision = self.state.cluster.version.map(|part| part.to_string()).concat();
        for (number, old) in before {
            match wanted.get(number) {
                Some(new) if old.is_same_disk(new) => self.switch(target, *number, old, new)?,
                Some(new) if old.lun == new.lun => {
                    // Grown, or its thin flag turned: the initiator notices a pause and a unit attention.
                    self.router.held(|| {
                        self.target.remove_lun(target, *number)?;
                        self.add(target, *number, new, &revision)
                    })?;
                }
                // Between two commands: an initiator that never pauses would keep the LUN busy for ever.
                _ => self.router.held(|| self.target.remove_lun(target, *number))?,
            }
        }
        for (number, new) in wanted {
            if before.get(number).is_none_or(|old| old.lun != new.lun) {
                self.add(target, *number, new, &revision)?;
            }
        }
        Ok(())
    }

    fn switch(&self, target: &str, number: u16, old: &Shown, new: &Shown) -> ApiResult<()> {
        if old.read_only != new.read_only {
            self.target.set_read_only(target, number, new.read_only)?;
        }
        if old.online != new.online {
            self.target.set_online(target, number, new.online)?;
        }
        Ok(())
    }

    fn add(&self, target: &str, number: u16, shown: &Shown, revision: &str) -> ApiResult<()> {
        let identity = Identity {
            vendor: "NETAPP".into(),
            product: "LUN C-Mode".into(),
            revision: revision.chars().take(4).collect(),
            serial: shown.serial.clone(),
        };
        let path = self.lun_file(shown.volume, shown.lun);
        self.target.add_lun(target, number, &path, &identity, shown.thin, shown.read_only)?;
        if !shown.online {
            self.target.set_online(target, number, false)?;
        }
        Ok(())
    }
}
