//! `/protocols/san/iscsi`: services, credentials, sessions.

use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, required_text, svm_of};
use crate::model::state::{Credential, IscsiService};
use crate::model::{Array, CredentialChange};
use crate::resources::svm_ref;

pub struct Services;

/// The name of an SVM by the uuid in a path.
fn svm_by_uuid(array: &Array, uuid: &str) -> ApiResult<String> {
    let found = array.state.svms.iter().find(|svm| svm.uuid.to_string() == uuid);
    found.map(|svm| svm.name.clone()).ok_or_else(|| ApiError::missing(5374078, "There is no such iSCSI service."))
}

impl Resource for Services {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "protocols/san/iscsi/services",
            keys: &["svm.uuid"],
            always: &["svm.name"],
            expensive: &["metric", "statistics"],
            parameters: &[],
            fields: &["svm", "enabled", "target", "metric", "statistics"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let record = |svm: &crate::model::state::Svm| {
            let service = svm.iscsi.as_ref()?;
            Some(json!({
                "svm": { "name": svm.name, "uuid": svm.uuid }, "enabled": service.enabled,
                "target": { "name": service.target, "alias": service.alias },
            }))
        };
        Ok(array.state.svms.iter().filter_map(record).collect())
    }
    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let name = svm_of(array, call)?;
        let enabled = call.body.flag("enabled")?.unwrap_or(true);
        let position = array.state.svms.iter().position(|svm| svm.name == name).unwrap_or(0);
        let Some(svm) = array.state.svms.get_mut(position) else { return Err(ApiError::no_entry()) };
        if svm.iscsi.is_some() {
            return Err(ApiError::conflict(5374077, format!("SVM \"{name}\" has an iSCSI service already.")));
        }
        svm.iscsi = Some(IscsiService::of(svm.uuid, position, &name, enabled));
        let key = svm.uuid.to_string();
        array.state.credentials.push(Credential::open(&name));
        array.settle()?;
        Ok(Written::Now(Some(vec![key])))
    }
    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let name = svm_by_uuid(array, &at[0])?;
        let enabled = call.body.flag("enabled")?;
        let alias = call.body.text("target.alias");
        let svm = array.state.svms.iter_mut().find(|svm| svm.name == name);
        let service = svm.and_then(|svm| svm.iscsi.as_mut());
        let service =
            service.ok_or_else(|| ApiError::missing(5374078, format!("SVM \"{name}\" has no iSCSI service.")))?;
        service.enabled = enabled.unwrap_or(service.enabled);
        service.alias = alias.unwrap_or_else(|| service.alias.clone());
        let portals: Vec<_> =
            array.state.interfaces.iter().filter(|lif| lif.svm == name).map(|lif| lif.address).collect();
        if enabled == Some(false) {
            array.router.cut(|session| portals.iter().any(|portal| session.login.portal == (*portal).into()));
        }
        array.settle()?;
        Ok(Written::Now(None))
    }
}

pub struct Credentials;

impl Resource for Credentials {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "protocols/san/iscsi/credentials",
            keys: &["svm.uuid", "initiator"],
            always: &["svm.name"],
            expensive: &[],
            parameters: &[],
            fields: &["svm", "initiator", "authentication_type", "chap", "initiator_address", "add_radius"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array
            .state
            .credentials
            .iter()
            .map(|credential| {
                let mut record = json!({
                    "svm": svm_ref(array, &credential.svm), "initiator": credential.initiator,
                    "authentication_type": credential.kind,
                });
                if let Some(inbound) = &credential.inbound {
                    record["chap"]["inbound"] = json!({ "user": inbound.user });
                }
                if let Some(outbound) = &credential.outbound {
                    record["chap"]["outbound"] = json!({ "user": outbound.user });
                }
                record
            })
            .collect())
    }
    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let svm = svm_of(array, call)?;
        let initiator = required_text(call, "initiator")?;
        required_text(call, "authentication_type")?;
        array.create_credential(&svm, &initiator, &change(call))?;
        let uuid = array.svm(&svm)?.uuid;
        Ok(Written::Now(Some(vec![uuid.to_string(), initiator])))
    }
    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let svm = svm_by_uuid(array, &at[0])?;
        array.change_credential(&svm, &at[1], &change(call)).map(|()| Written::Now(None))
    }
    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        let svm = svm_by_uuid(array, &at[0])?;
        array.delete_credential(&svm, &at[1]).map(|()| Written::Now(None))
    }
    fn not_found(&self) -> ApiError {
        ApiError::missing(5374895, "There are no such credentials.")
    }
}

fn change(call: &Call) -> CredentialChange {
    let body = &call.body;
    CredentialChange {
        kind: body.text("authentication_type"),
        inbound_user: body.text("chap.inbound.user"),
        inbound_password: body.text("chap.inbound.password"),
        outbound_user: body.text("chap.outbound.user"),
        outbound_password: body.text("chap.outbound.password"),
    }
}

pub struct Sessions;

impl Resource for Sessions {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "protocols/san/iscsi/sessions",
            keys: &["svm.uuid", "target_portal_group", "tsih"],
            always: &["svm.name", "initiator.name"],
            expensive: &[],
            parameters: &[],
            fields: &[
                "svm",
                "target_portal_group",
                "target_portal_group_tag",
                "tsih",
                "isid",
                "initiator",
                "connections",
                "igroups",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let sessions = array.router.sessions();
        let record = |(number, session): (usize, &sim_target::router::Session)| {
            let lif = array
                .state
                .interfaces
                .iter()
                .find(|lif| std::net::SocketAddr::V4(lif.address) == session.login.portal)?;
            let initiator = &session.login.initiator;
            let igroups: Vec<Value> = array
                .state
                .igroups
                .values()
                .filter(|igroup| igroup.svm == lif.svm && igroup.initiators.contains(initiator))
                .map(|igroup| json!({ "name": igroup.name, "uuid": igroup.uuid }))
                .collect();
            let isid: Vec<String> = session.isid.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(json!({
                "svm": svm_ref(array, &lif.svm), "target_portal_group": lif.name, "tsih": number + 1,
                "isid": isid.join(":"), "initiator": { "name": initiator }, "igroups": igroups,
                "connections": [{ "cid": 0, "initiator_address": { "address": session.peer.ip(), "port": session.peer.port() },
                    "interface": { "name": lif.name, "uuid": lif.uuid, "ip": { "address": lif.address.ip(), "port": lif.address.port() } } }],
            }))
        };
        Ok(sessions.iter().enumerate().filter_map(record).collect())
    }
}
