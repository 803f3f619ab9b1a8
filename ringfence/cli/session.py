"""One run of a machine from the command line: who runs, who watches, and how it ends.

The machine runs in a thread of its own; the main thread has input, signals and the wall clock. The machine is looked
into only by its own thread, when it has stopped: the watch is asked then whether the guest is still alive.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from ringfence.cli import OURS, PIPE, discard_output
from ringfence.cli.console import READ_AHEAD, Input, Output, Terminal, report
from ringfence.errors import RingfenceError
from ringfence.isa.trap import M, S, Status, U
from ringfence.machine.device.uart16550 import IER_RDA
from ringfence.machine.exit import Deadline, Idle, PowerOff

if TYPE_CHECKING:
    from ringfence.machine.board import Virt
    from ringfence.machine.gdb import Debugger
    from ringfence.machine.hart import Hart

TIME_LIMIT, PANIC = 124, 132
TICK = 0.25
"""Seconds between looks at a running machine."""
JOIN = 2.0
LAST_LINES = 12
PANIC_LINES = re.compile(r"(\[[ \d.]+\] *)?(---\[ end Kernel panic - not syncing|panic: )")
"""What kernels print last before they stop for good: Linux; xv6 and its relatives."""
PANIC_NS = 50_000_000
PANIC_LOOKS = 3
SILENT_STEPS = 1_000_000_000
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


class Session:
    """Runs `board` to its end, with the console at `terminal`."""

    def __init__(
        self,
        board: Virt,
        terminal: Terminal,
        keyboard: Input,
        output: Output,
        limits: Limits,
        *,
        asks: bool,
        as_json: bool,
        debugger: Debugger | None = None,
    ) -> None:
        self.board, self.terminal, self.keyboard, self.output = board, terminal, keyboard, output
        self.limits, self.as_json = limits, as_json
        self.watch = Watch(board, output, limits)
        self._until = None if limits.guest is None else int(limits.guest * 1e9)
        self._ending: Ending | None = None
        self._failure: BaseException | None = None
        self._over = False
        self._input_over = False
        self._early = b""
        self._asks = asks
        self._debugger = debugger
        self._fed = threading.Event()

    def run(self) -> int:
        """The exit status, after everything that is to be said was said."""
        started = time.monotonic()
        machine = threading.Thread(target=self._work, name="ringfence-machine", daemon=True)
        with self.terminal:
            # What is there already is the guest's at one and the same step each time.
            self._early = self.keyboard.waiting()
            if self._asks:
                self.output.when_ready = self._ready
            else:
                self._ready()
            machine.start()
            ending = self._serve(machine, started)
            self._over = True
            self.board.stop()
            self._fed.set()
            machine.join(JOIN)
        if self._failure is not None and not isinstance(self._failure, RingfenceError):
            report("\n".join(["ringfence: the machine's state when this happened", *self._where()]))
        if self._failure is not None:
            raise self._failure
        ending = self._ending or ending
        if self.output.error is not None and self._ending is not None:  # it was quicker than we
            ending = unwritable(self.output.error)
        self._tell(ending, time.monotonic() - started)
        if machine.is_alive():  # it cannot be waited for: nobody takes its output
            os._exit(ending.status)
        return ending.status

    # The main thread

    def _serve(self, machine: threading.Thread, started: float) -> Ending:
        """Input, signals and time, until there is a reason to end."""
        terminal, keyboard = self.terminal, self.keyboard
        tick = time.monotonic() + TICK
        while True:
            if self._ending is not None or self._failure is not None or not machine.is_alive():
                return self._ending or Ending(OURS, "failure")
            if terminal.signal is not None:
                return Ending(128 + terminal.signal, signal.Signals(terminal.signal).name)
            if keyboard.ended_by_user:
                if self.output.count:
                    report("")  # whatever comes next begins a line
                return Ending(0, "user")
            if self.output.error is not None:
                return unwritable(self.output.error)
            if keyboard.raw and not keyboard.open:  # a raw terminal's input ends only with the terminal
                return Ending(128 + signal.SIGHUP, "terminal-closed")
            now = time.monotonic()
            if self.limits.wall is not None and now - started >= self.limits.wall:
                return Ending(TIME_LIMIT, "wall-timeout", f"the time limit of {self.limits.wall:g} seconds is over")
            if now >= tick:
                tick = now + TICK
                self.board.stop()
            wanted = keyboard.open and not self._asks and len(self.board.uart.waiting) < READ_AHEAD
            wait = tick - now if self.limits.wall is None else min(tick - now, started + self.limits.wall - now)
            if terminal.wait(keyboard.fd if wanted else None, max(wait, 0)):
                self._give(keyboard.read())

    def _ready(self) -> None:
        if self._asks:
            self._asks = False
            self.watch.silence = self.limits.silence_asked
        self.board.uart.receive(self._early)
        self._input_over = not self.keyboard.open
        self.terminal.wake()

    def _give(self, data: bytes) -> None:
        if data:
            self.board.feed(partial(self.board.uart.receive, data))
        self._input_over = not self.keyboard.open
        self._fed.set()

    # The machine's thread

    def _work(self) -> None:
        try:
            self._ending = self._machine()
        except BaseException as error:
            self._failure = error
        finally:
            self.terminal.wake()

    def _machine(self) -> Ending | None:
        board, debugger = self.board, self._debugger
        while not self._over:
            input_over = self._input_over
            alone = debugger is None or not debugger.attached
            ends = (self._until, self.watch.silent_until() if alone else None)
            ended = (debugger or board).run(until=min((end for end in ends if end is not None), default=None))
            if isinstance(ended, PowerOff):
                status = min(ended.status, 255)
                return Ending(status, "power-off", "the guest says that it failed" if status == PANIC else "")
            if isinstance(ended, Deadline) and self._until is not None and board.clock.now() >= self._until:
                return Ending(TIME_LIMIT, "timeout", f"the time limit of {self.limits.guest:g} guest seconds is over")
            if debugger is not None and debugger.attached:  # whoever debugs a guest says when it is dead
                continue
            if verdict := self.watch.verdict():
                return verdict
            if isinstance(ended, Idle):
                if not board.uart.ier & IER_RDA:
                    return Ending(
                        PANIC, "halted", "the guest has halted: every hart waits, and nothing to come can wake one"
                    )
                if input_over:
                    return Ending(TIME_LIMIT, "input-over", "the guest waits for input, and there is no more")
                self._fed.wait(TICK if debugger is not None else None)
                self._fed.clear()
        return None

    # The end

    def _where(self) -> list[str]:
        from ringfence.cli.run import describe

        return [f"  {line}" for line in describe(self.board)]

    def _tell(self, ending: Ending, seconds: float) -> None:
        if self.as_json:
            report(json.dumps(self._facts(ending, seconds)))
            return
        if not ending.sentence:
            return
        lines = [f"ringfence: {ending.sentence}"]
        if ending.status == PANIC and (last := self.output.lines(LAST_LINES)):
            lines += ["the last lines of its console:", *(f"  {line}" for line in last)]
        if ending.status in (PANIC, TIME_LIMIT):
            lines += self._where()
        if self.terminal.raw and self.output.count:
            lines[0] = "\n" + lines[0]
        report("\n".join(lines))

    def _facts(self, ending: Ending, seconds: float) -> dict[str, object]:
        board = self.board
        return {
            "status": ending.status,
            "reason": ending.reason,
            "message": ending.sentence,
            "steps": board.steps,
            "guest_seconds": board.clock.now() / 1e9,
            "wall_seconds": round(seconds, 3),
            "console_bytes": self.output.count,
            "console_last": self.output.lines(LAST_LINES) if ending.status == PANIC else [],
            "harts": [
                {
                    "hart": h.number,
                    "pc": f"{h.pc:#x}",
                    "mode": "US?M"[h.priv],
                    "waiting": bool(h.waiting),
                    "stopped": bool(h.stopped),
                }
                for h in board.harts
            ],
        }


def unwritable(error: OSError) -> Ending:
    if error.errno == errno.EPIPE:
        discard_output()
        return Ending(PIPE, "output-closed")
    if error.errno == errno.EIO:
        return Ending(128 + signal.SIGHUP, "terminal-closed")
    return Ending(OURS, "output", f"the console's output cannot be written: {error.strerror}")
