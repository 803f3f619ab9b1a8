// snippets.S: an instruction or two each, for probe and probe_user to run.
#include "../riscv.h"

        .text
        .macro  snippet name
        .globl  \name
        .balign 4
\name:
        .endm

        snippet s_load
        ld      a0, 0(a0)
        ret
        snippet s_load4
        lwu     a0, 0(a0)
        snippet s_return
        ret
        snippet s_store
        sd      a1, 0(a0)
        ret
        snippet s_store4
        sw      a1, 0(a0)
        ret
        snippet s_jump
        jr      a0
        snippet s_amo
        amoadd.d a0, a1, (a0)
        ret
        snippet s_amo_w
        amoadd.w a0, a1, (a0)
        ret
        snippet s_lr
        lr.d    a0, (a0)
        ret
        snippet s_lr_w
        lr.w    a0, (a0)
        ret
        snippet s_sc
        sc.d    a0, a1, (a0)
        ret
        snippet s_illegal
        .word   0xffffffff
        snippet s_illegal2
        .half   0
        snippet s_ebreak
        .option push
        .option norvc
        ebreak
        .option pop
        snippet s_c_ebreak
        c.ebreak
        snippet s_write_cycle           // read-only
        csrw    cycle, zero
        ret
        snippet s_read_mscratch         // the machine's
        csrr    a0, mscratch
        ret

        // Waits for an interrupt, which does not return here.
        snippet s_wait
        csrsi   sstatus, SSTATUS_SIE
1:      wfi
        j       1b

        // sret to S-mode with SPIE set: sstatus behind it.
        snippet s_sret
        la      t0, s_sret_end
        csrw    sepc, t0
        li      t0, SSTATUS_SPP | SSTATUS_SPIE
        csrs    sstatus, t0
        sret
        .globl  s_sret_end
s_sret_end:
        csrr    a0, sstatus
        csrci   sstatus, SSTATUS_SIE
        ret

        .option push
        .option arch, +f, +d
        snippet s_fadd
        fadd.d  ft0, ft0, ft0
        ret
        .option pop

        .option push
        .option arch, +zicboz
        snippet s_cbo_zero
        cbo.zero (a0)
        ret
        .option pop

        .option push
        .option arch, +zicbom
        snippet s_cbo
        cbo.clean (a0)
        cbo.flush (a0)
        cbo.inval (a0)
        ret
        .option pop

// Code that is copied to a page for U-mode. It ends with an ecall.
        .balign 16
        .globl  user_start, user_end
user_start:
        snippet u_load
        ld      a0, 0(a0)
        ecall
        snippet u_store
        sd      a1, 0(a0)
        ecall
        snippet u_ecall
        ecall
        snippet u_jump
        jr      a0
        snippet u_sstatus
        csrr    a0, sstatus
        ecall
        snippet u_sret
        sret
        ecall
        snippet u_sfence
        sfence.vma
        ecall
        snippet u_cycle
        csrr    a0, cycle
        ecall
user_end:
