// permissions.c: every legal mix of R, W, X and U against every access, in each mode, with SUM and MXR.
#include "selftest.h"

enum { LOAD, STORE, FETCH };

// The privileged manual's rules for a leaf entry.
static bool allowed(u64 entry, int access, bool user, u64 sstatus)
{
    if (user ? !(entry & PTE_U) : entry & PTE_U && (access == FETCH || !(sstatus & SSTATUS_SUM)))
        return false;
    switch (access) {
    case LOAD:
        return entry & PTE_R || (entry & PTE_X && sstatus & SSTATUS_MXR);
    case STORE:
        return entry & PTE_W;
    default:
        return entry & PTE_X;
    }
}

static struct outcome supervisor_access(int access)
{
    if (access == FETCH)
        return probe((void *)TEST_VA, 0, 0);
    return probe(access == LOAD ? s_load4 : s_store4, TEST_VA, 0x8082);
}

static struct outcome user_access(int access)
{
    return user_call(access == LOAD ? u_load : access == STORE ? u_store : u_jump, TEST_VA, 0x8082);
}

static void permissions(u64 flags)
{
    static const u64 rights[] = {PTE_R, PTE_R | PTE_W, PTE_X, PTE_R | PTE_X, PTE_R | PTE_W | PTE_X};
    static const u64 faults[] = {CAUSE_LOAD_PAGE, CAUSE_STORE_PAGE, CAUSE_FETCH_PAGE};
    static const char *const names[] = {"load", "store", "fetch"};
    bool user = flags & 1;
    u64 sstatus = flags & (SSTATUS_SUM | SSTATUS_MXR);
    u32 *frame = test_frame();

    frame[0] = 0x8082;  // ret; what is stored is the same
    fence_i();
    pages_begin();
    for (u32 i = 0; i < 2 * COUNT(rights); i++) {
        u64 entry = rights[i / 2] | (i % 2 ? PTE_U : 0) | PTE_V | PTE_A | PTE_D;

        page_map(TEST_VA, 0, pte_make((u64)frame, entry));
        for (int access = LOAD; access <= FETCH; access++) {
            u64 want = !allowed(entry, access, user, sstatus) ? faults[access] : user ? CAUSE_ECALL_U : RETURNED;
            struct outcome o;

            csr_set(sstatus, sstatus);
            o = user ? user_access(access) : supervisor_access(access);
            csr_clear(sstatus, SSTATUS_SUM | SSTATUS_MXR);
            expect(o.cause == want, "%s with %s%s%s%s: cause %lx, want %lx", names[access], entry & PTE_R ? "R" : "",
                   entry & PTE_W ? "W" : "", entry & PTE_X ? "X" : "", entry & PTE_U ? "U" : "", o.cause, want);
        }
    }
    pages_end();
}

const struct check permission_checks[] = {
    {"permissions-supervisor", permissions, 0},
    {"permissions-supervisor-sum", permissions, SSTATUS_SUM},
    {"permissions-supervisor-mxr", permissions, SSTATUS_MXR},
    {"permissions-supervisor-sum-mxr", permissions, SSTATUS_SUM | SSTATUS_MXR},
    {"permissions-user", permissions, 1},
    {"permissions-user-mxr", permissions, 1 | SSTATUS_MXR},
    {0},
};
