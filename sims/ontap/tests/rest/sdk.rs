//! NetApp's own client library does what a storage driver does, and meets the errors that it knows.

use crate::tools::{array, python, run, script};

fn works(name: &str) {
    let (_dir, array) = array();
    let (address, ca) = (array.address().to_string(), array.ca());
    let script = script(name);
    let args = [script.to_str().unwrap(), &address, ca.to_str().unwrap()];
    let (ok, said) = run(python().to_str().unwrap(), args);
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
