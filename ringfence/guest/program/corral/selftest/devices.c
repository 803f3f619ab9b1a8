// devices.c: the UART and its interrupt through the PLIC, the clock, the test finisher, virtio slots.
#include "selftest.h"

enum { IER = 1, IIR = 2, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };

static u64 uart(u32 number)
{
    return machine.uart + ((u64)number << machine.uart_shift);
}

static bool absent(u64 device, const char *name)
{
    if (!device)
        skip("the device tree has no %s", name);
    return !device;
}

static void uart_registers(u64)
{
    if (absent(machine.uart, "ns16550a"))
        return;
    for (u32 value = 0; value < 256; value += 0x55) {
        write8(uart(SCR), (u8)value);
        expect(read8(uart(SCR)) == value, "the scratch register does not hold %x", value);
    }
    expect((read8(uart(LSR)) & 0x60) == 0x60, "the transmitter is not empty: line status %x", read8(uart(LSR)));
    write8(uart(MCR), 0x1a);  // loop back, with RTS and OUT2, which come back as CTS and DCD
    u8 status = read8(uart(MSR)) & 0xf0;
    write8(uart(MCR), 0x08);
    expect(status == 0x90, "looped back, modem status is %x", status);
}

// The transmitter is empty, so its interrupt comes as soon as it is enabled. It goes through the
// PLIC with enable, threshold, claim and complete.
static void uart_interrupt(u64)
{
    struct outcome o;
    u64 threshold = machine.plic + 0x200000 + 0x1000ul * (u32)machine.plic_context;
    u64 pending = machine.plic + 0x1000 + machine.uart_irq / 32 * 4;
    u32 irq;

    if (absent(machine.uart, "ns16550a") || absent(machine.plic, "plic"))
        return;
    write8(uart(IER), 0);  // what was typed meanwhile waits
    while ((irq = plic_claim()))
        plic_complete(irq);
    write8(uart(IER), 2);
    expect(read32(pending) >> machine.uart_irq % 32 & 1, "is not pending in the PLIC");
    expect(csr_read(sip) & SIE_SEIE, "is not pending in sip");
    write32(threshold, 7);
    expect(!(csr_read(sip) & SIE_SEIE), "is pending below the threshold");
    write32(threshold, 0);
    plic_disable(machine.uart_irq);
    expect(plic_claim() == 0, "can be claimed though disabled");
    plic_enable(machine.uart_irq);

    timer_set(timer_now() + timer_ms(1000));  // so that a missing interrupt is a failure and no hang
    csr_write(sie, SIE_SEIE | SIE_STIE);
    o = probe(s_wait, 0, 0);
    csr_write(sie, 0);
    timer_set(FOREVER);
    expect(o.cause == (CAUSE_INTERRUPT | IRQ_EXTERNAL), "cause %lx", o.cause);
    irq = plic_claim();
    expect(irq == machine.uart_irq, "claimed %u", irq);
    expect(!(csr_read(sip) & SIE_SEIE), "is pending though claimed");
    expect((read8(uart(IIR)) & 0xf) == 2, "the UART does not say that its transmitter is empty");
    write8(uart(IER), 0);
    plic_complete(irq);
    expect(plic_claim() == 0, "there is something to claim afterwards");
    write8(uart(IER), 1);
}

static void plic_registers(u64)
{
    if (absent(machine.plic, "plic"))
        return;
    u64 priority = machine.plic + 4 * 8;

    u32 old = read32(priority);
    write32(priority, 3);
    expect(read32(priority) == 3, "a priority does not hold 3");
    write32(priority, old);
    expect(machine.plic_context >= 0, "the device tree names no context of this hart's S-mode");
    expect(read32(machine.plic) == 0, "source 0 has a priority");
}

// Nanoseconds since 1970: after the first of 2000, and they go on.
static void clock(u64)
{
    u64 before, after = 0;

    if (absent(machine.rtc, "goldfish-rtc"))
        return;
    before = read32(machine.rtc);
    before |= (u64)read32(machine.rtc + 4) << 32;
    expect(before / 1000000000 > 946684800, "it says %lu s", before / 1000000000);
    timer_set(timer_now() + timer_ms(1) / 10);
    csr_write(sie, SIE_STIE);
    probe(s_wait, 0, 0);
    csr_write(sie, 0);
    timer_set(FOREVER);
    after = read32(machine.rtc);
    after |= (u64)read32(machine.rtc + 4) << 32;
    expect(after >= before + 100000 - 10000, "in 100 us it went from %lu to %lu", before, after);
}

static void finisher(u64)
{
    if (absent(machine.finisher, "test finisher"))
        return;
    expect(probe(s_load4, machine.finisher, 0).cause == RETURNED, "cannot be read");
}

static void virtio_slot(u64 slot)
{
    u64 base = machine.virtio[slot].base;
    u32 version;

    if (slot >= machine.virtios) {
        skip("the device tree has no such slot");
        return;
    }
    version = read32(base + 4);
    expect(read32(base) == 0x74726976, "magic %x", read32(base));
    expect(version == 1 || version == 2, "version %u", version);
    expect(read32(base + 8) <= 64, "device %u", read32(base + 8));
}

const struct check device_checks[] = {
    {"uart-registers", uart_registers, 0},
    {"plic-registers", plic_registers, 0},
    {"interrupt-external", uart_interrupt, 0},
    {"clock", clock, 0},
    {"test-finisher", finisher, 0},
    {"virtio-slot-0", virtio_slot, 0},
    {"virtio-slot-1", virtio_slot, 1},
    {"virtio-slot-2", virtio_slot, 2},
    {"virtio-slot-3", virtio_slot, 3},
    {"virtio-slot-4", virtio_slot, 4},
    {"virtio-slot-5", virtio_slot, 5},
    {"virtio-slot-6", virtio_slot, 6},
    {"virtio-slot-7", virtio_slot, 7},
    {0},
};
