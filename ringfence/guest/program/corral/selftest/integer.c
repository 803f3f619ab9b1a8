// integer.c: the corners of integer arithmetic, misaligned accesses, and extensions that are optional.
#include "selftest.h"

#define MIN (1ul << 63)

#define OP(name, a, b)                                                                        \
    ({                                                                                        \
        u64 r_;                                                                               \
        __asm__ volatile(name " %0, %1, %2" : "=r"(r_) : "r"((u64)(a)), "r"((u64)(b)));       \
        r_;                                                                                   \
    })
// With an extension for the one instruction.
#define WITH(arch, code) ".option push; .option arch, +" arch "; " code
#define XOP(arch, name, a, b)                                                                                     \
    ({                                                                                                            \
        u64 r_;                                                                                                   \
        __asm__ volatile(WITH(arch, name) " %0, %1, %2; .option pop" : "=r"(r_) : "r"((u64)(a)), "r"((u64)(b)));  \
        r_;                                                                                                       \
    })
#define XOP1(arch, name, a)                                                                        \
    ({                                                                                             \
        u64 r_;                                                                                    \
        __asm__ volatile(WITH(arch, name) " %0, %1; .option pop" : "=r"(r_) : "r"((u64)(a)));      \
        r_;                                                                                        \
    })

#define IS(got, want)                                                                       \
    do {                                                                                    \
        u64 got_ = (got), want_ = (u64)(want);                                              \
        expect(got_ == want_, "%s is %lx, want %lx", #got, got_, want_);                    \
    } while (0)

static void shifts(u64)
{
    IS(OP("sll", 1, 64 + 3), 8);
    IS(OP("srl", MIN, 63), 1);
    IS(OP("sra", MIN, 63), ~0ul);
    IS(OP("sllw", 1, 31), 0xffffffff80000000);
    IS(OP("srlw", 0xffffffff80000000, 31), 1);
    IS(OP("sraw", 0x80000000, 32 + 31), ~0ul);
    IS(OP("addw", 0x7fffffff, 1), 0xffffffff80000000);
    IS(OP("subw", 0, 1), ~0ul);
    IS(OP("slt", MIN, 0), 1);
    IS(OP("sltu", MIN, 0), 0);
}

static void multiply(u64)
{
    IS(OP("mul", MIN - 1, 3), MIN - 3);
    IS(OP("mulh", MIN, MIN), 1ul << 62);
    IS(OP("mulh", ~0ul, 5), ~0ul);
    IS(OP("mulhu", ~0ul, ~0ul), ~0ul - 1);
    IS(OP("mulhsu", ~0ul, ~0ul), ~0ul);
    IS(OP("mulhsu", MIN, ~0ul), MIN);
    IS(OP("mulw", 0x7fffffff, 2), ~0ul - 1);
}

// Division by zero and the one overflow do not trap.
static void divide(u64)
{
    IS(OP("div", 7, 0), ~0ul);
    IS(OP("divu", 7, 0), ~0ul);
    IS(OP("rem", 7, 0), 7);
    IS(OP("remu", 7, 0), 7);
    IS(OP("div", MIN, ~0ul), MIN);
    IS(OP("rem", MIN, ~0ul), 0);
    IS(OP("div", -7, 2), -3);
    IS(OP("rem", -7, 2), -1);
    IS(OP("divw", 0x80000000, ~0ul), 0xffffffff80000000);
    IS(OP("remw", 0x80000000, ~0ul), 0);
    IS(OP("divw", 7, 1ul << 32), ~0ul);
    IS(OP("divuw", 7, 0), ~0ul);
    IS(OP("divuw", 0xffffffff, 2), 0x7fffffff);
    IS(OP("remuw", 0xffffffff, 0), ~0ul);
}

// Loads extend, stores cut, and no address needs alignment, whoever sees to that.
static void misaligned(u64)
{
    u8 *frame = test_frame();
    u64 frames[2] = {(u64)frame, (u64)test_frame()};

    for (u32 i = 0; i < 32; i++)
        frame[i] = (u8)(0x71 + 13 * i);
    for (u32 at = 0; at < 9; at++) {
        u64 want = 0, address = (u64)frame + at;

        for (u32 i = 8; i--;)
            want = want << 8 | frame[at + i];
        IS(probe(s_load, address, 0).result, want);
    }
    pages_begin();
    for (u32 i = 0; i < 2; i++)
        page_map(TEST_VA + i * PAGE, 0,
                 pte_make(frames[!i], PTE_V | PTE_R | PTE_W | PTE_A | PTE_D));
    for (u64 at = TEST_VA + PAGE - 8; at <= TEST_VA + PAGE; at++) {  // across the end of a page
        u64 value = 0x1122334455667788 * (at & 15);

        expect(probe(s_store, at, value).cause == RETURNED, "store to %lx trapped", at);
        IS(probe(s_load, at, 0).result, value);
    }
    pages_end();
}

static void narrow(u64)
{
    static u64 cell;
    u64 at = (u64)&cell;

    cell = 0xf1f2f3f4f5f6f7f8;
#define LOAD(name) ({ u64 r_; __asm__ volatile(name " %0, 0(%1)" : "=r"(r_) : "r"(at) : "memory"); r_; })
    IS(LOAD("lb"), 0xfffffffffffffff8);
    IS(LOAD("lbu"), 0xf8);
    IS(LOAD("lh"), 0xfffffffffffff7f8);
    IS(LOAD("lhu"), 0xf7f8);
    IS(LOAD("lw"), 0xfffffffff5f6f7f8);
    IS(LOAD("lwu"), 0xf5f6f7f8);
    __asm__ volatile("sb %0, 7(%1); sh %0, 4(%1); sw %0, 0(%1)" : : "r"(0x0102030405060708ul), "r"(at) : "memory");
    IS(cell, 0x08f2070805060708);
}

static bool lacks(u32 flag, const char *name)
{
    if (!(machine.isa & flag))
        skip("the device tree has no %s", name);
    return !(machine.isa & flag);
}

static void zba(u64)
{
    if (lacks(ISA_ZBA, "Zba"))
        return;
    IS(XOP("zba", "sh1add", 5, 100), 110);
    IS(XOP("zba", "sh3add", 5, 100), 140);
    IS(XOP("zba", "add.uw", ~0ul, 1), 1ul << 32);
    IS(XOP("zba", "sh2add.uw", 0xffffffff80000000, 0), 1ul << 33);
}

static void zbb(u64)
{
    if (lacks(ISA_ZBB, "Zbb"))
        return;
    IS(XOP1("zbb", "clz", 0), 64);
    IS(XOP1("zbb", "clz", 1), 63);
    IS(XOP1("zbb", "ctz", 0), 64);
    IS(XOP1("zbb", "ctzw", 0), 32);
    IS(XOP1("zbb", "cpop", ~0ul), 64);
    IS(XOP1("zbb", "cpopw", ~0ul), 32);
    IS(XOP1("zbb", "rev8", 0x0102030405060708), 0x0807060504030201);
    IS(XOP1("zbb", "orc.b", 0x0100000020000003), 0xff000000ff0000ff);
    IS(XOP1("zbb", "sext.b", 0x80), 0xffffffffffffff80);
    IS(XOP1("zbb", "zext.h", ~0ul), 0xffff);
    IS(XOP("zbb", "andn", 15, 5), 10);
    IS(XOP("zbb", "xnor", 15, 5), ~10ul);
    IS(XOP("zbb", "min", ~0ul, 1), ~0ul);
    IS(XOP("zbb", "maxu", ~0ul, 1), ~0ul);
    IS(XOP("zbb", "rol", MIN, 1), 1);
    IS(XOP("zbb", "rorw", 1, 1), 0xffffffff80000000);
}

static void zbs(u64)
{
    if (lacks(ISA_ZBS, "Zbs"))
        return;
    IS(XOP("zbs", "bset", 0, 63), MIN);
    IS(XOP("zbs", "bclr", ~0ul, 64), ~1ul);
    IS(XOP("zbs", "binv", 1, 0), 0);
    IS(XOP("zbs", "bext", MIN, 63), 1);
}

static void zicond(u64)
{
    if (lacks(ISA_ZICOND, "Zicond"))
        return;
    IS(XOP("zicond", "czero.eqz", 5, 0), 0);
    IS(XOP("zicond", "czero.eqz", 5, 9), 5);
    IS(XOP("zicond", "czero.nez", 5, 0), 5);
    IS(XOP("zicond", "czero.nez", 5, 9), 0);
}

// The block that holds the address becomes zero, and nothing around it.
static void zicboz(u64)
{
    u8 *frame = test_frame();
    u32 from = 0, to;

    if (lacks(ISA_ZICBOZ, "Zicboz"))
        return;
    memset(frame, 0xff, PAGE);
    struct outcome o = probe(s_cbo_zero, (u64)frame + 1024 + 3, 0);
    expect(o.cause == RETURNED, "cause %lx", o.cause);
    while (from < PAGE && frame[from])
        from++;
    for (to = from; to < PAGE && !frame[to];)
        to++;
    expect(from == 1024 && ((to - from) & (to - from - 1)) == 0 && to > from, "cleared %u to %u", from, to);
}

// The cache is invisible here, but the right to the address is not.
static void zicbom(u64)
{
    u64 *frame = test_frame();

    if (lacks(ISA_ZICBOM, "Zicbom"))
        return;
    frame[8] = 5;
    expect(probe(s_cbo, (u64)&frame[8], 0).cause == RETURNED, "trapped");
    IS(frame[8], 5);
    expect_trap(probe(s_cbo, TEST_VA, 0), CAUSE_STORE_PAGE, TEST_VA);
}

const struct check integer_checks[] = {
    {"shifts", shifts, 0},
    {"multiply", multiply, 0},
    {"divide", divide, 0},
    {"narrow-loads-and-stores", narrow, 0},
    {"misaligned", misaligned, 0},
    {"zba", zba, 0},
    {"zbb", zbb, 0},
    {"zbs", zbs, 0},
    {"zicond", zicond, 0},
    {"zicboz", zicboz, 0},
    {"zicbom", zicbom, 0},
    {0},
};
