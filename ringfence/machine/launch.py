"""A hart's modes below M, as a machine lends them to its monitor, which launches it (Popek and Goldberg 1974).

It runs there as any program does, under the page tables that the monitor gives it in `satp`. What can be made to trap
in supervisor mode does. Each exception comes to the monitor, with the hart as it was before the instruction; but those
that the hart's medeleg gives to S are taken there, where the monitor has made the lent hart's state of S the guest's.
"""

from __future__ import annotations

from typing import NamedTuple

from ringfence.isa import pmp
from ringfence.isa.csr import STATUS_S, STATUS_WRITABLE
from ringfence.isa.trap import Status, U
from ringfence.machine.hart import SIZE, Hart

DIRECT_STATUS = STATUS_S & STATUS_WRITABLE
"""Of mstatus: what a guest's S-mode has of its own where the lent hart holds that."""
SPACE = -1
"""In place of an exception: the virtual hart's mode has changed, and its page tables are to be told."""


class Trapped(NamedTuple):
    """An exception: its code in mcause, and what mtval would be."""

    cause: int
    tval: int


def user_hart(number: int, like: Hart) -> Hart:
    """A hart in user mode, made like another, whose physical memory protection grants everything: its translations are
    its bounds.
    """
    hart = Hart(number, memoryview(bytearray(SIZE)))
    hart.priv = U
    hart.mstatus |= 1 << Status.TVM | 1 << Status.TW | 1 << Status.TSR
    hart.software_tlb, hart.xhv = like.software_tlb, like.xhv
    hart["pmpaddr0"] = (1 << pmp.ADDRESS_BITS - 2) - 1
    hart.pmpcfg0 = pmp.NAPOT | pmp.R | pmp.W | pmp.X
    return hart
