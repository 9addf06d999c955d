"""The main job's API calls by the official Python SDK. No guest is started.

Arguments: the socket's path, or an https address with a user and a password; the file that the store is to be in.
"""

import sys

from session import connect, fails

MIB = 1 << 20


class Job:
    def __init__(self, session, store):
        self.session = session
        self.x = session.xenapi
        self.store = store

    def events_from(self, classes, token, timeout):
        # `from` is a word of Python's: it cannot be written as an attribute.
        return getattr(self.x.event, "from")(classes, token, timeout)

    def result(self, task):
        """Waits for the end of a task by events, as clients do, and returns its result."""
        token = ""
        while True:
            batch = self.events_from(["task/" + task], token, 30.0)
            token = batch["token"]
            for event in batch["events"]:
                assert event["class"] == "task" and event["ref"] == task, event
                record = event["snapshot"]
                if record["status"] == "success":
                    assert record["progress"] == 1.0, record
                    self.x.task.destroy(task)
                    return record["result"].replace("<value>", "").replace("</value>", "")
                assert record["status"] == "pending", record

    def run(self):
        x = self.x
        assert self.session.API_version.startswith("2."), self.session.API_version
        pool = x.pool.get_all()[0]
        host = x.pool.get_master(pool)
        assert x.host.get_record(host)["enabled"] is True

        sr = self.result(
            x.Async.SR.create(host, {"location": self.store}, str(1 << 30), "fast", "", "tanada", "user", False, {})
        )
        record = x.SR.get_record(sr)
        assert record["type"] == "tanada" and record["shared"] is False, record
        assert int(record["physical_size"]) > 0 and int(record["virtual_allocation"]) == 0, record
        (pbd,) = record["PBDs"]
        assert x.PBD.get_currently_attached(pbd) is True

        disks = [self.disk(sr, f"disk {n}", (16 + n) * MIB) for n in range(2)]
        assert sorted(x.SR.get_VDIs(sr)) == sorted(disks)
        vm = self.machine("db1")
        for number, vdi in enumerate(disks):
            self.connect(vm, vdi, str(number))
        assert len(x.VM.get_VBDs(vm)) == 2
        assert x.VM.get_power_state(vm) == "Halted"
        fails("DEVICE_ALREADY_EXISTS", self.connect, vm, disks[0], "0")

        snapshot = self.snapshots(vm, disks)
        copy = self.instance(vm, snapshot, disks)
        self.revert(vm, snapshot, disks)
        self.refusals(vm, snapshot)
        self.clear([copy, snapshot, vm], sr, pbd)

    def disk(self, sr, name, size):
        vdi = self.x.VDI.create(
            {
                "name_label": name,
                "name_description": "",
                "SR": sr,
                "virtual_size": str(size),
                "type": "user",
                "sharable": False,
                "read_only": False,
                "other_config": {},
                "xenstore_data": {},
                "sm_config": {},
                "tags": [],
            }
        )
        record = self.x.VDI.get_record(vdi)
        assert int(record["virtual_size"]) == size and record["SR"] == sr and record["managed"] is True, record
        assert record["is_a_snapshot"] is False, record
        return vdi

    def machine(self, name):
        memory = str(256 * MIB)
        vm = self.x.VM.create(
            {
                "name_label": name,
                "name_description": "made by the SDK",
                "user_version": "0",
                "is_a_template": False,
                "affinity": "OpaqueRef:NULL",
                "memory_target": memory,
                "memory_static_max": memory,
                "memory_dynamic_max": memory,
                "memory_dynamic_min": memory,
                "memory_static_min": memory,
                "VCPUs_params": {},
                "VCPUs_max": "1",
                "VCPUs_at_startup": "1",
                "actions_after_shutdown": "destroy",
                "actions_after_reboot": "restart",
                "actions_after_crash": "restart",
                "PV_bootloader": "",
                "PV_kernel": "",
                "PV_ramdisk": "",
                "PV_args": "",
                "PV_bootloader_args": "",
                "PV_legacy_args": "",
                "HVM_boot_policy": "BIOS order",
                "HVM_boot_params": {"order": "c"},
                "HVM_shadow_multiplier": 1.0,
                "platform": {},
                "PCI_bus": "",
                "recommendations": "",
                "xenstore_data": {},
                "ha_always_run": False,
                "ha_restart_priority": "",
                "tags": ["sdk"],
                "blocked_operations": {},
                "other_config": {"purpose": "test"},
            }
        )
        assert self.x.VM.get_by_name_label(name) == [vm]
        assert self.x.VM.get_by_uuid(self.x.VM.get_uuid(vm)) == vm
        return vm

    def connect(self, vm, vdi, device):
        return self.x.VBD.create(
            {
                "VM": vm,
                "VDI": vdi,
                "userdevice": device,
                "bootable": device == "0",
                "mode": "RW",
                "type": "Disk",
                "unpluggable": True,
                "empty": False,
                "other_config": {"owner": ""},
                "qos_algorithm_type": "",
                "qos_algorithm_params": {},
            }
        )

    def vdis(self, vm):
        """The disks of a VM by device number."""
        records = [self.x.VBD.get_record(vbd) for vbd in self.x.VM.get_VBDs(vm)]
        return {record["userdevice"]: record["VDI"] for record in records}

    def snapshots(self, vm, disks):
        x = self.x
        token = self.events_from(["vm"], "", 10.0)["token"]
        snapshot = self.result(x.Async.VM.snapshot(vm, "nightly-001"))
        record = x.VM.get_record(snapshot)
        assert record["is_a_template"] is True and record["is_a_snapshot"] is True, record
        assert record["snapshot_of"] == vm and record["power_state"] == "Halted", record
        assert record["name_description"] == "made by the SDK" and record["tags"] == ["sdk"], record
        assert record["uuid"] != x.VM.get_uuid(vm)
        assert x.VM.get_snapshots(vm) == [snapshot]
        assert record["snapshot_info"]["power-state-at-snapshot"] == "Halted", record["snapshot_info"]
        copies = self.vdis(snapshot)
        assert sorted(copies) == ["0", "1"] and not set(copies.values()) & set(disks), copies
        for number, vdi in enumerate(disks):
            copy = x.VDI.get_record(copies[str(number)])
            assert copy["is_a_snapshot"] is True and copy["snapshot_of"] == vdi, copy
            assert copy["virtual_size"] == x.VDI.get_virtual_size(vdi), copy
        # The new object and the changed source reach a client that waits for events.
        seen = set()
        while not {snapshot, vm} <= seen:
            batch = self.events_from(["vm"], token, 30.0)
            token = batch["token"]
            assert batch["events"], "no event about the snapshot within 30 s"
            seen |= {event["ref"] for event in batch["events"]}
        return snapshot

    def instance(self, vm, snapshot, disks):
        x = self.x
        copy = x.VM.clone(snapshot, "db1-restored")
        assert x.VM.get_is_a_template(copy) is True and x.VM.get_is_a_snapshot(copy) is False
        x.VM.provision(copy)
        record = x.VM.get_record(copy)
        assert record["is_a_template"] is False and record["snapshot_of"] == "OpaqueRef:NULL", record
        assert record["other_config"]["mac_seed"] != x.VM.get_other_config(vm)["mac_seed"], record
        assert "start" in record["allowed_operations"], record["allowed_operations"]
        own = set(self.vdis(copy).values())
        assert len(own) == 2 and not own & set(disks) and not own & set(self.vdis(snapshot).values())
        return copy

    def revert(self, vm, snapshot, disks):
        x = self.x
        uuid = x.VM.get_uuid(vm)
        x.VM.set_name_label(vm, "renamed")
        x.VM.revert(snapshot)
        assert x.VM.get_uuid(vm) == uuid and x.VM.get_name_label(vm) == "db1"
        assert x.VM.get_power_state(vm) == "Halted" and x.VM.get_is_a_snapshot(vm) is False
        assert sorted(self.vdis(vm)) == ["0", "1"]
        assert x.VM.get_snapshots(vm) == [snapshot]
        assert x.VM.get_parent(vm) == snapshot
        assert not set(self.vdis(vm).values()) & set(self.vdis(snapshot).values())

    def refusals(self, vm, snapshot):
        x = self.x
        assert fails("VM_IS_SNAPSHOT", x.VM.start, snapshot, False, False)[0] == snapshot
        fails("VM_BAD_POWER_STATE", x.VM.hard_shutdown, vm)
        fails("REVERT_ONLY_ALLOWED_ON_SNAPSHOT", x.VM.revert, vm)
        fails("PROVISION_ONLY_ALLOWED_ON_TEMPLATE", x.VM.provision, vm)
        assert fails("HANDLE_INVALID", x.VM.get_record, "OpaqueRef:nothing") == ["VM", "OpaqueRef:nothing"]
        assert fails("UUID_INVALID", x.VDI.get_by_uuid, "nothing") == ["VDI", "nothing"]
        assert fails("MESSAGE_METHOD_UNKNOWN", x.VM.frobnicate, vm) == ["VM.frobnicate"]
        fails("MESSAGE_PARAMETER_COUNT_MISMATCH", x.VM.clone, vm)
        x.VM.add_to_other_config(vm, "key", "1")
        fails("MAP_DUPLICATE_KEY", x.VM.add_to_other_config, vm, "key", "2")
        x.VM.remove_from_other_config(vm, "key")
        x.VM.remove_from_other_config(vm, "key")
        task = x.Async.VM.start(snapshot, False, False)
        token = ""
        while x.task.get_status(task) == "pending":
            token = self.events_from(["task/" + task], token, 30.0)["token"]
        assert x.task.get_status(task) == "failure"
        assert x.task.get_error_info(task)[0] == "VM_IS_SNAPSHOT", x.task.get_error_info(task)
        x.task.destroy(task)

    def clear(self, machines, sr, pbd):
        x = self.x
        fails("SR_HAS_PBD", x.SR.destroy, sr)
        for vm in machines:
            disks = self.vdis(vm).values()
            x.VM.destroy(vm)
            for vdi in disks:
                x.VDI.destroy(vdi)
        assert x.SR.get_VDIs(sr) == [] and int(x.SR.get_virtual_allocation(sr)) == 0
        x.PBD.unplug(pbd)
        x.SR.destroy(sr)
        fails("HANDLE_INVALID", x.SR.get_record, sr)


def main():
    where, store, *credentials = sys.argv[1:]
    session = connect(where, *credentials)
    Job(session, store).run()
    session.xenapi.session.logout()
    print("main job by the SDK: ok")


main()
