// corral.h: what the kernel's files offer each other, in reading order.
//
// One rule stands in for locks: the kernel runs on one hart with interrupts off. They are on
// while a process runs and for a moment in the idle loop, so kernel code is never interrupted.
#pragma once

#include "riscv.h"
#include "types.h"

// link.ld
extern u8 kernel_start[], rodata_start[], data_start[], bss_start[], bss_end[], kernel_end[];

// main.c
__attribute__((noreturn, format(printf, 1, 2))) void panic(const char *why, ...);
__attribute__((noreturn)) void power_off(u8 status);

// sbi.c
enum {
    SBI_LEGACY_PUTCHAR = 1,
    SBI_BASE = 0x10,
    SBI_TIME = 0x54494d45,
    SBI_IPI = 0x735049,
    SBI_RFENCE = 0x52464e43,
    SBI_HSM = 0x48534d,
    SBI_SRST = 0x53525354,
    SBI_DBCN = 0x4442434e,
    SBI_PARA = 0x08524650,
};
struct sbi_result {
    i64 error;  // 0, or a negative code
    u64 value;
};
struct sbi_result sbi_call(u64 extension, u64 function, u64 arg0, u64 arg1, u64 arg2);
bool sbi_has(u64 extension);
void sbi_putc(char c);

// para.c
struct para_shared {
    volatile u64 enabled, pending, alarm;
    u64 fresh, fresh_end;
};
extern struct para_shared *para;  // NULL: there is no monitor that offers calls
void para_init(void);
void para_idle(void);
void para_clear_software(void);
bool para_fresh(u64 pa);

// fdt.c
enum { FDT_DEPTH = 12 };
struct fdt_node {
    const char *name;
    int depth;  // 0 for the root
    // Of the cursor: behind this node's properties, and their start; cells of every level above.
    const u8 *at, *properties;
    u32 address_cells[FDT_DEPTH], size_cells[FDT_DEPTH];
    const char *compatible;  // a list of strings; NULL: none
    u32 compatible_length;
};
bool fdt_open(const void *tree);
void fdt_start(struct fdt_node *node);
bool fdt_next(struct fdt_node *node);
const void *fdt_get(const struct fdt_node *node, const char *name, u32 *length);
u64 fdt_get_number(const struct fdt_node *node, const char *name, u64 otherwise);
u64 fdt_number(const void *cells, u32 count);
bool fdt_lists(const struct fdt_node *node, const char *name, const char *word);
bool fdt_compatible(const struct fdt_node *node, const char *device);
u32 fdt_irq(const struct fdt_node *node);
bool fdt_reg(const struct fdt_node *node, u64 *base, u64 *size);

// machine.c. An address of 0 means that there is no such device.
enum { MAX_HARTS = 16, MAX_VIRTIO = 8, MAX_HOLES = 8 };
enum {
    ISA_D = 1,
    ISA_SSTC = 2,
    ISA_SVADU = 4,
    ISA_ZBA = 8,
    ISA_ZBB = 16,
    ISA_ZBS = 32,
    ISA_ZICOND = 64,
    ISA_ZICBOZ = 128,
    ISA_SVINVAL = 256,
    ISA_ZICBOM = 512,
    ISA_SVPBMT = 1024,
    ISA_TLB = 2048,  // no page-table walks: refill.S
};
struct machine {
    u64 boot_hart, timebase;
    u32 harts, isa;
    u64 hart[MAX_HARTS];
    u64 ram, ram_size;
    u32 holes, virtios;
    struct {
        u64 start, end;
    } hole[MAX_HOLES];  // RAM that is not ours
    u64 uart;
    u32 uart_shift, uart_irq;
    u64 plic, plic_size;
    int plic_context;
    u64 finisher, rtc;
    struct {
        u64 base;
        u32 irq;
    } virtio[MAX_VIRTIO];
    char bootargs[512];
};
extern struct machine machine;
void machine_find_uart(void);
void machine_read(u64 boot_hart);

// uart.c
void uart_init(void);
void uart_listen(void);
void uart_putc(char c);
int uart_getc(void);  // -1: nothing there

// console.c
void console_putc(char c);
void console_interrupt(void);
i64 console_read(char *to, u64 size);  // a line, or less; 0 at end of file; negative: killed
extern int console_foreground;         // the process that ^C kills, or EVERYBODY; 0 for none
void vprintf(const char *text, va_list args);
__attribute__((format(printf, 1, 2))) void printf(const char *text, ...);

// plic.c
void plic_init(void);
void plic_enable(u32 irq);
void plic_disable(u32 irq);
u32 plic_claim(void);
void plic_complete(u32 irq);

// timer.c
u64 timer_now(void);
void timer_set(u64 when);
u64 timer_ms(u64 ms);  // milliseconds in units of the `time` CSR

// frames.c
extern u64 frames_total, frames_free;
void frames_init(void);
void *frame_alloc(void);  // cleared; NULL when there are none
void frame_free(void *frame);

// refill.S, for a hart that does not walk; it knows the order.
struct tlb_refill {
    u64 saved[5];
    u64 ram_end;  // there is no page table behind it
    u64 count;
};
extern u8 tlb_refill[];

// vm.c
typedef u64 pte;
extern struct tlb_refill tlb;
extern pte *kernel_root;
void vm_init(void);
pte *vm_entry(pte *root, int levels, u64 va, int level, bool make);
bool vm_map(pte *root, int levels, u64 va, u64 pa, u64 size, u64 flags);
void vm_use(pte *root);
void pte_write(pte *entry, pte value);  // para.c: there at pte_flush
void pte_flush(void);
static inline u64 pte_pa(pte entry) { return (entry >> 10 & SATP_PPN) << 12; }
static inline pte pte_make(u64 pa, u64 flags) { return pa >> 12 << 10 | flags; }

// space.c: the address space of a process.
#define USER_BASE 0x1000000000ul  // programs are linked here
#define USER_TOP (USER_BASE + 0x40000000ul)
#define USER_STACK (USER_TOP - 16 * PAGE)  // grows down to here, by demand
struct space {
    pte *root;
    u64 heap, brk;  // [heap, brk) is filled by demand
    u64 frames;     // frames of its own, without page tables
};
bool space_create(struct space *space);
bool space_fork(struct space *space, const struct space *parent);
void space_destroy(struct space *space);
bool space_add(struct space *space, u64 va, u64 flags);
bool space_demand(struct space *space, u64 va);
bool space_shrink(struct space *space, u64 brk);
bool copy_out(struct space *space, u64 va, const void *from, u64 n);
bool copy_in(struct space *space, void *to, u64 va, u64 n);

// exec.c
struct program {
    const char *name, *about;
    const u8 *image, *end;
};
extern const struct program programs[];
extern const u32 programs_count;
const struct program *program_find(const char *name);
bool program_load(struct space *space, const struct program *program, u64 *entry);

// trap.c, trapentry.S
struct frame {  // trapentry.S knows the order
    union {
        u64 x[32];  // x[0] holds sepc
        struct {
            u64 pc, ra, sp, gp, tp, t0, t1, t2, s0, s1, a0, a1, a2, a3, a4, a5, a6, a7;
            u64 s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, t3, t4, t5, t6;
        };
    };
    u64 sstatus, spare;
};
void trap_init(void);
bool interrupt(u64 number);
void trap(struct frame *frame, u64 cause, u64 value);
const char *cause_name(u64 cause);
extern u8 trap_entry[], trap_return[];

// process.c, switch.S
enum { MAX_PROCESSES = 16, MAX_FILES = 8, KERNEL_STACK = 8192 };
struct context {  // what a function call keeps; switch.S knows the order
    u64 ra, sp, s[12];
};
struct process {
    enum { FREE, READY, RUNNING, ASLEEP, ENDED } state;
    int pid, parent;
    char name[16];
    int status;           // when ENDED
    bool killed;          // to end at the next chance
    const void *channel;  // what it sleeps for
    u64 wake;             // and until when
    u64 ran, switches;    // time on the hart; times it was given it
    struct space space;   // no root: a kernel thread
    struct frame *frame;
    struct context context;
    struct pipe *files[MAX_FILES];  // 0 to 2 are the console
    bool writes[MAX_FILES];
    u64 fp[33];  // f0 to f31, fcsr
};
extern struct process processes[MAX_PROCESSES];
extern struct process *current;
void process_init(void);
int process_run(const struct program *program, int argc, char **argv);
int process_fork(void);
__attribute__((noreturn)) void process_exit(int status);
int process_wait(int pid, int *status);  // pid 0: any child. The child's pid, 0: none, -1: killed
int process_reap(int *status, char *name);
enum { EVERYBODY = -1 };
bool process_kill(int pid);
void process_yield(void);
bool process_sleep(const void *channel, u64 until);  // false: killed
void process_wake(const void *channel);
void process_forget_fp(void);
#define FOREVER (~0ul)
void context_switch(struct context *from, struct context *to);
void fp_save(u64 *registers);
void fp_restore(const u64 *registers);

// pipe.c
bool pipe_open(struct process *process, int *reader, int *writer);
void pipe_share(struct pipe *pipe, bool writes);
void pipe_close(struct pipe *pipe, bool writes);
i64 pipe_read(struct pipe *pipe, char *to, u64 size);
i64 pipe_write(struct pipe *pipe, const char *from, u64 size);

// syscall.c
void syscall(struct frame *frame);

// shell.c
__attribute__((noreturn)) void shell(void);

// selftest/selftest.c
int selftest(void);
