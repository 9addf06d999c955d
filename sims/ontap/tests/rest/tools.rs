//! Programs that know nothing of the simulator.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sim_ontap::{Handle, Options};

/// An initiator.
pub const HOST: &str = "iqn.2026-01.test:host";

/// A quick array in a directory of its own.
pub fn array() -> (tempfile::TempDir, Handle) {
    array_with(|options| options)
}

pub fn array_with(change: impl FnOnce(Options) -> Options) -> (tempfile::TempDir, Handle) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { job_ms: 5, space_ms: 20, ..Options::new(dir.path()) };
    let handle = sim_ontap::start(change(options)).unwrap();
    (dir, handle)
}

/// Adds what `more` says to a body.
fn with(mut body: Value, more: Value) -> Value {
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// Makes a thin FlexVol of a terabyte (or what `more` says); its uuid.
pub fn volume(array: &Handle, name: &str, more: Value) -> String {
    let body = json!({ "svm": { "name": "svm1" }, "name": name, "aggregates": [{ "name": "aggr1" }], "size": 1u64 << 40,
        "guarantee": { "type": "none" }, "snapshot_policy": { "name": "none" },
        "space": { "snapshot": { "reserve_percent": 0 } } });
    made(call(array, "POST", "/api/storage/volumes?return_timeout=30&return_records=true", Some(with(body, more))))
}

/// Makes a LUN without a reservation; its uuid.
pub fn lun(array: &Handle, name: &str, size: u64, more: Value) -> String {
    let body = json!({ "svm": { "name": "svm1" }, "name": name, "os_type": "linux", "space.size": size,
        "space.guarantee.requested": false });
    made(call(array, "POST", "/api/storage/luns?return_records=true", Some(with(body, more))))
}

/// Shows a LUN to [`HOST`]; the igroup's uuid.
pub fn map(array: &Handle, lun: &str) -> String {
    let svm = json!({ "name": "svm1" });
    let igroup =
        json!({ "svm": svm, "name": "h1", "os_type": "linux", "protocol": "iscsi", "initiators": [{ "name": HOST }] });
    let igroup = made(call(array, "POST", "/api/protocols/san/igroups?return_records=true", Some(igroup)));
    let map = json!({ "svm": svm, "lun": { "uuid": lun }, "igroup": { "uuid": igroup } });
    assert_eq!(call(array, "POST", "/api/protocols/san/lun-maps", Some(map)).0, 201);
    igroup
}

fn made((status, answer): (u16, Value)) -> String {
    assert_eq!(status, 201, "{answer}");
    answer["records"][0]["uuid"].as_str().expect("a record").to_string()
}

/// The SVM's iSCSI name.
pub fn target(array: &Handle) -> String {
    let (_, service) = call(array, "GET", "/api/protocols/san/iscsi/services?fields=target.name", None);
    service["records"][0]["target"]["name"].as_str().expect("a service").to_string()
}

/// Runs a program; its output of both kinds, and whether it succeeded.
pub fn run<S: AsRef<str>>(program: &str, args: impl IntoIterator<Item = S>) -> (bool, String) {
    let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_string()).collect();
    let mut command = Command::new(program);
    // These would win over the authority that a client is told of.
    command.args(&args).env_remove("REQUESTS_CA_BUNDLE").env_remove("CURL_CA_BUNDLE");
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A Python environment that `cargo xtask setup` makes: where `variable` says, else beside the test in the target directory.
pub fn environment(variable: &str, name: &str) -> PathBuf {
    let beside = || {
        let executable = std::env::current_exe().expect("a test knows its executable");
        executable.ancestors().nth(3).expect("the executable is in <target>/<profile>/deps").join(name)
    };
    let path = std::env::var_os(variable).map_or_else(beside, PathBuf::from);
    assert!(
        path.join("bin/python").is_file(),
        "{} is missing: `cargo xtask setup` makes it, or set {variable} to such an environment",
        path.display()
    );
    path
}

/// Calls the API with curl: HTTP status and body.
pub fn call(array: &Handle, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    call_as(array, "admin:netapp1!", method, path, body)
}

pub fn call_as(array: &Handle, who: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let url = format!("{}{path}", array.url());
    let ca = array.ca();
    let mut args =
        vec!["-sSg", "--cacert", ca.to_str().unwrap(), "-u", who, "-X", method, "-w", "\n%{http_code}", &url];
    let body = body.map(|body| body.to_string());
    if let Some(body) = &body {
        args.extend(["-d", body]);
    }
    let (ok, said) = run("/usr/bin/curl", args);
    assert!(ok, "{method} {path}: {said}");
    let (body, status) = said.trim_end().rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {said}")))
}

/// What QEMU sees of a LUN.
pub fn image(portal: std::net::SocketAddr, target: &str, lun: u64, initiator: &str, user: Option<&str>) -> String {
    let login = user.map(|user| format!(",user={user},password-secret=s")).unwrap_or_default();
    format!("driver=iscsi,transport=tcp,portal={portal},target={target},lun={lun},initiator-name={initiator}{login}")
}

/// Lets QEMU do something with an image.
pub fn qemu_io(image: &str, secret: &str, commands: &[&str]) -> (bool, String) {
    let mut args = vec!["--image-opts".to_string(), "--object".into(), format!("secret,id=s,data={secret}")];
    for command in commands {
        args.extend(["-c".to_string(), (*command).to_string()]);
    }
    args.push(image.to_string());
    let (ok, said) = run("/usr/bin/qemu-io", args);
    (ok && !said.contains("failed"), said)
}

pub fn script(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rest")).join(name)
}
