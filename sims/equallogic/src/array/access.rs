//! Who may log in: access records, CHAP accounts, and the judgement of one login.

use crate::array::blocks::{DiskId, Login};
use crate::array::volume::{AccessRecord, Volume};
use crate::array::{Array, Group, Outcome, Refused};

/// Access records of a volume.
const RECORDS_MAX: usize = 16;

/// A login that the group lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    pub disk: DiskId,
    /// The CHAP account that the initiator has to use.
    pub chap_user: Option<String>,
}

/// Why an initiator stays outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginRefusal {
    /// No such target, or offline.
    NoTarget,
    /// No access record matches.
    NoRecord,
    /// Another initiator is logged in, and the volume is not for several.
    SecondHost,
}

impl Array {
    /// Returns the number of the record.
    pub fn create_access(&mut self, volume: &str, record: AccessRecord) -> Outcome<u32> {
        if let Some(user) = record.chap_user.as_ref().filter(|user| !self.group.chap.contains_key(*user)) {
            return Err(Refused::missing("CHAP user", user));
        }
        let records = &mut self.group.volume_mut(volume)?.access;
        if records.len() >= RECORDS_MAX {
            return Err(Refused(format!("Volume {volume} has {RECORDS_MAX} access records, which is the limit.")));
        }
        let id = (1..).find(|id| !records.contains_key(id)).unwrap_or(u32::MAX);
        records.insert(id, record);
        Ok(id)
    }

    pub fn delete_access(&mut self, volume: &str, id: u32) -> Outcome<()> {
        let gone = self.group.volume_mut(volume)?.access.remove(&id);
        gone.map(|_| ()).ok_or_else(|| Refused::missing("Access record", &id.to_string()))
    }

    pub fn create_chap_user(&mut self, user: &str, secret: String) -> Outcome<()> {
        if user.is_empty() || user.len() > 63 || user.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Refused(format!(
                "CHAP user name {user} is invalid: 1 to 63 characters without blanks are allowed."
            )));
        }
        if self.group.chap.contains_key(user) {
            return Err(Refused(format!("CHAP user {user} already exists.")));
        }
        check_secret(&secret)?;
        self.group.chap.insert(user.into(), secret);
        Ok(())
    }

    pub fn set_chap_secret(&mut self, user: &str, secret: String) -> Outcome<()> {
        check_secret(&secret)?;
        let known = self.group.chap.get_mut(user).ok_or_else(|| Refused::missing("CHAP user", user))?;
        *known = secret;
        Ok(())
    }

    pub fn delete_chap_user(&mut self, user: &str) -> Outcome<()> {
        self.group.chap.remove(user).map(|_| ()).ok_or_else(|| Refused::missing("CHAP user", user))
    }
}

fn check_secret(secret: &str) -> Outcome<()> {
    match (12..=254).contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(Refused("CHAP password is invalid: 12 to 254 printable ASCII characters are required.".into())),
    }
}

impl Group {
    /// Judges a login to the target `iqn` by an initiator at an address, while others are logged in.
    pub fn admit(
        &self,
        initiator: &str,
        address: &str,
        iqn: &str,
        logins: &[Login],
    ) -> Result<Admission, LoginRefusal> {
        let export = self.exports().into_iter().find(|export| export.iqn == iqn).ok_or(LoginRefusal::NoTarget)?;
        let volume = self.volumes.values().find(|volume| owns(volume, iqn)).ok_or(LoginRefusal::NoTarget)?;
        let snapshot = volume.iqn != iqn;
        let mut records = volume.access.values().filter(|record| record.matches(initiator, address, snapshot));
        let record = records.next().ok_or(LoginRefusal::NoRecord)?;
        let others = logins.iter().any(|login| login.iqn == iqn && login.initiator != initiator);
        if others && !volume.multihost {
            return Err(LoginRefusal::SecondHost);
        }
        Ok(Admission { disk: export.disk, chap_user: record.chap_user.clone() })
    }

    /// The targets that discovery shows to an initiator, wherever it is.
    pub fn visible(&self, initiator: &str) -> Vec<String> {
        let mut visible = Vec::new();
        for export in self.exports() {
            let volume = self.volumes.values().find(|volume| owns(volume, &export.iqn));
            let mut records = volume.iter().flat_map(|volume| volume.access.values());
            if records.any(|record| record.initiator.as_deref().is_none_or(|name| name == initiator)) {
                visible.push(export.iqn);
            }
        }
        visible
    }
}

fn owns(volume: &Volume, iqn: &str) -> bool {
    volume.iqn == iqn || volume.snapshots.iter().any(|snapshot| snapshot.iqn == iqn)
}

#[cfg(test)]
mod tests {
    use crate::array::access::LoginRefusal;
    use crate::array::blocks::Login;
    use crate::array::volume::{AccessRecord, AppliesTo};
    use crate::array::{VolumeSpec, array};

    fn record(initiator: &str, chap: Option<&str>) -> AccessRecord {
        AccessRecord {
            initiator: Some(initiator.into()),
            address: "*.*.*.*".into(),
            chap_user: chap.map(str::to_string),
            applies_to: AppliesTo::Both,
        }
    }

    #[test]
    fn logins_are_judged_by_records_state_and_others() {
        let (mut array, _) = array(10_000);
        let iqn = array.create_volume(VolumeSpec::new("v", 100)).expect("a volume");
        assert_eq!(array.group.admit("iqn.a", "127.0.0.1", &iqn, &[]), Err(LoginRefusal::NoRecord));
        assert!(array.create_access("v", record("iqn.a", Some("u"))).is_err(), "no such CHAP user");
        array.create_chap_user("u", "secretsecret".into()).expect("a user");
        array.create_access("v", record("iqn.a", Some("u"))).expect("a record");
        array.create_access("v", record("iqn.b", None)).expect("a record");
        let admitted = array.group.admit("iqn.a", "127.0.0.1", &iqn, &[]).expect("admitted");
        assert_eq!(admitted.chap_user.as_deref(), Some("u"));
        let there = [Login { iqn: iqn.clone(), initiator: "iqn.a".into(), address: "127.0.0.1".into() }];
        assert!(array.group.admit("iqn.a", "127.0.0.1", &iqn, &there).is_ok(), "a second path of the same host");
        assert_eq!(array.group.admit("iqn.b", "127.0.0.1", &iqn, &there), Err(LoginRefusal::SecondHost));
        array.group.volume_mut("v").expect("v").multihost = true;
        assert!(array.group.admit("iqn.b", "127.0.0.1", &iqn, &there).is_ok());
        assert_eq!(array.group.visible("iqn.b"), std::slice::from_ref(&iqn));
        array.set_online("v", false).expect("offline");
        assert_eq!(array.group.admit("iqn.a", "127.0.0.1", &iqn, &[]), Err(LoginRefusal::NoTarget));
    }

    #[test]
    fn numbers_of_records_are_small_and_used_again() {
        let (mut array, _) = array(10_000);
        array.create_volume(VolumeSpec::new("v", 100)).expect("a volume");
        for expected in 1..=16 {
            assert_eq!(array.create_access("v", record("iqn.a", None)).expect("a record"), expected);
        }
        assert!(array.create_access("v", record("iqn.a", None)).is_err(), "16 are the limit");
        array.delete_access("v", 3).expect("deleted");
        assert_eq!(array.create_access("v", record("iqn.a", None)).expect("a record"), 3);
    }
}
