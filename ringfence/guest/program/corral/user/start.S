// start.S: where a program begins, and the system calls. The kernel has put argc and argv into a0, a1.
#include "../syscall.h"

        .section .text.start, "ax"
        .globl  _start
_start:
        call    main
        mv      s0, a0
        call    flush
        mv      a0, s0
        // falls into exit

#define SYSCALL(name)      \
        .globl  name;      \
name:   li a7, SYS_##name; \
        ecall;             \
        ret

        SYSCALL(exit)
        .text
        SYSCALL(write)
        SYSCALL(read)
        SYSCALL(close)
        SYSCALL(pipe)
        SYSCALL(fork)
        SYSCALL(wait)
        SYSCALL(kill)
        SYSCALL(getpid)
        SYSCALL(yield)
        SYSCALL(sleep)
        SYSCALL(sbrk)
        SYSCALL(uptime)
