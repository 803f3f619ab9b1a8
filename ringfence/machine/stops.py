"""Where a machine stops for whoever looks into it: addresses of instructions, and ranges of data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ringfence.machine.engine.layout import WATCHED_PAGES

READ, WRITE = 1, 2

Kind = Literal["write", "read", "access"]
_KINDS = {"write": WRITE, "read": READ, "access": READ | WRITE}


@dataclass(frozen=True)
class Watch:
    """`length` bytes at virtual address `va`, under whatever translation."""

    va: int
    length: int
    kind: Kind = "write"

    def met(self, va: int, size: int, how: int) -> int | None:
        """The first watched byte of an access to `size` bytes at `va`: `how` is READ, WRITE or both."""
        if how & _KINDS[self.kind] and self.va < va + size and va < self.va + self.length:
            return max(va, self.va)
        return None


def pages(watches: Iterable[Watch]) -> list[int]:
    """The addresses of the pages that hold a watched byte, `WATCHED_PAGES` + 1 of them at most."""
    found: set[int] = set()
    for watch in watches:
        for page in range(watch.va & -4096, watch.va + watch.length, 4096):
            found.add(page & (1 << 64) - 1)
            if len(found) > WATCHED_PAGES:
                break
    return sorted(found)
