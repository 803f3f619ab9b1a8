// sbi.c: calls to the firmware below (RISC-V Supervisor Binary Interface).
#include "corral.h"

struct sbi_result sbi_call(u64 extension, u64 function, u64 arg0, u64 arg1, u64 arg2)
{
    register u64 a0 __asm__("a0") = arg0;
    register u64 a1 __asm__("a1") = arg1;
    register u64 a2 __asm__("a2") = arg2;
    register u64 a6 __asm__("a6") = function;
    register u64 a7 __asm__("a7") = extension;

    // A supervisor's ecall changes a0 and a1 only.
    __asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a2), "r"(a6), "r"(a7) : "memory");
    return (struct sbi_result){(i64)a0, a1};
}

bool sbi_has(u64 extension)
{
    struct sbi_result r = sbi_call(SBI_BASE, 3, extension, 0, 0);

    return r.error == 0 && r.value != 0;
}

// One byte, when the device tree names no UART: debug console, or the call of SBI 0.1.
void sbi_putc(char c)
{
    if (sbi_has(SBI_DBCN))
        sbi_call(SBI_DBCN, 2, (u8)c, 0, 0);
    else
        sbi_call(SBI_LEGACY_PUTCHAR, 0, (u8)c, 0, 0);
}
