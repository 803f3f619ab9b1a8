// plic.c: the platform-level interrupt controller, seen from the boot hart's S-mode context.
#include "corral.h"

static u64 context_register(u32 offset)
{
    return machine.plic + 0x200000 + 0x1000ul * (u32)machine.plic_context + offset;
}

static u64 enable_word(u32 irq)
{
    return machine.plic + 0x2000 + 0x80ul * (u32)machine.plic_context + irq / 32 * 4;
}

static bool present(void)
{
    return machine.plic && machine.plic_context >= 0;
}

void plic_init(void)
{
    if (present())
        write32(context_register(0), 0);  // threshold: let every priority above 0 through
}

void plic_enable(u32 irq)
{
    if (!present())
        return;
    write32(enable_word(irq), read32(enable_word(irq)) | 1u << irq % 32);
    write32(machine.plic + 4 * irq, 1);
}

void plic_disable(u32 irq)
{
    if (present())
        write32(enable_word(irq), read32(enable_word(irq)) & ~(1u << irq % 32));
}

// The pending source of the highest priority, which is then ours until completed; 0: none.
u32 plic_claim(void)
{
    return present() ? read32(context_register(4)) : 0;
}

void plic_complete(u32 irq)
{
    write32(context_register(4), irq);
}
