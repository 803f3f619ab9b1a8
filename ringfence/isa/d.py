"""RV64D: double-precision floating point (unprivileged manual, "D")."""

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
    widen,
)
from ringfence.isa.spec import insn
from ringfence.word import low

insn("fld imm[11:0] rs1 011 fd 0000111", lambda m, rs1, imm: m.load(rs1 + imm, 64))
insn("fsd imm[11:5] fs2 rs1 011 imm[4:0] 0100111", lambda m, rs1, fs2, imm: m.store(rs1 + imm, fs2))

insn("fadd.d 0000001 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: f.add(fs1, fs2, rm))
insn("fsub.d 0000101 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: f.sub(fs1, fs2, rm))
insn("fmul.d 0001001 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: f.mul(fs1, fs2, rm))
insn("fdiv.d 0001101 fs2 fs1 rm fd 1010011", lambda f, fs1, fs2, rm: f.div(fs1, fs2, rm))
insn("fsqrt.d 0101101 00000 fs1 rm fd 1010011", lambda f, fs1, rm: f.sqrt(fs1, rm))

insn("fmadd.d fs3 01 fs2 fs1 rm fd 1000011", lambda f, fs1, fs2, fs3, rm: f.fma(fs1, fs2, fs3, rm))
insn("fmsub.d fs3 01 fs2 fs1 rm fd 1000111", lambda f, fs1, fs2, fs3, rm: f.fma(fs1, fs2, negate(fs3), rm))
insn("fnmsub.d fs3 01 fs2 fs1 rm fd 1001011", lambda f, fs1, fs2, fs3, rm: f.fma(negate(fs1), fs2, fs3, rm))
insn(
    "fnmadd.d fs3 01 fs2 fs1 rm fd 1001111",
    lambda f, fs1, fs2, fs3, rm: f.fma(negate(fs1), fs2, negate(fs3), rm),
)

insn("fsgnj.d 0010001 fs2 fs1 000 fd 1010011", lambda fs1, fs2: inject(fs1, fs2))
insn("fsgnjn.d 0010001 fs2 fs1 001 fd 1010011", lambda fs1, fs2: inject_negated(fs1, fs2))
insn("fsgnjx.d 0010001 fs2 fs1 010 fd 1010011", lambda fs1, fs2: inject_xor(fs1, fs2))
insn("fmin.d 0010101 fs2 fs1 000 fd 1010011", lambda f, fs1, fs2: minimum(f, fs1, fs2))
insn("fmax.d 0010101 fs2 fs1 001 fd 1010011", lambda f, fs1, fs2: maximum(f, fs1, fs2))

insn("feq.d 1010001 fs2 fs1 010 rd 1010011", lambda f, fs1, fs2: equal(f, fs1, fs2))
insn("flt.d 1010001 fs2 fs1 001 rd 1010011", lambda f, fs1, fs2: less(f, fs1, fs2))
insn("fle.d 1010001 fs2 fs1 000 rd 1010011", lambda f, fs1, fs2: less_or_equal(f, fs1, fs2))
insn("fclass.d 1110001 00000 fs1 001 rd 1010011", lambda fs1: classify(fs1))

insn("fmv.x.d 1110001 00000 fs1 000 rd 1010011", lambda fs1: fs1)
insn("fmv.d.x 1111001 00000 rs1 000 fd 1010011", lambda rs1: rs1)

insn("fcvt.s.d 0100000 00001 fs1 rm fd 1010011", lambda f, fs1, rm: box(f.narrow(fs1, rm)))
insn("fcvt.d.s 0100001 00000 fs1 rm fd 1010011", lambda f, fs1, rm: widen(f, unbox(fs1), rm))

insn("fcvt.w.d 1100001 00000 fs1 rm rd 1010011", lambda f, fs1, rm: to_signed(f, fs1, rm, 32))
insn("fcvt.wu.d 1100001 00001 fs1 rm rd 1010011", lambda f, fs1, rm: to_unsigned(f, fs1, rm, 32))
insn("fcvt.l.d 1100001 00010 fs1 rm rd 1010011", lambda f, fs1, rm: to_signed(f, fs1, rm, 64))
insn("fcvt.lu.d 1100001 00011 fs1 rm rd 1010011", lambda f, fs1, rm: to_unsigned(f, fs1, rm, 64))

insn("fcvt.d.w 1101001 00000 rs1 rm fd 1010011", lambda f, rs1, rm: from_signed(f, low(rs1, 32), rm, 64))
insn("fcvt.d.wu 1101001 00001 rs1 rm fd 1010011", lambda f, rs1, rm: from_unsigned(f, low(rs1, 32), rm, 64))
insn("fcvt.d.l 1101001 00010 rs1 rm fd 1010011", lambda f, rs1, rm: from_signed(f, rs1, rm, 64))
insn("fcvt.d.lu 1101001 00011 rs1 rm fd 1010011", lambda f, rs1, rm: from_unsigned(f, rs1, rm, 64))
