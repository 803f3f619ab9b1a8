"""The native decoder, made from the rows: bits to a record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from ringfence.isa.spec import COMPRESSED, ISA, Compressed, Field, Insn, Row, by_specificity
from ringfence.machine.engine import layout
from ringfence.machine.engine.emit import OFFSETS, SIGNATURE, Emit, Ended, Handler
from ringfence.machine.engine.handlers import CALL, DYNAMIC, OTHER, Variant, branches, called, native_csrs, prefix
from ringfence.machine.engine.kernel import delta
from ringfence.machine.engine.layout import Geometry
from ringfence.word import Int, Ir, Word, low, select, zext

_PLACES = {"rd": 12, "fd": 12, "rs1": 13, "fs1": 13, "uimm": 13, "rs2": 14, "fs2": 14, "fs3": 15}
_IMMEDIATE = ("imm", "shamt", "rm")
_FAR_AWAY = -(1 << 40)


def functions(g: Geometry, symbols: set[str]) -> str:
    return "\n".join([_decode(g), _straddle(g), _link(g, 2), _link(g, 4), _word(g, symbols, 2), _word(g, symbols, 4)])


def _word(g: Geometry, symbols: set[str], length: int) -> str:
    """`void @decodeN(record, bits, offset in the page)`."""
    e = Emit(g)
    bits, offset = Ir("%bits", 64, e.b), Ir("%offset", 64, e.b)

    def end() -> None:
        e.b.emit("ret void")
        raise Ended

    def python() -> None:
        e.poke("%record", delta(e, "python"))
        end()

    def leaf(row: Row, call: bool = False) -> None:
        target = row.insn if isinstance(row, Compressed) else row
        assert isinstance(target, Insn)

        def operand(name: str) -> Word:
            if isinstance(row, Compressed):
                source = row.expansion[name]
                return Int(source) if isinstance(source, int) else extract(row.fields[source], bits)
            return extract(row.fields[name], bits)

        def choose(kind: str | int | None) -> Word:
            variant = Variant(target, length, kind)
            symbol = called(variant) if call else variant.symbol
            return delta(e, symbol if symbol in symbols else "python")

        e.poke(e.pointer("%record", layout.NEXT), delta(e, f"link{length}"))
        for name, at in _PLACES.items():
            if name in target.fields:
                value = operand(name)
                if name == "rd":
                    value = select(value == 0, Int(32), value)
                e.poke(e.pointer("%record", at), low(value, 8))
        if branches(target):
            imm = operand("imm")
            near = (offset + imm) < 4096
            e.poke(e.pointer("%record", 8), low(select(near, imm << 3, imm), 32))
            close = select((imm.s > 0), choose("forward"), choose("backward"))
            chosen = select(near, close, choose("far"))
        elif "csr" in target.fields:
            number = operand("csr")
            chosen = delta(e, "python")
            for n in native_csrs(target):
                chosen = select(number == n, choose(n), chosen)
        else:
            for name in _IMMEDIATE:
                if name in target.fields:
                    e.poke(e.pointer("%record", 8), low(operand(name), 32))
            chosen = choose(None)
            if "rm" in target.params:
                chosen = select(operand("rm") == 7, choose(DYNAMIC), choose(OTHER))
        e.poke("%record", chosen)
        end()

    def tree(rows: list[Row], call: bool = False) -> None:
        _tree(e, bits, by_specificity(rows), 0, partial(leaf, call=call), python)

    def instruction() -> None:
        tree(list(ISA.values()))

    def body() -> None:
        if length == 2:
            tree(list(COMPRESSED.values()))
        calls: list[Row] = [replace(row, match=row.match | CALL) for row in ISA.values() if native_csrs(row)]
        e.when((bits & 0x7F) == calls[0].match & 0x7F, lambda: tree(calls, call=True), instruction)

    return e.define(f"internal void @decode{length}(ptr %record, i64 %bits, i64 %offset) noinline nounwind", body)


def extract(field: Field, bits: Word) -> Word:
    """A field's value, sign-extended where it is signed."""
    value: Word = Int(0)
    for p in field.pieces:
        value = value | (bits >> p.source & (1 << p.length) - 1) << p.place
    if field.signed:
        value = (value << 64 - field.width).s >> 64 - field.width
    return value + field.offset if field.offset else value


def _tree(
    e: Emit, bits: Word, rows: list[Row], tested: int, leaf: Callable[[Row], None], illegal: Callable[[], None]
) -> None:
    """Tests the bits that all rows fix by one switch, again and again; then rows one by one, the most specific first.
    Every path ends.
    """
    common = ~tested
    for row in rows:
        common &= row.mask
    if rows and common & 0xFFFFFFFF:
        common &= 0xFFFFFFFF
        shift = (common & -common).bit_length() - 1
        width = 1
        while common >> shift + width & 1:
            width += 1
        groups: dict[int, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.match >> shift & (1 << width) - 1, []).append(row)
        labels = {value: e.b.fresh("case") for value in groups}
        none = e.b.fresh("none")
        key = bits >> shift & (1 << width) - 1
        cases = " ".join(f"i64 {value}, label %{label}" for value, label in labels.items())
        e.b.emit(f"switch i64 {key}, label %{none} [ {cases} ]")
        for value, group in groups.items():
            e.b.block(labels[value])
            with suppress(Ended):
                _tree(e, bits, group, tested | (1 << width) - 1 << shift, leaf, illegal)
        e.b.block(none)
        illegal()
    if not rows:
        illegal()
    row = rows[0]
    rest = row.mask & ~tested
    if not rest and not row.nonzero:
        leaf(row)
    matches: Word = (bits & rest) == (row.match & rest)
    for name in row.nonzero:
        matches = matches & (extract(row.fields[name], bits) != 0)
    e.when(matches, lambda: leaf(row), lambda: _tree(e, bits, rows[1:], tested, leaf, illegal))


def _decode(g: Geometry) -> str:
    """The handler of a record that says nothing yet: decode it, then run it."""
    h = Handler(g, 0)

    def again() -> None:
        h.go("%rec", h.steps())

    def body() -> None:
        first = h.address(h.page_base)
        offset = h.b.op("ptrtoint ptr %rec to i64", 64) - h.page_base >> 3
        # A store into its own instruction has dropped the link behind it too; the page's last leads here then.
        h.when(offset == 4096, lambda: h.tail("@sentinel"))
        number = h.peek(h.pointer(first, layout.FRAME_NUMBER))
        h.poke(h.address(h.machine("writes") + (number << 1)), Int(0, 16))
        h.when(h.breaks(offset), lambda: h.tail("@python"))
        place = h.peek(h.pointer(first, layout.HOST_PAGE)) + offset
        half = zext(h.peek(h.address(place), 16))

        def short() -> None:
            h.b.emit(f"call void @decode2(ptr %rec, i64 {half}, i64 {offset})")
            again()

        h.when((half & 3) != 3, short)
        h.when(offset == 4094, lambda: h.tail("@straddle"))
        bits = zext(h.peek(h.address(place), 32, 2))
        h.b.emit(f"call void @decode4(ptr %rec, i64 {bits}, i64 {offset})")
        again()

    return h.define(f"internal preserve_nonecc i64 @decode{SIGNATURE} nounwind {prefix()}", body)


def _link(g: Geometry, length: int) -> str:
    """The first time that a record goes on: choose the next instruction's handler, and remember it."""
    h = Handler(g, 0)
    last = Ir("%last", 64, h.b)

    def body() -> None:
        h.when(h.peek("%rec", 32) == 0, lambda: h.tail("@decode"))
        before = h.pointer("%rec", -layout.RECORD * length // 2)
        gives = h.peek(h.pointer(h.handler_at(before), layout.GIVES), 32) == 1
        rd, rs1, rs2 = (h.peek(h.pointer(record, at), 8) for record, at in ((before, 12), ("%rec", 13), ("%rec", 14)))
        handler = h.handler_at("%rec")
        chosen = h.peek("%rec", 32)
        for matches, operand in ((rd == rs2, "rs2"), (rd == rs1, "rs1"), ((rd == rs1) & (rd == rs2), "both")):
            link = h.peek(h.pointer(handler, layout.LINKS[operand]), 32)
            chosen = select(gives & matches & (link != 0), link, chosen)
        h.poke(h.pointer(before, layout.NEXT), chosen)
        h.tail(h.handler_at(h.pointer(before, layout.NEXT)), last=last)

    return h.define(f"internal preserve_nonecc i64 @link{length}{SIGNATURE} nounwind {prefix()}", body)


def _straddle(g: Geometry) -> str:
    """An instruction across a page's end: its halves are read each time, into a record of the hart's own."""
    h = Handler(g, 0)

    def body() -> None:
        va = h.page_va + 4096
        entry = h.pointer(h.address(h.fetch_tlb), (va >> 12 & g.sets - 1) << 4)

        def miss() -> Word:
            first = h.b.op(f"call i64 @slow_fetch(ptr %state, i64 {va}, i64 2)", 64)
            h.when(first == 0, lambda: h.tail("@leave"))
            return first

        second = h.when(h.peek(entry) == va, lambda: h.peek(h.pointer(entry, 8)), miss)
        low_page = h.peek(h.pointer(h.address(h.page_base), layout.HOST_PAGE))
        high_page = h.peek(h.pointer(h.address(second), layout.HOST_PAGE))
        bits = zext(h.peek(h.address(low_page + 4094), 16)) | zext(h.peek(h.address(high_page), 16)) << 16
        scratch = h.pointer("%state", OFFSETS["scratch"])
        h.b.emit(f"call void @decode4(ptr {scratch}, i64 {bits}, i64 {_FAR_AWAY})")
        h.poke(h.pointer(scratch, 2 * layout.RECORD), delta(h, "sentinel"))
        place = h.b.op(f"ptrtoint ptr {scratch} to i64", 64)
        h.page_base = place - (layout.RECORDS - 1) * layout.RECORD
        h.go(scratch, h.steps())

    return h.define(f"internal preserve_nonecc i64 @straddle{SIGNATURE} nounwind", body)
