"""Trap and emulate where software fills the TLB: the monitor fills that of the lent hart (Disco; Bugnion et al. 1997).

The guest's TLB is its virtual hart's state. Where the guest installs an entry, which traps, its frame is replaced by
the machine's in the entry that the lent hart gets, and the pair remembered: a second-level software TLB, larger than
the hardware's, which all modes of the guest share. It answers misses of the real TLB that the guest's own would not
have had. One that it would have had is the guest's, to the step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringfence.isa.paging import ACCESSED, DIRTY, USER, Access, R, V, W
from ringfence.isa.trap import Cause, M, Status
from ringfence.machine.engine.reference import Trap
from ringfence.machine.hart import Hart
from ringfence.machine.launch import Trapped
from ringfence.machine.map import GuestRam
from ringfence.machine.memory import FRAME, Ram
from ringfence.monitor.technique.rings import RINGS, Rings, both, flat, mode_of, rights_of
from ringfence.monitor.technique.trap import PAGE, PTE, RIGHT, SHADOW_MODE, Deprivileged

if TYPE_CHECKING:
    from ringfence.machine.clock import Clock
    from ringfence.machine.machine import Computer, Engine

_LEAF = V | ACCESSED | DIRTY
ASIDS = 1 << 16
"""Of a hart."""
ANY = Access.LOAD, Access.FETCH, Access.STORE
UNTRANSLATED = -1
"""In place of the ASID of a guest's address space."""
Space = tuple[int, tuple[int, int], int]
"""Protection, the guest's mode and its address space: what an address space of a lent hart is for."""


class SecondLevel:
    """At most `size` entries for each hart that is lent; 0: switched off. The counts are of misses of the real TLBs,
    but for the first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.installed = 0
        """Pairs that were composed where the guest installed its entry."""
        self.answered = 0
        """By an entry here."""
        self.composed = 0
        """By the guest's own entry and f."""
        self.reflected = 0
        """The guest's own misses."""


class TrapAndRefill(Deprivileged):
    """An engine for a virtual machine on a host whose harts do not walk."""

    def __init__(
        self,
        computer: Computer,
        ram: GuestRam,
        host: Computer,
        second: SecondLevel,
        rings: Rings = RINGS["U"],
        vm_bit: bool = False,
    ) -> None:
        self.second = second
        self.traced: tuple[int, ...] = ()
        self._entries: defaultdict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        """By lent hart: of an ASID and the number of a page, what the real entry is."""
        self._changed: dict[int, tuple[int, int]] = {}
        """By virtual hart: the page whose entry has changed, and satp then."""
        self._asids: dict[Space, int] = {}
        ram.shadows = self
        super().__init__(computer, ram, host, rings, vm_bit)

    # What follows from f (map.Follower)

    def written(self, at: int, length: int) -> None:
        pass

    def forget(self, frames: Sequence[int]) -> None:
        if frames:
            self.drop()

    def drop(self) -> None:
        for number, real in enumerate(self._real):
            self._empty(number, real)

    # machine.Engine

    def virtualize(self, computer: Computer, ram: Ram) -> Engine:
        assert isinstance(ram, GuestRam)
        second = SecondLevel(self.second.size)
        return TrapAndRefill(computer, ram, self._host, second, self.rings, self.vm_bit)

    def retranslate(self, hart: Hart, page: int | None) -> None:
        """The guest's TLB is about to change: what was filled by it goes."""
        real, entries = self._real[hart.number], self._entries[hart.number]
        if page is not None:  # of two in one row the second is what it writes
            self._changed[hart.number] = page, hart.satp
        others = {asid for (_, _, space), asid in self._asids.items() if space == UNTRANSLATED}
        if page is None:
            self._entries[hart.number] = {key: pte for key, pte in entries.items() if key[0] in others}
        else:
            for asid in set(self._asids.values()) - others:
                entries.pop((asid, page >> 12), None)
        real.empty_tlb(page, keep=others)
        self._host.engine.retranslate(real, page)

    # Direct execution

    def _go(self, hart: Hart, clock: Clock, offset: int, deadline: int) -> Trapped | None:
        if hart.number in self._changed:
            self._follow(hart, *self._changed.pop(hart.number))
        return super()._go(hart, clock, offset, deadline)

    def _follow(self, hart: Hart, page: int, satp: int) -> None:
        """The guest has changed its entry for a page: the real one follows, in the mode that the guest is in there; for
        a handler, which runs untranslated, that to which it returns.
        """
        kept = hart.satp, hart.priv, hart.mstatus
        try:
            if satp >> 60 == 0:
                status = hart.stlbstatus
                satp, hart.priv = satp | status & 15 << 60, status >> Status.SPP & 1
            hart.satp = satp
            hart.mstatus &= ~(1 << Status.MPRV)
            self._real[hart.number].satp, _ = self._root(hart)
            there = mode_of(hart, self.rings) is not None and self._computer.reference.entry(hart, page) is not None
            self.second.installed += there and self._install(hart, page, ANY)
        finally:
            hart.satp, hart.priv, hart.mstatus = kept

    def _empty(self, number: int, real: Hart) -> None:
        self._entries[number].clear()
        real.empty_tlb()
        self._host.engine.retranslate(real, None)

    def _drop(self) -> None:
        self.drop()
        self._asids.clear()
        self._forget_spaces()

    def _root(self, hart: Hart) -> tuple[int, int]:
        """Each of the guest's spaces has an ASID of its own."""
        satp, mode = hart.satp, mode_of(hart, self.rings)
        number, space = (SHADOW_MODE, UNTRANSLATED) if mode is None else (satp >> 60, satp >> 44 & 0xFFFF)
        untranslated = hart.priv == M, flat(hart, self.rings)
        key = self._protected[hart], untranslated if mode is None else (number, mode), space
        if key not in self._asids and len(self._asids) == ASIDS:
            self._drop()
        return number << 60 | self._asids.setdefault(key, len(self._asids)) << 44, 0

    def _answer(self, hart: Hart, trapped: Trapped) -> bool:
        real, va = self._real[hart.number], trapped.tval
        if trapped.cause != Cause.TLB_REFILL:
            answered = trapped.cause in PAGE and self._install(hart, va, (PAGE[Cause(trapped.cause)],))
            self.second.composed += answered
        elif pte := self._entries[hart.number].get((real.satp >> 44 & 0xFFFF, va >> 12)):
            self._host.reference.fill(real, va, pte)
            self.second.answered += 1
            answered = True
        else:
            answered = self._install(hart, va, ANY)
            self.second.composed += answered
        self.filled += answered
        return answered

    def _install(self, hart: Hart, va: int, accesses: tuple[Access, ...]) -> bool:
        """An entry for the page, if the guest has one that grants one of these. False: the access is the monitor's."""
        ram, reference = self._ram, self._computer.reference
        for access in accesses:
            try:
                pa, _, machine = reference.walk(hart, va, access)
                break
            except Trap as caught:
                if caught.cause == Cause.TLB_REFILL:
                    self.second.reflected += 1
                    return False
        else:
            return False
        at = pa - ram.base & -FRAME
        if not 0 <= at < ram.size:
            return False
        ram.place(at, RIGHT[access])
        mode, rights = mode_of(hart, self.rings), flat(hart, self.rings)
        if mode is not None:
            entry = reference.entry(hart, va)
            if entry is None:  # what the monitor above has filled is gone with the place that it was for
                return False
            rights = rights_of(entry, mode)
        granted = reference.permission(hart, ram.base + at, FRAME, machine)
        found = self._lies(at)
        assert found is not None
        to, given, _ = found
        rights &= both(granted, given) | USER
        if not rights & R:
            rights &= ~W
        if not rights & PTE[access]:
            return False
        self._owners[to, FRAME] = at
        real, pte = self._real[hart.number], (self._host.ram.base + to) // FRAME << 10 | _LEAF | rights
        self._host.reference.fill(real, va, pte)
        self._remember(hart, (real.satp >> 44 & 0xFFFF, va >> 12), pte)
        return True

    def _remember(self, hart: Hart, key: tuple[int, int], pte: int) -> None:
        entries = self._entries[hart.number]
        entries.pop(key, None)
        if len(entries) >= self.second.size > 0:
            del entries[next(iter(entries))]
        if self.second.size:
            entries[key] = pte
