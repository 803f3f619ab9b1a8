"""The engine's own native functions: the TLBs' slow paths, trap entry, check points, and what drops derived state.

What the manuals say in them (the walk, trap entry, the choice of an interrupt) is the rows' own, read over LLVM values.
"""

from __future__ import annotations

from ringfence.isa import trap
from ringfence.isa.paging import Access, effective_privilege, translate
from ringfence.isa.trap import M, S, Status
from ringfence.machine.engine import layout
from ringfence.machine.engine.emit import OFFSETS, SIGNATURE, Emit, Ended, Handler
from ringfence.machine.engine.handlers import prefix
from ringfence.machine.engine.layout import CODE, SLOTS, TABLE, WATCHED_PAGES, WRITABLE, Action, Geometry
from ringfence.word import Int, Ir, Word, low, select, zext

_MACHINE = {name: field.offset for name, field in layout.MACHINE.items()}
_HANDLER = "internal preserve_nonecc i64"


def functions(g: Geometry) -> str:
    """All of them, in textual IR."""
    parts = [
        _loops(g),
        _regime(g),
        _float_state(g),
        _mtime(g),
        *(_slow(g, access) for access in Access),
        _fetch(g),
        _leave(g),
        _leave_at(g),
        _attention(g),
        _sentinel(g),
        _python(g),
        _enter(),
    ]
    return "\n".join(parts)


def _wrap(e: Emit, body: object) -> None:
    """Write a body; its end is the end of every path."""
    assert callable(body)
    try:
        body()
    except Ended:
        return
    raise AssertionError("a path does not end")


def delta(e: Emit, handler: str) -> Word:
    """What a record stores for a handler."""
    return low(e.b.op(f"sub i64 ptrtoint (ptr @{handler} to i64), ptrtoint (ptr @decode to i64)", 64), 32)


def _regime(g: Geometry) -> str:
    """Choose the TLB slots of the hart's regime: everything that a translation depends on beside tables and
    protection.
    """
    e = Emit(g)
    satp = e.satp
    root = select((satp >> 60) == 0, Int(0), satp & ~(0xFFFF << 44))
    priv, data, status = e.priv, effective_privilege(e, Access.LOAD), e.mstatus  # type: ignore[arg-type]

    def key(p: Word) -> Word:
        return select(p == M, Int(0), root) | p << 44 | 1 << 48

    extra = select(data == S, (status >> Status.SUM & 1) << 46, Int(0)) | (status >> Status.MXR & 1) << 47
    for kind, wanted, slots, size in (
        ("fetch", key(priv), g.fetch_tlbs, g.fetch_slot),
        ("data", key(data) | extra, layout.TLBS, g.data_slot),
    ):

        def find(kind: str = kind, wanted: Word = wanted, slots: int = slots, size: int = size) -> None:
            keys, following = (e.pointer("%state", OFFSETS[f"{kind}_{n}"]) for n in ("keys", "next"))
            found = e.b.op(
                f"call i64 @slot(ptr {keys}, i64 {wanted}, ptr {e.pointer('%state', slots)}, i64 {size}, "
                f"ptr {following})",
                64,
            )
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


def _slow(g: Geometry, access: Access) -> str:
    """An access that missed its TLB: the host address (or, for a fetch, the page's first record); 0 with `action` set.

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
        offset, frame = e.frame(pa)
        machine = effective_privilege(e, access) == M  # type: ignore[arg-type]
        bit = (2, 0, 1)[access]
        e.permitted(frame, select(machine, Int(bit + 4), Int(bit)))
        host = e.machine("ram_host") + offset
        flag = e.address(e.machine("flags") + frame)

        def fill(addend: Word) -> None:
            e.poke(entry, page)
            e.poke(e.pointer(entry, 8), addend)

        if access is Access.LOAD:
            fill(host - va)
            e.b.emit(f"ret i64 {host}")
        elif access is Access.STORE:

            def plain() -> None:
                e.poke(flag, e.peek(flag, 8) | WRITABLE)
                fill(host - va)
                e.b.emit(f"ret i64 {host}")
                raise Ended

            e.when((e.peek(flag, 8) & (CODE | TABLE)) == 0, plain)
            ready = e.b.op(f"call i64 @dirty(ptr %state, i64 {offset}, i64 {size}, ptr {flag})", 64)
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

    _wrap(e, body)
    name = ("slow_fetch", "slow_load", "slow_store")[access]
    return e.text(f"internal i64 @{name}(ptr %state, i64 %va, i64 %size) noinline nounwind")


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

        def miss() -> Word:
            first = h.b.op(f"call i64 @slow_fetch(ptr %state, i64 {pc}, i64 2)", 64)
            h.when(first == 0, lambda: h.tail("@leave_at"))
            return first

        first = h.when(h.peek(entry) == page, lambda: h.peek(h.pointer(entry, 8)), miss)
        h.page_va, h.page_base = page, first
        h.go(h.address(first + ((pc & 4095) << 3)), h.steps())

    _wrap(h, body)
    return h.text(f"{_HANDLER} @fetch{SIGNATURE} nounwind")


def _leave(g: Geometry) -> str:
    """Leave at the record's instruction, which has done nothing yet."""
    h = Handler(g, 0)

    def body() -> None:
        h.set_field("pc", h.pc())
        h.tail("@leave_at")

    _wrap(h, body)
    return h.text(f"{_HANDLER} @leave{SIGNATURE} nounwind")


def _leave_at(g: Geometry) -> str:
    """Leave at `pc` of the state; or, where the action is a trap, take it."""
    h = Handler(g, 0)

    def take() -> None:
        trap.enter(h, h.field("cause"), h.field("tval"), h.field("pc"), False)
        h.finish()

    def body() -> None:
        h.when(h.field("action") == Action.TRAP, take)
        h.set_field("steps", h.steps())
        h.b.emit("ret i64 0")
        raise Ended

    _wrap(h, body)
    return h.text(f"{_HANDLER} @leave_at{SIGNATURE} nounwind")


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

    _wrap(h, body)
    return h.text(f"{_HANDLER} @attention{SIGNATURE} nounwind")


def _sentinel(g: Geometry) -> str:
    """The record behind a page's last: execution goes on in the next virtual page."""
    h = Handler(g, 0)
    _wrap(h, lambda: h.goto(h.pc(), h.steps(), True))
    return h.text(f"{_HANDLER} @sentinel{SIGNATURE} nounwind {prefix()}")


def _python(g: Geometry) -> str:
    """The handler of what only the reference does."""
    h = Handler(g, 0)
    _wrap(h, lambda: h.leave(Action.EMULATE))
    return h.text(f"{_HANDLER} @python{SIGNATURE} nounwind {prefix()}")


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


def _loops(g: Geometry) -> str:
    """Those with loops, written out: over TLB slots and harts."""
    entries_data = SLOTS * 2 * g.sets
    return f"""
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; The slot of `key`; or the one whose turn it is, emptied.
define internal i64 @slot(ptr %keys, i64 %key, ptr %slots, i64 %size, ptr %next) nounwind {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %more ]
  %kp = getelementptr i64, ptr %keys, i64 %i
  %k = load i64, ptr %kp
  %same = icmp eq i64 %k, %key
  br i1 %same, label %found, label %more
more:
  %j = add i64 %i, 1
  %end = icmp eq i64 %j, {SLOTS}
  br i1 %end, label %none, label %loop
found:
  %fo = mul i64 %i, %size
  %fp = getelementptr i8, ptr %slots, i64 %fo
  %fa = ptrtoint ptr %fp to i64
  ret i64 %fa
none:
  %n = load i64, ptr %next
  %v = and i64 %n, {SLOTS - 1}
  %n1 = add i64 %n, 1
  store i64 %n1, ptr %next
  %vp = getelementptr i64, ptr %keys, i64 %v
  store i64 %key, ptr %vp
  %vo = mul i64 %v, %size
  %sp = getelementptr i8, ptr %slots, i64 %vo
  br label %clear
clear:
  %c = phi i64 [ 0, %none ], [ %c1, %clear ]
  %cp = getelementptr i8, ptr %sp, i64 %c
  store i64 -1, ptr %cp
  %cq = getelementptr i8, ptr %cp, i64 8
  store i64 -1, ptr %cq
  %c1 = add i64 %c, 16
  %ce = icmp eq i64 %c1, %size
  br i1 %ce, label %done, label %clear
done:
  %sa = ptrtoint ptr %sp to i64
  ret i64 %sa
}}

; No write TLB of any hart holds the frame any more.
define internal void @purge(ptr %state, i64 %frame) nounwind {{
entry:
  %mp = getelementptr i8, ptr %state, i64 {OFFSETS["machine"]}
  %m = load ptr, ptr %mp
  %rp = getelementptr i8, ptr %m, i64 {_MACHINE["ram_host"]}
  %ram = load i64, ptr %rp
  %off = shl i64 %frame, 12
  %host = add i64 %ram, %off
  %fp = getelementptr i8, ptr %m, i64 {_MACHINE["flags"]}
  %flags = load ptr, ptr %fp
  %fl = getelementptr i8, ptr %flags, i64 %frame
  %f0 = load i8, ptr %fl
  %f1 = and i8 %f0, {255 - WRITABLE}
  store i8 %f1, ptr %fl
  %hp = getelementptr i8, ptr %m, i64 {_MACHINE["harts"]}
  %h0 = load ptr, ptr %hp
  %cp = getelementptr i8, ptr %m, i64 {_MACHINE["hart_count"]}
  %count = load i64, ptr %cp
  br label %hart
hart:
  %n = phi i64 [ 0, %entry ], [ %n1, %nexthart ]
  %ho = mul i64 %n, {g.stride}
  %h = getelementptr i8, ptr %h0, i64 %ho
  %t = getelementptr i8, ptr %h, i64 {layout.TLBS}
  br label %loop
loop:
  %i = phi i64 [ 0, %hart ], [ %i1, %more ]
  %s = udiv i64 %i, {g.sets}
  %so = mul i64 %s, {g.sets * 16}
  %eo0 = mul i64 %i, 16
  %eo1 = add i64 %eo0, %so
  %eo = add i64 %eo1, {g.sets * 16}
  %e = getelementptr i8, ptr %t, i64 %eo
  %tag = load i64, ptr %e
  %ap = getelementptr i8, ptr %e, i64 8
  %addend = load i64, ptr %ap
  %page = add i64 %tag, %addend
  %hit = icmp eq i64 %page, %host
  br i1 %hit, label %drop, label %more
drop:
  store i64 -1, ptr %e
  store i64 -1, ptr %ap
  br label %more
more:
  %i1 = add i64 %i, 1
  %end = icmp eq i64 %i1, {entries_data // 2}
  br i1 %end, label %nexthart, label %loop
nexthart:
  %n1 = add i64 %n, 1
  %last = icmp eq i64 %n1, %count
  br i1 %last, label %done, label %hart
done:
  ret void
}}

; A walk reads the frame as the table of `part` of an address space.
define internal void @mark_table(ptr %state, i64 %frame, i64 %part) nounwind {{
  %mp = getelementptr i8, ptr %state, i64 {OFFSETS["machine"]}
  %m = load ptr, ptr %mp
  %fp = getelementptr i8, ptr %m, i64 {_MACHINE["flags"]}
  %flags = load ptr, ptr %fp
  %fl = getelementptr i8, ptr %flags, i64 %frame
  %f0 = load i8, ptr %fl
  %w0 = and i8 %f0, {WRITABLE}
  %w = icmp ne i8 %w0, 0
  br i1 %w, label %purge, label %mark
purge:
  call void @purge(ptr %state, i64 %frame)
  br label %mark
mark:
  %f1 = load i8, ptr %fl
  %was = and i8 %f1, {TABLE}
  %new = icmp eq i8 %was, 0
  %f2 = or i8 %f1, {TABLE}
  store i8 %f2, ptr %fl
  %tp = getelementptr i8, ptr %m, i64 {_MACHINE["tables"]}
  %tables = load ptr, ptr %tp
  %tl = getelementptr i64, ptr %tables, i64 %frame
  %value = select i1 %new, i64 %part, i64 -1
  store i64 %value, ptr %tl
  ret void
}}

; Bytes of a frame that something was derived from are about to change: 0, or the action where that is not for
; native code.
define internal i64 @dirty(ptr %state, i64 %offset, i64 %size, ptr %flag) nounwind {{
entry:
  %mp = getelementptr i8, ptr %state, i64 {OFFSETS["machine"]}
  %m = load ptr, ptr %mp
  %frame = lshr i64 %offset, 12
  %wp = getelementptr i8, ptr %m, i64 {_MACHINE["writes"]}
  %writes = load ptr, ptr %wp
  %wl = getelementptr i16, ptr %writes, i64 %frame
  %w0 = load i16, ptr %wl
  %w1 = add i16 %w0, 1
  store i16 %w1, ptr %wl
  %f = load i8, ptr %flag
  %tb = and i8 %f, {TABLE}
  %table = icmp ne i8 %tb, 0
  %most = select i1 %table, i16 {layout.RETIRE_TABLE}, i16 {layout.RETIRE_CODE}
  %tired = icmp ugt i16 %w1, %most
  br i1 %tired, label %plain, label %kind
plain:
  %cp = getelementptr i8, ptr %state, i64 {OFFSETS["cause"]}
  store i64 %frame, ptr %cp
  ret i64 {Action.PLAIN}
kind:
  br i1 %table, label %walked, label %code
walked:
  %ram.p = getelementptr i8, ptr %m, i64 {_MACHINE["ram_host"]}
  %ram = load ptr, ptr %ram.p
  %pte.o = and i64 %offset, -8
  %pte.p = getelementptr i8, ptr %ram, i64 %pte.o
  %last = add i64 %offset, %size
  %last1 = sub i64 %last, 1
  %pte.o2 = and i64 %last1, -8
  %two = icmp ne i64 %pte.o, %pte.o2
  br i1 %two, label %several, label %one
several:
  %q = phi i64 [ %pte.o, %walked ], [ %q1, %several ]
  %any = phi i64 [ 0, %walked ], [ %any1, %several ]
  %q.p = getelementptr i8, ptr %ram, i64 %q
  %q.e = load i64, ptr %q.p
  %any1 = or i64 %any, %q.e
  %q1 = add i64 %q, 8
  %q.end = icmp ugt i64 %q1, %pte.o2
  br i1 %q.end, label %checked, label %several
checked:
  %any.v = and i64 %any1, 1
  %some.valid = icmp ne i64 %any.v, 0
  br i1 %some.valid, label %emulate, label %code
one:
  %pte = load i64, ptr %pte.p
  %v = and i64 %pte, 1
  %valid = icmp ne i64 %v, 0
  br i1 %valid, label %derived, label %code
derived:
  %tp = getelementptr i8, ptr %m, i64 {_MACHINE["tables"]}
  %tables = load ptr, ptr %tp
  %tl = getelementptr i64, ptr %tables, i64 %frame
  %part = load i64, ptr %tl
  %level = and i64 %part, 15
  %leaf = icmp eq i64 %level, 1
  br i1 %leaf, label %page, label %upper
upper:
  %known = icmp ult i64 %level, 15
  br i1 %known, label %range, label %emulate
range:
  %nine = mul i64 %level, 9
  %shift = add i64 %nine, 3
  %u.in = and i64 %offset, 4088
  %u.i = lshr i64 %u.in, 3
  %u.o = shl i64 %u.i, %shift
  %u.start = and i64 %part, -16
  %u.va = or i64 %u.start, %u.o
  %u.pvp = getelementptr i8, ptr %state, i64 {OFFSETS["page_va"]}
  %u.pv = load i64, ptr %u.pvp
  %u.x = xor i64 %u.pv, %u.va
  %u.y = lshr i64 %u.x, %shift
  %u.self = icmp eq i64 %u.y, 0
  br i1 %u.self, label %emulate, label %flush
flush:
  call void @flush(ptr %m)
  call void @regime(ptr %state)
  %u.f = load i8, ptr %flag
  %u.f1 = and i8 %u.f, {255 - TABLE}
  store i8 %u.f1, ptr %flag
  br label %code
page:
  %start = and i64 %part, -16
  %in = and i64 %offset, 4088
  %va.o = shl i64 %in, 9
  %va = or i64 %start, %va.o
  %pvp = getelementptr i8, ptr %state, i64 {OFFSETS["page_va"]}
  %pv = load i64, ptr %pvp
  %self = icmp eq i64 %pv, %va
  br i1 %self, label %emulate, label %drop
drop:
  call void @drop(ptr %m, i64 %va)
  br label %code
emulate:
  ret i64 {Action.EMULATE}
code:
  %cb = and i8 %f, {CODE}
  %coded = icmp ne i8 %cb, 0
  br i1 %coded, label %records, label %done
records:
  call void @forget(ptr %m, i64 %offset, i64 %size)
  ret i64 0
done:
  ret i64 0
}}

; Records of instructions that hold one of these bytes of RAM, all in one frame, or are linked to one that does, are
; decoded again.
define internal void @forget(ptr %m, i64 %offset, i64 %size) nounwind {{
entry:
  %frame = lshr i64 %offset, 12
  %cp = getelementptr i8, ptr %m, i64 {_MACHINE["code"]}
  %codes = load ptr, ptr %cp
  %cl = getelementptr i64, ptr %codes, i64 %frame
  %first = load ptr, ptr %cl
  %in = and i64 %offset, 4095
  %slot = lshr i64 %in, 1
  %some = icmp ugt i64 %slot, 3
  %before = sub i64 %slot, 3
  %from = select i1 %some, i64 %before, i64 0
  %end0 = add i64 %in, %size
  %end1 = sub i64 %end0, 1
  %to = lshr i64 %end1, 1
  br label %loop
loop:
  %i = phi i64 [ %from, %entry ], [ %i1, %loop ]
  %o = shl i64 %i, 4
  %r = getelementptr i8, ptr %first, i64 %o
  store i64 0, ptr %r
  %i1 = add i64 %i, 1
  %over = icmp ugt i64 %i1, %to
  br i1 %over, label %done, label %loop
done:
  ret void
}}

; No TLB of any hart holds the virtual page, under any regime.
define internal void @drop(ptr %m, i64 %va) nounwind {{
entry:
  %hp = getelementptr i8, ptr %m, i64 {_MACHINE["harts"]}
  %h0 = load ptr, ptr %hp
  %cp = getelementptr i8, ptr %m, i64 {_MACHINE["hart_count"]}
  %count = load i64, ptr %cp
  %number = lshr i64 %va, 12
  %set = and i64 %number, {g.sets - 1}
  %eo = shl i64 %set, 4
  br label %hart
hart:
  %n = phi i64 [ 0, %entry ], [ %n1, %nexthart ]
  %ho = mul i64 %n, {g.stride}
  %h = getelementptr i8, ptr %h0, i64 %ho
  %t0 = getelementptr i8, ptr %h, i64 {layout.TLBS}
  %t = getelementptr i8, ptr %t0, i64 %eo
  br label %loop
loop:
  %i = phi i64 [ 0, %hart ], [ %i1, %more ]
  %so = mul i64 %i, {g.sets * 16}
  %e = getelementptr i8, ptr %t, i64 %so
  %tag = load i64, ptr %e
  %hit = icmp eq i64 %tag, %va
  br i1 %hit, label %drop, label %more
drop:
  store i64 -1, ptr %e
  %ap = getelementptr i8, ptr %e, i64 8
  store i64 -1, ptr %ap
  br label %more
more:
  %i1 = add i64 %i, 1
  %end = icmp eq i64 %i1, {3 * SLOTS}
  br i1 %end, label %nexthart, label %loop
nexthart:
  %n1 = add i64 %n, 1
  %last = icmp eq i64 %n1, %count
  br i1 %last, label %done, label %hart
done:
  ret void
}}

; No TLB of any hart holds anything; the hart that runs has to choose its slots anew.
define internal void @flush(ptr %m) nounwind {{
entry:
  %hp = getelementptr i8, ptr %m, i64 {_MACHINE["harts"]}
  %h0 = load ptr, ptr %hp
  %cp = getelementptr i8, ptr %m, i64 {_MACHINE["hart_count"]}
  %count = load i64, ptr %cp
  br label %hart
hart:
  %n = phi i64 [ 0, %entry ], [ %n1, %nexthart ]
  %ho = mul i64 %n, {g.stride}
  %h = getelementptr i8, ptr %h0, i64 %ho
  %dk = getelementptr i8, ptr %h, i64 {OFFSETS["data_key"]}
  store i64 0, ptr %dk
  %fk = getelementptr i8, ptr %h, i64 {OFFSETS["fetch_key"]}
  store i64 0, ptr %fk
  %ks = getelementptr i8, ptr %h, i64 {OFFSETS["data_keys"]}
  br label %loop
loop:
  %i = phi i64 [ 0, %hart ], [ %i1, %loop ]
  %k = getelementptr i64, ptr %ks, i64 %i
  store i64 0, ptr %k
  %i1 = add i64 %i, 1
  %end = icmp eq i64 %i1, {2 * SLOTS}
  br i1 %end, label %nexthart, label %loop
nexthart:
  %n1 = add i64 %n, 1
  %last = icmp eq i64 %n1, %count
  br i1 %last, label %done, label %hart
done:
  ret void
}}

; What Python calls before it changes bytes of one frame from which code was decoded.
define void @forget_code(ptr %m, i64 %offset, i64 %size) nounwind {{
  call void @forget(ptr %m, i64 %offset, i64 %size)
  ret void
}}
"""
