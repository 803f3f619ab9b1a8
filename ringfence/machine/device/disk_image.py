"""Disk images: opened by what they begin with, and new ones."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress

from ringfence.machine.device.disk import QCOW2_MAGIC, SECTOR, DiskError, RawDisk, write_fully
from ringfence.machine.device.qcow2 import Qcow2Disk
from ringfence.machine.device.qcow2_format import (
    MAX_CLUSTER_BITS,
    MAX_L1,
    MAX_NAME,
    MAX_SIZE,
    MIN_CLUSTER_BITS,
    Header,
    l1_needed,
    pack,
    put_refcount,
)


def open_disk(path: str | os.PathLike[str], *, readonly: bool = False, serial: bytes = b"") -> RawDisk | Qcow2Disk:
    """A qcow2 image if the file begins as one does, else a raw one. Raises `DiskError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.pread(fd, len(QCOW2_MAGIC), 0)
        finally:
            os.close(fd)
    except OSError:  # the next to open it says why
        found = b""
    if found == QCOW2_MAGIC:
        return Qcow2Disk(path, readonly=readonly, serial=serial)
    return RawDisk(path, readonly=readonly, serial=serial, probed=True)


def open_snapshot(path: str | os.PathLike[str], *, serial: bytes = b"") -> Qcow2Disk:
    """A disk over an image, raw or qcow2, that is only read: what is written goes to a file without name in the user's
    temporary directory, and is lost when the disk is closed or the process ends. Raises `DiskError`.
    """
    with open_disk(path, readonly=True) as base:
        kind = "qcow2" if isinstance(base, Qcow2Disk) else "raw"
        under = os.fsencode(os.path.abspath(path))
        header, blocks = _layout(base.size, 16, 16, under, kind)
        front = pack(header)
        if len(front) > header.cluster or len(under) > MAX_NAME:
            raise DiskError(f"the name of the disk image is too long: {os.fspath(path)}")
        try:
            with tempfile.TemporaryFile(prefix="ringfence-disk-") as file:
                _write(file.fileno(), header, front, blocks)
                # Opened once more, by the only name it has.
                return Qcow2Disk(f"/proc/self/fd/{file.fileno()}", serial=serial, temporary=True)
        except OSError as error:
            raise DiskError(f"a temporary file over {os.fspath(path)} cannot be made: {error.strerror}") from error


def create(
    path: str | os.PathLike[str],
    size: int,
    *,
    backing: str | os.PathLike[str] | None = None,
    backing_format: str | None = None,
    cluster_bits: int = 16,
    refcount_bits: int = 16,
) -> None:
    """Makes a qcow2 image of version 3 that is blank, or over `backing`, a name relative to the image. It is there
    whole or not at all. Raises `DiskError`.
    """
    name = os.fspath(path)
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise DiskError(f"clusters are of 2**{MIN_CLUSTER_BITS} to 2**{MAX_CLUSTER_BITS} bytes, not 2**{cluster_bits}")
    if refcount_bits not in (1, 2, 4, 8, 16, 32, 64):
        raise DiskError(f"refcounts have 1, 2, 4, 8, 16, 32 or 64 bits, not {refcount_bits}")
    if not 0 < size <= MAX_SIZE or size % SECTOR:
        raise DiskError(f"a disk has a multiple of {SECTOR} bytes and at most 64 TiB, not {size}")
    if (backing is None) != (backing_format is None):
        raise DiskError("a backing file and its format are named together")
    under = b"" if backing is None else os.fsencode(backing)
    header, blocks = _layout(size, cluster_bits, refcount_bits, under, backing_format)
    front = pack(header)
    if len(front) > header.cluster or len(under) > MAX_NAME:
        raise DiskError(f"the name of the backing file is too long: {os.fspath(backing or '')}")
    if header.l1_entries * 8 > MAX_L1:
        raise DiskError(f"clusters of {header.cluster} bytes are too small for a disk of {size} bytes")
    hidden = os.path.join(os.path.dirname(name), f".{os.path.basename(name)}.{secrets.token_hex(8)}")
    try:
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            _write(fd, header, front, blocks)
            os.fsync(fd)
        finally:
            os.close(fd)
        Qcow2Disk(hidden, readonly=True).close()  # what is behind it can be used
        os.link(hidden, name)  # which does not replace what is there
    except OSError as error:
        raise DiskError(f"disk image {name} cannot be made: {error.strerror}") from error
    except DiskError as error:
        raise DiskError(str(error).replace(hidden, name)) from None
    finally:
        with suppress(OSError):
            os.unlink(hidden)
    with suppress(OSError):
        _flush_directory(os.path.dirname(name) or ".")


def _layout(size: int, cluster_bits: int, bits: int, backing: bytes, named: str | None) -> tuple[Header, int]:
    """Header, refcount table, its blocks and the L1 table, one behind the other; and how many blocks."""
    cluster = 1 << cluster_bits
    entries = l1_needed(size, cluster_bits)
    table = blocks = 1
    while True:
        clusters = 1 + table + blocks - (-entries * 8 // cluster)
        needed = -(-clusters * bits // (8 * cluster))
        if needed <= blocks and blocks * 8 <= table * cluster:
            break
        blocks, table = max(blocks, needed), -(-max(blocks, needed) * 8 // cluster)
    at = (1 + table + blocks) * cluster
    header = Header(
        3, cluster_bits, size, at, entries, cluster, table, bits, backing=backing, backing_format=named
    )  # fmt: skip
    return header, blocks


def _write(fd: int, header: Header, front: bytes, blocks: int) -> None:
    cluster, each = header.cluster, header.refcounts_each
    used = -(-(header.l1_offset + header.l1_entries * 8) // cluster)
    first = 1 + header.refcount_clusters
    os.ftruncate(fd, used * cluster)
    write_fully(fd, front, 0)
    entries = b"".join(((first + n) * cluster).to_bytes(8, "big") for n in range(blocks))
    write_fully(fd, entries, header.refcount_offset)
    for n in range(blocks):
        block = bytearray(cluster)
        for index in range(max(0, min(each, used - n * each))):
            put_refcount(block, index, header.refcount_bits, 1)
        write_fully(fd, block, (first + n) * cluster)


def _flush_directory(name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
