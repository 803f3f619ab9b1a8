// refill.S: the TLB on a hart that does not walk page tables: its misses come here, and this walks.
//
// Translation is off, so nothing here misses, and a miss may come at any place, also where a trap
// is just being taken: nothing of an ordinary trap is touched. What the page tables do not grant is
// written as they have it, or as 0: the access is tried again, and finds an entry that refuses it.
#include "riscv.h"

        .text
        .globl  tlb_refill
        .balign 4
tlb_refill:
        csrrw   t0, CSR_STLBSCRATCH, t0
        sd      t1, 0(t0)
        sd      t2, 8(t0)
        sd      t3, 16(t0)
        sd      t4, 24(t0)
        sd      t5, 32(t0)
        ld      t1, 48(t0)              // count
        addi    t1, t1, 1
        sd      t1, 48(t0)
        csrr    t1, CSR_STLBVAL
        csrr    t2, CSR_STLBSTATUS
        srli    t2, t2, 60              // the mode: 8 for Sv39, then one more a level
        addi    t2, t2, -8
        slli    t3, t2, 3
        add     t3, t3, t2
        addi    t3, t3, 30              // where the number of the root's entry begins in an address
        csrr    t2, satp
        slli    t2, t2, 20
        srli    t2, t2, 8               // the table

1:      ld      t5, 40(t0)              // the end of memory
        bgeu    t2, t5, 4f
        srl     t4, t1, t3
        andi    t4, t4, 511
        slli    t4, t4, 3
        add     t4, t4, t2
        ld      t4, 0(t4)               // the entry
        andi    t5, t4, PTE_V
        beqz    t5, 4f
        andi    t5, t4, PTE_LEAF
        bnez    t5, 2f
        andi    t5, t4, PTE_A | PTE_D | PTE_U
        bnez    t5, 4f
        srli    t5, t4, 54
        bnez    t5, 4f
        slli    t2, t4, 10
        srli    t2, t2, 20
        slli    t2, t2, 12
        addi    t3, t3, -9
        li      t5, 12
        bgeu    t3, t5, 1b
        j       4f

        // A leaf. Of a large page: the part in which the address is.
2:      addi    t3, t3, -12
        li      t5, 1
        sll     t5, t5, t3
        addi    t5, t5, -1              // pages of the large one, less one
        slli    t5, t5, 10
        and     t2, t4, t5
        bnez    t2, 4f
        srli    t2, t1, 2
        and     t2, t2, t5
        or      t4, t4, t2

3:      TLBWR(t1, t4)
        ld      t1, 0(t0)
        ld      t2, 8(t0)
        ld      t3, 16(t0)
        ld      t4, 24(t0)
        ld      t5, 32(t0)
        csrrw   t0, CSR_STLBSCRATCH, t0
        TLBRET

4:      li      t4, 0
        j       3b
