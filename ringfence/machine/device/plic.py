"""The platform-level interrupt controller: 95 level-triggered sources to a context per hart and mode.

Source: RISC-V Platform-Level Interrupt Controller Specification 1.0.0. Context 2n is hart n's M-mode, 2n+1 its
S-mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ringfence.machine.device.device import Device, Field, Line

SOURCES = 96
"""Source identifiers are 1 to 95; 0 means no interrupt."""
PRIORITIES = 8
"""Priorities are 0, which never interrupts, to 7."""

PRIORITY = 0x00_0000
PENDING = 0x00_1000
ENABLE = 0x00_2000
ENABLE_STRIDE = 0x80
CONTEXT = 0x20_0000
CONTEXT_STRIDE = 0x1000
THRESHOLD = 0
CLAIM = 4

_WORDS = SOURCES // 32
_WORD = 0xFFFF_FFFF
_ALL = (1 << SOURCES) - 2


class SourceLine:
    """The wire from a device to one source."""

    __slots__ = ("_bit", "_plic")

    def __init__(self, plic: Plic, source: int) -> None:
        self._plic = plic
        self._bit = 1 << source

    def set(self, level: bool) -> None:
        plic = self._plic
        bit = self._bit
        if level:
            if not plic.level & bit:
                plic.level |= bit
                if not (plic.pending | plic.in_service) & bit:
                    plic.pending |= bit
                    plic.update()
        else:
            plic.level &= ~bit


class Plic(Device):
    """Drives `contexts[i]` while an enabled source above context i's threshold is pending.

    A gateway forwards one request, which a falling line does not take back, and the next after completion while its
    line is high. A claim is not affected by the threshold; the highest priority wins, then the lowest identifier. A
    completion of a source that the context has not enabled is ignored. Registers are 32 bits wide: an access of 8
    bytes is two of them, narrower and misaligned ones are ignored.
    """

    WINDOW: ClassVar[int] = 0x60_0000
    STATE: ClassVar[tuple[Field, ...]] = (
        Field("level", "u96"),
        Field("pending", "u96"),
        Field("in_service", "u96"),
        Field("priority", "u8", SOURCES),
        Field("enable", "u96", "context_count"),
        Field("threshold", "u8", "context_count"),
        Field("output", "bool", "context_count"),
    )
    level: int
    pending: int
    in_service: int
    priority: list[int]
    enable: list[int]
    threshold: list[int]
    output: list[bool]

    def __init__(self, contexts: Sequence[Line]) -> None:
        self.contexts = tuple(contexts)
        self.context_count = len(contexts)
        super().__init__()
        self._derive()

    def line(self, source: int) -> Line:
        """The wire for a device to drive; raises `ValueError` unless `source` is 1 to 95."""
        if not 0 < source < SOURCES:
            raise ValueError(f"interrupt source {source} is not 1 to {SOURCES - 1}")
        return SourceLine(self, source)

    def read(self, offset: int, size: int) -> int:
        if offset & 3 or size < 4:
            return 0
        if size == 8:
            return self.read(offset, 4) | self.read(offset + 4, 4) << 32
        if offset >= CONTEXT:
            context = offset - CONTEXT >> 12
            if context < self.context_count:
                register = offset & CONTEXT_STRIDE - 1
                if register == CLAIM:
                    return self._claim(context)
                if register == THRESHOLD:
                    return self.threshold[context]
        elif offset >= ENABLE:
            context, word = divmod(offset - ENABLE, ENABLE_STRIDE)
            if context < self.context_count:
                return self.enable[context] >> 8 * word & _WORD
        elif offset >= PENDING:
            return self.pending >> 8 * (offset - PENDING) & _WORD
        elif offset < PRIORITY + 4 * SOURCES:
            return self.priority[offset - PRIORITY >> 2]
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset & 3 or size < 4:
            return
        if size == 8:
            self.write(offset, 4, value & _WORD)
            self.write(offset + 4, 4, value >> 32 & _WORD)
        elif offset >= CONTEXT:
            context = offset - CONTEXT >> 12
            if context < self.context_count:
                register = offset & CONTEXT_STRIDE - 1
                if register == CLAIM:
                    self._complete(context, value)
                elif register == THRESHOLD:
                    self.threshold[context] = value & PRIORITIES - 1
                    self._derive()
                    self.update()
        elif offset >= ENABLE:
            context, at = divmod(offset - ENABLE, ENABLE_STRIDE)
            word = at >> 2
            if context < self.context_count and word < _WORDS:
                kept = self.enable[context] & ~(_WORD << 32 * word)
                self.enable[context] = (kept | (value & _WORD) << 32 * word) & _ALL
                self._derive()
                self.update()
        elif PRIORITY < offset < PRIORITY + 4 * SOURCES:
            self.priority[offset - PRIORITY >> 2] = value & PRIORITIES - 1
            self._derive()
            self.update()

    def reset(self) -> None:
        """Forgets requests and settings; what the lines carry stays, and is forwarded again."""
        level = self.level
        lines = self.output
        super().reset()
        self.level = self.pending = level
        self.output = lines
        self._derive()
        self.update()

    def restore(self, state: Mapping[str, object]) -> None:
        super().restore(state)
        self._derive()

    def update(self) -> None:
        """Drives the contexts' lines whose level changed."""
        pending = self.pending
        output = self.output
        for context, eligible in enumerate(self._eligible):
            level = pending & eligible != 0
            if level != output[context]:
                output[context] = level
                self.contexts[context].set(level)

    def _claim(self, context: int) -> int:
        candidates = self.pending & self.enable[context]
        if not candidates:
            return 0
        for sources in self._by_priority:
            found = candidates & sources
            if found:
                bit = found & -found
                self.pending &= ~bit
                self.in_service |= bit
                self.update()
                return bit.bit_length() - 1
        return 0

    def _complete(self, context: int, source: int) -> None:
        if not 0 < source < SOURCES:
            return
        bit = 1 << source
        if self.enable[context] & self.in_service & bit:
            self.in_service &= ~bit
            if self.level & bit:
                self.pending |= bit
                self.update()

    def _derive(self) -> None:
        """From the settings: the sources of each priority, highest first, and those that can interrupt a context."""
        by_priority = [0] * PRIORITIES
        for source, priority in enumerate(self.priority):
            by_priority[priority] |= 1 << source
        above = [sum(by_priority[threshold + 1 :]) for threshold in range(PRIORITIES)]
        self._by_priority = by_priority[:0:-1]
        self._eligible = [
            enable & above[threshold] for enable, threshold in zip(self.enable, self.threshold, strict=True)
        ]
