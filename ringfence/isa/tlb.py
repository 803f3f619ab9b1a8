"""The software-filled TLB: a table of entries that software writes, and the harts that have one do not walk.

Source: docs/software-tlb.md. Where an access finds no entry for its page the exception `Cause.TLB_REFILL` is taken
(`trap.enter`); where it finds one, that decides (`paging`). Written once over words. What an engine keeps beside the
table is told before the table changes: `retranslate`.

    tlb_tag    present: 63   global: 61   ASID: 60:45   virtual page number, 57 bits of address: 44:0
    tlb_pte    the word that was written: a leaf of the smallest page
"""

from __future__ import annotations

from ringfence.isa.effects import System
from ringfence.isa.trap import S, Status
from ringfence.word import Int, Word, select, zext

ENTRIES = 64
PRESENT, GLOBAL = 1 << 63, 1 << 61
PAGE = (1 << 45) - 1
_ASID = 45
_G = 5
"""The bit of a page-table entry that makes it every address space's."""


def asid_of(tag: int) -> int:
    return tag >> _ASID & 0xFFFF


def there(h: System) -> Word:
    """Whether the hart has such a TLB."""
    return h.software_tlb != 0


def manage(h: System) -> None:
    """Its instructions are illegal below S, in S under TVM, and on other harts."""
    h.when((h.software_tlb == 0) | (h.priv < S) | (h.priv == S) & h.mstatus.bit(Status.TVM), h.illegal)


def _tags(h: System, va: Word) -> tuple[Word, Word]:
    """What tags an entry of the page that is the current address space's own, and one that is every space's."""
    page = va >> 12 & PAGE
    return page | (h.satp >> 44 & 0xFFFF) << _ASID | PRESENT, page | GLOBAL | PRESENT


def find(h: System, va: Word) -> Word:
    """The number of the first entry for the page in the current address space; ENTRIES: there is none."""
    return h.find("tlb_tag", *_tags(h, va))


def write(h: System, va: Word, pte: Word) -> None:
    """An entry for the page in the current address space, in place of the one that it has, or of that whose
    turn it is.
    """
    own, every = _tags(h, va)
    n = h.find("tlb_tag", own, every)
    missing = n == ENTRIES
    turn = h.stlbindex
    place = select(missing, turn, n)
    h.retranslate((h.element("tlb_tag", place) << 64 - _ASID).s >> 64 - _ASID - 12 & -4096)
    h.retranslate(va & -4096)
    h.set_element("tlb_tag", place, select(pte.bit(_G), every, own))
    h.set_element("tlb_pte", place, pte)
    h.stlbindex = turn + zext(missing) & ENTRIES - 1
    h.refetch()


def leave(h: System) -> None:
    """Behind a refill: on where the miss was."""
    status, kept = h.stlbstatus, h.mstatus & ~(1 << Status.SIE | 1 << Status.MPRV)
    h.mstatus = kept | (status >> Status.SPIE & 1) << Status.SIE
    h.priv = status >> Status.SPP & 1
    h.satp = h.satp & ~(15 << 60) | status & 15 << 60
    h.regime()
    h.check_point()
    h.jump(h.stlbepc)


def fence(h: System, va: Word, asid: Word) -> None:
    """SFENCE.VMA, SINVAL.VMA: entries are dropped. An operand that is 0 says nothing, as x0 does, so there more is
    dropped than has to be.
    """
    space = asid & 0xFFFF

    def kept(tag: Word) -> Word:
        page = (va == 0) | ((tag & PAGE) == (va >> 12 & PAGE))
        own = (space == 0) | ((tag >> _ASID & 0x1FFFF) == space)  # with the bit for "global" 0
        return select(page & own, Int(0), tag)

    def drop() -> None:
        h.when(va == 0, h.retranslate, lambda: h.retranslate(va & -4096))
        h.replace("tlb_tag", kept)

    h.when(there(h), drop)
    h.refetch()
