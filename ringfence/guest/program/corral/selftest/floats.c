// floats.c: floating point: results, flags, rounding, NaN boxing, and sstatus.FS.
#include "selftest.h"

typedef u64 operation(u64 a, u64 b, u64 c);
extern operation f_add_d, f_sub_d, f_mul_d, f_div_d, f_sqrt_d, f_madd_d, f_nmsub_d, f_min_d, f_max_d, f_sgnjn_d;
extern operation f_add_s, f_div_s, f_sqrt_s, f_min_s, f_madd_s, f_sgnj_s, f_narrow, f_widen;
extern operation f_from_l, f_from_lu, f_s_from_w, f_move_w, f_to_w, f_to_wu, f_to_l, f_to_lu;
extern operation f_eq_d, f_lt_d, f_le_d, f_class_d, f_class_s, f_move_x_w;
extern operation f_load_s, f_load_d, f_store_s, f_store_d, f_bad_rounding, f_nothing;

enum { NX = 1, UF = 2, OF = 4, DZ = 8, NV = 16 };
enum { RNE, RTZ, RDN, RUP, RMM };

#define D1 0x3ff0000000000000ul
#define D3 0x4008000000000000ul
#define DMAX 0x7feffffffffffffful
#define DINF 0x7ff0000000000000ul
#define DNAN 0x7ff8000000000000ul
#define DSNAN 0x7ff0000000000001ul
#define MINUS (1ul << 63)
#define BOX 0xffffffff00000000ul
#define S1 (BOX | 0x3f800000)
#define S3 (BOX | 0x40400000)
#define SNAN32 (BOX | 0x7f800001)
#define NAN32 (BOX | 0x7fc00000)

static void try(const char *name, operation *f, u64 a, u64 b, u64 c, u64 rounding, u64 want, u64 flags)
{
    u64 got, raised;

    csr_write(fcsr, rounding << 5);
    got = f(a, b, c);
    raised = csr_read(fflags);
    expect(got == want && raised == flags, "%s(%lx, %lx) rounding %lu is %lx, flags %lx; want %lx, flags %lx", name,
           a, b, rounding, got, raised, want, flags);
}

#define TRY(f, a, b, want, flags) try(#f, f, a, b, 0, RNE, want, flags)

static bool absent(void)
{
    if (!(machine.isa & ISA_D))
        skip("the device tree has no D");
    else
        csr_set(sstatus, SSTATUS_FS_INITIAL);
    return !(machine.isa & ISA_D);
}

static void arithmetic(u64)
{
    if (absent())
        return;
    TRY(f_add_d, D1, D1, 0x4000000000000000, 0);
    TRY(f_add_d, D1, 1, D1, NX);
    TRY(f_sub_d, D1, D1, 0, 0);
    TRY(f_sub_d, DINF, DINF, DNAN, NV);
    TRY(f_mul_d, DMAX, DMAX, DINF, OF | NX);
    TRY(f_mul_d, 0, DINF, DNAN, NV);
    TRY(f_mul_d, 0x0010000000000001, 0x3fe0000000000000, 0x0008000000000000, UF | NX);
    TRY(f_div_d, D1, 0, DINF, DZ);
    TRY(f_div_d, D1, MINUS, DINF | MINUS, DZ);
    TRY(f_div_d, 0, 0, DNAN, NV);
    TRY(f_div_d, D1, D3, 0x3fd5555555555555, NX);
    TRY(f_sqrt_d, 0x4010000000000000, 0, 0x4000000000000000, 0);
    TRY(f_sqrt_d, D1 | MINUS, 0, DNAN, NV);
    TRY(f_sqrt_d, MINUS, 0, MINUS, 0);
    TRY(f_sqrt_s, BOX | 0x40000000, 0, BOX | 0x3fb504f3, NX);
    TRY(f_div_s, S1, S3, BOX | 0x3eaaaaab, NX);
    TRY(f_add_s, S1, S1, BOX | 0x40000000, 0);
    TRY(f_add_d, DSNAN, D1, DNAN, NV);
    TRY(f_add_d, DNAN | 5, D1, DNAN, 0);  // a NaN's payload is not kept
    TRY(f_add_d, DNAN | MINUS, D1, DNAN, 0);
}

static void fused(u64)
{
    if (absent())
        return;
    // (1 + 2^-52)^2 - (1 + 2^-51) is 2^-104: only without a rounding in between.
    try("fmadd.d", f_madd_d, D1 + 1, D1 + 1, (D1 + 2) | MINUS, RNE, 0x3970000000000000, 0);
    try("fnmsub.d", f_nmsub_d, D1 + 1, D1 + 1, D1 + 2, RNE, 0x3970000000000000 | MINUS, 0);
    try("fmadd.d", f_madd_d, DINF, 0, DNAN, RNE, DNAN, NV);  // even with a quiet NaN as the addend
    try("fmadd.s", f_madd_s, S1, S3, S1, RNE, BOX | 0x40800000, 0);
}

static void rounding(u64)
{
    static const u64 third[] = {0x3fd5555555555555, 0x3fd5555555555555, 0x3fd5555555555555, 0x3fd5555555555556,
                                0x3fd5555555555555};
    static const u64 tie[] = {D1, D1, D1, D1 + 1, D1 + 1};                           // 1 + 2^-53
    static const u64 overflow[] = {DINF, DMAX, DMAX, DINF, DINF};
    static const u64 integer[] = {2, 2, 2, 3, 3};                                     // 2.5
    static const u64 negative[] = {-2ul, -2ul, -3ul, -2ul, -3ul};                     // -2.5
    struct outcome o;

    if (absent())
        return;
    for (u64 mode = RNE; mode <= RMM; mode++) {
        try("fdiv.d", f_div_d, D1, D3, 0, mode, third[mode], NX);
        try("fadd.d", f_add_d, D1, 0x3ca0000000000000, 0, mode, tie[mode], NX);
        try("fmul.d", f_mul_d, DMAX, 0x4000000000000000, 0, mode, overflow[mode], OF | NX);
        try("fsub.d", f_sub_d, D1, D1, 0, mode, mode == RDN ? MINUS : 0, 0);
        try("fcvt.l.d", f_to_l, 0x4004000000000000, 0, 0, mode, integer[mode], NX);
        try("fcvt.l.d", f_to_l, 0xc004000000000000, 0, 0, mode, negative[mode], NX);
    }
    // Modes 5 and 6 in frm, and 5 in an instruction, are illegal.
    for (u64 mode = 5; mode <= 7; mode++) {
        csr_write(frm, mode);
        o = probe(f_add_d, D1, D1);
        expect(o.cause == CAUSE_ILLEGAL, "frm %lu: cause %lx", mode, o.cause);
    }
    csr_write(frm, 0);
    o = probe(f_bad_rounding, 0, 0);
    expect(o.cause == CAUSE_ILLEGAL, "rounding mode 5: cause %lx", o.cause);
}

static void boxing(u64)
{
    static u64 memory[2];

    if (absent())
        return;
    TRY(f_move_w, 0x3f800000, 0, S1, 0);
    TRY(f_add_s, 0x3f800000, S1, NAN32, 0);  // a single without its box is a NaN
    TRY(f_sgnj_s, D1, S1, NAN32, 0);
    TRY(f_class_s, 0x3f800000, 0, 1 << 9, 0);
    TRY(f_move_x_w, 0x123456789abcdef0, 0, 0xffffffff9abcdef0, 0);  // moves bits, boxed or not
    memory[0] = 0x1111111140400000;
    TRY(f_load_s, (u64)memory, 0, S3, 0);
    TRY(f_load_d, (u64)memory, 0, memory[0], 0);
    f_store_s((u64)memory, 0x2222222233333333, 0);
    expect(memory[0] == 0x1111111133333333, "fsw left %lx", memory[0]);
    f_store_d((u64)memory, 0x2222222233333333, 0);
    expect(memory[0] == 0x2222222233333333, "fsd left %lx", memory[0]);
}

static void convert(u64)
{
    if (absent())
        return;
    TRY(f_to_w, 0x41f0000000000000, 0, 0x7fffffff, NV);  // 2^32
    TRY(f_to_w, DNAN, 0, 0x7fffffff, NV);
    TRY(f_to_w, DINF | MINUS, 0, 0xffffffff80000000, NV);
    TRY(f_to_wu, 0xbff0000000000000, 0, 0, NV);
    TRY(f_to_wu, 0x41efffffffe00000, 0, ~0ul, 0);  // 2^32 - 1, sign-extended
    TRY(f_to_wu, 0xbfe0000000000000, 0, 0, NX);    // -0.5
    TRY(f_to_l, DNAN, 0, ~MINUS, NV);
    TRY(f_to_lu, 0x43f0000000000000, 0, ~0ul, NV);
    TRY(f_from_l, -1, 0, D1 | MINUS, 0);
    TRY(f_from_lu, ~0ul, 0, 0x43f0000000000000, NX);
    TRY(f_s_from_w, 0x01000001, 0, BOX | 0x4b800000, NX);
    TRY(f_narrow, D1, 0, S1, 0);
    TRY(f_narrow, DMAX, 0, BOX | 0x7f800000, OF | NX);
    TRY(f_narrow, 0x3690000000000000, 0, BOX | 0, UF | NX);  // 2^-150, a tie to even
    TRY(f_widen, SNAN32, 0, DNAN, NV);
    TRY(f_widen, BOX | 1, 0, 0x36a0000000000000, 0);
}

static void compare(u64)
{
    if (absent())
        return;
    TRY(f_eq_d, 0, MINUS, 1, 0);
    TRY(f_eq_d, DNAN, DNAN, 0, 0);
    TRY(f_eq_d, DSNAN, D1, 0, NV);
    TRY(f_lt_d, DNAN, D1, 0, NV);
    TRY(f_le_d, D1, D1, 1, 0);
    TRY(f_min_d, 0, MINUS, MINUS, 0);
    TRY(f_max_d, MINUS, 0, 0, 0);
    TRY(f_min_d, DNAN, D1, D1, 0);
    TRY(f_max_d, DSNAN, D1, D1, NV);
    TRY(f_min_s, NAN32, NAN32, NAN32, 0);
    TRY(f_sgnjn_d, D1, 0, D1 | MINUS, 0);
}

static void classify(u64)
{
    static const u64 of[] = {DINF | MINUS, D1 | MINUS, MINUS | 1, MINUS, 0, 1, D1, DINF, DSNAN, DNAN};

    if (absent())
        return;
    for (u32 i = 0; i < COUNT(of); i++)
        TRY(f_class_d, of[i], 0, 1ul << i, 0);
}

// FS becomes dirty when state changes and not before, SD follows it, and when it is off all of
// floating point is illegal. A hart may call more dirty than it must.
static void state(u64)
{
    struct outcome o;
    u64 s;

    if (absent())
        return;
    csr_clear(sstatus, SSTATUS_FS);
    o = probe(s_fadd, 0, 0);
    expect(o.cause == CAUSE_ILLEGAL && o.pc == (u64)s_fadd, "fadd.d with FS off: cause %lx", o.cause);
    csr_set(sstatus, SSTATUS_FS_CLEAN);
    s = csr_read(sstatus);
    expect((s & SSTATUS_FS) == SSTATUS_FS_CLEAN && !(s & SSTATUS_SD), "made clean, sstatus is %lx", s);
    f_nothing(0, 0, 0);
    s = csr_read(sstatus) & SSTATUS_FS;
    expect(s == SSTATUS_FS_CLEAN || s == SSTATUS_FS_DIRTY, "after a move from a register FS is %lx", s);
    for (u32 i = 0; i < 3; i++) {
        static u64 memory;

        csr_clear(sstatus, SSTATUS_FS);
        csr_set(sstatus, i == 2 ? SSTATUS_FS_INITIAL : SSTATUS_FS_CLEAN);
        if (i == 0)
            csr_write(fflags, 0);
        else if (i == 1)
            f_load_d((u64)&memory, 0, 0);
        else
            f_add_d(D1, D1, 0);
        s = csr_read(sstatus);
        expect((s & SSTATUS_FS) == SSTATUS_FS_DIRTY && s & SSTATUS_SD, "change %u: sstatus is %lx", i, s);
    }
    csr_clear(sstatus, SSTATUS_FS);
}

// Flags gather until they are cleared.
static void sticky(u64)
{
    if (absent())
        return;
    csr_write(fcsr, 0);
    f_div_d(D1, 0, 0);
    f_div_d(0, 0, 0);
    f_div_d(D1, D3, 0);
    expect(csr_read(fflags) == (DZ | NV | NX), "flags are %lx", csr_read(fflags));
    csr_write(fcsr, 0xff);
    expect(csr_read(frm) == 7 && csr_read(fflags) == 31, "fcsr ff: frm %lx, fflags %lx", csr_read(frm),
           csr_read(fflags));
    csr_write(fcsr, 0);
}

const struct check float_checks[] = {
    {"float-arithmetic", arithmetic, 0},
    {"float-fused", fused, 0},
    {"float-rounding", rounding, 0},
    {"float-nan-boxing", boxing, 0},
    {"float-convert", convert, 0},
    {"float-compare", compare, 0},
    {"float-classify", classify, 0},
    {"float-flags", sticky, 0},
    {"float-state", state, 0},
    {0},
};
