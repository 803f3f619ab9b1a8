"""Run in the guest: appends records to files, and looks whether those are there that were told of.

Record n is in file n % 4: its number, the length of its text, the text's CRC, and the text, which follows from n. A
line `told N` on standard output says that the flush of record N, and of all before it, has returned. At the start the
files are read: `found N` is how many whole records there are from 0 on. What is behind those is cut off.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator

FILES = 4
LONGEST = 24_000
"""Bytes of a text."""
_HEAD = struct.Struct("<QII")


def text(number: int) -> bytes:
    draw = random.Random(number)
    return draw.randbytes(draw.randrange(1, LONGEST))


def record(number: int) -> bytes:
    body = text(number)
    return _HEAD.pack(number, len(body), zlib.crc32(body)) + body


def whole(data: bytes, number: int) -> Iterator[int]:
    """Where each whole record of the file ends that begins with this one."""
    at = 0
    while data[at : at + len(expected := record(number))] == expected:
        at += len(expected)
        number += FILES
        yield at


def found(directory: str, *, cut: bool = False) -> int:
    """How many whole records there are from 0 on. `cut`: what is behind them is no more."""
    ends = []
    for n in range(FILES):
        path = os.path.join(directory, f"records{n}")
        data = b""
        if os.path.exists(path):
            with open(path, "rb") as file:
                data = file.read()
        ends.append(list(whole(data, n)))
    count = min(FILES * len(at) + n for n, at in enumerate(ends))
    if cut:
        for n, at in enumerate(ends):
            keep = (count - n + FILES - 1) // FILES
            with open(os.path.join(directory, f"records{n}"), "ab") as file:
                file.truncate(at[keep - 1] if keep else 0)
                os.fsync(file.fileno())
        os.sync()
    return count


def write(directory: str, number: int, end: int) -> None:
    files = [
        os.open(os.path.join(directory, f"records{n}"), os.O_WRONLY | os.O_APPEND | os.O_CREAT) for n in range(FILES)
    ]
    above = os.open(directory, os.O_RDONLY)
    os.fsync(above)
    for n in range(number, end):
        file, data = files[n % FILES], record(n)
        assert os.write(file, data) == len(data)
        (os.fsync if n % 3 else os.fdatasync)(file)
        print(f"told {n}", flush=True)


if __name__ == "__main__":
    first = found(sys.argv[1], cut=True)
    print(f"found {first}", flush=True)
    write(sys.argv[1], first, first + int(sys.argv[2]))
