// vmm.h: the machine's Hardware Virtualizer, as docs/xhv.md has it, and what the monitor keeps.
#pragma once

#include "corral.h"

#define FOREVER (~0ul)
#define SUPERPAGE (2 * MIB)

enum { XHV_START = 1, XHV_FIRMWARE = 2, XHV_CONSOLE = 4 };                   // flags
enum cause { BUDGET, FAULT, OFF, RESET, IDLE, INTERRUPT, INVALID, WILD, ROOM };
enum { STATE_WORDS = 288, A1 = 11, PC = 65, MAX_MACHINE_HARTS = 8 };         // of a hart's state

// A control block: a virtual machine's f, the state of its harts, and why it was left last.
struct block {
    u64 f, number, memory, harts, flags, budget, idle, reserved;
    volatile u64 cause, address, detail, steps, wake;
    u64 unused[19];
    volatile u64 state[MAX_MACHINE_HARTS][STATE_WORDS];
} __attribute__((aligned(PAGE)));

// Runs a machine until its monitor has something to do: the block says what.
static inline void vmrun(struct block *block)
{
    __asm__ volatile(".insn r 0x73, 0, 0x4f, x0, %0, x1" : : "r"(block) : "memory");
}

// A machine of ours. Its memory lies at `area` in ours, all in one piece; f is given as it is asked for.
struct machine_below {
    const char *name;
    struct block *block;
    u64 *root, *middle;  // the tables of f: 2048 entries of 1 GiB, and 512 superpages
    u64 area, size;
    u64 console;         // XHV_CONSOLE, or 0
    bool again;          // it is a monitor like this one, with a machine less below it
    bool on;
    u64 steps, left;     // of its own; and when it was left last
    u64 slices, faults;
    u8 status;
};
