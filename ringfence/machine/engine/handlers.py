"""A native handler for each row, and the variants that a decoder chooses among."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from ringfence.isa.spec import COMPRESSED, ISA, Insn
from ringfence.machine.engine.emit import SIGNATURE, Ended, Handler
from ringfence.machine.engine.interpreter import Interpreter
from ringfence.machine.engine.layout import LINKS, Action, Geometry
from ringfence.word import Int, Ir, Word

NEAR = ("forward", "backward", "far")
DYNAMIC, OTHER = "dynamic", "other"
CSR_MOVES = ("csrr", "csrrw", "csrrs", "csrrc")
CSR_IMMEDIATE = ("csrrwi", "csrrsi", "csrrci")
HOT = (
    0x100,
    0x104,
    0x105,
    0x140,
    0x141,
    0x142,
    0x143,
    0x144,
    0x180,
    0x300,
    0x304,
    0x305,
    0x340,
    0x341,
    0x342,
    0x343,
    0x344,
)
FLOAT = (0x001, 0x002, 0x003)
COUNTERS = (0xC00, 0xC01, 0xC02)
REFILL = (0x5C1, 0x5C2, 0x5C3, 0x5C4)
MASKED = (0x100, 0x104, 0x144, 0x300, 0x304, 0x344)
"""CSRs with native moves: those of trap entry and exit, of TLB refill, of floating point and of time."""


CALL = 1 << 3
"""What makes the opcode of a CSR's row custom-3: no instruction, by which translated code calls its monitor
(docs/translation.md).
"""
CALLED = (0x100, 0x104, 0x105, 0x140, 0x141, 0x142, 0x143, 0x144)


@dataclass(frozen=True)
class Variant:
    """`row` of `length` bytes, with what is known of it beside its operands."""

    row: Insn
    length: int
    kind: str | int | None = None

    @property
    def symbol(self) -> str:
        return "h_" + "_".join(
            str(p) for p in (self.row.name.replace(".", "_"), self.length, self.kind) if p is not None
        )


def branches(row: Insn) -> bool:
    """A jump by an immediate: its target may be in the page."""
    return row.match & 0x7F in (0b1100011, 0b1101111)


@cache
def lengths(name: str) -> tuple[int, ...]:
    return (2, 4) if any(c.target == name for c in COMPRESSED.values()) else (4,)


def native_csrs(row: Insn) -> tuple[int, ...]:
    if row.name == "csrr":
        return HOT + FLOAT + COUNTERS + REFILL
    if row.name in CSR_MOVES:
        return HOT + FLOAT + (REFILL if row.name == "csrrw" else ())
    if row.name in CSR_IMMEDIATE:
        return MASKED + FLOAT
    return ()


def variants(row: Insn) -> Iterator[Variant]:
    for length in lengths(row.name):
        if "csr" in row.fields:
            yield from (Variant(row, length, n) for n in native_csrs(row))
        elif branches(row):
            yield from (Variant(row, length, near) for near in NEAR)
        elif "rm" in row.params:
            yield from (Variant(row, length, kind) for kind in (DYNAMIC, OTHER))
        else:
            yield Variant(row, length)


def _argument(h: Handler, v: Variant, name: str) -> object:
    if name in ("m", "h", "f"):
        return h
    if name == "pc":
        return h.pc()
    if name == "link":
        return h.pc() + v.length
    if name == "csr":
        assert isinstance(v.kind, int)
        return Int(v.kind, 12)
    if name == "rm" and v.kind == DYNAMIC:
        return Int(7, 3)
    if name == "imm" and branches(v.row):
        return Int(0)  # `branch` takes it from the record
    return h.operand(v.row, name)


def _meaning(h: Handler, v: Variant, known: dict[str, Word] | None = None) -> Word | None:
    """Write the row's meaning; `known` operands are not read from their registers."""
    row = v.row
    if row.floating:
        h.when((h.field("float_slow") & row.floating) != 0, h.rare)
    given = known or {}
    arguments = [given[name] if name in given else _argument(h, v, name) for name in row.params]
    result = row.meaning(*arguments)
    assert result is None or isinstance(result, Word)
    return result


def accesses(row: Insn) -> bool:
    """It may touch memory, so its handler has a twin."""
    return "m" in row.params and not branches(row) and row.name != "jalr"


def operands_linked(v: Variant) -> tuple[str, ...]:
    """The operands for which the row has handlers that take them from the last result: "rs1", "rs2", "both"."""
    row = v.row
    if (
        (row.params and {"h", "f"} & set(row.params))
        or "csr" in row.fields
        or row.name[:3] in ("amo", "lr.", "sc.", "cbo")
    ):
        return ()
    registers = tuple(r for r in ("rs1", "rs2") if r in row.params)
    return (*registers, "both") if len(registers) == 2 and v.kind != "far" else registers


def linked(v: Variant, operand: str) -> str:
    return f"{v.symbol}_{operand}"


def handler(
    g: Geometry, v: Variant, twin: str | None = None, suffix: str = "", operand: str | None = None
) -> str | None:
    """Its text; None: it is wholly the reference's."""
    h = Handler(g, v.length, str(v.kind) if branches(v.row) else "far", twin)
    if "h" in v.row.params:
        h.interpreter = virtual(v)
    last = Ir("%last", 64, h.b)
    known: dict[str, Word] = {name: last for name in ("rs1", "rs2") if operand in (name, "both")}
    try:
        h.write(v.row, _meaning(h, v, known))
        h.finish()
    except Ended:
        pass
    if len(h.b.lines) == 5 and "@leave" in h.b.lines[-2]:
        return None
    links = {o: linked(v, o) for o in operands_linked(v)} if not suffix else {}
    gives = "rd" in v.row.fields and v.row.name not in ("jal", "jalr")
    return h.text(f"internal preserve_nonecc i64 @{v.symbol}{suffix}{SIGNATURE} nounwind {prefix(links, gives)}")


def prefix(links: dict[str, str] | None = None, gives: bool = False) -> str:
    """The words in front of a handler."""
    words = [_distance((links or {}).get(operand)) for operand in LINKS]
    return f"align 16 prefix [4 x i32] [{', '.join(words)}, i32 {int(gives)}]"


def _distance(symbol: str | None) -> str:
    if symbol is None:
        return "i32 0"
    return f"i32 trunc (i64 sub (i64 ptrtoint (ptr @{symbol} to i64), i64 ptrtoint (ptr @decode to i64)) to i32)"


def interpreter(g: Geometry, v: Variant) -> str:
    """The text of a privileged row for virtual harts."""
    h = Interpreter(g, v.length)
    with suppress(Ended):
        h.take_over()
        h.write(v.row, _meaning(h, v))
        h.finish()
    return h.text(f"internal preserve_nonecc i64 @{virtual(v)}{SIGNATURE} nounwind")


def virtual(v: Variant) -> str:
    return f"v_{v.symbol}"


def call(g: Geometry, v: Variant) -> str:
    """The text of the handler of a call for a row."""
    h = Handler(g, v.length)
    with suppress(Ended):
        mine = (h.field("isatp") != 0) & (h.field("virtual") != 0)
        h.when(mine, lambda: h.tail(f"@{virtual(v)}"))
        h.leave(Action.EMULATE)
    return h.text(f"internal preserve_nonecc i64 @{called(v)}{SIGNATURE} nounwind {prefix()}")


def called(v: Variant) -> str:
    return f"c_{v.symbol}"


def functions(g: Geometry) -> tuple[str, set[str]]:
    """All handlers in textual IR, and the symbols that a record may begin with."""
    parts, symbols = [], set()
    for row in ISA.values():
        for v in variants(row):
            twin = f"{v.symbol}_slow" if accesses(row) else None
            if (text := handler(g, v, twin)) is None:
                continue
            parts.append(text)
            symbols.add(v.symbol)
            if "h" in row.params:
                parts.append(interpreter(g, v))
                if v.kind in CALLED:
                    parts.append(call(g, v))
                    symbols.add(called(v))
            if twin and (text := handler(g, v, None, "_slow")):
                parts.append(text)
            for operand in operands_linked(v):
                parts.append(handler(g, v, twin, f"_{operand}", operand) or "")
    return "\n".join(parts), symbols
