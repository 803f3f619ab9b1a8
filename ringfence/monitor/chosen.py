"""The states in which instructions are tried: chosen ones, alike but for one part, and some that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from ringfence.isa import pmp
from ringfence.isa.paging import ACCESSED, DIRTY, USER, R, V, W, X
from ringfence.isa.trap import M, U
from ringfence.monitor.instance import CONTENTS, FLOATS, PLACE
from ringfence.monitor.virtual_state import CODE, DATA, FIRST, HIDDEN, PC, Relocation, State, virtual

_SV39 = Relocation(8, 0, FIRST + 16)
_ELSEWHERE = Relocation(0), Relocation(10, 5, FIRST + 24, FIRST + 40)
_REGISTERS = {f"f{n}": value for n, value in enumerate(FLOATS)} | {"pc": PC}
_RESERVED = {**_REGISTERS, "reservation": PLACE & -64}
_ODD = (
    (None, DATA, V), (None, DATA, W), (None, CODE, X),
    (None, DATA, R | W), ("mstatus.MXR", DATA, R | W), ("mstatus.MXR", CODE, ACCESSED | DIRTY),
    (None, DATA + 1, USER), ("mstatus.SUM", DATA, USER), ("mstatus.SUM", CODE, USER),
    (None, DATA, ACCESSED | DIRTY), ("menvcfg.ADUE", DATA + 1, ACCESSED | DIRTY),
    (None, DATA + 1, DIRTY), ("menvcfg.ADUE", DATA, DIRTY),
)  # fmt: skip
"""What is set, and of which page's entry which bits are others than they would be."""
_PROTECTIONS = pmp.R, pmp.R | pmp.W | pmp.L, pmp.L | pmp.X


def _all(n: int) -> dict[str, int]:
    return {name: hidden.values[n] for name, hidden in HIDDEN.items()}


def _draw(rng: Random, **fixed: int) -> dict[str, int]:
    return {name: rng.choice(hidden.values) for name, hidden in HIDDEN.items()} | fixed


CLOSED, OPEN = _all(0), _all(1)
"""Hidden parts: nothing is allowed or pending; and the opposite of each."""
HARDWARE = CLOSED, OPEN, _draw(Random(1974), **{"mstatus.MPRV": 0})
SOFTWARE = CLOSED, OPEN


@dataclass(frozen=True)
class Chosen:
    """Of one mode."""

    hardware: list[State]
    """Alike in all but the hidden parts, which are those of HARDWARE, and the same in every mode."""
    software: list[State]
    """And those of SOFTWARE, on a hart whose TLB software fills."""
    moved: list[State]
    """The first of `hardware`, relocated."""
    more: list[State]
    odd: list[State]
    """For rows that refer to memory: not all of it can be used; in the first the program has its page table."""


def choose(mode: int) -> Chosen:
    """The states of a mode."""
    rng = Random(1991)

    def state(
        hidden: Mapping[str, int], relocation: Relocation = _SV39, fields: Mapping[str, int] = _RESERVED, **how: Any
    ) -> State:
        return virtual(mode, relocation, hidden, contents=CONTENTS, registers=fields, **how)

    more = [state(_draw(rng), fields=_REGISTERS | {"frm": 5})]
    if mode == M:
        more.append(state(_draw(rng, **{"mstatus.MPRV": 1, "mstatus.MPP": U})))
    floating = CLOSED | {"mstatus.FS": 3}
    odd = [state(floating, table=True)]
    for allowed in _PROTECTIONS:
        guarded = state(floating)
        address = guarded.lies[DATA + 1] << 10 | 511
        odd.append(guarded.having({"pmpcfg0": allowed | pmp.NAPOT, "pmpaddr0": address}))
    if mode == M:
        lent = {"mstatus.MPRV": 1, "mstatus.MPP": U}
        odd.append(state(floating | lent, entry=_other(DATA, V)))
    else:
        odd += [state(floating | ({part: 1} if part else {}), entry=_other(page, bits)) for part, page, bits in _ODD]
    return Chosen(
        [state(hidden) for hidden in HARDWARE],
        [state(hidden, software_tlb=True) for hidden in SOFTWARE],
        [state(CLOSED, relocation) for relocation in _ELSEWHERE],
        more,
        odd,
    )


def _other(page: int, bits: int) -> Callable[[int, int], int]:
    return lambda at, entry: entry ^ bits if at == page else entry
