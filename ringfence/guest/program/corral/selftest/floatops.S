// floatops.S: floating-point instructions as functions of bits, since the kernel's C has no
// floating point. Arguments in a0, a1, a2; the result in a0. The rounding mode is the one in frm.

        .option arch, +f, +d
        .text

// name, operands in ft0 to ft2 -> ft0
        .macro  fop name, code:vararg
        .globl  \name
\name:  fmv.d.x ft0, a0
        fmv.d.x ft1, a1
        fmv.d.x ft2, a2
        \code
        fmv.x.d a0, ft0
        ret
        .endm

// name, operands in ft0, ft1 or a0 -> a0
        .macro  fint name, code:vararg
        .globl  \name
\name:  fmv.d.x ft0, a0
        fmv.d.x ft1, a1
        \code
        ret
        .endm

        fop     f_add_d, fadd.d ft0, ft0, ft1
        fop     f_sub_d, fsub.d ft0, ft0, ft1
        fop     f_mul_d, fmul.d ft0, ft0, ft1
        fop     f_div_d, fdiv.d ft0, ft0, ft1
        fop     f_sqrt_d, fsqrt.d ft0, ft0
        fop     f_madd_d, fmadd.d ft0, ft0, ft1, ft2
        fop     f_nmsub_d, fnmsub.d ft0, ft0, ft1, ft2
        fop     f_min_d, fmin.d ft0, ft0, ft1
        fop     f_max_d, fmax.d ft0, ft0, ft1
        fop     f_sgnjn_d, fsgnjn.d ft0, ft0, ft1
        fop     f_add_s, fadd.s ft0, ft0, ft1
        fop     f_div_s, fdiv.s ft0, ft0, ft1
        fop     f_sqrt_s, fsqrt.s ft0, ft0
        fop     f_min_s, fmin.s ft0, ft0, ft1
        fop     f_madd_s, fmadd.s ft0, ft0, ft1, ft2
        fop     f_sgnj_s, fsgnj.s ft0, ft0, ft1
        fop     f_narrow, fcvt.s.d ft0, ft0
        fop     f_widen, fcvt.d.s ft0, ft0
        fop     f_from_l, fcvt.d.l ft0, a0
        fop     f_from_lu, fcvt.d.lu ft0, a0
        fop     f_s_from_w, fcvt.s.w ft0, a0
        fop     f_move_w, fmv.w.x ft0, a0

        fint    f_to_w, fcvt.w.d a0, ft0
        fint    f_to_wu, fcvt.wu.d a0, ft0
        fint    f_to_l, fcvt.l.d a0, ft0
        fint    f_to_lu, fcvt.lu.d a0, ft0
        fint    f_eq_d, feq.d a0, ft0, ft1
        fint    f_lt_d, flt.d a0, ft0, ft1
        fint    f_le_d, fle.d a0, ft0, ft1
        fint    f_class_d, fclass.d a0, ft0
        fint    f_class_s, fclass.s a0, ft0
        fint    f_move_x_w, fmv.x.w a0, ft0

// Through memory: a0 points to it, and the register's bits come back.
        .globl  f_load_s, f_load_d, f_store_s, f_store_d, f_bad_rounding, f_nothing
f_load_s:
        flw     ft0, 0(a0)
        fmv.x.d a0, ft0
        ret
f_load_d:
        fld     ft0, 0(a0)
        fmv.x.d a0, ft0
        ret
f_store_s:
        fmv.d.x ft0, a1
        fsw     ft0, 0(a0)
        ret
f_store_d:
        fmv.d.x ft0, a1
        fsd     ft0, 0(a0)
        ret
f_bad_rounding:                         // rounding mode 5 in the instruction
        .word   0x02105053 | 5 << 12
        ret
f_nothing:                              // reads, but changes no floating-point state
        fmv.x.d a0, ft0
        ret
