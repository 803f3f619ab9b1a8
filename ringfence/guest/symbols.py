"""The names that an ELF file has for its addresses."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from struct import Struct

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

_SYM = Struct("<IBBHQQ")
_FUNCTION = 2
"""The last of the types of what has an address: none, object, function."""
_EXECUTE = 4


class Symbols:
    """Addresses by name, and functions by address. Where the file has no symbols there are none."""

    def __init__(self, path: Path | None) -> None:
        found = [] if path is None else _read(path)
        self.addresses = {name: address for address, _, name, _ in found}
        self._code = [(address, name, end) for address, _, name, end in found if end]

    def function(self, pc: int) -> str:
        """What the code there belongs to, by the nearest name before it; "" where that is not known."""
        at = bisect_right(self._code, pc, key=lambda line: line[0])
        if not at or pc >= self._code[at - 1][2]:
            return ""
        return self._code[at - 1][1]


def _read(path: Path) -> list[tuple[int, int, str, int]]:
    """(address, type, name, end of its section where that is code), by address; of several at one functions last."""
    found = []
    try:
        with path.open("rb") as file:
            sections = list(ELFFile(file).iter_sections())
            ends = [s["sh_addr"] + s["sh_size"] if s["sh_flags"] & _EXECUTE else 0 for s in sections]
            for table in sections:
                if not isinstance(table, SymbolTableSection):
                    continue
                names = table.stringtable.data()
                for at, info, _, index, address, _ in _SYM.iter_unpack(table.data()):
                    name = names[at : names.index(b"\0", at)].decode("ascii", "replace")
                    if info & 15 <= _FUNCTION and 0 < index < len(ends) and name and name[0] not in "$.":
                        found.append((address, info & 15, name, ends[index]))
    except (OSError, ELFError, ValueError):
        return []
    return sorted(found)
