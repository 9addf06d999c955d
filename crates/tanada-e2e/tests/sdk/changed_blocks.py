"""Changed blocks and disks over NBD, by the official Python SDK and by others' NBD clients.

Arguments: an https address with a user and a password; the file that the store is to be in; the daemon's runtime
directory; a directory to work in; the directory of the examples.
"""

import base64
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from urllib.parse import quote

import XenAPI

from session import connect, fails

KIB, MIB = 1 << 10, 1 << 20
# Neither whole 64 KiB blocks nor a multiple of eight of them.
SIZE = 24 * MIB + 12 * KIB
BLOCK = 64 * KIB


def eventually(what, ask):
    """Asks until the answer is true; nothing here takes a minute unless it hangs."""
    deadline = time.monotonic() + 120
    while not ask():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def said(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr.decode()}"
    return done.stdout.decode()


class Store:
    """Writes into a disk as a guest would, past the control plane."""

    def __init__(self, directory):
        self.directory = directory

    def ask(self, **command):
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(os.path.join(self.directory, "control.sock"))
            lines = door.makefile("rw")
            lines.readline()
            lines.write(json.dumps(dict(command, id=7)) + "\n")
            lines.flush()
            answer = {}
            while answer.get("id") != 7:
                answer = json.loads(lines.readline())
            assert "ok" in answer, answer

    def write(self, volume, *commands):
        self.ask(method="attach", params={"token": "a-guest", "target": volume, "writable": True})
        where = "nbd+unix:///a-guest?socket=" + os.path.join(self.directory, "nbd.sock")
        words = [word for command in commands + ("flush",) for word in ("-c", command)]
        said("qemu-io", "-f", "raw", *words, where)
        self.ask(method="detach", params={"token": "a-guest"})


class Job:
    def __init__(self, session, work, nbd_client):
        self.session, self.x, self.work, self.nbd_client = session, session.xenapi, work, nbd_client

    def info(self, vdi):
        (info,) = self.x.VDI.get_nbd_info(vdi)
        assert set(info) == {"exportname", "address", "port", "cert", "subject"}, info
        assert info["exportname"].endswith("?session_id=" + self.session._session), "the name carries the session"
        return info

    def trusting(self, info):
        """TLS that believes this certificate and no other, and checks the name."""
        context = ssl.create_default_context(cadata=info["cert"])
        assert context.check_hostname
        return context

    def content(self, vdi):
        info = self.info(vdi)
        nbd = self.nbd_client(info, self.trusting(info))
        assert nbd.size == SIZE, nbd.size
        steps = ((at, min(8 * MIB, SIZE - at)) for at in range(0, SIZE, 8 * MIB))
        data = b"".join(nbd.read(at, length) or bytes(length) for at, length in steps)
        nbd.close()
        return data

    def run(self, store, run_dir):
        x = self.x
        host = x.host.get_all()[0]
        sr = x.SR.create(host, {"location": store}, str(1 << 30), "fast", "", "tanada", "user", False, {})
        assert "vdi_data_destroy" in x.SR.get_allowed_operations(sr)
        record = {"name_label": "d", "name_description": "", "SR": sr, "virtual_size": str(SIZE), "type": "user"}
        record.update(sharable=False, read_only=False, other_config={}, xenstore_data={}, sm_config={}, tags=[])
        vdi, unrelated = x.VDI.create(record), x.VDI.create(dict(record, name_label="other"))
        files = Store(os.path.join(run_dir, "sr", x.SR.get_uuid(sr)))
        volume = x.VDI.get_location(vdi)
        files.write(volume, "write -P 0x11 0 6m", f"write -P 0x12 {SIZE - MIB} 1m")
        x.VDI.enable_cbt(vdi)
        first = x.VDI.snapshot(vdi)
        assert x.VDI.get_cbt_enabled(first) and not x.VDI.get_cbt_enabled(x.VDI.clone(vdi))
        # The first block; over a border; zeros; the last, which is not whole.
        changes = ["write -P 0x21 0 4k", "write -P 0x22 316k 8k", "write -z 1m 128k", f"write -P 0x23 {SIZE - 4096} 4k"]
        files.write(volume, *changes)
        second = x.VDI.snapshot(vdi)

        old, new = self.content(first), self.content(second)
        expected = bits([n for n in range(-(-SIZE // BLOCK)) if differ(old, new, n, BLOCK)])
        told = base64.b64decode(x.VDI.list_changed_blocks(first, second))
        assert told == expected, (told.hex(), expected.hex())
        self.witnesses(x.VDI.get_location(first), second, old, new)
        self.doors(second)
        self.data_destroyed(first, second, unrelated, expected)

    def witnesses(self, base, vdi, old, new):
        """libnbd's tools and QEMU, with the base's changes as a bitmap."""
        info = self.info(vdi)
        trusted = os.path.join(self.work, "trusted")
        os.makedirs(trusted)
        with open(os.path.join(trusted, "ca-cert.pem"), "w", encoding="ascii") as file:
            file.write(info["cert"])
        bitmap = "qemu:dirty-bitmap:" + base
        export = quote(info["exportname"], safe="")
        uri = f"nbds://{info['address']}:{info['port']}/{export}?tls-certificates={trusted}"
        assert said("nbdinfo", "--size", uri).strip() == str(SIZE)
        assert {"base:allocation", bitmap} <= set(json.loads(said("nbdinfo", "--json", uri))["exports"][0]["contexts"])
        dirty = {n for n in range(SIZE // 4096) if differ(old, new, n, 4096)}
        extents = json.loads(said("nbdinfo", f"--map={bitmap}", "--json", uri))
        found = {n for extent in extents if extent["type"] & 1 for n in blocks_of(extent["offset"], extent["length"])}
        assert found == dirty, sorted(found ^ dirty)[:20]
        copy = os.path.join(self.work, "copy.raw")
        said("nbdcopy", uri, copy)
        with open(copy, "rb") as file:
            assert file.read() == new
        os.unlink(copy)

        where = f"driver=nbd,host={info['address']},port={info['port']},export={info['exportname']},tls-creds=t"
        keys = f"tls-creds-x509,id=t,endpoint=client,dir={trusted},sanity-check=off"
        options = ("--object", keys, "--image-opts")
        extents = json.loads(said("qemu-img", "map", "--output=json", *options, f"{where},x-dirty-bitmap={bitmap}"))
        # With a bitmap in place of the allocation, QEMU shows what is dirty as what has no data.
        found = {n for extent in extents if not extent["data"] for n in blocks_of(extent["start"], extent["length"])}
        assert found == dirty, sorted(found ^ dirty)[:20]
        said("qemu-img", "convert", *options, where, "-O", "raw", copy)
        with open(copy, "rb") as file:
            assert file.read() == new

    def doors(self, vdi):
        """Who comes in, and who has to leave."""
        info = self.info(vdi)
        # In clear nothing is told but that TLS comes first.
        with socket.create_connection((info["address"], int(info["port"]))) as door:
            stream = door.makefile("rwb")
            assert stream.read(18)[:8] == b"NBDMAGIC"
            stream.write(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 3, 0))
            stream.flush()
            assert struct.unpack(">QIII", stream.read(20))[2] == 1 << 31 | 5
        trust = self.trusting(info)
        for name in (info["exportname"][:-1], info["exportname"].split("?")[0], "/?session_id=x"):
            assert refused(lambda name=name: self.nbd_client(dict(info, exportname=name), trust)), name
        nbd = self.nbd_client(info, trust)
        fails("VDI_IN_USE", self.x.VDI.destroy, vdi)
        fails("VDI_IN_USE", self.x.VDI.data_destroy, vdi)
        nbd.close()

        other = connect(sys.argv[1], *sys.argv[2:4])
        (theirs,) = other.xenapi.VDI.get_nbd_info(vdi)
        nbd = self.nbd_client(theirs, trust)
        nbd.read(0, 4096)
        other.xenapi.session.logout()
        eventually("the end of a session ends its connections", lambda: refused(lambda: nbd.read(0, 4096)))
        assert refused(lambda: self.nbd_client(theirs, trust)), "the session is over"

    def data_destroyed(self, first, second, unrelated, expected):
        x = self.x
        fails("SR_BACKEND_FAILURE_460", x.VDI.list_changed_blocks, unrelated, second)
        x.VDI.data_destroy(first)
        assert x.VDI.get_type(first) == "cbt_metadata"
        fails("VDI_INCOMPATIBLE_TYPE", x.VDI.get_nbd_info, first)
        fails("VDI_INCOMPATIBLE_TYPE", x.VDI.clone, first)
        assert base64.b64decode(x.VDI.list_changed_blocks(first, second)) == expected
        # Nobody holds it any more, as soon as the last connection is over.
        eventually("the snapshot is free", lambda: destroyed(x, second))
        x.VDI.destroy(first)


def destroyed(x, vdi):
    try:
        x.VDI.destroy(vdi)
        return True
    except XenAPI.Failure as failure:
        assert failure.details[0] == "VDI_IN_USE", failure.details
        return False


def refused(call):
    try:
        call()
        return False
    except Exception as error:
        assert not isinstance(error, AssertionError)
        return True


def differ(old, new, number, size):
    return old[number * size : (number + 1) * size] != new[number * size : (number + 1) * size]


def blocks_of(offset, length):
    assert offset % 4096 == 0 and length % 4096 == 0, (offset, length)
    return range(offset // 4096, (offset + length) // 4096)


def bits(blocks):
    """As list_changed_blocks has it."""
    out = bytearray(-(-(-(-SIZE // BLOCK)) // 8))
    for block in blocks:
        out[block // 8] |= 0x80 >> block % 8
    return bytes(out)


def main():
    url, user, password, store, run_dir, work, examples = sys.argv[1:]
    sys.dont_write_bytecode = True
    sys.path.insert(0, examples)
    from incremental_backup import Nbd

    session = connect(url, user, password)
    Job(session, work, Nbd).run(store, run_dir)
    session.xenapi.session.logout()
    print("changed blocks by the SDK: ok")


main()
