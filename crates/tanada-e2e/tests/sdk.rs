//! The official Python SDK and `xe` against a real daemon.

use std::path::Path;
use tanada_e2e::Scratch;

fn script() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/main_job.py"))
}

#[test]
fn the_sdk_does_the_main_job_over_the_local_socket() {
    let scratch = Scratch::start();
    let said = scratch.python_ok(script(), [scratch.socket(), scratch.path("fast.store")]);
    assert_eq!(said, "main job by the SDK: ok\n");
}

#[test]
fn the_sdk_does_the_main_job_over_tls() {
    let scratch = Scratch::start();
    let store = scratch.path("fast.store");
    let url = scratch.https_url();
    let said = scratch.python_ok(script(), [Path::new(&url), &store, Path::new("root"), Path::new(scratch.password())]);
    assert_eq!(said, "main job by the SDK: ok\n");
}

/// All classes of the main job hold objects here: a running machine with disks, an interface and a snapshot, its messages.
#[test]
fn every_record_is_whole_and_true_to_its_type() {
    let scratch = Scratch::start();
    let location = format!("device-config:location={}", scratch.path("fast.store").display());
    let sr = scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, "physical-size=1GiB"]);
    let vm =
        scratch.xe_ok(["vm-install", "template=Other install media", "new-name-label=db1", &format!("sr-uuid={sr}")]);
    for device in ["0", "1"] {
        let device = format!("device={device}");
        scratch.xe_ok(["vm-disk-add", "vm=db1", "disk-size=16MiB", &device, &format!("sr-uuid={sr}")]);
    }
    let network = scratch.xe_ok(["network-list", "--minimal"]);
    let (vm, network) = (format!("vm-uuid={vm}"), format!("network-uuid={network}"));
    scratch.xe_ok(["vif-create", &vm, &network, "device=0", "mac=random"]);
    scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=before"]);
    scratch.xe_ok(["vm-start", "vm=db1"]);
    scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=live"]);
    scratch.xe_ok(["secret-create", "value=x"]);
    let table = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tanada-xapi/classes.json"));
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/records.py"));
    let said = scratch.python_ok(script, [&scratch.socket(), table]);
    assert!(said.ends_with(" classes: ok\n"), "{said}");
}
