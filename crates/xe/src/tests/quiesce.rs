//! Certificates and quiesce checks, as they are printed and as scripts take them.

use super::server::FakeServer;
use super::{check, check_fails, world, xe};
use tanada_certificate::check::{Check, Outcome};
use tanada_certificate::{Certificate, Level};
use tanada_xapi::{ApiError, Value};

fn certificate(level: Level) -> Certificate {
    Certificate { level, power_state: "Running".into(), ..Certificate::default() }
}

fn with_snapshot(level: Level) -> FakeServer {
    let server = world(|_, _| None);
    let fields = [
        ("name_label", Value::from("nightly\n1")),
        ("is_a_template", Value::Bool(true)),
        ("is_a_snapshot", Value::Bool(false)),
        ("snapshot_info", Value::map(certificate(level).to_map())),
    ];
    server.add("VM", "t2", fields);
    server
}

#[test]
fn a_certificate_is_a_page_or_a_word() {
    let server = with_snapshot(Level::Application);
    check(&server, "snapshot-certificate uuid=t2 --minimal", "application\n");
    let ran = xe(&server, "", &["snapshot-certificate", "snapshot-uuid=t2"]);
    let first = "         snapshot: nightly?1 (t2)\n      consistency: application (";
    assert!(ran.out.starts_with(first) && ran.status == 0, "{}{}", ran.out, ran.err);
    let none = "Error: v1 has no certificate: it is neither a snapshot nor a template made of one\n";
    check_fails(&server, "snapshot-certificate uuid=v1", none);
    check_fails(&server, "snapshot-certificate", "Error: Required parameter not found: snapshot-uuid or uuid.\n");
}

/// Answers the plugin's call with a check of this level; v2 does not run.
fn with_plugin(level: Level) -> FakeServer {
    world(move |method, params| {
        if method != "VM.call_plugin" {
            return None;
        }
        if params[0] == super::reference("v2") {
            return Some(Err(ApiError::vm_bad_power_state("OpaqueRef:v2", "running", "halted")));
        }
        let mut seen = Check { certificate: certificate(level).to_map(), ..Check::default() };
        seen.add("freeze", Outcome::Ok, 1_500, "2 file systems or volumes");
        seen.advice.push("sleep well".into());
        Some(Ok(Value::from(seen.to_json())))
    })
}

#[test]
fn a_check_tells_the_steps_and_its_status_tells_scripts() {
    let server = with_plugin(Level::FileSystem);
    let expected = "\
web1 (v1)
ok       freeze           1500 us  2 file systems or volumes
A snapshot would be: file system (file systems need no recovery; programs find their files as after a power cut)
Advice: sleep well
";
    check(&server, "vm-quiesce-check vm=web1 hold=20", expected);
    assert_eq!(server.log(), ["VM.call_plugin(@v1, tanada, quiesce-check, {hold=20})"]);
    check(&server, "vm-quiesce-check vm=web1 --minimal", "file system\n");
    let server = with_plugin(Level::Crash);
    let ran = xe(&server, "", &["vm-quiesce-check", "vm=web1", "--minimal"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.status), ("crash\n", "", 1));
    let ran = xe(&server, "", &["vm-quiesce-check", "vm=v2"]);
    assert!(ran.status == 1 && ran.err.contains("running"), "{}", ran.err);
}
