//! Whole commands against a tiny server: what they print, what they call, how they end.

mod detach;
mod quiesce;
mod server;
mod trust;

use crate::args::Sources;
use crate::context::Surroundings;
use server::{FakeServer, reference};
use std::io::Cursor;
use tanada_xapi::{ApiError, DateTime, Value};

struct Ran {
    out: String,
    err: String,
    status: u8,
}

fn xe(server: &FakeServer, input: &str, words: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let sources = Sources {
        rc_file: None,
        ca: None,
        extra_args: None,
        command_line: words.iter().map(|word| (*word).into()).collect(),
    };
    let around = Surroundings {
        socket: server.socket.clone(),
        input: &mut Cursor::new(input.to_owned()),
        out: &mut out,
        err: &mut err,
    };
    let status = crate::run(sources, around);
    Ran { out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap(), status }
}

#[track_caller]
fn check(server: &FakeServer, line: &str, expected: &str) {
    let ran = xe(server, "", &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(format!("{}{}", ran.out, ran.err), expected, "{line}");
    assert_eq!(ran.status, 0, "{line}");
}

#[track_caller]
fn check_fails(server: &FakeServer, line: &str, expected: &str) {
    let ran = xe(server, "", &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ran.err, expected, "{line}");
    assert_eq!((ran.out.as_str(), ran.status), ("", 1), "{line}");
}

/// Two VMs, a template, a snapshot of the first VM, one disk on one SR.
fn world(
    answer: impl Fn(&str, &[Value]) -> Option<tanada_xapi::ApiResult<Value>> + Send + Sync + 'static,
) -> FakeServer {
    let server = FakeServer::start(answer);
    let vm = |uuid: &str, name: &str, template: bool, snapshot: bool| {
        server.add(
            "VM",
            uuid,
            [
                ("name_label", Value::from(name)),
                ("name_description", Value::from("")),
                ("power_state", Value::from("Halted")),
                ("is_a_template", Value::Bool(template)),
                ("is_a_snapshot", Value::Bool(snapshot)),
                ("is_control_domain", Value::Bool(false)),
                ("is_vmss_snapshot", Value::Bool(false)),
                ("snapshot_time", Value::from(DateTime::from_unix(86_400))),
                ("snapshot_of", if snapshot { reference("v1") } else { Value::from("OpaqueRef:NULL") }),
                ("snapshots", if uuid == "v1" { Value::set([reference("s1")]) } else { Value::empty_set() }),
                ("memory_static_max", Value::Int(1 << 30)),
                ("VBDs", if uuid == "v1" { Value::set([reference("b1")]) } else { Value::empty_set() }),
                ("other_config", Value::map([("a", "1"), ("b", "two, three")])),
                ("tags", Value::set(["red", "blue"])),
                ("metrics", Value::from("OpaqueRef:NULL")),
            ],
        );
    };
    vm("v2", "web,2", false, false);
    vm("v1", "web1", false, false);
    vm("t1", "Other", true, false);
    vm("s1", "night", true, true);
    server.add("SR", "r1", [("name_label", Value::from("fast")), ("content_type", Value::from("user"))]);
    server.add(
        "VDI",
        "d1",
        [
            ("name_label", Value::from("root")),
            ("name_description", Value::from("")),
            ("SR", reference("r1")),
            ("type", Value::from("user")),
            ("virtual_size", Value::Int(8 << 30)),
            ("sharable", Value::Bool(false)),
            ("read_only", Value::Bool(false)),
            ("VBDs", Value::set([reference("b1")])),
        ],
    );
    server.add(
        "VBD",
        "b1",
        [
            ("VM", reference("v1")),
            ("VDI", reference("d1")),
            ("type", Value::from("Disk")),
            ("userdevice", Value::from("0")),
            ("empty", Value::Bool(false)),
            ("other_config", Value::map([("owner", "")])),
        ],
    );
    server.add("host", "h1", [("name_label", Value::from("here"))]);
    server.add("pool", "p1", [("master", reference("h1")), ("default_SR", reference("r1"))]);
    server
}

fn plain() -> FakeServer {
    world(|_, _| None)
}

#[test]
fn lists_have_their_layout_and_leave_templates_and_snapshots_apart() {
    let server = plain();
    let expected = "\
uuid ( RO)           : v2
     name-label ( RW): web,2
    power-state ( RO): halted


uuid ( RO)           : v1
     name-label ( RW): web1
    power-state ( RO): halted


";
    check(&server, "vm-list", expected);
    check(&server, "vm-list --minimal", "v2,v1\n");
    check(&server, "vm-list params=name-label minimal=true", "web\\,2,web1\n");
    check(&server, "template-list --minimal", "t1\n");
    check(&server, "snapshot-list --minimal", "s1\n");
    check(&server, "template-list is-a-snapshot=true --minimal", "s1\n");
    check(&server, "vm-list name-label=nobody", "");
    check(&server, "vm-list name-label=nobody --minimal", "\n");
    check(&server, "vm-list all=true --minimal", "t1,s1,v2,v1\n");
    check(&server, "vm-list other-config:a=1 tags:contains=red uuid=v1 --minimal", "v1\n");
    check(
        &server,
        "snapshot-list params=snapshot-of,snapshot-time uuid=s1",
        "snapshot-of ( RO)      : v1\n    snapshot-time ( RO): 19700102T00:00:00Z\n\n\n",
    );
    check(&server, "vdi-list type=User params=uuid,sr-name-label,vbd-uuids --minimal", "d1\n");
}

#[test]
fn one_parameter_is_printed_bare() {
    let server = plain();
    check(&server, "vm-param-get uuid=v1 param-name=power-state", "halted\n");
    check(&server, "vm-param-get uuid=v1 param-name=other-config", "a: 1; b: two, three\n");
    check(&server, "vm-param-get uuid=v1 param-name=other-config param-key=b", "two, three\n");
    check(&server, "vm-param-get uuid=v1 param-name=tags", "red, blue\n");
    check(&server, "vm-param-get uuid=v1 param-name=memory-actual", "<not in database>\n");
    check(&server, "vdi-param-get uuid=d1 param-name=sr-name-label", "fast\n");
    check_fails(&server, "vm-param-get uuid=v1 param-name=other-config param-key=c", "Error: Key c not found in map\n");
    check_fails(&server, "vm-param-get uuid=v1 param-name=colour", "Error: Unknown field 'colour'\n");
    let unknown = "The uuid you supplied was invalid.\ntype: VM\nuuid: nope\n";
    check_fails(&server, "vm-param-get uuid=nope param-name=uuid", unknown);
}

#[test]
fn parameters_are_set_by_their_type() {
    let server = plain();
    check(&server, "vm-param-set uuid=v1 name-label=db memory-static-max=2GiB other-config:k=v", "");
    check(&server, "vm-param-set uuid=v1 suspend-SR-uuid=r1", "");
    check(&server, "vm-param-add uuid=v1 param-name=tags param-key=green", "");
    check(&server, "vm-param-add uuid=v1 param-name=other-config x=y", "");
    check(&server, "vm-param-remove uuid=v1 param-name=tags param-key=red", "");
    check(&server, "vm-param-clear uuid=v1 param-name=other-config", "");
    let expected = [
        "VM.set_name_label(@v1, db)",
        "VM.set_memory_static_max(@v1, 2147483648)",
        "VM.remove_from_other_config(@v1, k)",
        "VM.add_to_other_config(@v1, k, v)",
        "VM.set_suspend_SR(@v1, @r1)",
        "VM.add_tags(@v1, green)",
        "VM.add_to_other_config(@v1, x, y)",
        "VM.remove_tags(@v1, red)",
        "VM.set_other_config(@v1, {})",
    ];
    assert_eq!(server.log(), expected);
    check_fails(&server, "vm-param-set uuid=v1 power-state=running", "Error: Field 'power-state' is read-only.\n");
    check_fails(&server, "vm-param-set uuid=v1 VCPUs-max=many", "Error: Parameter VCPUs-max must be an integer\n");
    check_fails(&server, "vm-param-remove uuid=v1 param-name=tags param-key=x", "Error: Key x is not in the set\n");
}

/// One call with all of it, and none before everything is understood.
#[test]
fn a_map_that_is_checked_as_a_whole_is_set_as_a_whole() {
    let server = world(|method, params| match method {
        "VMSS.get_schedule" => Some(Ok(Value::map([("hour", "2"), ("min", "0")]))),
        "VMSS.set_schedule" if params[1].get("min").and_then(Value::as_str) == Some("77") => {
            Some(Err(ApiError::invalid_value("schedule:min", "77")))
        }
        "VMSS.add_to_schedule" => Some(Err(ApiError::invalid_value("schedule:min", "77"))),
        _ => None,
    });
    server.add("VMSS", "n1", [("name_label", Value::from("nightly"))]);
    let refused = "The value given is invalid\nfield: schedule:min\nvalue: 77\n";
    check_fails(&server, "vmss-param-set uuid=n1 schedule:hour=3 schedule:min=77", refused);
    check_fails(&server, "vmss-param-add uuid=n1 param-name=schedule keep-daily=9 min=77", refused);
    check_fails(&server, "vmss-param-set uuid=n1 name-label=x colour=red", "Error: Unknown field 'colour'\n");
    check(&server, "vmss-param-set uuid=n1 schedule:hour=3 schedule:keep-daily=9", "");
    check(&server, "vmss-param-add uuid=n1 param-name=schedule keep-daily=9", "");
    let expected = [
        "VMSS.set_schedule(@n1, {hour=3 min=77})",
        "VMSS.add_to_schedule(@n1, min, 77)",
        "VMSS.set_schedule(@n1, {hour=3 keep-daily=9 min=0})",
        "VMSS.set_schedule(@n1, {hour=2 keep-daily=9 min=0})",
    ];
    assert_eq!(server.log(), expected);
}

#[test]
fn selectors_choose_vms() {
    let server = world(|method, params| match method {
        "VM.start" if params[0] == reference("s1") => Some(Err(ApiError::vm_is_snapshot("OpaqueRef:s1", "start"))),
        "VM.start" if params[0] == reference("v2") => Some(Err(ApiError::sr_has_no_pbds("OpaqueRef:r1"))),
        "VM.start" => Some(Ok(Value::Void)),
        _ => None,
    });
    check(&server, "vm-start vm=web1", "");
    check(&server, "vm-start vm=v1 paused=true", "");
    assert_eq!(server.log(), ["VM.start(@v1, false, false)", "VM.start(@v1, true, false)"]);
    check_fails(&server, "vm-start vm=nobody", "Error: No matching VMs found\n");
    let several = "Error: 2 VMs match: use --multiple to perform the operation on several VMs\n";
    check_fails(&server, "vm-start", several);
    // A snapshot is no VM, but the server's refusal says why.
    check_fails(&server, "vm-start uuid=s1", "Error code: VM_IS_SNAPSHOT\nError parameters: OpaqueRef:s1, start\n");
    check_fails(&server, "vm-shutdown vm=night colour=red", "Error: Unknown field 'colour'\n");
    check_fails(&server, "vm-start vm=v2", "The SR has no attached PBDs\nsr: r1 (fast)\n");
    let ran = xe(&server, "", &["vm-start", "--multiple"]);
    assert_eq!(ran.out, "operation failed on v2: The SR has no attached PBDs; sr: r1 (fast)\n");
    assert_eq!((ran.err.as_str(), ran.status), ("", 1));
}

#[test]
fn install_from_a_snapshot_clones_and_provisions() {
    let server = world(|method, _| match method {
        "VM.clone" => Some(Ok(reference("v2"))),
        "VM.provision" | "VM.set_name_description" => Some(Ok(Value::Void)),
        _ => None,
    });
    check(&server, "vm-install template=night new-name-label=again", "v2\n");
    let expected = ["VM.clone(@s1, again)", "VM.set_name_description(@v2, Installed via xe CLI)", "VM.provision(@v2)"];
    assert_eq!(server.log(), expected);
    let refused = "Error: Do not specify an SR: the disks of a snapshot are cloned where they are\n";
    check_fails(&server, "vm-install template-uuid=s1 new-name-label=x sr-uuid=r1", refused);
    check_fails(&server, "vm-install template=web1 new-name-label=x", "Error: No templates matched 'web1'\n");
}

#[test]
fn a_failed_install_leaves_nothing_behind() {
    let server = world(|method, _| match method {
        "VM.clone" => Some(Ok(reference("v2"))),
        "VM.provision" => Some(Err(ApiError::provision_failed_out_of_space())),
        "VM.set_name_description" | "VM.destroy" => Some(Ok(Value::Void)),
        _ => None,
    });
    let text = "The provision call failed because it ran out of space.\n";
    check_fails(&server, "vm-install template=night new-name-label=again", text);
    assert_eq!(server.log().last().unwrap(), "VM.destroy(@v2)");
}

#[test]
fn storage_commands_send_what_was_said() {
    let server = world(|method, _| match method {
        "SR.create" => Some(Ok(reference("r1"))),
        "VDI.create" => Some(Ok(reference("d1"))),
        "VBD.create" => Some(Ok(reference("b1"))),
        _ => None,
    });
    check(&server, "sr-create name-label=fast type=tanada device-config:location=/x", "r1\n");
    check(&server, "vdi-create sr-uuid=r1 name-label=d virtual-size=1GiB", "d1\n");
    check(&server, "vbd-create vm-uuid=v1 vdi-uuid=d1 device=autodetect mode=ro", "b1\n");
    check(
        &server,
        "vm-disk-list uuid=v1",
        "\
Disk 0 VBD:
uuid ( RO)             : b1
    vm-name-label ( RO): web1
       userdevice ( RW): 0


Disk 0 VDI:
uuid ( RO)             : d1
       name-label ( RW): root
    sr-name-label ( RO): fast
     virtual-size ( RO): 8589934592


",
    );
    let log = server.log();
    assert_eq!(log[0], "SR.create(@h1, {location=/x}, 0, fast, , tanada, , false, {})");
    assert!(log[1].contains("virtual_size=1073741824") && log[1].contains("type=user"), "{}", log[1]);
    assert!(log[2].contains("mode=RO") && log[2].contains("userdevice=autodetect"), "{}", log[2]);
    check_fails(
        &server,
        "vbd-create vm-uuid=v1 device=0",
        "Error: Only a device of type=CD can be empty: give vdi-uuid\n",
    );
    check_fails(
        &server,
        "vdi-create sr-uuid=r1 name-label=d",
        "Required parameter not found: virtual-size\nFor usage run: 'xe help'\n",
    );
}

#[test]
fn uninstall_asks_first_and_takes_the_snapshots_along() {
    let server = plain();
    let ran = xe(&server, "no\n", &["vm-uninstall", "uuid=v1"]);
    let items = "\
The following items are about to be destroyed
VM : v1 (web1)
VDI: d1 (root) 
VM : s1 (night)
Type 'yes' to continue
";
    assert_eq!(ran.out, format!("{items}Aborted (you typed: 'no')\n"));
    assert_eq!(ran.status, 0);
    assert!(server.log().is_empty());
    let ran = xe(&server, "YES\n", &["vm-uninstall", "uuid=v1"]);
    assert_eq!(ran.out, format!("{items}All objects destroyed\n"));
    assert_eq!(server.log(), ["VM.destroy(@v1)", "VDI.destroy(@d1)", "VM.destroy(@s1)"]);
}

/// However its device is marked.
#[test]
fn a_disk_that_a_vm_merely_reads_outlives_it() {
    for (mode, is_generation, expected) in [
        ("RW", false, ["VM.destroy(@v1)", "VDI.destroy(@d1)"].as_slice()),
        ("RO", false, &["VM.destroy(@v1)"]),
        ("RO", true, &["VM.destroy(@v1)"]),
        ("RW", true, &["VM.destroy(@v1)"]),
    ] {
        let server = plain();
        {
            let mut state = server.state.lock().unwrap();
            let mut set = |class: &str, id: &str, field: &str, value: Value| {
                state.objects.get_mut(class).unwrap().get_mut(id).unwrap().insert(field.to_owned(), value);
            };
            set("VM", "OpaqueRef:v1", "snapshots", Value::empty_set());
            set("VBD", "OpaqueRef:b1", "mode", Value::from(mode));
            set("VDI", "OpaqueRef:d1", "is_a_snapshot", Value::Bool(is_generation));
        }
        let ran = xe(&server, "", &["vm-uninstall", "uuid=v1", "force=true"]);
        assert_eq!(ran.status, 0, "{}", ran.err);
        assert_eq!(server.log(), expected, "{mode} {is_generation}");
    }
    // A snapshot's own generations go with it.
    let server = plain();
    {
        let mut state = server.state.lock().unwrap();
        let snapshot = state.objects.get_mut("VM").unwrap().get_mut("OpaqueRef:s1").unwrap();
        snapshot.insert("VBDs".to_owned(), Value::set([reference("b1")]));
        let disk = state.objects.get_mut("VDI").unwrap().get_mut("OpaqueRef:d1").unwrap();
        disk.insert("is_a_snapshot".to_owned(), Value::Bool(true));
    }
    xe(&server, "", &["snapshot-uninstall", "uuid=s1", "force=true"]);
    assert_eq!(server.log(), ["VM.destroy(@s1)", "VDI.destroy(@d1)"]);
}

#[test]
fn exports_write_files_and_failed_ones_remove_them() {
    let server = plain();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.xva");
    let data: Vec<u8> = (0..600_000_u32).map(|n| n as u8).collect();
    server.state.lock().unwrap().download = (data.clone(), data.len());
    let filename = format!("filename={}", file.display());
    let ran = xe(&server, "", &["vm-export", "vm=web1", &filename, "compress=zstd"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.status), ("Export succeeded\n", "", 0));
    assert_eq!(std::fs::read(&file).unwrap(), data);
    assert_eq!(server.log(), ["/export?&ref=OpaqueRef:v1&use_compression=zstd&preserve_power_state=false"]);
    let again = xe(&server, "", &["vm-export", "vm=web1", &filename]);
    assert!(again.err.contains("Cannot create") && again.status == 1, "{}", again.err);
    assert_eq!(std::fs::read(&file).unwrap(), data, "an existing file is left alone");

    let cut = folder.path().join("cut.xva");
    server.state.lock().unwrap().download = (data.clone(), 1000);
    let ran = xe(&server, "", &["vm-export", "vm=web1", &format!("filename={}", cut.display())]);
    assert_eq!(ran.err, "An I/O error was detected while operating on the VDI.\ndevice: d\n");
    assert_eq!(ran.status, 1);
    assert!(!cut.exists());
}

#[test]
fn imports_send_the_file_and_print_uuids() {
    let server = world(|method, params| match method {
        "VM.get_uuid" if params[0].as_str() == Some("OpaqueRef:imported") => Some(Ok(Value::from("new-uuid"))),
        _ => None,
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.xva");
    let data = vec![7; 700_000];
    std::fs::write(&file, &data).unwrap();
    let ran = xe(&server, "", &["vm-import", &format!("filename={}", file.display())]);
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.status), ("new-uuid\n", "", 0));
    assert_eq!(server.state.lock().unwrap().uploaded, data);
    assert_eq!(server.log(), ["/import?&sr_id=OpaqueRef:r1&restore=false&force=false"]);
}

#[test]
fn event_wait_ends_when_a_record_matches() {
    let server = plain();
    check(&server, "event-wait class=vm uuid=v1 power-state=halted", "");
    check(&server, "event-wait class=vm uuid=v1 power-state=/=running", "");
    check_fails(&server, "event-wait class=cat", "Error: Cli listening for class 'cat' not currently implemented\n");
    check_fails(&server, "event-wait class=vm colour=red", "Error: key missing: colour\n");
}

#[test]
fn failures_before_the_server_and_at_its_door() {
    let server = plain();
    let unknown = "Unknown command: vm-lsit\nDid you mean 'vm-list'?\nFor usage run: 'xe help'\n";
    check_fails(&server, "vm-lsit", unknown);
    check_fails(&server, "-s nowhere.invalid vm-list", "Username/password must be specified\n");
    check_fails(&server, "-pw wrong vm-list", "Authentication failed\nFor usage run: 'xe help'\n");
    check_fails(&server, "snapshot-revert", "Error: Required parameter not found: snapshot-uuid or uuid.\n");
    check_fails(&server, "vm-list -z", "Syntax error: Unknown switch: -z\nFor usage run: 'xe help'\n");
    let ran = xe(&server, "", &["-s", "/nonexistent/socket", "vm-list"]);
    assert!(ran.err.starts_with("Error: Cannot connect to /nonexistent/socket: ") && ran.status == 1, "{}", ran.err);
    let ran = xe(&server, "", &[]);
    assert!(ran.err.starts_with("Usage:") && ran.status == 0);
}
