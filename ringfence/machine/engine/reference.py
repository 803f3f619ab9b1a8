"""The reference reading: rows over known words. Slow, complete, and the definition of everything that native code
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ringfence.isa import ieee754, pmp, tlb, trap
from ringfence.isa.csr import csr_write
from ringfence.isa.paging import ACCESS_FAULT, MISALIGNED, Access
from ringfence.isa.trap import Cause, M, S, Status
from ringfence.machine.device.aclint import TICK_NS
from ringfence.machine.device.device import AccessFault
from ringfence.machine.engine import plain
from ringfence.machine.engine.bound import bind
from ringfence.machine.hart import FIELDS, Hart
from ringfence.machine.launch import Trapped, user_hart
from ringfence.machine.memory import EXECUTE, Ram
from ringfence.machine.memory import WRITE as TO_WRITE
from ringfence.machine.stops import READ, WRITE
from ringfence.word import Int, Word

if TYPE_CHECKING:
    from ringfence.machine.clock import Clock
    from ringfence.machine.machine import Computer

_INDEX = {name: field.offset >> 3 for name, field in FIELDS.items()}
_PC, _PRIV, _MSTATUS = _INDEX["pc"], _INDEX["priv"], _INDEX["mstatus"]
_FFLAGS, _FRM, _RESERVATION = _INDEX["fflags"], _INDEX["frm"], _INDEX["reservation"]
_FS = 3 << Status.FS
_MPRV, _SUM_MXR = 1 << Status.MPRV, 1 << Status.SUM | 1 << Status.MXR
_SATP, _ISATP, _SOFTWARE_TLB = _INDEX["satp"], _INDEX["isatp"], _INDEX["software_tlb"]
_TLB = slice(_INDEX["tlb_tag"], _INDEX["tlb_pte"] + FIELDS["tlb_pte"].count)
_NONE = (1 << 64) - 1
MSTATUS = 0x300


def value_of(word: Word | int) -> int:
    """The number that a known word is."""
    if isinstance(word, Word):
        assert isinstance(word, Int)
        return word.value
    return word


class Trap(Exception):
    """A synchronous exception on its way to `trap.enter`."""

    def __init__(self, cause: int, tval: int) -> None:
        self.cause, self.tval = cause, tval


class _Walk(NamedTuple):
    """One that changed nothing, and what it read: the same again while frames lie where they did."""

    pa: int
    trail: list[tuple[int, bytes]]
    """(offset, entry)"""
    entries: list[tuple[int, bytes]]
    """(place, entry)"""
    tlb: bytes
    moves: int


class Known:
    """The effects over one machine's harts. A field of the hart's state is an attribute; `_` is the reading's own."""

    __slots__ = ("_bits", "_check", "_computer", "_hart", "_next", "_pc", "_pmp", "_time", "_trail", "_walks", "_words")
    _hart: Hart
    _words: memoryview

    def __init__(self, computer: Computer) -> None:
        self._computer = computer
        self._pmp: dict[int, list[tuple[int, int, int]]] = {}
        self._walks: dict[tuple[int, ...], _Walk] = {}
        self._trail: list[tuple[int, bytes]] | None = None
        self._check = False
        self._time: tuple[Clock, int] | None = None
        """Of a hart that is lent: whose time it tells, and what that differs by, in ticks."""

    def forget(self) -> None:
        """Protection, or what a walk depends on beside its key, has changed."""
        self._pmp.clear()
        self._walks.clear()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Word: ...

    # Running

    def step(self, hart: Hart) -> bool:
        """One instruction, or the trap in its place: one step. True: what follows is a check point."""
        if caught := self.attempt(hart):
            self._enter(caught.cause, caught.tval, False)
            self._check |= (self._pc ^ self._next) >> 12 != 0
        self._computer.clock.steps += 1
        return self._check

    def attempt(self, hart: Hart) -> Trap | None:
        """One instruction, or the exception that keeps it from being executed, which is not taken."""
        words = self._words = hart.words
        self._hart, self._check = hart, False
        self._pc = pc = words[_PC]
        try:
            bits = self._bits = self._fetch(pc)
            bound = bind(bits)
            if bound is None:
                self.illegal()
            self._next = pc + bound.length & _NONE
            if bound.floating and not words[_MSTATUS] & _FS:
                self.illegal()
            args: list[Known | Word] = []
            for kind, what in bound.args:
                if kind == 1:
                    args.append(Int(words[what]))
                elif kind == 0:
                    args.append(what)
                elif what == "pc":
                    args.append(Int(pc))
                elif what == "link":
                    args.append(Int(self._next))
                else:
                    args.append(self)
            result = bound.meaning(*args)
            if result is not None:
                words[bound.result] = value_of(result)
            if bound.floating & 2:
                words[_MSTATUS] |= _FS
            words[_PC] = self._next
        except Trap as caught:
            return caught
        if (pc ^ self._next) >> 12:
            self._check = True
        return None

    def attempt_lent(self, hart: Hart, clock: Clock, offset: int) -> Trap | None:
        """The same of a hart that is lent, as in `Engine.launch`; what its medeleg gives to S is taken."""
        self._time = clock, offset
        try:
            caught = self.attempt(hart)
        finally:
            self._time = None
        if caught is None or hart.priv > S or not hart.medeleg >> caught.cause & 1:
            return caught
        self._enter(caught.cause, caught.tval, False)
        self._check = True
        return None

    def walk(self, hart: Hart, va: int, access: Access) -> tuple[int, list[int], bool]:
        """(physical address, where in RAM the entries lie that lead to it, whether the access counts as M's). Sets
        accessed and dirty bits; raises Trap.
        """
        self._words, self._hart = hart.words, hart
        while True:
            pa, machine = self._physical(va, access)
            if self._trail is not None:  # nothing was set
                return pa, [at for at, _ in self._trail], machine

    def fill(self, hart: Hart, va: int, pte: int) -> None:
        """Write an entry of the hart's software-filled TLB."""
        self._words, self._hart = hart.words, hart
        tlb.write(self, Int(va), Int(pte))  # type: ignore[arg-type]

    def entry(self, hart: Hart, va: int) -> int | None:
        """What its entry for a page says, if there is one."""
        self._words, self._hart = hart.words, hart
        n = value_of(tlb.find(self, Int(va)))  # type: ignore[arg-type]
        return None if n == tlb.ENTRIES else value_of(self.element("tlb_pte", Int(n)))

    def write_csrs(self, hart: Hart, values: Sequence[tuple[int, int]]) -> None:
        """(number, value) of each, as a write in M-mode sets it; mstatus last, which others make dirty."""
        self._words, self._hart = hart.words, hart
        status = dict(values).get(MSTATUS, hart.mstatus)
        for number, value in values:
            csr_write(self, Int(number), Int(value))  # type: ignore[arg-type]
        if values:
            csr_write(self, Int(MSTATUS), Int(status))  # type: ignore[arg-type]

    def permission(self, hart: Hart, pa: int, size: int, machine: bool) -> int:
        """What physical memory protection grants to an access that counts as M's, or not."""
        self._words, self._hart = hart.words, hart
        return self._permission(pa, size, machine)

    @property
    def checked(self) -> bool:
        """Whether the last step ended at a check point."""
        return self._check

    def interrupt(self, hart: Hart) -> bool:
        """At a check point: take the pending interrupt of highest priority, if one is enabled. One step."""
        words = self._words = hart.words
        if not (words[_INDEX["mip"]] | words[_INDEX["lines"]]) & words[_INDEX["mie"]]:
            return False
        self._hart = hart
        bits = trap.pending(self)  # type: ignore[arg-type]
        assert isinstance(bits, Int)
        if not bits.value:
            return False
        self._pc = self._next = words[_PC]
        self._enter(value_of(trap.highest(bits)), 0, True)
        self._computer.clock.steps += 1
        return True

    def pending(self, hart: Hart) -> int:
        """The bits of the interrupts that would be taken at a check point."""
        words = self._words = hart.words
        if not (words[_INDEX["mip"]] | words[_INDEX["lines"]]) & words[_INDEX["mie"]]:
            return 0
        return value_of(trap.pending(self))  # type: ignore[arg-type]

    def _enter(self, cause: int, tval: int, interrupt: bool) -> None:
        plain.enter(interrupt)(self, self._words, cause, tval, self._pc)
        self._words[_PC] = self._next

    def _fetch(self, pc: int) -> int:
        if pc & 4095 <= 4092:
            pa, machine = self._physical(pc, Access.FETCH)
            at = pa - self._computer.ram.base
            if 0 <= at <= self._computer.ram.size - 4 and self._permission(pa, 4, machine) & pmp.X:
                return int.from_bytes(self._computer.ram.peek(at, 4, EXECUTE), "little")
        bits = self._fetch_half(pc)
        if bits & 3 == 3:
            bits |= self._fetch_half(pc + 2 & _NONE) << 16
        return bits

    def _fetch_half(self, va: int) -> int:
        pa = self._translate(va, 2, Access.FETCH)
        try:
            return self._computer.bus.fetch(pa)
        except AccessFault:
            raise Trap(Cause.FETCH_ACCESS, va) from None

    # Control

    def when(self, condition: Word, then: Callable[[], Any], otherwise: Callable[[], Any] | None = None) -> Any:
        assert type(condition) is Int
        if condition.value:
            return then()
        return otherwise() if otherwise is not None else None

    def trap(self, cause: Word | int, tval: Word | int = 0) -> NoReturn:
        raise Trap(value_of(cause), value_of(tval))

    def illegal(self) -> NoReturn:
        raise Trap(Cause.ILLEGAL, self._bits if self._bits & 3 == 3 else self._bits & 0xFFFF)

    # Memory and control flow

    def _physical(self, va: int, access: Access) -> tuple[int, bool]:
        """The physical address, before protection, and whether the access counts as M's.

        A walk is a function of its key and of the entries that it read, in RAM or in the TLB, so one that changed
        nothing is kept with them, and holds while they do. They are compared where they lie: the same work for a
        virtual machine as for a bare one.
        """
        words = self._words
        priv, status = words[_PRIV], words[_MSTATUS]
        if status & _MPRV and access is not Access.FETCH:
            priv = status >> Status.MPP & 3
        satp = words[_SATP]
        if access is Access.FETCH:
            satp = words[_ISATP] or satp
        if priv == M or not satp >> 60:
            self._trail = []
            return va, priv == M
        key = (va >> 12, access, satp, priv << 20 | status & _SUM_MXR, self._hart.number)
        held = words[_TLB].tobytes() if words[_SOFTWARE_TLB] else b""
        ram = self._computer.ram
        found = self._walks.get(key)
        if found is not None and found.tlb == held and found.moves == ram.derived.moves:
            memory = ram.map
            for place, entry in found.entries:
                if memory[place : place + 8] != entry:
                    break
            else:
                self._trail = found.trail
                return found.pa | va & 4095, False
        self._trail = []
        pa = plain.walk(access)(self, words, va)
        if self._trail is not None:
            if len(self._walks) > 4096:
                self._walks.clear()
            read, moves = self._trail, ram.derived.moves
            entries = [(ram.place(at), entry) for at, entry in read]
            if ram.derived.moves == moves:  # to find one, another may have been taken
                self._walks[key] = _Walk(pa & ~4095, read, entries, held, moves)
        return pa, False

    def _translate(self, va: int, size: int, access: Access) -> int:
        """The physical address of `size` bytes that do not cross a page, after all checks."""
        pa, machine = self._physical(va, access)
        if not self._permission(pa, size, machine) & (pmp.X, pmp.R, pmp.W)[access]:
            raise Trap(ACCESS_FAULT[access], va)
        return pa

    def _permission(self, pa: int, size: int, machine: bool) -> int:
        """What physical memory protection grants."""
        entries = self._pmp.get(self._hart.number)
        if entries is None:
            entries = pmp.entries_of(self._words, _INDEX["pmpcfg0"], _INDEX["pmpaddr"])
            self._pmp[self._hart.number] = entries
        return pmp.permission(entries, pa, size, machine)

    def _pieces(self, va: int, size: int, access: Access) -> list[tuple[int, int, int]]:
        """(pa, size, va) of the one or two pages that an access touches; all translated before anything is done."""
        inside = 4096 - (va & 4095)
        if size <= inside:
            return [(self._translate(va, size, access), size, va)]
        high = va + inside & _NONE
        return [
            (self._translate(va, inside, access), inside, va),
            (self._translate(high, size - inside, access), size - inside, high),
        ]

    def load(self, va: Word, bits: int) -> Word:
        assert isinstance(va, Int)
        pieces = self._pieces(va.value, bits >> 3, Access.LOAD)
        bus = self._computer.bus
        try:
            if len(pieces) == 1:
                value = bus.read(pieces[0][0], bits >> 3)
            else:
                value = int.from_bytes(b"".join(bus.ram.read(pa, n) for pa, n, _ in pieces), "little")
        except AccessFault:
            raise Trap(Cause.LOAD_ACCESS, va.value) from None
        self._accessed(va.value, bits >> 3, READ)
        return Int(value, bits)

    def _accessed(self, va: int, size: int, how: int) -> None:
        if self._computer.watchpoints:
            self._computer.accessed(va, size, how)

    def store(self, va: Word, value: Word) -> None:
        assert isinstance(va, Int) and isinstance(value, Int)
        size = value.width >> 3
        pieces = self._pieces(va.value, size, Access.STORE)
        bus = self._computer.bus
        try:
            if len(pieces) == 1:
                bus.write(pieces[0][0], size, value.value)
            else:
                data = value.value.to_bytes(size, "little")
                for pa, n, _ in pieces:
                    bus.ram.place(bus.ram.offset(pa, n), TO_WRITE)
                for pa, n, _ in pieces:
                    bus.ram.write(pa, data[:n])
                    data = data[n:]
        except AccessFault:
            raise Trap(Cause.STORE_ACCESS, va.value) from None
        self._accessed(va.value, size, WRITE)

    def _atomic(self, va: Word, bits: int, access: Access) -> int:
        """The physical address of an aligned word in RAM."""
        assert isinstance(va, Int)
        if va.value & (bits >> 3) - 1:
            raise Trap(MISALIGNED[access], va.value)
        pa = self._translate(va.value, bits >> 3, access)
        try:
            self._computer.bus.ram.offset(pa, bits >> 3)
        except AccessFault:
            raise Trap(ACCESS_FAULT[access], va.value) from None
        return pa

    def amo(self, va: Word, bits: int, change: Callable[[Word], Word]) -> Word:
        pa = self._atomic(va, bits, Access.STORE)
        old = Int(self._computer.bus.read(pa, bits >> 3), bits)
        new = change(old)
        assert isinstance(new, Int)
        self._computer.bus.write(pa, bits >> 3, new.value)
        self._accessed(va.value, bits >> 3, READ | WRITE)  # type: ignore[attr-defined]
        return old

    def load_reserved(self, va: Word, bits: int) -> Word:
        pa = self._atomic(va, bits, Access.LOAD)
        self._words[_RESERVATION] = pa & ~63
        self._accessed(va.value, bits >> 3, READ)  # type: ignore[attr-defined]
        return Int(self._computer.bus.read(pa, bits >> 3), bits)

    def store_conditional(self, va: Word, value: Word) -> Word:
        assert isinstance(value, Int)
        pa = self._atomic(va, value.width, Access.STORE)
        held = self._words[_RESERVATION] == pa & ~63
        if held:
            self._computer.bus.write(pa, value.width >> 3, value.value)
        self._words[_RESERVATION] = _NONE  # last: the write may be a VM-fault, and be tried again
        if held:
            self._accessed(va.value, value.width >> 3, WRITE)  # type: ignore[attr-defined]
        return Int(0 if held else 1)

    def zero_block(self, va: Word) -> None:
        assert isinstance(va, Int)
        pa = self._translate(va.value & ~63, 64, Access.STORE)
        ram = self._computer.ram
        try:
            at = ram.offset(pa, 64)
        except AccessFault:
            raise Trap(Cause.STORE_ACCESS, va.value) from None
        blank = ram.blank(at)
        if not va.value & 4032:
            before = bytes(64) if blank else ram.peek(at, 64)
            for n, more in enumerate((1, before == bytes(64), blank)):
                self._computer.zeroes[n] += more
        if not blank:
            ram.write(pa, bytes(64))
        self._accessed(va.value & ~63, 64, WRITE)

    def touch(self, va: Word) -> None:
        assert isinstance(va, Int)
        try:
            self._translate(va.value & ~63, 64, Access.LOAD)
        except Trap:
            self._translate(va.value & ~63, 64, Access.STORE)

    def branch(self, offset: Word, when: Word | None = None) -> None:
        assert isinstance(offset, Int)
        if when is None or when.value:  # type: ignore[attr-defined]
            self._next = self._pc + offset.value & _NONE
            if self._next <= self._pc:
                self._check = True

    def jump(self, target: Word) -> None:
        assert isinstance(target, Int)
        self._next = target.value
        self._check = True

    # System state

    def rare(self) -> None:
        pass

    def regime(self) -> None:
        pass

    def refetch(self) -> None:
        pass

    def float_state(self) -> None:
        pass

    def check_point(self) -> None:
        self._check = True

    def environment_call(self) -> None:
        priv = self._words[_PRIV]
        if priv == S and self._hart.firmware:
            self._computer.environment_call(self._hart)
            self._check = True
        else:
            raise Trap(Cause.ECALL_U + priv, 0)

    def wait(self) -> None:
        hart = self._hart
        if not (hart.mip | hart.lines) & hart.mie:
            hart.waiting = 1
        self._check = True

    def launch(self, pa: Word) -> None:
        assert self._computer.virtualizer is not None
        try:
            self._computer.virtualizer.launch(self._hart, value_of(pa))
        except AccessFault:
            raise Trap(Cause.STORE_ACCESS, value_of(pa)) from None
        self._check = True

    def end(self, vmid: Word) -> None:
        assert self._computer.virtualizer is not None
        self._computer.virtualizer.end(value_of(vmid))

    def timer(self) -> None:
        self._computer.timer(self._hart)

    def protection(self) -> None:
        self._computer.protection(self._hart)

    def time(self) -> Word:
        if self._time is not None:
            clock, offset = self._time
            return Int(clock.now() // TICK_NS + offset)
        return Int(self._computer.mtime())

    def steps(self) -> Word:
        return Int(self._computer.clock.steps)

    def find(self, name: str, *words: Word) -> Word:
        at, count = _INDEX[name], FIELDS[name].count
        held = self._words[at : at + count].tolist()
        return Int(min((held.index(w) for w in map(value_of, words) if w in held), default=count))

    def element(self, name: str, n: Word) -> Word:
        return Int(self._words[_INDEX[name] + value_of(n)])

    def set_element(self, name: str, n: Word, value: Word) -> None:
        self._words[_INDEX[name] + value_of(n)] = value_of(value)

    def replace(self, name: str, change: Callable[[Word], Word]) -> None:
        for n in range(_INDEX[name], _INDEX[name] + FIELDS[name].count):
            self._words[n] = value_of(change(Int(self._words[n])))

    def retranslate(self, page: Word | None = None) -> None:
        self._computer.engine.retranslate(self._hart, None if page is None else value_of(page))

    def last_table(self, va: Word, satp: Word) -> Word:
        return Int(0)

    def keep_table(self, va: Word, satp: Word, table: Word) -> None:
        pass

    def load_pte(self, pa: Word, va: Word, level: int, access: int) -> Word:
        assert isinstance(pa, Int) and isinstance(va, Int)
        try:
            at = self._walked(pa.value, pmp.R)
        except AccessFault:
            raise Trap(ACCESS_FAULT[Access(access)], va.value) from None
        entry = self._computer.ram.peek(at, 8)
        if self._trail is not None:
            self._trail.append((at, entry))
        return Int(int.from_bytes(entry, "little"))

    def store_pte(self, pa: Word, value: Word, va: Word, access: int) -> None:
        assert isinstance(pa, Int) and isinstance(va, Int) and isinstance(value, Int)
        self._trail = None
        try:
            self._walked(pa.value, pmp.W)
        except AccessFault:
            raise Trap(ACCESS_FAULT[Access(access)], va.value) from None
        self._computer.ram.write(pa.value, value.value.to_bytes(8, "little"))

    def _walked(self, pa: int, permission: int) -> int:
        """Where in RAM a page-table entry is. A walk's accesses are protected as S's."""
        at = self._computer.ram.offset(pa, 8)
        if not self._permission(pa, 8, False) & permission:
            raise AccessFault
        return at

    # Floating point

    def mode(self, rm: Word) -> Word:
        assert isinstance(rm, Int)
        mode = self._words[_FRM] if rm.value == 7 else rm.value
        if mode > 4:
            self.illegal()
        return Int(mode, 3)

    def raise_flags(self, flags: Word) -> None:
        assert isinstance(flags, Int)
        self._words[_FFLAGS] |= flags.value

    def _arithmetic(self, operation: Callable[..., tuple[int, int]], rm: Word, *operands: Word) -> Word:
        width = operands[0].width
        mode = value_of(self.mode(rm))
        bits, flags = operation(ieee754.FORMATS[width], *map(value_of, operands), mode)
        self._words[_FFLAGS] |= flags
        return Int(bits, width)

    def add(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic(ieee754.add, rm, a, b)

    def sub(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic(ieee754.sub, rm, a, b)

    def mul(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic(ieee754.mul, rm, a, b)

    def div(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic(ieee754.div, rm, a, b)

    def sqrt(self, a: Word, rm: Word) -> Word:
        return self._arithmetic(ieee754.sqrt, rm, a)

    def fma(self, a: Word, b: Word, c: Word, rm: Word) -> Word:
        return self._arithmetic(ieee754.fma, rm, a, b, c)

    def narrow(self, a: Word, rm: Word) -> Word:
        mode = self.mode(rm)
        assert isinstance(a, Int) and isinstance(mode, Int)
        bits, flags = ieee754.narrow(ieee754.BINARY64, a.value, mode.value)
        self._words[_FFLAGS] |= flags
        return Int(bits, 32)


def _field(index: int) -> property:
    """A field of the hart's state as an attribute of the reading."""

    def read(self: Known) -> Word:
        return Int(self._words[index])

    def write(self: Known, value: Word) -> None:
        self._words[index] = value.value  # type: ignore[attr-defined]

    return property(read, write)


for _name, _index in _INDEX.items():
    setattr(Known, _name, _field(_index))


class ReferenceEngine:
    """The engine that is nothing but the definition."""

    slow = 0

    def __init__(self, computer: Computer) -> None:
        self._computer = computer
        self._kicked = False
        self._lent = 0

    def run(self, hart: Hart, deadline: int) -> bool:
        computer, step = self._computer, self._computer.reference.step
        clock, breakpoints = computer.clock, computer.breakpoints
        virtual = clock.source == "virtual"
        while True:
            if step(hart) and (
                clock.steps >= deadline
                or hart.waiting
                or hart.stopped
                or (hart.mip | hart.lines) & hart.mie
                or (virtual and clock.steps >= clock.next_step())  # an event that the run itself brought forward
            ):
                return True
            if self._kicked or computer.wanted:
                self._kicked = False
                return computer.reference.checked
            if hart.pc in breakpoints:
                return computer.reference.checked

    def lend(self, virtual: Hart | None = None, direct: bool = False) -> Hart:
        self._lent += 1
        return user_hart(len(self._computer.harts) + self._lent - 1, self._computer.harts[0])

    def take_back(self, hart: Hart) -> None:
        pass

    def virtualize(self, computer: Computer, ram: Ram) -> ReferenceEngine:
        return ReferenceEngine(computer)

    def launch(self, hart: Hart, clock: Clock, offset: int, deadline: int) -> Trapped | None:
        reference = self._computer.reference
        while True:
            if caught := reference.attempt_lent(hart, clock, offset):
                return Trapped(caught.cause, caught.tval)
            clock.steps += 1
            if (reference.checked and clock.steps >= deadline) or self._kicked:
                self._kicked = False
                return None

    def zeroes(self, hart: Hart) -> list[int]:
        return [0, 0, 0]

    def applied(self, hart: Hart) -> int:
        return 0

    def space(self, hart: Hart) -> None:
        pass

    def forget_spaces(self, hart: Hart) -> None:
        pass

    def kick(self) -> None:
        self._kicked = True

    def protection(self, hart: Hart) -> None:
        pass

    def retranslate(self, hart: Hart, page: int | None) -> None:
        pass

    def stops(self, breakpoints: Iterable[int], watched: Sequence[int]) -> None:
        pass

    def close(self) -> None:
        pass
