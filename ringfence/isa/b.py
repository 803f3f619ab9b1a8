"""Zba, Zbb, Zbs and Zicond (unprivileged manual, chapters "B" and "Zicond")."""

from ringfence.isa.spec import insn
from ringfence.word import Int, Word, byteswap, clz, cpop, ctz, low, select, sext, zext


def _rol(x: Word, n: Word) -> Word:
    n = n & x.width - 1
    return x << n | x >> (-n & x.width - 1)


def _ror(x: Word, n: Word) -> Word:
    n = n & x.width - 1
    return x >> n | x << (-n & x.width - 1)


def _orc_b(x: Word) -> Word:
    """0xff in each byte that is not zero."""
    ones = 0x0101010101010101
    for shift in (4, 2, 1):
        x = x | x >> shift & ones * (0xFF >> 8 - shift)
    return (x & ones) * 0xFF


def _one(rs: Word) -> Word:
    return Int(1) << (rs & 63)


def _low(x: Word) -> Word:
    return zext(low(x, 32))


insn("add.uw    0000100 rs2 rs1 000 rd 0111011", lambda rs1, rs2: rs2 + _low(rs1))
insn("sh1add    0010000 rs2 rs1 010 rd 0110011", lambda rs1, rs2: rs2 + (rs1 << 1))
insn("sh2add    0010000 rs2 rs1 100 rd 0110011", lambda rs1, rs2: rs2 + (rs1 << 2))
insn("sh3add    0010000 rs2 rs1 110 rd 0110011", lambda rs1, rs2: rs2 + (rs1 << 3))
insn("sh1add.uw 0010000 rs2 rs1 010 rd 0111011", lambda rs1, rs2: rs2 + (_low(rs1) << 1))
insn("sh2add.uw 0010000 rs2 rs1 100 rd 0111011", lambda rs1, rs2: rs2 + (_low(rs1) << 2))
insn("sh3add.uw 0010000 rs2 rs1 110 rd 0111011", lambda rs1, rs2: rs2 + (_low(rs1) << 3))
insn("slli.uw   000010 shamt[5:0] rs1 001 rd 0011011", lambda rs1, shamt: _low(rs1) << shamt)

insn("andn      0100000 rs2 rs1 111 rd 0110011", lambda rs1, rs2: rs1 & ~rs2)
insn("orn       0100000 rs2 rs1 110 rd 0110011", lambda rs1, rs2: rs1 | ~rs2)
insn("xnor      0100000 rs2 rs1 100 rd 0110011", lambda rs1, rs2: ~(rs1 ^ rs2))
insn("clz       011000000000 rs1 001 rd 0010011", lambda rs1: clz(rs1))
insn("ctz       011000000001 rs1 001 rd 0010011", lambda rs1: ctz(rs1))
insn("cpop      011000000010 rs1 001 rd 0010011", lambda rs1: cpop(rs1))
insn("clzw      011000000000 rs1 001 rd 0011011", lambda rs1: zext(clz(low(rs1, 32))))
insn("ctzw      011000000001 rs1 001 rd 0011011", lambda rs1: zext(ctz(low(rs1, 32))))
insn("cpopw     011000000010 rs1 001 rd 0011011", lambda rs1: zext(cpop(low(rs1, 32))))
insn("max       0000101 rs2 rs1 110 rd 0110011", lambda rs1, rs2: select(rs1.s < rs2.s, rs2, rs1))
insn("maxu      0000101 rs2 rs1 111 rd 0110011", lambda rs1, rs2: select(rs1 < rs2, rs2, rs1))
insn("min       0000101 rs2 rs1 100 rd 0110011", lambda rs1, rs2: select(rs1.s < rs2.s, rs1, rs2))
insn("minu      0000101 rs2 rs1 101 rd 0110011", lambda rs1, rs2: select(rs1 < rs2, rs1, rs2))
insn("sext.b    011000000100 rs1 001 rd 0010011", lambda rs1: sext(low(rs1, 8)))
insn("sext.h    011000000101 rs1 001 rd 0010011", lambda rs1: sext(low(rs1, 16)))
insn("zext.h    000010000000 rs1 100 rd 0111011", lambda rs1: zext(low(rs1, 16)))
insn("rol       0110000 rs2 rs1 001 rd 0110011", lambda rs1, rs2: _rol(rs1, rs2))
insn("ror       0110000 rs2 rs1 101 rd 0110011", lambda rs1, rs2: _ror(rs1, rs2))
insn("rori      011000 shamt[5:0] rs1 101 rd 0010011", lambda rs1, shamt: _ror(rs1, shamt))
insn("rolw      0110000 rs2 rs1 001 rd 0111011", lambda rs1, rs2: sext(_rol(low(rs1, 32), low(rs2, 32))))
insn("rorw      0110000 rs2 rs1 101 rd 0111011", lambda rs1, rs2: sext(_ror(low(rs1, 32), low(rs2, 32))))
insn("roriw     0110000 shamt[4:0] rs1 101 rd 0011011", lambda rs1, shamt: sext(_ror(low(rs1, 32), low(shamt, 32))))
insn("orc.b     001010000111 rs1 101 rd 0010011", lambda rs1: _orc_b(rs1))
insn("rev8      011010111000 rs1 101 rd 0010011", lambda rs1: byteswap(rs1))

insn("bclr      0100100 rs2 rs1 001 rd 0110011", lambda rs1, rs2: rs1 & ~_one(rs2))
insn("bext      0100100 rs2 rs1 101 rd 0110011", lambda rs1, rs2: rs1 >> (rs2 & 63) & 1)
insn("binv      0110100 rs2 rs1 001 rd 0110011", lambda rs1, rs2: rs1 ^ _one(rs2))
insn("bset      0010100 rs2 rs1 001 rd 0110011", lambda rs1, rs2: rs1 | _one(rs2))
insn("bclri     010010 shamt[5:0] rs1 001 rd 0010011", lambda rs1, shamt: rs1 & ~_one(shamt))
insn("bexti     010010 shamt[5:0] rs1 101 rd 0010011", lambda rs1, shamt: rs1 >> shamt & 1)
insn("binvi     011010 shamt[5:0] rs1 001 rd 0010011", lambda rs1, shamt: rs1 ^ _one(shamt))
insn("bseti     001010 shamt[5:0] rs1 001 rd 0010011", lambda rs1, shamt: rs1 | _one(shamt))

insn("czero.eqz 0000111 rs2 rs1 101 rd 0110011", lambda rs1, rs2: select(rs2 == 0, 0, rs1))
insn("czero.nez 0000111 rs2 rs1 111 rd 0110011", lambda rs1, rs2: select(rs2 != 0, 0, rs1))
