"""Messages of 9P2000.L as bytes: a table in the notation of the protocol's description, and its two readings.

    name[n]   an integer of n bytes, little-endian       name[s]     a string: length[2] and so many bytes
    name[q]   a qid: type[1] version[4] path[8]           name[d]     data: count[4] and so many bytes
    name[s*], name[q*]                                    count[2] and so many of them

Source: the description of the protocol that diod keeps (protocol.md), and Plan 9's manual, section 5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

VERSION = b"9P2000.L"
NOFID = 0xFFFF_FFFF
NOTAG = 0xFFFF
HEADER = Struct("<IBH")
"""size, counted from itself on; type; tag."""
IO_HEADER = HEADER.size + 4
"""Bytes of an Rread before its data; an Rlerror has as many, and no answer has fewer than those of a header."""
QTDIR, QTSYMLINK, QTFILE = 0x80, 0x02, 0x00

_QID = Struct("<BIQ")
_FIELD = re.compile(r"(\w+)\[([1248dsq]\*?)\]")


class Qid(NamedTuple):
    """What the server knows a file by."""

    type: int
    version: int
    path: int


Value = int | bytes | Qid | list[bytes] | list[Qid]
Layout = tuple[tuple[str, str], ...]
"""Names and kinds."""


class Malformed(Exception):
    """These bytes are no such message."""


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of message: what is asked, whose type is `number`, and what is answered, whose type is one more."""

    number: int
    name: str
    request: Layout
    reply: Layout


def _row(number: int, name: str, request: str, reply: str = "") -> Row:
    return Row(number, name, tuple(_FIELD.findall(request)), tuple(_FIELD.findall(reply)))


_TIMES = "atime_sec[8] atime_nsec[8] mtime_sec[8] mtime_nsec[8]"
_STATFS = "type[4] bsize[4] blocks[8] bfree[8] bavail[8] files[8] ffree[8] fsid[8] namelen[4]"
_ATTRIBUTES = (
    "valid[8] qid[q] mode[4] uid[4] gid[4] nlink[8] rdev[8] size[8] blksize[8] blocks[8] "
    f"{_TIMES} ctime_sec[8] ctime_nsec[8] btime_sec[8] btime_nsec[8] gen[8] data_version[8]"
)
_LOCK = "type[1] start[8] length[8] proc_id[4] client_id[s]"

ROWS = (
    _row(6, "lerror", "", "ecode[4]"),
    _row(8, "statfs", "fid[4]", _STATFS),
    _row(12, "lopen", "fid[4] flags[4]", "qid[q] iounit[4]"),
    _row(14, "lcreate", "fid[4] name[s] flags[4] mode[4] gid[4]", "qid[q] iounit[4]"),
    _row(16, "symlink", "fid[4] name[s] symtgt[s] gid[4]", "qid[q]"),
    _row(18, "mknod", "dfid[4] name[s] mode[4] major[4] minor[4] gid[4]", "qid[q]"),
    _row(20, "rename", "fid[4] dfid[4] name[s]"),
    _row(22, "readlink", "fid[4]", "target[s]"),
    _row(24, "getattr", "fid[4] request_mask[8]", _ATTRIBUTES),
    _row(26, "setattr", f"fid[4] valid[4] mode[4] uid[4] gid[4] size[8] {_TIMES}"),
    _row(30, "xattrwalk", "fid[4] newfid[4] name[s]", "size[8]"),
    _row(32, "xattrcreate", "fid[4] name[s] attr_size[8] flags[4]"),
    _row(40, "readdir", "fid[4] offset[8] count[4]", "data[d]"),
    _row(50, "fsync", "fid[4] datasync[4]"),
    _row(52, "lock", "fid[4] type[1] flags[4] start[8] length[8] proc_id[4] client_id[s]", "status[1]"),
    _row(54, "getlock", f"fid[4] {_LOCK}", _LOCK),
    _row(70, "link", "dfid[4] fid[4] name[s]"),
    _row(72, "mkdir", "dfid[4] name[s] mode[4] gid[4]", "qid[q]"),
    _row(74, "renameat", "olddirfid[4] oldname[s] newdirfid[4] newname[s]"),
    _row(76, "unlinkat", "dirfid[4] name[s] flags[4]"),
    _row(100, "version", "msize[4] version[s]", "msize[4] version[s]"),
    _row(102, "auth", "afid[4] uname[s] aname[s] n_uname[4]", "aqid[q]"),
    _row(104, "attach", "fid[4] afid[4] uname[s] aname[s] n_uname[4]", "qid[q]"),
    _row(108, "flush", "oldtag[2]"),
    _row(110, "walk", "fid[4] newfid[4] wname[s*]", "wqid[q*]"),
    _row(116, "read", "fid[4] offset[8] count[4]", "data[d]"),
    _row(118, "write", "fid[4] offset[8] data[d]", "count[4]"),
    _row(120, "clunk", "fid[4]"),
    _row(122, "remove", "fid[4]"),
)
REQUESTS = {row.number: row for row in ROWS if row.name != "lerror"}
NAMED = {row.name: row for row in ROWS}
ENTRY: Layout = (("qid", "q"), ("offset", "8"), ("type", "1"), ("name", "s"))
"""One of a directory's entries, in the data of an Rreaddir."""


def encode(layout: Layout, values: Sequence[Value]) -> bytes:
    """The bytes of the fields, which have these values."""
    return b"".join(_encode(kind, value) for (_, kind), value in zip(layout, values, strict=True))


def message(number: int, tag: int, body: bytes) -> bytes:
    """A whole message."""
    return HEADER.pack(HEADER.size + len(body), number, tag) + body


def decode(layout: Layout, body: bytes) -> list[Value]:
    """The values of the fields, which are all of `body`. Raises `Malformed`."""
    values: list[Value] = []
    at = 0
    for _, kind in layout:
        value, at = _decode(kind, body, at)
        values.append(value)
    if at != len(body):
        raise Malformed(f"{len(body) - at} bytes behind the last field")
    return values


def entries(data: bytes) -> list[tuple[Qid, int, int, bytes]]:
    """A directory's entries in the data of an Rreaddir. Raises `Malformed`."""
    found = []
    at = 0
    while at < len(data):
        values: list[Value] = []
        for _, kind in ENTRY:
            value, at = _decode(kind, data, at)
            values.append(value)
        qid, offset, sort, name = values
        assert isinstance(qid, Qid) and isinstance(offset, int) and isinstance(sort, int) and isinstance(name, bytes)
        found.append((qid, offset, sort, name))
    return found


def _encode(kind: str, value: Value) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(int(kind), "little")
    if isinstance(value, bytes):
        return len(value).to_bytes(4 if kind == "d" else 2, "little") + value
    if isinstance(value, Qid):
        return _QID.pack(*value)
    return len(value).to_bytes(2, "little") + b"".join(_encode(kind[0], element) for element in value)


def _decode(kind: str, body: bytes, at: int) -> tuple[Value, int]:
    """A field's value, and where the next begins."""
    if kind in ("s*", "q*"):
        count, at = _integer(body, at, 2)
        strings, qids = [], []
        for _ in range(count):  # each takes two bytes at least, so there are no more than the message has room for
            value, at = _decode(kind[0], body, at)
            if isinstance(value, bytes):
                strings.append(value)
            elif isinstance(value, Qid):
                qids.append(value)
        return (strings if kind == "s*" else qids), at
    if kind == "q":
        return Qid(*_QID.unpack(_bytes(body, at, _QID.size))), at + _QID.size
    if kind in ("s", "d"):
        length, at = _integer(body, at, 4 if kind == "d" else 2)
        return _bytes(body, at, length), at + length
    return _integer(body, at, int(kind))


def _integer(body: bytes, at: int, size: int) -> tuple[int, int]:
    return int.from_bytes(_bytes(body, at, size), "little"), at + size


def _bytes(body: bytes, at: int, length: int) -> bytes:
    found = body[at : at + length]
    if len(found) != length:
        raise Malformed(f"a field ends {length - len(found)} bytes behind the message")
    return found
