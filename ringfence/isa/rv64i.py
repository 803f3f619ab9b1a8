"""RV64I and Zifencei (unprivileged manual, chapters 2 to 4 and "Zifencei")."""

from ringfence.isa.effects import Memory
from ringfence.isa.spec import insn
from ringfence.word import Word, low, sext, zext


def word32(x: Word) -> Word:
    """The low 32 bits, extended by their sign: what every *W instruction leaves."""
    return sext(low(x, 32))


insn("lui     imm[31:12]                     rd 0110111", lambda imm: imm)
insn("auipc   imm[31:12]                     rd 0010111", lambda pc, imm: pc + imm)


@insn("jal     imm[20|10:1|11|19:12]          rd 1101111")
def jal(m: Memory, link: Word, imm: Word) -> Word:
    m.branch(imm)
    return link


@insn("jalr    imm[11:0]         rs1 000      rd 1100111")
def jalr(m: Memory, link: Word, rs1: Word, imm: Word) -> Word:
    m.jump(rs1 + imm & ~1)
    return link


insn("beq     imm[12|10:5] rs2 rs1 000 imm[4:1|11] 1100011", lambda m, rs1, rs2, imm: m.branch(imm, when=rs1 == rs2))
insn("bne     imm[12|10:5] rs2 rs1 001 imm[4:1|11] 1100011", lambda m, rs1, rs2, imm: m.branch(imm, when=rs1 != rs2))
insn("blt     imm[12|10:5] rs2 rs1 100 imm[4:1|11] 1100011", lambda m, rs1, rs2, imm: m.branch(imm, when=rs1.s < rs2.s))
insn(
    "bge     imm[12|10:5] rs2 rs1 101 imm[4:1|11] 1100011", lambda m, rs1, rs2, imm: m.branch(imm, when=rs1.s >= rs2.s)
)
insn("bltu    imm[12|10:5] rs2 rs1 110 imm[4:1|11] 1100011", lambda m, rs1, rs2, imm: m.branch(imm, when=rs1 < rs2))
insn("bgeu    imm[12|10:5] rs2 rs1 111 imm[4:1|11] 1100011", lambda m, rs1, rs2, imm: m.branch(imm, when=rs1 >= rs2))

insn("lb      imm[11:0]         rs1 000      rd 0000011", lambda m, rs1, imm: sext(m.load(rs1 + imm, 8)))
insn("lh      imm[11:0]         rs1 001      rd 0000011", lambda m, rs1, imm: sext(m.load(rs1 + imm, 16)))
insn("lw      imm[11:0]         rs1 010      rd 0000011", lambda m, rs1, imm: sext(m.load(rs1 + imm, 32)))
insn("ld      imm[11:0]         rs1 011      rd 0000011", lambda m, rs1, imm: m.load(rs1 + imm, 64))
insn("lbu     imm[11:0]         rs1 100      rd 0000011", lambda m, rs1, imm: zext(m.load(rs1 + imm, 8)))
insn("lhu     imm[11:0]         rs1 101      rd 0000011", lambda m, rs1, imm: zext(m.load(rs1 + imm, 16)))
insn("lwu     imm[11:0]         rs1 110      rd 0000011", lambda m, rs1, imm: zext(m.load(rs1 + imm, 32)))
insn("sb      imm[11:5]     rs2 rs1 000 imm[4:0] 0100011", lambda m, rs1, rs2, imm: m.store(rs1 + imm, low(rs2, 8)))
insn("sh      imm[11:5]     rs2 rs1 001 imm[4:0] 0100011", lambda m, rs1, rs2, imm: m.store(rs1 + imm, low(rs2, 16)))
insn("sw      imm[11:5]     rs2 rs1 010 imm[4:0] 0100011", lambda m, rs1, rs2, imm: m.store(rs1 + imm, low(rs2, 32)))
insn("sd      imm[11:5]     rs2 rs1 011 imm[4:0] 0100011", lambda m, rs1, rs2, imm: m.store(rs1 + imm, rs2))

insn("addi    imm[11:0]         rs1 000      rd 0010011", lambda rs1, imm: rs1 + imm)
insn("slti    imm[11:0]         rs1 010      rd 0010011", lambda rs1, imm: zext(rs1.s < imm.s))
insn("sltiu   imm[11:0]         rs1 011      rd 0010011", lambda rs1, imm: zext(rs1 < imm))
insn("xori    imm[11:0]         rs1 100      rd 0010011", lambda rs1, imm: rs1 ^ imm)
insn("ori     imm[11:0]         rs1 110      rd 0010011", lambda rs1, imm: rs1 | imm)
insn("andi    imm[11:0]         rs1 111      rd 0010011", lambda rs1, imm: rs1 & imm)
insn("slli    000000 shamt[5:0] rs1 001      rd 0010011", lambda rs1, shamt: rs1 << shamt)
insn("srli    000000 shamt[5:0] rs1 101      rd 0010011", lambda rs1, shamt: rs1 >> shamt)
insn("srai    010000 shamt[5:0] rs1 101      rd 0010011", lambda rs1, shamt: rs1.s >> shamt)

insn("add     0000000       rs2 rs1 000      rd 0110011", lambda rs1, rs2: rs1 + rs2)
insn("sub     0100000       rs2 rs1 000      rd 0110011", lambda rs1, rs2: rs1 - rs2)
insn("sll     0000000       rs2 rs1 001      rd 0110011", lambda rs1, rs2: rs1 << (rs2 & 63))
insn("slt     0000000       rs2 rs1 010      rd 0110011", lambda rs1, rs2: zext(rs1.s < rs2.s))
insn("sltu    0000000       rs2 rs1 011      rd 0110011", lambda rs1, rs2: zext(rs1 < rs2))
insn("xor     0000000       rs2 rs1 100      rd 0110011", lambda rs1, rs2: rs1 ^ rs2)
insn("srl     0000000       rs2 rs1 101      rd 0110011", lambda rs1, rs2: rs1 >> (rs2 & 63))
insn("sra     0100000       rs2 rs1 101      rd 0110011", lambda rs1, rs2: rs1.s >> (rs2 & 63))
insn("or      0000000       rs2 rs1 110      rd 0110011", lambda rs1, rs2: rs1 | rs2)
insn("and     0000000       rs2 rs1 111      rd 0110011", lambda rs1, rs2: rs1 & rs2)

insn("addiw   imm[11:0]           rs1 000    rd 0011011", lambda rs1, imm: word32(rs1 + imm))
insn("slliw   0000000  shamt[4:0] rs1 001    rd 0011011", lambda rs1, shamt: sext(low(rs1, 32) << low(shamt, 32)))
insn("srliw   0000000  shamt[4:0] rs1 101    rd 0011011", lambda rs1, shamt: sext(low(rs1, 32) >> low(shamt, 32)))
insn("sraiw   0100000  shamt[4:0] rs1 101    rd 0011011", lambda rs1, shamt: sext(low(rs1, 32).s >> low(shamt, 32)))
insn("addw    0000000         rs2 rs1 000    rd 0111011", lambda rs1, rs2: word32(rs1 + rs2))
insn("subw    0100000         rs2 rs1 000    rd 0111011", lambda rs1, rs2: word32(rs1 - rs2))
insn("sllw    0000000         rs2 rs1 001    rd 0111011", lambda rs1, rs2: sext(low(rs1, 32) << low(rs2 & 31, 32)))
insn("srlw    0000000         rs2 rs1 101    rd 0111011", lambda rs1, rs2: sext(low(rs1, 32) >> low(rs2 & 31, 32)))
insn("sraw    0100000         rs2 rs1 101    rd 0111011", lambda rs1, rs2: sext(low(rs1, 32).s >> low(rs2 & 31, 32)))

# Harts take turns and every store is seen at once, code included: ordering needs nothing.
insn("fence   fm[3:0] pred[3:0] succ[3:0] rs1 000 rd 0001111", lambda: None)
insn("fence.i uimm[11:0]        rs1 001      rd 0001111", lambda: None)
