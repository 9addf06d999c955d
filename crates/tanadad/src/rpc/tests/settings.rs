use tanada_xapi::{ApiError, Ref, Value};

use crate::db::View;
use crate::testing::TestDaemon;

const MIB: i64 = 1 << 20;

fn machine(t: &TestDaemon) -> Ref {
    let fields = [
        ("memory_static_min", Value::Int(64 * MIB)),
        ("memory_dynamic_min", Value::Int(128 * MIB)),
        ("memory_dynamic_max", Value::Int(128 * MIB)),
        ("memory_static_max", Value::Int(256 * MIB)),
        ("VCPUs_max", Value::Int(2)),
        ("VCPUs_at_startup", Value::Int(1)),
    ];
    t.daemon.db.write(|tx| tx.create("VM", fields)).unwrap()
}

fn int(t: &TestDaemon, vm: &Ref, field: &str) -> i64 {
    t.daemon.db.read(|s| s.get("VM", vm).unwrap().int(field))
}

#[tokio::test]
async fn memory_keeps_its_order() {
    let t = TestDaemon::new(Vec::new());
    let vm = machine(&t);
    let call = async |method: &str, values: &[i64]| {
        let values = values.iter().map(|v| Value::Int(v * MIB));
        t.call(method, std::iter::once(Value::from(&vm)).chain(values)).await
    };
    let disorder = Err(ApiError::memory_constraint_violation_order());
    assert_eq!(call("VM.set_memory_static_max", &[100]).await, disorder);
    assert_eq!(int(&t, &vm, "memory_static_max"), 256 * MIB, "a refused change is undone");
    assert_eq!(call("VM.set_memory_dynamic_range", &[128, 512]).await, disorder);
    assert_eq!(call("VM.set_memory_limits", &[64, 1024, 512, 512]).await, Ok(Value::Void));
    assert_eq!(call("VM.set_memory", &[2048]).await, Ok(Value::Void));
    assert_eq!((int(&t, &vm, "memory_dynamic_min"), int(&t, &vm, "memory_static_max")), (2048 * MIB, 2048 * MIB));
    t.daemon.db.write(|tx| tx.set("VM", &vm, "power_state", "Running")).unwrap();
    assert!(call("VM.set_memory", &[512]).await.unwrap_err().is("VM_BAD_POWER_STATE"));
}

#[tokio::test]
async fn processors_and_texts_have_their_rules() {
    let t = TestDaemon::new(Vec::new());
    let vm = machine(&t);
    let call = async |method: &str, value: Value| t.call(method, [Value::from(&vm), value]).await;
    for wrong in [0, 3] {
        assert!(call("VM.set_VCPUs_at_startup", Value::Int(wrong)).await.unwrap_err().is("INVALID_VALUE"));
    }
    assert_eq!(call("VM.set_VCPUs_max", Value::Int(4)).await, Ok(Value::Void));
    assert_eq!(call("VM.set_VCPUs_at_startup", Value::Int(4)).await, Ok(Value::Void));
    assert!(call("VM.set_order", Value::Int(-1)).await.unwrap_err().is("INVALID_VALUE"));
    let strings = || Value::map([("bios-vendor", "x")]);
    assert_eq!(call("VM.set_bios_strings", strings()).await, Ok(Value::Void));
    assert!(call("VM.set_bios_strings", strings()).await.unwrap_err().is("VM_BIOS_STRINGS_ALREADY_SET"));
    assert!(call("VM.set_appliance", Value::from("OpaqueRef:x")).await.unwrap_err().is("HANDLE_INVALID"));
}

#[tokio::test]
async fn a_machine_may_run_where_it_fits() {
    let t = TestDaemon::new(Vec::new());
    let vm = machine(&t);
    let host = t.daemon.db.read(|s| s.only("host")).unwrap().id().clone();
    let here = || [Value::from(&vm), Value::from(&host)];
    t.daemon.db.write(|tx| tx.set("VM", &vm, "memory_static_max", MIB)).unwrap();
    assert_eq!(t.call("VM.get_possible_hosts", [Value::from(&vm)]).await, Ok(Value::set([&host])));
    assert_eq!(t.call("VM.assert_can_boot_here", here()).await, Ok(Value::Void));
    assert_eq!(t.call("host.disable", [Value::from(&host)]).await, Ok(Value::Void));
    assert_eq!(t.call("VM.assert_can_boot_here", here()).await, Err(ApiError::host_disabled(&host)));
    assert_eq!(t.call("VM.get_possible_hosts", [Value::from(&vm)]).await, Ok(Value::empty_set()));
    assert_eq!(t.call("host.enable", [Value::from(&host)]).await, Ok(Value::Void));
    t.daemon.db.write(|tx| tx.set("VM", &vm, "memory_static_max", 1i64 << 60)).unwrap();
    assert!(t.call("VM.assert_can_boot_here", here()).await.unwrap_err().is("HOST_NOT_ENOUGH_FREE_MEMORY"));
}
