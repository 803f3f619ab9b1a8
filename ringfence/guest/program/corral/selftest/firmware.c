// firmware.c: the SBI's extensions, and a second hart.
#include "selftest.h"

enum { NOT_SUPPORTED = -2, INVALID_PARAM = -3, ALREADY_AVAILABLE = -6 };
enum { STARTED, STOPPED };

static void base(u64)
{
    struct sbi_result version = sbi_call(SBI_BASE, 0, 0, 0, 0);

    expect(version.error == 0 && (version.value >> 24 > 0 || version.value >= 2), "specification version %lx: %ld",
           version.value, version.error);
    for (u64 function = 1; function <= 6; function++)
        expect(sbi_call(SBI_BASE, function, SBI_TIME, 0, 0).error == 0, "function %lu fails", function);
    expect(!sbi_has(0x09fffff0), "has an extension that does not exist");
    expect(sbi_call(0x09fffff0, 0, 0, 0, 0).error == NOT_SUPPORTED, "calls an extension that does not exist");
}

static void present(u64 extension)
{
    expect(sbi_has(extension), "is not there");
}

static void expect_interrupt(u64 enabled, u64 number)
{
    struct outcome o;

    csr_write(sie, enabled);
    o = probe(s_wait, 0, 0);
    csr_write(sie, 0);
    expect(o.cause == (CAUSE_INTERRUPT | number), "cause %lx", o.cause);
}

// The call itself, whatever timer.c uses.
static void time(u64)
{
    u64 when = timer_now() + timer_ms(1) / 20;

    expect(sbi_call(SBI_TIME, 0, when, 0, 0).error == 0, "set_timer fails");
    expect_interrupt(SIE_STIE, IRQ_TIMER);
    expect(timer_now() >= when, "came early");
    sbi_call(SBI_TIME, 0, FOREVER, 0, 0);
    expect(!(csr_read(sip) & SIE_STIE), "is pending though put off");
}

// An interrupt to this hart itself. A hart number that does not exist is an error.
static void ipi(u64)
{
    timer_set(timer_now() + timer_ms(1000));
    expect(sbi_call(SBI_IPI, 0, 1, machine.boot_hart, 0).error == 0, "send_ipi fails");
    expect_interrupt(SIE_SSIE | SIE_STIE, IRQ_SOFTWARE);
    csr_clear(sip, SIE_SSIE);
    timer_set(FOREVER);
}

static struct sbi_result remote_fence(u64 function, u64 mask, u64 hart)
{
    register u64 a0 __asm__("a0") = mask;
    register u64 a1 __asm__("a1") = hart;
    register u64 a2 __asm__("a2") = TEST_VA;
    register u64 a3 __asm__("a3") = PAGE;
    register u64 a4 __asm__("a4") = 0;
    register u64 a6 __asm__("a6") = function;
    register u64 a7 __asm__("a7") = SBI_RFENCE;

    __asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a2), "r"(a3), "r"(a4), "r"(a6), "r"(a7) : "memory");
    return (struct sbi_result){(i64)a0, a1};
}

// The fences, asked of firmware for this hart by number and for all: the map is as after our own.
static void rfence(u64)
{
    u64 *first = test_frame(), *second = test_frame();

    *first = 1;
    *second = 2;
    pages_begin();
    for (u32 i = 0; i < 4; i++) {
        page_map(TEST_VA, 0, pte_make((u64)first, PTE_V | PTE_R | PTE_A | PTE_D));
        expect(probe(s_load, TEST_VA, 0).result == 1, "the first frame is not there");
        *page_entry(TEST_VA, 0) = pte_make((u64)second, PTE_V | PTE_R | PTE_A | PTE_D);
        struct sbi_result r = remote_fence(1 + i / 2, i % 2 ? 1 : 0, i % 2 ? machine.boot_hart : ~0ul);
        expect(r.error == 0, "function %u fails: %ld", 1 + i / 2, r.error);
        expect(probe(s_load, TEST_VA, 0).result == 2, "the second frame is not there");
    }
    pages_end();
    expect(remote_fence(0, 1, machine.boot_hart).error == 0, "remote_fence_i fails");
}

static void hsm(u64)
{
    struct sbi_result r = sbi_call(SBI_HSM, 2, machine.boot_hart, 0, 0);

    expect(r.error == 0 && r.value == STARTED, "this hart's status: %ld, %lu", r.error, r.value);
    r = sbi_call(SBI_HSM, 2, 4000, 0, 0);
    expect(r.error == INVALID_PARAM, "status of hart 4000: %ld", r.error);
    r = sbi_call(SBI_HSM, 0, machine.boot_hart, (u64)kernel_start, 0);
    expect(r.error == ALREADY_AVAILABLE, "starting this hart: %ld", r.error);
}

static void debug_console(u64)
{
    static const char text[] = "this line was written by firmware\r\n";

    if (!sbi_has(SBI_DBCN)) {
        skip("firmware has no debug console");
        return;
    }
    struct sbi_result r = sbi_call(SBI_DBCN, 0, sizeof text - 1, (u64)text, 0);
    expect(r.error == 0 && r.value == sizeof text - 1, "write: %ld, %lu", r.error, r.value);
    r = sbi_call(SBI_DBCN, 0, 1, nowhere(), 0);
    expect(r.error != 0, "a write from where no memory is succeeds");
}

// What the second hart is given. entry.S knows the first two.
static struct hart_work {
    u64 stack;
    void (*run)(struct hart_work *work);
    volatile u64 stage;         // 1: it runs; 2: it had its interrupt; 3: it has counted
    volatile u64 cause, counter;
} work;

__attribute__((section(".noinit"), aligned(16))) static u8 second_stack[1024];

extern u8 _hart_entry[];

enum { ROUNDS = 200 };

static void count(volatile u64 *counter)
{
    for (u32 i = 0; i < ROUNDS; i++)
        __asm__ volatile("amoadd.d zero, %0, (%1)" : : "r"(1ul), "r"(counter) : "memory");
}

// On the second hart: no paging, no trap handler, interrupts off.
static void second_hart(struct hart_work *w)
{
    csr_write(sie, SIE_SSIE);
    w->stage = 1;
    while (!(csr_read(sip) & SIE_SSIE))
        wfi();
    w->cause = csr_read(sip);
    csr_clear(sip, SIE_SSIE);
    w->stage = 2;
    count(&w->counter);
    fence();
    w->stage = 3;
    sbi_call(SBI_HSM, 1, 0, 0, 0);
}

// Sleeps a little between looks, so that the other hart's time is not our instructions.
static bool reaches(u64 stage)
{
    for (u64 limit = timer_now() + timer_ms(2000); work.stage < stage && timer_now() < limit;) {
        csr_write(sie, SIE_STIE);
        timer_set(timer_now() + timer_ms(1) / 50);
        wfi();
        csr_write(sie, 0);
    }
    timer_set(FOREVER);
    expect(work.stage >= stage, "the other hart stays in stage %lu of %lu", work.stage, stage);
    return work.stage >= stage;
}

static bool stops(u64 hart)
{
    struct sbi_result r = {0, 0};

    for (u64 limit = timer_now() + timer_ms(2000); timer_now() < limit;) {
        r = sbi_call(SBI_HSM, 2, hart, 0, 0);
        if (r.error == 0 && r.value == STOPPED)
            return true;
    }
    expect(false, "hart %lu does not stop: %ld, %lu", hart, r.error, r.value);
    return false;
}

static void second(u64)
{
    u64 hart = 0;
    struct sbi_result r;
    bool found = false;

    for (u32 i = 0; i < machine.harts && !found; i++) {
        hart = machine.hart[i];
        r = sbi_call(SBI_HSM, 2, hart, 0, 0);
        found = hart != machine.boot_hart && r.error == 0 && r.value == STOPPED;
    }
    if (!found) {
        skip("the device tree has one hart");
        return;
    }
    for (u32 turn = 0; turn < 2; turn++) {  // a hart that stopped can be started again
        work.stack = (u64)second_stack + sizeof second_stack;
        work.run = second_hart;
        work.stage = work.counter = 0;
        fence();
        r = sbi_call(SBI_HSM, 0, hart, (u64)_hart_entry, (u64)&work);
        expect(r.error == 0, "hart_start: %ld", r.error);
        if (r.error || !reaches(1))
            return;
        expect(remote_fence(0, 1, hart).error == 0, "remote_fence_i to hart %lu fails", hart);
        expect(sbi_call(SBI_IPI, 0, 1, hart, 0).error == 0, "send_ipi to hart %lu fails", hart);
        if (!reaches(2))
            return;
        count(&work.counter);
        if (!reaches(3) || !stops(hart))
            return;
        expect(work.counter == 2 * ROUNDS, "two harts counted to %lu", work.counter);
    }
}

const struct check firmware_checks[] = {
    {"sbi-base", base, 0},
    {"sbi-time", time, 0},
    {"sbi-ipi", ipi, 0},
    {"sbi-rfence", rfence, 0},
    {"sbi-hsm", hsm, 0},
    {"sbi-srst", present, SBI_SRST},
    {"sbi-debug-console", debug_console, 0},
    {"second-hart", second, 0},
    {0},
};
