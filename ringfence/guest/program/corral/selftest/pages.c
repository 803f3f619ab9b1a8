// pages.c: a map for checks to play with. Between checks it is the kernel's map and one page of
// user code; what a check has mapped is taken away behind it.
#include "selftest.h"

static pte *root;
static void *user_code;
static u64 used[8];  // addresses, one in each 2 MiB that the check has mapped anything in
static u32 used_count;

static pte *top_entry(u64 va)
{
    return &root[va >> 30 & 511];
}

static bool is_table(pte entry)
{
    return (entry & (PTE_LEAF | PTE_V)) == PTE_V;
}

// The entry is written as it is: bad ones are what checks are for.
bool page_map(u64 va, int level, pte entry)
{
    pte *at = vm_entry(root, 3, va, level, true);

    if (!at)
        return false;
    for (u32 i = 0;; i++) {
        if (i == used_count)
            used[used_count++] = va;
        if (va >> 21 == used[i] >> 21)
            break;
    }
    *at = entry;
    sfence_vma();
    return true;
}

pte *page_entry(u64 va, int level)
{
    return vm_entry(root, 3, va, level, false);
}

// Frees the tables that page_map made: first the last level's, then the middle one's.
static void take_away(void)
{
    for (u32 i = 0; i < used_count; i++)
        if (is_table(*top_entry(used[i]))) {
            pte *entry = &((pte *)pte_pa(*top_entry(used[i])))[used[i] >> 21 & 511];

            if (is_table(*entry))
                frame_free((void *)pte_pa(*entry));
            *entry = 0;
        }
    while (used_count) {
        pte *entry = top_entry(used[--used_count]);

        if (is_table(*entry))
            frame_free((void *)pte_pa(*entry));
        *entry = 0;
    }
}

void pages_begin(void)
{
    vm_use(root);
}

void pages_end(void)
{
    vm_use(kernel_root);
    take_away();
}

bool pages_open(void)
{
    root = frame_alloc();
    user_code = frame_alloc();
    if (!root || !user_code)
        return false;
    memcpy(root, kernel_root, PAGE);
    memcpy(user_code, user_start, (u64)(user_end - user_start));
    fence_i();
    if (!page_map(USER_CODE, 0, pte_make((u64)user_code, PTE_V | PTE_R | PTE_X | PTE_U | PTE_A | PTE_D)))
        return false;
    used_count = 0;  // so that it stays
    return true;
}

void pages_close(void)
{
    used[used_count++] = USER_CODE;
    take_away();
    frame_free(user_code);
    frame_free(root);
}

struct outcome user_call(const void *snippet, u64 a0, u64 a1)
{
    return probe_user(USER_CODE + (u64)snippet - (u64)user_start, a0, a1, USER_CODE + (u64)(u_ecall - user_start));
}

// The first byte behind RAM. The next device that a board has there is gigabytes away.
u64 nowhere(void)
{
    return ROUND_UP(machine.ram + machine.ram_size, PAGE);
}
