"""Minidisks (VM/370's): a virtual machine's disk is extents of its host machine's disks.

A machine's block device traps each request, and moves it through its buffers by f. Here the other address in it, the
block, goes through the extents, which are f for disks: verified, translated, and served by the host machine's disk.
That one may be a minidisk too, of the machine below: an extent of an extent.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

from ringfence.errors import MachineError
from ringfence.machine.device.disk_worker import join, quiet
from ringfence.machine.device.virtio_blk import Disk
from ringfence.monitor.vdevice.extent import Allocation, Claim, Extent, Use
from ringfence.monitor.vdevice.overlay import Overlay, Unnamed, delta_size

Mode = Literal["rw", "ro", "shared", "cow"]
_USE: dict[Mode, Use] = {"rw": "exclusive", "ro": "read-only", "shared": "shared", "cow": "read-only"}


class Span:
    """Extents side by side. What is asked for is inside; an error of a disk is an error here."""

    def __init__(self, disks: Sequence[Disk], extents: Sequence[Extent]) -> None:
        self._extents = [(disks[extent.disk], extent) for extent in extents]
        self._starts = [0, *accumulate(extent.size for extent in extents)]
        self.size = self._starts.pop()

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(disk.read(at, n) for disk, at, n in self._pieces(offset, length))

    def read_now(self, offset: int, length: int) -> bytes | None:
        (disk, at, n), *others = self._pieces(offset, length)
        read_now = getattr(disk, "read_now", None)
        return None if others or read_now is None else read_now(at, n)

    def write(self, offset: int, data: bytes) -> None:
        done = 0
        for disk, at, n in self._pieces(offset, len(data)):
            disk.write(at, data[done : done + n])
            done += n

    def discard(self, offset: int, length: int) -> None:
        for disk, at, n in self._pieces(offset, length):
            disk.discard(at, n)

    def zero(self, offset: int, length: int) -> None:
        for disk, at, n in self._pieces(offset, length):
            disk.zero(at, n)

    def flush(self) -> None:
        for disk in {id(disk): disk for disk, _ in self._extents}.values():
            disk.flush()

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Disk, int, int]]:
        """(disk, offset there, length) of the pieces of `length` bytes at `offset`."""
        index = bisect_right(self._starts, offset) - 1
        while length:
            disk, extent = self._extents[index]
            inside = offset - self._starts[index]
            n = min(length, extent.size - inside)
            yield disk, extent.start + inside, n
            index, offset, length = index + 1, offset + n, length - n


class Minidisk:
    """A `Disk` of a virtual machine, made by `Monitor.minidisk`. It serves while it is attached to one.

    rw       its own extents: no other minidisk has them
    ro       extents that nobody writes
    shared   extents that other machines may write too, those whose minidisks say shared as well
    cow      copy on write: extents that nobody writes, until this machine writes to them. What it has written is in
             `delta`, an extent of its own (how large: `delta_size`), and is there again when this base and this delta
             are attached again; without a delta it is in a file without name, and lost when the minidisk is released
             or the monitor ends.
    """

    def __init__(
        self, allocation: Allocation, extents: Sequence[Extent], mode: Mode, delta: Extent | None, serial: bytes
    ) -> None:
        """Raises MachineError."""
        if mode not in _USE:
            raise MachineError(f"a minidisk is rw, ro, shared or cow, not {mode!r}")
        if not extents:
            raise MachineError("a minidisk has at least one extent")
        for extent in extents:
            allocation.check(extent, writable=mode in ("rw", "shared"))
        if delta is not None:
            if mode != "cow":
                raise MachineError(f"a delta is for what is written to a cow minidisk, not to one that is {mode}")
            allocation.check(delta, writable=True)
        self.mode, self.extents, self.delta, self.serial = mode, tuple(extents), delta, serial
        self.size = sum(extent.size for extent in extents)
        self.readonly = mode == "ro"
        self.allocation = allocation
        self.beneath = allocation.disks[extents[0].disk]
        """Where it begins."""
        self.owner: str | None = None
        """Whose it is, in words, while it is attached."""
        self._claims: list[Claim] = []
        self._medium: Span | Overlay | None = None

    def attach(self, owner: str) -> None:
        """Its extents are taken, and requests are served. Raises MachineError, with nothing taken."""
        if self.owner is not None:
            raise MachineError(f"{owner} is {self.owner} already, and a minidisk is one machine's")
        claims = [Claim(owner, extent, _USE[self.mode]) for extent in self.extents]
        if self.delta is not None:
            claims.append(Claim(f"the delta of {owner}", self.delta, "exclusive"))
        self.allocation.take(claims)
        disks = [self.allocation.disks[claim.extent.disk] for claim in claims]
        join(disks)
        try:
            with quiet(*disks):
                self._medium = self._open()
        except (OSError, MachineError) as error:
            self.allocation.give_back(claims)
            raise MachineError(f"{owner} cannot be used: {getattr(error, 'strerror', None) or error}") from error
        self.owner, self._claims = owner, claims

    def _open(self) -> Span | Overlay:
        disks = self.allocation.disks
        span = Span(disks, self.extents)
        if self.mode != "cow":
            return span
        return Overlay(span, Unnamed(delta_size(span.size)) if self.delta is None else Span(disks, [self.delta]))

    def release(self) -> None:
        """Its extents are nobody's, and no request reaches them any more; once is enough. What was begun is done."""
        self.allocation.give_back(self._claims)
        with quiet(self):
            self.owner, self._claims, self._medium = None, [], None

    def read(self, offset: int, length: int) -> bytes:
        return self._verified(offset, length).read(offset, length)

    def read_now(self, offset: int, length: int) -> bytes | None:
        """The same where no medium is waited for, else None."""
        medium = self._verified(offset, length)
        return medium.read_now(offset, length) if length and isinstance(medium, Span) else None

    def write(self, offset: int, data: bytes) -> None:
        self._writable(offset, len(data)).write(offset, data)

    def discard(self, offset: int, length: int) -> None:
        """As the disks of its extents do; copy on write keeps what it has."""
        self._writable(offset, length).discard(offset, length)

    def zero(self, offset: int, length: int) -> None:
        self._writable(offset, length).zero(offset, length)

    def flush(self) -> None:
        """Returns when everything written is on the medium, below every machine."""
        self._verified(0, 0).flush()

    def _writable(self, offset: int, length: int) -> Span | Overlay:
        medium = self._verified(offset, length)
        if self.readonly:
            raise OSError(errno.EROFS, "write to a minidisk that is read-only")
        return medium

    def _verified(self, offset: int, length: int) -> Span | Overlay:
        if self._medium is None:
            raise OSError(errno.ENXIO, "the minidisk is no machine's")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EIO, f"no {length} bytes at {offset} of a minidisk of {self.size}")
        return self._medium


def attach(name: str, allocation: Allocation, disks: Sequence[Disk]) -> None:
    """The minidisks among `disks` are now the machine's of that name. Raises MachineError, with none attached."""
    attached: list[Minidisk] = []
    try:
        for n, disk in enumerate(disks):
            if isinstance(disk, Minidisk):
                if disk.allocation is not allocation:
                    raise MachineError(f"disk {n} of {name} is a minidisk of another monitor's")
                disk.attach(f"disk {n} of {name}")
                attached.append(disk)
    except MachineError:
        release(attached)
        raise


def release(disks: Sequence[Disk]) -> None:
    """The minidisks among `disks` are no machine's any more."""
    for disk in disks:
        if isinstance(disk, Minidisk):
            disk.release()
