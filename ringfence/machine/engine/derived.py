"""Native code's way to drop what was derived from RAM: translations by frame, by page or all; records by byte.

A frame's flags say what was derived from it. All functions take the state of the hart that runs, and see to all harts.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.machine.engine import layout
from ringfence.machine.engine.emit import OFFSETS, Emit, Ended
from ringfence.machine.engine.layout import (
    CODE,
    ENTRY,
    RECORD,
    SHADOWED,
    SLOTS,
    TABLE,
    TLBS,
    WALKS,
    WALKS_TURNS,
    WATCHED,
    WRITABLE,
    Action,
    Geometry,
)
from ringfence.word import Int, Ir, Word, select

_EMPTY = Int(-1)
"""The tag of an entry that holds nothing, and its addend."""


def functions(g: Geometry) -> str:
    """All of them, in textual IR."""
    return "\n".join(
        [
            _function(g, "internal i64 @slot(ptr %state, i64 %key, i64 %keys, i64 %slots, i64 %size)", _slot),
            _function(g, "internal void @purge(ptr %state, i64 %frame)", _purge),
            _function(g, "internal void @drop(ptr %state, i64 %va)", _drop),
            _function(g, "void @drop_own(ptr %state, i64 %va) cold noinline", _drop_own),
            _function(g, "internal void @flush(ptr %state)", _flush),
            _function(g, "internal void @flush_own(ptr %state) cold noinline", _flush_own),
            _function(
                g, "internal i64 @find(ptr %state, i64 %at, i64 %count, i64 %one, i64 %other) cold noinline", _find
            ),
            _function(g, "internal void @mark_table(ptr %state, i64 %frame, i64 %part)", _mark_table),
            _function(g, "void @forget(ptr %state, i64 %offset, i64 %size)", _forget),
            _function(g, "internal i64 @refill(ptr %state, i64 %place) cold noinline", _refill),
            _function(g, "internal i64 @dirty(ptr %state, i64 %offset, i64 %size)", _dirty),
        ]
    )


def _function(g: Geometry, header: str, body: Callable[[Emit], None]) -> str:
    e = Emit(g)
    return e.define(f"{header} nounwind", lambda: body(e))


def _parameter(e: Emit, name: str) -> Word:
    return Ir(f"%{name}", 64, e.b)


def _give(e: Emit, value: Word | int) -> None:
    e.b.emit(f"ret i64 {value}")
    raise Ended


def _each_hart(e: Emit, body: Callable[[Word], None]) -> None:
    """`body` for the address of each hart's state."""
    harts = e.machine("harts")
    e.loop(harts, harts + (e.machine("hart_count") << 3), 8, lambda at: body(e.peek(e.address(at))))


def _empty(e: Emit, entry: Word) -> None:
    e.poke(e.address(entry), _EMPTY)
    e.poke(e.address(entry + 8), _EMPTY)


def _slot(e: Emit) -> None:
    """The TLB of the regime `key` among those that lie at `slots` of the state; or the one whose turn it is, emptied.
    `keys`: where their keys stand, with the number of the next to give up behind them.
    """
    key, keys, slots, size = (_parameter(e, name) for name in ("key", "keys", "slots", "size"))
    state = e.b.op("ptrtoint ptr %state to i64", 64)

    def place(n: Word) -> Word:
        return state + slots + n * size

    def look(n: Word) -> None:
        e.when(e.peek(e.address(state + keys + (n << 3))) == key, lambda: _give(e, place(n)))

    e.loop(Int(0), Int(SLOTS), 1, look)
    turn = e.address(state + keys + 8 * SLOTS)
    number = e.peek(turn)
    e.poke(turn, number + 1)
    number = number & SLOTS - 1
    e.poke(e.address(state + keys + (number << 3)), key)
    start = place(number)
    e.loop(start, start + size, ENTRY, lambda entry: _empty(e, entry))
    _give(e, start)


def _purge(e: Emit) -> None:
    """No write TLB of any hart holds the frame any more."""
    g, frame = e.geometry, _parameter(e, "frame")
    flag = e.address(e.machine("flags") + frame)
    e.poke(flag, e.peek(flag, 8) & 0xFF ^ WRITABLE)
    host = e.machine("ram_host") + (frame << 12)

    def entry(at: Word) -> None:
        held = e.peek(e.address(at)) + e.peek(e.address(at + 8))
        e.when(held == host, lambda: _empty(e, at))

    def hart(state: Word) -> None:
        def slot(n: Word) -> None:
            start = state + TLBS + g.sets * ENTRY + n * g.data_slot  # behind the read half
            used = e.peek(e.address(state + OFFSETS["data_keys"] + (n << 3))) != 0
            e.when(used, lambda: e.loop(start, start + g.sets * ENTRY, ENTRY, entry))

        e.loop(Int(0), Int(SLOTS), 1, slot)

    _each_hart(e, hart)


def _drop(e: Emit) -> None:
    """No TLB of any hart holds the virtual page, under any regime."""
    _each_hart(e, lambda state: _drop_page(e, state))


def _drop_own(e: Emit) -> None:
    """No TLB of this hart holds it."""
    _drop_page(e, e.b.op("ptrtoint ptr %state to i64", 64))


def _drop_page(e: Emit, state: Word) -> None:
    g, va = e.geometry, _parameter(e, "va")

    def entry(at: Word) -> None:
        e.when(e.peek(e.address(at)) == va, lambda: _empty(e, at))

    inside = (va >> 12 & g.sets - 1) * ENTRY
    for start, size in ((TLBS, g.data_slot), (TLBS + g.sets * ENTRY, g.data_slot), (g.fetch_tlbs, g.fetch_slot)):
        first = state + start + inside
        e.loop(first, first + SLOTS * size, size, entry)


def _flush(e: Emit) -> None:
    """No TLB of any hart holds anything, under any regime."""
    _each_hart(e, lambda state: _flush_hart(e, state))
    e.regime()


def _flush_own(e: Emit) -> None:
    """No TLB of this hart does."""
    _flush_hart(e, e.b.op("ptrtoint ptr %state to i64", 64))
    e.regime()


def _flush_hart(e: Emit, state: Word) -> None:
    for name in ("data_key", "fetch_key"):
        e.poke(e.address(state + OFFSETS[name]), Int(0))
    for name in ("data_keys", "fetch_keys"):
        first = state + OFFSETS[name]
        e.loop(first, first + 8 * SLOTS, 8, lambda key: e.poke(e.address(key), Int(0)))
    at = e.address(state + OFFSETS["walks_turn"])
    turn = e.peek(at) + 1 & WALKS_TURNS - 1
    e.poke(at, turn)
    first = state + OFFSETS["walks"]
    e.when(turn == 0, lambda: e.loop(first, first + 32 * WALKS, 32, lambda walk: e.poke(e.address(walk), Int(0))))


def _find(e: Emit) -> None:
    """The number of the first of `count` words at `at` of the state that is one of two; `count`: there is none."""
    at, count, one, other = (_parameter(e, name) for name in ("at", "count", "one", "other"))

    def look(n: Word) -> None:
        word = e.peek(e.pointer("%state", at + (n << 3)))
        e.when((word == one) | (word == other), lambda: _give(e, n))

    e.loop(Int(0), count, 1, look)
    _give(e, count)


def _mark_table(e: Emit) -> None:
    """A walk reads the frame as the table of `part` of an address space; of several parts: -1."""
    frame, part = _parameter(e, "frame"), _parameter(e, "part")
    flag = e.address(e.machine("flags") + frame)
    e.when((e.peek(flag, 8) & WRITABLE) != 0, lambda: e.b.emit(f"call void @purge(ptr %state, i64 {frame})"))
    flags = e.peek(flag, 8)
    e.poke(flag, flags | TABLE)
    e.poke(e.address(e.machine("tables") + (frame << 3)), select((flags & TABLE) == 0, part, _EMPTY))


def _forget(e: Emit) -> None:
    """Records of instructions that hold one of these bytes of RAM, all in one frame from which code was decoded, or
    are linked to one that does, are decoded again.
    """
    offset, size = _parameter(e, "offset"), _parameter(e, "size")
    records = e.peek(e.address(e.machine("code") + (offset >> 12 << 3)))
    inside = offset & 4095
    place = inside >> 1
    first = select(place > 3, place - 3, Int(0))
    stop = (inside + size + 1 >> 1) * RECORD
    e.loop(first * RECORD, stop, RECORD, lambda at: e.poke(e.address(records + at), Int(0)))


def _refill(e: Emit) -> None:
    """An entry of a shadow that was cleared with the one that it follows from: its value, which is written, once that
    one is what it was; else 0. That one may be a shadow's itself.
    """
    place, ram = _parameter(e, "place"), e.machine("ram_host")
    known = e.machine("refills") + layout.refill_slot(place)
    flags = e.peek(e.address(e.machine("flags") + (place >> 12)), 8)
    was = e.peek(e.address(known + 16))
    e.when((e.peek(e.address(known)) != place) | (was == 0) | ((flags & CODE) != 0), lambda: _give(e, Int(0)))
    source = e.peek(e.address(known + 8))
    there = e.peek(e.address(ram + source))
    found = e.when(there == 0, lambda: e.b.op(f"call i64 @refill(ptr %state, i64 {source})", 64), lambda: there)
    e.when(found != was, lambda: _give(e, Int(0)))
    e.poke(e.address(e.machine("writes") + (source >> 12 << 1)), Int(0, 16))
    value = e.peek(e.address(known + 24))
    e.poke(e.address(ram + place), value)
    _give(e, value)


def _dirty(e: Emit) -> None:
    """Bytes of a frame that something was derived from are about to change: 0, or the action where that is not for
    native code.
    """
    offset, size = _parameter(e, "offset"), _parameter(e, "size")
    frame = offset >> 12
    ram = e.machine("ram_host")
    flag = e.address(e.machine("flags") + frame)
    flags = e.peek(flag, 8)
    table = (flags & TABLE) != 0
    writes = e.address(e.machine("writes") + (frame << 1))
    count = e.peek(writes, 16) + 1
    e.poke(writes, count)

    def plain() -> None:
        e.set_field("cause", frame)
        _give(e, Action.PLAIN)

    e.when((flags & WATCHED) != 0, plain)
    e.when(count > select(table, Int(layout.RETIRE_TABLE, 16), Int(layout.RETIRE_CODE, 16)), plain)

    def valid(at: Word) -> Word:
        return (e.peek(e.address(ram + at)) & 1) != 0

    def entry(at: Word) -> None:
        """One valid entry changes: what it maps is dropped, unless it maps the page that runs."""
        part = e.peek(e.address(e.machine("tables") + (frame << 3)))
        level = part & 15  # as `load_pte` gives it, from 1
        e.when(level == 15, lambda: _give(e, Action.EMULATE))
        shift = level * 9 + 3
        va = part & -16 | (at >> 3 & 511) << shift
        e.when((e.page_va ^ va) >> shift == 0, lambda: _give(e, Action.EMULATE))

        def upper() -> None:
            e.b.emit("call void @flush(ptr %state)")
            e.poke(flag, e.peek(flag, 8) & 0xFF ^ TABLE)

        e.when(level == 1, lambda: e.b.emit(f"call void @drop(ptr %state, i64 {va})"), upper)

    def shadow(of: Word) -> None:
        """What followed from the entries in one shadow is dropped; what followed from those, before."""
        start = (of << 12) + (offset & 4088)
        length = ((offset + size - 1) & 4088) - (offset & 4088) + 8

        def clear() -> None:
            ready = e.b.op(f"call i64 @dirty(ptr %state, i64 {start}, i64 {length})", 64)
            e.when(ready != 0, lambda: _give(e, ready))
            e.loop(start, start + length, 8, lambda at: e.poke(e.address(ram + at), Int(0)))

        e.when((length != 8) | (e.peek(e.address(ram + start)) != 0), clear)

    def shadowed() -> None:
        listed = e.peek(e.address(e.machine("shadows") + (frame << 3)))
        stop = listed + (e.peek(e.address(listed)) + 1 << 3)
        e.loop(listed + 8, stop, 8, lambda at: shadow(e.peek(e.address(at))))

    e.when((flags & SHADOWED) != 0, shadowed)

    def walked() -> None:
        first, last = offset & -8, offset + size - 1 & -8

        def several() -> None:
            e.loop(first, last + 8, 8, lambda at: e.when(valid(at), lambda: _give(e, Action.EMULATE)))

        e.when(first == last, lambda: e.when(valid(first), lambda: entry(first)), several)

    e.when(table, walked)
    e.when((flags & CODE) != 0, lambda: e.b.emit(f"call void @forget(ptr %state, i64 {offset}, i64 {size})"))
    _give(e, 0)
