"""M: multiplication and division (unprivileged manual, chapter "M"). Division never traps: the table of its special
cases is in guards.
"""

from ringfence.isa.spec import insn
from ringfence.word import Word, low, select, sext, zext


def _high(a: Word, b: Word) -> Word:
    return low(a * b >> 64, 64)


def div(a: Word, b: Word) -> Word:
    """-1 by zero, the dividend on overflow."""
    overflow = (a == 1 << a.width - 1) & (b == -1)
    safe = select(overflow | (b == 0), 1, b)
    return select(b == 0, -1, a.s // safe.s)


def divu(a: Word, b: Word) -> Word:
    return select(b == 0, -1, a // select(b == 0, 1, b))


def rem(a: Word, b: Word) -> Word:
    """The dividend by zero, 0 on overflow."""
    overflow = (a == 1 << a.width - 1) & (b == -1)
    safe = select(overflow | (b == 0), 1, b)
    return select(b == 0, a, a.s % safe.s)


def remu(a: Word, b: Word) -> Word:
    return select(b == 0, a, a % select(b == 0, 1, b))


insn("mul    0000001 rs2 rs1 000 rd 0110011", lambda rs1, rs2: rs1 * rs2)
insn("mulh   0000001 rs2 rs1 001 rd 0110011", lambda rs1, rs2: _high(sext(rs1, 128), sext(rs2, 128)))
insn("mulhsu 0000001 rs2 rs1 010 rd 0110011", lambda rs1, rs2: _high(sext(rs1, 128), zext(rs2, 128)))
insn("mulhu  0000001 rs2 rs1 011 rd 0110011", lambda rs1, rs2: _high(zext(rs1, 128), zext(rs2, 128)))
insn("div    0000001 rs2 rs1 100 rd 0110011", lambda rs1, rs2: div(rs1, rs2))
insn("divu   0000001 rs2 rs1 101 rd 0110011", lambda rs1, rs2: divu(rs1, rs2))
insn("rem    0000001 rs2 rs1 110 rd 0110011", lambda rs1, rs2: rem(rs1, rs2))
insn("remu   0000001 rs2 rs1 111 rd 0110011", lambda rs1, rs2: remu(rs1, rs2))
insn("mulw   0000001 rs2 rs1 000 rd 0111011", lambda rs1, rs2: sext(low(rs1 * rs2, 32)))
insn("divw   0000001 rs2 rs1 100 rd 0111011", lambda rs1, rs2: sext(div(low(rs1, 32), low(rs2, 32))))
insn("divuw  0000001 rs2 rs1 101 rd 0111011", lambda rs1, rs2: sext(divu(low(rs1, 32), low(rs2, 32))))
insn("remw   0000001 rs2 rs1 110 rd 0111011", lambda rs1, rs2: sext(rem(low(rs1, 32), low(rs2, 32))))
insn("remuw  0000001 rs2 rs1 111 rd 0111011", lambda rs1, rs2: sext(remu(low(rs1, 32), low(rs2, 32))))
