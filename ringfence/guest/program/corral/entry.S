// entry.S: the first instructions of a hart. Firmware comes here in S-mode, paging and interrupts off.
#include "riscv.h"

        .section .text.entry, "ax"

// The boot hart: a0 = its number, a1 = the device tree.
        .globl  _entry
_entry:
        la      t0, bss_start
        la      t1, bss_end
1:      sd      zero, 0(t0)
        addi    t0, t0, 8
        bltu    t0, t1, 1b
        la      sp, boot_stack_top
        call    kernel_main             // does not come back
2:      wfi
        j       2b

// Another hart, started over SBI HSM: a0 = its number, a1 = a struct hart_work, which begins
// with the stack and the function it is to call with itself as the argument.
        .globl  _hart_entry
_hart_entry:
        ld      sp, 0(a1)
        ld      t0, 8(a1)
        mv      a0, a1
        jalr    t0
3:      wfi
        j       3b
