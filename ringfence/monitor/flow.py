"""What a guest's hart does, and what is done for it, event by event: seen where the reference reads every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ringfence.errors import MachineError
from ringfence.isa import tlb
from ringfence.isa.paging import PPN, Access
from ringfence.isa.trap import Cause, Irq
from ringfence.machine.board import Virt
from ringfence.machine.engine.reference import Known, ReferenceEngine, Trap, value_of
from ringfence.machine.hart import Hart
from ringfence.machine.machine import Computer
from ringfence.monitor.technique.trap import Deprivileged
from ringfence.word import Word


class Transfer(NamedTuple):
    """A device's register was read or written."""

    device: str
    offset: int
    written: bool
    value: int


class Entry(NamedTuple):
    """The hart's software-filled TLB was given one."""

    page: int
    """Its number, of 4 KiB."""
    frame: int


class Event(NamedTuple):
    """An instruction of the guest's, executed or applied to its hart; or the exception or interrupt in its place.

    `by_monitor`: the monitor did it to the virtual hart. Before it comes the exception, by which the hart that was
    lent left for the monitor; that is no step of the guest's, and need not be its own exception.
    """

    steps: int
    """The machine's, before it."""
    priv: int
    """The guest's mode, before it."""
    pc: int
    bits: int
    """The instruction; 0 where none was fetched."""
    by_monitor: bool
    cause: Cause | Irq | None
    transfer: Transfer | None
    entry: Entry | None
    after: tuple[int, int]
    """The mode and pc to which it led."""


Take = Callable[[Event], None]


def watch(machine: Virt, take: Take) -> None:
    """From now on give `take` every event of the machine. Raises MachineError where not all of them can be seen."""
    engine, trapped = machine.engine, isinstance(machine.engine, Deprivileged)
    if isinstance(engine, Deprivileged):
        host = engine.host
        host.reference = _Lent(host, machine, take)
        engine = host.engine
    if not isinstance(engine, ReferenceEngine):
        raise MachineError("only what the reference engine runs can be watched, beneath one monitor that traps at most")
    machine.reference = _Watched(machine, take, trapped)


class _Watched(Known):
    """The reference, telling what it does to a machine's harts."""

    def __init__(self, machine: Virt, take: Take, by_monitor: bool) -> None:
        super().__init__(machine)
        self._take, self._by_monitor = take, by_monitor
        self._cause: Cause | Irq | None = None
        self._transfer: Transfer | None = None
        self._entry: Entry | None = None

    def step(self, hart: Hart) -> bool:
        place = self._computer.clock.steps, hart.priv, hart.pc
        self._bits, self._cause, self._transfer, self._entry = 0, None, None, None
        check = super().step(hart)
        self._tell(hart, place)
        return check

    def interrupt(self, hart: Hart) -> bool:
        place = self._computer.clock.steps, hart.priv, hart.pc
        self._bits, self._transfer, self._entry = 0, None, None
        taken = super().interrupt(hart)
        if taken:
            self._tell(hart, place)
        return taken

    def _tell(self, hart: Hart, place: tuple[int, int, int]) -> None:
        after = hart.priv, hart.pc
        self._take(Event(*place, self._bits, self._by_monitor, self._cause, self._transfer, self._entry, after))

    def _enter(self, cause: int, tval: int, interrupt: bool) -> None:
        super()._enter(cause, tval, interrupt)
        self._cause = (Irq if interrupt else Cause)(cause)

    def _translate(self, va: int, size: int, access: Access) -> int:
        self._pa = super()._translate(va, size, access)
        return self._pa

    def load(self, va: Word, bits: int) -> Word:
        value = super().load(va, bits)
        self._reach(False, value_of(value))
        return value

    def store(self, va: Word, value: Word) -> None:
        super().store(va, value)
        self._reach(True, value_of(value))

    def set_element(self, name: str, n: Word, value: Word) -> None:
        super().set_element(name, n, value)
        if name == "tlb_pte":
            page = value_of(self.element("tlb_tag", n)) & tlb.PAGE
            self._entry = Entry(page, value_of(value) >> 10 & PPN)

    def _reach(self, written: bool, value: int) -> None:
        for start, end, device in self._computer.bus.windows():
            if start <= self._pa < end:
                self._transfer = Transfer(type(device).__name__, self._pa - start, written, value)


class _Lent(Known):
    """The reference of the machine that lends a hart's user mode."""

    def __init__(self, host: Computer, machine: Virt, take: Take) -> None:
        super().__init__(host)
        self._machine, self._take = machine, take

    def attempt(self, hart: Hart) -> Trap | None:
        machine = self._machine
        priv, pc = machine.harts[machine.current].priv, hart.pc
        self._bits = 0
        caught = super().attempt(hart)
        cause = None if caught is None else Cause(caught.cause)
        self._take(Event(machine.clock.steps, priv, pc, self._bits, False, cause, None, None, (priv, hart.pc)))
        return caught
