// probe.S: runs code that may trap, and reports how it went in a struct outcome.
#include "../riscv.h"

#define SAVED 128

        .text
// struct outcome probe(code, a0, a1): the compiler passes the place for the result in a0.
        .globl  probe
probe:  call    t0, enter
        mv      t1, a1
        mv      a0, a2
        mv      a1, a3
        jalr    t1
        call    t0, back                // no trap
        sd      a0, 24(t1)
        li      t2, -1
        sd      t2, 0(t1)
        sd      zero, 8(t1)
        sd      zero, 16(t1)
        sd      zero, 32(t1)
        j       leave

// struct outcome probe_user(code, a0, a1, ra): the same in U-mode, which ends by a trap only.
        .globl  probe_user
probe_user:
        call    t0, enter
        li      t1, SSTATUS_SPP
        csrc    sstatus, t1
        csrw    sepc, a1
        mv      a0, a2
        mv      a1, a3
        mv      ra, a4
        sret

// Saves what the caller's caller wants to keep, and sends traps to probe_stvec.
enter:  addi    sp, sp, -SAVED
        sd      ra, 0(sp)
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11
        sd      s\n, 8+\n*8(sp)
        .endr
        sd      a0, 104(sp)
        la      t1, probe_sp
        sd      sp, 0(t1)
        ld      t1, probe_stvec
        csrw    stvec, t1
        jr      t0

// Finds the stack and the outcome again, whatever the code did to registers.
back:   la      t1, probe_sp
        ld      sp, 0(t1)
        ld      t1, 104(sp)
        jr      t0

        .globl  probe_trap
        .balign 4
probe_trap:
        call    t0, back
        sd      a0, 24(t1)
        csrr    t2, scause
        sd      t2, 0(t1)
        csrr    t2, stval
        sd      t2, 8(t1)
        csrr    t2, sepc
        sd      t2, 16(t1)
        csrr    t2, sstatus
        sd      t2, 32(t1)
leave:  la      t2, trap_entry
        csrw    stvec, t2
        csrw    sscratch, zero
        csrci   sstatus, SSTATUS_SIE
        ld      a0, 104(sp)
        ld      ra, 0(sp)
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11
        ld      s\n, 8+\n*8(sp)
        .endr
        addi    sp, sp, SAVED
        ret

// For stvec in vectored mode: entry n notes n.
        .globl  probe_vectors
        .balign 256
        .option push
        .option norvc
probe_vectors:
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11
        j       vector\n
        .endr
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11
vector\n:
        la      t0, probe_entry
        li      t1, \n
        sd      t1, 0(t0)
        j       probe_trap
        .endr
        .option pop

        .data
        .balign 8
        .globl  probe_stvec, probe_entry
probe_stvec:
        .dword  probe_trap
probe_entry:
        .dword  0
probe_sp:
        .dword  0
