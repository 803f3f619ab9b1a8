"""The qcow2 format: header, entries of tables, and refcounts, as bytes.

Source: QEMU, docs/interop/qcow2, versions 2 and 3. All numbers are big-endian. An image is made of clusters: its header
is in the first; a refcount table leads to blocks of refcounts, one for each cluster of the file; an L1 table leads to
L2 tables, with an entry for each cluster of the disk.
"""

from __future__ import annotations

import errno
import sys
from array import array
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from struct import Struct
from typing import NamedTuple

from ringfence.machine.device.disk import QCOW2_MAGIC, SECTOR, DiskError

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_SIZE = 64 << 40
"""Bytes of a disk."""
MAX_L1 = 32 << 20
"""Bytes of an L1 table."""
MAX_REFCOUNT_TABLE = 8 << 20
"""Bytes of a refcount table."""
MAX_NAME = 1023
"""Bytes of a backing file's name."""

COPIED = 1 << 63
"""In an entry: the refcount of what it leads to is one."""
COMPRESSED = 1 << 62
ZERO = 1
"""In an L2 entry of version 3: the cluster is zero."""
OFFSET = 0x00FF_FFFF_FFFF_FE00
"""In an L1 entry, or an L2 entry of a standard cluster: where it leads."""
REFCOUNT_TABLE_AT = 48
"""Where the header has the refcount table's offset, and behind it the clusters that it takes."""
REFCOUNT_TABLE = Struct(">QI")
AUTOCLEAR_AT = 88

_V2 = Struct(">4sIQIIQIIQQIIQ")
_V3 = Struct(">QQQII")
_V2_LENGTH, _V3_LENGTH = 72, 104
_COMPRESSION_AT = 104
_EXTENSION = Struct(">II")
_BACKING_FORMAT, _BITMAPS = 0xE279_2ACA, 0x2385_2875
_COMPRESSION = 3
_FEATURES = {
    0: "was not closed by who wrote it last: `qemu-img check -r all` repairs it",
    1: "is marked as corrupt",
    2: "has its data in another file, which is not supported",
    4: "has extended L2 entries, which are not supported",
}
_TYPECODES = {16: "H", 32: "I", 64: "Q"}


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself."""

    version: int
    cluster_bits: int
    size: int
    """Bytes of the disk."""
    l1_offset: int
    l1_entries: int
    refcount_offset: int
    refcount_clusters: int
    """Clusters of the refcount table."""
    refcount_bits: int = 16
    autoclear: int = 0
    zstd: bool = False
    """How clusters are compressed, if not with deflate."""
    bitmaps: bool = False
    backing: bytes = b""
    """Name of the backing file; empty: none."""
    backing_format: str | None = None

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def refcounts_each(self) -> int:
        """Refcounts in a block."""
        return self.cluster * 8 // self.refcount_bits

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table."""
        return self.cluster // 8


def l1_needed(size: int, cluster_bits: int) -> int:
    """Entries of an L1 table for that many bytes."""
    return -(-size // (1 << 2 * cluster_bits - 3))


def parse(data: bytes, end: int, name: str) -> Header:
    """The header of an image of which `data` is the first cluster, or all, and `end` the size in bytes. Raises
    `DiskError`.
    """

    def refuse(reason: str) -> DiskError:
        return DiskError(f"disk image {name} {reason}")

    if data[:4] != QCOW2_MAGIC:
        raise refuse("is no qcow2 image")
    if len(data) < _V2_LENGTH:
        raise refuse("is truncated")
    (_, version, backing_at, backing_length, cluster_bits, size, encryption, l1_entries, l1_offset) = _V2.unpack_from(
        data
    )[:9]
    refcount_offset, refcount_clusters, snapshots, _ = _V2.unpack_from(data)[9:]
    if version not in (2, 3):
        raise refuse(f"is qcow2 of version {version}: only 2 and 3 are supported")
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise refuse(f"has clusters of 2**{cluster_bits} bytes: 512 to 2 MiB are supported")
    incompatible = autoclear = kind = 0
    order, length = 4, _V2_LENGTH
    cluster = 1 << cluster_bits
    if version == 3:
        if len(data) < _V3_LENGTH:
            raise refuse("is truncated")
        incompatible, _, autoclear, order, length = _V3.unpack_from(data, _V2_LENGTH)
        for bit in range(64):
            if incompatible >> bit & 1 and bit != _COMPRESSION:
                raise refuse(_FEATURES.get(bit, f"needs a feature that is not known: incompatible bit {bit}"))
        if length < _V3_LENGTH or length % 8 or length > cluster:
            raise refuse(f"has a header of {length} bytes, which cannot be")
        if length > len(data):
            raise refuse("is truncated")
        if order > 6:
            raise refuse(f"has refcounts of 2**{order} bits: 1 to 64 are supported")
        kind = data[_COMPRESSION_AT] if length > _COMPRESSION_AT else 0
    if incompatible >> _COMPRESSION & 1 != bool(kind) or kind > 1:
        raise refuse("has clusters that are compressed in a way that is not known")
    if encryption:
        raise refuse("is encrypted, which is not supported")
    if snapshots:
        raise refuse("has internal snapshots, which are not supported")
    if not 0 < size <= MAX_SIZE:
        raise refuse(f"has a disk of {size} bytes: up to 64 TiB are supported" if size else "is empty")
    if size % SECTOR:
        raise refuse(f"has a disk of {size} bytes, which is not a multiple of {SECTOR}")
    if l1_entries < l1_needed(size, cluster_bits):
        raise refuse(f"has an L1 table of {l1_entries} entries, which are too few for {size} bytes")
    if l1_entries * 8 > MAX_L1:
        raise refuse(f"has an L1 table of {l1_entries} entries, which are too many")
    if not 0 < refcount_clusters * cluster <= MAX_REFCOUNT_TABLE:
        raise refuse(f"has a refcount table of {refcount_clusters} clusters, which cannot be")
    l1, table = (l1_offset, l1_entries * 8), (refcount_offset, refcount_clusters * cluster)
    for what, (start, room) in (("an L1 table", l1), ("a refcount table", table)):
        if start % cluster:
            raise refuse(f"has {what} that does not begin with a cluster")
        if start < cluster:
            raise refuse(f"has {what} in its header")
        if start + room > end:
            raise refuse(f"is truncated: it has {what} behind its end")
    if l1[0] < sum(table) and table[0] < sum(l1):
        raise refuse("has an L1 table in its refcount table")
    backing = b""
    if backing_at and backing_length:
        if backing_length > MAX_NAME or backing_at < length or backing_at + backing_length > min(cluster, len(data)):
            raise refuse("has the name of its backing file where none can be")
        backing = data[backing_at : backing_at + backing_length]
    try:
        extensions = _extensions(data[length : (backing_at if backing else None)])
    except ValueError:
        raise refuse("has a header extension that is longer than the header") from None
    named = extensions.get(_BACKING_FORMAT)
    return Header(
        version,
        cluster_bits,
        size,
        l1_offset,
        l1_entries,
        refcount_offset,
        refcount_clusters,
        1 << order,
        autoclear,
        bool(kind),
        _BITMAPS in extensions,
        backing,
        None if named is None else named.decode("ascii", "replace"),
    )


def _extensions(data: bytes) -> dict[int, bytes]:
    """Header extensions by their type. Raises ValueError."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _EXTENSION.size <= len(data):
        kind, length = _EXTENSION.unpack_from(data, at)
        if not kind:
            break
        at += _EXTENSION.size
        if length > len(data) - at:
            raise ValueError(length)
        if kind in (_BACKING_FORMAT, _BITMAPS):
            found[kind] = data[at : at + length]
        at += -(-length // 8) * 8
    return found


def pack(header: Header) -> bytes:
    """The first bytes of an image of version 3; may be longer than a cluster."""
    extensions = b""
    if header.backing_format is not None:
        named = header.backing_format.encode()
        extensions = _EXTENSION.pack(_BACKING_FORMAT, len(named)) + named.ljust(-(-len(named) // 8) * 8, b"\0")
    extensions += bytes(_EXTENSION.size)
    length = _V3_LENGTH + 8
    front = _V2.pack(
        QCOW2_MAGIC,
        3,
        length + len(extensions) if header.backing else 0,
        len(header.backing),
        header.cluster_bits,
        header.size,
        0,
        header.l1_entries,
        header.l1_offset,
        header.refcount_offset,
        header.refcount_clusters,
        0,
        0,
    )
    order = header.refcount_bits.bit_length() - 1
    return front + _V3.pack(0, 0, 0, order, length) + bytes(8) + extensions + header.backing


class Kind(Enum):
    """What a cluster of a disk is."""

    UNALLOCATED = auto()
    """The backing file's, or zero."""
    BLANK = auto()
    """Zero, whatever the backing file has."""
    DATA = auto()
    PACKED = auto()


class Place(NamedTuple):
    """Where a cluster of a disk is in the file."""

    kind: Kind
    offset: int = 0
    """Where its bytes are; 0: nowhere."""
    length: int = 0
    """Bytes that it takes there."""


def damaged(what: str) -> OSError:
    """The error of a request that meets a table which cannot be."""
    return OSError(errno.EIO, f"qcow2 image is damaged: {what}")


def place(entry: int, header: Header) -> Place:
    """What an L2 entry says. Raises `OSError`."""
    if not entry:
        return Place(Kind.UNALLOCATED)
    if entry & COMPRESSED:
        bits = 62 - (header.cluster_bits - 8)
        offset = entry & (1 << bits) - 1
        if entry & COPIED or offset >> 56 or offset < header.cluster:
            raise damaged(f"L2 entry {entry:#x}")
        sectors = (entry ^ COMPRESSED) >> bits
        return Place(Kind.PACKED, offset, (sectors + 1) * SECTOR - offset % SECTOR)
    offset = entry & OFFSET
    blank = entry & ZERO if header.version == 3 else 0
    if entry & ~(OFFSET | COPIED | blank) or offset % header.cluster or (entry & COPIED and not offset):
        raise damaged(f"L2 entry {entry:#x}")
    if blank:
        return Place(Kind.BLANK, offset, header.cluster if offset else 0)
    return Place(Kind.DATA, offset, header.cluster)


def table(entry: int, header: Header) -> int:
    """Where the L2 table of an L1 entry, or the block of a refcount table's entry, is; 0: nowhere. Raises `OSError`."""
    if entry & ~(OFFSET | COPIED) or entry & OFFSET & header.cluster - 1 or entry == COPIED:
        raise damaged(f"L1 entry {entry:#x}")
    return entry & OFFSET


def words(data: bytes) -> array[int]:
    """The 64-bit numbers of a table."""
    return _native("Q", data)


def refcounts(data: bytes, bits: int) -> array[int]:
    """The refcounts in whole bytes of a block."""
    if bits > 8:
        return _native(_TYPECODES[bits], data)
    found = array("H")
    found.frombytes(b"".join(map(_bytewise(bits).__getitem__, data)))
    return found


@cache
def _bytewise(bits: int) -> list[bytes]:
    """The refcounts in each byte, as `array` has them."""
    mask, shifts = (1 << bits) - 1, range(0, 8, bits)
    return [array("H", [byte >> shift & mask for shift in shifts]).tobytes() for byte in range(256)]


def put_refcount(data: bytearray, index: int, bits: int, value: int) -> None:
    """Sets one of the refcounts in whole bytes of a block."""
    if bits < 8:
        at, shift = divmod(index * bits, 8)
        data[at] = data[at] & ~((1 << bits) - 1 << shift) & 0xFF | value << shift
    else:
        size = bits // 8
        data[index * size : (index + 1) * size] = value.to_bytes(size, "big")


def _native(typecode: str, data: bytes) -> array[int]:
    numbers = array(typecode)
    numbers.frombytes(data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
