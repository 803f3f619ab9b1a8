"""Zicsr, the privileged instructions, Svinval and the cache-block operations.

Asking for `h` marks a row as touching what may be sensitive. (Unprivileged manual, "Zicsr" and "CMO"; privileged
manual, "Machine-Level ISA", "Supervisor-Level ISA", "Svinval".)
"""

from __future__ import annotations

from ringfence.isa import tlb, trap
from ringfence.isa.csr import CBCFE, CBIE, CBZE, csr_modify, csr_read, csr_write
from ringfence.isa.effects import Memory, System
from ringfence.isa.spec import insn
from ringfence.isa.trap import Cause, M, S, Status, U
from ringfence.word import Word

# Zicsr. The forms that do not write are rows of their own: they have more fixed bits.


def _read(h: System, csr: Word) -> Word:
    return csr_read(h, csr, False)


@insn("csrrw  csr[11:0] rs1       001 rd 1110011")
def csrrw(h: System, rs1: Word, csr: Word) -> Word:
    old = csr_read(h, csr, True)
    csr_write(h, csr, rs1)
    return old


@insn("csrrs  csr[11:0] rs1       010 rd 1110011")
def csrrs(h: System, rs1: Word, csr: Word) -> Word:
    old = csr_read(h, csr, True)
    csr_write(h, csr, csr_modify(h, csr, old) | rs1)
    return old


@insn("csrrc  csr[11:0] rs1       011 rd 1110011")
def csrrc(h: System, rs1: Word, csr: Word) -> Word:
    old = csr_read(h, csr, True)
    csr_write(h, csr, csr_modify(h, csr, old) & ~rs1)
    return old


@insn("csrrwi csr[11:0] uimm[4:0] 101 rd 1110011")
def csrrwi(h: System, uimm: Word, csr: Word) -> Word:
    return csrrw(h, uimm, csr)


@insn("csrrsi csr[11:0] uimm[4:0] 110 rd 1110011")
def csrrsi(h: System, uimm: Word, csr: Word) -> Word:
    return csrrs(h, uimm, csr)


@insn("csrrci csr[11:0] uimm[4:0] 111 rd 1110011")
def csrrci(h: System, uimm: Word, csr: Word) -> Word:
    return csrrc(h, uimm, csr)


insn("csrr    csr[11:0] 00000 010 rd 1110011", _read)
insn("csrr.c  csr[11:0] 00000 011 rd 1110011", _read)
insn("csrr.si csr[11:0] 00000 110 rd 1110011", _read)
insn("csrr.ci csr[11:0] 00000 111 rd 1110011", _read)

# Traps and waiting


@insn("ecall  000000000000 00000 000 00000 1110011")
def ecall(h: System) -> None:
    h.environment_call()


insn("ebreak 000000000001 00000 000 00000 1110011", lambda h, pc: h.trap(Cause.BREAKPOINT, pc))
insn("sret   000100000010 00000 000 00000 1110011", lambda h: trap.sret(h))
insn("mret   001100000010 00000 000 00000 1110011", lambda h: trap.mret(h))


@insn("wfi    000100000101 00000 000 00000 1110011")
def wfi(h: System) -> None:
    """In U it may not wait, so it is illegal there; TW makes it illegal in S."""
    h.when((h.priv == U) | (h.priv < M) & h.mstatus.bit(Status.TW), h.illegal)
    h.wait()


# Translation caches. What they hold is invisible here, so a fence has only its checks; but for the software-filled TLB.


def _fence(h: System, rs1: Word, rs2: Word) -> None:
    h.when((h.priv < S) | (h.priv == S) & h.mstatus.bit(Status.TVM), h.illegal)
    tlb.fence(h, rs1, rs2)


def _order(h: System) -> None:
    h.when(h.priv < S, h.illegal)


insn("sfence.vma      0001001 rs2 rs1 000 00000 1110011", _fence)
insn("sinval.vma      0001011 rs2 rs1 000 00000 1110011", _fence)
insn("sfence.w.inval  000110000000 00000 000 00000 1110011", _order)
insn("sfence.inval.ir 000110000001 00000 000 00000 1110011", _order)


@insn("tlbwr  1001110 rs2   rs1   000 00000 1110011")
def tlbwr(h: System, rs1: Word, rs2: Word) -> None:
    tlb.manage(h)
    tlb.write(h, rs1, rs2)


@insn("tlbret 1001111 00000 00000 000 00000 1110011")
def tlbret(h: System) -> None:
    tlb.manage(h)
    tlb.leave(h)


# Cache blocks of 64 bytes


def _enabled(h: System, shift: int, mask: int) -> Word:
    """The field of menvcfg, and in U of senvcfg too, lets this privilege go on."""
    m = (h.menvcfg >> shift & mask) != 0
    s = (h.senvcfg >> shift & mask) != 0
    return (h.priv == M) | m & ((h.priv == S) | s)


def _block(m: Memory, h: System, rs1: Word, shift: int, mask: int) -> None:
    h.when(_enabled(h, shift, mask) ^ 1, h.illegal)
    m.touch(rs1)


def _zero(m: Memory, h: System, rs1: Word) -> None:
    h.when(_enabled(h, CBZE, 1) ^ 1, h.illegal)
    m.zero_block(rs1)


insn("cbo.inval 000000000000 rs1 010 00000 0001111", lambda m, h, rs1: _block(m, h, rs1, CBIE, 3))
insn("cbo.clean 000000000001 rs1 010 00000 0001111", lambda m, h, rs1: _block(m, h, rs1, CBCFE, 1))
insn("cbo.flush 000000000010 rs1 010 00000 0001111", lambda m, h, rs1: _block(m, h, rs1, CBCFE, 1))
insn("cbo.zero  000000000100 rs1 010 00000 0001111", _zero)
insn("prefetch.i imm[11:5] 00000 rs1 110 00000 0010011", lambda: None)
insn("prefetch.r imm[11:5] 00001 rs1 110 00000 0010011", lambda: None)
insn("prefetch.w imm[11:5] 00011 rs1 110 00000 0010011", lambda: None)
