// trap.c: what happens on each kind of trap.
#include "corral.h"

static const char *const exceptions[16] = {
    [0] = "misaligned fetch",  [CAUSE_FETCH_ACCESS] = "fetch access fault",
    [CAUSE_ILLEGAL] = "illegal instruction", [CAUSE_BREAKPOINT] = "breakpoint",
    [CAUSE_LOAD_MISALIGNED] = "misaligned load", [CAUSE_LOAD_ACCESS] = "load access fault",
    [CAUSE_STORE_MISALIGNED] = "misaligned store", [CAUSE_STORE_ACCESS] = "store access fault",
    [CAUSE_ECALL_U] = "system call", [CAUSE_FETCH_PAGE] = "fetch page fault",
    [CAUSE_LOAD_PAGE] = "load page fault", [CAUSE_STORE_PAGE] = "store page fault",
};

const char *cause_name(u64 cause)
{
    const char *name = cause < COUNT(exceptions) ? exceptions[cause] : NULL;

    return name ? name : cause & CAUSE_INTERRUPT ? "interrupt" : "unknown cause";
}

void trap_init(void)
{
    csr_write(sscratch, 0);
    csr_write(stvec, (u64)trap_entry);
    csr_write(sie, SIE_SSIE | SIE_STIE | SIE_SEIE);
}

// True when the running process's quantum is over.
bool interrupt(u64 number)
{
    switch (number) {
    case IRQ_TIMER:
        timer_set(FOREVER);
        return true;
    case IRQ_SOFTWARE:
        if (para)
            para_clear_software();
        else
            csr_clear(sip, SIE_SSIE);
        return false;
    case IRQ_EXTERNAL:
        for (u32 irq; (irq = plic_claim()) != 0; plic_complete(irq))
            if (irq == machine.uart_irq)
                console_interrupt();
        return false;
    default:
        panic("interrupt %lu, which nobody enabled", number);
    }
}

// A process did what it may not. The exit status tells the cause, as a shell tells a signal.
static void fault(const struct frame *frame, u64 cause, u64 value)
{
    printf("corral: process %d (%s) killed: %s at pc %p, address %p\n", current->pid, current->name,
           cause_name(cause), (void *)frame->pc, (void *)value);
    process_exit(128 + (int)cause);
}

void trap(struct frame *frame, u64 cause, u64 value)
{
    bool give_up = false;

    if (cause & CAUSE_INTERRUPT)
        give_up = interrupt(cause & ~CAUSE_INTERRUPT);
    if (frame->sstatus & SSTATUS_SPP) {
        if (!(cause & CAUSE_INTERRUPT))
            panic("%s in the kernel at pc %p, address %p, ra %p", cause_name(cause), (void *)frame->pc,
                  (void *)value, (void *)frame->ra);
        return;
    }

    if (cause == CAUSE_ECALL_U) {
        frame->pc += 4;
        syscall(frame);
    } else if (cause == CAUSE_LOAD_PAGE || cause == CAUSE_STORE_PAGE) {
        if (!space_demand(&current->space, value))
            fault(frame, cause, value);
    } else if (!(cause & CAUSE_INTERRUPT)) {
        fault(frame, cause, value);
    }
    if (current->killed)
        process_exit(137);
    if (give_up)
        process_yield();
}
