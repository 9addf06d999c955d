//! Who may see which LUN: igroups, maps, CHAP credentials.

use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::Array;
use crate::model::lun::OS_TYPES;
use crate::model::names::{check_igroup, check_initiator};
use crate::model::state::{Account, Credential, Igroup, Interface, LunMap};

const LUN_NUMBER_MAX: u16 = 4095;
const PASSWORD_MAX: usize = 512;
const USER_MAX: usize = 128;

#[derive(Debug, Clone, Default)]
pub struct NewIgroup {
    pub svm: String,
    pub name: String,
    pub protocol: String,
    pub os_type: String,
    pub comment: String,
    pub initiators: Vec<String>,
    pub delete_on_unmap: bool,
}

/// A wish to map: by uuid.
#[derive(Debug, Clone, Copy)]
pub struct MapRequest {
    pub lun: Uuid,
    pub igroup: Uuid,
    pub number: Option<u16>,
}

/// New or changed credentials. What is absent stays.
#[derive(Clone, Default)]
pub struct CredentialChange {
    pub kind: Option<String>,
    pub inbound_user: Option<String>,
    pub inbound_password: Option<String>,
    pub outbound_user: Option<String>,
    pub outbound_password: Option<String>,
}

impl Array {
    pub fn igroup(&self, uuid: Uuid) -> ApiResult<&Igroup> {
        self.state
            .igroups
            .get(&uuid)
            .ok_or_else(|| ApiError::missing(5374852, format!("The initiator group {uuid} does not exist.")).at("uuid"))
    }

    pub fn igroup_named(&self, svm: &str, name: &str) -> Option<&Igroup> {
        self.state.igroups.values().find(|igroup| igroup.svm == svm && igroup.name == name)
    }

    pub fn create_igroup(&mut self, new: &NewIgroup, uuid: Uuid) -> ApiResult<()> {
        self.svm(&new.svm)?;
        check_igroup(&new.name)?;
        if self.igroup_named(&new.svm, &new.name).is_some() {
            let words = format!("The initiator group \"{}\" already exists.", new.name);
            return Err(ApiError::conflict(5374023, words).at("name"));
        }
        if !["iscsi", "fcp", "mixed"].contains(&new.protocol.as_str()) {
            return Err(ApiError::bad_value("protocol", &new.protocol));
        }
        if !OS_TYPES.contains(&new.os_type.as_str()) {
            return Err(ApiError::bad_value("os_type", &new.os_type));
        }
        new.initiators.iter().try_for_each(|name| check_initiator(name))?;
        for name in &new.initiators {
            let elsewhere = self.state.igroups.values().find(|igroup| {
                igroup.svm == new.svm && igroup.initiators.contains(name) && igroup.os_type != new.os_type
            });
            if let Some(other) = elsewhere {
                let words = format!("The initiator \"{name}\" is in igroup \"{}\" of another os_type.", other.name);
                return Err(ApiError::conflict(5374732, words).at("os_type"));
            }
        }
        let igroup = Igroup {
            uuid,
            name: new.name.clone(),
            svm: new.svm.clone(),
            protocol: new.protocol.clone(),
            os_type: new.os_type.clone(),
            comment: new.comment.clone(),
            initiators: new.initiators.clone(),
            delete_on_unmap: new.delete_on_unmap,
        };
        self.state.igroups.insert(uuid, igroup);
        self.settle()
    }

    pub fn change_igroup(
        &mut self,
        uuid: Uuid,
        name: Option<String>,
        os_type: Option<String>,
        comment: Option<String>,
    ) -> ApiResult<()> {
        let igroup = self.igroup(uuid)?;
        if let Some(name) = &name {
            check_igroup(name)?;
            if self.igroup_named(&igroup.svm, name).is_some_and(|other| other.uuid != uuid) {
                return Err(
                    ApiError::conflict(5374023, format!("The initiator group \"{name}\" already exists.")).at("name")
                );
            }
        }
        if let Some(os_type) = os_type.as_ref().filter(|os_type| !OS_TYPES.contains(&os_type.as_str())) {
            return Err(ApiError::bad_value("os_type", os_type));
        }
        if let Some(igroup) = self.state.igroups.get_mut(&uuid) {
            igroup.name = name.unwrap_or_else(|| igroup.name.clone());
            igroup.os_type = os_type.unwrap_or_else(|| igroup.os_type.clone());
            igroup.comment = comment.unwrap_or_else(|| igroup.comment.clone());
        }
        self.settle()
    }

    pub fn delete_igroup(&mut self, uuid: Uuid, while_mapped: bool) -> ApiResult<()> {
        let igroup = self.igroup(uuid)?;
        if !while_mapped && self.state.maps.iter().any(|map| map.igroup == uuid) {
            let words = format!("The initiator group \"{}\" has LUN maps.", igroup.name);
            return Err(ApiError::conflict(1254213, words));
        }
        self.state.maps.retain(|map| map.igroup != uuid);
        self.state.igroups.remove(&uuid);
        self.settle()
    }

    pub fn add_initiator(&mut self, uuid: Uuid, name: &str) -> ApiResult<()> {
        check_initiator(name)?;
        let igroup = self.igroup(uuid)?;
        if igroup.initiators.iter().any(|there| there == name) {
            let words = format!("The initiator \"{name}\" is already in igroup \"{}\".", igroup.name);
            return Err(ApiError::conflict(5374035, words).at("name"));
        }
        let maps: Vec<LunMap> = self.state.maps.iter().filter(|map| map.igroup == uuid).cloned().collect();
        for map in maps {
            self.check_view(&[name.to_string()], map.lun, map.number, uuid)?;
        }
        if let Some(igroup) = self.state.igroups.get_mut(&uuid) {
            igroup.initiators.push(name.to_string());
        }
        self.settle()
    }

    pub fn remove_initiator(&mut self, uuid: Uuid, name: &str, while_mapped: bool) -> ApiResult<()> {
        let igroup = self.igroup(uuid)?;
        if !igroup.initiators.iter().any(|there| there == name) {
            let words = format!("The initiator \"{name}\" is not in igroup \"{}\".", igroup.name);
            return Err(ApiError::missing(5374034, words).at("name"));
        }
        if !while_mapped && self.state.maps.iter().any(|map| map.igroup == uuid) {
            return Err(ApiError::conflict(1254213, "LUNs are mapped to the initiator group."));
        }
        if let Some(igroup) = self.state.igroups.get_mut(&uuid) {
            igroup.initiators.retain(|there| there != name);
        }
        self.settle()
    }

    /// No initiator may see a LUN twice, or two LUNs under one number.
    fn check_view(&self, initiators: &[String], lun: Uuid, number: u16, through: Uuid) -> ApiResult<()> {
        let own = self.igroup(through)?;
        for map in self.state.maps.iter().filter(|map| map.igroup != through) {
            let Some(other) = self.state.igroups.get(&map.igroup).filter(|other| other.svm == own.svm) else {
                continue;
            };
            let Some(both) = initiators.iter().find(|name| other.initiators.contains(name)) else { continue };
            if map.lun == lun {
                let words = format!("The initiator \"{both}\" already sees the LUN through igroup \"{}\".", other.name);
                return Err(ApiError::conflict(1254193, words));
            }
            if map.number == number {
                let words =
                    format!("The initiator \"{both}\" already has a LUN {number} through igroup \"{}\".", other.name);
                return Err(ApiError::conflict(1254324, words));
            }
        }
        Ok(())
    }

    /// Maps a LUN; returns its number.
    pub fn map(&mut self, request: MapRequest) -> ApiResult<u16> {
        let lun = self.state.luns.get(&request.lun);
        let lun = lun.ok_or_else(|| ApiError::missing(1254201, "The specified LUN was not found.").at("lun"))?;
        let igroup = self.igroup(request.igroup)?;
        if self.state.maps.iter().any(|map| map.lun == request.lun && map.igroup == request.igroup) {
            let words = format!("The LUN \"{}\" is already mapped to igroup \"{}\".", lun.facts.name, igroup.name);
            return Err(ApiError::conflict(1254207, words));
        }
        if !self.state.interfaces.iter().any(|lif| lif.svm == igroup.svm && lif.enabled) {
            return Err(ApiError::invalid(5374581, "The node of the LUN has no iSCSI interface."));
        }
        let taken: Vec<u16> =
            self.state.maps.iter().filter(|map| map.igroup == request.igroup).map(|map| map.number).collect();
        let initiators = igroup.initiators.clone();
        let number = match request.number {
            Some(number) if number > LUN_NUMBER_MAX => {
                return Err(ApiError::bad_value("logical_unit_number", &number.to_string()));
            }
            Some(number) if taken.contains(&number) => {
                let words = format!("LUN number {number} is in use in igroup \"{}\".", igroup.name);
                return Err(ApiError::conflict(1254324, words).at("logical_unit_number"));
            }
            Some(number) => {
                self.check_view(&initiators, request.lun, number, request.igroup)?;
                number
            }
            None => self.lowest_number(&initiators, &taken, request)?,
        };
        self.state.maps.push(LunMap { lun: request.lun, igroup: request.igroup, number });
        self.settle()?;
        Ok(number)
    }

    fn lowest_number(&self, initiators: &[String], taken: &[u16], request: MapRequest) -> ApiResult<u16> {
        for number in (0..=LUN_NUMBER_MAX).filter(|number| !taken.contains(number)) {
            match self.check_view(initiators, request.lun, number, request.igroup) {
                Ok(()) => return Ok(number),
                // Another igroup shows another LUN under this number: try the next.
                Err(error) if error.code == "1254324" => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::invalid(7, "No LUN number is free."))
    }

    pub fn unmap(&mut self, lun: Uuid, igroup: Uuid) -> ApiResult<()> {
        let before = self.state.maps.len();
        self.state.maps.retain(|map| map.lun != lun || map.igroup != igroup);
        if self.state.maps.len() == before {
            return Err(ApiError::missing(5374922, "The specified LUN map does not exist."));
        }
        let is_empty = !self.state.maps.iter().any(|map| map.igroup == igroup);
        if is_empty && self.state.igroups.get(&igroup).is_some_and(|igroup| igroup.delete_on_unmap) {
            self.state.igroups.remove(&igroup);
        }
        self.settle()
    }

    /// Changes an interface; portals open and close with it.
    pub fn set_interface(&mut self, uuid: Uuid, change: impl FnOnce(&mut Interface)) -> ApiResult<()> {
        let lif = self.state.interfaces.iter_mut().find(|lif| lif.uuid == uuid).ok_or_else(ApiError::no_entry)?;
        let before = lif.enabled && lif.up;
        change(lif);
        let (after, portal) = (lif.enabled && lif.up, lif.address.into());
        match (before, after) {
            (true, false) => self.router.close(portal),
            (false, true) => {
                self.router.open(portal)?;
            }
            _ => {}
        }
        self.settle()
    }

    pub fn credential(&self, svm: &str, initiator: &str) -> Option<&Credential> {
        self.state.credentials.iter().find(|found| found.svm == svm && found.initiator == initiator)
    }

    pub fn create_credential(&mut self, svm: &str, initiator: &str, change: &CredentialChange) -> ApiResult<()> {
        if self.svm(svm)?.iscsi.is_none() {
            return Err(ApiError::invalid(5374078, format!("SVM \"{svm}\" has no iSCSI service.")));
        }
        if initiator != "default" {
            check_initiator(initiator)?;
        }
        if self.credential(svm, initiator).is_some() {
            let words = format!("Credentials for \"{initiator}\" already exist.");
            return Err(ApiError::conflict(5374142, words).at("initiator"));
        }
        let blank = Credential {
            svm: svm.into(),
            initiator: initiator.into(),
            kind: "none".into(),
            inbound: None,
            outbound: None,
        };
        let credential = changed(&blank, change)?;
        self.state.credentials.push(credential);
        self.settle()
    }

    pub fn change_credential(&mut self, svm: &str, initiator: &str, change: &CredentialChange) -> ApiResult<()> {
        let credential = changed(self.existing_credential(svm, initiator)?, change)?;
        if let Some(slot) =
            self.state.credentials.iter_mut().find(|found| found.svm == svm && found.initiator == initiator)
        {
            *slot = credential;
        }
        self.settle()
    }

    fn existing_credential(&self, svm: &str, initiator: &str) -> ApiResult<&Credential> {
        self.credential(svm, initiator)
            .ok_or_else(|| ApiError::missing(5374895, format!("There are no credentials for \"{initiator}\".")))
    }

    pub fn delete_credential(&mut self, svm: &str, initiator: &str) -> ApiResult<()> {
        self.existing_credential(svm, initiator)?;
        if initiator == "default" {
            return Err(ApiError::invalid(5374148, "The default credentials cannot be deleted."));
        }
        self.state.credentials.retain(|found| found.svm != svm || found.initiator != initiator);
        self.settle()
    }
}

/// Credentials after a change, judged.
fn changed(before: &Credential, change: &CredentialChange) -> ApiResult<Credential> {
    let mut after = before.clone();
    if let Some(kind) = &change.kind {
        after.kind = kind.to_ascii_lowercase();
    }
    if !["chap", "none", "deny"].contains(&after.kind.as_str()) {
        return Err(ApiError::bad_value("authentication_type", &after.kind));
    }
    let has_chap = change.inbound_user.is_some() || change.inbound_password.is_some() || change.outbound_user.is_some();
    if after.kind != "chap" {
        if has_chap {
            return Err(ApiError::invalid(5374900, "CHAP data go with authentication_type \"chap\" only.").at("chap"));
        }
        (after.inbound, after.outbound) = (None, None);
        return Ok(after);
    }
    after.inbound = account(before.inbound.as_ref(), &change.inbound_user, &change.inbound_password, 5374149)?;
    after.outbound = match change.outbound_user.as_deref() {
        Some("") => None,
        None if before.outbound.is_none() && change.outbound_password.is_none() => None,
        _ => account(before.outbound.as_ref(), &change.outbound_user, &change.outbound_password, 5374150)?,
    };
    if after.inbound.is_none() {
        return Err(ApiError::invalid(5374149, "Inbound user and password are needed.").at("chap.inbound"));
    }
    let [inbound, outbound] = [&after.inbound, &after.outbound].map(|account| account.as_ref().map(|it| &it.password));
    if outbound.is_some() && inbound == outbound {
        return Err(ApiError::invalid(5374147, "Inbound and outbound passwords must differ.").at("chap"));
    }
    Ok(after)
}

fn account(
    before: Option<&Account>,
    user: &Option<String>,
    password: &Option<String>,
    code: u32,
) -> ApiResult<Option<Account>> {
    let user = user.clone().or_else(|| before.map(|account| account.user.clone()));
    let password = password.clone().or_else(|| before.map(|account| account.password.clone()));
    let (Some(user), Some(password)) = (user, password) else {
        return Err(ApiError::invalid(code, "A user needs a password, and a password a user.").at("chap"));
    };
    if password.is_empty() || password.len() > PASSWORD_MAX || user.is_empty() || user.len() > USER_MAX {
        return Err(ApiError::invalid(code, "A CHAP user or password is empty or too long.").at("chap"));
    }
    let hex = password.strip_prefix("0x");
    if hex.is_some_and(|hex| hex.len() % 2 != 0 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Err(ApiError::invalid(5374145, "A hexadecimal password has an odd or a bad digit.").at("chap"));
    }
    Ok(Some(Account { user, password }))
}
