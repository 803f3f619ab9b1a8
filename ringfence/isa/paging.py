"""Sv39, Sv48 and Sv57: the walk (privileged manual, sections "Sv39" to "Sv57", "Svpbmt", "Svadu").

Written once over words. Under the hypervisor extension each table address and the result go through a second walk at
`load_pte` and at the end.
"""

from __future__ import annotations

from enum import IntEnum

from ringfence.isa.effects import System
from ringfence.isa.trap import Cause, M, Status, U
from ringfence.word import Word, low, select, sext

PAGE_BITS = 12
V, R, W, X, USER, G, ACCESSED, DIRTY = (1 << n for n in range(8))
PPN = (1 << 44) - 1
RESERVED = 0x7F << 54 | 1 << 63  # 60:54, and N: Svnapot is not there
PBMT = 3 << 61
ADUE, PBMTE = 61, 62  # bits of menvcfg
MODES = {8: 3, 9: 4, 10: 5}  # satp.MODE: levels


class Access(IntEnum):
    FETCH = 0
    LOAD = 1
    STORE = 2


PAGE_FAULT = {Access.FETCH: Cause.FETCH_PAGE, Access.LOAD: Cause.LOAD_PAGE, Access.STORE: Cause.STORE_PAGE}
ACCESS_FAULT = {Access.FETCH: Cause.FETCH_ACCESS, Access.LOAD: Cause.LOAD_ACCESS, Access.STORE: Cause.STORE_ACCESS}
MISALIGNED = {
    Access.FETCH: Cause.FETCH_MISALIGNED,
    Access.LOAD: Cause.LOAD_MISALIGNED,
    Access.STORE: Cause.STORE_MISALIGNED,
}


def effective_privilege(h: System, access: Access) -> Word:
    """The privilege that an access counts as: MPRV lends data accesses MPP's."""
    if access is Access.FETCH:
        return h.priv
    status = h.mstatus
    return select(status.bit(Status.MPRV), status >> Status.MPP & 3, h.priv)


def translate(h: System, va: Word, access: Access) -> Word:
    """The physical address of `va`; traps with a page fault, or an access fault of the walk's own accesses.

    Protection of the result itself (PMP) is not checked here."""
    priv = effective_privilege(h, access)
    mode = h.satp >> 60
    return h.when((priv == M) | (mode == 0), lambda: va, lambda: _modes(h, va, access, priv, mode))


def _modes(h: System, va: Word, access: Access, priv: Word, mode: Word) -> Word:
    root = (h.satp & PPN) << PAGE_BITS

    def under(levels: int) -> Word:
        h.when(sext(low(va, 9 * levels + PAGE_BITS)) != va, lambda: h.trap(PAGE_FAULT[access], va))
        return _step(h, va, access, priv, levels - 1, root)

    return h.when(mode == 8, lambda: under(3), lambda: h.when(mode == 9, lambda: under(4), lambda: under(5)))


def _step(h: System, va: Word, access: Access, priv: Word, level: int, table: Word) -> Word:
    """The walk from the table at `level`, 0 holding the smallest pages."""
    shift = PAGE_BITS + 9 * level
    pte_pa = table + ((va >> shift & 511) << 3)
    pte = h.load_pte(pte_pa, va, level, access)
    ppn = pte >> 10 & PPN

    def fault() -> None:
        h.trap(PAGE_FAULT[access], va)

    pbmt = pte & PBMT
    bad = ((pte & V) == 0) | ((pte & (R | W)) == W) | ((pte & RESERVED) != 0)
    bad = bad | (pbmt == PBMT) | (pbmt != 0) & (h.menvcfg.bit(PBMTE) ^ 1)
    h.when(bad, fault)

    def leaf() -> Word:
        permitted = {
            Access.FETCH: pte.bit(3),
            Access.LOAD: pte.bit(1) | pte.bit(3) & h.mstatus.bit(Status.MXR),
            Access.STORE: pte.bit(2),
        }[access]
        from_s = pte.bit(4) ^ 1
        if access is not Access.FETCH:
            from_s = from_s | h.mstatus.bit(Status.SUM)
        permitted = permitted & select(priv == U, pte.bit(4), from_s)
        refused = permitted ^ 1
        if level:
            refused = refused | ((ppn & (1 << 9 * level) - 1) != 0)
        h.when(refused, fault)
        wanted = ACCESSED | (DIRTY if access is Access.STORE else 0)

        def update() -> None:
            h.when(h.menvcfg.bit(ADUE) ^ 1, fault)
            h.store_pte(pte_pa, pte | wanted, va, access)

        h.when((pte & wanted) != wanted, update)
        inside = (1 << shift) - 1
        return (ppn << PAGE_BITS & ~inside) | (va & inside)

    def table_entry() -> Word:
        if level == 0:
            fault()
        h.when((pte & (ACCESSED | DIRTY | USER | PBMT)) != 0, fault)
        return _step(h, va, access, priv, level - 1, ppn << PAGE_BITS)

    return h.when((pte & (R | X)) != 0, leaf, table_entry)
