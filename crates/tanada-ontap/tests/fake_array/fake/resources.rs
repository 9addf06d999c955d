//! The array's collections and what requests do to them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::State;

type Query = BTreeMap<String, String>;
type Answer = (u16, Value);

const SVM_UUID: &str = "6bf9b2f4-0000-4000-8000-000000000001";

pub fn array() -> State {
    let mut state = State::default();
    let mut put = |path, record| state.collections.entry(path).or_default().push(record);
    put(
        "/svm/svms",
        json!({"name": "svm1", "uuid": SVM_UUID, "state": "running", "subtype": "default", "aggregates": []}),
    );
    for name in ["aggr1", "aggr2"] {
        let space = json!({"block_storage": {"size": 10_u64 << 40, "available": 9_u64 << 40, "used": 1_u64 << 40}});
        put("/storage/aggregates", json!({"name": name, "uuid": name, "state": "online", "space": space}));
    }
    put(
        "/protocols/san/iscsi/services",
        json!({"svm": {"name": "svm1"}, "enabled": true, "target": {"name": "iqn.1992-08.com.netapp:sn.1:vs.1"}}),
    );
    for (name, node) in [("lif1", "n1"), ("lif2", "n2")] {
        let ip = json!({"address": if name == "lif1" { "192.0.2.1" } else { "192.0.2.2" }});
        let at = json!({"node": {"name": node}});
        put(
            "/network/ip/interfaces",
            json!({"name": name, "ip": ip, "enabled": true, "state": "up", "location": at, "services": "data_iscsi"}),
        );
    }
    state
}

fn refused(status: u16, code: u64, message: &str) -> Answer {
    (status, json!({"error": {"message": message, "code": code.to_string()}}))
}

fn missing() -> Answer {
    refused(404, 4, "entry doesn't exist")
}

fn field(record: &Value, dotted: &str) -> String {
    let found = record.pointer(&format!("/{}", dotted.replace('.', "/")));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    pattern.split('|').any(|one| {
        let parts: Vec<&str> = one.split('*').collect();
        if parts.len() == 1 {
            return one == text;
        }
        let mut rest = match text.strip_prefix(parts[0]) {
            Some(rest) => rest,
            None => return false,
        };
        for part in &parts[1..parts.len() - 1] {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(parts[parts.len() - 1])
    })
}

const NOT_FILTERS: &[&str] = &["fields", "return_timeout", "max_records", "ignore_unknown_fields", "svm.name", "start"];

fn list(state: &State, path: &str, query: &Query) -> Answer {
    let all = state.collections.get(path).map(Vec::as_slice).unwrap_or_default();
    let wanted = |record: &&Value| {
        let filters = query.iter().filter(|(key, _)| !NOT_FILTERS.contains(&key.as_str()));
        filters.into_iter().all(|(key, pattern)| match key.split_once('.') {
            Some((list, inner)) if record[list].is_array() => {
                record[list].as_array().into_iter().flatten().any(|one| matches(pattern, &field(one, inner)))
            }
            _ => matches(pattern, &field(record, key)),
        })
    };
    let found: Vec<&Value> = all.iter().filter(wanted).collect();
    let Some(page) = state.page else { return (200, json!({"records": found, "num_records": found.len()})) };
    let start: usize = query.get("start").and_then(|start| start.parse().ok()).unwrap_or(0);
    let some: Vec<&&Value> = found.iter().skip(start).take(page).collect();
    let mut answer = json!({"records": some, "num_records": some.len()});
    if start + page < found.len() {
        let mut query = query.clone();
        query.insert(String::from("start"), (start + page).to_string());
        let text: Vec<String> =
            query.iter().map(|(key, value)| format!("{key}={}", value.replace('|', "%7C"))).collect();
        answer["_links"] = json!({"next": {"href": format!("/api{path}?{}", text.join("&"))}});
    }
    (200, answer)
}

/// One request.
pub fn handle(state: &mut State, method: &str, path: &str, query: &Query, body: &Value) -> Answer {
    let path = path.strip_prefix("/api").unwrap_or(path);
    if let Some(job) = path.strip_prefix("/cluster/jobs/") {
        return if state.forget_jobs { missing() } else { (200, json!({"uuid": job, "state": "success", "code": 0})) };
    }
    let answer = dispatch(state, method, path, query, body);
    if state.jobs && method != "GET" && answer.0 < 300 {
        return (202, json!({"job": {"uuid": Uuid::new_v4().to_string()}}));
    }
    answer
}

fn dispatch(state: &mut State, method: &str, path: &str, query: &Query, body: &Value) -> Answer {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (method, parts.as_slice()) {
        ("GET", ["cluster"]) => (200, json!({"name": "c", "version": {"generation": 9, "major": 15, "minor": 1}})),
        ("GET", ["storage", "file", "clone", "split-status", _]) => (200, json!({"pending_splits": 0})),
        ("POST", ["storage", "volumes"]) => create_volume(state, body),
        ("POST", ["storage", "luns"]) if body.get("clone").is_some() => clone_lun(state, body),
        ("POST", ["storage", "luns"]) => create_lun(state, body),
        (_, ["storage", "luns", lun, "attributes", rest @ ..]) => attributes(state, method, lun, rest, body),
        ("PATCH", ["storage", "luns", lun]) => change_lun(state, lun, body),
        ("DELETE", ["storage", "luns", lun]) => delete_lun(state, lun),
        ("DELETE", ["storage", "volumes", volume]) => delete_volume(state, volume),
        (_, ["storage", "volumes", volume, "snapshots", rest @ ..]) => {
            snapshots(state, method, volume, rest, query, body)
        }
        ("POST", ["application", "consistency-groups"]) => create_group(state, body),
        ("POST", ["application", "consistency-groups", group, "snapshots"]) => snapshot_group(state, group, body),
        ("POST", ["protocols", "san", "igroups"]) => create_igroup(state, body),
        ("DELETE", ["protocols", "san", "igroups", igroup]) => delete_igroup(state, igroup),
        ("POST", ["protocols", "san", "lun-maps"]) => create_map(state, body),
        ("DELETE", ["protocols", "san", "lun-maps", lun, igroup]) => delete_map(state, lun, igroup),
        (_, ["protocols", "san", "iscsi", "credentials", rest @ ..]) => credentials(state, method, rest, body),
        ("GET", [.., last]) if Uuid::try_parse(last).is_ok() => {
            get(state, path.trim_end_matches(last).trim_end_matches('/'), last)
        }
        ("GET", _) => list(state, path, query),
        ("PATCH", [.., key]) => patch(state, path.trim_end_matches(key).trim_end_matches('/'), key, body),
        ("DELETE", [.., key]) => delete(state, path.trim_end_matches(key).trim_end_matches('/'), key),
        _ => refused(404, 3, "API not found"),
    }
}

fn records<'a>(state: &'a mut State, path: &str) -> &'a mut Vec<Value> {
    const PATHS: &[&str] = &[
        "/storage/volumes",
        "/storage/luns",
        "/snapshots",
        "/application/consistency-groups",
        "/protocols/san/igroups",
        "/protocols/san/lun-maps",
        "/protocols/san/iscsi/credentials",
        "/storage/aggregates",
        "/none",
    ];
    let path = PATHS.iter().find(|known| **known == path).copied().unwrap_or("/none");
    state.collections.entry(path).or_default()
}

fn find<'a>(state: &'a mut State, path: &str, uuid: &str) -> Option<&'a mut Value> {
    records(state, path).iter_mut().find(|record| record["uuid"] == uuid)
}

fn named(state: &mut State, path: &str, name: &str) -> Option<Value> {
    records(state, path).iter().find(|record| record["name"] == name).cloned()
}

fn get(state: &mut State, path: &str, uuid: &str) -> Answer {
    find(state, path, uuid).map_or_else(missing, |record| (200, record.clone()))
}

fn delete(state: &mut State, path: &str, uuid: &str) -> Answer {
    let all = records(state, path);
    let before = all.len();
    all.retain(|record| record["uuid"] != uuid);
    if all.len() == before { missing() } else { (200, json!({})) }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn patch(state: &mut State, path: &str, uuid: &str, body: &Value) -> Answer {
    let Some(record) = find(state, path, uuid) else { return missing() };
    merge(record, body);
    (200, json!({}))
}

fn add(state: &mut State, path: &str, mut record: Value) -> Answer {
    record["uuid"] = json!(Uuid::new_v4().to_string());
    records(state, path).push(record);
    (201, json!({"num_records": 1}))
}

fn create_volume(state: &mut State, body: &Value) -> Answer {
    let name = field(body, "name");
    if named(state, "/storage/volumes", &name).is_some() {
        return refused(409, 917_526, "duplicate volume name");
    }
    let aggregate = field(&body["aggregates"][0], "name");
    if named(state, "/storage/aggregates", &aggregate).is_none() {
        return refused(400, 917_508, "aggregate not found");
    }
    let mut record = body.clone();
    record["state"] = json!("online");
    record["space"] = json!({"size": body["size"], "available": body["size"], "used": 4096});
    add(state, "/storage/volumes", record)
}

fn delete_volume(state: &mut State, uuid: &str) -> Answer {
    let Some(name) = find(state, "/storage/volumes", uuid).map(|volume| field(volume, "name")) else {
        return missing();
    };
    let inside = |record: &Value, key: &str| field(record, key).split('/').nth(2) == Some(name.as_str());
    if records(state, "/protocols/san/lun-maps").iter().any(|map| inside(map, "lun.name")) {
        return refused(409, 1, "a LUN of the volume is mapped");
    }
    records(state, "/storage/luns").retain(|lun| !inside(lun, "name"));
    records(state, "/snapshots").retain(|snapshot| snapshot["volume"] != uuid);
    delete(state, "/storage/volumes", uuid)
}

fn create_lun(state: &mut State, body: &Value) -> Answer {
    let name = field(body, "name");
    if named(state, "/storage/luns", &name).is_some() {
        return refused(409, 5_374_242, "LUN already exists");
    }
    let (volume, base) = (name.split('/').nth(2).unwrap_or_default(), name.rsplit('/').next().unwrap_or_default());
    let Some(volume) = named(state, "/storage/volumes", volume) else {
        return refused(404, 917_927, "volume not found");
    };
    let mut record = body.clone();
    record["content"] = json!(0);
    record["location"] = json!({
        "logical_unit": base, "volume": {"name": volume["name"], "uuid": volume["uuid"]}, "node": {"name": "n2"},
    });
    add(state, "/storage/luns", record)
}

fn clone_lun(state: &mut State, body: &Value) -> Answer {
    let name = field(body, "name");
    if named(state, "/storage/luns", &name).is_some() {
        return refused(409, 1_260_136, "clone destination exists");
    }
    let source = field(body, "clone.source.name");
    if source.split('/').nth(2) != name.split('/').nth(2) {
        return refused(400, 1_260_121, "clone across volumes");
    }
    let parts: Vec<&str> = source.split('/').collect();
    let found = match parts.as_slice() {
        ["", "vol", volume, ".snapshot", snapshot, base] => {
            let volume = named(state, "/storage/volumes", volume).map(|volume| field(&volume, "uuid"));
            let all = records(state, "/snapshots");
            let one = all.iter().find(|one| one["name"] == *snapshot && Some(field(one, "volume")) == volume);
            let luns = one.and_then(|one| one["luns"].as_array());
            luns.and_then(|luns| luns.iter().find(|lun| field(lun, "name").ends_with(base)).cloned())
        }
        _ => named(state, "/storage/luns", &source),
    };
    let Some(mut copy) = found else { return refused(404, 5_374_876, "clone source not found") };
    copy["name"] = json!(name);
    copy["location"]["logical_unit"] = json!(name.rsplit('/').next().unwrap_or_default());
    copy["space"]["scsi_thin_provisioning_support_enabled"] = json!(!state.clones_forget_thin);
    add(state, "/storage/luns", copy)
}

fn change_lun(state: &mut State, uuid: &str, body: &Value) -> Answer {
    if let Some(source) = body.pointer("/clone/source/uuid").and_then(Value::as_str) {
        let Some(source) = find(state, "/storage/luns", source).cloned() else {
            return refused(404, 5_374_875, "no source");
        };
        let Some(lun) = find(state, "/storage/luns", uuid) else { return missing() };
        for key in ["content", "comment", "attributes"] {
            lun[key] = source[key].clone();
        }
        lun["space"]["size"] = source["space"]["size"].clone();
        return (200, json!({}));
    }
    let Some(lun) = find(state, "/storage/luns", uuid) else { return missing() };
    if let Some(size) = body.pointer("/space/size").and_then(Value::as_u64) {
        let has = lun["space"]["size"].as_u64().unwrap_or_default();
        if size == has {
            return refused(400, 1_254_226, "New LUN size is the same as the old LUN size");
        }
        if size < has {
            return refused(400, 5_374_892, "shrink");
        }
    }
    merge(lun, body);
    (200, json!({}))
}

fn delete_lun(state: &mut State, uuid: &str) -> Answer {
    if records(state, "/protocols/san/lun-maps").iter().any(|map| map["lun"]["uuid"] == uuid) {
        return refused(409, 1_254_197, "LUN is mapped");
    }
    delete(state, "/storage/luns", uuid)
}

fn attributes(state: &mut State, method: &str, lun: &str, rest: &[&str], body: &Value) -> Answer {
    let Some(lun) = find(state, "/storage/luns", lun) else { return missing() };
    if lun.get("attributes").is_none() {
        lun["attributes"] = json!([]);
    }
    let Some(all) = lun["attributes"].as_array_mut() else { return missing() };
    let name = rest.first().map_or(field(body, "name"), |name| (*name).to_owned());
    let at = all.iter().position(|one| one["name"] == name.as_str());
    match (method, at) {
        ("POST", Some(_)) => return refused(409, 5_374_930, "attribute exists"),
        ("POST", None) => all.push(json!({"name": name, "value": body["value"]})),
        (_, None) => return refused(404, 5_374_931, "attribute not found"),
        ("PATCH", Some(at)) => all[at]["value"] = body["value"].clone(),
        (_, Some(at)) => drop(all.remove(at)),
    }
    (200, json!({}))
}

fn take_snapshot(state: &mut State, volume: &str, name: &str) {
    let in_volume = |lun: &&Value| lun["location"]["volume"]["uuid"] == volume;
    let luns: Vec<Value> = records(state, "/storage/luns").iter().filter(in_volume).cloned().collect();
    let busy = state.snapshot_busy_for;
    add(state, "/snapshots", json!({"name": name, "volume": volume, "luns": luns, "busy": busy}));
}

fn snapshots(state: &mut State, method: &str, volume: &str, rest: &[&str], query: &Query, body: &Value) -> Answer {
    let name = field(body, "name");
    match (method, rest) {
        ("GET", []) => {
            let mut query = query.clone();
            query.insert(String::from("volume"), volume.to_owned());
            list(state, "/snapshots", &query)
        }
        ("POST", []) => {
            if records(state, "/snapshots").iter().any(|one| one["name"] == name.as_str() && one["volume"] == volume) {
                return refused(409, 525_059, "snapshot exists");
            }
            take_snapshot(state, volume, &name);
            (201, json!({}))
        }
        ("PATCH", [uuid]) => patch(state, "/snapshots", uuid, body),
        ("DELETE", [uuid]) => {
            let Some(one) = find(state, "/snapshots", uuid) else { return missing() };
            let busy = one["busy"].as_u64().unwrap_or_default();
            if busy > 0 {
                one["busy"] = json!(busy - 1);
                return refused(409, 1_638_555, "snapshot is busy");
            }
            delete(state, "/snapshots", uuid)
        }
        _ => missing(),
    }
}

fn create_group(state: &mut State, body: &Value) -> Answer {
    let members: Vec<String> = body["volumes"].as_array().into_iter().flatten().map(|one| field(one, "name")).collect();
    let taken = records(state, "/application/consistency-groups").iter().any(|group| {
        group["volumes"].as_array().into_iter().flatten().any(|one| members.contains(&field(one, "name")))
    });
    match named(state, "/application/consistency-groups", &field(body, "name")) {
        Some(_) => refused(409, 53_411_852, "group exists"),
        None if taken => refused(400, 53_411_865, "volume is in another group"),
        None => add(state, "/application/consistency-groups", body.clone()),
    }
}

fn snapshot_group(state: &mut State, group: &str, body: &Value) -> Answer {
    let Some(group) = find(state, "/application/consistency-groups", group).cloned() else { return missing() };
    let names: Vec<String> = group["volumes"].as_array().into_iter().flatten().map(|one| field(one, "name")).collect();
    for name in names {
        let Some(volume) = named(state, "/storage/volumes", &name) else { return missing() };
        take_snapshot(state, &field(&volume, "uuid"), &field(body, "name"));
    }
    (201, json!({}))
}

fn create_igroup(state: &mut State, body: &Value) -> Answer {
    match named(state, "/protocols/san/igroups", &field(body, "name")) {
        Some(_) => refused(409, 5_374_023, "igroup exists"),
        None => add(state, "/protocols/san/igroups", body.clone()),
    }
}

fn delete_igroup(state: &mut State, uuid: &str) -> Answer {
    if records(state, "/protocols/san/lun-maps").iter().any(|map| map["igroup"]["uuid"] == uuid) {
        return refused(409, 1_254_213, "igroup is mapped");
    }
    delete(state, "/protocols/san/igroups", uuid)
}

fn create_map(state: &mut State, body: &Value) -> Answer {
    let (lun, igroup) = (field(body, "lun.uuid"), field(body, "igroup.uuid"));
    let Some(lun) = find(state, "/storage/luns", &lun).cloned() else { return refused(404, 1_254_201, "no LUN") };
    let Some(igroup) = find(state, "/protocols/san/igroups", &igroup).cloned() else {
        return refused(404, 5_374_852, "no igroup");
    };
    let maps = records(state, "/protocols/san/lun-maps");
    let there = maps.iter().any(|map| map["lun"]["uuid"] == lun["uuid"] && map["igroup"]["uuid"] == igroup["uuid"]);
    if there {
        return refused(409, 1_254_207, "already mapped");
    }
    let used: Vec<u64> = maps
        .iter()
        .filter(|map| map["igroup"]["uuid"] == igroup["uuid"])
        .filter_map(|map| map["logical_unit_number"].as_u64())
        .collect();
    let number = (0..).find(|number| !used.contains(number)).unwrap_or_default();
    let record = json!({
        "lun": {"uuid": lun["uuid"], "name": lun["name"]},
        "igroup": {"uuid": igroup["uuid"], "name": igroup["name"]},
        "logical_unit_number": number,
    });
    add(state, "/protocols/san/lun-maps", record)
}

fn delete_map(state: &mut State, lun: &str, igroup: &str) -> Answer {
    let maps = records(state, "/protocols/san/lun-maps");
    let before = maps.len();
    maps.retain(|map| map["lun"]["uuid"] != lun || map["igroup"]["uuid"] != igroup);
    if maps.len() == before { refused(404, 5_374_922, "no such map") } else { (200, json!({})) }
}

fn credentials(state: &mut State, method: &str, rest: &[&str], body: &Value) -> Answer {
    let initiator = rest.get(1).map_or(field(body, "initiator"), |name| (*name).to_owned());
    let all = records(state, "/protocols/san/iscsi/credentials");
    let at = all.iter().position(|one| one["initiator"] == initiator.as_str());
    match (method, at) {
        ("POST", Some(_)) => return refused(409, 5_374_142, "credential exists"),
        ("POST", None) => all.push(body.clone()),
        (_, None) => return refused(404, 5_374_895, "no credential"),
        ("PATCH", Some(at)) => merge(&mut all[at], body),
        (_, Some(at)) => drop(all.remove(at)),
    }
    (200, json!({}))
}
