"""Trap and emulate: every mode of the guest runs in the host machine's user mode (Popek and Goldberg 1974; VM/370).

Or, by a table of rings, in its user and supervisor modes; where what does not trap in those goes wrong, unless the hart
has a VM bit (technique.rings; docs/vm-bit.md).

What is innocuous executes directly on a hart that the host machine lends, under shadow page tables. What is sensitive
traps there, and its row is applied to the virtual hart: that is one step of the reference reading, as are an access to
a device, an exception of the guest's own and a write to one of its page tables. Between two of those the virtual
hart's registers are in the hart that is lent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ringfence.errors import MachineError
from ringfence.isa import pmp
from ringfence.isa.paging import MODES, PPN, USER, Access, R, W, X
from ringfence.isa.spec import decode
from ringfence.isa.trap import Cause, M, S, Status, U
from ringfence.machine.engine.reference import Trap
from ringfence.machine.hart import FIELDS, Hart
from ringfence.machine.launch import SPACE, Trapped, user_hart
from ringfence.machine.map import ALL, GuestRam
from ringfence.machine.memory import EXECUTE, FRAME, READ, WRITE, Ram
from ringfence.monitor.technique.rings import RINGS, Rings, both, flat, mode_of, rights_of
from ringfence.monitor.technique.shadow import SUPERPAGE, Key, Shadows, Table

if TYPE_CHECKING:
    from ringfence.machine.clock import Clock
    from ringfence.machine.machine import Computer, Engine

SHADOW_MODE = 8
"""satp.MODE of the shadow of memory that the guest does not translate: Sv39."""
RETIRE = 64
"""Writes to a page table of the guest's that no walk has used since, before it counts as one no more."""
PAGE = {Cause.FETCH_PAGE: Access.FETCH, Cause.LOAD_PAGE: Access.LOAD, Cause.STORE_PAGE: Access.STORE}
RIGHT = {Access.FETCH: EXECUTE, Access.LOAD: READ, Access.STORE: WRITE}
PTE = {Access.FETCH: X, Access.LOAD: R, Access.STORE: W}
PROTECTIONS = 32
"""Configurations of protection that there are shadows for."""
CODE = 1 << 5
"""Of a shadow's mode: it is of instructions alone."""
ELSEWHERE = 1
"""A reservation of bytes for which f has no answer; like none, it is no granule's address."""

_REGISTERS = slice(0, (FIELDS["pc"].offset >> 3) + 1)
_FLOAT = slice(FIELDS["fflags"].offset >> 3, (FIELDS["frm"].offset >> 3) + 1)
_PC, _PRIV, _MSTATUS, _SATP, _ISATP, _RESERVATION, _VM, _VMPSL = (
    FIELDS[name].offset >> 3 for name in ("pc", "priv", "mstatus", "satp", "isatp", "reservation", "vm", "vmpsl")
)
_PMP = slice(FIELDS["pmpcfg0"].offset >> 3, (FIELDS["pmpaddr"].offset >> 3) + pmp.ENTRIES)
_FS = 3 << Status.FS
_ACCESS = 1 << Status.SUM | 1 << Status.MXR


class Mapped(NamedTuple):
    """What an entry maps is known by `key`; `place`: in the host's memory, where that is not where f has it."""

    key: int
    place: int | None = None


class Deprivileged:
    """An engine (machine.Engine) for a virtual machine on `host`, in which its memory is by `ram`. How the lent harts
    come to their translations is a subclass's.
    """

    direct = False
    """Lent harts may have the guest's state of S themselves."""

    def __init__(
        self, computer: Computer, ram: GuestRam, host: Computer, rings: Rings = RINGS["U"], vm_bit: bool = False
    ) -> None:
        """`vm_bit`: of the harts that are lent."""
        self._computer, self._ram, self._host = computer, ram, host
        self.rings, self.vm_bit = rings, vm_bit
        self._status = 0 if rings[S] == rings[U] else _ACCESS
        """What of the virtual hart's mstatus the lent one has too."""
        self._alone: set[int] = set()
        """Harts that are lent on, whose state nobody changes but who has them."""
        self.slow = host.engine.slow
        self._trap = 2 * self.slow
        """What a trap to here costs (`Engine.slow`)."""
        self._real: list[Hart] = []
        try:
            for hart in computer.harts:
                self._lend(hart, hart.number)
        except MachineError:
            for real in self._real:
                host.engine.take_back(real)
            raise
        self._roots: dict[tuple[int, ...], tuple[int, int]] = {}
        """satp and isatp of a lent hart, by its virtual hart's number, satp, isatp, privilege and what of its status
        matters.
        """
        self._returned: list[int] = []
        """Numbers of harts that were lent on and are back."""
        self._modes: dict[tuple[int, ...], tuple[int, ...]] = {}
        """What mode and satp a hart that is lent on had, by those of the one that is lent for it."""
        self._owners: dict[tuple[int, int], int] = {}
        """Pages of the host's memory (by offset and size) and where in the guest's memory they are, or were."""
        self._reflected: Trapped | None = None
        """By the hart's own page tables the access that it trapped for last is a fault."""
        self._zeroing = False
        """The hart trapped at CBO.ZERO where there is no frame."""
        self._forgotten = 0
        """How often all translations were."""
        self.interpreted = self.filled = self.table_writes = 0
        """Steps that the reference took, translations made, and stores to page tables of the guest's that trapped."""
        self._protections: dict[bytes, int] = {}
        self._protected: dict[Hart, int] = {}
        """Harts' protection of physical memory, which translations depend on."""
        for hart in computer.harts:
            self.protection(hart)

    @property
    def host(self) -> Computer:
        """The machine that lends the harts."""
        return self._host

    # machine.Engine

    def run(self, hart: Hart, deadline: int) -> bool:
        computer = self._computer
        clock, reference = computer.clock, computer.reference
        virtual = clock.source == "virtual"
        while True:
            if reference.pending(hart):
                deadline = min(deadline, clock.steps)
            if self._go(hart, clock, computer.aclint.offset, deadline) is None:
                return True
            if computer.breakpoints and hart.pc in computer.breakpoints:
                return False
            self.interpreted += 1
            check = self._interpret(hart)
            while self._zeroing and not (check or computer.wanted or hart.pc in computer.breakpoints):
                check = self._interpret(hart)  # the next blocks
            self._zeroing = False
            if computer.wanted:
                return check
            if check and (
                clock.steps >= deadline or hart.waiting or hart.stopped or (hart.mip | hart.lines) & hart.mie
            ):
                return True
            if virtual:
                deadline = min(deadline, clock.next_step())
            if computer.breakpoints and hart.pc in computer.breakpoints:
                return check

    def _interpret(self, hart: Hart) -> bool:
        """The step that the hart trapped at is the reference's."""
        return self._computer.reference.step(hart)

    def kick(self) -> None:
        self._host.engine.kick()

    def protection(self, hart: Hart) -> None:
        registers = bytes(hart.words[_PMP])
        if registers not in self._protections and len(self._protections) == PROTECTIONS:
            self._protections.clear()
            self._drop()
            for other in self._protected:
                self._protected[other] = self._protections.setdefault(bytes(other.words[_PMP]), len(self._protections))
        self._protected[hart] = self._protections.setdefault(registers, len(self._protections))
        self._roots.clear()
        if hart.number < len(self._real):
            self._host.engine.forget_spaces(self._real[hart.number])

    def stops(self, breakpoints: Iterable[int], watched: Sequence[int]) -> None:
        self._host.engine.stops(breakpoints, watched)

    def close(self) -> None:
        self._drop()
        for number, real in enumerate(self._real):
            if number not in self._returned:
                self._host.engine.take_back(real)

    def virtualize(self, computer: Computer, ram: Ram) -> Engine:
        """The harts of a machine on this one run as this one's do: deprivileged, under f ∘ f ∘ φ."""
        raise NotImplementedError

    def lend(self, virtual: Hart | None = None, direct: bool = False) -> Hart:
        hart = user_hart(self._returned.pop() if self._returned else len(self._real), self._computer.harts[0])
        if direct:
            self._alone.add(hart.number)
        else:
            self._alone.discard(hart.number)
        self._lend(None if direct else virtual, hart.number)
        self.protection(hart)
        return hart

    def _lend(self, virtual: Hart | None, number: int) -> None:
        """A hart of the host machine for one of the machine."""
        real = self._host.engine.lend(virtual, self.direct)
        real.vm = int(self.vm_bit)
        self._real[number : number + 1] = [real]

    def launch(self, hart: Hart, clock: Clock, offset: int, deadline: int) -> Trapped | None:
        reference = self._computer.reference
        while trapped := self._go(hart, clock, offset, deadline):
            if trapped.cause == SPACE:
                return trapped
            if self._reflected is not None:
                return self._reflected
            if caught := reference.attempt_lent(hart, clock, offset):
                return Trapped(caught.cause, caught.tval)
            clock.steps += 1
            if reference.checked and clock.steps >= deadline:
                break
        return None

    def take_back(self, hart: Hart) -> None:
        self._host.engine.take_back(self._real[hart.number])
        self._returned.append(hart.number)
        del self._protected[hart]

    def zeroes(self, hart: Hart) -> list[int]:
        return self._host.engine.zeroes(self._real[hart.number])

    def applied(self, hart: Hart) -> int:
        return self._host.engine.applied(self._real[hart.number])

    def space(self, hart: Hart) -> None:
        self._tell_space(hart)

    def forget_spaces(self, hart: Hart) -> None:
        self._host.engine.forget_spaces(self._real[hart.number])

    def retranslate(self, hart: Hart, page: int | None) -> None:
        raise NotImplementedError

    def _tell_space(self, hart: Hart) -> None:
        """The mode of the lent hart, for that which its virtual hart is in now, is remembered for that."""
        real, before = self._real[hart.number], self._forgotten
        self._enter(hart)
        self._host.engine.space(real)
        if self._forgotten != before:  # by a monitor that was asked for memory
            self._host.engine.forget_spaces(real)

    def _enter(self, hart: Hart) -> None:
        """The lent hart has the mode that the virtual hart's comes to, and its translations."""
        roots, words, lent = self._root(hart), hart.words, self._real[hart.number].words
        (lent[_SATP], lent[_ISATP]), lent[_PRIV] = roots, self.rings[words[_PRIV]]
        lent[_MSTATUS] = lent[_MSTATUS] & ~_ACCESS | words[_MSTATUS] & self._status
        if hart.number >= len(self._computer.harts):
            self._modes[_mode(lent)] = _mode(words)

    def _forget_spaces(self) -> None:
        self._forgotten += 1
        self._roots.clear()
        for real in self._real:
            self._host.engine.forget_spaces(real)

    @property
    def applied_natively(self) -> int:
        """Rows that were applied to the virtual harts with no return to here."""
        own = self._real[: len(self._computer.harts)]
        return sum(self._host.engine.applied(real) for real in own)

    # Direct execution

    def _go(self, hart: Hart, clock: Clock, offset: int, deadline: int) -> Trapped | None:
        """Run the hart directly, to a check point that `run` would return at; or to an instruction that is the
        monitor's: why it trapped.
        """
        self._reflected = None
        real, words = self._real[hart.number], hart.words
        lent, status = real.words, words[_MSTATUS]
        if _mixed(hart):
            return Trapped(Cause.ILLEGAL, 0)
        own = hart.number < len(self._computer.harts)
        lent[_REGISTERS] = words[_REGISTERS]
        lent[_FLOAT] = words[_FLOAT]
        lent[_MSTATUS] = lent[_MSTATUS] & ~_FS | (_FS if status & _FS == _FS else 0)
        lent[_VMPSL] = words[_VMPSL] if words[_VM] else status
        self._hand_over(hart, real)
        lent[_RESERVATION] = reserved = self._real_granule(words[_RESERVATION])
        self._enter(hart)
        launch = self._host.engine.launch
        try:
            while True:
                try:
                    trapped = launch(real, clock, offset, deadline)
                finally:
                    self._take_over(hart, real)
                if lent[_RESERVATION] != reserved:
                    words[_RESERVATION] = self._virtual_granule(lent[_RESERVATION])
                    reserved = lent[_RESERVATION]
                if not own and hart.number not in self._alone:
                    # What the virtual hart's monitor told of its modes has come about without us.
                    words[_SATP], words[_PRIV], status, words[_ISATP] = self._modes.get(_mode(lent), _mode(words))
                    words[_MSTATUS] = words[_MSTATUS] & ~(_FS | _ACCESS) | lent[_MSTATUS] & _FS | status
                    words[_VMPSL] = lent[_VMPSL]
                if trapped is None:
                    break
                clock.surcharge += self._trap
                if trapped.cause == SPACE:
                    if not own or _mixed(hart):
                        break
                    self._tell_space(hart)
                    continue
                answered = self._answer(hart, trapped)
                lent[_RESERVATION] = reserved = self._real_granule(words[_RESERVATION])  # which may lie elsewhere now
                if not answered:
                    break
                self._enter(hart)
        finally:  # f's answer may be missing (machine.launched.VmFault)
            words[_REGISTERS] = lent[_REGISTERS]
            words[_FLOAT] = lent[_FLOAT]
            if lent[_RESERVATION] != reserved:
                words[_RESERVATION] = self._virtual_granule(lent[_RESERVATION])
        return trapped

    def _hand_over(self, hart: Hart, real: Hart) -> None:
        """More of the virtual hart's state is the lent one's, until `_take_over`."""

    def _take_over(self, hart: Hart, real: Hart) -> None:
        """The virtual hart has again what the lent one had of its state."""

    def _lies(self, at: int) -> tuple[int, int, int] | None:
        """(offset in the host's memory, rights, size of the page) by f ∘ f ∘ … of an offset in the guest's."""
        rights, least = ALL, SUPERPAGE
        ram: Ram = self._ram
        while isinstance(ram, GuestRam) and ram is not self._host.ram:
            found = ram.f.look(at)
            if found is None:
                return None
            to, granted, size = found
            at, rights, least, ram = to + (at & size - 1), rights & granted, min(least, size), ram.host
        return at, rights, least

    def _real_granule(self, pa: int) -> int:
        """Of a reservation, the host's physical address."""
        if pa & 63:
            return pa
        at = pa - self._ram.base
        found = self._lies(at) if 0 <= at < self._ram.size else None
        return ELSEWHERE if found is None else self._host.ram.base + found[0]

    def _virtual_granule(self, pa: int) -> int:
        """And the guest's."""
        if pa & 63:
            return pa
        to = pa - self._host.ram.base
        for size in (FRAME, SUPERPAGE):
            at = self._owners.get((to & -size, size))
            if at is not None:
                found = self._lies(at | to & size - 1)
                if found is not None and found[0] == to:
                    return self._ram.base + (at | to & size - 1)
        raise AssertionError(f"{pa:#x} is no memory of the guest's")

    # Translation

    def _root(self, hart: Hart) -> tuple[int, int]:
        """satp and isatp of the hart that is lent."""
        raise NotImplementedError

    def _answer(self, hart: Hart, trapped: Trapped) -> bool:
        """The translation that the lent hart trapped for is there now. False: why it trapped is the monitor's."""
        raise NotImplementedError

    def _drop(self) -> None:
        """There are no translations."""
        raise NotImplementedError


class TrapAndEmulate(Deprivileged):
    """By shadow page tables, which the lent harts walk."""

    def __init__(
        self,
        computer: Computer,
        ram: GuestRam,
        host: Computer,
        shadows: Shadows,
        kept: bool = True,
        rings: Rings = RINGS["U"],
        vm_bit: bool = False,
    ) -> None:
        """`kept`: shadows outlive a write to satp."""
        self._kept = kept
        self._spaces: dict[int, int] = {}
        """satp of each hart, as it was last."""
        self._shadows = ram.shadows = shadows
        shadows.on_free = self._forget_spaces
        self._writes: Counter[int] = Counter()
        super().__init__(computer, ram, host, rings, vm_bit)
        if isinstance(host.ram, GuestRam):
            host.ram.residents.append(shadows)

    def close(self) -> None:
        super().close()
        if isinstance(self._host.ram, GuestRam):
            self._host.ram.residents.remove(self._shadows)

    def virtualize(self, computer: Computer, ram: Ram) -> Engine:
        assert isinstance(ram, GuestRam)
        shadows = self._shadows.another(ram)
        return TrapAndEmulate(computer, ram, self._host, shadows, self._kept, self.rings, self.vm_bit)

    def retranslate(self, hart: Hart, page: int | None) -> None:
        pass

    @property
    def _moves(self) -> int:
        """What was found out holds while this stays the same: no frame was taken, at any level, to give another."""
        return self._host.ram.derived.moves

    def _drop(self) -> None:
        self._shadows.drop()

    def _answer(self, hart: Hart, trapped: Trapped) -> bool:
        return trapped.cause in PAGE and self._fill(hart, trapped.tval, PAGE[Cause(trapped.cause)])

    def _root(self, hart: Hart) -> tuple[int, int]:
        words = hart.words
        if not self._kept and self._spaces.get(hart.number) != words[_SATP]:
            # What lent harts remember of modes is forgotten with it, so the next write comes here too.
            self._spaces[hart.number] = words[_SATP]
            self._shadows.drop()
        key = hart.number, *_mode(words)
        roots = self._roots.get(key)
        if roots is None:
            before = self._forgotten
            code = self._make_root(hart, True) if self._separate(hart) else 0
            roots = self._make_root(hart, False), code
            if self._forgotten == before:  # else it may be empty and nobody's, where all is a page fault
                self._roots[key] = roots
        return roots

    def _separate(self, hart: Hart) -> bool:
        """Whether the hart's fetches are translated differently from its other accesses."""
        return hart.isatp != 0

    def _make_root(self, hart: Hart, code: bool) -> int:
        table = self._top(hart, code)
        number = SHADOW_MODE if mode_of(hart, self.rings) is None else _space(hart, code) >> 60
        return number << 60 | (self._host.ram.base + table.place) // FRAME

    def _top(self, hart: Hart, code: bool) -> Table:
        """The shadow that walks begin at."""
        base, mode, satp = self._ram.base, mode_of(hart, self.rings), _space(hart, code)
        kind = self._protected[hart] << 8 | CODE * code
        level = MODES[satp >> 60] - 1 if mode is not None else 2
        if mode is None:
            key = Key(-base, level, kind | (hart.priv == M), flat(hart, self.rings))
        elif 0 <= (at := ((satp & PPN) << 12) - base) < self._ram.size:
            key = Key(at, level, kind | mode, None)
        else:  # no walk begins there
            key = Key(0, level, 0, 0)
        return self._shadows.table(key)

    def _fill(self, hart: Hart, va: int, access: Access) -> bool:
        """Map the page of `va`. False: the access is the monitor's, or memory was too short for what leads to it."""
        ram, shadows, reference = self._ram, self._shadows, self._computer.reference
        before = self._moves
        try:
            pa, trail, machine = reference.walk(hart, va, access)
        except Trap as caught:  # it is the guest's own
            self._reflected = Trapped(caught.cause, caught.tval)
            return False
        at = pa - ram.base & -FRAME
        if not 0 <= at < ram.size:
            self._at_device(hart)
            return False
        granted = reference.permission(hart, ram.base + at, FRAME, machine)
        for entry in trail:
            self._writes.pop(entry & -FRAME, None)
        if access is Access.STORE and at in shadows.traced and not shadows.followed:
            self._writes[at] += 1
            self.table_writes += 1
            if self._writes[at] <= RETIRE:
                return False
            shadows.untrace(at)
        if shadows.full:
            shadows.drop()
        if access is Access.STORE and ram.blank(at) and self._zeroes_here(hart):
            self._zeroing = hart.number < len(self._computer.harts)
            return False
        ram.place(at, RIGHT[access])

        code = access is Access.FETCH and self._separate(hart)
        mode, kind = mode_of(hart, self.rings), self._protected[hart] << 8 | CODE * code
        top = table = self._top(hart, code)
        level = table.key.level
        if mode is None:
            rights = flat(hart, self.rings)
        else:
            for entry, below in pairwise(trail):
                level -= 1
                child = shadows.table(Key(below & -FRAME, level, kind | mode, None))
                shadows.link(table, (entry & FRAME - 1) >> 3, child)
                table = child
            rights = rights_of(int.from_bytes(ram.peek(trail[-1], 8), "little"), mode)
        while True:
            size = FRAME << 9 * level
            n = va // size & 511
            first = pa - ram.base & -size
            if level == 0 or (not code and level == 1 and self._maps_whole(hart, first, machine, granted)):
                break
            child = shadows.table(Key(first, level - 1, kind | machine, rights))
            shadows.link(table, n, child)
            table, level = child, level - 1
        mapped: Mapped | None = self._instructions(hart, top, va, first) if code else Mapped(first)
        found = self._lies(first)
        if mapped is None or found is None or self._moves != before:
            return False
        to, given, _ = found
        rights &= both(granted, given) | USER
        if code:
            rights &= X | USER
        if not rights & R or (first in shadows.traced and not shadows.followed):
            rights &= ~W
        if not rights & PTE[access]:
            return False
        if not code:
            self._owners[to, size] = first
        shadows.map(table, n, mapped.key, to if mapped.place is None else mapped.place, rights)
        if self._moves != before:
            shadows.clear(table, n)
            return False
        self.filled += 1
        return True

    def _zeroes_here(self, hart: Hart) -> bool:
        """Whether the hart trapped at CBO.ZERO."""
        ram, pc = self._ram, self._real[hart.number].words[_PC]
        pa, _, _ = self._computer.reference.walk(hart, pc, Access.FETCH)
        at = pa - ram.base
        if pc & FRAME - 1 > FRAME - 4 or not 0 <= at < ram.size:
            return False
        found = decode(int.from_bytes(ram.peek(at, 4, EXECUTE), "little"))
        return found is not None and found[0].name == "cbo.zero"

    def _at_device(self, hart: Hart) -> None:
        """An access of the hart's was to no memory."""

    def _instructions(self, hart: Hart, top: Table, va: int, at: int) -> Mapped | None:
        """What is executed of a page at an offset of the guest's memory; None: the step is the reference's. `top`: the
        shadow that the hart's fetches begin at.
        """
        return Mapped(at)

    def _maps_whole(self, hart: Hart, first: int, machine: bool, granted: int) -> bool:
        """Whether one large page can map the superpage at an offset of the guest's memory."""
        ram = self._ram
        if first < 0 or first + SUPERPAGE > ram.size or not self._shadows.whole(first):
            return False
        found = self._lies(first)
        if found is None or found[2] != SUPERPAGE or found[0] % SUPERPAGE:
            return False
        return self._computer.reference.permission(hart, ram.base + first, SUPERPAGE, machine) == granted


def _mode(words: memoryview) -> tuple[int, int, int, int]:
    return words[_SATP], words[_PRIV], words[_MSTATUS] & _ACCESS, words[_ISATP]


def _space(hart: Hart, code: bool) -> int:
    """satp as its fetches have it, or its other accesses (isa.paging.space)."""
    return (hart.isatp if code else 0) or hart.satp


def _mixed(hart: Hart) -> bool:
    """Loads and fetches would need page tables of their own: MPRV lends another privilege."""
    status = hart.mstatus
    return status >> Status.MPRV & 1 == 1 and status >> Status.MPP & 3 != hart.priv
