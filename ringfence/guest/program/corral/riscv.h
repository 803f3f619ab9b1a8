// riscv.h: the processor as supervisor software sees it: CSRs, their bits, page-table entries.
// The names are the privileged manual's. Assembly includes it too.
#pragma once

#define SSTATUS_SIE (1ul << 1)   // interrupts taken in S-mode
#define SSTATUS_SPIE (1ul << 5)  // what SIE becomes at sret
#define SSTATUS_SPP (1ul << 8)   // the mode before the trap, and after sret: 1 is S
#define SSTATUS_FS (3ul << 13)   // floating point: off, initial, clean, dirty
#define SSTATUS_FS_INITIAL (1ul << 13)
#define SSTATUS_FS_CLEAN (2ul << 13)
#define SSTATUS_FS_DIRTY (3ul << 13)
#define SSTATUS_SUM (1ul << 18)  // S-mode may touch user pages
#define SSTATUS_MXR (1ul << 19)  // executable pages can be read
#define SSTATUS_SD (1ul << 63)   // some state is dirty

// Bits of sie and sip are 1 << the number of the interrupt.
#define IRQ_SOFTWARE 1
#define IRQ_TIMER 5
#define IRQ_EXTERNAL 9
#define SIE_SSIE (1ul << IRQ_SOFTWARE)
#define SIE_STIE (1ul << IRQ_TIMER)
#define SIE_SEIE (1ul << IRQ_EXTERNAL)

#define CAUSE_INTERRUPT (1ul << 63)
#define CAUSE_FETCH_ACCESS 1
#define CAUSE_ILLEGAL 2
#define CAUSE_BREAKPOINT 3
#define CAUSE_LOAD_MISALIGNED 4
#define CAUSE_LOAD_ACCESS 5
#define CAUSE_STORE_MISALIGNED 6
#define CAUSE_STORE_ACCESS 7
#define CAUSE_ECALL_U 8
#define CAUSE_FETCH_PAGE 12
#define CAUSE_LOAD_PAGE 13
#define CAUSE_STORE_PAGE 15

#define SATP_SV39 (8ul << 60)
#define SATP_SV48 (9ul << 60)
#define SATP_SV57 (10ul << 60)
#define SATP_MODE (15ul << 60)
#define SATP_ASID (0xfffful << 44)
#define SATP_PPN ((1ul << 44) - 1)

#define PTE_V (1ul << 0)
#define PTE_R (1ul << 1)
#define PTE_W (1ul << 2)
#define PTE_X (1ul << 3)
#define PTE_U (1ul << 4)
#define PTE_G (1ul << 5)
#define PTE_A (1ul << 6)
#define PTE_D (1ul << 7)
#define PTE_LEAF (PTE_R | PTE_W | PTE_X)  // an entry with none of them points to a table

// stimecmp, by number: assemblers know the name only with the Sstc extension switched on.
#define CSR_STIMECMP 0x14d

// A hart that does not walk page tables: its TLB's CSRs and instructions (docs/software-tlb.md).
#define CSR_STLBVEC 0x5c0
#define CSR_STLBVAL 0x5c2
#define CSR_STLBSTATUS 0x5c3
#define CSR_STLBSCRATCH 0x5c4

#ifdef __ASSEMBLER__
#define TLBWR(va, pte) .insn r 0x73, 0, 0x4e, zero, va, pte
#define TLBRET .insn r 0x73, 0, 0x4f, zero, zero, zero
#else

#include "types.h"

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)

#define csr_read(csr)                                                                    \
    ({                                                                                   \
        u64 value_;                                                                      \
        __asm__ volatile("csrr %0, " STRINGIFY(csr) : "=r"(value_) : : "memory");        \
        value_;                                                                          \
    })
#define csr_write(csr, value) \
    __asm__ volatile("csrw " STRINGIFY(csr) ", %0" : : "rK"((u64)(value)) : "memory")
#define csr_set(csr, bits) \
    __asm__ volatile("csrs " STRINGIFY(csr) ", %0" : : "rK"((u64)(bits)) : "memory")
#define csr_clear(csr, bits) \
    __asm__ volatile("csrc " STRINGIFY(csr) ", %0" : : "rK"((u64)(bits)) : "memory")

static inline void sfence_vma(void)
{
    __asm__ volatile("sfence.vma" : : : "memory");
}

static inline void sfence_vma_page(u64 va)
{
    __asm__ volatile("sfence.vma %0" : : "r"(va) : "memory");
}

static inline void fence_i(void)
{
    __asm__ volatile("fence.i" : : : "memory");
}

static inline void fence(void)
{
    __asm__ volatile("fence iorw, iorw" : : : "memory");
}

static inline void wfi(void)
{
    __asm__ volatile("wfi" : : : "memory");
}

// Device registers: each access happens once, with its width, in order.
static inline u8 read8(u64 pa) { return *(volatile u8 *)pa; }
static inline u32 read32(u64 pa) { return *(volatile u32 *)pa; }
static inline void write8(u64 pa, u8 value) { *(volatile u8 *)pa = value; }
static inline void write32(u64 pa, u32 value) { *(volatile u32 *)pa = value; }

#endif
