"""The walk and trap entry over plain numbers: `isa.paging.translate` and `isa.trap.enter`, read once over words that
write Python instead of LLVM's IR.

The reading over known words makes an object of each intermediate result, which a walk that the reference or a monitor
does for every page is too slow with, and a trap that the reference takes. It is the same definition; what memory and
TLB hold is asked of the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from ringfence.isa import trap
from ringfence.isa.paging import Access, translate
from ringfence.machine.hart import FIELDS
from ringfence.word import Builder, Int, Ir, Word

if TYPE_CHECKING:
    from ringfence.machine.engine.reference import Known

Walk = Callable[["Known", memoryview, int], int]
"""(effects, the hart's state, virtual address): the physical address. Raises Trap."""
Enter = Callable[["Known", memoryview, int, int, int], None]
"""(effects, the hart's state, cause, tval, pc)."""

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "shl": "<<", "lshr": ">>"}
_COMPARE = {"eq": "==", "ne": "!=", "ult": "<", "uge": ">=", "ugt": ">", "ule": "<="}


class _Ended(Exception):
    """The block being written has ended."""


def _python(operation: str) -> str:
    """A line of IR, as an expression of non-negative numbers."""
    kind, *rest = operation.replace(",", "").split()
    match kind, rest:
        case "icmp", [how, _, a, b]:
            return f"{a} {_COMPARE[how]} {b}"
        case "select", [_, condition, _, a, _, b]:
            return f"{a} if {condition} else {b}"
        case "trunc", [_, a, "to", width]:
            return f"{a} & {_mask(width)}"
        case "zext", [_, a, "to", _]:
            return a
        case "sext", [narrow, a, "to", width]:
            return f"{_signed(a, narrow)} & {_mask(width)}"
        case "ashr", [width, a, b]:
            return f"({_signed(a, width)} >> {b}) & {_mask(width)}"
        case _, [width, a, b]:
            grows = kind in ("add", "sub", "mul", "shl")
            return f"({a} {_SIGNS[kind]} {b}) & {_mask(width)}" if grows else f"{a} {_SIGNS[kind]} {b}"
    raise NotImplementedError(operation)


def _mask(width: str) -> int:
    return (1 << int(width[1:])) - 1


def _signed(value: str, width: str) -> str:
    sign = 1 << int(width[1:]) - 1
    return f"(({value} ^ {sign}) - {sign})"


class _Lines(Builder):
    """A function in Python, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.depth = 1

    def emit(self, text: str) -> None:
        self.lines.append(" " * self.depth + text)

    def name(self, expression: str, width: int) -> Ir:
        name = self.fresh()
        self.emit(f"{name} = {expression}")
        return Ir(name, width, self)

    def op(self, text: str, width: int) -> Ir:
        return self.name(_python(text), width)


class _Writer:
    """The effects that `translate` asks for (isa.effects.System)."""

    _lines: _Lines

    def __init__(self) -> None:
        object.__setattr__(self, "_lines", _Lines())

    def __getattr__(self, name: str) -> Word:
        return self._lines.name(f"words[{FIELDS[name].offset >> 3}]", 64)

    def __setattr__(self, name: str, value: Word) -> None:
        self._lines.emit(f"words[{FIELDS[name].offset >> 3}] = {value}")

    def regime(self) -> None:
        pass

    def check_point(self) -> None:
        pass

    def jump(self, target: Word) -> None:
        self._lines.emit(f"h.jump(Int({target}))")

    def when(self, condition: Word, then: Callable[[], Any], otherwise: Callable[[], Any] | None = None) -> Any:
        if isinstance(condition, Int):
            return then() if condition.value else otherwise() if otherwise is not None else None
        lines, name = self._lines, self._lines.fresh()
        results = []
        for head, body in ((f"if {condition}:", then), ("else:", otherwise)):
            if body is None:
                return None
            lines.emit(head)
            lines.depth += 1
            with suppress(_Ended):
                results.append(result := body())
                lines.emit(f"{name} = {result}" if result is not None else "pass")
            lines.depth -= 1
        if not results:
            raise _Ended
        return None if results[0] is None else Ir(name, results[0].width, lines)

    def trap(self, cause: Word | int, tval: Word | int = 0) -> NoReturn:
        self._lines.emit(f"raise Trap({cause if isinstance(cause, Word) else int(cause)}, {tval})")
        raise _Ended

    def last_table(self, va: Word, satp: Word) -> Word:
        return Int(0)

    def keep_table(self, va: Word, satp: Word, table: Word) -> None:
        pass

    def load_pte(self, pa: Word, va: Word, level: int, access: int) -> Word:
        return self._lines.name(f"h.load_pte(Int({pa}), Int({va}), {level}, {int(access)}).value", 64)

    def store_pte(self, pa: Word, value: Word, va: Word, access: int) -> None:
        self._lines.emit(f"h.store_pte(Int({pa}), Int({value}), Int({va}), {int(access)})")

    def find(self, name: str, *words: Word) -> Word:
        return self._lines.name(f"h.find({name!r}, {', '.join(f'Int({word})' for word in words)}).value", 64)

    def element(self, name: str, n: Word) -> Word:
        return self._lines.name(f"h.element({name!r}, Int({n})).value", 64)

    def parameter(self, name: str) -> Word:
        return Ir(name, 64, self._lines)

    def function(self, parameters: str, result: Word | None = None) -> Any:
        from ringfence.machine.engine.reference import Trap

        found: dict[str, Any] = {"Int": Int, "Trap": Trap}
        exec("\n".join([f"def function(h, words, {parameters}):", *self._lines.lines, f" return {result}"]), found)
        return found["function"]


@cache
def walk(access: Access) -> Walk:
    writer = _Writer()
    result = translate(writer, writer.parameter("va"), access)  # type: ignore[arg-type]
    function: Walk = writer.function("va", result)
    return function


@cache
def enter(interrupt: bool) -> Enter:
    writer = _Writer()
    cause, tval, pc = map(writer.parameter, ("cause", "tval", "pc"))
    trap.enter(writer, cause, tval, pc, interrupt)  # type: ignore[arg-type]
    function: Enter = writer.function("cause, tval, pc")
    return function
