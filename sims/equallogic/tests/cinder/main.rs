//! An outside witness: the EqualLogic driver of OpenStack Cinder 15, by an author who knew the array.

use std::path::PathBuf;
use std::process::Command;

use sim_equallogic::{Options, start};

/// Python packages and the driver's files, beside the target directory's other environments.
fn environment() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its executable");
    let target = executable.ancestors().nth(3).expect("the executable is in <target>/<profile>/deps");
    let made = std::env::var_os("TANADA_CINDER").map_or_else(|| target.join("venv-cinder"), PathBuf::from);
    assert!(
        made.join("package-installed").is_file(),
        "{} is missing: `cargo xtask test` makes it, or set TANADA_CINDER to an environment made by it",
        made.display()
    );
    made
}

#[test]
fn the_last_cinder_driver_works() {
    let made = environment();
    let dir = tempfile::tempdir().expect("a directory");
    let group = start(Options::new(dir.path().join("group"))).expect("a group");
    group.with_array(|array| array.create_chap_user("cinder", "secretsecret".into()).expect("a CHAP user"));
    let output = Command::new("/usr/bin/timeout")
        .arg("120")
        .arg(made.join("bin/python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cinder/witness.py"))
        .args([made.join("files"), dir.path().to_path_buf()])
        .arg(group.ssh().port().to_string())
        .output()
        .expect("timeout");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let learned: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a line of JSON");
    let left = group.with_array(|array| array.group.volumes.clone());
    assert_eq!(left.keys().collect::<Vec<_>>(), ["volume-4"]);
    let kept = &left["volume-4"];
    assert_eq!((kept.description.as_str(), kept.multihost, kept.size_mb), ("OpenStack UnManaged", true, 3 << 10));
    assert!(kept.snapshots.is_empty(), "it extends without safety snapshots");
    assert_eq!(learned["connection"]["target_portal"], "127.0.0.1:3260");
    assert_eq!(learned["connection"]["target_lun"], 0);
    assert!(learned["location"].as_str().is_some_and(|text| text.ends_with("-volume-1 0")), "{learned}");
    assert_eq!((&learned["size"], &learned["managed size"]), (&3.into(), &3.into()));
    let stats = &learned["stats"];
    assert_eq!((&stats["total_volumes"], &stats["total_capacity_gb"]), (&3.into(), &2048.into()), "{stats}");
    // Three volumes of 1, 2 and 3 GB, rounded up to pages and then to whole gigabytes.
    assert_eq!(stats["provisioned_capacity_gb"], 7, "{stats}");
    assert!(learned["missing"].as_str().is_some_and(|text| text.contains("volume select volume-1 show")), "{learned}");
}
