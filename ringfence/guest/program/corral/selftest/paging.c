// paging.c: pages of every size in every mode of satp, entries that are not valid, A and D bits.
#include "selftest.h"

#define RWX_AD (PTE_V | PTE_R | PTE_W | PTE_X | PTE_A | PTE_D)

// Whether `va` is another name for `pa`, which the kernel reaches under its own address.
static void expect_alias(u64 va, u64 pa)
{
    struct outcome o;

    *(volatile u64 *)pa = va ^ 0x5a5a;
    o = probe(s_load, va, 0);
    expect(o.cause == RETURNED, "load from %lx: cause %lx at %lx", va, o.cause, o.value);
    expect(o.result == (va ^ 0x5a5a), "load from %lx gave %lx", va, o.result);
    o = probe(s_store, va, pa);
    expect(o.cause == RETURNED, "store to %lx: cause %lx at %lx", va, o.cause, o.value);
    expect(*(volatile u64 *)pa == pa, "store to %lx is not at %lx", va, pa);
}

// One page of a size over the frame, in the low and the high half of the address space.
static void page_size(u64 level)
{
    u64 frame = (u64)test_frame(), size = PAGE << 9 * level;

    pages_begin();
    page_map(TEST_VA, (int)level, pte_make(ROUND_DOWN(frame, size), RWX_AD));
    expect_alias(TEST_VA + frame % size + 8, frame + 8);
    page_map(~0ul << 38, (int)level, pte_make(ROUND_DOWN(frame, size), RWX_AD));
    expect_alias((~0ul << 38) + frame % size + 8, frame + 8);
    pages_end();
}

// A large page whose frame is not aligned to its size.
static void misaligned_page(u64 level)
{
    u64 size = PAGE << 9 * level;

    pages_begin();
    page_map(TEST_VA, (int)level, pte_make(ROUND_DOWN((u64)kernel_start, size) + size / 512, RWX_AD));
    expect_trap(probe(s_load, TEST_VA, 0), CAUSE_LOAD_PAGE, TEST_VA);
    expect_trap(probe(s_store, TEST_VA, 0), CAUSE_STORE_PAGE, TEST_VA);
    expect_trap(probe((void *)TEST_VA, 0, 0), CAUSE_FETCH_PAGE, TEST_VA);
    pages_end();
}

// Sv39's root becomes the second or third table of a wider mode; so the kernel stays where it is,
// and above it there is room for one page of the new size and a walk through all levels.
static void wider_mode(u64 mode)
{
    int levels = mode == SATP_SV48 ? 4 : 5;
    u64 *upper = test_frame(), *top = test_frame();
    u64 frame = (u64)test_frame(), huge = PAGE << 9 * (levels - 1), far = 5 * huge;
    pte *entry;

    upper[0] = pte_make((u64)kernel_root, PTE_V);
    top[0] = pte_make((u64)upper, PTE_V);
    if (levels == 4)
        top = upper;
    csr_write(satp, mode | (u64)top >> 12);
    sfence_vma();
    if ((csr_read(satp) & SATP_MODE) == mode) {
        top[3] = pte_make(0, RWX_AD);  // physical memory once more, as one page of the mode's largest size
        sfence_vma();
        expect_alias(3 * huge + frame, frame);
        for (int level = 0; level < levels - 1; level++) {
            u64 size = PAGE << 9 * level;

            entry = vm_entry(top, levels, far, level, true);
            *entry = pte_make(ROUND_DOWN(frame, size), RWX_AD);
            sfence_vma();
            expect_alias(far + frame % size, frame);
            // Take the path away again, so that the next size finds none.
            for (int above = level + 1; above < levels; above++) {
                frame_free((void *)ROUND_DOWN((u64)entry, PAGE));
                entry = vm_entry(top, levels, far, above, false);
                *entry = 0;
            }
        }
        expect_trap(probe(s_load, far, 0), CAUSE_LOAD_PAGE, far);
        expect_trap(probe(s_load, 256 * huge, 0), CAUSE_LOAD_PAGE, 256 * huge);
    }
    vm_use(kernel_root);
}

// Bits above the highest of the address must all equal it.
static void canonical(u64)
{
    static const u64 bad[] = {1ul << 38, 1ul << 39, 1ul << 63, (1ul << 63) - 8, ~0ul << 39};

    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)test_frame(), RWX_AD));
    for (u32 i = 0; i < COUNT(bad); i++) {
        u64 va = bad[i] ^ TEST_VA;

        expect_trap(probe(s_load, va, 0), CAUSE_LOAD_PAGE, va);
        expect_trap(probe(s_store, va, 0), CAUSE_STORE_PAGE, va);
    }
    pages_end();
}

static void bare(u64)
{
    u64 *frame = test_frame();

    frame[1] = 77;
    csr_write(satp, 0);
    struct outcome o = probe(s_load, (u64)&frame[1], 0);
    struct outcome none = probe(s_load, nowhere(), 0);
    vm_use(kernel_root);
    expect(o.result == 77, "a load without paging gave %lu, cause %lx", o.result, o.cause);
    expect_trap(none, CAUSE_LOAD_ACCESS, nowhere());
}

static void expect_no_page(const char *what)
{
    struct outcome o = probe(s_load, TEST_VA, 0);

    expect(o.cause == CAUSE_LOAD_PAGE, "%s: load: cause %lx", what, o.cause);
    o = probe(s_store, TEST_VA, 0);
    expect(o.cause == CAUSE_STORE_PAGE, "%s: store: cause %lx", what, o.cause);
    o = probe((void *)TEST_VA, 0, 0);
    expect(o.cause == CAUSE_FETCH_PAGE, "%s: fetch: cause %lx", what, o.cause);
}

static void bad_entries(u64)
{
    u64 frame = (u64)test_frame();

    memcpy((void *)frame, s_return, 4);
    fence_i();
    pages_begin();
    page_map(TEST_VA, 0, pte_make(frame, RWX_AD & ~PTE_V));
    expect_no_page("not valid");
    page_map(TEST_VA, 0, pte_make(frame, PTE_V));
    expect_no_page("a pointer on the last level");
    page_map(TEST_VA, 0, pte_make(frame, PTE_V | PTE_W | PTE_A | PTE_D));
    expect_no_page("W without R");
    page_map(TEST_VA, 0, pte_make(frame, PTE_V | PTE_W | PTE_X | PTE_A | PTE_D));
    expect_no_page("W and X without R");
    page_map(TEST_VA, 0, pte_make(frame, RWX_AD) | 1ul << 54);
    expect_no_page("a reserved bit");
    page_map(TEST_VA, 0, pte_make(frame, RWX_AD));
    *page_entry(TEST_VA, 1) |= PTE_A;  // reserved in a pointer
    sfence_vma();
    expect_no_page("A in a pointer");
    *page_entry(TEST_VA, 1) ^= PTE_A | PTE_U;
    sfence_vma();
    expect_no_page("U in a pointer");
    *page_entry(TEST_VA, 1) ^= PTE_U;
    sfence_vma();
    expect_alias(TEST_VA, frame);
    pages_end();
}

// The walk itself finds no memory: an access fault of the access's kind. Some machines report a
// page fault instead.
static void table_nowhere(u64)
{
    struct outcome o;

    pages_begin();
    page_map(TEST_VA, 1, pte_make(nowhere(), PTE_V));
    o = probe(s_load, TEST_VA, 0);
    expect((o.cause == CAUSE_LOAD_ACCESS || o.cause == CAUSE_LOAD_PAGE) && o.value == TEST_VA, "load: cause %lx",
           o.cause);
    o = probe(s_store, TEST_VA, 0);
    expect((o.cause == CAUSE_STORE_ACCESS || o.cause == CAUSE_STORE_PAGE) && o.value == TEST_VA,
           "store: cause %lx", o.cause);
    page_map(TEST_VA, 1, 0);
    pages_end();
}

// Either the hart sets A and D, or it faults and leaves them to us: but always the same.
static void accessed_and_dirty(u64)
{
    u64 frame = (u64)test_frame();
    bool hardware;
    struct outcome o;

    memcpy((void *)frame, s_return, 4);
    fence_i();
    pages_begin();
    page_map(TEST_VA, 0, pte_make(frame, RWX_AD & ~PTE_A & ~PTE_D));
    o = probe(s_load, TEST_VA, 0);
    hardware = o.cause == RETURNED;
    if (!hardware)
        expect_trap(o, CAUSE_LOAD_PAGE, TEST_VA);
    expect((*page_entry(TEST_VA, 0) & (PTE_A | PTE_D)) == (hardware ? PTE_A : 0), "after a load, entry %lx",
           *page_entry(TEST_VA, 0));

    page_map(TEST_VA, 0, pte_make(frame, RWX_AD & ~PTE_A & ~PTE_D));
    o = probe((void *)TEST_VA, 0, 0);
    expect(o.cause == (hardware ? RETURNED : CAUSE_FETCH_PAGE), "fetch with A clear: cause %lx", o.cause);
    expect((*page_entry(TEST_VA, 0) & (PTE_A | PTE_D)) == (hardware ? PTE_A : 0), "after a fetch, entry %lx",
           *page_entry(TEST_VA, 0));

    for (u32 i = 0; i < 2; i++) {  // a store, and an atomic
        page_map(TEST_VA, 0, pte_make(frame, RWX_AD & ~PTE_D));
        o = probe(s_load, TEST_VA, 0);  // may fill a TLB, but does not make the page writable
        expect(o.cause == RETURNED, "load with D clear: cause %lx", o.cause);
        expect(!(*page_entry(TEST_VA, 0) & PTE_D), "a load set D");
        o = probe(i ? s_amo : s_store, TEST_VA, 1);
        expect(o.cause == (hardware ? RETURNED : CAUSE_STORE_PAGE), "store with D clear: cause %lx", o.cause);
        expect(!(*page_entry(TEST_VA, 0) & PTE_D) == !hardware, "after a store, entry %lx", *page_entry(TEST_VA, 0));
    }

    page_map(TEST_VA, 0, pte_make(frame, PTE_V | PTE_R));  // without the right to store, nothing is set for one
    expect_trap(probe(s_store, TEST_VA, 0), CAUSE_STORE_PAGE, TEST_VA);
    expect(!(*page_entry(TEST_VA, 0) & PTE_D), "a forbidden store set D");
    pages_end();
}

// Memory types: two are defined, which change nothing that can be seen here; the third is reserved.
static void memory_types(u64)
{
    u64 frame = (u64)test_frame();

    if (!(machine.isa & ISA_SVPBMT)) {
        skip("the device tree has no Svpbmt");
        return;
    }
    pages_begin();
    for (u64 type = 1; type <= 2; type++) {
        page_map(TEST_VA, 0, pte_make(frame, RWX_AD) | type << 61);
        expect_alias(TEST_VA, frame);
    }
    page_map(TEST_VA, 0, pte_make(frame, RWX_AD) | 3ul << 61);
    expect_no_page("memory type 3");
    pages_end();
}

const struct check paging_checks[] = {
    {"page-4k", page_size, 0},
    {"page-2m", page_size, 1},
    {"page-1g", page_size, 2},
    {"page-2m-misaligned", misaligned_page, 1},
    {"page-1g-misaligned", misaligned_page, 2},
    {"sv48", wider_mode, SATP_SV48},
    {"sv57", wider_mode, SATP_SV57},
    {"canonical-addresses", canonical, 0},
    {"bare", bare, 0},
    {"bad-entries", bad_entries, 0},
    {"svpbmt", memory_types, 0},
    {"table-nowhere", table_nowhere, 0},
    {"accessed-and-dirty", accessed_and_dirty, 0},
    {0},
};
