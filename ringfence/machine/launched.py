"""A machine that was launched by an instruction of another's (machine.virtualizer), and its memory, by an f that a
guest has written.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ringfence.machine.board import Virt
from ringfence.machine.console import Console
from ringfence.machine.exit import Budget, Exit, Stopped
from ringfence.machine.map import SUPERPAGE, F, GuestRam
from ringfence.machine.memory import EXECUTE, FRAME, READ, WRITE, Ram

if TYPE_CHECKING:
    from ringfence.machine.virtualizer import Cause


class VmFault(Exception):
    """f has no answer; `right` 0: it leads outside memory. Raised before anything of the access is done."""

    def __init__(self, memory: LaunchedRam, at: int, right: int) -> None:
        self.memory, self.at, self.right = memory, at, right


class _Map(F):
    """An f that a guest has written: it may say anything."""

    memory: LaunchedRam

    def __init__(self, host: Ram, size: int, root: int) -> None:
        super().__init__(host, size, root, _no_table, _no_table)

    def inside(self, to: int, size: int) -> int:
        if not 0 <= to <= self.host.size - size:
            raise VmFault(self.memory, self.host.base + to, 0)
        return to

    def _entries(self, table: int) -> array[int]:
        """Who only looks finds nothing outside memory."""
        return super()._entries(table) if 0 <= table <= self.host.size - FRAME else array("Q", bytes(FRAME))

    def tables(self, at: int) -> list[tuple[int, int, int]]:
        """(offset in the host, first offset that it maps, how many bytes) of each table on the way of `at`."""
        found = [((self.root + (at >> 30 << 3)) & -FRAME, at >> 39 << 39, 1 << 39)]
        middle = self._child(self.root + (at >> 30 << 3))
        if middle is not None:
            found.append((middle, at >> 30 << 30, 1 << 30))
            lower = self._child(middle + (at >> 21 & 511) * 8)
            if lower is not None:
                found.append((lower, at >> 21 << 21, 1 << 21))
        return found


class LaunchedRam(GuestRam):
    """The memory of a machine that was launched. A change of f is seen at the next access."""

    f: _Map

    def __init__(self, base: int, size: int, host: Ram, root: int) -> None:
        def fault(at: int, right: int) -> None:
            raise VmFault(self, at, right)

        f = _Map(host, size, root)
        super().__init__(base, size, f, fault, lambda: None)
        f.memory = self
        self._watched: dict[tuple[int, int], tuple[int, Callable[[], None]]] = {}
        """By offset of a table of f in the host's memory, and the first that it maps in this: its frame in the bare
        machine's, and what is called where it changes. A table may serve in several places.
        """
        self._any = False
        """Something is composed, here or above."""
        if isinstance(host, GuestRam):
            host.residents.append(self)

    def _compose(self, at: int, right: int) -> int:
        while True:
            before, self._any = self.derived.moves, True
            entry = super()._compose(at, right)
            for table, first, length in self.f.tables(at):
                if (table, first) not in self._watched:
                    self._watch(table, first, length)
            if self.derived.moves == before:  # else what was found may have been taken, to find the rest
                return entry

    def _watch(self, table: int, first: int, length: int) -> None:
        def changes() -> None:
            if length > SUPERPAGE:  # it leads to tables that may be none from now on
                self._forget_all()
                return
            self._watched.pop((table, first), None)
            self._forget((first, min(length, self.size - first)))
            self.derived.moved()

        frame = self.host.place(table) // FRAME
        self._watched[table, first] = frame, changes
        self.derived.watch(frame, changes)

    def blank(self, at: int) -> bool:
        return False  # that there is no answer is its monitor's to know

    def look(self, at: int) -> bytes:
        for right in (READ, WRITE, EXECUTE):
            with suppress(VmFault):
                return os.pread(self.fd, FRAME, self.place(at, right))
        return bytes(FRAME)

    def tables(self) -> Iterator[int]:
        return (table for table, _ in self._watched)

    def moved(self, at: int, length: int) -> None:
        if any(at <= table < at + length for table, _ in self._watched):
            self._forget_all()

    def lying(self, frames: bytearray) -> Iterator[tuple[int, int]]:
        yield 0, self.size

    def _forget(self, *changed: tuple[int, int]) -> None:
        if not self._any:
            return
        if changed == ((0, self.size),):  # the tables too may lie elsewhere
            for frame, changes in self._watched.values():
                self.derived.unwatch(frame, changes)
            self._watched.clear()
            self._any = False
        super()._forget(*changed)

    def _forget_all(self) -> None:
        self._forget((0, self.size))
        self.derived.moved()

    def clear(self) -> None:
        """It is the launching machine's, which clears it or not."""

    def leave(self) -> None:
        self._forget_all()
        super().leave()
        if isinstance(self.host, GuestRam):
            self.host.residents.remove(self)


def _no_table(at: int = 0) -> Any:
    raise AssertionError("its monitor writes it")


class Launched(Virt):
    """A virtual machine that was launched by an instruction of `host`."""

    host: Virt
    ram: LaunchedRam
    flags: int
    hart: int | None
    """The host's hart that runs it."""
    budget_end: int
    """Its step to run to."""
    idle_end: int
    """What its clock's idle time may come to."""
    left: tuple[Cause, int, int] | None = None
    """Why it is to be left, with address and detail, until its control block says so."""
    called = False
    """The host has something to see to."""

    def _asked(self) -> Exit | None:
        if self.reset_wanted:
            self.wanted = True  # it stays so until it is started again
            return Stopped(self.steps)
        ended = super()._asked()
        if ended is None and (self.called or self.host.wanted):
            return Budget(self.steps)
        return ended

    def ran(self, steps: int) -> None:
        self.host.clock.steps += steps  # in the middle of a run of its own, which tells those beneath of them

    def check_program(self) -> None:
        pass


class Terminal(Console):
    """The console of a machine that was launched: what it prints goes to its host's too, while that is its own."""

    def __init__(self, host: Virt) -> None:
        super().__init__()
        self._host = host
        self.given = False

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.given:
            self._host.console.write(data)
            if self._host.wanted:  # somebody there waited for it
                assert self._board is not None
                self._board.wanted = True
