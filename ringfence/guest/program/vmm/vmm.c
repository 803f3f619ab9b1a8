// vmm.c: a virtual machine monitor that is a guest, in one file (Goldberg 1973).
//
// It runs one machine in its own memory: the program that it was given as initrd; or, while `depth` on its command
// line is more than 1, itself, with `depth` one less. So `depth=3` is a monitor on a monitor on a monitor. The machine
// is a replica of the one that the monitor runs on, but for memory, and finds the same device tree. With `other=1`
// each monitor has a second machine beside that, with the program; the two take turns of `quantum` steps.
//
//     memory   [tables and control blocks | this program | the machine's memory ... | other's | initrd | device tree]
//              0                          2 MiB          4 MiB                        below the initrd
#include "vmm.h"

#include "print.h"

enum { VALID = 1, READ = 2, WRITE = 4, EXECUTE = 8, USER = 16, ACCESSED = 64, DIRTY = 128 };  // of an entry of f
#define LEAF (VALID | READ | WRITE | EXECUTE | USER | ACCESSED | DIRTY)
#define SV39X4 (8ul << 60)
#define QUANTUM 1000000ul
#define OTHER_SIZE (16 * MIB)
#define FINISHER ((volatile u32 *)0x100000)

extern u8 image_start[], image_end[];
extern u8 _entry[];

static u64 base, size, initrd, initrd_size, tree_size, harts, level, crash, quantum;
static const u8 *tree;
static struct machine_below machines[2];
static u32 count;
static u64 now;  // the time that machines have taken, a step a nanosecond, or that has passed while all waited

void vprintf(const char *text, va_list args)
{
    format(sbi_putc, text, args);
}

__attribute__((format(printf, 1, 2))) static void say(const char *text, ...)
{
    char where[] = "vmm 0: ";
    va_list args;

    where[4] += (char)level;
    for (const char *s = where; *s; s++)
        sbi_putc(*s);
    va_start(args, text);
    vprintf(text, args);
    va_end(args);
    sbi_putc('\n');
}

__attribute__((noreturn)) static void power_off_with(u8 status)
{
    *FINISHER = status ? 0x3333u | (u32)status << 16 : 0x5555u;
    for (;;)
        __asm__ volatile("wfi");
}

__attribute__((noreturn)) void panic(const char *why, ...)
{
    va_list args;

    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    sbi_putc('\n');
    power_off_with(1);
}

// The device tree. What is changed in a machine's has the same length as in ours.

static bool find(struct fdt_node *node, const char *name)
{
    fdt_start(node);
    while (fdt_next(node))
        if (strncmp(node->name, name, strlen(name)) == 0)
            return true;
    return false;
}

static void put_be64(const void *at, u64 value)
{
    u8 *bytes = (u8 *)at;

    for (int n = 0; n < 8; n++)
        bytes[n] = (u8)(value >> (56 - 8 * n));
}

// Where the digits behind `name=` begin on the command line; NULL: it is not there.
static char *option(const char *args, const char *name)
{
    u64 length = strlen(name);

    for (const char *s = args; s && *s; s++)
        if ((s == args || s[-1] == ' ') && strncmp(s, name, length) == 0 && s[length] == '=')
            return (char *)s + length + 1;
    return NULL;
}

static u64 number(const char *args, const char *name, u64 otherwise)
{
    const char *s = option(args, name);
    u64 value = 0;

    if (!s)
        return otherwise;
    for (; *s >= '0' && *s <= '9'; s++)
        value = 10 * value + (u64)(*s - '0');
    return value;
}

static void set_number(const char *args, const char *name, u64 value)
{
    char *first = option(args, name), *s = first;

    if (!s)
        return;
    while (*s >= '0' && *s <= '9')
        s++;
    while (s-- > first) {
        *s = (char)('0' + value % 10);
        value /= 10;
    }
}

static const char *command_line(void)
{
    struct fdt_node chosen;

    return find(&chosen, "chosen") ? fdt_get(&chosen, "bootargs", NULL) : NULL;
}

static void read_tree(void)
{
    struct fdt_node node;

    if (!fdt_open(tree))
        panic("vmm: no device tree");
    tree_size = fdt_number(tree + 4, 1);
    if (!find(&node, "memory@") || !fdt_reg(&node, &base, &size))
        panic("vmm: the device tree tells of no memory");
    for (fdt_start(&node); fdt_next(&node);)
        if (strncmp(node.name, "cpu@", 4) == 0) {
            harts++;
            if (!fdt_lists(&node, "riscv,isa-extensions", "xrfhv"))
                panic("vmm: this machine has no Hardware Virtualizer: --isa hv");
        }
    if (!find(&node, "chosen") || !fdt_get(&node, "linux,initrd-start", NULL))
        panic("vmm: there is no program to run: it is given as initrd");
    initrd = fdt_get_number(&node, "linux,initrd-start", 0);
    initrd_size = fdt_get_number(&node, "linux,initrd-end", 0) - initrd;
}

// Loading. The machine's memory is a part of ours, and zero where nothing was written.

static u8 *at(const struct machine_below *m, u64 pa, u64 length)
{
    if (pa < base || length > m->size || pa - base > m->size - length)
        panic("vmm: %s has %lu bytes for %lx, which is no memory of its machine", m->name, length, pa);
    return (u8 *)(m->area + pa - base);
}

static u64 load_elf(const struct machine_below *m, const u8 *elf)
{
    const u8 *header = elf + *(const u64 *)(elf + 32);

    if (*(const u32 *)elf != 0x464c457f)
        panic("vmm: the initrd is no ELF file");
    for (u32 n = *(const u16 *)(elf + 56); n; n--, header += *(const u16 *)(elf + 54)) {
        const u64 *words = (const u64 *)header;  // type and flags, offset, va, pa, bytes in the file, in memory

        if (*(const u32 *)header == 1 && words[5])
            memcpy(at(m, words[3], words[5]), elf + words[1], words[4]);
    }
    return *(const u64 *)(elf + 24);
}

static u64 load_itself(const struct machine_below *m)
{
    u64 length = (u64)(image_end - image_start);

    memcpy(at(m, (u64)image_start, length), image_start, length);
    return (u64)_entry;
}

// The device tree and the initrd lie where the machine's own loader would have put them.
static u64 load_tree(const struct machine_below *m, u64 depth)
{
    u64 end = base + m->size, pa = ROUND_DOWN(end - tree_size, m->size >= 32 * SUPERPAGE ? SUPERPAGE : PAGE);
    u64 program = ROUND_DOWN(pa - initrd_size, PAGE);
    u8 *copy = at(m, pa, tree_size);
    struct fdt_node node;

    memcpy(at(m, program, initrd_size), (const void *)initrd, initrd_size);
    memcpy(copy, tree, tree_size);
    fdt_open(copy);
    if (find(&node, "memory@"))
        put_be64((const u8 *)fdt_get(&node, "reg", NULL) + 8, m->size);
    if (find(&node, "chosen")) {
        put_be64(fdt_get(&node, "linux,initrd-start", NULL), program);
        put_be64(fdt_get(&node, "linux,initrd-end", NULL), program + initrd_size);
    }
    set_number(command_line(), "depth", depth);
    set_number(command_line(), "level", level + 1);
    fdt_open(tree);
    return pa;
}

static void power_on(struct machine_below *m)
{
    u64 depth = number(command_line(), "depth", 1);
    struct block *block = m->block;

    block->state[0][A1] = load_tree(m, m->again ? depth - 1 : 0);
    block->state[0][PC] = m->again ? load_itself(m) : load_elf(m, (const u8 *)initrd);
    block->f = SV39X4 | (u64)m->root / PAGE;
    block->number = (u64)(m - machines) + 1;
    block->memory = m->size;
    block->harts = harts;
    block->flags = XHV_START | XHV_FIRMWARE | m->console;
    m->steps = 0;
    m->on = true;
}

// Our own memory is zero at first; what is taken of it is not given back.
static u64 free_memory;

static void *take(u64 bytes, u64 align)
{
    void *found = (void *)ROUND_UP(free_memory, align);

    free_memory = (u64)found + bytes;
    if (free_memory > (u64)image_start)
        panic("vmm: no memory for tables");
    return found;
}

static void add(const char *name, u64 area, u64 bytes, u64 console, bool again)
{
    struct machine_below *m = &machines[count++];

    *m = (struct machine_below){.name = name, .area = area, .size = bytes, .console = console, .again = again};
    m->block = take(sizeof *m->block, PAGE);
    m->root = take(4 * PAGE, 4 * PAGE);
    m->middle = take(PAGE, PAGE);
    power_on(m);
}

// f has no answer: the superpage, or what there is of one, is given.
static void give(struct machine_below *m, u64 offset)
{
    u64 first = ROUND_DOWN(offset, SUPERPAGE);

    if (offset >= m->size || m->block->detail == 0)
        panic("vmm: %s wants %lx of its memory", m->name, offset);
    m->faults++;
    m->root[first >> 30] = (u64)m->middle / PAGE << 10 | VALID;
    m->middle[first >> 21] = (m->area + first) / PAGE << 10 | LEAF;
}

// The dispatcher: whose turn it is, and for how long. For a machine that waits time passes while others run.

static u32 running(void)
{
    u32 found = 0;

    for (u32 n = 0; n < count; n++)
        found += machines[n].on;
    return found;
}

static void run(struct machine_below *m)
{
    struct block *block = m->block;
    bool alone = running() == 1;

    block->budget = alone ? 0 : quantum;
    block->idle = alone ? FOREVER : now - m->left;
    vmrun(block);
    now += block->steps - m->steps;
    m->steps = block->steps;
    m->left = now;
    m->slices++;
    switch (block->cause) {
    case FAULT:
        give(m, block->address);
        break;
    case RESET:
        memset((void *)m->area, 0, m->size);
        power_on(m);
        break;
    case OFF:
        m->on = false;
        m->status = (u8)block->detail;
        say("%s is off with status %lu: %lu steps, %lu slices, %lu VM-faults", m->name, block->detail, block->steps,
            m->slices, m->faults);
        break;
    case INVALID:
    case WILD:
    case ROOM:
        m->on = false;
        m->status = 1;
        say("%s cannot run: cause %lu at %lx", m->name, block->cause, block->address);
    }
}

// All wait for good but for what is typed: the first has the console, and our hart waits where it does.
static void wait_for_input(void)
{
    struct block *block = machines[0].block;

    block->budget = 0;
    block->idle = FOREVER;
    vmrun(block);
}

// What a monitor is like that has lost its mind: all of its memory is written, itself too.
static void go_mad(void)
{
    say("goes mad");
    for (u64 *word = (u64 *)base; word < (u64 *)(base + size); word++)
        *word = 0xa001a001a001a001;  // a jump to itself, and an address that is none
}

void vmm_main(const void *given)
{
    const char *args;
    u64 end, inner, depth;
    bool other;

    tree = given;
    read_tree();
    args = command_line();
    level = number(args, "level", 1);
    crash = number(args, "crash", 0);
    quantum = number(args, "quantum", QUANTUM);
    depth = number(args, "depth", 1);
    other = number(args, "other", 0) != 0;
    free_memory = base;

    end = ROUND_DOWN(initrd, SUPERPAGE);
    inner = base + 2 * SUPERPAGE;
    if (end < inner + (other ? OTHER_SIZE : 0) + OTHER_SIZE)
        panic("vmm: %lu MiB are too few for a machine of %lu", size / MIB, OTHER_SIZE / MIB);
    if (other)
        end -= OTHER_SIZE;
    say("%lu MiB, for a machine of %lu with %s", size / MIB, (end - inner) / MIB, depth > 1 ? "a monitor" : "a program");
    add(depth > 1 ? "the monitor" : "the program", inner, end - inner, XHV_CONSOLE, depth > 1);
    if (other)
        add("the other program", end, OTHER_SIZE, 0, false);

    for (u64 rounds = 0; running(); rounds++) {
        u64 soonest = FOREVER;

        if (crash == level && rounds == 4)
            go_mad();
        for (u32 n = 0; n < count; n++) {
            struct machine_below *m = &machines[n];

            if (!m->on)
                continue;
            run(m);
            if (m->on && m->block->cause != IDLE)
                soonest = 0;
            else if (m->on && m->block->wake < soonest)
                soonest = m->block->wake;
        }
        if (soonest != FOREVER)
            now += soonest;
        else if (running() > 1)  // input alone can wake one: it is for the first
            wait_for_input();
    }
    power_off_with(machines[0].status);
}
