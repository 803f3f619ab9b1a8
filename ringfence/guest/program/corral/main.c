// main.c: from the first instruction in C to the shell, and the two ways to end.
#include "corral.h"

static void halt(void)
{
    for (;;)
        wfi();
}

// Ends the machine. The test finisher can tell a status; firmware only knows good and bad.
void power_off(u8 status)
{
    if (machine.finisher)
        write32(machine.finisher, status ? 0x3333u | (u32)status << 16 : 0x5555u);
    sbi_call(SBI_SRST, 0, 0, status ? 1 : 0, 0);
    printf("corral: nothing here can switch the power off\n");
    halt();
    __builtin_unreachable();
}

void panic(const char *why, ...)
{
    static bool again;
    va_list args;

    csr_clear(sstatus, SSTATUS_SIE);
    if (again)
        halt();
    again = true;
    printf("corral: panic: ");
    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    printf("\n");
    power_off(132);
}

void kernel_main(u64 hart, const void *tree)
{
    if (!fdt_open(tree))
        panic("no device tree at %p", tree);
    machine_find_uart();
    uart_init();
    printf("Corral, a small operating system for RISC-V: every process in its own pen.\n");

    machine_read(hart);
    if (!machine.ram_size)
        panic("the device tree tells of no memory");
    para_init();
    frames_init();
    vm_init();
    trap_init();
    process_init();
    plic_init();
    plic_enable(machine.uart_irq);
    uart_listen();
    printf("%u hart%s, this is %lu; %lu MiB; %s\n", machine.harts, machine.harts == 1 ? "" : "s", hart,
           machine.ram_size / MIB, machine.isa & ISA_SSTC ? "timer by Sstc" : "timer by SBI");
    shell();
}
