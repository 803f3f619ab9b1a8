"""Causes, trap entry, trap return and the choice of an interrupt (privileged manual, chapters "Machine-Level ISA" and
"Supervisor-Level ISA").

Written once over words. Nothing here knows of virtualization mode V; the hypervisor extension adds a third target to
`enter`.
"""

from __future__ import annotations

from enum import IntEnum

from ringfence.isa.effects import System
from ringfence.word import Int, Word, select, zext

U, S, M = 0, 1, 3


class Cause(IntEnum):
    """Synchronous exceptions, by their code in mcause."""

    FETCH_MISALIGNED = 0
    FETCH_ACCESS = 1
    ILLEGAL = 2
    BREAKPOINT = 3
    LOAD_MISALIGNED = 4
    LOAD_ACCESS = 5
    STORE_MISALIGNED = 6
    STORE_ACCESS = 7
    ECALL_U = 8
    ECALL_S = 9
    ECALL_M = 11
    FETCH_PAGE = 12
    LOAD_PAGE = 13
    STORE_PAGE = 15
    TLB_REFILL = 24  # designated for custom use: docs/software-tlb.md


class Irq(IntEnum):
    """Interrupts, by their bit in mip."""

    SSI = 1
    MSI = 3
    STI = 5
    MTI = 7
    SEI = 9
    MEI = 11


PRIORITY = (Irq.MEI, Irq.MSI, Irq.MTI, Irq.SEI, Irq.SSI, Irq.STI)


class Status(IntEnum):
    """Fields of mstatus, by their lowest bit."""

    SIE = 1
    MIE = 3
    SPIE = 5
    MPIE = 7
    SPP = 8
    MPP = 11
    FS = 13
    MPRV = 17
    SUM = 18
    MXR = 19
    TVM = 20
    TW = 21
    TSR = 22
    UXL = 32
    SXL = 34
    SD = 63


def enter(h: System, cause: Word, tval: Word, pc: Word, interrupt: bool) -> None:
    """Trap at `pc`. `cause` is without the interrupt bit; 64-bit words."""
    flag = 1 << 63 if interrupt else 0
    delegated = ((h.mideleg if interrupt else h.medeleg) >> cause & 1) == 1
    status = h.mstatus

    def vector(tvec: Word) -> Word:
        base = tvec & ~3
        return select(tvec.bit(0), base + (cause << 2), base) if interrupt else base

    def supervisor() -> Word:
        h.scause, h.sepc, h.stval = cause | flag, pc, tval
        spie = (status >> Status.SIE & 1) << Status.SPIE
        spp = (h.priv & 1) << Status.SPP
        h.mstatus = status & ~(1 << Status.SIE | 1 << Status.SPIE | 1 << Status.SPP) | spie | spp
        h.priv = Int(S)
        return vector(h.stvec)

    def machine() -> Word:
        h.mcause, h.mepc, h.mtval = cause | flag, pc, tval
        mpie = (status >> Status.MIE & 1) << Status.MPIE
        h.mstatus = status & ~(1 << Status.MIE | 1 << Status.MPIE | 3 << Status.MPP) | mpie | h.priv << Status.MPP
        h.priv = Int(M)
        return vector(h.mtvec)

    h.reservation = Int(-1)
    h.minstret = h.minstret - select((h.mcountinhibit & 4) == 0, Int(1), Int(0))

    def ordinary() -> Word:
        return h.when(delegated & (h.priv <= S), supervisor, machine)

    missed = (cause == Cause.TLB_REFILL) & (h.priv <= S)
    target = ordinary() if interrupt else h.when(missed, lambda: _refill(h, tval, pc), ordinary)
    h.regime()
    h.check_point()
    h.jump(target)


def _refill(h: System, va: Word, pc: Word) -> Word:
    """The TLB has no entry for `va`: to S-mode's own handler for that, which runs untranslated until `tlb.leave` and
    so cannot miss itself. Nothing of an ordinary trap is touched, as one may just be taken.
    """
    status, satp = h.mstatus, h.satp
    spie = (status >> Status.SIE & 1) << Status.SPIE
    h.stlbepc, h.stlbval = pc, va
    h.stlbstatus = satp & 15 << 60 | h.priv << Status.SPP | spie
    h.satp = satp & ~(15 << 60)
    h.mstatus = status & ~(1 << Status.SIE)
    h.priv = Int(S)
    return h.stlbvec


def sret(h: System) -> None:
    """SRET: illegal below S, and in S under TSR."""
    status = h.mstatus
    h.when((h.priv < S) | (h.priv == S) & status.bit(Status.TSR), h.illegal)
    spp = status >> Status.SPP & 1
    sie = (status >> Status.SPIE & 1) << Status.SIE
    kept = status & ~(1 << Status.SIE | 1 << Status.SPP | 1 << Status.MPRV)
    h.mstatus = kept | 1 << Status.SPIE | sie
    h.priv = spp
    h.regime()
    h.check_point()
    h.jump(h.sepc)


def mret(h: System) -> None:
    """MRET: illegal below M."""
    h.when(h.priv < M, h.illegal)
    status = h.mstatus
    mpp = status >> Status.MPP & 3
    mie = (status >> Status.MPIE & 1) << Status.MIE
    kept = status & ~(1 << Status.MIE | 3 << Status.MPP)
    kept = select(mpp == M, kept, kept & ~(1 << Status.MPRV))
    h.mstatus = kept | 1 << Status.MPIE | mie
    h.priv = mpp
    h.regime()
    h.check_point()
    h.jump(h.mepc)


def pending(h: System) -> Word:
    """The bits of mip that are enabled for the hart's privilege now; those for M come alone, as they go first."""
    ready = (h.mip | h.lines) & h.mie
    status, priv = h.mstatus, h.priv
    to_m = ready & ~h.mideleg
    to_s = ready & h.mideleg
    m_on = (priv < M) | status.bit(Status.MIE)
    s_on = (priv < S) | (priv == S) & status.bit(Status.SIE)
    to_m = select(m_on, to_m, 0)
    return select(to_m != 0, to_m, select(s_on, to_s, 0))


def highest(bits: Word) -> Word:
    """The interrupt of highest priority among bits of mip that are not all zero."""
    cause: Word = zext(Int(PRIORITY[-1]))
    for irq in reversed(PRIORITY[:-1]):
        cause = select(bits.bit(irq), Int(irq), cause)
    return cause
