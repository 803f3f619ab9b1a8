"""The effects over LLVM values: one function being written.

`Emit` writes a helper, which reports a trap to its caller; `Handler` writes a record's handler, which ends in a tail
call of the next record's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from operator import or_
from typing import Any, NoReturn

from ringfence.isa import tlb
from ringfence.isa.paging import MISALIGNED, PPN, Access
from ringfence.isa.spec import Insn
from ringfence.isa.trap import Cause, S
from ringfence.machine.engine import layout
from ringfence.machine.engine.layout import CODE, ENTRY, RECORD, SHADOWED, TABLE, Action, Geometry
from ringfence.machine.hart import FIELDS
from ringfence.machine.memory import BLANK, READ, WRITE
from ringfence.word import Builder, Int, Ir, Word, low, select, sext, zext

OFFSETS = {name: field.offset for name, field in (FIELDS | layout.FIELDS).items()}
SIGNATURE = "(ptr %state, ptr %rec, i64 %steps, ptr %base, i64 %last)"


class Ended(Exception):
    """The block being written has ended: control does not come back."""


class Emit:
    """A helper function. A trap or a need of the reference is left in the state, and `failure` returned."""

    failure = "ret i64 0"

    def __init__(self, geometry: Geometry) -> None:
        self.b = Builder()
        self.geometry = geometry

    b: Builder
    geometry: Geometry

    # Values

    def pointer(self, base: str, offset: int | Word) -> str:
        return self.b.value(f"getelementptr i8, ptr {base}, i64 {offset}")

    def peek(self, pointer: str, bits: int = 64, align: int | None = None) -> Word:
        return self.b.op(f"load i{bits}, ptr {pointer}, align {align or bits // 8}", bits)

    def poke(self, pointer: str, value: Word, align: int | None = None) -> None:
        self.b.emit(f"store i{value.width} {value}, ptr {pointer}, align {align or value.width // 8}")

    def address(self, word: Word) -> str:
        """A host address as a pointer."""
        return self.b.value(f"inttoptr i64 {word} to ptr")

    def field(self, name: str) -> Word:
        return self.peek(self.pointer("%state", OFFSETS[name]))

    def set_field(self, name: str, value: Word) -> None:
        self.poke(self.pointer("%state", OFFSETS[name]), value)

    def machine(self, name: str) -> Word:
        return self.peek(self.pointer(self.address(self.field("machine")), layout.MACHINE[name].offset))

    def __getattr__(self, name: str) -> Word:
        if name not in OFFSETS:
            raise AttributeError(name)
        if name == "fflags":
            return self.field(name) | self.b.op("call i64 @host_flags(ptr %state)", 64)
        return self.field(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in OFFSETS:
            object.__setattr__(self, name, value)
            return
        self.set_field(name, value)
        if name == "fflags":
            self.b.emit("call void @host_flags_clear(ptr %state)")

    # Control

    def when(self, condition: Word, then: Callable[[], Any], otherwise: Callable[[], Any] | None = None) -> Any:
        if isinstance(condition, Int):
            return then() if condition.value else otherwise() if otherwise is not None else None
        b = self.b
        yes, no, join = b.fresh("then"), b.fresh("else"), b.fresh("join")
        b.emit(f"br i1 {condition}, label %{yes}, label %{no}")
        arms = []
        for label, closure in ((yes, then), (no, otherwise)):
            b.block(label)
            try:
                value = closure() if closure is not None else None
                arms.append((value, b.label))
                b.emit(f"br label %{join}")
            except Ended:
                pass
        if not arms:
            raise Ended
        b.block(join)
        if len(arms) == 1:
            return arms[0][0]
        (a, from_a), (c, from_c) = arms
        if a is None:
            return None
        assert isinstance(a, Word) and isinstance(c, Word) and a.width == c.width
        return b.op(f"phi i{a.width} [ {a}, %{from_a} ], [ {c}, %{from_c} ]", a.width)

    def loop(self, start: Word, stop: Word, step: int, body: Callable[[Word], object]) -> None:
        """`body` for `start`, `start + step` and so on below `stop`; the first time in any case."""
        b = self.b
        before, top, done = b.label, b.fresh("loop"), b.fresh("done")
        b.emit(f"br label %{top}")
        b.block(top)
        index = b.op("", start.width)
        place = len(b.lines) - 1
        body(index)
        following = index + step
        b.lines[place] = f"  {index} = phi i{start.width} [ {start}, %{before} ], [ {following}, %{b.label} ]"
        b.emit(f"br i1 {following < stop}, label %{top}, label %{done}")
        b.block(done)

    def leave(self, action: int) -> NoReturn:
        """The caller finds out why from `action`."""
        self.set_field("action", Int(action))
        self.b.emit(self.failure)
        raise Ended

    def leave_with(self, action: Word) -> NoReturn:
        self.set_field("action", action)
        self.b.emit(self.failure)
        raise Ended

    def trap(self, cause: Word | int, tval: Word | int = 0) -> NoReturn:
        self.set_field("cause", cause if isinstance(cause, Word) else Int(int(cause)))
        self.set_field("tval", tval if isinstance(tval, Word) else Int(tval))
        self.leave(Action.TRAP)

    def rare(self) -> NoReturn:
        self.leave(Action.EMULATE)

    def launch(self, pa: Word) -> None:
        self.rare()

    end = launch
    illegal = rare
    timer = rare
    protection = rare

    # What walks, traps and CSRs ask for

    def regime(self) -> None:
        self.b.emit("call void @regime(ptr %state)")

    def float_state(self) -> None:
        self.b.emit("call void @float_state(ptr %state)")

    def steps(self) -> Word:
        return Ir("%steps", 64, self.b)

    def time(self) -> Word:
        return self.b.op(f"call i64 @mtime(ptr %state, i64 {self.steps()})", 64)

    def breaks(self, offset: Word) -> Word:
        """Whether an instruction there in any page is the reference's."""
        bits = self.pointer(self.address(self.field("machine")), layout.MACHINE["breaks"].offset)
        return low(zext(self.peek(self.pointer(bits, offset >> 4), 8)) >> (offset >> 1 & 7), 1) == 1

    def frame(self, pa: Word, right: int, blank: Callable[[Word], object] | None = None) -> tuple[Word, Word, Word]:
        """(place in RAM, the machine's frame, the bare machine's) of a physical address; what is not RAM is the
        reference's. A virtual machine's f is composed already. `blank`: what to do with the
        number of one that is not there.
        """
        offset = pa - self.field("ram_base")
        self.when(offset >= self.field("ram_size"), self.rare)
        frame = offset >> 12
        wholes = self.field("wholes")

        def lone() -> Word:
            place = self.peek(self.address(self.field("places") + (frame << 3)))

            def fault() -> None:
                if blank is not None:
                    self.when((place & BLANK) != 0, partial(blank, frame))
                self.set_field("cause", frame)
                self.set_field("tval", Int(right | (BLANK if blank is not None else 0)))
                self.leave(Action.FAULT)

            self.when((place & right) == 0, fault)
            return place & -4096 | offset & 4095

        def composed() -> Word:
            place = self.peek(self.address(wholes + (offset >> 21 << 3)))
            found: Word = self.when((place & right) == 0, lone, lambda: (place & -4096) + (offset & (1 << 21) - 1))
            return found

        place = self.when(wholes == 0, lambda: offset, composed)
        return place, frame, place >> 12

    def physical_page(self, va: Word, write: bool) -> str:
        """Where the data TLB keeps the physical address of an entry's page."""
        sets = self.geometry.sets
        first = 2 * sets * ENTRY + (8 * sets if write else 0)
        return self.pointer(self.address(self.data_tlb), ((va >> 12 & sets - 1) << 3) + first)

    def permitted(self, frame: Word, bit: Word) -> None:
        """The reference decides where the frame as a whole does not grant the permission."""
        permissions = self.peek(self.address(self.field("permissions") + frame), 8)
        self.when(low(zext(permissions) >> bit, 1) == 0, self.rare)

    def space(self, satp: Word) -> Word:
        """What translations depend on of satp: the root of the tables; or the ASID, where software fills the TLB."""
        mode = satp & 15 << 60
        key = select(tlb.there(self), satp >> 44 & 0xFFFF, satp & PPN)  # type: ignore[arg-type]
        return select(mode == 0, Int(0), mode | key)

    def holder(self, name: str) -> str:
        """The block that has the field."""
        return "%state"

    def _word(self, name: str, n: Word) -> str:
        return self.pointer(self.holder(name), (n << 3) + OFFSETS[name])

    def find(self, name: str, *words: Word) -> Word:
        one, other = words
        state, count = self.holder(name), FIELDS[name].count
        call = f"call i64 @find(ptr {state}, i64 {OFFSETS[name]}, i64 {count}, i64 {one}, i64 {other})"
        return self.b.op(call, 64)

    def element(self, name: str, n: Word) -> Word:
        return self.peek(self._word(name, n))

    def set_element(self, name: str, n: Word, value: Word) -> None:
        self.poke(self._word(name, n), value)

    def replace(self, name: str, change: Callable[[Word], Word]) -> None:
        def one(n: Word) -> None:
            self.set_element(name, n, change(self.element(name, n)))

        self.loop(Int(0), Int(FIELDS[name].count), 1, one)

    def retranslate(self, page: Word | None = None) -> None:
        if page is None:
            self.b.emit("call void @flush_own(ptr %state)")
        else:
            self.b.emit(f"call void @drop_own(ptr %state, i64 {page})")

    def last_table(self, va: Word, satp: Word) -> Word:
        entry = self._walk(va)
        known = (self.peek(entry) == self._walked(va)) & (self.peek(self.pointer(entry, 8)) == satp)
        return select(known, self.peek(self.pointer(entry, 16)), Int(0))

    def keep_table(self, va: Word, satp: Word, table: Word) -> None:
        place = self._table(table)
        entry = self._walk(va)
        for n, word in enumerate((self._walked(va), satp, table, place)):
            self.poke(self.pointer(entry, 8 * n), word)

    def _walk(self, va: Word) -> str:
        return self.pointer("%state", ((va >> 21 & layout.WALKS - 1) << 5) + OFFSETS["walks"])

    def _walked(self, va: Word) -> Word:
        return va & -(1 << 21) | self.field("walks_turn") << 1 | 1

    def _table(self, pa: Word) -> Word:
        """The place of what a walk reads."""
        place, frame, _ = self.frame(pa, READ)
        self.permitted(frame, Int(0))
        return place

    def load_pte(self, pa: Word, va: Word, level: int, access: int) -> Word:
        if level:
            place = self._table(pa)
        else:  # kept, by this walk or before
            place = self.peek(self.pointer(self._walk(va), 24)) + (pa & 4095)
        bare = place >> 12
        span = 12 + 9 * (level + 1)
        part = va & -(1 << span) | level + 1
        known = self.peek(self.address(self.machine("tables") + (bare << 3)))
        flags = self.peek(self.address(self.machine("flags") + bare), 8)
        ready = ((flags & TABLE) != 0) & (known == part)
        self.when(ready ^ 1, lambda: self.b.emit(f"call void @mark_table(ptr %state, i64 {bare}, i64 {part})"))
        self.poke(self.address(self.machine("writes") + (bare << 1)), Int(0, 16))
        pte = self.peek(self.address(self.machine("ram_host") + place))
        cleared = (pte == 0) & (self.field("lent") != 0)
        refill = f"call i64 @refill(ptr %state, i64 {place})"
        found: Word = self.when(cleared, lambda: self.b.op(refill, 64), lambda: pte)
        return found

    def store_pte(self, pa: Word, value: Word, va: Word, access: int) -> None:
        place, frame, bare = self.frame(pa, WRITE)
        self.permitted(frame, Int(1))
        flags = self.peek(self.address(self.machine("flags") + bare), 8)
        self.when((flags & (CODE | SHADOWED)) != 0, self.rare)
        self.poke(self.address(self.machine("ram_host") + place), value)

    def define(self, header: str, body: Callable[[], object]) -> str:
        """The function that `body` writes. It returns nothing where `body` does not end the last path."""
        try:
            body()
            self.b.emit("ret void")
        except Ended:
            pass
        return self.text(header)

    def text(self, header: str) -> str:
        return "\n".join([f"define {header} {{", *self.b.lines, "}", ""])


class Handler(Emit):
    """A record's handler. `length`: of the instruction, in bytes; `near`: how a branch reaches its target; `twin`:
    the handler that an access goes to, to begin again, where its TLB misses. One without a twin calls the slow path
    itself.
    """

    def __init__(self, geometry: Geometry, length: int, near: str = "far", twin: str | None = None) -> None:
        super().__init__(geometry)
        self.rec = "%rec"
        self.count: Word = Ir("%steps", 64, self.b)
        self.begin(length, near, twin)

    rec: str
    count: Word
    length: int
    near: str
    twin: str | None
    interpreter: str | None = None
    """The handler that applies the row to a virtual hart, where the hart has one and may not execute it."""
    check: bool
    again: bool
    transfer: tuple[str, Word | None]

    def begin(self, length: int, near: str = "far", twin: str | None = None) -> None:
        """The instruction that `rec` holds."""
        self.length, self.near, self.twin = length, near, twin
        self.check = self.again = False
        self.transfer = ("next", None)
        self.last: Word | str = "poison"

    def steps(self) -> Word:
        return self.count

    def tail(
        self, callee: str, rec: str | None = None, steps: Word | None = None, last: Word | str = "poison"
    ) -> NoReturn:
        result = self.b.value(
            f"musttail call preserve_nonecc i64 {callee}(ptr %state, ptr {rec or self.rec}, "
            f"i64 {self.count if steps is None else steps}, ptr %base, i64 {last})"
        )
        self.b.emit(f"ret i64 {result}")
        raise Ended

    def leave(self, action: int) -> NoReturn:
        if (interpreter := self.interpreter) is not None:
            others = self.field("virtual") != 0
            if action == Action.TRAP:
                others = others & (self.delegated() ^ 1)
            self.when(others, lambda: self.tail(f"@{interpreter}"))
        self.set_field("action", Int(action))
        self.tail("@leave")

    def delegated(self) -> Word:
        """Whether the exception `cause` goes to S by the hart's own medeleg."""
        return (self.priv <= S) & ((self.medeleg >> self.field("cause") & 1) == 1)

    # Operands, from the record

    def byte(self, at: int) -> Word:
        return zext(self.peek(self.pointer(self.rec, at), 8))

    def immediate(self) -> Word:
        return self.b.op(f"sext i32 {self.peek(self.pointer(self.rec, 8), 32)} to i64", 64)

    def register(self, at: int, file: str) -> str:
        index = self.byte(at)
        return self.b.value(f"getelementptr i64, ptr {self.pointer('%state', OFFSETS[file])}, i64 {index}")

    def pc(self) -> Word:
        place = self.b.op(f"ptrtoint ptr {self.rec} to i64", 64)
        return self.page_va + (place - self.page_base >> 3)

    def operand(self, row: Insn, name: str) -> Word:
        if name in ("rs1", "rs2"):
            return self.peek(self.register(13 if name == "rs1" else 14, "x"))
        if name in ("fs1", "fs2", "fs3"):
            return self.peek(self.register({"fs1": 13, "fs2": 14, "fs3": 15}[name], "f"))
        if name == "uimm":
            return self.byte(13)
        if name == "rm":
            return low(self.immediate(), 3)
        return self.immediate()

    # Going on

    def handler_at(self, place: str) -> str:
        """The handler whose distance from the decoder is at `place`."""
        delta = sext(self.peek(place, 32))
        return self.b.value(f"getelementptr i8, ptr %base, i64 {delta}")

    def go(self, rec: str, steps: Word) -> NoReturn:
        """Jump to a record of the page."""
        self.tail(self.handler_at(rec), rec, steps)

    def go_on(self, steps: Word) -> NoReturn:
        """On to the record of the next instruction, with the handler that this record has linked to it."""
        handler = self.handler_at(self.pointer(self.rec, layout.NEXT))
        self.tail(handler, self.pointer(self.rec, RECORD * self.length // 2), steps, self.last)

    def goto(self, pc: Word, steps: Word, check: bool) -> NoReturn:
        """To any address, through the fetch TLB."""
        g = self.geometry
        page = pc & -4096
        entry = self.pointer(self.address(self.fetch_tlb), (pc >> 12 & g.sets - 1) << 4)
        ready = self.peek(entry) == page
        if check:
            ready = ready & (steps < self.limit)
        if self.check:
            ready = ready & (((self.mip | self.lines) & self.mie) == 0)

        def hit() -> None:
            first = self.peek(self.pointer(entry, 8))
            self.page_va, self.page_base = page, first
            self.go(self.address(first + ((pc & 4095) << 3)), steps)

        def other() -> None:
            self.set_field("pc", pc)
            self.tail("@attention" if check else "@fetch", steps=steps)

        self.when(ready, hit, other)
        raise AssertionError

    def write(self, row: Insn, result: Word | None) -> None:
        """Write what the meaning returned."""
        if result is not None:
            self.poke(self.register(12, "x" if "rd" in row.fields else "f"), result)
            if "rd" in row.fields:
                self.last = result

    def finish(self) -> None:
        """Go on to what follows."""
        steps = self.steps() + 1
        kind, word = self.transfer
        if kind == "jump":
            assert word is not None
            self.goto(word, steps, True)
        if kind == "branch":
            if word is None:
                self._taken(steps)
            else:
                self.when(word, lambda: self._taken(steps), lambda: self._next(steps))
        else:
            self._next(steps)

    def _next(self, steps: Word) -> None:
        if self.again or self.check:
            pc = self.pc() + self.length
            if not self.check:
                self.when((pc & 4095) < self.length, lambda: self.goto(pc, steps, True))  # a page is entered
                self.goto(pc, steps, False)
            self.set_field("pc", pc)
            waiting = ((self.mip | self.lines) & self.mie) != 0
            attention = waiting | (steps >= self.limit)
            self.when(attention, lambda: self.tail("@attention", steps=steps))
            if self.again:
                self.tail("@fetch", steps=steps)
        self.go_on(steps)

    def _taken(self, steps: Word) -> None:
        if self.near == "far":
            self.goto(self.pc() + self.immediate(), steps, True)
        rec = self.pointer(self.rec, self.immediate())
        if self.near == "backward":

            def late() -> None:
                place = self.b.op(f"ptrtoint ptr {rec} to i64", 64)
                self.set_field("pc", self.page_va + (place - self.page_base >> 3))
                self.tail("@attention", steps=steps)

            self.when(steps >= self.limit, late)
        self.go(rec, steps)

    # m

    def _host(self, va: Word, size: int, write: bool, aligned: bool = False, slow_path: str = "") -> str:
        """The host address of an access: a TLB hit, or the slow path, which may not come back."""
        hit, entry = self._hit(va, size, write)
        slow = partial(self._missed, va, size, write, aligned, slow_path or ("slow_store" if write else "slow_load"))
        return self.address(self.when(hit, lambda: va + self.peek(self.pointer(entry, 8)), slow))

    def _found(self, va: Word, size: int, write: bool, aligned: bool) -> tuple[str, Word]:
        """The host address and the physical address of an access."""
        host = self._host(va, size, write, aligned)
        hit, _ = self._hit(va, size, write)
        inside = va & 4095
        page = self.when(hit, lambda: self.peek(self.physical_page(va, write)), lambda: self.physical & -4096)
        return host, page | inside

    def _hit(self, va: Word, size: int, write: bool) -> tuple[Word, str]:
        """Whether the TLB has it, and its entry."""
        g = self.geometry
        entry = self.pointer(
            self.address(self.data_tlb), ((va >> 12 & g.sets - 1) << 4) + (g.sets * ENTRY if write else 0)
        )
        return (va & (-4096 | size - 1)) == self.peek(entry), entry

    def _missed(self, va: Word, size: int, write: bool, aligned: bool, name: str) -> Word:
        if self.twin is not None:
            self.tail(f"@{self.twin}")
        if aligned:
            misaligned = (va & size - 1) != 0
            self.when(misaligned, lambda: self.trap(MISALIGNED[Access.STORE if write else Access.LOAD], va))
        host = self.b.op(f"call i64 @{name}(ptr %state, i64 {va}, i64 {size})", 64)
        self.when(host == 0, lambda: self.tail("@leave"))
        return host

    def load(self, va: Word, bits: int) -> Word:
        return self.peek(self._host(va, bits // 8, False), bits, 1)

    def store(self, va: Word, value: Word) -> None:
        self.poke(self._host(va, value.width // 8, True), value, 1)

    def amo(self, va: Word, bits: int, change: Callable[[Word], Word]) -> Word:
        host = self._host(va, bits // 8, True, aligned=True)
        old = self.peek(host, bits)
        self.poke(host, change(old))
        return old

    def _reservable(self, va: Word, bits: int, write: bool) -> tuple[str, Word]:
        """The host address of an access, and its granule: the physical address of 64 bytes."""
        host, pa = self._found(va, bits // 8, write, aligned=True)
        return host, pa & -64

    def load_reserved(self, va: Word, bits: int) -> Word:
        host, granule = self._reservable(va, bits, False)
        self.reservation = granule
        return self.peek(host, bits)

    def store_conditional(self, va: Word, value: Word) -> Word:
        host, granule = self._reservable(va, value.width, True)
        held = self.reservation == granule
        self.reservation = Int(-1)
        self.when(held, lambda: self.poke(host, value))
        return zext(held ^ 1)

    def zero_block(self, va: Word) -> None:
        host = self._host(va & -64, 64, True, slow_path="slow_zero")
        words = [self.pointer(host, n) for n in range(0, 64, 8)]

        def count() -> None:
            sink = self.b.op(f"ptrtoint ptr {self.pointer('%state', OFFSETS['sink'])} to i64", 64)
            blank = self.b.op(f"ptrtoint ptr {host} to i64", 64) == sink
            before = reduce(or_, map(self.peek, words))
            for n, more in enumerate((Int(1), zext(before == 0), zext(blank))):
                place = self.pointer("%state", OFFSETS["zeroes"] + 8 * n)
                self.poke(place, self.peek(place) + more)

        self.when((va & 4032) == 0, count)
        for word in words:
            self.poke(word, Int(0))

    def touch(self, va: Word) -> None:
        """Where a load is permitted nothing more is asked; the reference sees to the rest."""
        g = self.geometry
        entry = self.pointer(self.address(self.data_tlb), (va >> 12 & g.sets - 1) << 4)

        def slow() -> None:
            host = self.b.op(f"call i64 @slow_load(ptr %state, i64 {va & -64}, i64 64)", 64)
            self.when(host == 0, self.rare)

        self.when(self.peek(entry) != va & -4096, slow)

    def branch(self, offset: Word, when: Word | None = None) -> None:
        self.transfer = ("branch", when)

    def jump(self, target: Word) -> None:
        self.transfer = ("jump", target)

    # h

    def check_point(self) -> None:
        self.check = True

    def refetch(self) -> None:
        self.again = True

    def wait(self) -> None:
        """A hart with an interrupt pending goes on at once, as idle loops with interrupts off rely on."""

        def leave() -> None:
            self.waiting = Int(1)
            self.set_field("pc", self.pc() + self.length)
            self.set_field("action", Int(Action.WAIT))
            self.set_field("steps", self.steps() + 1)
            self.b.emit("ret i64 0")
            raise Ended

        self.when(((self.mip | self.lines) & self.mie) == 0, leave)
        self.check = True

    def environment_call(self) -> NoReturn:
        priv = self.priv
        self.when((priv == S) & (self.firmware != 0), self.rare)
        self.trap(priv + Cause.ECALL_U)

    # f

    def mode(self, rm: Word) -> Word:
        if isinstance(rm, Int) and rm.value != 7:
            if rm.value > 4:
                self.rare()
            return rm
        frm = low(self.frm, 3)
        mode = frm if isinstance(rm, Int) else select(rm == 7, frm, rm)
        self.when(mode > 4, self.rare)
        return mode

    def raise_flags(self, flags: Word) -> None:
        self.set_field("fflags", self.field("fflags") | zext(flags))

    def _arithmetic(self, name: str, rm: Word, *operands: Word) -> Word:
        b, width = self.b, operands[0].width
        kind = {32: "float", 64: "double"}
        values = [b.value(f"bitcast i{width} {o} to {kind[width]}") for o in operands]
        static = not isinstance(rm, Int)
        if static:
            self.when((rm > 3) & (rm != 7), self.rare)
            mode = select(rm == 7, low(self.frm, 3), rm)
            b.emit(f"call void @host_rounding(ptr %state, i64 {zext(mode)})")
        result_width = 32 if name == "fptrunc" else width
        types = ", ".join(f"{kind[width]} {v}" for v in values)
        overload = f"f{result_width}.f{width}" if name == "fptrunc" else f"f{width}"
        value = b.value(
            f"call {kind[result_width]} @llvm.experimental.constrained.{name}.{overload}({types}, "
            'metadata !"round.dynamic", metadata !"fpexcept.strict") strictfp'
        )
        if static:
            b.emit(f"call void @host_rounding(ptr %state, i64 {self.frm})")
        bits = b.op(f"bitcast {kind[result_width]} {value} to i{result_width}", result_width)
        exponent, canonical = (
            (0x7F800000, 0x7FC00000) if result_width == 32 else (0x7FF << 52, 0xFFF << 51 & ~(1 << 63))
        )
        is_nan = (bits & (1 << result_width - 1) - 1) > exponent
        return select(is_nan, Int(canonical, result_width), bits)

    def add(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic("fadd", rm, a, b)

    def sub(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic("fsub", rm, a, b)

    def mul(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic("fmul", rm, a, b)

    def div(self, a: Word, b: Word, rm: Word) -> Word:
        return self._arithmetic("fdiv", rm, a, b)

    def sqrt(self, a: Word, rm: Word) -> Word:
        return self._arithmetic("sqrt", rm, a)

    def fma(self, a: Word, b: Word, c: Word, rm: Word) -> Word:
        """Some hosts do not signal infinity times zero plus a quiet NaN, so that is seen to here."""
        infinity = 0x7F800000 if a.width == 32 else 0x7FF << 52
        magnitude = (1 << a.width - 1) - 1
        a0, b0 = a & magnitude, b & magnitude
        invalid = (a0 == infinity) & (b0 == 0) | (a0 == 0) & (b0 == infinity)
        result = self._arithmetic("fma", rm, a, b, c)
        self.raise_flags(select(invalid, Int(16, 5), Int(0, 5)))
        return result

    def narrow(self, a: Word, rm: Word) -> Word:
        return self._arithmetic("fptrunc", rm, a)
