"""OpenStack Cinder's last EqualLogic driver (cinder 15), unmodified and alone, against a simulated group.

Arguments: the folder with the driver's five files, a folder for state, the SSH port. The driver lives by echo, prompt and
positions of lines, so it sees what a client of our own making would forgive. What it wants of the rest of Cinder is made
up here. Prints one line of JSON with what it learned.
"""

import eventlet

eventlet.monkey_patch()

import json  # noqa: E402
import sys  # noqa: E402
import types  # noqa: E402

from oslo_config import cfg  # noqa: E402
import paramiko  # noqa: E402

FILES, STATE, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
ALICE = "iqn.2026-01.test:alice-with-a-name-that-wraps"


def module(name, **members):
    made = types.ModuleType(name)
    made.__dict__.update(members)
    sys.modules[name] = made
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


class CinderError(Exception):
    def __init__(self, message=None, **facts):
        super().__init__(message or str(facts))


def errors(*names):
    return {name: type(name, (CinderError,), {}) for name in names}


class BaseVD:
    def __init__(self, execute=None, configuration=None, **_):
        self.configuration = configuration
        self._stats = {}

    def get_volume_stats(self, refresh=False):
        if refresh:
            self._update_volume_stats()
        return self._stats


class ISCSIDriver(BaseVD):
    def _get_iscsi_properties(self, volume):
        where, target, lun = volume["provider_location"].split(" ")
        return {"target_portal": where.split(",")[0], "target_iqn": target, "target_lun": int(lun)}


class Configuration:
    """All options as plain attributes."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def append_config_values(self, _options):
        pass

    def safe_get(self, name):
        return getattr(self, name, None)


def stubs():
    folders = {
        "cinder": "cinder",
        "cinder.volume": "cinder/volume",
        "cinder.volume.drivers": "cinder/volume/drivers",
        "cinder.volume.drivers.dell_emc": "cinder/volume/drivers/dell_emc",
    }
    for name, folder in folders.items():
        module(name).__path__ = [f"{FILES}/{folder}"]
    names = ("VolumeBackendAPIException VolumeNotFound InvalidInput ParameterNotFound "
             "ManageExistingInvalidReference CinderException SSHInjectionThreat")
    module("cinder.exception", **errors(*names.split()))
    module("cinder.i18n", _=lambda text: text)
    module("cinder.interface", volumedriver=lambda driver: driver)
    module("cinder.utils", execute=None, check_ssh_injection=lambda words: None)
    module("cinder.volume.driver", BaseVD=BaseVD, ISCSIDriver=ISCSIDriver)
    cfg.CONF.register_opts([cfg.StrOpt("state_path", default=STATE)])
    # The driver is of the age of Python 2: it joins text with what the channel gives.
    receive = paramiko.Channel.recv
    paramiko.Channel.recv = lambda channel, size: receive(channel, size).decode()


def driver():
    from cinder.volume.drivers.dell_emc import ps
    made = ps.PSSeriesISCSIDriver(configuration=Configuration(
        san_ip="127.0.0.1", san_ssh_port=PORT, san_login="grpadmin", san_password="grpadmin", san_private_key="",
        san_is_local=False, san_thin_provision=True, ssh_min_pool_conn=1, ssh_max_pool_conn=5, ssh_conn_timeout=30,
        eqlx_pool="default", eqlx_group_name="group1", eqlx_cli_max_retries=0, use_chap_auth=True,
        chap_username="cinder", chap_password="secretsecret", max_over_subscription_ratio=20.0,
        volume_backend_name="witness"))
    made.do_setup(None)
    made.check_for_setup_error()
    return made


def volume(name, size, **more):
    return dict({"id": name, "name": name, "size": size, "display_name": name}, **more)


def main():
    stubs()
    array = driver()
    learned = {}
    one = volume("volume-1", 1)
    one.update(array.create_volume(one))
    learned["location"], learned["auth"] = one["provider_location"], one["provider_auth"]
    connector = {"initiator": ALICE}
    learned["connection"] = array.initialize_connection(one, connector)["data"]
    assert array._get_access_record(one, connector) == "1", "the driver does not find its own access record"
    array.initialize_connection(one, connector)
    assert array._get_access_record(one, {"initiator": ALICE + "x"}) is None
    snapshot = {"name": "snapshot-1", "volume_name": "volume-1", "volume_size": 1}
    array.create_snapshot(snapshot)
    two = volume("volume-2", 2)
    two.update(array.create_volume_from_snapshot(two, snapshot))
    three = volume("volume-3", 1)
    three.update(array.create_cloned_volume(three, one))
    array.extend_volume(three, 3)
    learned["size"] = array._get_volume_info("volume-3")["size"]
    adopted = volume("volume-4", 1)
    learned["managed size"] = array.manage_existing_get_size(adopted, {"source-name": "volume-3"})
    adopted.update(array.manage_existing(adopted, {"source-name": "volume-3"}))
    assert adopted["provider_location"] == three["provider_location"], "the target name outlives a rename"
    array.unmanage(adopted)
    array.ensure_export(None, one)
    learned["stats"] = array.get_volume_stats(refresh=True)
    array.terminate_connection(one, connector)
    assert array._get_access_record(one, connector) is None
    array.delete_snapshot(snapshot)
    for gone in (one, two):
        array.delete_volume(gone)
    try:
        array._check_volume(one)
        learned["missing"] = "not noticed"
    except CinderError as error:
        learned["missing"] = str(error)
    print(json.dumps(learned))


main()
