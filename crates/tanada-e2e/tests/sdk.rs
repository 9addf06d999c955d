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
