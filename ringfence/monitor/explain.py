"""The way of a virtual address through φ and every f, down to the bare machine's memory.

Who looks stands beside the machines: no accessed bit is set, and no frame is given, paged in or composed for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ringfence.isa import pmp
from ringfence.isa.paging import (
    ACCESS_FAULT,
    ACCESSED,
    MODES,
    PAGE_BITS,
    PAGE_FAULT,
    PBMT,
    PBMTE,
    PPN,
    RESERVED,
    USER,
    Access,
    R,
    V,
    W,
    X,
    effective_privilege,
)
from ringfence.isa.trap import Cause, M, S, Status, U
from ringfence.machine.board import Virt
from ringfence.machine.bus import Rom
from ringfence.machine.device.device import AccessFault
from ringfence.machine.engine.reference import Known, Trap, value_of
from ringfence.machine.hart import Hart
from ringfence.machine.map import GuestRam
from ringfence.machine.memory import FRAME, READ, Ram
from ringfence.monitor.technique.rings import AS_THEY_ARE
from ringfence.monitor.technique.shadow import Shadows, Table
from ringfence.monitor.technique.trap import CODE
from ringfence.monitor.vm import VirtualMachine
from ringfence.word import Int, Word

BARE = "the bare machine"
ROM = "boot ROM"
_SUM, _MXR = 1 << 2, 1 << 3
"""Of a shadow's mode, as the technique `trap` has them."""


@dataclass(frozen=True)
class Entry:
    """A page-table entry: its level (0: the smallest pages), its physical address, and what it is."""

    level: int
    pa: int
    value: int

    @property
    def flags(self) -> str:
        """In letters, as the privileged manual has them; a dot for one that is not set."""
        return "".join(letter if self.value >> n & 1 else "." for n, letter in enumerate("VRWXUGAD"))[::-1]

    @property
    def leaf(self) -> bool:
        return self.value & V != 0 and self.value & (R | X) != 0


@dataclass(frozen=True)
class Phi:
    """φ of an address, for loads and stores; a fetch leads elsewhere where MPRV makes `priv` another than the hart's.

    `pa` is where the walk leads, whether the hart may go there or not; None: nowhere. `faults`: of each access that is
    not permitted, what it would be, and why.
    """

    priv: int
    satp: int
    entries: tuple[Entry, ...]
    pa: int | None
    faults: dict[Access, tuple[Cause, str]]


@dataclass(frozen=True)
class Answer:
    """f's for an offset in the memory of the machine at `path`: (offset in its host's, rights, size) of the page.

    None: a VM-fault, which goes to the monitor on `host`. `paged`: the frame is on that monitor's paging disk.
    """

    path: str
    host: str
    at: int
    page: tuple[int, int, int] | None
    host_pa: int | None
    paged: bool


@dataclass(frozen=True)
class Shadow:
    """The entries of a shadow page table in `host`'s memory that map the address, as one mode of the guest has it."""

    host: str
    mode: str
    entries: tuple[Entry, ...]
    host_pa: int


@dataclass(frozen=True)
class Way:
    """`device`: what answers at a physical address that is not RAM, and the offset in it. `place`: the physical address
    on the bare machine, where every f has an answer.
    """

    va: int
    phi: Phi
    device: tuple[str, int] | None
    answers: tuple[Answer, ...]
    place: int | None
    shadows: tuple[Shadow, ...]


def explain(machine: Virt, va: int, hart: int = 0) -> Way:
    """The way of `va` on a hart, as it stands. Nothing is changed by this."""
    looked, ram = machine.harts[hart], Beside(machine.ram)
    phi = _phi(machine, looked, ram, va)
    if phi.pa is None:
        return Way(va, phi, None, (), None, ())
    at = phi.pa - ram.base
    if not 0 <= at < ram.size:
        return Way(va, phi, _device(machine, phi.pa), (), None, ())
    answers, place = _answers(machine, ram, at)
    return Way(va, phi, None, answers, place, tuple(_shadows(machine, phi, ram, va)))


class Beside(Ram):
    """A machine's memory, as one look sees it from beside."""

    def __init__(self, ram: Ram) -> None:
        self.base, self.size, self.ram = ram.base, ram.size, ram
        self._frames: dict[int, bytes] = {}
        self.host: Beside | None = None
        if isinstance(ram, GuestRam):
            self.host = Beside(ram.host)
            self.f = ram.f.seen(self.host)

    def peek(self, at: int, length: int, right: int = READ) -> bytes:
        first = at & -FRAME
        if first not in self._frames:
            self._frames[first] = self._frame(first)
        return self._frames[first][at - first : at - first + length]

    def _frame(self, at: int) -> bytes:
        if self.host is None:
            return os.pread(self.ram.fd, FRAME, at)
        assert isinstance(self.ram, GuestRam)
        if (look := self.ram.absent.get(at)) is not None:
            return look()
        found = self.f.look(at)
        return bytes(FRAME) if found is None else self.host.peek(found[0] + (at & found[2] - 1), FRAME)

    def entry(self, level: int, at: int) -> Entry:
        return Entry(level, self.base + at, int.from_bytes(self.peek(at, 8), "little"))


# φ


class _Walk(Known):
    """The reference's walk; it keeps the entries that it reads, and writes none."""

    def __init__(self, computer: Virt, hart: Hart, ram: Beside) -> None:
        super().__init__(computer)
        self._hart, self._words, self._ram = hart, hart.words, ram
        self.entries: list[Entry] = []

    def place(self, va: int, access: Access) -> int:
        return self._translate(va, 1, access)

    def load_pte(self, pa: Word, va: Word, level: int, access: int) -> Word:
        entry = self._ram.entry(level, self._entry(pa, va, pmp.R, access))
        self.entries.append(entry)
        return Int(entry.value)

    def store_pte(self, pa: Word, value: Word, va: Word, access: int) -> None:
        self._entry(pa, va, pmp.W, access)

    def _entry(self, pa: Word, va: Word, permission: int, access: int) -> int:
        try:
            return self._walked(value_of(pa), permission)
        except AccessFault:
            raise Trap(ACCESS_FAULT[Access(access)], value_of(va)) from None


def _phi(machine: Virt, hart: Hart, ram: Beside, va: int) -> Phi:
    pa = None
    faults = {}
    for access in Access:
        walk = _Walk(machine, hart, ram)
        priv = value_of(effective_privilege(walk, access))  # type: ignore[arg-type]
        try:
            found = walk.place(va, access)
            if not 0 <= found - ram.base < ram.size:
                device = _device(machine, found)
                if device is None or (access is Access.FETCH and device[0] != ROM):
                    faults[access] = ACCESS_FAULT[access], "nothing answers there"
            pa = found if access is not Access.FETCH else pa
        except Trap as trap:
            faults[access] = Cause(trap.cause), _why(walk, hart, priv, trap.cause, access)
    entries = tuple(walk.entries)  # a load's and a store's are the same
    if pa is None and priv != M and entries and _sound(entries[-1], hart):
        inside = (1 << PAGE_BITS + 9 * entries[-1].level) - 1
        pa = (entries[-1].value >> 10 & PPN) << PAGE_BITS | va & inside
    elif pa is None and (priv == M or not hart.satp >> 60):
        pa = va
    return Phi(priv, hart.satp if priv != M else 0, entries, pa, faults)


def _sound(entry: Entry, hart: Hart) -> bool:
    """A leaf that is refused for its rights at most."""
    pte, kind = entry.value, entry.value & PBMT
    reserved = pte & RESERVED or pte & (R | W) == W or kind == PBMT or (kind and not hart.menvcfg >> PBMTE & 1)
    return entry.leaf and not reserved and (pte >> 10 & PPN) % (1 << 9 * entry.level) == 0


def _why(walk: _Walk, hart: Hart, priv: int, cause: int, access: Access) -> str:
    """Why the walk ended in an exception (privileged manual, "Virtual Address Translation Process")."""
    translated = priv != M and hart.satp >> 60
    if cause != PAGE_FAULT[access]:
        if translated and not (walk.entries and walk.entries[-1].leaf):
            return "the next table is not in RAM, or protected from the walk"
        return "physical memory protection refuses it"
    if not walk.entries:
        return "the address is not the sign extension of one that the tables cover"
    entry = walk.entries[-1]
    pte = entry.value
    if not pte & V:
        return "the last entry is not valid"
    if not _sound(entry, hart):
        return "the last entry has what is reserved" + ("" if entry.level else ", or leads to a table below the last")
    if priv == U and not pte & USER:
        return "the page is not U-mode's"
    if priv == S and pte & USER and access is Access.FETCH:
        return "S-mode executes no page of U-mode's"
    if priv == S and pte & USER and not hart.mstatus >> Status.SUM & 1:
        return "the page is U-mode's, and sstatus.SUM is 0"
    readable = R | (X if hart.mstatus >> Status.MXR & 1 else 0)
    if not pte & {Access.FETCH: X, Access.LOAD: readable, Access.STORE: W}[access]:
        return f"the page has no {'XRW'[access]}"
    return f"{'A' if not pte & ACCESSED else 'D'} is not set, and the hart does not set it (menvcfg.ADUE is 0)"


def _device(machine: Virt, pa: int) -> tuple[str, int] | None:
    for start, end, device in machine.bus.windows():
        if start <= pa < end:
            return ROM if isinstance(device, Rom) else type(device).__name__, pa - start
    return None


# Every f


def _hosts(machine: Virt) -> Iterator[VirtualMachine]:
    """The machine and those beneath it, but for the bare one."""
    while isinstance(machine, VirtualMachine):
        yield machine
        machine = machine.monitor.machine


def _name(machine: Virt) -> str:
    return machine.path if isinstance(machine, VirtualMachine) else BARE


def _answers(machine: Virt, ram: Beside, at: int) -> tuple[tuple[Answer, ...], int | None]:
    """Of every f on the way down, as far as there is one; and the place where it ends."""
    answers = []
    for vm in _hosts(machine):
        host = ram.host
        assert host is not None
        page = ram.f.look(at)
        to = None if page is None else page[0] + (at & page[2] - 1)
        host_pa = None if to is None else host.base + to
        paged = to is None and at & -FRAME in vm.paged
        answers.append(Answer(vm.path, _name(vm.monitor.machine), at, page, host_pa, paged))
        if to is None:
            return tuple(answers), None
        ram, at = host, to
    return tuple(answers), ram.base + at


# The shadows that compose them


def _shadows(machine: Virt, phi: Phi, ram: Beside, va: int) -> Iterator[Shadow]:
    """In any mode that the hart's page tables have a shadow for; and the shadows of those, where the host machine runs
    by shadows itself.
    """
    mode = phi.satp >> 60
    at = ((phi.satp & PPN) << PAGE_BITS) - ram.base if mode else -ram.base
    names: dict[Ram, str] = {vm.ram: vm.path for vm in _hosts(machine)}
    yield from _shadows_of(ram, at, MODES[mode] - 1 if mode else 2, va, names)


def _shadows_of(ram: Beside, at: int, level: int, va: int, names: dict[Ram, str]) -> Iterator[Shadow]:
    memory = ram.ram
    if not isinstance(memory, GuestRam) or not isinstance(memory.shadows, Shadows):
        return
    shadows, host = memory.shadows, ram.host
    while host is not None and host.ram is not shadows.host:
        host = host.host
    assert host is not None
    for root in shadows.roots(at, level):
        entries = tuple(host.entry(table.key.level, table.place + 8 * n) for table, n in shadows.trail(root, va))
        if entries and all(entry.value & V for entry in entries):  # what native code has cleared is in memory alone
            inside = (1 << PAGE_BITS + 9 * entries[-1].level) - 1
            host_pa = (entries[-1].value >> 10 & PPN) << PAGE_BITS | va & inside
            yield Shadow(names.get(host.ram, BARE), _mode(root), entries, host_pa)
            yield from _shadows_of(host, root.place, root.key.level, va, names)


def _mode(root: Table) -> str:
    key = root.key
    if key.mode & CODE:
        return "M-mode's fetches" if key.mode & 1 and key.rights is not None else "S-mode's fetches"
    if key.rights is not None:
        return "M-mode" if key.mode & 1 else "untranslated"
    if key.mode & AS_THEY_ARE:
        return "S- and U-mode"
    name = f"{'US'[key.mode & 1]}-mode"
    return name + (" with SUM" if key.mode & _SUM else "") + (" with MXR" if key.mode & _MXR else "")
