"""The engine's own native functions: the TLBs' slow paths, trap entry, check points.

What the manuals say in them (the walk, trap entry, the choice of an interrupt) is the rows' own, read over LLVM values.
"""

from __future__ import annotations

from ringfence.isa import trap
from ringfence.isa.paging import Access, effective_privilege, space, translate
from ringfence.isa.trap import M, S, Status
from ringfence.machine.engine import layout
from ringfence.machine.engine.emit import OFFSETS, SIGNATURE, Emit, Ended, Handler
from ringfence.machine.engine.handlers import prefix
from ringfence.machine.engine.layout import CODE, DERIVED, WATCHED_PAGES, WRITABLE, Action, Geometry
from ringfence.machine.memory import EXECUTE, READ, WRITE
from ringfence.word import Int, Ir, Word, low, select, zext

_MACHINE = {name: field.offset for name, field in layout.MACHINE.items()}
_HANDLER = "internal preserve_nonecc i64"


def functions(g: Geometry) -> str:
    """All of them, in textual IR."""
    parts = [
        _regime(g),
        _float_state(g),
        _mtime(g),
        *(_slow(g, access) for access in Access),
        _slow(g, Access.STORE, zero=True),
        _fetch(g),
        _leave(g),
        _leave_at(g),
        _attention(g),
        _sentinel(g),
        _python(g),
        _enter(),
    ]
    return "\n".join(parts)


def delta(e: Emit, handler: str) -> Word:
    """What a record stores for a handler."""
    return low(e.b.op(f"sub i64 ptrtoint (ptr @{handler} to i64), ptrtoint (ptr @decode to i64)", 64), 32)


def _regime(g: Geometry) -> str:
    """Choose the TLB slots of the hart's regime: everything that a translation depends on beside tables and
    protection.
    """
    e = Emit(g)
    own, fetched = (e.space(space(e, access)) for access in (Access.LOAD, Access.FETCH))  # type: ignore[arg-type]
    priv, data, status = e.priv, effective_privilege(e, Access.LOAD), e.mstatus  # type: ignore[arg-type]

    def key(p: Word, space: Word) -> Word:
        return select(p == M, Int(0), space) | p << 44 | 1 << 48

    extra = select(data == S, (status >> Status.SUM & 1) << 46, Int(0)) | (status >> Status.MXR & 1) << 47
    for kind, wanted, slots, size in (
        ("fetch", key(priv, fetched), g.fetch_tlbs, g.fetch_slot),
        ("data", key(data, own) | extra, layout.TLBS, g.data_slot),
    ):

        def find(kind: str = kind, wanted: Word = wanted, slots: int = slots, size: int = size) -> None:
            keys = OFFSETS[f"{kind}_keys"]
            found = e.b.op(f"call i64 @slot(ptr %state, i64 {wanted}, i64 {keys}, i64 {slots}, i64 {size})", 64)
            e.set_field(f"{kind}_tlb", found)
            e.set_field(f"{kind}_key", wanted)

        e.when(e.field(f"{kind}_key") != wanted, find)
    e.b.emit("ret void")
    return e.text("internal void @regime(ptr %state) nounwind")


def _float_state(g: Geometry) -> str:
    """Rows that change F or D's state run natively while FS is dirty and the host knows the rounding mode; those that
    only read it, as the stores of `setjmp`, while FS is not off.
    """
    e = Emit(g)
    frm = e.frm
    state = e.mstatus >> Status.FS & 3
    e.set_field("float_slow", zext((state != 3) | (frm > 3)) << 1 | zext(state == 0))
    e.b.emit(f"call void @host_rounding(ptr %state, i64 {frm})")
    e.b.emit("ret void")
    return e.text("internal void @float_state(ptr %state) nounwind")


def _mtime(g: Geometry) -> str:
    """Ticks of 100 ns: from the steps, or from the host's monotonic clock."""
    e = Emit(g)
    steps = Ir("%steps", 64, e.b)

    def host() -> Word:
        spec = e.pointer("%state", OFFSETS["timespec"])
        function = e.address(e.field("clock_host"))
        e.b.emit(f"call i32 {function}(i32 1, ptr {spec})")
        now = e.peek(spec) * 1_000_000_000 + e.peek(e.pointer(spec, 8))
        return now - e.field("clock_base_ns")

    ns = e.when(e.field("clock_host") == 0, lambda: steps * e.field("clock_step_ns") + e.field("clock_base_ns"), host)
    e.b.emit(f"ret i64 {ns // 100 + e.field('clock_offset')}")
    return e.text("internal i64 @mtime(ptr %state, i64 %steps) nounwind")


def _slow(g: Geometry, access: Access, zero: bool = False) -> str:
    """An access that missed its TLB: the host address (or, for a fetch, the page's first record); 0 with `action` set.
    `zero`: nothing but zeroes is written, so where there is no frame none is needed.

    What is derived from a frame that a store is about to change is dropped before it."""
    e = Emit(g)
    va, size = Ir("%va", 64, e.b), Ir("%size", 64, e.b)

    def body() -> None:
        inside = va & 4095
        page = va & -4096
        if access is not Access.FETCH:
            e.when(inside + size > 4096, e.rare)
            e.when(e.machine("watching") != 0, lambda: _unwatched(e, page))
            half = g.sets * 16 if access is Access.STORE else 0
            entry = e.pointer(e.address(e.data_tlb), ((va >> 12 & g.sets - 1) << 4) + half)

            def misaligned_hit() -> None:
                e.b.emit(f"ret i64 {va + e.peek(e.pointer(entry, 8))}")
                raise Ended

            e.when(e.peek(entry) == page, misaligned_hit)
        else:
            entry = e.pointer(e.address(e.fetch_tlb), (va >> 12 & g.sets - 1) << 4)
        pa = translate(e, va, access)  # type: ignore[arg-type]
        e.set_field("physical", pa)

        machine = effective_privilege(e, access) == M  # type: ignore[arg-type]
        bit = (2, 0, 1)[access]
        needed = select(machine, Int(bit + 4), Int(bit))

        def sink(guest: Word) -> None:
            e.permitted(guest, needed)
            place = e.pointer("%state", OFFSETS["sink"])
            e.b.emit(f"ret i64 {e.b.op(f'ptrtoint ptr {place} to i64', 64)}")
            raise Ended

        place, guest, frame = e.frame(pa, (EXECUTE, READ, WRITE)[access], sink if zero else None)
        e.permitted(guest, needed)
        host = e.machine("ram_host") + place
        flag = e.address(e.machine("flags") + frame)

        def fill(addend: Word) -> None:
            e.poke(entry, page)
            e.poke(e.pointer(entry, 8), addend)
            if access is not Access.FETCH:
                e.poke(e.physical_page(va, access is Access.STORE), pa & -4096)

        if access is Access.LOAD:
            fill(host - va)
            e.b.emit(f"ret i64 {host}")
        elif access is Access.STORE:

            def plain() -> None:
                e.poke(flag, e.peek(flag, 8) | WRITABLE)
                fill(host - va)
                e.b.emit(f"ret i64 {host}")
                raise Ended

            e.when((e.peek(flag, 8) & DERIVED) == 0, plain)
            ready = e.b.op(f"call i64 @dirty(ptr %state, i64 {place}, i64 {size})", 64)
            e.when(ready != 0, lambda: e.leave_with(ready))
            e.b.emit(f"ret i64 {host}")
        else:
            slot = e.address(e.machine("code") + (frame << 3))

            def new() -> Word:
                next_ = e.pointer(e.address(e.field("machine")), _MACHINE["code_next"])
                start = e.peek(next_)
                after = start + layout.CODE_PAGE
                e.when(after > e.machine("code_end"), lambda: e.leave(Action.FULL))
                e.poke(next_, after)
                first = start + layout.HEADER
                records = e.address(first)
                e.poke(e.pointer(records, layout.HOST_PAGE), host & -4096)
                e.poke(e.pointer(records, layout.FRAME_NUMBER), frame)
                e.poke(e.pointer(records, layout.RECORDS * layout.RECORD), delta(e, "sentinel"))
                e.poke(slot, first)
                return first

            def mark() -> None:
                e.when(
                    (e.peek(flag, 8) & WRITABLE) != 0, lambda: e.b.emit(f"call void @purge(ptr %state, i64 {frame})")
                )
                e.poke(flag, e.peek(flag, 8) | CODE)

            known = e.peek(slot)
            first = e.when(known == 0, new, lambda: known)
            e.when((e.peek(flag, 8) & CODE) == 0, mark)
            fill(first)
            e.b.emit(f"ret i64 {first}")
        raise Ended

    name = "slow_zero" if zero else ("slow_fetch", "slow_load", "slow_store")[access]
    return e.define(f"internal i64 @{name}(ptr %state, i64 %va, i64 %size) noinline nounwind", body)


def _unwatched(e: Emit, page: Word) -> None:
    """Accesses to a page with watchpoints are the reference's."""
    watched = e.pointer(e.address(e.field("machine")), _MACHINE["watched"])
    for n in range(WATCHED_PAGES):
        e.when(e.peek(e.pointer(watched, 8 * n)) == page, e.rare)


def _fetch(g: Geometry) -> str:
    """Go to `pc` of the state."""
    h = Handler(g, 0)

    def body() -> None:
        pc = h.field("pc")
        page = pc & -4096
        entry = h.pointer(h.address(h.fetch_tlb), (pc >> 12 & g.sets - 1) << 4)

        def reference() -> None:
            h.set_field("action", Int(Action.EMULATE))
            h.tail("@leave_at")

        def miss() -> Word:
            h.when(h.breaks(pc & 4095), reference)  # a breakpoint is met before the fetch is tried
            first = h.b.op(f"call i64 @slow_fetch(ptr %state, i64 {pc}, i64 2)", 64)
            h.when(first == 0, lambda: h.tail("@leave_at"))
            return first

        first = h.when(h.peek(entry) == page, lambda: h.peek(h.pointer(entry, 8)), miss)
        h.page_va, h.page_base = page, first
        h.go(h.address(first + ((pc & 4095) << 3)), h.steps())

    return h.define(f"{_HANDLER} @fetch{SIGNATURE} nounwind", body)


def _leave(g: Geometry) -> str:
    """Leave at the record's instruction, which has done nothing yet."""
    h = Handler(g, 0)

    def body() -> None:
        h.set_field("pc", h.pc())
        h.tail("@leave_at")

    return h.define(f"{_HANDLER} @leave{SIGNATURE} nounwind", body)


def _leave_at(g: Geometry) -> str:
    """Leave at `pc` of the state; or, where the action is a trap, take it."""
    h = Handler(g, 0)

    def lent() -> None:
        h.set_field("action", Int(Action.LENT))
        h.set_field("steps", h.steps())
        h.b.emit("ret i64 0")
        raise Ended

    def take() -> None:
        h.when((h.field("lent") != 0) & (h.delegated() ^ 1), lent)
        trap.enter(h, h.field("cause"), h.field("tval"), h.field("pc"), False)
        h.finish()

    def body() -> None:
        h.when(h.field("action") == Action.TRAP, take)
        h.set_field("steps", h.steps())
        h.b.emit("ret i64 0")
        raise Ended

    return h.define(f"{_HANDLER} @leave_at{SIGNATURE} nounwind", body)


def _attention(g: Geometry) -> str:
    """A check point at `pc` of the state where the limit is reached or an interrupt may be pending."""
    h = Handler(g, 0)

    def body() -> None:
        h.set_field("limit", h.field("deadline"))
        h.b.emit("fence seq_cst")

        def leave(action: int) -> None:
            h.set_field("action", Int(action))
            h.set_field("steps", h.steps())
            h.b.emit("ret i64 0")
            raise Ended

        h.when(h.field("kick") != 0, lambda: leave(Action.KICK))
        h.when(h.steps() >= h.field("deadline"), lambda: leave(Action.DEADLINE))
        bits = trap.pending(h)

        def interrupt() -> None:
            trap.enter(h, trap.highest(bits), Int(0), h.field("pc"), True)
            h.finish()

        h.when(bits != 0, interrupt)
        h.tail("@fetch")

    return h.define(f"{_HANDLER} @attention{SIGNATURE} nounwind", body)


def _sentinel(g: Geometry) -> str:
    """The record behind a page's last: execution goes on in the next virtual page."""
    h = Handler(g, 0)
    return h.define(f"{_HANDLER} @sentinel{SIGNATURE} nounwind {prefix()}", lambda: h.goto(h.pc(), h.steps(), True))


def _python(g: Geometry) -> str:
    """The handler of what only the reference does."""
    h = Handler(g, 0)
    return h.define(f"{_HANDLER} @python{SIGNATURE} nounwind {prefix()}", lambda: h.leave(Action.EMULATE))


def _enter() -> str:
    """What Python calls: run the hart from its pc until something must be seen to."""
    steps, action = OFFSETS["steps"], OFFSETS["action"]
    return f"""
define i64 @enter(ptr %state) nounwind {{
  call void @host_enter(ptr %state)
  call void @regime(ptr %state)
  call void @float_state(ptr %state)
  %p = getelementptr i8, ptr %state, i64 {steps}
  %n = load i64, ptr %p
  %r = call preserve_nonecc i64 @fetch(ptr %state, ptr null, i64 %n, ptr @decode, i64 0)
  call void @host_leave(ptr %state)
  %a = getelementptr i8, ptr %state, i64 {action}
  %why = load i64, ptr %a
  ret i64 %why
}}
"""
