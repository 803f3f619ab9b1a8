"""One row of the manual's tables and one function make an instruction.

`insn(row, meaning)` takes the row in the manual's own notation, most significant bit first, and a function over
words. The row yields decoder, encoder, disassembler and operands. The meaning's parameters say what the row may touch:

    rs1 rs2          integer registers, 64-bit words          fs1 fs2 fs3   floating-point registers, 64-bit words
    imm shamt csr …  fields of the row (imm signed)           pc link       own address, address of the next instruction
    m                memory and control flow                  f             floating-point state
    h                other system state

What it returns is written to rd (or fd). `compressed(row, name, ...)` is a 16-bit row that expands to a 32-bit one.
Where two rows match, the one with more fixed bits is meant.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any, TypeVar, overload

from ringfence.isa.csr import CSRS
from ringfence.word import Word

Meaning = Callable[..., Word | None]

REGISTERS = ("rd", "rs1", "rs2", "rs3", "fd", "fs1", "fs2", "fs3")
_UNSIGNED = ("shamt", "uimm", "csr", "rm", "aq", "rl", "fm", "pred", "succ")
_EFFECTS = ("m", "h", "f", "pc", "link")
_X = "zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
_F = (
    "ft0 ft1 ft2 ft3 ft4 ft5 ft6 ft7 fs0 fs1 fa0 fa1 fa2 fa3 fa4 fa5 fa6 fa7 "
    "fs2 fs3 fs4 fs5 fs6 fs7 fs8 fs9 fs10 fs11 ft8 ft9 ft10 ft11"
)
X_NAMES = tuple(_X.split())
F_NAMES = tuple(_F.split())
ROUNDING = ("rne", "rtz", "rdn", "rup", "rmm", "?", "?", "dyn")


@dataclass(frozen=True)
class Piece:
    """`length` bits at `source` of the instruction are the bits at `place` of the value."""

    source: int
    place: int
    length: int


@dataclass(frozen=True)
class Field:
    """An operand's place in an instruction. `offset` is added: 8 for the short register numbers of C."""

    name: str
    pieces: tuple[Piece, ...]
    signed: bool
    offset: int = 0

    @property
    def width(self) -> int:
        return max(p.place + p.length for p in self.pieces)

    def get(self, word: int) -> int:
        value = sum((word >> p.source & (1 << p.length) - 1) << p.place for p in self.pieces)
        if self.signed and value >> (self.width - 1):
            value -= 1 << self.width
        return value + self.offset

    def put(self, value: int) -> int:
        """The bits of an instruction that hold `value`. Raises ValueError where they cannot."""
        word = sum((value - self.offset >> p.place & (1 << p.length) - 1) << p.source for p in self.pieces)
        if self.get(word) != value:
            raise ValueError(f"{self.name}: {value} cannot be encoded")
        return word


@dataclass(frozen=True, eq=False)
class Row:
    """What the bits of a row say. `nonzero` names fields whose zero is not this instruction."""

    name: str
    length: int
    mask: int
    match: int
    fields: dict[str, Field]
    nonzero: tuple[str, ...] = field(kw_only=True, default=())

    def matches(self, word: int) -> bool:
        return word & self.mask == self.match and all(self.fields[n].get(word) for n in self.nonzero)

    def encode(self, **operands: int) -> int:
        """The instruction's bits; fields that are not given are zero. Raises KeyError, ValueError."""
        word = self.match
        for name, value in operands.items():
            word |= self.fields[name].put(value)
        return word


@dataclass(frozen=True, eq=False)
class Insn(Row):
    """A 32-bit instruction: its row and its meaning."""

    meaning: Meaning
    params: tuple[str, ...]

    def operands(self, word: int) -> dict[str, int]:
        return {f.name: f.get(word) for f in self.fields.values()}

    @cached_property
    def floating(self) -> int:
        """Bit 0: needs mstatus.FS on. Bit 1: leaves it dirty."""
        changes = "f" in self.params or "fd" in self.fields
        return 3 if changes else 1 if any(n[0] == "f" for n in self.fields if n in REGISTERS) else 0


@dataclass(frozen=True, eq=False)
class Compressed(Row):
    """A 16-bit row that means `target` with these operands: a field's name, or a number."""

    target: str
    expansion: dict[str, str | int]

    @property
    def insn(self) -> Insn:
        return ISA[self.target]

    def operands(self, word: int) -> dict[str, int]:
        own = {f.name: f.get(word) for f in self.fields.values()}
        return {k: own[v] if isinstance(v, str) else v for k, v in self.expansion.items()}


F = TypeVar("F", bound=Meaning)
R = TypeVar("R", bound=Row)
ISA: dict[str, Insn] = {}
COMPRESSED: dict[str, Compressed] = {}


def _parse(row: str, length: int) -> tuple[str, int, int, dict[str, Field], tuple[str, ...]]:
    name, *tokens = row.split()
    at, mask, match = length, 0, 0
    pieces: dict[str, list[Piece]] = {}
    nonzero = []

    def take(operand: str, count: int, place: int = 0) -> None:
        nonlocal at
        at -= count
        pieces.setdefault(operand, []).append(Piece(at, place, count))

    for token in tokens:
        if token.startswith("nz"):
            token = token[2:]
            nonzero.append(re.split(r"[\[]", token)[0])
        if set(token) <= {"0", "1"}:
            at -= len(token)
            mask |= (1 << len(token)) - 1 << at
            match |= int(token, 2) << at
        elif token in ("aq", "rl"):
            take(token, 1)
        elif token in REGISTERS:
            take(token, 5)
        elif (token.endswith("'") and token[:-1] in REGISTERS) or token == "rm":
            take(token, 3)
        else:
            found = re.fullmatch(r"(\w+)\[([\d:|]+)\]", token)
            if not found:
                raise ValueError(f"{name}: what is {token!r}?")
            operand, ranges = found.groups()
            for part in ranges.split("|"):
                high, _, low_ = part.partition(":")
                take(operand, int(high) - int(low_ or high) + 1, int(low_ or high))
    if at:
        raise ValueError(f"{name}: {length - at} bits, expected {length}")
    fields = {n: Field(n, tuple(p), n == "imm" or n == "simm", 8 if n.endswith("'") else 0) for n, p in pieces.items()}
    assert all(n in REGISTERS or n in _UNSIGNED or n.endswith("'") or n in ("imm", "simm") for n in fields), fields
    return name, mask, match, fields, tuple(dict.fromkeys(nonzero))


@overload
def insn(row: str) -> Callable[[F], F]: ...
@overload
def insn(row: str, meaning: Meaning) -> Meaning: ...
def insn(row: str, meaning: Meaning | None = None) -> Any:
    """Define a 32-bit instruction; without `meaning`, a decorator."""
    if meaning is None:
        return lambda function: insn(row, function)
    name, mask, match, fields, nonzero = _parse(row, 32)
    params = tuple(inspect.signature(meaning).parameters)
    unknown = set(params) - set(fields) - set(_EFFECTS)
    if unknown or name in ISA:
        raise ValueError(f"{name}: {f'no operand called {unknown}' if unknown else 'defined twice'}")
    ISA[name] = Insn(name, 4, mask, match, fields, meaning, params, nonzero=nonzero)
    return meaning


def compressed(row: str, target: str, **expansion: str | int) -> None:
    """Define a 16-bit row as `target` with operands: names of the row's own fields, or numbers.

    An immediate of a compressed row is called uimm (unsigned) or simm; an operand not given is the field of that
    name.
    """
    name, mask, match, fields, nonzero = _parse(row, 16)
    wanted = ISA[target].fields
    full: dict[str, str | int] = {n: expansion.get(n, n if n in fields else 0) for n in wanted}
    if unknown := set(expansion) - set(wanted):
        raise ValueError(f"{name}: {target} has no operand {unknown}")
    COMPRESSED[name] = Compressed(name, 2, mask, match, fields, target, full, nonzero=nonzero)


def by_specificity(rows: list[R]) -> list[R]:
    """The rows, those with more fixed bits first."""
    return sorted(rows, key=lambda r: -r.mask.bit_count())


@cache
def _buckets() -> tuple[dict[int, list[Insn]], dict[int, list[Compressed]]]:
    """The rows by major opcode and funct3 (or quadrant and funct3), most specific first."""
    long: dict[int, list[Insn]] = {}
    for row in by_specificity(list(ISA.values())):
        for key in range(1024):
            bits = (key & 0x7F) | (key >> 7) << 12
            if (bits ^ row.match) & row.mask & 0x707F == 0:
                long.setdefault(key, []).append(row)
    short: dict[int, list[Compressed]] = {}
    for c in by_specificity(list(COMPRESSED.values())):
        short.setdefault((c.match & 3) | (c.match >> 13) << 2, []).append(c)
    return long, short


@lru_cache(1 << 16)
def decode(word: int) -> tuple[Insn, dict[str, int], int] | None:
    """(instruction, operands, length in bytes) of the bits at some address, or None: illegal.

    `word` holds 32 bits; of a 16-bit instruction only the low half is looked at."""
    long, short = _buckets()
    if word & 3 != 3:
        word &= 0xFFFF
        for c in short.get(word & 3 | word >> 13 << 2, ()):
            if c.matches(word):
                return c.insn, c.operands(word), 2
        return None
    for row in long.get(word & 0x7F | (word >> 12 & 7) << 7, ()):
        if row.matches(word):
            return row, row.operands(word), 4
    return None


_BASED = (0b0000011, 0b0000111, 0b0100011, 0b0100111, 0b0101111, 0b1100111)
"""Opcodes of rows whose address is written imm(rs1), beside those of cache blocks."""
_ORDER = ("rd", "fd", "csr", "rs1", "fs1", "rs2", "fs2", "fs3", "uimm", "imm", "shamt", "rm")
_OPERANDS = {"fence": ("pred", "succ"), "fence.i": ()}
"""Rows that do not show all of their fields."""
_READS = {
    "csrr": ("csrrs", "zero"),
    "csrr.c": ("csrrc", "zero"),
    "csrr.si": ("csrrsi", "0"),
    "csrr.ci": ("csrrci", "0"),
}
"""The rows that only read a CSR, as the manual's instructions and the operand that makes them so."""
_EXACT = ("fcvt.d.s", "fcvt.d.w", "fcvt.d.wu")
"""Nothing is rounded: rne is as good as no mode."""


def disassemble(word: int, pc: int | None = None) -> str:
    """The instruction as objdump shows it without aliases, a compressed one as the one it expands to.

    A jump's target is absolute where `pc` is given, else relative."""
    found = decode(word)
    if found is None:
        return f".insn 4, {word:#010x}" if word & 3 == 3 else f".insn 2, {word & 0xFFFF:#06x}"
    row, operands, _ = found
    name, implied = _READS.get(row.name, (row.name, None))
    order = ".aq" if operands.get("aq") else "", ".rl" if operands.get("rl") else ""
    name += ".aqrl" if all(order) else "".join(order)
    shown = [*_shown(row, operands, pc), *([implied] if implied else [])]
    return f"{name} {', '.join(shown)}".rstrip()


def _shown(row: Insn, operands: dict[str, int], pc: int | None) -> Iterator[str]:
    """The operands in the order of assembler notation."""
    opcode = row.match & 0x7F
    based = opcode in _BASED or row.name.startswith(("cbo.", "prefetch."))
    for name in _OPERANDS.get(row.name, _ORDER):
        value = operands.get(name)
        if value is None or (based and name in ("rs1", "imm")):
            continue
        if name in REGISTERS:
            yield (F_NAMES if name[0] == "f" else X_NAMES)[value]
        elif name == "csr":
            yield CSRS[value].name if value in CSRS else f"{value:#x}"
        elif name == "rm":
            if ROUNDING[value] != "dyn" and not (row.name in _EXACT and ROUNDING[value] == "rne"):
                yield ROUNDING[value]
        elif name in ("pred", "succ"):
            yield "".join(c for c, bit in zip("iorw", (8, 4, 2, 1), strict=True) if value & bit) or "0"
        elif row.name in ("lui", "auipc"):
            yield f"{value >> 12 & 0xFFFFF:#x}"
        elif opcode in (0b1100011, 0b1101111) and pc is not None:
            yield f"{pc + value & (1 << 64) - 1:#x}"
        else:
            yield str(value)
    if based:
        yield f"{operands.get('imm', '')}({X_NAMES[operands['rs1']]})"
