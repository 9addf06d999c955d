#!/usr/bin/env python3
"""Nightly backups of a machine's disks to a directory: the first one full, the others what changed since.

Needs Python 3.8 or later and nothing else. It speaks XenAPI over HTTPS and reads disks over NBD and TLS, so the daemon
has to be started with --listen and --nbd-listen.

    incremental_backup.py backup  --host https://HOST --password-file FILE --vm NAME --to DIR --ca cert.pem
    incremental_backup.py list    --to DIR
    incremental_backup.py restore --to DIR --disk POSITION --night N --output disk.raw

What a night leaves on the host is a snapshot of each disk without its data: enough to tell the next night what changed.

Whom it talks to is checked against the certificate in --ca, else against the authorities that this system trusts: the password
goes to nobody else. What it writes is for its own user alone, for it is what the disks hold.

The directory, for each disk by its position in the machine:

    DIR/0/night-0001/manifest.json   which snapshot, which night it builds on, which blocks, and checksums
                     blocks.data     the blocks of 64 KiB, one after another, without those that are all zeros
                     digests         SHA-256 of every block of the disk as it was that night
    DIR/unfinished                   snapshots of a run that is under way, or was cut off: the next one removes them

A night is complete when its manifest is there; it is written last, when everything else is on the medium. Restoring applies the nights from the full one up to the
one that is wanted, and compares every block with that night's digest.
"""

import argparse
import base64
import fcntl
import hashlib
import json
import os
import shutil
import socket
import ssl
import struct
import sys
import time
import xmlrpc.client
from contextlib import closing
from pathlib import Path

BLOCK = 64 << 10
READ_AT_ONCE = 16 << 20


class Failure(Exception):
    """Something that the user should read, without a trace of calls."""


# --- NBD ------------------------------------------------------------------------------------------------------------


class Nbd:
    """Reads one export, over TLS. Holes come as zeros without travelling."""

    GO, STARTTLS, STRUCTURED = 7, 5, 8

    def __init__(self, info, context):
        plain = socket.create_connection((info["address"], int(info["port"])), timeout=60)
        self.stream = plain
        if self.take(16) != b"NBDMAGICIHAVEOPT":
            raise Failure(f"{info['address']}:{info['port']} is no NBD server")
        self.take(2)
        self.stream.sendall(struct.pack(">I", 3))
        self.option(self.STARTTLS)
        self.stream = context.wrap_socket(plain, server_hostname=info["subject"])
        self.option(self.STRUCTURED)
        name = info["exportname"].encode()
        told = self.option(self.GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        self.size = next(struct.unpack(">Q", data[2:10])[0] for data in told if data[:2] == b"\0\0")

    def take(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.stream.recv(min(count - len(data), 1 << 20))
            if not part:
                raise Failure("the NBD server closed the connection")
            data += part
        return bytes(data)

    def option(self, number, data=b""):
        """Sends an option and returns what came with the answers."""
        self.stream.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        told = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            payload = self.take(length)
            if kind & 1 << 31:
                raise Failure(f"the NBD server refuses option {number}: {payload.decode(errors='replace')}")
            if kind == 1:
                return told
            told.append(payload)

    def read(self, offset, length):
        """These bytes; None where all of them are a hole."""
        self.stream.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, offset, length))
        data = None
        while True:
            _, flags, kind, _, size = struct.unpack(">IHHQI", self.take(20))
            payload = self.take(size)
            if kind == 1:
                data = data or bytearray(length)
                at = struct.unpack(">Q", payload[:8])[0] - offset
                data[at : at + size - 8] = payload[8:]
            elif kind & 1 << 15:
                raise Failure(f"reading {length} bytes at {offset}: {payload[6:].decode(errors='replace')}")
            # Other kinds are holes, which are zeros already, and the end.
            if flags & 1:
                return data

    def close(self):
        try:
            self.stream.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        except OSError:
            # Nobody is there to say good-bye to.
            pass
        self.stream.close()


# --- XenAPI ---------------------------------------------------------------------------------------------------------


class Host:
    """A XenAPI session over HTTPS: host.VDI.get_uuid(vdi)."""

    def __init__(self, url, user, password, context):
        self.server = xmlrpc.client.ServerProxy(url, context=context, allow_none=True)
        self.context = context
        self.session = None
        self.session = self.call("session.login_with_password", user, password, "1.0", "incremental_backup")

    def call(self, method, *arguments):
        session = [self.session] if self.session else []
        answer = self.server
        for part in method.split("."):
            answer = getattr(answer, part)
        answer = answer(*session, *arguments)
        # Copying a disk takes longer than a server keeps an idle connection.
        self.server("close")()
        if answer["Status"] != "Success":
            raise Failure(f"{method}: {' '.join(answer['ErrorDescription'])}")
        return answer["Value"]

    def close(self):
        self.call("session.logout")

    def disks(self, vm):
        """The disks of a machine or snapshot by position, CDs left out."""
        found = {}
        for vbd in self.call("VM.get_VBDs", vm):
            record = self.call("VBD.get_record", vbd)
            if record["type"] == "Disk" and not record["empty"]:
                found[record["userdevice"]] = record["VDI"]
        return found


# --- the directory --------------------------------------------------------------------------------------------------


def on_medium(path):
    """Returns when a file or directory will be there after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(path, text):
    """Replaces a file as a whole: after a power cut it is the old one or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    on_medium(new)
    os.replace(new, path)
    on_medium(path.parent)


def nights_of(disk):
    """The complete nights of a disk, oldest first."""
    found = []
    for manifest in sorted(disk.glob("night-*/manifest.json")):
        try:
            found.append(dict(json.loads(manifest.read_text()), path=manifest.parent))
        except ValueError as error:
            print(f"{manifest} is damaged, and that night with it: {error}", file=sys.stderr)
    return found


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def runs_of(blocks):
    """Block numbers in order as [first, count]."""
    runs = []
    for block in blocks:
        if runs and sum(runs[-1]) == block:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    return runs


def bits_of(bitmap):
    """Numbers of the bits that are set; the first block is the most significant bit of the first byte."""
    for at, byte in enumerate(base64.b64decode(bitmap)):
        for bit in range(8):
            if byte & 0x80 >> bit:
                yield at * 8 + bit


ZEROS = bytes(BLOCK)
ZEROS_DIGEST = hashlib.sha256(ZEROS).digest()


class Night:
    """A night on its way into the directory."""

    def __init__(self, disk, number, base):
        self.path = disk / f"night-{number:04}"
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        self.number, self.base = number, base

    def take(self, nbd, blocks):
        """Copies these blocks, and keeps the digests of all."""
        count = -(-nbd.size // BLOCK)
        digests = bytearray((self.base["path"] / "digests").read_bytes() if self.base else b"")
        # What the disk has grown by is zeros until something else is told.
        digests += ZEROS_DIGEST * (count - len(digests) // 32)
        del digests[count * 32 :]
        grown = self.base is not None and self.base["size"] != nbd.size
        if grown:
            # The last block of the disk may have another length than it had.
            blocks = sorted(set(blocks) | {min(self.base["size"] // BLOCK, count - 1), count - 1})
        data_blocks, zero_blocks = [], []
        with open(self.path / "blocks.data", "wb") as out:
            for first, length in runs_of(blocks):
                for block, content in self.read(nbd, first, length):
                    is_zero = content == ZEROS[: len(content)]
                    is_whole = len(content) == BLOCK
                    digest = ZEROS_DIGEST if is_zero and is_whole else hashlib.sha256(content).digest()
                    digests[block * 32 : block * 32 + 32] = digest
                    (zero_blocks if is_zero else data_blocks).append(block)
                    if not is_zero:
                        out.write(content)
            out.flush()
            os.fsync(out.fileno())
        (self.path / "digests").write_bytes(digests)
        on_medium(self.path / "digests")
        return data_blocks, zero_blocks, hashlib.sha256(digests).hexdigest()

    @staticmethod
    def read(nbd, first, count):
        at, end = first * BLOCK, min((first + count) * BLOCK, nbd.size)
        while at < end:
            length = min(READ_AT_ONCE, end - at)
            piece = nbd.read(at, length)
            for start in range(0, length, BLOCK):
                stop = min(start + BLOCK, length)
                yield (at + start) // BLOCK, piece[start:stop] if piece else ZEROS[: stop - start]
            at += length

    def finish(self, size, snapshot, taken):
        data_blocks, zero_blocks, image = taken
        manifest = {
            "night": self.number,
            "base": self.base["night"] if self.base else None,
            "snapshot": snapshot,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "size": size,
            "data": runs_of(data_blocks),
            "zeros": runs_of(zero_blocks),
            "data_sha256": sha256_of(self.path / "blocks.data"),
            "image": image,
        }
        put(self.path / "manifest.json", json.dumps(manifest) + "\n")
        on_medium(self.path.parent)
        return manifest


# --- the commands ---------------------------------------------------------------------------------------------------


def backup(options):
    context = ssl.create_default_context(cafile=options.ca)
    password = Path(options.password_file).read_text().split("\n")[0]
    directory = Path(options.to)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"another backup to {directory} is under way") from None
        host = Host(options.host, options.user, password, context)
        try:
            all_disks(host, options.vm, directory)
        finally:
            host.close()


def all_disks(host, name, directory):
    found = host.call("VM.get_by_name_label", name)
    if len(found) != 1:
        raise Failure(f"{len(found)} machines are called {name}; one is needed")
    unfinished = directory / "unfinished"
    remove_unfinished(host, unfinished)
    for vdi in host.disks(found[0]).values():
        host.call("VDI.enable_cbt", vdi)
    # All disks at one instant, and the guest quiesced where it can be.
    snapshot = host.call("VM.snapshot", found[0], f"backup of {name}")
    cut = host.disks(snapshot)
    left = {position: host.call("VDI.get_uuid", vdi) for position, vdi in cut.items()}
    names = {"snapshot": host.call("VM.get_uuid", snapshot), "disks": list(left.values())}
    put(unfinished, json.dumps(names) + "\n")
    # What the night is worth: application, file system, crash or shut down.
    print(f"consistency: {host.call('VM.get_snapshot_info', snapshot).get('consistency', 'not told')}")
    try:
        # The disks stay without the machine's snapshot around them.
        host.call("VM.destroy", snapshot)
        for position, vdi in sorted(cut.items()):
            one_disk(host, directory / position, position, vdi)
    finally:
        # A night that did not come to its end leaves nothing on the host; the next builds on the one before.
        remove_unfinished(host, unfinished)


def remove_unfinished(host, unfinished):
    """Destroys the snapshots of a run that did not come to its end, unless a complete night builds on them."""
    if not unfinished.exists():
        return
    kept = {night["snapshot"] for disk in unfinished.parent.iterdir() if disk.is_dir() for night in nights_of(disk)}
    names = json.loads(unfinished.read_text())
    left = []
    for uuid in set(names["disks"]) - kept:
        try:
            for vdi in all_of(host, "VDI", uuid):
                destroy(host, vdi)
        except Failure as failure:
            print(f"snapshot {uuid} stays on the host until the next run: {failure}", file=sys.stderr)
            left.append(uuid)
    for snapshot in all_of(host, "VM", names["snapshot"]):
        host.call("VM.destroy", snapshot)
    if left:
        put(unfinished, json.dumps(dict(names, disks=left)) + "\n")
    else:
        unfinished.unlink()


def destroy(host, vdi):
    """A disk that was read until now is in use for a moment longer."""
    until = time.monotonic() + 10
    while True:
        try:
            return host.call("VDI.destroy", vdi)
        except Failure as failure:
            if "VDI_IN_USE" not in str(failure) or time.monotonic() > until:
                raise
        time.sleep(0.1)


def one_disk(host, disk, position, vdi):
    nights = nights_of(disk)
    number = nights[-1]["night"] + 1 if nights else 1
    base, changed = base_of(host, nights, vdi)
    (info, *_) = host.call("VDI.get_nbd_info", vdi) or [None]
    if info is None:
        raise Failure("the host serves no disks over NBD: start its daemon with --nbd-listen")
    start = time.monotonic()
    with closing(Nbd(info, host.context)) as nbd:
        night = Night(disk, number, base)
        taken = night.take(nbd, changed if base else range(-(-nbd.size // BLOCK)))
    manifest = night.finish(nbd.size, host.call("VDI.get_uuid", vdi), taken)
    # The copy is safe: the host keeps the place in time, not the data; and of earlier nights nothing.
    host.call("VDI.data_destroy", vdi)
    for old in nights:
        for left in all_of(host, "VDI", old["snapshot"]):
            host.call("VDI.destroy", left)
    stored = (night.path / "blocks.data").stat().st_size
    kind = "full" if base is None else f"since night {base['night']}"
    print(f"disk {position}: night {number}, {kind}: {stored} bytes in {time.monotonic() - start:.1f} s")
    print(f"disk {position}: sha256 of the block digests {manifest['image']}")


def base_of(host, nights, vdi):
    """The night to build on and what changed since; (None, None) where it has to be a full one."""
    for night in nights[-1:]:
        if sha256_of(night["path"] / "digests") != night["image"]:
            print(f"a full backup, because {night['path'] / 'digests'} is damaged")
            break
        for base in all_of(host, "VDI", night["snapshot"]):
            try:
                return night, list(bits_of(host.call("VDI.list_changed_blocks", base, vdi)))
            except Failure as failure:
                print(f"a full backup, because what changed is not known: {failure}")
    return None, None


def all_of(host, kind, uuid):
    """The object of that uuid, if there is one."""
    try:
        return [host.call(f"{kind}.get_by_uuid", uuid)]
    except Failure:
        return []


def list_nights(options):
    for disk in sorted(path for path in Path(options.to).iterdir() if path.is_dir()):
        for night in nights_of(disk):
            kind = "full" if night["base"] is None else f"since night {night['base']}"
            stored = (night["path"] / "blocks.data").stat().st_size
            print(f"disk {disk.name}: night {night['night']}  {night['time']}  {kind}, {stored} bytes")


def restore(options):
    nights = {night["night"]: night for night in nights_of(Path(options.to) / options.disk)}
    chain = [options.night]
    while chain[-1] is not None:
        if chain[-1] not in nights:
            raise Failure(f"disk {options.disk} has no complete night {chain[-1]}; there are {sorted(nights)}")
        chain.append(nights[chain[-1]]["base"])
    wanted = nights[options.night]
    with open(options.output, "w+b") as out:
        for number in reversed(chain[:-1]):
            apply(nights[number], out)
        out.truncate(wanted["size"])
        verify(wanted, out)
    print(f"{options.output}: night {options.night} of disk {options.disk}, every block verified")
    print(f"sha256 of the image {sha256_of(options.output)}")


def apply(night, out):
    data = night["path"] / "blocks.data"
    if sha256_of(data) != night["data_sha256"]:
        raise Failure(f"{data} is damaged: its checksum is not the manifest's")
    out.truncate(night["size"])
    with open(data, "rb") as blocks:
        for first, count in night["data"]:
            for block in range(first, first + count):
                out.seek(block * BLOCK)
                out.write(blocks.read(min(BLOCK, night["size"] - block * BLOCK)))
    # Under a full one there is nothing but zeros.
    for first, count in night["zeros"] if night["base"] else []:
        for block in range(first, first + count):
            out.seek(block * BLOCK)
            out.write(bytes(min(BLOCK, night["size"] - block * BLOCK)))


def verify(night, out):
    digests = (night["path"] / "digests").read_bytes()
    if hashlib.sha256(digests).hexdigest() != night["image"]:
        raise Failure(f"{night['path'] / 'digests'} is damaged: its checksum is not the manifest's")
    out.seek(0)
    for at in range(0, len(digests), 32):
        if hashlib.sha256(out.read(BLOCK)).digest() != digests[at : at + 32]:
            raise Failure(f"block {at // 32} is not what it was in night {night['night']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("backup", help="this night's backup of all disks of a machine")
    one.add_argument("--host", required=True, help="https://ADDRESS[:PORT]")
    one.add_argument("--user", default="root")
    one.add_argument("--password-file", required=True, help="its first line is the password")
    one.add_argument("--ca", help="the host's certificate; else the system's authorities have to know it")
    one.add_argument("--vm", required=True, help="the machine's name")
    one.add_argument("--to", required=True, help="the directory of this machine's backups")
    one.set_defaults(run=backup)
    two = commands.add_parser("list", help="the nights that are there")
    two.add_argument("--to", required=True)
    two.set_defaults(run=list_nights)
    three = commands.add_parser("restore", help="a disk as it was in a night, as a raw image")
    three.add_argument("--to", required=True)
    three.add_argument("--disk", required=True, help="its position in the machine, as 0")
    three.add_argument("--night", required=True, type=int)
    three.add_argument("--output", required=True)
    three.set_defaults(run=restore)
    options = parser.parse_args()
    os.umask(0o077)
    try:
        options.run(options)
    except (Failure, OSError, xmlrpc.client.Error) as error:
        sys.exit(f"incremental_backup: {error}")


if __name__ == "__main__":
    main()
