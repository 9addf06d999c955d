//! NetApp's own client library does what a storage driver does, and meets the errors that it knows; and OpenStack's driver
//! finds everything that it needs.

use serde_json::json;

use crate::tools::{array, call, environment, run, script, volume};

fn works(name: &str) {
    let (_dir, array) = array();
    let (address, ca) = (array.address().to_string(), array.ca());
    let script = script(name);
    let args = [script.to_str().unwrap(), &address, ca.to_str().unwrap()];
    let python = environment("SIM_ONTAP_CLIENT", "venv-netapp-ontap").join("bin/python");
    let (ok, said) = run(python.to_str().unwrap(), args);
    assert!(ok, "{said}");
    assert!(said.ends_with("ok\n"), "{said}");
}

#[test]
fn disks_and_access() {
    works("disks.py");
}

#[test]
fn snapshots_and_groups() {
    works("snapshots.py");
}

#[test]
fn cinder_keeps_its_volumes_here() {
    let (_dir, array) = array();
    volume(&array, "pool0", json!({}));
    volume(&array, "pool1", json!({}));
    let before = array.census();
    let cinder = environment("SIM_ONTAP_CINDER", "venv-cinder-netapp");
    let (python, files) = (cinder.join("bin/python"), cinder.join("files"));
    let (address, ca, script) = (array.address().to_string(), array.ca(), script("cinder.py"));
    let args = [script.to_str().unwrap(), &address, ca.to_str().unwrap(), files.to_str().unwrap()];
    let (ok, said) = run(python.to_str().unwrap(), args);
    assert!(ok && said.lines().any(|line| line == "ok"), "{said}");
    let igroups = call(&array, "GET", "/api/protocols/san/igroups?name=openstack-*", None).1["num_records"].clone();
    assert_eq!(igroups, json!(1), "it keeps its igroup");
    assert_eq!(array.census(), sim_ontap::Census { igroups: 1, ..before }, "and nothing else");
}
