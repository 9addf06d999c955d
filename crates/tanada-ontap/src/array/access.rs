//! Who may reach a LUN: igroups, maps and CHAP credentials.

use serde_json::json;
use tanada_driver::Chap;

use super::{Array, appears};
use crate::error::{ArrayResult, absent, code};
use crate::model::{Igroup, LunMap};
use crate::query::{Query, segment};

const IGROUPS: &str = "/protocols/san/igroups";
const MAPS: &str = "/protocols/san/lun-maps";
const CREDENTIALS: &str = "/protocols/san/iscsi/credentials";

impl Array {
    pub async fn igroup(&self, name: &str) -> ArrayResult<Option<Igroup>> {
        let query = self.here().with("name", name).fields("uuid,name,initiators");
        Ok(self.rest.list::<Igroup>(IGROUPS, &query).await?.into_iter().find(|igroup| igroup.name == name))
    }

    /// The igroup of one initiator, made where it is missing.
    pub async fn ensure_igroup(&self, name: &str, initiator: &str) -> ArrayResult<Igroup> {
        let found = match self.igroup(name).await? {
            Some(found) => found,
            None => {
                let body = json!({
                    "svm": {"name": self.svm.name},
                    "name": name,
                    "protocol": "iscsi",
                    "os_type": "linux",
                    "initiators": [{"name": initiator}],
                });
                match self.post(IGROUPS, &Query::new(), &body).await {
                    Err(error) if error.is(code::IGROUP_EXISTS) => {}
                    other => drop(other?),
                }
                appears(&format!("igroup {name}"), || self.igroup(name)).await?
            }
        };
        if !found.initiators.iter().any(|one| one.name == initiator) {
            let path = format!("{IGROUPS}/{}/initiators", segment(&found.uuid));
            match self.post(&path, &Query::new(), &json!({"name": initiator})).await {
                Err(error) if error.is(code::INITIATOR_EXISTS) => {}
                other => drop(other?),
            }
        }
        Ok(found)
    }

    /// False where it was not there. One with maps is refused.
    pub async fn delete_igroup(&self, uuid: &str) -> ArrayResult<bool> {
        let done = self.delete(&format!("{IGROUPS}/{}", segment(uuid)), &Query::new()).await;
        Ok(absent(done, code::IGROUP_UNKNOWN)?.is_some())
    }

    /// Maps of an igroup, or of a LUN.
    pub async fn maps(&self, field: &str, uuid: &str) -> ArrayResult<Vec<LunMap>> {
        let query = self.here().with(field, uuid).fields("lun,igroup,logical_unit_number");
        self.rest.list(MAPS, &query).await
    }

    async fn map_between(&self, lun: &str, igroup: &str) -> ArrayResult<Option<LunMap>> {
        Ok(self.maps("lun.uuid", lun).await?.into_iter().find(|map| map.igroup.uuid == igroup))
    }

    /// Shows the LUN to the igroup; returns its number there.
    pub async fn ensure_map(&self, lun: &str, igroup: &str) -> ArrayResult<u32> {
        let body = json!({"svm": {"name": self.svm.name}, "lun": {"uuid": lun}, "igroup": {"uuid": igroup}});
        match self.post(MAPS, &Query::new(), &body).await {
            Err(error) if error.is(code::MAP_EXISTS) => {}
            other => drop(other?),
        }
        let numbered = appears("a LUN map", || async {
            Ok(self.map_between(lun, igroup).await?.and_then(|map| map.logical_unit_number))
        });
        numbered.await
    }

    /// False where it was not there.
    pub async fn delete_map(&self, lun: &str, igroup: &str) -> ArrayResult<bool> {
        let path = format!("{MAPS}/{}/{}", segment(lun), segment(igroup));
        Ok(absent(self.delete(&path, &Query::new()).await, &[code::MAP_UNKNOWN])?.is_some())
    }

    /// Lets `initiator` log in with `chap` only. What it had before counts until its next login.
    pub async fn ensure_credential(&self, initiator: &str, chap: &Chap) -> ArrayResult<()> {
        let inbound = json!({"user": chap.user, "password": chap.secret.expose()});
        let body = json!({
            "svm": {"name": self.svm.name},
            "initiator": initiator,
            "authentication_type": "chap",
            "chap": {"inbound": inbound},
        });
        match self.post(CREDENTIALS, &Query::new(), &body).await {
            Err(error) if error.is(code::CREDENTIAL_EXISTS) => {
                let body = json!({"authentication_type": "chap", "chap": {"inbound": inbound}});
                self.patch(&self.credential(initiator), &Query::new(), &body).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    pub async fn delete_credential(&self, initiator: &str) -> ArrayResult<bool> {
        let done = self.delete(&self.credential(initiator), &Query::new()).await;
        Ok(absent(done, &[code::CREDENTIAL_UNKNOWN])?.is_some())
    }

    fn credential(&self, initiator: &str) -> String {
        format!("{CREDENTIALS}/{}/{}", segment(&self.svm.uuid), segment(initiator))
    }
}
