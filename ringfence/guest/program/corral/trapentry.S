// trapentry.S: every trap comes in here and leaves here.
//
// sscratch holds the top of the process's kernel stack while the process runs, and 0 while the
// kernel does. So one exchange tells both where the trap came from and where registers can go.
// The registers are pushed as a struct frame (corral.h). The kernel leaves floating point alone,
// so f0 to f31 stay where they are; process.c moves them when another process wants them.
#include "riscv.h"

#define FRAME 272

        .text
        .globl  trap_entry, trap_return
        .align  2
trap_entry:
        csrrw   sp, sscratch, sp
        bnez    sp, 1f
        csrr    sp, sscratch            // from the kernel: go on with its stack
1:      addi    sp, sp, -FRAME
        sd      ra, 8(sp)
        .irp    n, 3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        sd      x\n, \n*8(sp)
        .endr
        csrrw   t0, sscratch, zero      // either way it now holds the interrupted sp
        sd      t0, 16(sp)
        csrr    t0, sepc
        sd      t0, 0(sp)
        csrr    t0, sstatus
        sd      t0, 256(sp)
        mv      a0, sp
        csrr    a1, scause
        csrr    a2, stval
        call    trap

// A new process begins here, with sp at a frame that process.c made up.
trap_return:
        ld      t0, 0(sp)
        csrw    sepc, t0
        ld      t0, 256(sp)
        csrw    sstatus, t0
        andi    t0, t0, SSTATUS_SPP
        bnez    t0, 2f
        addi    t0, sp, FRAME           // the frame of a user trap is always on top
        csrw    sscratch, t0
2:      ld      ra, 8(sp)
        .irp    n, 3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        ld      x\n, \n*8(sp)
        .endr
        ld      sp, 16(sp)
        sret
