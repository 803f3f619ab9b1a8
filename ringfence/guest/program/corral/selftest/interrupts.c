// interrupts.c: timer and software interrupts, wfi, order and vectors. The external one is with devices.
#include "selftest.h"

// Waits with `enabled` in sie. A second is a limit, so that a missing interrupt ends as a timer's.
static struct outcome wait_for(u64 enabled)
{
    struct outcome o;

    csr_write(sie, enabled);
    o = probe(s_wait, 0, 0);
    csr_write(sie, 0);
    return o;
}

static void expect_interrupt(struct outcome o, u64 number)
{
    expect(o.cause == (CAUSE_INTERRUPT | number), "cause %lx", o.cause);
    expect(o.sstatus & SSTATUS_SPIE, "SPIE is clear");
}

static void timer(u64)
{
    u64 when = timer_now() + timer_ms(1) / 20;

    timer_set(when);
    expect_interrupt(wait_for(SIE_STIE), IRQ_TIMER);
    expect(timer_now() >= when, "came early");
    expect(csr_read(sip) & SIE_STIE, "is not pending");
    timer_set(FOREVER);
    expect(!(csr_read(sip) & SIE_STIE), "is pending though the alarm was put off");
}

// A running user program is interrupted; sstatus.SIE does not matter.
static void timer_in_user_mode(u64)
{
    u32 *code = test_frame();
    struct outcome o;

    code[0] = 0x0000006f;  // j .
    fence_i();
    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)code, PTE_V | PTE_R | PTE_X | PTE_U | PTE_A | PTE_D));
    timer_set(timer_now() + 20);
    csr_clear(sstatus, SSTATUS_SPIE);
    csr_write(sie, SIE_STIE);
    o = probe_user(TEST_VA, 0, 0, 0);
    csr_write(sie, 0);
    timer_set(FOREVER);
    expect(o.cause == (CAUSE_INTERRUPT | IRQ_TIMER) && o.pc == TEST_VA, "cause %lx, pc %lx", o.cause, o.pc);
    pages_end();
}

static void software(u64)
{
    timer_set(timer_now() + timer_ms(1000));
    csr_set(sip, SIE_SSIE);
    expect_interrupt(wait_for(SIE_SSIE | SIE_STIE), IRQ_SOFTWARE);
    csr_clear(sip, SIE_SSIE);
    expect(!(csr_read(sip) & SIE_SSIE), "is pending though cleared");
    timer_set(FOREVER);
}

// The supervisor's software interrupt is taken before its timer's; what sie masks is not taken.
static void order(u64)
{
    csr_set(sip, SIE_SSIE);
    timer_set(0);
    expect_interrupt(wait_for(SIE_SSIE | SIE_STIE), IRQ_SOFTWARE);
    expect_interrupt(wait_for(SIE_STIE), IRQ_TIMER);
    csr_clear(sip, SIE_SSIE);
    timer_set(FOREVER);
}

static void vectored(u64)
{
    struct outcome o;

    csr_write(stvec, (u64)probe_vectors | 1);
    if (!(csr_read(stvec) & 1)) {
        csr_write(stvec, (u64)trap_entry);
        return;  // a hart need not have this mode
    }
    probe_stvec = (u64)probe_vectors | 1;
    csr_set(sip, SIE_SSIE);
    timer_set(timer_now() + timer_ms(1000));
    expect_interrupt(wait_for(SIE_SSIE | SIE_STIE), IRQ_SOFTWARE);
    csr_clear(sip, SIE_SSIE);
    expect(probe_entry == IRQ_SOFTWARE, "software interrupt used entry %lu", probe_entry);
    timer_set(0);
    expect_interrupt(wait_for(SIE_STIE), IRQ_TIMER);
    timer_set(FOREVER);
    expect(probe_entry == IRQ_TIMER, "timer interrupt used entry %lu", probe_entry);
    o = probe(s_ebreak, 0, 0);
    expect(o.cause == CAUSE_BREAKPOINT && probe_entry == 0, "exception used entry %lu", probe_entry);
    probe_stvec = (u64)probe_trap;
}

// wfi ends for an interrupt that sie enables, even though sstatus.SIE forbids to take it.
static void wait_masked(u64)
{
    u64 when = timer_now() + timer_ms(1) / 20;

    csr_set(sip, SIE_SSIE);
    csr_write(sie, SIE_SSIE);
    wfi();
    csr_clear(sip, SIE_SSIE);
    csr_write(sie, SIE_STIE);
    timer_set(when);
    for (u32 i = 0; i < 1000 && !(csr_read(sip) & SIE_STIE); i++)
        wfi();
    csr_write(sie, 0);
    expect(timer_now() >= when, "the alarm was early");
    expect(csr_read(sip) & SIE_STIE, "no alarm after a thousand wakings");
    timer_set(FOREVER);
}

const struct check interrupt_checks[] = {
    {"interrupt-timer", timer, 0},
    {"interrupt-timer-in-user-mode", timer_in_user_mode, 0},
    {"interrupt-software", software, 0},
    {"interrupt-order", order, 0},
    {"interrupt-vectored", vectored, 0},
    {"wfi-masked", wait_masked, 0},
    {0},
};
