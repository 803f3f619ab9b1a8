// machine.c: what the device tree says this computer has. Read once, while paging is off;
// what is needed later is copied, so that the tree's memory can be used again.
#include "corral.h"

struct machine machine;

static const struct {
    const char *name;
    u32 flag;
} extensions[] = {
    {"sstc", ISA_SSTC}, {"svadu", ISA_SVADU}, {"zba", ISA_ZBA},       {"zbb", ISA_ZBB},
    {"zbs", ISA_ZBS},   {"zicond", ISA_ZICOND}, {"zicboz", ISA_ZICBOZ}, {"svinval", ISA_SVINVAL},
    {"zicbom", ISA_ZICBOM}, {"svpbmt", ISA_SVPBMT}, {"xrftlb", ISA_TLB},
};

// Either form of the tree: "rv64imafdc_zicsr_sstc" in riscv,isa or a list in riscv,isa-extensions.
static bool isa_string_has(const char *isa, const char *name)
{
    size_t n = strlen(name);

    for (; *isa; isa++)
        if (*isa == '_' && strncmp(isa + 1, name, n) == 0 && (isa[n + 1] == '_' || isa[n + 1] == 0))
            return true;
    return false;
}

static void read_hart(const struct fdt_node *node)
{
    const char *isa = fdt_get(node, "riscv,isa", NULL);
    u64 hart, size;

    if (!fdt_reg(node, &hart, &size) || machine.harts == MAX_HARTS)
        return;
    machine.hart[machine.harts++] = hart;
    if (hart != machine.boot_hart)
        return;
    for (const char *c = isa ? isa + 4 : ""; *c && *c != '_'; c++)
        if (*c == 'd' || *c == 'g')
            machine.isa |= ISA_D;
    if (fdt_lists(node, "riscv,isa-extensions", "d"))
        machine.isa |= ISA_D;
    for (u32 i = 0; i < COUNT(extensions); i++)
        if ((isa && isa_string_has(isa, extensions[i].name)) ||
            fdt_lists(node, "riscv,isa-extensions", extensions[i].name))
            machine.isa |= extensions[i].flag;
}

// The PLIC's interrupts-extended lists its contexts in order: a hart's interrupt controller (the
// node inside the hart's) and the line there that the context drives. Ours drives line 9.
static void read_plic(const struct fdt_node *node, u64 boot_intc)
{
    u32 length;
    const u8 *pair = fdt_get(node, "interrupts-extended", &length);

    fdt_reg(node, &machine.plic, &machine.plic_size);
    machine.plic_context = -1;
    for (u32 i = 0; pair && i < length / 8; i++)
        if (fdt_number(pair + 8 * i, 1) == boot_intc && fdt_number(pair + 8 * i + 4, 1) == IRQ_EXTERNAL)
            machine.plic_context = (int)i;
}

static void read_device(const struct fdt_node *node, u64 boot_intc)
{
    u64 base, size;

    if (!node->compatible || !fdt_reg(node, &base, &size))
        return;
    if (fdt_compatible(node, "sifive,plic-1.0.0") || fdt_compatible(node, "riscv,plic0")) {
        read_plic(node, boot_intc);
    } else if (fdt_compatible(node, "sifive,test0")) {
        machine.finisher = base;
    } else if (fdt_compatible(node, "google,goldfish-rtc")) {
        machine.rtc = base;
    } else if (fdt_compatible(node, "virtio,mmio") && machine.virtios < MAX_VIRTIO) {
        // Trees list the slots in any order; keep them by address.
        u32 at = machine.virtios++;
        for (; at && machine.virtio[at - 1].base > base; at--)
            machine.virtio[at] = machine.virtio[at - 1];
        machine.virtio[at].base = base;
        machine.virtio[at].irq = fdt_irq(node);
    }
}

// The least that the banner needs.
void machine_find_uart(void)
{
    struct fdt_node node;
    u64 size;

    for (fdt_start(&node); fdt_next(&node);)
        if (fdt_compatible(&node, "ns16550a") && fdt_reg(&node, &machine.uart, &size)) {
            machine.uart_shift = (u32)fdt_get_number(&node, "reg-shift", 0);
            machine.uart_irq = fdt_irq(&node);
            return;
        }
}

// Harts come first, in a pass of their own: the PLIC refers to them and may precede them.
static u64 read_harts(void)
{
    struct fdt_node node;
    u64 boot_intc = 0;

    for (fdt_start(&node); fdt_next(&node);) {
        if (strcmp(node.name, "cpus") == 0)
            machine.timebase = fdt_get_number(&node, "timebase-frequency", machine.timebase);
        else if (strncmp(node.name, "cpu@", 4) == 0)
            read_hart(&node);
        else if (strcmp(node.name, "interrupt-controller") == 0 && machine.harts &&
                 machine.hart[machine.harts - 1] == machine.boot_hart)
            boot_intc = boot_intc ? boot_intc : fdt_get_number(&node, "phandle", 0);
    }
    return boot_intc;
}

void machine_read(u64 boot_hart)
{
    struct fdt_node node;
    u64 base, size, boot_intc;
    int reserved = 0;  // the depth at which /reserved-memory's children lie

    machine.boot_hart = boot_hart;
    machine.timebase = 10000000;
    boot_intc = read_harts();
    for (fdt_start(&node); fdt_next(&node);) {
        if (reserved && node.depth != reserved)
            reserved = 0;
        if (reserved && machine.holes < MAX_HOLES && fdt_reg(&node, &base, &size)) {
            machine.hole[machine.holes].start = base;
            machine.hole[machine.holes++].end = base + size;
        } else if (strcmp(node.name, "reserved-memory") == 0) {
            reserved = node.depth + 1;
        } else if (strcmp(node.name, "chosen") == 0) {
            const char *arguments = fdt_get(&node, "bootargs", NULL);
            strlcpy(machine.bootargs, arguments ? arguments : "", sizeof machine.bootargs);
        } else if (strncmp(node.name, "memory@", 7) == 0 || strcmp(node.name, "memory") == 0) {
            // Of several ranges the one that holds this kernel.
            if (fdt_reg(&node, &base, &size) && base <= (u64)kernel_start && (u64)kernel_start - base < size)
                machine.ram = base, machine.ram_size = size;
        } else {
            read_device(&node, boot_intc);
        }
    }
}
