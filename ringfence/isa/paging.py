"""Sv39, Sv48 and Sv57: the walk (privileged manual, sections "Sv39" to "Sv57", "Svpbmt", "Svadu"), and, on harts that
do not walk, the entry in the software-filled TLB (`isa.tlb`).

Written once over words. Under the hypervisor extension each table address and the result go through a second walk at
`load_pte` and at the end.
"""

from __future__ import annotations

from enum import IntEnum

from ringfence.isa import tlb
from ringfence.isa.effects import System
from ringfence.isa.trap import Cause, M, Status, U
from ringfence.word import Int, Word, low, select, sext

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
_MARKS = {Access.FETCH: ACCESSED, Access.LOAD: ACCESSED, Access.STORE: ACCESSED | DIRTY}
"""What an access leaves in its leaf."""
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


def space(h: System, access: Access) -> Word:
    """satp as an access sees it. A lent hart's fetches can have their own, as with the PDP-11's instruction and data
    spaces (docs/translation.md).
    """
    return select(h.isatp == 0, h.satp, h.isatp) if access is Access.FETCH else h.satp


def translate(h: System, va: Word, access: Access) -> Word:
    """The physical address of `va`; traps with a page fault, an access fault of the walk's own accesses, or where the
    software-filled TLB has no entry.

    Protection of the result itself (PMP) is not checked here."""
    priv = effective_privilege(h, access)
    satp = space(h, access)
    mode = satp >> 60

    def translated() -> Word:
        how = (h, va, access, priv, satp)
        return h.when(tlb.there(h), lambda: _entry(*how), lambda: _modes(*how))

    return h.when((priv == M) | (mode == 0), lambda: va, translated)


def _modes(h: System, va: Word, access: Access, priv: Word, satp: Word) -> Word:
    mode, root = satp >> 60, (satp & PPN) << PAGE_BITS

    def under(levels: int) -> Word:
        h.when(sext(low(va, 9 * levels + PAGE_BITS)) != va, lambda: h.trap(PAGE_FAULT[access], va))
        return _step(h, va, access, priv, satp, levels - 1, root)

    def walk() -> Word:
        return h.when(mode == 8, lambda: under(3), lambda: h.when(mode == 9, lambda: under(4), lambda: under(5)))

    kept = h.last_table(va, satp)
    return h.when(kept != 0, lambda: _step(h, va, access, priv, satp, 0, kept), walk)


def _step(h: System, va: Word, access: Access, priv: Word, satp: Word, level: int, table: Word) -> Word:
    """The walk from the table at `level`, 0 holding the smallest pages."""
    shift = PAGE_BITS + 9 * level
    pte_pa = table + ((va >> shift & 511) << 3)
    pte = h.load_pte(pte_pa, va, level, access)
    ppn = pte >> 10 & PPN

    def fault() -> None:
        h.trap(PAGE_FAULT[access], va)

    h.when(_malformed(h, pte), fault)

    def leaf() -> Word:
        refused = _permitted(h, pte, access, priv) ^ 1
        if level:
            refused = refused | ((ppn & (1 << 9 * level) - 1) != 0)
        h.when(refused, fault)
        wanted = _MARKS[access]

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
        if level == 1:
            h.keep_table(va, satp, ppn << PAGE_BITS)
        return _step(h, va, access, priv, satp, level - 1, ppn << PAGE_BITS)

    return h.when((pte & (R | X)) != 0, leaf, table_entry)


def _malformed(h: System, pte: Word) -> Word:
    """Not valid, or reserved."""
    pbmt = pte & PBMT
    bad = ((pte & V) == 0) | ((pte & (R | W)) == W) | ((pte & RESERVED) != 0)
    return bad | (pbmt == PBMT) | (pbmt != 0) & (h.menvcfg.bit(PBMTE) ^ 1)


def _permitted(h: System, pte: Word, access: Access, priv: Word) -> Word:
    """Whether a leaf grants the access."""
    permitted = {
        Access.FETCH: pte.bit(3),
        Access.LOAD: pte.bit(1) | pte.bit(3) & h.mstatus.bit(Status.MXR),
        Access.STORE: pte.bit(2),
    }[access]
    from_s = pte.bit(4) ^ 1
    if access is not Access.FETCH:
        from_s = from_s | h.mstatus.bit(Status.SUM)
    return permitted & select(priv == U, pte.bit(4), from_s)


def _entry(h: System, va: Word, access: Access, priv: Word, satp: Word) -> Word:
    """By the software-filled TLB, whose entries are leaves. Accessed and dirty bits are the software's to set."""
    mode = satp >> 60

    def fault() -> None:
        h.trap(PAGE_FAULT[access], va)

    unused = select(mode == 8, Int(25), select(mode == 9, Int(16), Int(7)))  # bits of an address above the mode's
    h.when(((va << unused).s >> unused) != va, fault)
    n = tlb.find(h, va)
    h.when(n == tlb.ENTRIES, lambda: h.trap(Cause.TLB_REFILL, va))
    pte = h.element("tlb_pte", n)
    marked = (pte & _MARKS[access]) == _MARKS[access]
    granted = ((pte & (R | X)) != 0) & _permitted(h, pte, access, priv) & marked
    h.when(_malformed(h, pte) | (granted ^ 1), fault)
    return (pte >> 10 & PPN) << PAGE_BITS | va & 4095
