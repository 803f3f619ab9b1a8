"""What gdb asks of a machine that stands, packet by packet ("Debugging with GDB", appendix "Remote Serial Protocol").

A hart is a thread: hart n is thread n + 1. Nothing that a packet holds is trusted; one that makes no sense is
answered with an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringfence.machine import gdb_monitor, gdb_target
from ringfence.machine.engine.layout import WATCHED_PAGES
from ringfence.machine.exit import Break
from ringfence.machine.gdb_packets import LONGEST
from ringfence.machine.look import Memory, VirtualMemory
from ringfence.machine.stops import Kind, Watch, pages

if TYPE_CHECKING:
    from ringfence.machine.hart import Hart
    from ringfence.machine.machine import Computer

SIGINT, SIGTRAP = 2, 5
MOST = LONGEST // 2 - 64
"""Bytes of memory in one packet."""
STOPS = 4096
"""The most breakpoints and watchpoints."""
BAD, NO_MEMORY, NO_ROOM = b"E01", b"E0e", b"E1c"
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")
_NAME = re.compile(rb"[qQv][A-Za-z.]*\??|.", re.DOTALL)
_WATCHES: dict[bytes, Kind] = {b"2": "write", b"3": "read", b"4": "access"}


class Refused(Exception):
    """A packet that is answered with this error."""

    def __init__(self, reply: bytes = BAD) -> None:
        self.reply = reply


@dataclass(frozen=True)
class Resume:
    """Go on: all harts, or these alone; until hart `step` has taken a step."""

    harts: frozenset[int] | None = None
    step: int | None = None


EVERYBODY = Resume()


def number(text: bytes) -> int:
    """A number of at most 64 bits in hexadecimal."""
    if not _HEX.fullmatch(text):
        raise Refused
    return int(text, 16)


def raw(text: bytes) -> bytes:
    """Bytes in hexadecimal."""
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise Refused from None


def halves(text: bytes, separator: bytes) -> tuple[bytes, bytes]:
    """What is before and behind the separator."""
    first, found, second = text.partition(separator)
    if not found:
        raise Refused
    return first, second


class Stub:
    """One gdb's view of the machine. `resume` and `ended` say what the last packet asked for beside its answer."""

    def __init__(self, computer: Computer) -> None:
        self.computer = computer
        self.resume: Resume | None = None
        self.ended: str | None = None  # detached, killed
        self.acknowledges = True
        self._physical = False
        self._selected = computer.current
        self._breakpoints: set[tuple[bytes, int]] = set()
        self._watchpoints: set[Watch] = set()
        self._stop = self._thread(SIGTRAP)

    def answer(self, packet: bytes) -> bytes | None:
        """The reply to a packet; None: there is none, or none yet."""
        found = _NAME.match(packet)
        command = COMMANDS.get(found[0]) if found else None
        if found is None or command is None:
            return b""
        try:
            return command(self, packet[found.end() :])
        except Refused as refused:
            return refused.reply

    def stopped(self, why: Break | int, went: Resume = EVERYBODY) -> bytes:
        """Tell where and why the machine stopped: at a break, or by a signal of this number. The hart that is named
        is one of those that went on.
        """
        current = self.computer.current
        self._selected = current if went.harts is None or current in went.harts else min(went.harts)
        if isinstance(why, Break):
            name = {None: b"", "write": b"watch", "read": b"rwatch", "access": b"awatch"}[why.watch]
            self._stop = self._thread(SIGTRAP) + (b"%s:%x;" % (name, why.va) if name else b"")
        else:
            self._stop = self._thread(why)
        return self._stop

    def clear(self) -> None:
        """Take away the breakpoints and watchpoints that came from here."""
        self.computer.breakpoints -= {va for _, va in self._breakpoints}
        self.computer.watchpoints -= self._watchpoints
        self._breakpoints.clear()
        self._watchpoints.clear()

    def _thread(self, signal: int) -> bytes:
        return b"T%02xthread:%x;" % (signal, self._selected + 1)

    @property
    def _hart(self) -> Hart:
        return self.computer.harts[self._selected]

    @property
    def _memory(self) -> Memory:
        return Memory(self.computer) if self._physical else VirtualMemory(self.computer, self._hart)

    def _hart_of(self, thread: bytes) -> int:
        n = number(thread)
        if not 1 <= n <= len(self.computer.harts):
            raise Refused
        return n - 1

    def _harts_of(self, thread: bytes) -> Iterable[int]:
        """Those that an action's thread means: all, any, or one."""
        if thread in (b"", b"-1"):
            return range(len(self.computer.harts))
        return [self._selected if thread == b"0" else self._hart_of(thread)]

    # Registers and memory

    def _read_all(self, rest: bytes) -> bytes:
        return b"".join(self._read(b"%x" % n) for n in range(gdb_target.CORE))

    def _write_all(self, rest: bytes) -> bytes:
        data = raw(rest)
        if len(data) % 8 or len(data) > 8 * gdb_target.CORE:
            raise Refused
        for n in range(len(data) // 8):
            gdb_target.write(self.computer, self._hart, n, int.from_bytes(data[8 * n : 8 * n + 8], "little"))
        return b"OK"

    def _read(self, rest: bytes) -> bytes:
        try:
            value = gdb_target.read(self.computer, self._hart, number(rest))
        except KeyError:
            raise Refused from None
        return value.to_bytes(8, "little").hex().encode()

    def _write(self, rest: bytes) -> bytes:
        name, value = halves(rest, b"=")
        data = raw(value)
        if len(data) != 8:
            raise Refused
        try:
            gdb_target.write(self.computer, self._hart, number(name), int.from_bytes(data, "little"))
        except KeyError:
            raise Refused from None
        return b"OK"

    def _read_memory(self, rest: bytes) -> bytes:
        address, length = (number(part) for part in halves(rest, b","))
        data = self._memory.read(address, min(length, MOST))
        if length and not data:
            raise Refused(NO_MEMORY)
        return data.hex().encode()

    def _store(self, where: bytes, data: bytes) -> bytes:
        address, length = (number(part) for part in halves(where, b","))
        if length != len(data):
            raise Refused
        if not self._memory.write(address, data):
            raise Refused(NO_MEMORY)
        return b"OK"

    def _write_memory(self, rest: bytes) -> bytes:
        where, data = halves(rest, b":")
        return self._store(where, raw(data))

    def _write_binary(self, rest: bytes) -> bytes:
        return self._store(*halves(rest, b":"))

    # Stops

    def _insert(self, rest: bytes) -> bytes:
        kind, address, length = self._stop_of(rest)
        computer = self.computer
        if len(self._breakpoints) + len(self._watchpoints) >= STOPS:
            raise Refused(NO_ROOM)
        if kind in b"01":
            self._breakpoints.add((kind, address))
            computer.breakpoints.add(address)
            return b"OK"
        watch = Watch(address, length, _WATCHES[kind])
        if not length or len(pages({*computer.watchpoints, watch})) > WATCHED_PAGES:
            raise Refused(NO_ROOM)
        self._watchpoints.add(watch)
        computer.watchpoints.add(watch)
        return b"OK"

    def _remove(self, rest: bytes) -> bytes:
        kind, address, length = self._stop_of(rest)
        if kind in b"01":
            self._breakpoints.discard((kind, address))
            if not any(va == address for _, va in self._breakpoints):
                self.computer.breakpoints.discard(address)
        else:
            watch = Watch(address, length, _WATCHES[kind])
            self._watchpoints.discard(watch)
            self.computer.watchpoints.discard(watch)
        return b"OK"

    def _stop_of(self, rest: bytes) -> tuple[bytes, int, int]:
        kind, place = halves(rest.partition(b";")[0], b",")
        address, length = halves(place, b",")
        if kind not in (b"0", b"1", *_WATCHES):
            raise Refused(b"")
        return kind, number(address), number(length)

    # Going on

    def _actions(self, rest: bytes) -> bytes | None:
        """vCont: the first action that names a hart is its own, and one that none names stands still. Harts go on
        together, so a step of one decides.
        """
        steps: dict[int, bool] = {}
        for action in rest[1:].split(b";"):
            what, _, thread = action.partition(b":")
            if what[:1] not in (b"c", b"C", b"s", b"S"):
                raise Refused
            for hart in self._harts_of(thread):
                steps.setdefault(hart, what[:1] in b"sS")
        stepping = [hart for hart, step in steps.items() if step]
        step = self._selected if self._selected in stepping else stepping[0] if stepping else None
        self.resume = Resume(frozenset(steps), step)
        return None

    def _continue(self, rest: bytes) -> None:
        if rest:
            self._hart.pc = number(rest) & ~1
        self.resume = EVERYBODY

    def _step(self, rest: bytes) -> None:
        self._continue(rest)
        self.resume = Resume(step=self._selected)

    def _with_signal(self, rest: bytes) -> None:
        self._continue(rest.partition(b";")[2])

    def _step_with_signal(self, rest: bytes) -> None:
        self._step(rest.partition(b";")[2])

    def _detach(self, rest: bytes) -> bytes:
        self.ended = "detached"
        return b"OK"

    def _kill(self, rest: bytes) -> bytes:
        self.ended = "killed"
        return b"OK"

    # Threads

    def _select(self, rest: bytes) -> bytes:
        if rest[1:] not in (b"0", b"-1"):
            self._selected = self._hart_of(rest[1:])
        return b"OK"

    def _alive(self, rest: bytes) -> bytes:
        self._hart_of(rest)
        return b"OK"

    def _threads(self, rest: bytes) -> bytes:
        return b"m" + b",".join(b"%x" % (hart.number + 1) for hart in self.computer.harts)

    def _about(self, rest: bytes) -> bytes:
        return gdb_monitor.describe(self.computer.harts[self._hart_of(rest[1:])]).encode().hex().encode()

    # Queries

    def _supported(self, rest: bytes) -> bytes:
        return b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+;vContSupported+" % LONGEST

    def _no_acknowledgements(self, rest: bytes) -> bytes:
        self.acknowledges = False
        return b"OK"

    def _transfer(self, rest: bytes) -> bytes:
        what, window = rest.rpartition(b":")[::2]
        if what == b":features:read:target.xml":
            document = gdb_target.description()
        elif what == b":threads:read:":
            lines = [
                f'<thread id="{h.number + 1:x}" core="{h.number}">{gdb_monitor.describe(h)}</thread>'
                for h in self.computer.harts
            ]
            document = "\n".join(["<threads>", *lines, "</threads>", ""]).encode()
        else:
            return b""
        offset, length = (number(part) for part in halves(window, b","))
        piece = document[offset : offset + min(length, MOST)]
        return (b"m" if offset + len(piece) < len(document) else b"l") + piece

    def _physical_mode(self, rest: bytes) -> bytes:
        self._physical = number(rest[1:]) != 0
        return b"OK"

    def _monitor(self, rest: bytes) -> bytes:
        text = gdb_monitor.answer(self._hart, self.computer, raw(rest[1:]).decode("utf-8", "replace"))
        return text.encode("utf-8", "replace")[:MOST].hex().encode()


COMMANDS: dict[bytes, Callable[[Stub, bytes], bytes | None]] = {
    b"?": lambda stub, rest: stub._stop,
    b"g": Stub._read_all,
    b"G": Stub._write_all,
    b"p": Stub._read,
    b"P": Stub._write,
    b"m": Stub._read_memory,
    b"M": Stub._write_memory,
    b"X": Stub._write_binary,
    b"Z": Stub._insert,
    b"z": Stub._remove,
    b"c": Stub._continue,
    b"s": Stub._step,
    b"C": Stub._with_signal,
    b"S": Stub._step_with_signal,
    b"D": Stub._detach,
    b"k": Stub._kill,
    b"H": Stub._select,
    b"T": Stub._alive,
    b"vCont": Stub._actions,
    b"vCont?": lambda stub, rest: b"vCont;c;C;s;S",
    b"vKill": Stub._kill,
    b"qSupported": Stub._supported,
    b"QStartNoAckMode": Stub._no_acknowledgements,
    b"qXfer": Stub._transfer,
    b"qC": lambda stub, rest: b"QC%x" % (stub.computer.current + 1),
    b"qAttached": lambda stub, rest: b"1",
    b"qfThreadInfo": Stub._threads,
    b"qsThreadInfo": lambda stub, rest: b"l",
    b"qThreadExtraInfo": Stub._about,
    b"Qqemu.PhyMemMode": Stub._physical_mode,
    b"qqemu.PhyMemMode": lambda stub, rest: b"%d" % stub._physical,
    b"qRcmd": Stub._monitor,
}
"""The reply to each packet, by what it begins with; the rest is given."""
