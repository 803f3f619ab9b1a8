// entry.S: the first instructions. Firmware comes here in S-mode, paging and interrupts off, on one hart.

        .section .text.entry, "ax"
        .globl  _entry
_entry:                                 // a0 = the hart's number, a1 = the device tree
        la      sp, stack_top
        mv      a0, a1
        tail    vmm_main                // does not come back

        .section .noinit, "aw", @nobits
        .balign 16
        .skip   8192
stack_top:
