"""Snapshots, restore, FlexClones and consistency groups with netapp-ontap. Arguments: address, CA file."""
import sys

from netapp_ontap import HostConnection, NetAppRestError, config
from netapp_ontap.resources import ConsistencyGroup, ConsistencyGroupSnapshot, Lun, Snapshot, Volume

(host, port), ca = sys.argv[1].split(":"), sys.argv[2]
config.CONNECTION = HostConnection(host, port=int(port), username="vsadmin", password="netapp1!", verify=ca, poll_interval=0.05)


def fails(words, call):
    try:
        call()
    except NetAppRestError as error:
        assert words in str(error), f"{words!r} expected: {error}"
        return
    raise AssertionError(f"no error where {words!r} was expected")


# An account of the SVM need not name it.
for name in ["fv0", "fv1"]:
    Volume.from_dict({"name": name, "aggregates": [{"name": "aggr1"}], "size": 10 << 30, "guarantee": {"type": "none"},
                      "snapshot_policy": {"name": "none"}}).post()
    Lun.from_dict({"name": f"/vol/{name}/a", "os_type": "linux", "space": {"size": 1 << 30}}).post()
fv = Volume.find(name="fv0")

snapshot = Snapshot.from_dict({"name": "s1", "comment": "first", "volume": {"uuid": fv.uuid}})
snapshot.post(hydrate=True)
fails("already exists", lambda: Snapshot.from_dict({"name": "s1", "volume": {"uuid": fv.uuid}}).post())
made = Snapshot.find(fv.uuid, name="s1", fields="*")
assert made.comment == "first" and made.create_time is not None
Lun.from_dict({"name": "/vol/fv0/from_s1", "clone": {"source": {"name": "/vol/fv0/.snapshot/s1/a"}}}).post()
assert Lun.find(name="/vol/fv0/from_s1", fields="space").space.size == 1 << 30

# Back to the snapshot: what was made later is gone.
Volume(uuid=fv.uuid).patch(**{"restore_to.snapshot.name": "s1"})
assert Lun.find(name="/vol/fv0/from_s1") is None and Lun.find(name="/vol/fv0/a") is not None

# A FlexClone holds its parent's snapshot.
Volume.from_dict({"name": "copy", "clone": {"is_flexclone": True, "parent_volume": {"name": "fv0"},
                                            "parent_snapshot": {"name": "s1"}}}).post()
assert Lun.find(name="/vol/copy/a") is not None
fails("locked", made.delete)
fails("clones", fv.delete)
copy = Volume.find(name="copy")
split = Volume(uuid=copy.uuid)
split.clone = {"split_initiated": True}
split.patch()
made.name = "s2"
made.patch()
made.delete()
assert Snapshot.count_collection(fv.uuid) == 0
copy.delete()

# Groups.
members = [{"name": name, "provisioning_options": {"action": "add"}} for name in ["fv0", "fv1"]]
group = ConsistencyGroup.from_dict({"name": "g", "svm": {"name": "svm1"}, "volumes": members})
group.post(hydrate=True)
fails("already in a consistency group",
      lambda: ConsistencyGroup.from_dict({"name": "h", "svm": {"name": "svm1"}, "volumes": members}).post())
cut = ConsistencyGroupSnapshot.from_dict({"name": "c1", "consistency_type": "crash", "consistency_group": {"uuid": group.uuid}})
cut.post(hydrate=True)
for volume in Volume.get_collection(name="fv*"):
    assert [it.name for it in Snapshot.get_collection(volume.uuid)] == ["c1"]
fails("failed", ConsistencyGroupSnapshot.from_dict({"name": "c1", "consistency_group": {"uuid": group.uuid}}).post)
two = ConsistencyGroupSnapshot.from_dict({"name": "c2", "consistency_group": {"uuid": group.uuid}})
two.post(action="start", action_timeout=7)
assert Snapshot.find(fv.uuid, name="c2") is None, "not before the commit"
two.patch(action="commit")
assert Snapshot.find(fv.uuid, name="c2") is not None
fails("no started", lambda: two.patch(action="commit"))
group.delete()
assert Snapshot.count_collection(fv.uuid) == 2, "members' snapshots outlive the group"
print("ok")
