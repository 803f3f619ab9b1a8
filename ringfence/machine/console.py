"""A machine's console in a program's hands: what the guest printed, what to type, and running until a match."""

from __future__ import annotations

import codecs
import re
import threading
from functools import partial
from typing import TYPE_CHECKING

from ringfence.errors import ConsoleError, MachineError
from ringfence.machine.digest import Transcript
from ringfence.machine.exit import Break, Deadline, Exit, Idle, PowerOff

if TYPE_CHECKING:
    from ringfence.machine.board import Virt
    from ringfence.machine.device.uart16550 import ConsoleOut

KEPT = 1 << 20
"""Bytes of output that are kept, at least."""
UNMATCHED = 1 << 16
"""Characters without a match that are kept for one, at least."""
WINDOW = 4096
"""A match reaches at most so many characters back from the one that completes it."""
LAST_LINES = 12
LONGEST = 1e9
"""Seconds."""


class Console:
    """Takes what the UART sends; hands it on to `out`, if there is one, and keeps the last of it."""

    def __init__(self, out: ConsoleOut | None = None) -> None:
        self._out = out
        self._board: Virt | None = None
        self.transcript = Transcript()
        self._kept = bytearray()
        self._fresh = bytearray()  # not looked at by `expect` or `read` yet
        self._text = ""  # looked at, but not matched
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._wanted: re.Pattern[str] | None = None
        self._found: re.Match[str] | None = None
        self._calls = 0  # of `expect`
        self._late = False

    def connect(self, board: Virt) -> None:
        """The machine that is stopped where a match is complete."""
        self._board = board

    def write(self, data: bytes) -> None:
        if self._out is not None:
            self._out.write(data)
        self.transcript.update(data)
        for kept in (self._kept, self._fresh):
            kept += data
            if len(kept) > 2 * KEPT:
                del kept[:-KEPT]
        if self._wanted is None:
            return
        before = self._take()
        if len(self._text) > before:
            self._search(before - WINDOW)
        if self._found is not None:
            assert self._board is not None
            self._board.pause()

    @property
    def text(self) -> str:
        """Everything that the guest printed, or the last of it."""
        return self._kept.decode("utf-8", "replace")

    def lines(self, count: int = LAST_LINES) -> list[str]:
        """The last lines, without what a terminal would not show."""
        text = self._kept[-WINDOW * 4 :].decode("utf-8", "replace").replace("\r", "")
        shown = ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in text.split("\n")]
        return [line for line in shown if line][-count:]

    def read(self) -> str:
        """What neither this nor a match of `expect` has returned yet."""
        self._take()
        text, self._text = self._text, ""
        return text

    def send(self, text: str | bytes) -> None:
        """Type. The guest gets it from the next check point on, behind what it has not read yet."""
        assert self._board is not None
        data = text.encode() if isinstance(text, str) else text
        self._board.feed(partial(self._board.uart.receive, data))

    def expect(
        self, pattern: str | re.Pattern[str], timeout: float = 60.0, *, wall_timeout: float = 600.0
    ) -> re.Match[str]:
        """Run until the guest has printed a match, or find one that is there; what is behind it is for the next call.

        The machine stops behind the instruction that sends the byte which completes the match. `timeout` is in
        seconds of the machine's own clock; `wall_timeout`, in seconds of real time, is for a guest that hardly gets
        on. Raises `ConsoleError` where either or the run is over without a match.
        """
        board = self._board
        assert board is not None
        if not (0 <= timeout <= LONGEST and 0 <= wall_timeout <= LONGEST):
            raise MachineError(f"expect waits for 0 to {LONGEST:g} seconds")
        self._wanted, self._found, self._late = re.compile(pattern), None, False
        self._calls += 1
        deadline = board.clock.now() + int(timeout * 1e9)
        alarm = threading.Timer(wall_timeout, board.feed, [partial(self._expire, self._calls)])
        try:
            self._take()
            self._search(0)
            if self._found is None:
                alarm.start()
                end = board.run(until=deadline)
            if self._found is None:
                limit = f"{wall_timeout:g} seconds of real time" if self._late else f"{timeout:g} seconds of guest time"
                raise ConsoleError(self._unseen(pattern, end, limit))
            return self._found
        finally:
            alarm.cancel()
            self._wanted = self._found = None

    def _expire(self, call: int) -> None:
        """The real time of that call is over; delivered at a check point, perhaps of a later one."""
        if call == self._calls and self._wanted is not None:
            assert self._board is not None
            self._late = True
            self._board.pause()

    def _take(self) -> int:
        """Decode what is fresh; how many characters there were before."""
        if len(self._text) > 2 * UNMATCHED:
            self._text = self._text[-UNMATCHED:]
        before = len(self._text)
        self._text += self._decoder.decode(bytes(self._fresh))
        self._fresh.clear()
        return before

    def _search(self, start: int) -> None:
        assert self._wanted is not None
        self._found = self._wanted.search(self._text, max(start, 0))
        if self._found is not None:
            self._wanted = None
            self._text = self._text[self._found.end() :]

    def _unseen(self, pattern: str | re.Pattern[str], end: Exit, limit: str) -> str:
        wanted = pattern if isinstance(pattern, str) else pattern.pattern
        why = {
            Deadline: f"within {limit}",
            Idle: "before it waited for input for good",
            PowerOff: f"before it was switched off with status {getattr(end, 'status', 0)}",
            Break: f"before it stopped at {getattr(end, 'va', 0):#x}",
        }.get(type(end), f"within {limit}" if self._late else "before it was stopped")
        last = self.lines()
        shown = (
            "; its last lines are:\n" + "\n".join(f"  {line}" for line in last) if last else "; it has printed nothing"
        )
        return f"the guest did not print {wanted!r} {why}{shown}"

    def __repr__(self) -> str:
        return "\n".join(["<console>", *(f"  {line}" for line in self.lines())])
