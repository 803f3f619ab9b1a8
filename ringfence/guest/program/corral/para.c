// para.c: where a monitor beneath offers its calls, this kernel uses them (docs/paravirtual.md).
//
// Its programs do not know. What changes is: where the interrupt flag and the alarm are, how an idle hart waits, how
// page tables are written, and that the monitor needs no fence. Our kernel never sets the interrupt flag: while it runs
// interrupts are off, and in U-mode they are on by themselves.
#include "corral.h"

enum { REGISTER, UPDATE, IDLE, CLEAR };

struct para_shared *para;

static union {
    struct para_shared shared;
    u8 page[PAGE];
} ours __attribute__((section(".noinit"), aligned(4096)));

static struct {
    u64 at;
    pte value;
} batch[512];
static u32 batched;

void para_init(void)
{
    if (sbi_has(SBI_PARA) && sbi_call(SBI_PARA, REGISTER, (u64)&ours, 0, 0).error == 0)
        para = &ours.shared;
}

// Until something is pending.
void para_idle(void)
{
    sbi_call(SBI_PARA, IDLE, 0, 0, 0);
}

void para_clear_software(void)
{
    sbi_call(SBI_PARA, CLEAR, 0, 0, 0);
}

// True for a frame that the monitor has given and nobody has used: it is zero.
bool para_fresh(u64 pa)
{
    return para && pa >= para->fresh && pa + PAGE <= para->fresh_end;
}

// Nobody may look at the entry before pte_flush.
void pte_write(pte *entry, pte value)
{
    if (!para) {
        *entry = value;
        return;
    }
    if (batched == COUNT(batch))
        pte_flush();
    batch[batched].at = (u64)entry;
    batch[batched++].value = value;
}

void pte_flush(void)
{
    u32 count = batched;

    batched = 0;
    if (count && sbi_call(SBI_PARA, UPDATE, (u64)batch, count, 0).error)
        panic("the monitor refuses %u page-table entries", count);
}
