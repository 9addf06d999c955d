"""Every record of every class, as the official Python SDK decodes it, against the table of classes.

Arguments: the socket's path; the table (classes.json).
"""

import json
import re
import sys
import xmlrpc.client

import XenAPI

# Classes that hold no objects of their own.
NOT_LISTED = {"session", "event", "user", "VMPP", "VBD_metrics"}
# References that may outlive what they name.
MAY_DANGLE = {("VM", "snapshot_of"), ("VM", "parent"), ("VDI", "snapshot_of"), ("VDI", "parent")}
# Both sides of the same relation: the set must hold exactly those that point back.
RELATIONS = [
    ("VM", "VBDs", "VBD", "VM"),
    ("VM", "VIFs", "VIF", "VM"),
    ("VM", "consoles", "console", "VM"),
    ("VM", "snapshots", "VM", "snapshot_of"),
    ("VM", "children", "VM", "parent"),
    ("VDI", "VBDs", "VBD", "VDI"),
    ("VDI", "snapshots", "VDI", "snapshot_of"),
    ("SR", "VDIs", "VDI", "SR"),
    ("SR", "PBDs", "PBD", "SR"),
    ("host", "PBDs", "PBD", "host"),
    ("network", "VIFs", "VIF", "network"),
]
NULL = "OpaqueRef:NULL"


class Table:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.classes = {entry["class"]: entry for entry in json.load(file)["classes"]}
        self.enums = {}
        for entry in self.classes.values():
            self.enums.update(entry["enums"])

    def fields(self, name):
        return {field[0]: field[1] for field in self.classes[name]["fields"]}

    def mistake(self, kind, value):
        """Why `value` is not of the type `kind`, or None."""
        if kind.endswith(" map"):
            key, item = re.fullmatch(r"\((.*) -> (.*)\) map", kind).groups()
            if not isinstance(value, dict):
                return "a map expected"
            mistakes = [self.mistake(key, k) or self.mistake(item, v) for k, v in value.items()]
        elif kind.endswith(" set"):
            if not isinstance(value, list):
                return "a set expected"
            mistakes = [self.mistake(kind[: -len(" set")], item) for item in value]
        else:
            mistakes = [None if self.is_scalar(kind, value) else f"{kind} expected, not {value!r}"]
        return next(filter(None, mistakes), None)

    def is_scalar(self, kind, value):
        if kind.endswith(" ref"):
            return isinstance(value, str) and value.startswith("OpaqueRef:")
        if kind.startswith("enum "):
            return value in self.enums[kind[len("enum ") :]]
        if kind == "int":
            return isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) is not None
        if kind == "datetime":
            return isinstance(value, xmlrpc.client.DateTime) and re.fullmatch(
                r"[0-9]{8}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", value.value
            )
        return isinstance(value, {"string": str, "bool": bool, "float": float}[kind])


def references(kind, value):
    """(class, reference) of each reference in a value."""
    if kind.endswith(" ref"):
        return [(kind[: -len(" ref")], value)]
    if kind.endswith(" ref set"):
        return [(kind[: -len(" ref set")], item) for item in value]
    return []


def check_fields(table, name, ref, record):
    fields = table.fields(name)
    missing, surplus = fields.keys() - record.keys(), record.keys() - fields.keys()
    assert not missing and not surplus, f"{name} {ref}: missing {missing}, surplus {surplus}"
    for field, kind in fields.items():
        mistake = table.mistake(kind, record[field])
        assert mistake is None, f"{name}.{field} of {ref}: {mistake}"


def check_references(table, everything):
    for name, records in everything.items():
        for ref, record in records.items():
            for field, kind in table.fields(name).items():
                for target, to in references(kind, record[field]):
                    known = to == NULL or target not in everything or to in everything[target]
                    assert known or (name, field) in MAY_DANGLE, f"{name}.{field} of {ref} names no {target}: {to}"


def check_relations(everything):
    for one, many, other, back in RELATIONS:
        for ref, record in everything[one].items():
            pointing = {o for o, r in everything[other].items() if r[back] == ref}
            assert set(record[many]) == pointing, f"{one}.{many} of {ref}: {record[many]}, but {pointing} point back"


def main():
    socket, path = sys.argv[1:]
    session = XenAPI.Session("http://" + socket.replace("/", "_"), transport=XenAPI.UDSTransport())
    session.login_with_password("root", "", "1.0", "sdk-test")
    table = Table(path)
    listed = [name for name in table.classes if name not in NOT_LISTED]
    everything = {name: getattr(session.xenapi, name).get_all_records() for name in listed}
    uuids = set()
    for name, records in everything.items():
        for ref, record in records.items():
            check_fields(table, name, ref, record)
            if "uuid" in record:
                assert record["uuid"] not in uuids and record["uuid"] != ref, f"{name} {ref}: {record['uuid']}"
                uuids.add(record["uuid"])
                assert getattr(session.xenapi, name).get_by_uuid(record["uuid"]) == ref
    check_references(table, everything)
    check_relations(everything)
    # What events tell is what reading tells.
    batch = getattr(session.xenapi.event, "from")(["*"], "", 10.0)
    lower = {name.lower(): name for name in table.classes}
    for event in batch["events"]:
        check_fields(table, lower[event["class"]], event["ref"], event["snapshot"])
    for name in ["VM", "VDI", "VBD", "SR", "PBD", "network", "host", "pool", "SM", "VIF"]:
        told = {event["ref"] for event in batch["events"] if event["class"] == name.lower()}
        assert told == set(everything[name]), f"{name}: events tell {told}, reading {set(everything[name])}"
        assert batch["valid_ref_counts"][name.lower()] == len(told), (name, batch["valid_ref_counts"])
    session.xenapi.session.logout()
    filled = [name for name, records in everything.items() if records]
    print(f"{sum(map(len, everything.values()))} records of {len(filled)} classes: ok")


main()
