"""Volumes, LUNs, clones, igroups, maps and CHAP with netapp-ontap. Arguments: address, CA file."""
import sys

from netapp_ontap import HostConnection, NetAppRestError, config
from netapp_ontap.resources import (
    Aggregate, Cluster, EmsApplicationLog, Igroup, IgroupInitiator, IpInterface, IscsiCredentials, IscsiService, Lun,
    LunAttribute, LunMap, Node, QosPolicy, SnapshotPolicy, Svm, Volume,
)

(host, port), ca = sys.argv[1].split(":"), sys.argv[2]
config.CONNECTION = HostConnection(host, port=int(port), username="admin", password="netapp1!", verify=ca, poll_interval=0.05)


def fails(code, call):
    try:
        call()
    except NetAppRestError as error:
        said = error.http_err_response.http_response.json()["error"]["code"] if error.http_err_response else str(error)
        assert said == str(code), f"code {said} where {code} was expected: {error}"
        return
    raise AssertionError(f"no error where {code} was expected")


cluster = Cluster()
cluster.get()
assert (cluster.version.generation, cluster.version.major) == (9, 15), cluster.to_dict()
assert len(list(Node.get_collection(fields="name,model,serial_number"))) == 2
svm = Svm.find(name="svm1")
assert svm.state == "running" and svm.aggregates[0].name == "aggr1" and svm.iscsi.enabled
aggregate = Aggregate.find(name="aggr1")
assert aggregate.space.block_storage.available > 0
assert SnapshotPolicy.find(name="none") is not None
service = IscsiService.find(**{"svm.name": "svm1"})
assert service.target.name.startswith("iqn.1992-08.com.netapp:sn.")
lifs = list(IpInterface.get_collection(services="data_iscsi", **{"svm.name": "svm1"}, fields="ip,enabled,state"))
assert len(lifs) == 2 and all(lif.state == "up" for lif in lifs)

# A thin FlexVol.
def volume(name, **more):
    return Volume.from_dict({
        "name": name, "svm": {"name": "svm1"}, "aggregates": [{"name": "aggr1"}], "size": 100 << 30,
        "guarantee": {"type": "none"}, "snapshot_policy": {"name": "none"}, "space": {"snapshot": {"reserve_percent": 0}},
        "autosize": {"mode": "grow", "maximum": 300 << 30}, **more})


fv = volume("fv0", comment="ours")
fv.post(hydrate=True)
fv.get(fields="**")
assert fv.guarantee.type == "none" and fv.space.snapshot.reserve_percent == 0 and fv.autosize.mode == "grow"
fails(917888, lambda: volume("a-b").post())
fails(917534, lambda: volume("fv9", size=4096).post())
fails(917508, lambda: volume("fv9", aggregates=[{"name": "none"}]).post())
try:
    volume("fv0").post()
    raise AssertionError("a second volume of one name")
except NetAppRestError as error:
    assert "already exists" in str(error), error
fv.size = 200 << 30
fv.patch()
fv.get()
assert fv.size == 200 << 30

# LUNs.
def lun(name, size=1 << 30, **more):
    made = Lun.from_dict({"name": name, "svm": {"name": "svm1"}, "os_type": "linux", "space": {"size": size}, **more})
    made.post(hydrate=True)
    return made


a = lun("/vol/fv0/a", comment="disk a", attributes=[{"name": "tanada.vdi", "value": "1"}])
assert len(a.serial_number) == 12 and a.space.size == 1 << 30
fails(5374242, lambda: lun("/vol/fv0/a"))
fails(5374121, lambda: lun("/vol/fv0/a b"))
fails(917927, lambda: lun("/vol/none/a"))
fails(5374124, lambda: lun("/vol/fv0/tiny", size=1))
odd = lun("/vol/fv0/odd", size=(1 << 30) + 1)
assert odd.space.size == (1 << 30) + 4096, "sizes are rounded up"
odd.delete()
a.get(fields="attributes")
assert a.attributes[0].name == "tanada.vdi"
LunAttribute(a.uuid, name="more", value="2").post()
fails(5374930, lambda: LunAttribute(a.uuid, name="more", value="2").post())
assert {it.name: it.value for it in LunAttribute.get_collection(a.uuid, fields="value")} == {"tanada.vdi": "1", "more": "2"}
attribute = LunAttribute(a.uuid, name="more")
attribute.value = "3"
attribute.patch()
LunAttribute(a.uuid, name="more").delete()

# Growing; what REST cannot do.
a = Lun.find(name="/vol/fv0/a", fields="*")
a.space.size = 2 << 30
a.patch()
a.space.size = 1 << 30
fails(5374892, a.patch)
a.space.size = 2 << 30
same = Lun(uuid=a.uuid)
same.space = {"size": 2 << 30}
fails(1254226, same.patch)

# Clones: own identity, size and attributes of the source, thin flag off unless asked for.
def clone(name, source, **more):
    made = Lun.from_dict({"name": name, "svm": {"name": "svm1"}, "clone": {"source": {"name": source}}, **more})
    made.post(hydrate=True)
    return made


b = clone("/vol/fv0/b", "/vol/fv0/a")
b.get(fields="**")
assert b.space.size == 2 << 30 and b.serial_number != a.serial_number and b.uuid != a.uuid
assert b.space.scsi_thin_provisioning_support_enabled is False and b.attributes[0].name == "tanada.vdi"
c = clone("/vol/fv0/c", "/vol/fv0/a", space={"scsi_thin_provisioning_support_enabled": True, "guarantee": {"requested": False}})
assert c.space.scsi_thin_provisioning_support_enabled is True
fails(1260136, lambda: clone("/vol/fv0/b", "/vol/fv0/a"))
fails(5374876, lambda: clone("/vol/fv0/d", "/vol/fv0/none"))
volume("fv1").post()
fails(1260121, lambda: clone("/vol/fv1/d", "/vol/fv0/a"))

# Overwriting in place keeps who it is.
serial = b.serial_number
back = Lun(uuid=b.uuid)
back.clone = {"source": {"uuid": a.uuid}}
back.patch()
b.get()
assert b.serial_number == serial

# Queries and pages.
names = [it.name for it in Lun.get_collection(name="/vol/fv0/*", order_by="name desc")]
assert names == ["/vol/fv0/c", "/vol/fv0/b", "/vol/fv0/a"], names
assert len(list(Lun.get_collection(max_records=1))) == 3, "pages are followed"
assert Lun.count_collection(**{"location.volume.name": "fv0"}) == 3
assert [it.name for it in Lun.get_collection(name="/vol/fv0/a|/vol/fv0/b", **{"space.size": ">1GB"})] != []

# Access.
group = Igroup.from_dict({"name": "h1", "svm": {"name": "svm1"}, "protocol": "iscsi", "os_type": "linux"})
group.post(hydrate=True)
fails(5374023, lambda: Igroup.from_dict({"name": "h1", "svm": {"name": "svm1"}, "os_type": "linux"}).post())
IgroupInitiator(group.uuid, name="iqn.2026-01.test:one").post()
fails(5374039, lambda: IgroupInitiator(group.uuid, name="somebody").post())
assert [it.name for it in Igroup.get_collection(**{"initiators.name": "iqn.2026-01.test:one"})] == ["h1"]
mapping = LunMap.from_dict({"svm": {"name": "svm1"}, "lun": {"name": "/vol/fv0/a"}, "igroup": {"name": "h1"}})
mapping.post(hydrate=True)
assert mapping.logical_unit_number == 0
fails(1254207, lambda: LunMap.from_dict(
    {"svm": {"name": "svm1"}, "lun": {"uuid": a.uuid}, "igroup": {"uuid": group.uuid}}).post())
fails(1254324, lambda: LunMap.from_dict(
    {"svm": {"name": "svm1"}, "lun": {"uuid": b.uuid}, "igroup": {"uuid": group.uuid}, "logical_unit_number": 0}).post())
other = Igroup.from_dict({"name": "h2", "svm": {"name": "svm1"}, "os_type": "linux",
                          "initiators": [{"name": "iqn.2026-01.test:one"}]})
other.post(hydrate=True)
fails(1254193, lambda: LunMap.from_dict(
    {"svm": {"name": "svm1"}, "lun": {"uuid": a.uuid}, "igroup": {"uuid": other.uuid}}).post())
fails(1254197, lambda: Lun(uuid=a.uuid).delete())
fails(1254213, lambda: Igroup(uuid=group.uuid).delete())
mapping.delete()
fails(5374922, mapping.delete)
a.get(fields="status.mapped")
assert a.status.mapped is False

# CHAP.
secret = IscsiCredentials.from_dict({
    "svm": {"name": "svm1"}, "initiator": "iqn.2026-01.test:one", "authentication_type": "chap",
    "chap": {"inbound": {"user": "u", "password": "a long secret"}}})
secret.post()
found = IscsiCredentials.find(initiator="iqn.2026-01.test:one", fields="**")
assert found.chap.inbound.user == "u" and "password" not in found.chap.inbound.to_dict()
fails(5374142, secret.post)
default = IscsiCredentials.find(initiator="default")
assert default.authentication_type == "none"
fails(5374148, default.delete)
found.delete()

# Others.
QosPolicy.from_dict({"name": "q", "svm": {"name": "svm1"}, "fixed": {"max_throughput_iops": 500}}).post()
QosPolicy.find(name="q").delete()
EmsApplicationLog(computer_name="x", event_source="test", app_version="1", category="c", severity="notice",
                  autosupport_required=False, event_description="d", event_id="1").post()
Igroup.find(name="h1").delete()
Igroup.find(name="h2").delete()
for name in ["/vol/fv0/a", "/vol/fv0/b", "/vol/fv0/c"]:
    Lun.find(name=name).delete()
Volume.find(name="fv0").delete()
Volume.find(name="fv1").delete()
assert Volume.count_collection(is_svm_root="false") == 0
wrong = HostConnection(host, port=int(port), username="admin", password="wrong", verify=ca)
try:
    with wrong:
        Cluster().get()
    raise AssertionError("a wrong password")
except NetAppRestError as error:
    assert error.status_code == 401, error
print("ok")
