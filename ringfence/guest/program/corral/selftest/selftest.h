// selftest.h: how a check is written, and how it tries what may trap.
#pragma once

#include "../corral.h"

// selftest.c. A check calls expect as often as it likes; the first failure is printed.
struct check {
    const char *name;
    void (*run)(u64 argument);
    u64 argument;
};
__attribute__((format(printf, 2, 3))) void expect(bool good, const char *why, ...);
__attribute__((format(printf, 1, 2))) void skip(const char *why, ...);
void *test_frame(void);  // a cleared frame until the end of the check

extern const struct check trap_checks[], interrupt_checks[], paging_checks[], permission_checks[], fence_checks[],
    integer_checks[], atomic_checks[], float_checks[], device_checks[], block_checks[], firmware_checks[];

// probe.S. Calls code and catches the first trap in it, whichever it is. Interrupts come only if
// the check enables them in sie and, in S-mode, in sstatus.
#define RETURNED (~0ul)
struct outcome {
    u64 cause;    // scause, or RETURNED if there was no trap
    u64 value;    // stval
    u64 pc;       // sepc
    u64 result;   // a0 at the trap or on return
    u64 sstatus;  // as the trap left it
};
struct outcome probe(const void *code, u64 a0, u64 a1);
struct outcome probe_user(u64 code, u64 a0, u64 a1, u64 ra);
extern u64 probe_stvec;  // the vector while probing
extern u8 probe_trap[], probe_vectors[];
extern u64 probe_entry;  // which of probe_vectors was used

// Expects the trap `cause` with `value` in stval.
void expect_trap(struct outcome o, u64 cause, u64 value);

// pages.c: a map for checks: the kernel's, and room to play in.
#define TEST_VA 0x2000000000ul  // 128 GiB: nothing of the kernel's or of a process
#define USER_CODE (TEST_VA + 0x40000000)
bool pages_open(void);   // once, before all checks
void pages_close(void);
void pages_begin(void);  // runs on the map
void pages_end(void);    // and again on the kernel's; what was mapped is gone
bool page_map(u64 va, int level, pte entry);      // one entry, nothing checked, then a fence
pte *page_entry(u64 va, int level);               // where page_map wrote
struct outcome user_call(const void *snippet, u64 a0, u64 a1);  // runs a user snippet in U-mode
u64 nowhere(void);                                // a physical address where nothing is

// snippets.S: code to probe. a0 is an address where one is needed, a1 a value.
extern const u8 s_return[], s_load[], s_load4[], s_store[], s_store4[], s_jump[], s_amo[], s_lr[], s_sc[];
extern const u8 s_illegal[], s_illegal2[], s_ebreak[], s_c_ebreak[], s_write_cycle[], s_read_mscratch[];
extern const u8 s_fadd[], s_amo_w[], s_lr_w[], s_wait[], s_sret[], s_sret_end[], s_cbo_zero[], s_cbo[];
extern const u8 user_start[], user_end[];
extern const u8 u_load[], u_store[], u_ecall[], u_sstatus[], u_sret[], u_sfence[], u_cycle[], u_jump[];
