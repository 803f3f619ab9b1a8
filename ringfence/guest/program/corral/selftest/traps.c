// traps.c: every exception that a supervisor can meet, what a trap leaves in the CSRs, and the CSRs.
#include "selftest.h"

// An instruction that is illegal: stval may hold its bits or zero.
static void expect_illegal(struct outcome o, const void *pc, const char *what)
{
    expect(o.cause == CAUSE_ILLEGAL, "%s: cause %lx", what, o.cause);
    expect(o.pc == (u64)pc, "%s: pc %lx, want %lx", what, o.pc, (u64)pc);
}

// An atomic faults as a store does, by the manual; QEMU on one host thread reports its reading half.
static void expect_amo(u64 va, u64 cause, u64 reading)
{
    struct outcome o = probe(s_amo, va, 1);

    expect((o.cause == cause || o.cause == reading) && o.value == va, "amo: cause %lx at %lx", o.cause, o.value);
}

static void illegal(u64)
{
    struct outcome o = probe(s_illegal, 0, 0);

    expect_illegal(o, s_illegal, "32 bits of ones");
    expect(o.value == 0 || o.value == 0xffffffff, "stval %lx", o.value);
    o = probe(s_illegal2, 0, 0);
    expect_illegal(o, s_illegal2, "16 bits of zeros");
    expect((o.value & 0xffff) == 0, "stval %lx", o.value);
}

static void illegal_csr(u64)
{
    expect_illegal(probe(s_write_cycle, 0, 0), s_write_cycle, "write to a read-only CSR");
    expect_illegal(probe(s_read_mscratch, 0, 0), s_read_mscratch, "read of a machine CSR");
}

static void illegal_user(u64)
{
    static const u8 *const privileged[] = {u_sstatus, u_sret, u_sfence};

    pages_begin();
    for (u32 i = 0; i < COUNT(privileged); i++)
        expect_illegal(user_call(privileged[i], 0, 0), (void *)(USER_CODE + (u64)(privileged[i] - user_start)),
                       "supervisor instruction in U-mode");
    pages_end();
}

static void breakpoint(u64)
{
    static const u8 *const code[] = {s_ebreak, s_c_ebreak};

    for (u32 i = 0; i < COUNT(code); i++) {
        struct outcome o = probe(code[i], 0, 0);

        expect(o.cause == CAUSE_BREAKPOINT && o.pc == (u64)code[i], "cause %lx, pc %lx", o.cause, o.pc);
        expect(o.value == 0 || o.value == o.pc, "stval %lx", o.value);
    }
}

static void ecall_user(u64)
{
    struct outcome o;

    pages_begin();
    o = user_call(u_ecall, 42, 0);
    expect_trap(o, CAUSE_ECALL_U, 0);
    expect(o.pc == USER_CODE + (u64)(u_ecall - user_start), "pc %lx", o.pc);
    expect(o.result == 42, "a0 %lx", o.result);
    pages_end();
}

static void fetch_page_fault(u64)
{
    struct outcome o = probe((void *)TEST_VA, 0, 0);

    expect_trap(o, CAUSE_FETCH_PAGE, TEST_VA);
    expect(o.pc == TEST_VA, "pc %lx", o.pc);
}

// An instruction of four bytes, of which the last two are on a page that is not there.
static void fetch_page_fault_split(u64)
{
    u8 *frame = test_frame();
    struct outcome o;

    memcpy(frame + PAGE - 2, "\x13\x00", 2);  // the first half of a nop
    fence_i();
    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)frame, PTE_V | PTE_R | PTE_X | PTE_A | PTE_D));
    o = probe((void *)(TEST_VA + PAGE - 2), 0, 0);
    expect_trap(o, CAUSE_FETCH_PAGE, TEST_VA + PAGE);
    expect(o.pc == TEST_VA + PAGE - 2, "pc %lx", o.pc);
    pages_end();
}

static void load_page_fault(u64)
{
    struct outcome o = probe(s_load, TEST_VA + 8, 0);

    expect_trap(o, CAUSE_LOAD_PAGE, TEST_VA + 8);
    expect(o.pc == (u64)s_load, "pc %lx", o.pc);
    expect(o.result == TEST_VA + 8, "a0 changed to %lx", o.result);
    expect_trap(probe(s_lr, TEST_VA + 8, 0), CAUSE_LOAD_PAGE, TEST_VA + 8);
}

static void store_page_fault(u64)
{
    expect_trap(probe(s_store, TEST_VA + 16, 1), CAUSE_STORE_PAGE, TEST_VA + 16);
    expect_amo(TEST_VA + 16, CAUSE_STORE_PAGE, CAUSE_LOAD_PAGE);
    expect_trap(probe(s_store, (u64)kernel_start, 1), CAUSE_STORE_PAGE, (u64)kernel_start);
    expect_trap(probe(s_amo, (u64)kernel_start, 1), CAUSE_STORE_PAGE, (u64)kernel_start);
}

// A load and a store that begin on a page and end on one that is not there.
static void page_fault_split(u64)
{
    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)test_frame(), PTE_V | PTE_R | PTE_W | PTE_A | PTE_D));
    expect_trap(probe(s_load, TEST_VA + PAGE - 4, 0), CAUSE_LOAD_PAGE, TEST_VA + PAGE);
    expect_trap(probe(s_store, TEST_VA + PAGE - 4, 0), CAUSE_STORE_PAGE, TEST_VA + PAGE);
    pages_end();
}

static void access_fault(u64 cause)
{
    pte entry = pte_make(nowhere(), PTE_V | PTE_R | PTE_W | PTE_X | PTE_A | PTE_D);

    pages_begin();
    page_map(TEST_VA, 0, entry);
    if (cause == CAUSE_FETCH_ACCESS)
        expect_trap(probe((void *)TEST_VA, 0, 0), cause, TEST_VA);
    else
        expect_trap(probe(cause == CAUSE_LOAD_ACCESS ? s_load : s_store, TEST_VA, 0), cause, TEST_VA);
    if (cause == CAUSE_STORE_ACCESS)
        expect_amo(TEST_VA, CAUSE_STORE_ACCESS, CAUSE_LOAD_ACCESS);
    pages_end();
}

// Where atomics cannot be misaligned, either exception is allowed.
static void misaligned_atomic(u64)
{
    u64 at = (u64)test_frame() + 2;
    struct outcome o = probe(s_lr, at, 0);

    expect((o.cause == CAUSE_LOAD_MISALIGNED || o.cause == CAUSE_LOAD_ACCESS) && o.value == at,
           "lr: cause %lx at %lx", o.cause, o.value);
    for (u32 i = 0; i < 2; i++) {
        o = probe(i ? s_amo_w : s_amo, at, 1);
        expect((o.cause == CAUSE_STORE_MISALIGNED || o.cause == CAUSE_STORE_ACCESS ||
                o.cause == CAUSE_LOAD_MISALIGNED) && o.value == at, "amo: cause %lx at %lx", o.cause, o.value);
    }
}

// With 16-bit instructions no fetch is misaligned: a jump to an odd address drops its lowest bit.
static void odd_jump(u64)
{
    expect(probe(s_jump, (u64)s_return + 1, 0).cause == RETURNED, "a jump to an odd address trapped");
}

static void trap_state(u64)
{
    struct outcome o;

    csr_clear(sstatus, SSTATUS_SPIE | SSTATUS_SPP);
    o = probe(s_ebreak, 0, 0);
    expect((o.sstatus & (SSTATUS_SPP | SSTATUS_SPIE | SSTATUS_SIE)) == SSTATUS_SPP, "from S: sstatus %lx", o.sstatus);
    pages_begin();
    csr_set(sstatus, SSTATUS_SPIE);  // sret makes it SIE, and the trap SPIE again
    o = user_call(u_ecall, 0, 0);
    expect((o.sstatus & (SSTATUS_SPP | SSTATUS_SPIE | SSTATUS_SIE)) == SSTATUS_SPIE, "from U: sstatus %lx",
           o.sstatus);
    pages_end();
    o = probe(s_sret, 0, 0);
    expect(o.cause == RETURNED, "sret to S-mode trapped");
    expect((o.result & (SSTATUS_SPP | SSTATUS_SPIE | SSTATUS_SIE)) == (SSTATUS_SPIE | SSTATUS_SIE),
           "behind sret: sstatus %lx", o.result);
}

static void csr_plain(u64)
{
    static const u64 patterns[] = {0, ~0ul, 0x0123456789abcdef, 0xfedcba9876543210};

    for (u32 i = 0; i < COUNT(patterns); i++) {
        csr_write(sscratch, patterns[i]);
        expect(csr_read(sscratch) == patterns[i], "sscratch does not hold %lx", patterns[i]);
        u64 va = (u64)((i64)(patterns[i] << 25) >> 25);  // stval need hold no more than addresses of Sv39
        csr_write(stval, va);
        expect(csr_read(stval) == va, "stval does not hold %lx", va);
    }
    csr_write(sscratch, 0);
    for (u64 cause = 0; cause < 16; cause++) {
        csr_write(scause, cause);
        expect(csr_read(scause) == cause, "scause does not hold %lu", cause);
    }
    csr_write(scause, CAUSE_INTERRUPT | IRQ_EXTERNAL);
    expect(csr_read(scause) == (CAUSE_INTERRUPT | IRQ_EXTERNAL), "scause does not hold an interrupt");
}

static void csr_sstatus(u64)
{
    u64 old = csr_read(sstatus), ones, zeros;

    csr_set(sstatus, SSTATUS_SUM | SSTATUS_MXR | SSTATUS_SPP | SSTATUS_SPIE);
    ones = csr_read(sstatus);
    csr_clear(sstatus, SSTATUS_SUM | SSTATUS_MXR | SSTATUS_SPP | SSTATUS_SPIE);
    zeros = csr_read(sstatus);
    csr_write(sstatus, old);
    expect((ones & ~zeros) == (SSTATUS_SUM | SSTATUS_MXR | SSTATUS_SPP | SSTATUS_SPIE),
           "set and cleared, it is %lx and %lx", ones, zeros);
    expect((zeros >> 32 & 3) == 2, "UXL is %lu", zeros >> 32 & 3);
    expect((zeros & 0x1888) == 0, "machine-mode bits show: %lx", zeros);
}

static void csr_stvec(u64)
{
    u64 direct, vectored, reserved;

    csr_write(stvec, (u64)probe_vectors);
    direct = csr_read(stvec);
    csr_write(stvec, (u64)probe_vectors | 1);
    vectored = csr_read(stvec);
    csr_write(stvec, (u64)probe_vectors | 3);
    reserved = csr_read(stvec);
    csr_write(stvec, (u64)trap_entry);
    expect(direct == (u64)probe_vectors, "direct: %lx", direct);
    expect(vectored == (u64)probe_vectors || vectored == ((u64)probe_vectors | 1), "vectored: %lx", vectored);
    expect((reserved & 2) == 0, "holds a reserved mode");
}

static void csr_satp(u64)
{
    u64 old = csr_read(satp), after;

    // A write with a mode that is not there changes nothing at all.
    csr_write(satp, 5ul << 60 | 12345);
    after = csr_read(satp);
    csr_write(satp, old);
    expect(after == old, "a write with a reserved mode made it %lx", after);
    csr_write(satp, old | SATP_ASID);
    after = csr_read(satp);
    csr_write(satp, old);
    sfence_vma();
    expect((after & ~SATP_ASID) == old, "with all ASID bits it is %lx", after);
    after = (after & SATP_ASID) >> 44;
    expect((after & (after + 1)) == 0, "the ASID's bits are not the low ones: %lx", after);
}

static void csr_sie(u64)
{
    csr_write(sie, ~0ul);
    expect((csr_read(sie) & 0xffff & ~(1ul << 13)) == (SIE_SSIE | SIE_STIE | SIE_SEIE), "all ones make %lx",
           csr_read(sie));
    csr_write(sie, 0);
    expect(csr_read(sie) == 0, "zero makes %lx", csr_read(sie));
    csr_clear(sip, ~0ul);
    expect((csr_read(sip) & SIE_SSIE) == 0, "sip.SSIP cannot be cleared");
}

static void counters(u64)
{
    u64 cycle = csr_read(cycle), time = csr_read(time), instret = csr_read(instret), later;

    for (u32 i = 0; i < 100; i++) {
        later = csr_read(cycle);
        expect(later > cycle, "cycle went from %lu to %lu", cycle, later);
        cycle = later;
        later = csr_read(time);
        expect(later >= time, "time went from %lu to %lu", time, later);
        time = later;
        later = csr_read(instret);
        expect(later > instret, "instret went from %lu to %lu", instret, later);
        instret = later;
    }
}

// scounteren says whether U-mode may read a counter.
static void counter_enable(u64)
{
    struct outcome o;
    u64 now = csr_read(cycle), old = csr_read(scounteren);

    pages_begin();
    csr_write(scounteren, 1);
    o = user_call(u_cycle, 0, 0);
    expect(o.cause == CAUSE_ECALL_U && o.result >= now, "cycle in U-mode: cause %lx, %lu", o.cause, o.result);
    csr_write(scounteren, 0);
    expect_illegal(user_call(u_cycle, 0, 0), (void *)(USER_CODE + (u64)(u_cycle - user_start)), "cycle, forbidden");
    csr_write(scounteren, old);
    pages_end();
}

const struct check trap_checks[] = {
    {"illegal-instruction", illegal, 0},
    {"illegal-csr", illegal_csr, 0},
    {"illegal-in-user-mode", illegal_user, 0},
    {"breakpoint", breakpoint, 0},
    {"ecall-from-user-mode", ecall_user, 0},
    {"fetch-page-fault", fetch_page_fault, 0},
    {"fetch-page-fault-split", fetch_page_fault_split, 0},
    {"load-page-fault", load_page_fault, 0},
    {"store-page-fault", store_page_fault, 0},
    {"page-fault-split", page_fault_split, 0},
    {"fetch-access-fault", access_fault, CAUSE_FETCH_ACCESS},
    {"load-access-fault", access_fault, CAUSE_LOAD_ACCESS},
    {"store-access-fault", access_fault, CAUSE_STORE_ACCESS},
    {"misaligned-atomic", misaligned_atomic, 0},
    {"odd-jump", odd_jump, 0},
    {"trap-state", trap_state, 0},
    {"csr-plain", csr_plain, 0},
    {"csr-sstatus", csr_sstatus, 0},
    {"csr-stvec", csr_stvec, 0},
    {"csr-satp", csr_satp, 0},
    {"csr-sie", csr_sie, 0},
    {"counters", counters, 0},
    {"counter-enable", counter_enable, 0},
    {0},
};
