"""The core-local interruptor: software interrupts, and timers against `mtime`.

Source: SiFive Core-Local Interruptor as in the FU540-C000 manual, chapter 9; the same registers as the MSWI and
MTIMER devices of the RISC-V ACLINT specification, chapters 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ringfence.machine.device.device import Clock, Device, Field, Line

MSIP = 0x0000
MTIMECMP = 0x4000
MTIME = 0xBFF8

TICK_NS = 100
"""Nanoseconds a tick: `mtime` runs at 10 MHz."""

_ALL = 0xFFFF_FFFF_FFFF_FFFF
_HORIZON = 1 << 63


class Aclint(Device):
    """`msip`, `mtimecmp` and `mtime` for as many harts as there are lines.

    `software[hart]` and `timer[hart]` drive MSIP and MTIP of `mip`. Any naturally aligned part of a register can be
    read and written. `mtimecmp` resets to all ones, so that no timer is pending at power-on.
    """

    WINDOW: ClassVar[int] = 0x1_0000
    STATE: ClassVar[tuple[Field, ...]] = (
        Field("offset", "u64"),
        Field("msip", "bool", "harts"),
        Field("mtimecmp", "u64", "harts", reset=_ALL),
    )
    offset: int
    msip: list[bool]
    mtimecmp: list[int]

    def __init__(self, clock: Clock, software: Sequence[Line], timer: Sequence[Line]) -> None:
        if len(software) != len(timer):
            raise ValueError(f"{len(software)} software lines and {len(timer)} timer lines")
        self.clock = clock
        self.software = tuple(software)
        self.timer = tuple(timer)
        self.harts = len(timer)
        super().__init__()

    def mtime(self) -> int:
        """Ticks of 100 ns, modulo 2^64."""
        return self.clock.now() // TICK_NS + self.offset & _ALL

    def read(self, offset: int, size: int) -> int:
        if offset % size:
            return 0
        return self._register(offset & ~7) >> 8 * (offset & 7) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset % size:
            return
        base = offset & ~7
        shift = 8 * (offset & 7)
        mask = (1 << 8 * size) - 1
        new = self._register(base) & ~(mask << shift) | (value & mask) << shift
        if base == MTIME:
            self.offset = new - self.clock.now() // TICK_NS & _ALL
            for hart in range(self.harts):
                self._compare(hart)
        elif base >= MTIMECMP:
            hart = base - MTIMECMP >> 3
            if hart < self.harts:
                self.mtimecmp[hart] = new
                self._compare(hart)
        else:
            self._set_msip(base >> 2, new & 1)
            self._set_msip((base >> 2) + 1, new >> 32 & 1)

    def event(self, kind: str, number: int) -> None:
        self._compare(number)

    def reset(self) -> None:
        super().reset()
        for hart in range(self.harts):
            self.software[hart].set(False)
            self._compare(hart)

    def _register(self, base: int) -> int:
        """The eight bytes at `base`, a multiple of eight."""
        if base == MTIME:
            return self.mtime()
        if base >= MTIMECMP:
            hart = base - MTIMECMP >> 3
            return self.mtimecmp[hart] if hart < self.harts else 0
        hart = base >> 2
        pair = self.msip[hart : hart + 2]
        return sum(bit << 32 * index for index, bit in enumerate(pair))

    def _set_msip(self, hart: int, bit: int) -> None:
        if hart < self.harts and self.msip[hart] != bool(bit):
            self.msip[hart] = bool(bit)
            self.software[hart].set(bool(bit))

    def _compare(self, hart: int) -> None:
        """Drives MTIP, and comes back when the comparison next changes: at `mtimecmp`, or when `mtime` wraps."""
        now = self.clock.now() // TICK_NS
        mtime = now + self.offset & _ALL
        pending = mtime >= self.mtimecmp[hart]
        self.timer[hart].set(pending)
        change_ns = (now + (1 << 64 if pending else self.mtimecmp[hart]) - mtime) * TICK_NS
        if change_ns < _HORIZON:
            self.clock.at(change_ns, self, "timer", hart)
        else:
            self.clock.cancel(self, "timer", hart)
