// fault.c: the ways in which a program can go wrong. The kernel says which it was, and ends it.
#include "user.h"

static u32 data_word = 0x00008067;  // ret, but data is not executable

static int deeper(volatile int *above)
{
    volatile int here[64];

    here[0] = *above + 1;
    return here[0] ? deeper(here) + here[0] : 0;
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "null";
    volatile u64 *nowhere;

    // The addresses are hidden from the compiler, which would take them for promises.
    __asm__ volatile("mv %0, zero" : "=r"(nowhere));
    if (strcmp(kind, "null") == 0)
        return (int)*nowhere;
    if (strcmp(kind, "text") == 0)
        *(volatile u32 *)(u64)main = 0;
    if (strcmp(kind, "kernel") == 0)
        return (int)nowhere[0x80200000 / 8];
    if (strcmp(kind, "nowhere") == 0)
        __asm__ volatile("jr %0" : : "r"(0x123456788000ul));
    if (strcmp(kind, "illegal") == 0)
        __asm__ volatile(".word 0xffffffff");
    if (strcmp(kind, "breakpoint") == 0)
        __asm__ volatile("ebreak");
    if (strcmp(kind, "data") == 0)
        __asm__ volatile("jr %0" : : "r"(&data_word));
    if (strcmp(kind, "stack") == 0)
        return deeper(&argc);
    printf("fault: not a kind of fault: %s\n", kind);
    return 2;
}
