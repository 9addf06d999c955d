//! Full volumes: what writers meet, and how it ends.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sim_ontap::Handle;

use crate::tools::{HOST, array, call, image, lun, map, qemu_io, target, volume};

/// Space is looked at from time to time.
fn eventually(what: &str, ask: impl Fn() -> bool) {
    let start = Instant::now();
    while !ask() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn field(array: &Handle, path: &str, pointer: &str) -> Value {
    call(array, "GET", path, None).1.pointer(pointer).cloned().unwrap_or_default()
}

#[test]
fn a_full_volume_refuses_writes_until_it_grows() {
    let (_dir, array) = array();
    let fv = volume(&array, "fv0", json!({ "size": 20 << 20 }));
    let a = lun(&array, "/vol/fv0/a", 64 << 20, json!({ "space.scsi_thin_provisioning_support_enabled": true }));
    map(&array, &a);
    let disk = image(array.portals("svm1")[0], &target(&array), 0, HOST, None);
    assert!(qemu_io(&disk, "x", &["write -P 7 0 24M"]).0, "the last write fits, as it does into reserved room");
    let path = format!("/api/storage/luns/{a}?fields=status,space");
    let volume_path = format!("/api/storage/volumes/{fv}");
    eventually("the volume is full", || field(&array, &volume_path, "/space/available") == json!(0));
    eventually("writers are refused", || !qemu_io(&disk, "x", &["write 32M 64k"]).0);
    let (_, said) = qemu_io(&disk, "x", &["write 32M 64k"]);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(field(&array, &path, "/status/state"), json!("online"), "with UNMAP on, the LUN stays");
    let (ok, said) = qemu_io(&disk, "x", &["read -P 7 0 24M"]);
    assert!(ok, "what was written is read: {said}");
    let snapshot = json!({ "name": "s" });
    let (status, error) = call(&array, "POST", &format!("{volume_path}/snapshots?return_timeout=30"), Some(snapshot));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("524479")), "a full volume takes no snapshot");
    assert_eq!(
        call(&array, "PATCH", &format!("{volume_path}?return_timeout=30"), Some(json!({ "size": 100 << 20 }))).0,
        200
    );
    eventually("there is room again", || qemu_io(&disk, "x", &["write 32M 64k"]).0);
}

#[test]
fn without_unmap_a_full_volume_takes_the_lun_offline() {
    let (_dir, array) = array();
    let fv = volume(&array, "fv0", json!({ "size": 20 << 20 }));
    let a = lun(&array, "/vol/fv0/a", 64 << 20, json!({ "space.scsi_thin_provisioning_support_enabled": false }));
    map(&array, &a);
    let disk = image(array.portals("svm1")[0], &target(&array), 0, HOST, None);
    assert!(qemu_io(&disk, "x", &["write -P 7 0 24M"]).0);
    let path = format!("/api/storage/luns/{a}");
    eventually("the LUN goes offline", || field(&array, &path, "/status/state") == json!("space_error"));
    assert!(!qemu_io(&disk, "x", &["read 0 512"]).0);
    let grow = json!({ "size": 100 << 20 });
    assert_eq!(call(&array, "PATCH", &format!("/api/storage/volumes/{fv}?return_timeout=30"), Some(grow)).0, 200);
    assert_eq!(field(&array, &path, "/status/state"), json!("space_error"), "it does not come back by itself");
    assert_eq!(call(&array, "PATCH", &path, Some(json!({ "enabled": true }))).0, 200);
    assert_eq!(field(&array, &path, "/status/state"), json!("online"));
    assert!(qemu_io(&disk, "x", &["read -P 7 0 24M"]).0);
}

#[test]
fn a_volume_that_may_grow_grows() {
    let (_dir, array) = array();
    let fv = volume(&array, "fv0", json!({ "size": 20 << 20, "autosize": { "mode": "grow", "maximum": 64 << 20 } }));
    let a = lun(&array, "/vol/fv0/a", 64 << 20, json!({}));
    map(&array, &a);
    let disk = image(array.portals("svm1")[0], &target(&array), 0, HOST, None);
    assert!(qemu_io(&disk, "x", &["write -P 7 0 24M"]).0);
    let path = format!("/api/storage/volumes/{fv}");
    eventually("it grows", || field(&array, &path, "/size").as_u64() > Some(24 << 20));
    assert!(qemu_io(&disk, "x", &["write -P 7 24M 1M"]).0);
    assert!(field(&array, &path, "/size").as_u64() <= Some(64 << 20));
}

#[test]
fn clones_share_and_reservations_count() {
    let (_dir, array) = array();
    let fv = volume(&array, "fv0", json!({}));
    let a = lun(&array, "/vol/fv0/a", 64 << 20, json!({}));
    map(&array, &a);
    let disk = image(array.portals("svm1")[0], &target(&array), 0, HOST, None);
    assert!(qemu_io(&disk, "x", &["write -P 7 0 16M", "flush"]).0);
    let path = format!("/api/storage/volumes/{fv}");
    let used = || field(&array, &path, "/space/used").as_u64().unwrap();
    let before = used();
    assert!(before >= 16 << 20);
    let clone = json!({ "svm": { "name": "svm1" }, "name": "/vol/fv0/b", "clone": { "source": { "uuid": a } },
        "space.guarantee.requested": false });
    assert_eq!(call(&array, "POST", "/api/storage/luns", Some(clone)).0, 201);
    assert!(used() < before + (1 << 20), "{before} before, {} with a clone", used());
    let thick = json!({ "space.guarantee.requested": true });
    lun(&array, "/vol/fv0/c", 128 << 20, thick);
    assert!(used() >= before + (128 << 20), "a reserved LUN takes its size");
    let too_large = json!({ "svm": { "name": "svm1" }, "name": "/vol/fv0/d", "os_type": "linux", "space.size": 2u64 << 40,
        "space.guarantee.requested": true });
    assert_eq!(call(&array, "POST", "/api/storage/luns", Some(too_large)).1["error"]["code"], json!("5440509"));
}
