"""A: Zalrsc and Zaamo (unprivileged manual, chapter "A"). Harts take turns, so aq and rl ask for nothing more."""

from collections.abc import Callable

from ringfence.isa.spec import Meaning, insn
from ringfence.word import Word, low, select, sext

CHANGES: dict[str, tuple[str, Callable[[Word, Word], Word]]] = {
    "amoswap": ("00001", lambda old, x: x),
    "amoadd": ("00000", lambda old, x: old + x),
    "amoxor": ("00100", lambda old, x: old ^ x),
    "amoand": ("01100", lambda old, x: old & x),
    "amoor": ("01000", lambda old, x: old | x),
    "amomin": ("10000", lambda old, x: select(old.s < x.s, old, x)),
    "amomax": ("10100", lambda old, x: select(old.s < x.s, x, old)),
    "amominu": ("11000", lambda old, x: select(old < x, old, x)),
    "amomaxu": ("11100", lambda old, x: select(old < x, x, old)),
}


def _load_reserved(bits: int) -> Meaning:
    return lambda m, rs1: sext(m.load_reserved(rs1, bits))


def _store_conditional(bits: int) -> Meaning:
    return lambda m, rs1, rs2: m.store_conditional(rs1, low(rs2, bits))


def _amo(change: Callable[[Word, Word], Word], bits: int) -> Meaning:
    return lambda m, rs1, rs2: sext(m.amo(rs1, bits, lambda old: change(old, low(rs2, bits))))


for _suffix, _width, _bits in (("w", "010", 32), ("d", "011", 64)):
    insn(f"lr.{_suffix} 00010 aq rl 00000 rs1 {_width} rd 0101111", _load_reserved(_bits))
    insn(f"sc.{_suffix} 00011 aq rl rs2 rs1 {_width} rd 0101111", _store_conditional(_bits))
    for _name, (_code, _change) in CHANGES.items():
        insn(f"{_name}.{_suffix} {_code} aq rl rs2 rs1 {_width} rd 0101111", _amo(_change, _bits))
