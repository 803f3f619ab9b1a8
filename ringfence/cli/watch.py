"""Whether a guest is still alive, and how a run of it ends."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from ringfence.cli.console import Output
from ringfence.isa.trap import M, S, Status, U

if TYPE_CHECKING:
    from ringfence.machine.board import Virt
    from ringfence.machine.hart import Hart

TIME_LIMIT, PANIC = 124, 132
PANIC_LINES = re.compile(r"(\[[ \d.]+\] *)?(---\[ end Kernel panic - not syncing|panic: )")
"""What kernels print last before they stop for good: Linux; xv6 and its relatives."""
PANIC_NS = 50_000_000
PANIC_LOOKS = 3
SILENT_STEPS = 5_000_000_000
LOOP_LOOKS = 3
HANDLER_START = 64
"""Bytes of a trap handler in which no trap can be taken again: the state that the first one left is not saved yet."""


@dataclass(frozen=True)
class Limits:
    """Seconds: of guest time, of real time, and of guest time without a byte of output (0: no limit)."""

    guest: float | None
    wall: float | None
    silence: float
    silence_asked: float = 0
    """`silence` from where the guest has asked for its input."""
    patience: float = inf
    """Seconds of real time without a byte of output: a guest that resets itself for ever takes few steps."""


@dataclass(frozen=True)
class Ending:
    """Why it is over. Without a `sentence` there is nothing to say."""

    status: int
    reason: str
    sentence: str = ""


class Watch:
    """Tells whether a guest is dead. Asked where the machine has stopped between two instructions."""

    def __init__(self, board: Virt, output: Output, limits: Limits) -> None:
        self.board, self.output = board, output
        self.silence, self.patience = limits.silence, limits.patience
        self._since = time.monotonic()
        self._panic: tuple[int, int] | None = None  # bytes of output, guest time
        self._looks = 0
        self._loop: list[tuple[int, ...] | None] = []
        self._loop_looks = 0

    def verdict(self) -> Ending | None:
        """132 for a guest that cannot go on, as far as its machine's state shows it, or that has told so."""
        running = [hart for hart in self.board.harts if not hart.stopped]
        if running and self._traps_for_ever(running):
            return Ending(PANIC, "dead", "the guest is dead: its trap handler faults at its own start, again and again")
        if self._silent():
            return Ending(
                PANIC,
                "silent",
                f"the guest has printed nothing in {self.silence:g} seconds of its time (--silence 0 waits on)",
            )
        if self._panicked(running):
            return Ending(PANIC, "panic", "the guest panicked")
        return None

    def silent_until(self) -> int | None:
        """The guest time (ns) at which silence ends it, where that is the same in every run."""
        timed = self.silence and not self.output.count and self.board.clock.source == "virtual"
        return int(self.silence * 1e9) if timed else None

    def _silent(self) -> bool:
        if self.output.count or not self.silence:
            return False
        board = self.board
        if time.monotonic() - self._since >= self.patience:
            return True
        # By the host's clock a slow engine may not have got far.
        busy = board.clock.source == "host" and not all(h.waiting or h.stopped for h in board.harts)
        return board.clock.now() >= self.silence * 1e9 and not (busy and board.steps < SILENT_STEPS)

    def _traps_for_ever(self, running: list[Hart]) -> bool:
        """Every hart takes the same trap from the start of its handler, at each of some looks."""
        loop = [_trap_at_start(hart) for hart in running]
        self._loop_looks = self._loop_looks + 1 if loop == self._loop and None not in loop else 0
        self._loop = loop
        return self._loop_looks >= LOOP_LOOKS

    def _panicked(self, running: list[Hart]) -> bool:
        """The last line says so, and since then, in some time, nothing was printed and nothing but kernels ran."""
        last = self.output.lines(1)
        if not last or not PANIC_LINES.match(last[0]) or any(hart.priv == U for hart in running):
            self._panic = None
            return False
        if self._panic is None or self._panic[0] != self.output.count:
            self._panic = self.output.count, self.board.clock.now()
            self._looks = 0
            return False
        self._looks += 1
        return self._looks >= PANIC_LOOKS and self.board.clock.now() - self._panic[1] >= PANIC_NS


def _trap_at_start(hart: Hart) -> tuple[int, ...] | None:
    """The exception that was taken at the start of the very handler that it led to, where the hart is on that way."""

    def found(vector: int, epc: int, cause: int, at: int) -> tuple[int, ...] | None:
        start = vector & ~3
        return (start, epc, cause) if start <= at <= epc < start + HANDLER_START and not cause >> 63 else None

    # Firmware may be what hands the supervisor its traps.
    through = hart.priv == M and hart.mstatus >> Status.MPP & 3 == S
    if (hart.priv == S or through) and (
        loop := found(hart.stvec, hart.sepc, hart.scause, hart.mepc if through else hart.pc)
    ):
        return loop
    return found(hart.mtvec, hart.mepc, hart.mcause, hart.pc) if hart.priv == M else None


def describe(board: Virt) -> list[str]:
    """Where each hart stands."""
    lines = []
    for hart in board.harts:
        state = ", stopped" if hart.stopped else ", waiting for an interrupt" if hart.waiting else ""
        lines.append(f"  hart {hart.number}: pc {hart.pc:#x}, {'US?M'[hart.priv]}-mode{state}")
    return lines
