//! What a backup server has of a snapshot goes, as far as it is let.

use super::server::{FakeServer, reference};
use super::{check, world, xe};
use tanada_xapi::{ApiError, Value};

/// Three clones of the snapshot's disks at a backup server, and one that was never connected.
fn backup_server(answer: impl Fn(&str, &str) -> Option<ApiError> + Send + Sync + 'static) -> FakeServer {
    let server = world(move |method, params| {
        let object = params.first().and_then(Value::as_str).unwrap_or_default();
        match method {
            "VBD.get_currently_attached" => Some(Ok(Value::Bool(true))),
            "VBD.unplug" | "VBD.destroy" | "VDI.destroy" => Some(answer(method, object).map_or(Ok(Value::Void), Err)),
            _ => None,
        }
    });
    for number in 1..=3 {
        let (clone, vbd) = (format!("clone{number}"), format!("at{number}"));
        server.add("VDI", &clone, [("other_config", Value::map([("tanada:throw-away", "s1")]))]);
        let marks = Value::map([("tanada:attached-from", "s1")]);
        let device = Value::from(format!("vd{number}"));
        server.add(
            "VBD",
            &vbd,
            [("VM", reference("v1")), ("VDI", reference(&clone)), ("device", device), ("other_config", marks)],
        );
    }
    server.add("VDI", "lost", [("other_config", Value::map([("tanada:throw-away", "s1")]))]);
    server
}

#[test]
fn a_disk_that_is_held_keeps_no_other_from_going() {
    let held = |method: &str, object: &str| {
        (method == "VBD.unplug" && object == "OpaqueRef:at2")
            .then(|| ApiError::device_detach_rejected("VBD", object, "mounted"))
    };
    let server = backup_server(held);
    let ran = xe(&server, "", &["snapshot-detach", "snapshot-uuid=s1"]);
    assert_eq!((ran.out.as_str(), ran.status), ("2 disks detached\n", 1));
    let first = ran.err.lines().next().unwrap();
    assert!(first.starts_with("vd2 of VM v1 (web1), VBD at2, stays: ") && first.contains("mounted"), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    let log = server.log();
    for gone in ["VBD.destroy(@at1)", "VBD.destroy(@at3)", "VDI.destroy(@lost)"] {
        assert!(log.iter().any(|call| call == gone), "{gone}: {log:?}");
    }
    for kept in ["VBD.destroy(@at2)", "VDI.destroy(@clone2)"] {
        assert!(!log.iter().any(|call| call == kept), "{kept}: {log:?}");
    }
}

#[test]
fn a_clone_that_cannot_go_is_named() {
    let in_use = |method: &str, object: &str| {
        (method == "VDI.destroy" && object == "OpaqueRef:clone1").then(|| ApiError::vdi_in_use(object, "destroy"))
    };
    let server = backup_server(in_use);
    let ran = xe(&server, "", &["snapshot-detach", "snapshot-uuid=s1"]);
    assert_eq!((ran.out.as_str(), ran.status), ("3 disks detached\n", 1));
    assert!(ran.err.starts_with("The clone clone1 stays: "), "{}", ran.err);
    assert!(server.log().iter().any(|call| call == "VDI.destroy(@lost)"));
}

#[test]
fn when_all_is_gone_it_has_succeeded() {
    check(&backup_server(|_, _| None), "snapshot-detach snapshot-uuid=s1", "3 disks detached\n");
}
