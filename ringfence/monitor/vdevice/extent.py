"""Extents of a machine's disks, and whose they are.

Sizes and offsets are in bytes, and whole sectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ringfence.errors import MachineError
from ringfence.machine.device.virtio_blk import SECTOR, Disk

Use = Literal["read-only", "shared", "exclusive"]


@dataclass(frozen=True, slots=True)
class Extent:
    """`size` bytes from byte `start` of the disk in a machine's slot `disk`."""

    start: int
    size: int
    disk: int = 0

    def __str__(self) -> str:
        return f"{self.size} bytes at {self.start} of disk {self.disk}"

    def overlaps(self, other: Extent) -> bool:
        return (
            self.disk == other.disk and self.start < other.start + other.size and other.start < self.start + self.size
        )


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What `owner` has of an extent."""

    owner: str
    extent: Extent
    use: Use

    def __str__(self) -> str:
        return f"{self.owner} ({self.use}, {self.extent})"


def agree(one: Claim, other: Claim) -> bool:
    """Whether both can stand: a policy."""
    return not one.extent.overlaps(other.extent) or one.use == other.use != "exclusive"


class Allocation:
    """Which extents of a machine's disks are whose. The numbers of `disks` are those of their slots."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self.disks = tuple(disks)
        self._claims: list[Claim] = []

    def check(self, extent: Extent, *, writable: bool) -> None:
        """Raises MachineError where there is no such extent, or none that can be written."""
        if not 0 <= extent.disk < len(self.disks):
            raise MachineError(f"the host machine has no disk {extent.disk}")
        disk = self.disks[extent.disk]
        if extent.size <= 0:
            raise MachineError(f"an extent has at least {SECTOR} bytes, not {extent.size}")
        if extent.start % SECTOR or extent.size % SECTOR:
            raise MachineError(f"an extent is whole sectors of {SECTOR} bytes, which {extent} are not")
        if extent.start < 0 or extent.start + extent.size > disk.size:
            raise MachineError(f"{extent} are not inside its {disk.size} bytes")
        if writable and disk.readonly:
            raise MachineError(f"disk {extent.disk} of the host machine is read-only, so {extent} cannot be written")

    def take(self, claims: Sequence[Claim]) -> None:
        """All of them; or none, and MachineError, where one does not agree with another or with what was taken."""
        for n, claim in enumerate(claims):
            for other in (*self._claims, *claims[:n]):
                if not agree(claim, other):
                    raise MachineError(f"{claim} overlaps {other}")
        self._claims += claims

    def give_back(self, claims: Sequence[Claim]) -> None:
        """They are nobody's any more."""
        self._claims = [claim for claim in self._claims if claim not in claims]
