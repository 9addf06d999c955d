//! Blocks behind the API: logins with and without CHAP, clones and overwriting, and the same array after a restart.

use serde_json::json;
use sim_ontap::Options;

use crate::tools::{HOST, array, call, image, lun, qemu_io, target, volume};

#[test]
fn a_mapped_lun_is_reached_with_chap_and_not_without() {
    let (dir, array) = array();
    let svm = json!({ "name": "svm1" });
    volume(&array, "fv0", json!({}));
    let uuid = lun(&array, "/vol/fv0/a", 64 << 20, json!({}));
    let path = format!("/api/storage/luns/{uuid}");
    let serial = call(&array, "GET", &path, None).1["serial_number"].clone();
    let igroup =
        json!({ "svm": svm, "name": "h1", "os_type": "linux", "protocol": "iscsi", "initiators": [{ "name": HOST }] });
    assert_eq!(call(&array, "POST", "/api/protocols/san/igroups", Some(igroup)).0, 201);
    let target = target(&array);
    let portal = array.portals("svm1")[0];
    let (ok, said) = qemu_io(&image(portal, &target, 0, HOST, None), "x", &["read 0 512"]);
    assert!(!ok, "nothing is mapped yet: {said}");
    let map = json!({ "svm": svm, "lun": { "uuid": uuid }, "igroup": { "name": "h1" } });
    let (status, mapped) = call(&array, "POST", "/api/protocols/san/lun-maps?return_records=true", Some(map.clone()));
    assert_eq!((status, mapped["records"][0]["logical_unit_number"].as_u64()), (201, Some(0)), "{mapped}");
    let (ok, said) = qemu_io(&image(portal, &target, 0, HOST, None), "x", &["write -P 7 0 1M"]);
    assert!(ok, "{said}");
    let chap = json!({ "svm": svm, "initiator": HOST, "authentication_type": "CHAP",
        "chap": { "inbound": { "user": "tanada", "password": "a long secret" } } });
    assert_eq!(call(&array, "POST", "/api/protocols/san/iscsi/credentials", Some(chap)).0, 201);
    for (user, secret) in [(None, "x"), (Some("tanada"), "another secret"), (Some("somebody"), "a long secret")] {
        let (ok, said) = qemu_io(&image(portal, &target, 0, HOST, user), secret, &["read 0 512"]);
        assert!(!ok, "{user:?} got in: {said}");
    }
    let proven = image(portal, &target, 0, HOST, Some("tanada"));
    let (ok, said) = qemu_io(&proven, "a long secret", &["read -P 7 0 1M"]);
    assert!(ok, "{said}");

    // A clone, then new data, then back in place: the map and the serial number stay.
    let clone = json!({ "svm": svm, "name": "/vol/fv0/keep", "clone": { "source": { "uuid": uuid } } });
    let (_, kept) = call(&array, "POST", "/api/storage/luns?return_records=true", Some(clone));
    assert!(qemu_io(&proven, "a long secret", &["write -P 9 0 1M"]).0);
    let back = json!({ "clone": { "source": { "uuid": kept["records"][0]["uuid"] } } });
    assert_eq!(call(&array, "PATCH", &path, Some(back)).0, 200);
    let (ok, said) = qemu_io(&proven, "a long secret", &["read -P 7 0 1M"]);
    assert!(ok, "{said}");
    let grown = json!({ "space": { "size": 128 << 20 } });
    assert_eq!(call(&array, "PATCH", &path, Some(grown)).0, 200);
    let (ok, said) = qemu_io(&proven, "a long secret", &["write -P 5 100M 64k", "length"]);
    assert!(ok && said.contains("128 MiB"), "{said}");

    // The same array again.
    let before = array.census();
    array.stop();
    let array = sim_ontap::start(Options::new(dir.path())).unwrap();
    assert_eq!(array.census(), before);
    assert_eq!(array.portals("svm1")[0], portal, "addresses stay");
    assert_eq!(call(&array, "GET", &path, None).1["serial_number"], serial);
    let (ok, said) = qemu_io(&proven, "a long secret", &["read -P 7 0 1M", "read -P 5 100M 64k"]);
    assert!(ok, "{said}");
    let unmap =
        format!("/api/protocols/san/lun-maps/{uuid}/{}", mapped["records"][0]["igroup"]["uuid"].as_str().unwrap());
    assert_eq!(call(&array, "DELETE", &unmap, None).0, 200);
    assert!(!qemu_io(&proven, "a long secret", &["read 0 512"]).0, "unmapped");
}
