// space.c: the address space of a process: the kernel's map, closed to U-mode, and one gigabyte of
// its own between USER_BASE and USER_TOP, for which one entry of the root table is enough.
//
//   USER_BASE   text (R-X), data and bss (RW-), as the program's segments say
//   heap        up to brk: frames come with the first touch
//               nothing
//   USER_STACK  the stack, up to USER_TOP: the same. Below it nothing, which ends a runaway stack
#include "corral.h"

#define USER_ENTRY (USER_BASE >> 30 & 511)

bool space_create(struct space *space)
{
    memset(space, 0, sizeof *space);
    space->root = frame_alloc();
    if (!space->root)
        return false;
    memcpy(space->root, kernel_root, PAGE);
    return true;
}

// Frees what the entries of a table of `level` lead to.
static void free_table(pte *table, int level)
{
    for (u32 i = 0; i < 512; i++) {
        if (!(table[i] & PTE_V))
            continue;
        if (level)
            free_table((pte *)pte_pa(table[i]), level - 1);
        frame_free((void *)pte_pa(table[i]));
    }
}

// Nobody may be running on it: see vm_use.
void space_destroy(struct space *space)
{
    pte middle = space->root[USER_ENTRY];

    if (middle & PTE_V) {
        free_table((pte *)pte_pa(middle), 1);
        frame_free((void *)pte_pa(middle));
    }
    frame_free(space->root);
    memset(space, 0, sizeof *space);
}

static bool user_page(u64 va)
{
    return va >= USER_BASE && va < USER_TOP;
}

// Adds a frame where there is none. The entry is there behind pte_flush.
static bool add_frame(struct space *space, pte *entry, void *frame, u64 flags)
{
    if (!frame)
        return false;
    pte_write(entry, pte_make((u64)frame, flags | PTE_V | PTE_U | PTE_A | PTE_D));
    space->frames++;
    return true;
}

// Adds a cleared page, or rights to a page that is there (two segments can share one).
bool space_add(struct space *space, u64 va, u64 flags)
{
    pte *entry = user_page(va) ? vm_entry(space->root, 3, va, 0, true) : NULL;
    bool added = true;

    if (!entry)
        return false;
    if (*entry & PTE_V)
        pte_write(entry, *entry | flags);
    else
        added = add_frame(space, entry, frame_alloc(), flags);
    pte_flush();
    return added;
}

// A page fault at `va`: fills the page if it belongs to the heap or the stack.
bool space_demand(struct space *space, u64 va)
{
    bool ours = (va >= space->heap && va < space->brk) || (va >= USER_STACK && va < USER_TOP);
    pte *entry = ours ? vm_entry(space->root, 3, va, 0, false) : NULL;

    if (!ours || (entry && *entry & PTE_V))  // a page that is there faulted for its rights
        return false;
    if (!space_add(space, va, PTE_R | PTE_W))
        return false;
    if (!para)
        sfence_vma_page(va);
    return true;
}

bool space_shrink(struct space *space, u64 brk)
{
    u64 from = ROUND_UP(brk, PAGE);

    for (u64 va = from; va < space->brk; va += PAGE) {
        pte *entry = vm_entry(space->root, 3, va, 0, false);

        if (entry && *entry & PTE_V) {
            frame_free((void *)pte_pa(*entry));
            pte_write(entry, 0);
            space->frames--;
        }
    }
    pte_flush();
    space->brk = brk;
    if (!para)
        sfence_vma();
    return true;
}

bool space_fork(struct space *space, const struct space *parent)
{
    pte *middle, *last;

    if (!space_create(space))
        return false;
    space->heap = parent->heap;
    space->brk = parent->brk;
    middle = (pte *)pte_pa(parent->root[USER_ENTRY]);
    for (u64 i = 0; i < 512; i++) {
        if (!(middle[i] & PTE_V))
            continue;
        last = (pte *)pte_pa(middle[i]);
        for (u64 j = 0; j < 512; j++) {
            u64 va = USER_BASE + (i << 21) + (j << 12);
            pte *entry;
            void *frame;

            if (!(last[j] & PTE_V))
                continue;
            entry = vm_entry(space->root, 3, va, 0, true);
            frame = entry ? frame_alloc() : NULL;
            if (!add_frame(space, entry, frame, last[j] & PTE_LEAF)) {
                pte_flush();
                space_destroy(space);
                return false;
            }
            memcpy(frame, (void *)pte_pa(last[j]), PAGE);
        }
    }
    pte_flush();
    return true;
}

// Where the kernel reaches the user's byte at `va`; NULL if the user has no such right itself.
static u8 *reach(struct space *space, u64 va, u64 right)
{
    pte *entry;

    if (!user_page(va))
        return NULL;
    entry = vm_entry(space->root, 3, va, 0, false);
    if (!entry || !(*entry & PTE_V)) {
        if (!space_demand(space, va))
            return NULL;
        entry = vm_entry(space->root, 3, va, 0, false);
    }
    return *entry & right ? (u8 *)pte_pa(*entry) + va % PAGE : NULL;
}

bool copy_out(struct space *space, u64 va, const void *from, u64 n)
{
    for (u64 part; n; n -= part, va += part, from = (const u8 *)from + part) {
        u8 *to = reach(space, va, PTE_W);

        part = PAGE - va % PAGE < n ? PAGE - va % PAGE : n;
        if (!to)
            return false;
        memcpy(to, from, part);
    }
    return true;
}

bool copy_in(struct space *space, void *to, u64 va, u64 n)
{
    for (u64 part; n; n -= part, va += part, to = (u8 *)to + part) {
        const u8 *from = reach(space, va, PTE_R);

        part = PAGE - va % PAGE < n ? PAGE - va % PAGE : n;
        if (!from)
            return false;
        memcpy(to, from, part);
    }
    return true;
}
