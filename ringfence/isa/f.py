"""RV64F: single-precision floating point (unprivileged manual, "F"). Singles lie boxed in 64 bits."""

from __future__ import annotations

from ringfence.isa.floating import (
    box,
    classify,
    equal,
    from_signed,
    from_unsigned,
    inject,
    inject_negated,
    inject_xor,
    less,
    less_or_equal,
    maximum,
    minimum,
    negate,
    to_signed,
    to_unsigned,
    unbox,
)
from ringfence.isa.spec import insn
from ringfence.word import low, sext

insn("flw imm[11:0] rs1 010 fd 0000111", lambda m, rs1, imm: box(m.load(rs1 + imm, 32)))
insn("fsw imm[11:5] fs2 rs1 010 imm[4:0] 0100111", lambda m, rs1, fs2, imm: m.store(rs1 + imm, low(fs2, 32)))

insn("fadd.s 0000000 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: box(f.add(unbox(fs1), unbox(fs2), rm)))
insn("fsub.s 0000100 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: box(f.sub(unbox(fs1), unbox(fs2), rm)))
insn("fmul.s 0001000 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: box(f.mul(unbox(fs1), unbox(fs2), rm)))
insn("fdiv.s 0001100 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: box(f.div(unbox(fs1), unbox(fs2), rm)))
insn("fsqrt.s 0101100 00000 fs1 rm fd 1010011", lambda f, fs1, rm: box(f.sqrt(unbox(fs1), rm)))

insn(
    "fmadd.s fs3 00 fs2 fs1 rm fd 1000011",
    lambda f, fs1, fs2, fs3, rm: box(f.fma(unbox(fs1), unbox(fs2), unbox(fs3), rm)),
)
insn(
    "fmsub.s fs3 00 fs2 fs1 rm fd 1000111",
    lambda f, fs1, fs2, fs3, rm: box(f.fma(unbox(fs1), unbox(fs2), negate(unbox(fs3)), rm)),
)
insn(
    "fnmsub.s fs3 00 fs2 fs1 rm fd 1001011",
    lambda f, fs1, fs2, fs3, rm: box(f.fma(negate(unbox(fs1)), unbox(fs2), unbox(fs3), rm)),
)
insn(
    "fnmadd.s fs3 00 fs2 fs1 rm fd 1001111",
    lambda f, fs1, fs2, fs3, rm: box(f.fma(negate(unbox(fs1)), unbox(fs2), negate(unbox(fs3)), rm)),
)

insn("fsgnj.s 0010000 fs2 fs1 000 fd 1010011", lambda fs1, fs2: box(inject(unbox(fs1), unbox(fs2))))
insn("fsgnjn.s 0010000 fs2 fs1 001 fd 1010011", lambda fs1, fs2: box(inject_negated(unbox(fs1), unbox(fs2))))
insn("fsgnjx.s 0010000 fs2 fs1 010 fd 1010011", lambda fs1, fs2: box(inject_xor(unbox(fs1), unbox(fs2))))
insn("fmin.s 0010100 fs2 fs1 000 fd 1010011", lambda f, fs1, fs2: box(minimum(f, unbox(fs1), unbox(fs2))))
insn("fmax.s 0010100 fs2 fs1 001 fd 1010011", lambda f, fs1, fs2: box(maximum(f, unbox(fs1), unbox(fs2))))

insn("feq.s 1010000 fs2 fs1 010 rd 1010011", lambda f, fs1, fs2: equal(f, unbox(fs1), unbox(fs2)))
insn("flt.s 1010000 fs2 fs1 001 rd 1010011", lambda f, fs1, fs2: less(f, unbox(fs1), unbox(fs2)))
insn("fle.s 1010000 fs2 fs1 000 rd 1010011", lambda f, fs1, fs2: less_or_equal(f, unbox(fs1), unbox(fs2)))
insn("fclass.s 1110000 00000 fs1 001 rd 1010011", lambda fs1: classify(unbox(fs1)))

insn("fmv.x.w 1110000 00000 fs1 000 rd 1010011", lambda fs1: sext(low(fs1, 32)))
insn("fmv.w.x 1111000 00000 rs1 000 fd 1010011", lambda rs1: box(low(rs1, 32)))

insn("fcvt.w.s 1100000 00000 fs1 rm rd 1010011", lambda f, fs1, rm: to_signed(f, unbox(fs1), rm, 32))
insn("fcvt.wu.s 1100000 00001 fs1 rm rd 1010011", lambda f, fs1, rm: to_unsigned(f, unbox(fs1), rm, 32))
insn("fcvt.l.s 1100000 00010 fs1 rm rd 1010011", lambda f, fs1, rm: to_signed(f, unbox(fs1), rm, 64))
insn("fcvt.lu.s 1100000 00011 fs1 rm rd 1010011", lambda f, fs1, rm: to_unsigned(f, unbox(fs1), rm, 64))

insn("fcvt.s.w 1101000 00000 rs1 rm fd 1010011", lambda f, rs1, rm: box(from_signed(f, low(rs1, 32), rm, 32)))
insn(
    "fcvt.s.wu 1101000 00001 rs1 rm fd 1010011",
    lambda f, rs1, rm: box(from_unsigned(f, low(rs1, 32), rm, 32)),
)
insn("fcvt.s.l 1101000 00010 rs1 rm fd 1010011", lambda f, rs1, rm: box(from_signed(f, rs1, rm, 32)))
insn("fcvt.s.lu 1101000 00011 rs1 rm fd 1010011", lambda f, rs1, rm: box(from_unsigned(f, rs1, rm, 32)))
