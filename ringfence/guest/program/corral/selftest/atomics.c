// atomics.c: read-modify-write instructions, and load-reserved with store-conditional.
#include "selftest.h"

#define MIN64 (1ul << 63)
#define MIN32 0xffffffff80000000ul

static u64 cell;

// Old value in memory, operand, then what memory holds afterwards. Words are the low halves.
#define TRY(name, old, operand, want)                                                                    \
    do {                                                                                                 \
        u64 seen_, want_ = (u64)(want), old_ = (u64)(old);                                               \
        cell = old_;                                                                                     \
        __asm__ volatile(name " %0, %1, (%2)" : "=&r"(seen_) : "r"((u64)(operand)), "r"(&cell) : "memory"); \
        expect(seen_ == (wide ? old_ : (u64)(i64)(i32)old_), name " gave %lx of %lx", seen_, old_);      \
        expect(cell == (wide ? want_ : (old_ & ~0xfffffffful) | (want_ & 0xfffffffful)),                 \
               name " left %lx, want %lx", cell, want_);                                                 \
    } while (0)

static void doublewords(u64)
{
    const bool wide = true;

    TRY("amoswap.d", 5, ~0ul, ~0ul);
    TRY("amoadd.d", ~0ul, 2, 1);
    TRY("amoxor.d", 0xff00ff00ff00ff00, ~0ul, 0x00ff00ff00ff00ff);
    TRY("amoand.d", 0xf0f0, 0xff00, 0xf000);
    TRY("amoor.d", 0xf0f0, 0xff00, 0xfff0);
    TRY("amomin.d", 1, MIN64, MIN64);
    TRY("amomax.d", 1, MIN64, 1);
    TRY("amominu.d", 1, MIN64, 1);
    TRY("amomaxu.d", 1, MIN64, MIN64);
    TRY("amoadd.d.aqrl", MIN64, MIN64, 0);
}

static void words(u64)
{
    const bool wide = false;

    TRY("amoswap.w", 0x1122334455667788, ~0ul, ~0ul);
    TRY("amoadd.w", 0x11223344ffffffff, 2, 1);
    TRY("amoxor.w", 0xffffffff, 0x0f0f0f0f, 0xf0f0f0f0);
    TRY("amoand.w", 0xf0f0, 0xff00, 0xf000);
    TRY("amoor.w", 0xf0f0, 0xff00, 0xfff0);
    TRY("amomin.w", 1, MIN32, MIN32);
    TRY("amomin.w", 1, 0x80000000, MIN32);  // the operand's upper half does not count
    TRY("amomax.w", 0xfffffffe, 0xffffffff, 0xffffffff);
    TRY("amominu.w", 1, 0x80000000, 1);
    TRY("amomaxu.w", 1, 0x1180000000, 0x80000000);
    TRY("amoadd.w.aqrl", 0x80000000, 0x80000000, 0);
}

static void reserved(u64)
{
    u64 seen, first, second;

    cell = 7;
    // A loop, since a reservation may be lost to anything now and then.
    for (u32 i = 0; i < 100; i++) {
        __asm__ volatile("lr.d %0, (%3); addi %0, %0, 1; sc.d %1, %0, (%3); sc.d %2, zero, (%3)"
                         : "=&r"(seen), "=&r"(first), "=&r"(second) : "r"(&cell) : "memory");
        expect(second != 0, "a second sc.d succeeded");
        if (first == 0)
            break;
    }
    expect(first == 0 && cell == 8, "lr.d and sc.d: %lx, memory %lu", first, cell);
    cell = 0x1234567880000000;
    for (u32 i = 0; i < 100; i++) {
        __asm__ volatile("lr.w.aq %0, (%2); sc.w.rl %1, zero, (%2)"
                         : "=&r"(seen), "=&r"(first) : "r"(&cell) : "memory");
        if (first == 0)
            break;
    }
    expect(seen == MIN32, "lr.w gave %lx", seen);
    expect(first == 0 && cell == 0x1234567800000000, "lr.w and sc.w: %lx, memory %lx", first, cell);
}

static void unreserved(u64)
{
    u64 *elsewhere = test_frame(), result;

    cell = 7;
    __asm__ volatile("lr.d %0, (%1); sc.d %0, zero, (%1); sc.d %0, zero, (%1)"
                     : "=&r"(result) : "r"(&cell) : "memory");
    expect(result != 0, "sc.d succeeded without a reservation");
    *elsewhere = 9;
    __asm__ volatile("lr.d %0, (%1); sc.d %0, zero, (%2)"
                     : "=&r"(result) : "r"(&cell), "r"(elsewhere) : "memory");
    expect(result != 0, "sc.d succeeded with a reservation elsewhere");
    expect(*elsewhere == 9, "a failed sc.d stored");
    // Where nothing may be stored it faults, or sees first that it has no reservation.
    struct outcome o = probe(s_sc, (u64)kernel_start, 0);
    expect(o.cause == CAUSE_STORE_PAGE || (o.cause == RETURNED && o.result), "sc.d to text: cause %lx", o.cause);
}

const struct check atomic_checks[] = {
    {"amo-doubleword", doublewords, 0},
    {"amo-word", words, 0},
    {"lr-sc", reserved, 0},
    {"sc-without-reservation", unreserved, 0},
    {0},
};
