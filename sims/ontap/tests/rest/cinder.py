"""OpenStack Cinder's own NetApp iSCSI driver as an outside witness, with stand-ins for the rest of Cinder.

Arguments: address, CA file, folder that holds the driver's files (`cinder/volume/...`).
"""
import contextlib
import os
import sys
import time
import types
from unittest import mock

from oslo_config import cfg

(host, port), ca, files = sys.argv[1].split(":"), sys.argv[2], sys.argv[3]


class Anything(types.ModuleType):
    """A module that has whatever it is asked for: exceptions where the name looks like one, else a mock."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = mock.MagicMock(name=name)
        setattr(self, name, value)
        return value


class Exceptions(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        base = Exception if name == "CinderException" else self.CinderException

        def words(self):
            return " ".join([str(it) for it in self.args] + [f"{k}={v}" for k, v in getattr(self, "facts", {}).items()])

        def init(self, message=None, **facts):
            Exception.__init__(self, message or "")
            self.facts = facts
            self.msg = words(self)

        made = type(name, (base,), {"__str__": words, "__init__": init, "message": "%s"})
        setattr(self, name, made)
        return made


def package(name, folder=None, kind=Anything, **content):
    # What is found in files is not made up.
    module = kind(name) if folder is None else types.ModuleType(name)
    if folder is not None:
        module.__path__ = [f"{files}/{folder}"]
    vars(module).update(content)
    sys.modules[name] = module
    if "." in name:
        above, own = name.rsplit(".", 1)
        setattr(sys.modules[above], own, module)


def decorator(*_, **__):
    return lambda function: function


def retry(kind, interval=1, retries=3, **_):
    """Tries again, sooner than Cinder does."""

    def wrap(function):
        def call(*args, **kwargs):
            for _ in range(int(retries) * 20):
                try:
                    return function(*args, **kwargs)
                except kind:
                    time.sleep(interval / 20)
            return function(*args, **kwargs)
        return call
    return wrap


def extract_host(text, level="backend", **_):
    return text.split("#")[1] if level == "pool" else text.split("#")[0]


class Driver:
    def __init__(self, *_, **__):
        pass


volume_opts = [
    cfg.StrOpt("max_over_subscription_ratio", default="20.0"), cfg.StrOpt("volume_backend_name"),
    cfg.IntOpt("reserved_percentage", default=0), cfg.BoolOpt("use_chap_auth", default=False),
    cfg.BoolOpt("driver_ssl_cert_verify", default=True), cfg.MultiOpt("replication_device", item_type=cfg.types.Dict()),
]
package("cinder", "cinder")
package("cinder.exception", kind=Exceptions)
package("cinder.i18n", _=lambda text: text)
package("cinder.utils", retry=retry, trace_filter_func_api=None)
package("cinder.coordination", synchronized=decorator)
package("cinder.interface", volumedriver=lambda made: made)
package("cinder.ssh_utils")
package("cinder.context")
package("cinder.version")
package("cinder.objects", "cinder/none")
package("cinder.objects.fields")
package("cinder.zonemanager", "cinder/none")
package("cinder.zonemanager.utils")
package("cinder.volume", "cinder/volume")
package("cinder.volume.driver", BaseVD=Driver, ManageableVD=type("ManageableVD", (), {}), volume_opts=volume_opts)
package("cinder.volume.qos_specs")
package("cinder.volume.volume_types", get_volume_type_extra_specs=lambda *_: {})
package(
    "cinder.volume.volume_utils", TraceWrapperMetaclass=type, trace_api=decorator, trace_method=lambda function: function,
    TRACE_API=False, extract_host=extract_host, is_boolean_str=lambda text: str(text).lower() == "true",
    is_group_a_cg_snapshot_type=lambda _: True, resolve_hostname=lambda name: name,
    get_max_over_subscription_ratio=lambda *_, **__: 20.0, generate_password=lambda *_, **__: "generated secret")
for name in ["netapp", "netapp.dataontap", "netapp.dataontap.client", "netapp.dataontap.utils", "netapp.dataontap.performance"]:
    folder = "cinder/volume/drivers"
    if "cinder.volume.drivers" not in sys.modules:
        package("cinder.volume.drivers", folder)
    package(f"cinder.volume.drivers.{name}", f"{folder}/{name.replace('.', '/')}")

from cinder.volume import configuration  # noqa: E402
from cinder.volume.drivers.netapp import options, utils as na_utils  # noqa: E402
from cinder.volume.drivers.netapp.dataontap import iscsi_cmode  # noqa: E402
from cinder.volume.drivers.netapp.dataontap.utils import utils as dot_utils  # noqa: E402

na_utils.get_volume_extra_specs = lambda volume: {}
na_utils.get_valid_qos_policy_group_info = lambda volume, extra_specs=None: {}
settings_file = os.path.join(os.path.dirname(ca), "cinder.conf")
with open(settings_file, "w") as conf:
    conf.write(f"""[array]
volume_backend_name = array
netapp_login = admin
netapp_password = netapp1!
netapp_server_hostname = {host}
netapp_server_port = {port}
netapp_transport_type = https
netapp_ssl_cert_path = {ca}
netapp_vserver = svm1
netapp_storage_protocol = iscsi
netapp_use_legacy_client = False
netapp_lun_space_reservation = disabled
netapp_pool_name_search_pattern = pool.*
""")
cfg.CONF(["--config-file", settings_file], project="cinder")
settings = configuration.Configuration(volume_opts, config_group="array")
driver = iscsi_cmode.NetAppCmodeISCSIDriver(configuration=settings, host="h@array", app_version="29")
with contextlib.suppress(AttributeError):
    driver.library.loopingcalls = mock.MagicMock()
driver.get_filter_function = driver.get_goodness_function = lambda: None
driver.do_setup(None)
driver.check_for_setup_error()
stats = driver.get_volume_stats(True)
pools = {pool["pool_name"]: pool for pool in driver.library._stats["pools"]}
assert sorted(pools) == ["pool0", "pool1"], pools
assert pools["pool0"]["total_capacity_gb"] > 1000 and pools["pool0"]["thin_provisioning_support"], pools


class Thing(dict):
    """A record of Cinder's: fields by name both ways, None where nothing was set."""

    __getattr__ = dict.get

    def __missing__(self, name):
        return None


def volume(number, size=1, pool="pool0"):
    return Thing(name=f"volume-{number}", name_id=str(number), id=f"{number}", size=size, host=f"h@array#{pool}", project_id="p",
                 volume_type_id=None, volume_type=None, provider_location=None, migration_status=None, metadata={})


def snapshot(number, of):
    return Thing(name=f"snapshot-{number}", id=f"{number}", volume_name=of["name"], volume=of, volume_size=of["size"],
                 volume_id=of["id"], size=of["size"])


first = volume(1)
driver.create_volume(first)
driver.extend_volume(first, 2)
first["size"] = 2
kept = snapshot(1, first)
driver.create_snapshot(kept)
copy = volume(2, size=2)
driver.create_volume_from_snapshot(copy, kept)
larger = volume(3, size=3)
driver.create_cloned_volume(larger, first)
connector = {"initiator": "iqn.1993-08.org.debian:01:h", "host": "h", "multipath": True, "platform": "x86_64", "os_type": "linux"}
for it in [first, copy]:
    it.update(driver.create_export(None, it, connector))
shown = driver.initialize_connection(first, connector)
assert shown["driver_volume_type"] == "iscsi" and shown["data"]["target_lun"] == 0, shown
assert len(shown["data"]["target_portals"]) == 2, shown
assert driver.initialize_connection(copy, connector)["data"]["target_lun"] == 1
driver.terminate_connection(copy, connector)
driver.terminate_connection(first, connector)
driver.terminate_connection(first, connector)
driver.revert_to_snapshot(None, first, kept)

# Several disks at one instant, over two pools.
other = volume(4, pool="pool1")
driver.create_volume(other)
cut = [snapshot(11, first), snapshot(12, other)]
driver.create_group_snapshot(None, Thing(id="g1", group_type_id="t"), cut)
driver.delete_group_snapshot(None, Thing(id="g1"), cut)
driver.library._delete_snapshots_marked_for_deletion()
driver.library._handle_ems_logging()
for it in [first, copy, larger, other]:
    driver.delete_volume(it)
driver.delete_snapshot(kept)
driver.delete_volume(volume(99))
print("ok")
