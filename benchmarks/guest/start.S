# A bare-metal program: M-mode, or S-mode on firmware; one hart, no interrupts. `main` returns the exit code.
    .section .text.start, "ax"
    .globl _start, origin
_start:
    li t1, 0x6000          # FS: floating point is on
#ifdef SUPERVISOR
    .set origin, 0x80200000
    csrs sstatus, t1
#else
    .set origin, 0x80000000
    csrr t0, mhartid
    bnez t0, park
    csrs mstatus, t1
#endif
    la sp, stack_top
    call main
    slli a0, a0, 16
    li t0, 0x3333
    or a0, a0, t0
    bgtz a0, finish
finish:
    li t1, 0x100000        # the test finisher
    sw a0, 0(t1)
park:
    wfi
    j park
    .bss
    .balign 16
    .space 16384
stack_top:
