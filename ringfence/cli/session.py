"""Runs of guests from the command line: who runs, who watches, and how it ends.

Guests run in a thread of their own; the main thread has input, signals and the wall clock. A machine is looked into
only by its own thread, when it has stopped: the watch is asked then whether the guest is still alive.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ringfence.cli import OURS, PIPE, discard_output
from ringfence.cli.console import READ_AHEAD, Input, Output, Terminal, report
from ringfence.cli.watch import PANIC, TIME_LIMIT, Ending, Limits, Watch, describe
from ringfence.errors import RingfenceError
from ringfence.machine.device.uart16550 import IER_RDA
from ringfence.machine.exit import Deadline, Idle, PowerOff

if TYPE_CHECKING:
    from ringfence.machine.board import Virt
    from ringfence.machine.gdb import Debugger
    from ringfence.monitor.monitor import Monitor

TICK, AT_REST = 0.25, 1.0
"""Seconds between looks at a running machine, and at one that hardly runs."""
FEW = 1_000_000
"""Steps between two looks: it hardly runs."""
JOIN = 2.0
LAST_LINES = 12


class Session(ABC):
    """Runs what is on `machine` to its end, with the keyboard at `terminal`."""

    def __init__(
        self,
        machine: Virt | Monitor,
        terminal: Terminal,
        keyboard: Input,
        outputs: Sequence[Output],
        *,
        wall: float | None,
    ) -> None:
        """`wall`: the most seconds of real time."""
        self.machine, self.terminal, self.keyboard = machine, terminal, keyboard
        self.outputs, self.wall = outputs, wall
        self.over = False
        self.input_over = False
        """The end of input has come, and all that was before it is the guests'."""
        self.fed = threading.Event()
        """For the machine's thread, where it waits: there is something new."""
        self._ending: Ending | None = None
        self._failure: BaseException | None = None

    @property
    @abstractmethod
    def listener(self) -> Virt | None:
        """Whose input the keyboard's is; None: nobody takes any yet."""

    @abstractmethod
    def begin(self) -> None:
        """What is done before the machine runs, with the terminal set up."""

    @abstractmethod
    def work(self) -> Ending | None:
        """Run, in the machine's thread, until there is a reason to end or it is `over`."""

    @abstractmethod
    def where(self) -> list[str]:
        """Where the harts stand: lines."""

    @abstractmethod
    def tell(self, ending: Ending, seconds: float) -> None:
        """Say why it has ended, after so long in real time; the terminal is as it was."""

    def run(self) -> int:
        """The exit status, after everything that is to be said was said."""
        started = time.monotonic()
        thread = threading.Thread(target=self._work, name="ringfence-machine", daemon=True)
        with self.terminal:
            self.begin()
            thread.start()
            ending = self._serve(thread, started)
            self.over = True
            self.machine.stop()
            self.fed.set()
            thread.join(JOIN)
        if self._failure is not None:
            if not isinstance(self._failure, RingfenceError):
                report("\n".join(["ringfence: the machine's state when this happened", *self.where()]))
            raise self._failure
        if self._ending is not None:  # it was quicker than we
            ending = self._unwritable() or self._ending
        self.tell(ending, time.monotonic() - started)
        if thread.is_alive():  # it cannot be waited for: nobody takes its output
            os._exit(ending.status)
        return ending.status

    def steps(self) -> int:
        """That the machine, or the one that the monitor has, has taken."""
        from ringfence.monitor.monitor import Monitor

        machine = self.machine
        return (machine.machine if isinstance(machine, Monitor) else machine).steps

    def give(self, data: bytes) -> None:
        """What was typed is the listener's."""
        if data and (listener := self.listener) is not None:
            listener.feed(partial(listener.uart.receive, data))
        self.input_over = not self.keyboard.open
        self.fed.set()

    def _serve(self, thread: threading.Thread, started: float) -> Ending:
        """Input, signals and time, in the main thread, until there is a reason to end."""
        terminal, keyboard = self.terminal, self.keyboard
        tick, steps = time.monotonic() + TICK, 0
        while True:
            if self._ending is not None or self._failure is not None or not thread.is_alive():
                return self._ending or Ending(OURS, "failure")
            if terminal.signal is not None:
                return Ending(128 + terminal.signal, signal.Signals(terminal.signal).name)
            if keyboard.ended_by_user:
                return Ending(0, "user")
            if ending := self._unwritable():
                return ending
            if keyboard.raw and not keyboard.open:  # a raw terminal's input ends only with the terminal
                return Ending(128 + signal.SIGHUP, "terminal-closed")
            now = time.monotonic()
            if self.wall is not None and now - started >= self.wall:
                return Ending(TIME_LIMIT, "wall-timeout", f"the time limit of {self.wall:g} seconds is over")
            if now >= tick:
                before, steps = steps, self.steps()
                tick = now + (AT_REST if steps - before < FEW else TICK)
                self.machine.stop()
            listener = self.listener
            wanted = keyboard.open and listener is not None and len(listener.uart.owner.waiting) < READ_AHEAD
            wait = tick - now if self.wall is None else min(tick - now, started + self.wall - now)
            if terminal.wait(keyboard.fd if wanted else None, max(wait, 0)):
                self.give(keyboard.read())

    def _unwritable(self) -> Ending | None:
        error = next((output.error for output in self.outputs if output.error is not None), None)
        if error is None:
            return None
        if error.errno == errno.EPIPE:
            discard_output()
            return Ending(PIPE, "output-closed")
        if error.errno == errno.EIO:
            return Ending(128 + signal.SIGHUP, "terminal-closed")
        return Ending(OURS, "output", f"the console's output cannot be written: {error.strerror}")

    def _work(self) -> None:
        try:
            self._ending = self.work()
        except BaseException as error:
            self._failure = error
        finally:
            self.terminal.wake()


class Alone(Session):
    """One guest, `board`, with the terminal as its console."""

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
        super().__init__(board, terminal, keyboard, [output], wall=limits.wall)
        self.board, self.output, self.limits, self.as_json = board, output, limits, as_json
        self.watch = Watch(board, output, limits)
        self._until = None if limits.guest is None else int(limits.guest * 1e9)
        self._early = b""
        self._asks = asks
        self._debugger = debugger

    @property
    def listener(self) -> Virt | None:
        return None if self._asks else self.board

    def begin(self) -> None:
        # What is there already is the guest's at one and the same step each time.
        self._early = self.keyboard.waiting()
        if self._asks:
            self.output.when_ready = self._ready
        else:
            self._ready()

    def _ready(self) -> None:
        if self._asks:
            self._asks = False
            self.watch.silence = self.limits.silence_asked
        self.board.uart.receive(self._early)
        self.input_over = not self.keyboard.open
        self.terminal.wake()

    def work(self) -> Ending | None:
        board, debugger = self.board, self._debugger
        while not self.over:
            input_over = self.input_over
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
                if not board.uart.owner.ier & IER_RDA:
                    return Ending(
                        PANIC, "halted", "the guest has halted: every hart waits, and nothing to come can wake one"
                    )
                if input_over:
                    return Ending(TIME_LIMIT, "input-over", "the guest waits for input, and there is no more")
                self.fed.wait(TICK if debugger is not None else None)
                self.fed.clear()
        return None

    def where(self) -> list[str]:
        return describe(self.board)

    def tell(self, ending: Ending, seconds: float) -> None:
        if ending.reason == "user" and self.output.count:
            report("")  # whatever comes next begins a line
        if self.as_json:
            report(json.dumps(self._facts(ending, seconds)))
            return
        if not ending.sentence:
            return
        lines = [f"ringfence: {ending.sentence}"]
        if ending.status == PANIC and (last := self.output.lines(LAST_LINES)):
            lines += ["the last lines of its console:", *(f"  {line}" for line in last)]
        if ending.status in (PANIC, TIME_LIMIT):
            lines += self.where()
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
