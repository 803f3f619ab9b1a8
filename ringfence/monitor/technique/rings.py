"""Ring compression: the real mode that each virtual mode runs in.

U   all of them in user mode, as VM/370 (Goldberg 1973)
S   M and S in supervisor mode, U in user mode, as the VAX VMM, which puts two modes into one (Hall and Robinson,
    "Virtualizing the VAX Architecture", 1991), and as Disco, whose guests' kernels run in supervisor mode
"""

from __future__ import annotations

from collections.abc import Mapping

from ringfence.isa import pmp
from ringfence.isa.paging import DIRTY, USER, R, W, X
from ringfence.isa.trap import M, S, Status, U
from ringfence.machine.hart import Hart
from ringfence.machine.memory import EXECUTE, READ, WRITE
from ringfence.monitor.technique.shadow import RIGHTS

Rings = Mapping[int, int]
"""By virtual mode: the real one."""

RINGS: dict[str, Rings] = {
    "U": {M: U, S: U, U: U},
    "S": {M: S, S: S, U: U},
}


AS_THEY_ARE = 1 << 4
"""In place of a mode: the real modes tell S from U, so one table serves both, with the guest's own U bits."""


def mode_of(hart: Hart, rings: Rings) -> int | None:
    """The guest's mode as far as its page tables mean something else in it; None where it does not translate."""
    priv, status = hart.priv, hart.mstatus
    if priv == M or not hart.satp >> 60:
        return None
    if rings[S] != rings[U]:
        return AS_THEY_ARE
    lent_user_pages = priv == S and status >> Status.SUM & 1
    return priv | lent_user_pages << 2 | (status >> Status.MXR & 1) << 3


def flat(hart: Hart, rings: Rings) -> int:
    """The rights in every page where the guest does not translate, as a leaf has them."""
    return RIGHTS | (USER if rings[hart.priv] == U else 0)


def rights_of(pte: int, mode: int) -> int:
    """What a leaf of the guest's lets it do in a mode, as a leaf for the real mode has it."""
    if mode == AS_THEY_ARE:
        return pte & (R | X | USER) | (pte & W if pte & DIRTY else 0)
    user = pte & USER != 0
    own = user if mode & 3 == U else not user
    data = own or mode >> 2 & 1
    rights = USER | (pte & X if own else 0)
    if data:
        rights |= pte & R or (R if pte & X and mode >> 3 & 1 else 0)
        rights |= pte & W if pte & DIRTY else 0
    return rights


def both(granted: int, given: int) -> int:
    """The rights, as a leaf has them, that physical memory protection grants and f gives."""
    rights = (R if granted & pmp.R and given & READ else 0) | (X if granted & pmp.X and given & EXECUTE else 0)
    return rights | (W if granted & pmp.W and given & WRITE else 0)
