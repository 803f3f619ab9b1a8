"""A decoded instruction with its operands looked up: what the reference needs, once a distinct instruction."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ringfence.isa.spec import Insn, decode
from ringfence.machine.hart import FIELDS
from ringfence.word import Int

WIDTHS = {"csr": 12, "rm": 3}
_F = FIELDS["f"].offset >> 3


class Bound:
    """What a row is given: its operands, or where they are."""

    __slots__ = ("args", "floating", "length", "meaning", "result", "row")

    def __init__(self, row: Insn, operands: dict[str, int], length: int) -> None:
        self.row, self.meaning, self.length = row, row.meaning, length
        self.args: list[tuple[int, Any]] = []  # (0, word) (1, index of a register) (2, name of an effect)
        for name in row.params:
            if name not in row.fields:
                self.args.append((2, name))
            elif name.startswith("rs"):
                self.args.append((1, operands[name]))
            elif name.startswith("fs"):
                self.args.append((1, _F + operands[name]))
            else:
                self.args.append((0, Int(operands[name], WIDTHS.get(name, 64))))
        self.result = operands["rd"] or 32 if "rd" in row.fields else _F + operands["fd"] if "fd" in row.fields else 32
        self.floating = row.floating


@lru_cache(1 << 16)
def bind(word: int) -> Bound | None:
    found = decode(word)
    return Bound(*found) if found else None
