// fences.c: after a fence the old is forgotten: sfence.vma for page tables, fence.i for code.
#include "selftest.h"

#define LEAF (PTE_V | PTE_R | PTE_W | PTE_X | PTE_A | PTE_D)

enum { ALL, PAGE_ONLY, ASID_ONLY, PAGE_AND_ASID, SINVAL };

static void flush(u64 kind)
{
    switch (kind) {
    case ALL:
        sfence_vma();
        break;
    case PAGE_ONLY:
        sfence_vma_page(TEST_VA);
        break;
    case ASID_ONLY:
        __asm__ volatile("sfence.vma zero, %0" : : "r"(0ul) : "memory");
        break;
    case PAGE_AND_ASID:
        __asm__ volatile("sfence.vma %0, %1" : : "r"(TEST_VA), "r"(0ul) : "memory");
        break;
    case SINVAL:
        __asm__ volatile(".option push; .option arch, +svinval; sfence.w.inval; sinval.vma %0, zero;"
                         " sfence.inval.ir; .option pop" : : "r"(TEST_VA) : "memory");
    }
}

// Remaps a page, takes rights from it and takes it away; each counts after the fence.
static void page_fence(u64 kind)
{
    u64 *first = test_frame(), *second = test_frame();

    if (kind == SINVAL && !(machine.isa & ISA_SVINVAL)) {
        skip("the device tree has no Svinval");
        return;
    }
    *first = 1;
    *second = 2;
    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)first, LEAF));
    expect(probe(s_load, TEST_VA, 0).result == 1, "the first frame is not there");
    *page_entry(TEST_VA, 0) = pte_make((u64)second, LEAF);
    flush(kind);
    expect(probe(s_load, TEST_VA, 0).result == 2, "the second frame is not there");
    expect(probe(s_store, TEST_VA, 3).cause == RETURNED, "cannot be stored to");
    *page_entry(TEST_VA, 0) = pte_make((u64)second, LEAF & ~PTE_W);
    flush(kind);
    expect(probe(s_store, TEST_VA, 4).cause == CAUSE_STORE_PAGE, "can be stored to without W");
    *page_entry(TEST_VA, 0) = 0;
    flush(kind);
    expect(probe(s_load, TEST_VA, 0).cause == CAUSE_LOAD_PAGE, "is there though it was taken away");
    pages_end();
    expect(*first == 1 && *second == 3, "stores went astray: %lu, %lu", *first, *second);
}

// Two maps under two address-space numbers: switching needs no fence. A hart may have no numbers.
static void asid(u64)
{
    u64 old = csr_read(satp), *root[2], *frame[2];

    csr_write(satp, old | 3ul << 44);
    bool has = (csr_read(satp) & SATP_ASID) == 3ul << 44;
    csr_write(satp, old);
    for (u32 i = 0; i < 2; i++) {
        u64 *middle = test_frame(), *last = test_frame();

        root[i] = test_frame();
        frame[i] = test_frame();
        *frame[i] = 100 + i;
        memcpy(root[i], kernel_root, PAGE);
        root[i][TEST_VA >> 30 & 511] = pte_make((u64)middle, PTE_V);
        middle[0] = pte_make((u64)last, PTE_V);
        last[0] = pte_make((u64)frame[i], LEAF);
    }
    sfence_vma();
    for (u32 turn = 0; turn < 6; turn++) {
        csr_write(satp, SATP_SV39 | (has ? (turn % 2 + 1ul) << 44 : 0) | (u64)root[turn % 2] >> 12);
        if (!has)
            sfence_vma();
        u64 seen = probe(s_load, TEST_VA, 0).result;
        expect(seen == 100 + turn % 2, "turn %u saw %lu", turn, seen);
    }
    csr_write(satp, old);
    sfence_vma();
}

// Code that is written as data runs after fence.i, and so does what replaces it. It is written
// under one address and run under another.
static void code_fence(u64)
{
    u32 *frame = test_frame();

    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)frame, LEAF & ~PTE_W));
    frame[1] = 0x00008067;  // ret
    for (u32 n = 0; n < 20; n++) {
        frame[0] = 0x00000513 | n << 20;  // li a0, n
        fence_i();
        u64 got = probe((void *)TEST_VA, 99, 0).result;
        expect(got == n, "version %u gave %lu", n, got);
    }
    pages_end();
}

// Code that writes the instruction behind it.
static void self_modifying(u64)
{
    static const u32 code[] = {
        0x00b53823,  // sd   a1, 16(a0)
        0x0000100f,  // fence.i
        0x00000013,  // nop
        0x00000513,  // li   a0, 0
        0x00000513,  // li   a0, 0      this and the next are overwritten
        0x00008067,  // ret
    };
    u32 *frame = test_frame();

    memcpy(frame, code, sizeof code);
    fence_i();
    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)frame, LEAF));
    for (u64 n = 1; n < 10; n++) {
        u64 got = probe((void *)TEST_VA, TEST_VA, 0x0000806700000513 | n << 20).result;
        expect(got == n, "wrote %lu, ran %lu", n, got);
    }
    pages_end();
}

// A function and its counter in one 64-byte line: stores beside code are not stores to code.
static void code_beside_data(u64)
{
    static const u32 code[] = {
        0x02053583,  // ld   a1, 32(a0)
        0x00158593,  // addi a1, a1, 1
        0x02b53023,  // sd   a1, 32(a0)
        0x00058513,  // mv   a0, a1
        0x00008067,  // ret
    };
    u32 *frame = test_frame();

    memcpy(frame, code, sizeof code);
    fence_i();
    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)frame, LEAF));
    for (u64 n = 1; n <= 50; n++) {
        u64 got = probe((void *)TEST_VA, TEST_VA, 0).result;
        expect(got == n, "call %lu counted %lu", n, got);
    }
    pages_end();
}

// Four bytes of instruction on two pages that are not neighbours in memory. The second half changes.
static void code_across_pages(u64)
{
    u8 *first = test_frame(), *between = test_frame(), *second = test_frame();

    *between = 0;
    memcpy(first + PAGE - 2, "\x13\x05", 2);  // li a0, ..., of which the second page has the number
    memcpy(second + 2, "\x82\x80", 2);        // ret
    pages_begin();
    page_map(TEST_VA, 0, pte_make((u64)first, LEAF));
    page_map(TEST_VA + PAGE, 0, pte_make((u64)second, LEAF));
    for (u32 n = 1; n < 10; n++) {
        second[0] = (u8)(n << 4);
        fence_i();
        u64 got = probe((void *)(TEST_VA + PAGE - 2), 0, 0).result;
        expect(got == n, "number %u ran as %lu", n, got);
    }
    pages_end();
}

const struct check fence_checks[] = {
    {"sfence-all", page_fence, ALL},
    {"sfence-page", page_fence, PAGE_ONLY},
    {"sfence-asid", page_fence, ASID_ONLY},
    {"sfence-page-asid", page_fence, PAGE_AND_ASID},
    {"sinval", page_fence, SINVAL},
    {"asid", asid, 0},
    {"fence-i", code_fence, 0},
    {"self-modifying-code", self_modifying, 0},
    {"code-beside-data", code_beside_data, 0},
    {"code-across-pages", code_across_pages, 0},
    {0},
};
