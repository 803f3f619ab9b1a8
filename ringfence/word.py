"""Guest words: a value of static width that is either known (`Int`) or an LLVM value (`Ir`).

Meanings are written once over `Word`. Run on `Int` they are the reference; run on `Ir` they write LLVM's
textual IR; mixed they are partially evaluated. Arithmetic is modulo 2**width and unsigned; `word.s` is the signed
reading, with only the operators that differ. A word has no truth value: control flow is `select`
here, `when` of the effects, or `when=` of a jump.

Both operands of an operator have the same width, or one is a Python int. A shift by the width or more, and a
division by zero, are undefined: rows mask and guard them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn


class Builder:
    """Collects the lines of one LLVM function as text. `label` is the block being written."""

    __slots__ = ("count", "label", "lines")

    def __init__(self) -> None:
        self.lines: list[str] = ["entry:"]
        self.count = 0
        self.label = "entry"

    def fresh(self, prefix: str = "v") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def emit(self, text: str) -> None:
        self.lines.append("  " + text)

    def value(self, text: str) -> str:
        """Write `%name = text` and return `%name`."""
        self.count += 1
        name = f"%v{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def block(self, label: str) -> None:
        """Begin a block."""
        self.lines.append(f"{label}:")
        self.label = label

    def op(self, text: str, width: int) -> Ir:
        return Ir(self.value(text), width, self)


class Word:
    """A guest value of `width` bits."""

    __slots__ = ("width",)
    __hash__ = None  # type: ignore[assignment]
    width: int

    def __bool__(self) -> NoReturn:
        raise TypeError("a guest word has no truth value: use select() or when")

    def __add__(self, other: Word | int) -> Word:
        return _binary("add", self, other)

    def __sub__(self, other: Word | int) -> Word:
        return _binary("sub", self, other)

    def __mul__(self, other: Word | int) -> Word:
        return _binary("mul", self, other)

    def __floordiv__(self, other: Word | int) -> Word:
        return _binary("udiv", self, other)

    def __mod__(self, other: Word | int) -> Word:
        return _binary("urem", self, other)

    def __and__(self, other: Word | int) -> Word:
        return _binary("and", self, other)

    def __or__(self, other: Word | int) -> Word:
        return _binary("or", self, other)

    def __xor__(self, other: Word | int) -> Word:
        return _binary("xor", self, other)

    def __lshift__(self, other: Word | int) -> Word:
        return _binary("shl", self, other)

    def __rshift__(self, other: Word | int) -> Word:
        return _binary("lshr", self, other)

    def __invert__(self) -> Word:
        return _binary("xor", self, (1 << self.width) - 1)

    def __neg__(self) -> Word:
        return _binary("sub", Int(0, self.width), self)

    def __eq__(self, other: Word | int) -> Word:  # type: ignore[override]
        return _compare("eq", self, other)

    def __ne__(self, other: Word | int) -> Word:  # type: ignore[override]
        return _compare("ne", self, other)

    def __lt__(self, other: Word | int) -> Word:
        return _compare("ult", self, other)

    def __ge__(self, other: Word | int) -> Word:
        return _compare("uge", self, other)

    def __gt__(self, other: Word | int) -> Word:
        return _compare("ugt", self, other)

    def __le__(self, other: Word | int) -> Word:
        return _compare("ule", self, other)

    @property
    def s(self) -> Signed:
        return Signed(self)

    def bits(self, high: int, low_: int) -> Word:
        """Bits high..low, both included, as a word of that many bits."""
        return low(self >> low_, high - low_ + 1)

    def bit(self, n: int) -> Word:
        return low(self >> n, 1)


class Signed:
    """The signed reading of a word. `//` and `%` truncate toward zero."""

    __slots__ = ("word",)

    def __init__(self, word: Word) -> None:
        self.word = word

    def __lt__(self, other: Signed | int) -> Word:
        return _compare("slt", self.word, _unsign(other))

    def __ge__(self, other: Signed | int) -> Word:
        return _compare("sge", self.word, _unsign(other))

    def __gt__(self, other: Signed | int) -> Word:
        return _compare("sgt", self.word, _unsign(other))

    def __le__(self, other: Signed | int) -> Word:
        return _compare("sle", self.word, _unsign(other))

    def __rshift__(self, other: Word | int) -> Word:
        return _binary("ashr", self.word, other)

    def __floordiv__(self, other: Signed | int) -> Word:
        return _binary("sdiv", self.word, _unsign(other))

    def __mod__(self, other: Signed | int) -> Word:
        return _binary("srem", self.word, _unsign(other))


class Int(Word):
    """A known word."""

    __slots__ = ("value",)

    def __init__(self, value: int, width: int = 64) -> None:
        self.value = value & ((1 << width) - 1)
        self.width = width

    def __repr__(self) -> str:
        return f"Int({self.value:#x}, {self.width})"

    def __str__(self) -> str:
        return str(self.value)


def _known(operation: Callable[[int, int], int], generic: Callable[[Int, Any], Word]) -> Callable[[Int, Any], Word]:
    """An operator of `Int`: what `_binary` does, without its detours where both operands are known."""

    def method(self: Int, other: Word | int) -> Word:
        if type(other) is int:
            value = operation(self.value, other)
        elif type(other) is Int and other.width == self.width:
            value = operation(self.value, other.value)
        else:
            return generic(self, other)
        return Int(value, self.width)

    return method


for _name in ("add", "sub", "and", "or", "xor", "lshift", "rshift"):
    setattr(Int, f"__{_name}__", _known(getattr(operator, f"__{_name}__"), getattr(Word, f"__{_name}__")))


class Ir(Word):
    """An LLVM value: `text` is its name in the function that `builder` writes."""

    __slots__ = ("builder", "text")

    def __init__(self, text: str, width: int, builder: Builder) -> None:
        self.text = text
        self.width = width
        self.builder = builder

    def __repr__(self) -> str:
        return f"Ir({self.text}, {self.width})"

    def __str__(self) -> str:
        return self.text


def _unsign(other: Signed | int) -> Word | int:
    return other.word if isinstance(other, Signed) else other


def signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def _sdiv(a: int, b: int, w: int) -> int:
    a, b = signed(a, w), signed(b, w)
    return -(-a // b) if (a < 0) != (b < 0) else a // b


def _srem(a: int, b: int, w: int) -> int:
    return signed(a, w) - _sdiv(a, b, w) * signed(b, w)


_KNOWN: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, w: a + b,
    "sub": lambda a, b, w: a - b,
    "mul": lambda a, b, w: a * b,
    "udiv": lambda a, b, w: a // b,
    "urem": lambda a, b, w: a % b,
    "sdiv": _sdiv,
    "srem": _srem,
    "and": lambda a, b, w: a & b,
    "or": lambda a, b, w: a | b,
    "xor": lambda a, b, w: a ^ b,
    "shl": lambda a, b, w: a << b,
    "lshr": lambda a, b, w: a >> b,
    "ashr": lambda a, b, w: signed(a, w) >> b,
    "eq": lambda a, b, w: a == b,
    "ne": lambda a, b, w: a != b,
    "ult": lambda a, b, w: a < b,
    "uge": lambda a, b, w: a >= b,
    "ugt": lambda a, b, w: a > b,
    "ule": lambda a, b, w: a <= b,
    "slt": lambda a, b, w: signed(a, w) < signed(b, w),
    "sge": lambda a, b, w: signed(a, w) >= signed(b, w),
    "sgt": lambda a, b, w: signed(a, w) > signed(b, w),
    "sle": lambda a, b, w: signed(a, w) <= signed(b, w),
}


def _builder(a: Word, b: Word) -> Builder:
    if isinstance(a, Ir):
        return a.builder
    assert isinstance(b, Ir)
    return b.builder


def _binary(op: str, a: Word, b: Word | int) -> Word:
    width = a.width
    if not isinstance(b, Word):
        b = Int(b, width)
    elif b.width != width:
        raise TypeError(f"{op}: words of {width} and {b.width} bits")
    if type(a) is Int and type(b) is Int:
        return Int(_KNOWN[op](a.value, b.value, width), width)
    return _builder(a, b).op(f"{op} i{width} {a}, {b}", width)


def _compare(op: str, a: Word, b: Word | int) -> Word:
    width = a.width
    if not isinstance(b, Word):
        b = Int(b, width)
    elif b.width != width:
        raise TypeError(f"{op}: words of {width} and {b.width} bits")
    if type(a) is Int and type(b) is Int:
        return Int(_KNOWN[op](a.value, b.value, width), 1)
    return _builder(a, b).op(f"icmp {op} i{width} {a}, {b}", 1)


def low(x: Word, width: int) -> Word:
    """The low `width` bits."""
    if isinstance(x, Int):
        return Int(x.value, width)
    assert isinstance(x, Ir) and width <= x.width
    return x if width == x.width else x.builder.op(f"trunc i{x.width} {x} to i{width}", width)


def zext(x: Word, width: int = 64) -> Word:
    """Extended by zeros to `width` bits."""
    if isinstance(x, Int):
        return Int(x.value, width)
    assert isinstance(x, Ir) and width >= x.width
    return x if width == x.width else x.builder.op(f"zext i{x.width} {x} to i{width}", width)


def sext(x: Word, width: int = 64) -> Word:
    """Extended by its sign to `width` bits."""
    if isinstance(x, Int):
        return Int(signed(x.value, x.width), width)
    assert isinstance(x, Ir) and width >= x.width
    return x if width == x.width else x.builder.op(f"sext i{x.width} {x} to i{width}", width)


def select(condition: Word, a: Word | int, b: Word | int) -> Word:
    """`a` where the one-bit condition is 1, else `b`; both are evaluated."""
    if not isinstance(a, Word):
        assert isinstance(b, Word)
        a = Int(a, b.width)
    elif not isinstance(b, Word):
        b = Int(b, a.width)
    if condition.width != 1 or a.width != b.width:
        raise TypeError(f"select: words of {condition.width}, {a.width} and {b.width} bits")
    if isinstance(condition, Int):
        return a if condition.value else b
    assert isinstance(condition, Ir)
    return condition.builder.op(f"select i1 {condition}, i{a.width} {a}, i{a.width} {b}", a.width)


def cat(*parts: Word) -> Word:
    """The parts side by side, the most significant first."""
    width = sum(p.width for p in parts)
    result: Word = Int(0, width)
    for part in parts:
        result = (result << part.width if part.width < width else result) | zext(part, width)
    return result


def _intrinsic(name: str, x: Ir, extra: str = "") -> Word:
    return x.builder.op(f"call i{x.width} @llvm.{name}.i{x.width}(i{x.width} {x}{extra})", x.width)


def clz(x: Word) -> Word:
    """Leading zeros; the width for 0."""
    if isinstance(x, Int):
        return Int(x.width - x.value.bit_length(), x.width)
    assert isinstance(x, Ir)
    return _intrinsic("ctlz", x, ", i1 false")


def ctz(x: Word) -> Word:
    """Trailing zeros; the width for 0."""
    if isinstance(x, Int):
        return Int((x.value & -x.value).bit_length() - 1 if x.value else x.width, x.width)
    assert isinstance(x, Ir)
    return _intrinsic("cttz", x, ", i1 false")


def cpop(x: Word) -> Word:
    """The number of ones."""
    if isinstance(x, Int):
        return Int(x.value.bit_count(), x.width)
    assert isinstance(x, Ir)
    return _intrinsic("ctpop", x)


def byteswap(x: Word) -> Word:
    if isinstance(x, Int):
        return Int(int.from_bytes(x.value.to_bytes(x.width // 8, "little"), "big"), x.width)
    assert isinstance(x, Ir)
    return _intrinsic("bswap", x)
