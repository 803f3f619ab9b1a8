"""Disks in memory for the tests of what stands on disks: one that fails, and one that stops at any moment."""

from __future__ import annotations

from collections.abc import Callable

from ringfence import MiB, Virt, virt
from ringfence.machine.device.virtio_blk import SECTOR


class Platter:
    """A disk of so many sectors, each filled with two bytes of its number."""

    serial = b""

    def __init__(self, sectors: int, readonly: bool = False) -> None:
        self.data = bytearray(b"".join(n.to_bytes(2, "big") * (SECTOR // 2) for n in range(sectors)))
        self.size = len(self.data)
        self.readonly = readonly
        self.fails: Callable[[str], bool] = lambda _: False
        """Whether this operation (`read`, `write`, `discard` or `flush`) is an error of the medium."""
        self.flushes = 0
        self.discarded: list[tuple[int, int]] = []
        """(offset, length)"""

    def read(self, offset: int, length: int) -> bytes:
        self._begin("read", offset, length)
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        assert not self.readonly
        self._begin("write", offset, len(data))
        self.data[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> None:
        assert not self.readonly
        self._begin("discard", offset, length)
        self.data[offset : offset + length] = b"\xdd" * length
        self.discarded.append((offset, length))

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        self._begin("flush", 0, 0)
        self.flushes += 1

    def _begin(self, what: str, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size
        if self.fails(what):
            raise OSError("medium")


class PowerCut(Exception):
    """Everything stops here."""


class Cache(Platter):
    """A disk that may keep sectors in its cache until it is flushed, in any order. It is blank at first."""

    def __init__(self, sectors: int) -> None:
        super().__init__(sectors)
        self.data[:] = bytes(self.size)
        self.left: int | None = None
        """The writes and flushes before the power is cut."""
        self._durable = bytes(self.data)
        self._cached: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        touched = range(offset // SECTOR * SECTOR, offset + len(data), SECTOR)
        self._cached += [(at, bytes(self.data[at : at + SECTOR])) for at in touched]
        self._operation()

    def flush(self) -> None:
        self._operation()
        self._durable, self._cached = bytes(self.data), []

    def _operation(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise PowerCut

    def cut(self, survives: Callable[[], bool]) -> None:
        """Power is off and on again: of what was in the cache some sectors are on the medium."""
        data = bytearray(self._durable)
        for at, sector in self._cached:
            if survives():
                data[at : at + SECTOR] = sector
        self.data[:] = self._durable = bytes(data)
        self._cached, self.left = [], None


def host(*disks: Platter) -> Virt:
    """A machine with these disks, and memory for monitors on it."""
    return virt(32 * MiB, engine="reference", disks=disks)
