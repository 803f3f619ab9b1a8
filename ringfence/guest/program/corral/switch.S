// switch.S: from one kernel stack to another, and the floating-point registers.

        .text
// context_switch(from, to): saves what a C function must keep, and returns on the other stack.
        .globl  context_switch
context_switch:
        sd      ra, 0(a0)
        sd      sp, 8(a0)
        ld      ra, 0(a1)
        ld      sp, 8(a1)
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11
        sd      s\n, 16+\n*8(a0)
        ld      s\n, 16+\n*8(a1)
        .endr
        ret

        .option arch, +f, +d
        .globl  fp_save, fp_restore
fp_save:
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        fsd     f\n, \n*8(a0)
        .endr
        frcsr   t0
        sd      t0, 256(a0)
        ret

fp_restore:
        ld      t0, 256(a0)
        fscsr   t0
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        fld     f\n, \n*8(a0)
        .endr
        ret
