// uart.c: the 16550A serial port. Output waits for the chip; input comes by interrupt.
#include "corral.h"

enum { RBR = 0, THR = 0, IER = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4, LSR = 5 };
enum { IER_RECEIVE = 1, LSR_READY = 1, LSR_EMPTY = 0x20, LCR_8N1 = 3, FCR_ON_AND_CLEAR = 7 };

static u64 reg(u32 number)
{
    return machine.uart + ((u64)number << machine.uart_shift);
}

// Firmware has set the speed; a line of characters is all we ask.
void uart_init(void)
{
    if (!machine.uart)
        return;
    write8(reg(IER), 0);
    write8(reg(LCR), LCR_8N1);
    write8(reg(FCR), FCR_ON_AND_CLEAR);
}

void uart_listen(void)
{
    if (machine.uart)
        write8(reg(IER), IER_RECEIVE);
}

void uart_putc(char c)
{
    if (!machine.uart) {
        sbi_putc(c);
        return;
    }
    while (!(read8(reg(LSR)) & LSR_EMPTY))
        ;
    write8(reg(THR), (u8)c);
}

int uart_getc(void)
{
    return machine.uart && (read8(reg(LSR)) & LSR_READY) ? read8(reg(RBR)) : -1;
}
