//! Programs that know nothing of the simulator.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sim_ontap::{Handle, Options};

/// A quick array in a directory of its own.
pub fn array() -> (tempfile::TempDir, Handle) {
    let dir = tempfile::tempdir().unwrap();
    let handle = sim_ontap::start(Options { job_ms: 5, ..Options::new(dir.path()) }).unwrap();
    (dir, handle)
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

/// A Python that has NetApp's client library.
pub fn python() -> PathBuf {
    let beside = || {
        let executable = std::env::current_exe().expect("a test knows its executable");
        let target = executable.ancestors().nth(3).expect("the executable is in <target>/<profile>/deps");
        target.join("venv-netapp-ontap/bin/python")
    };
    let path = std::env::var_os("SIM_ONTAP_PYTHON").map_or_else(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: `cargo xtask test` makes it, or set SIM_ONTAP_PYTHON to a Python with the package netapp-ontap",
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
