// timer.c: the clock and the one alarm of this hart. There is no periodic tick: whoever gives the
// hart away sets the alarm for the end of a quantum, and an idle hart for its first sleeper.
#include "corral.h"

u64 timer_now(void)
{
    return csr_read(time);
}

// The interrupt is pending from `when` on; setting a later time takes it back.
void timer_set(u64 when)
{
    if (para)
        para->alarm = when;
    else if (machine.isa & ISA_SSTC)
        csr_write(CSR_STIMECMP, when);
    else
        sbi_call(SBI_TIME, 0, when, 0, 0);
}

u64 timer_ms(u64 ms)
{
    return ms * machine.timebase / 1000;
}
