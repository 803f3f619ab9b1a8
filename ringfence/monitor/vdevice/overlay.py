"""Copy on write: what is written over a base goes to a delta, and a map there says where it is.

A delta, in blocks of 4 KiB, numbers little-endian:

    header      one sector that names the format and both sizes; the rest of its block is zero
    map         a u32 for each block of the base: 0, or 1 + the slot where the block is now
    slots       a block each

A slot is on the medium before an entry leads to it, and entries are written a sector at a time, so that whenever
everything stops, a block is the base's or it is whole in its slot. A delta belongs to its base: what is in it means
nothing when the base has changed since.
"""

from __future__ import annotations

import errno
import os
import tempfile
from array import array
from collections.abc import Iterator
from struct import Struct, pack, unpack
from typing import Protocol

from ringfence.errors import MachineError
from ringfence.machine.device.virtio_blk import SECTOR
from ringfence.machine.device.virtio_mmio import CHUNK

BLOCK = 4096
_HEADER = Struct("<16sIIQQ")
_MAGIC = b"ringfence copy-1"
_ENTRIES = SECTOR // 4
_ZEROES = 16 * CHUNK
"""Bytes of zeroes that are written at a time, and may wait for the medium."""


class Medium(Protocol):
    """`size` bytes that can be read and written, all inside. Errors are `OSError`."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def flush(self) -> None: ...


def delta_size(size: int) -> int:
    """The bytes of a delta where all of `size` bytes can be written. With fewer, but more than the header and the map
    need, it is full before that.
    """
    return _slots_at(size) + -(-size // BLOCK) * BLOCK


def _slots_at(size: int) -> int:
    """How far behind the start of a delta the slots for `size` bytes begin."""
    return BLOCK + -(-4 * -(-size // BLOCK) // BLOCK) * BLOCK


def _blocks(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(block, offset in it, length) of the pieces of `length` bytes at `offset`."""
    while length:
        block, inside = divmod(offset, BLOCK)
        n = min(length, BLOCK - inside)
        yield block, inside, n
        offset, length = offset + n, length - n


class Overlay:
    """A base, and over it what was written. A write finds the delta full, ENOSPC, before it has changed anything."""

    def __init__(self, base: Medium, delta: Medium) -> None:
        """Goes on with what `delta` has of this base, or begins where its first block is all zero.

        Raises MachineError, having written nothing, if it is neither; OSError.
        """
        self._base, self._delta = base, delta
        self.size = base.size
        self._slots = _slots_at(base.size)
        self._used = bytearray(min(-(-base.size // BLOCK), max(0, delta.size - self._slots) // BLOCK))
        """By slot: whether it is some block's."""
        if not self._used:
            raise MachineError(
                f"{delta.size} bytes are too few for copy on write of {base.size}: "
                f"{self._slots + BLOCK} at least, and {delta_size(base.size)} for all of it"
            )
        self._next = 0
        """Slots before it are used."""
        self._map = array("I", bytes(self._slots - BLOCK))
        self._dirty: set[int] = set()
        """Sectors of the map that are not as they are in the delta."""
        header = _HEADER.pack(_MAGIC, BLOCK, 0, base.size, delta.size).ljust(BLOCK, b"\0")
        found = delta.read(0, BLOCK)
        if found == header:
            self._load()
        elif found == bytes(BLOCK):
            self._format(header)
        else:
            raise MachineError(
                f"a delta for copy on write is neither blank nor one of {delta.size} bytes for {base.size}"
            )

    def _load(self) -> None:
        last = -(-self.size // BLOCK)
        for at in range(0, len(self._map), CHUNK // 4):
            n = min(CHUNK // 4, len(self._map) - at)
            entries = unpack(f"<{n}I", self._delta.read(BLOCK + 4 * at, 4 * n))
            for block, entry in enumerate(entries, at):
                if entry:
                    if block >= last or entry > len(self._used) or self._used[entry - 1]:
                        raise MachineError(f"a map for copy on write is damaged: block {block} in slot {entry - 1}")
                    self._used[entry - 1] = 1
                    self._map[block] = entry

    def _format(self, header: bytes) -> None:
        """The map is blank before the header says that there is one. The first write to a slot flushes the header."""
        delta = self._delta
        for at in range(BLOCK, self._slots, CHUNK):
            blank = bytes(min(CHUNK, self._slots - at))
            if delta.read(at, len(blank)) != blank:
                delta.write(at, blank)
        delta.flush()
        delta.write(0, header[:SECTOR])

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self._read(*piece) for piece in _blocks(offset, length))

    def _read(self, block: int, inside: int, length: int) -> bytes:
        if entry := self._map[block]:
            return self._delta.read(self._at(entry) + inside, length)
        return self._base.read(block * BLOCK + inside, length)

    def write(self, offset: int, data: bytes) -> None:
        """As an entry goes out behind its slot, writing to blocks for the first time waits for the medium."""
        pieces = list(_blocks(offset, len(data)))
        fresh = self._take([block for block, _, _ in pieces if not self._map[block]])
        try:
            done = 0
            for block, inside, n in pieces:
                part = data[done : done + n]
                done += n
                entry = self._map[block]
                if not entry:
                    entry = fresh[block]
                    old = self._base.read(block * BLOCK, min(BLOCK, self.size - block * BLOCK))
                    part = old[:inside] + part + old[inside + n :]
                    inside = 0
                self._delta.write(self._at(entry) + inside, part)
            if fresh:
                self._delta.flush()
        except OSError:
            self._give_back(fresh)
            raise
        for block, entry in fresh.items():
            self._map[block] = entry
            self._dirty.add(block // _ENTRIES)
        self._save()

    def discard(self, offset: int, length: int) -> None:
        """Nothing: a slot stays its block's."""

    def zero(self, offset: int, length: int) -> None:
        for done in range(0, length, _ZEROES):
            self.write(offset + done, bytes(min(_ZEROES, length - done)))

    def flush(self) -> None:
        self._save()
        self._delta.flush()

    def _at(self, entry: int) -> int:
        return self._slots + (entry - 1) * BLOCK

    def _take(self, blocks: list[int]) -> dict[int, int]:
        """An entry for each of these blocks; for all of them or none."""
        fresh: dict[int, int] = {}
        for block in blocks:
            slot = self._used.find(0, self._next)
            if slot < 0:
                self._give_back(fresh)
                raise OSError(errno.ENOSPC, "the delta for copy on write is full")
            self._used[slot] = 1
            self._next = slot + 1
            fresh[block] = slot + 1
        return fresh

    def _give_back(self, fresh: dict[int, int]) -> None:
        for entry in fresh.values():
            self._used[entry - 1] = 0
            self._next = min(self._next, entry - 1)

    def _save(self) -> None:
        """What has changed of the map goes to the delta. What cannot be written now is written by the next flush."""
        for sector in sorted(self._dirty):
            entries = self._map[sector * _ENTRIES : (sector + 1) * _ENTRIES]
            self._delta.write(BLOCK + sector * SECTOR, pack(f"<{_ENTRIES}I", *entries))
            self._dirty.discard(sector)


class Unnamed:
    """`size` bytes in a file of the host that has no name: they are gone when nobody has it any more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._file = tempfile.TemporaryFile(prefix="ringfence-minidisk-")  # noqa: SIM115
        self._file.truncate(size)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def write(self, offset: int, data: bytes) -> None:
        if os.pwrite(self._file.fileno(), data, offset) != len(data):
            raise OSError(errno.ENOSPC, "the host's disk is full")

    def flush(self) -> None:
        """Nobody reads it behind a crash."""
