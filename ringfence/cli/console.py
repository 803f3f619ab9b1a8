"""The guest's console on the user's terminal, or on whatever standard input and output are.

On a terminal it is raw: every key is the guest's, but for Ctrl-a. Otherwise bytes stream. The machine runs in a
thread of its own; here, in the main thread, are input, signals and time, so that these are served whatever the guest
does.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

ESCAPE = 0x01
HELP = (
    "\r\nCtrl-a x       ends the machine\r\nCtrl-a h       shows this\r\nCtrl-a Ctrl-a  sends Ctrl-a to the guest\r\n"
)
HELP_NEXT = "Ctrl-a n       shows the next guest's console\r\nCtrl-a l       lists the guests\r\n"
END_OF_FILE = b"\x04"
"""What a person types at the end of input."""
READY = b"\x05"
"""ENQ, with which a guest that was told so asks for its input."""
ENDS = 32
QUOTE = 0x16
"""Ctrl-v: what a terminal line takes the next byte behind literally."""
LINE = 2048
"""A terminal line holds 4095 bytes of a line that has not ended; END_OF_FILE hands on what there is."""
CHUNK = 4096
READ_AHEAD = 1 << 16
"""Bytes that wait for the guest before no more are read."""
AT_ONCE = 1 << 20
"""The most that is read before the machine starts."""
TAIL = 8192

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Output:
    """Where the UART's bytes go: to a file descriptor at once. The last of them are kept for reports.

    With `when_ready` set, the first READY is no output, and calls it.
    """

    def __init__(self, fd: int, closed: Callable[[], None]) -> None:
        self.fd = fd
        self.count = 0
        self.when_ready: Callable[[], None] | None = None
        self.error: OSError | None = None
        self._closed = closed
        self._tail = bytearray()

    def write(self, data: bytes) -> None:
        if self.when_ready is not None and READY in data:
            ready, self.when_ready = self.when_ready, None
            data = data.replace(READY, b"", 1)
            ready()
        self.note(data)
        self.put(data)

    def note(self, data: bytes) -> None:
        """Keep what is written for reports."""
        self.count += len(data)
        self._tail += data
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]

    def put(self, data: bytes) -> None:
        """Write to the file descriptor. An `error` is for the main thread to see to."""
        if self.error is not None:
            return
        try:
            while data:
                try:
                    data = data[os.write(self.fd, data) :]
                except BlockingIOError:  # whoever has the other end made it so
                    select.select([], [self.fd], [])
        except OSError as error:
            self.error = error
            self._closed()

    def lines(self, count: int) -> list[str]:
        """The last lines, without control sequences' bytes."""
        text = bytes(self._tail[-TAIL:]).decode("utf-8", "replace").replace("\r", "")
        shown = ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in text.split("\n")]
        return [line for line in shown if line][-count:]


class Input:
    """Standard input. With `raw`, Ctrl-a is the user's own key; with `literal`, the guest's terminal line shall take
    every byte as it is."""

    def __init__(
        self,
        fd: int,
        *,
        raw: bool,
        at_end: bytes,
        literal: bool = False,
        on_next: Callable[[bytes], None] | None = None,
        on_list: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_next`: what Ctrl-a n does, with the keys that came before it. `on_list`: what Ctrl-a l does."""
        self.fd, self.raw, self.literal, self.on_next, self.on_list = fd, raw, literal, on_next, on_list
        self.open = True
        self.ended_by_user = False
        self._at_end = at_end
        self._escaped = False
        self._line = 0  # bytes since the last line ended, as far as the guest's terminal line knows

    def read(self) -> bytes:
        """What has come, for the guest. At the end of input that is what a person would type there."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return b""
        except OSError:  # the terminal is gone, or standard input was never open
            data = b""
        if not data:
            self.open = False
            # On a line that has begun, the first only hands that over. Others are for whoever reads after that.
            return self._at_end * (ENDS if self.literal else 2 if self._line else 1)
        if self.literal:
            return self._quoted(data)
        self._line = data[-1] not in b"\r\n"
        return self._keys(data) if self.raw else data

    def waiting(self) -> bytes:
        """Everything that is there already, so that it is the guest's from its first step."""
        data = b""
        while self.open and len(data) < AT_ONCE and _readable(self.fd):
            data += self.read()
        return data

    def _quoted(self, data: bytes) -> bytes:
        passed = bytearray()
        for byte in data:
            if byte == 0x0A:
                self._line = 0
            else:
                if self._line == LINE:
                    passed += END_OF_FILE
                    self._line = 0
                self._line += 1
                if byte < 0x20 or byte == 0x7F:
                    passed.append(QUOTE)
            passed.append(byte)
        return bytes(passed)

    def _keys(self, data: bytes) -> bytes:
        passed = bytearray()
        for key in data:
            if self._escaped:
                self._escaped = False
                if key == ESCAPE:
                    passed.append(key)
                elif key in b"xX":
                    self.ended_by_user = True
                elif key in b"nN" and self.on_next is not None:
                    self.on_next(bytes(passed))
                    passed.clear()
                elif key in b"lL":
                    self.on_list()
                elif key in b"hH?":
                    os.write(2, (HELP + (HELP_NEXT if self.on_next is not None else "")).encode())
            elif key == ESCAPE:
                self._escaped = True
            else:
                passed.append(key)
        return bytes(passed)


def _readable(fd: int) -> bool:
    try:
        return bool(select.select([fd], [], [], 0)[0])
    except (OSError, ValueError):
        return True


class Terminal:
    """Raw mode of a terminal, as a context; and the signals that end or suspend us, which leave it as it was.

    Output keeps its processing, so that a guest's bare line feed returns too. `signal` is the one that came.
    """

    def __init__(self, fd: int, *, raw: bool) -> None:
        self.fd, self.raw = fd, raw
        self.signal: int | None = None
        self._saved: list[int | list[bytes | int]] | None = None
        self._handlers: dict[int, object] = {}
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        for number in (*ENDING, signal.SIGTSTP, signal.SIGCONT):
            handler = (
                self._suspend if number == signal.SIGTSTP else self._resume if number == signal.SIGCONT else self._end
            )
            if number not in ENDING and not self.raw:
                continue
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup, or a job in the background
            self._handlers[number] = signal.signal(number, handler)
        self._set_raw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def wake(self) -> None:
        """Make `wait` return; from any thread or signal handler."""
        try:
            os.write(self._write_end, b"\0")
        except OSError:  # full: it will wake anyway
            pass

    def wait(self, fd: int | None, seconds: float) -> bool:
        """Until `wake`, or for so long; True as soon as `fd` can be read."""
        try:
            ready = select.select([self._read_end] if fd is None else [self._read_end, fd], [], [], seconds)[0]
        except (OSError, ValueError):  # a descriptor that was never open
            return fd is not None
        if self._read_end in ready:
            os.read(self._read_end, CHUNK)
        return fd is not None and fd in ready

    def restore(self) -> None:
        """The terminal as it was found."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            try:
                termios.tcsetattr(self.fd, termios.TCSADRAIN, saved)
            except termios.error:  # it is gone
                pass

    def _set_raw(self) -> None:
        if not self.raw:
            return
        try:
            saved = termios.tcgetattr(self.fd)
            mode = termios.tcgetattr(self.fd)
            mode[0] &= ~(
                termios.BRKINT
                | termios.ICRNL
                | termios.INLCR
                | termios.IGNCR
                | termios.INPCK
                | termios.ISTRIP
                | termios.IXON
            )
            mode[2] |= termios.CS8
            mode[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self.fd, termios.TCSANOW, mode)
            self._saved = saved
        except termios.error:
            pass

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.wake()

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def _resume(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTSTP, self._suspend)
        # Whoever stopped us may have changed it, and has it as its own now.
        self.restore()
        self._set_raw()


def is_terminal() -> bool:
    """Whether a person sits at both standard input and output."""
    return os.isatty(0) and os.isatty(1)


def report(text: str) -> None:
    """A line or more of our own, on standard error."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        pass
