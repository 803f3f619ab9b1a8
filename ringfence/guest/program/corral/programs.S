// programs.S: the programs that are built in, and the table of them (struct program).

        .macro  program name, about
        .section .rodata.images, "a"
        .balign 8
\name\()_image:
        .incbin "\name\().elf"
\name\()_end:
        .section .rodata.strings, "a"
\name\()_name:
        .asciz  "\name"
\name\()_about:
        .asciz  "\about"
        .section .rodata.programs, "a"
        .dword  \name\()_name, \name\()_about, \name\()_image, \name\()_end
        .endm

        .section .rodata.programs, "a"
        .balign 8
        .globl  programs
programs:
        program hello, "says hello, and who it is"
        program primes, "counts the primes below its argument, or 20000"
        program count, "counts slowly to its argument, or 10: run two at once"
        program calls, "asks who it is, as often as its argument says, or 100000 times"
        program pingpong, "two processes and two pipes"
        program mandel, "the Mandelbrot set, in floating point"
        program tick, "sleeps a tenth of a second, as often as its argument says, or 5 times"
        program heap, "asks for 16 MiB, touches a little of it, and gives it back"
        program cat, "prints what is typed, until Ctrl-D"
        program fault, "null text kernel nowhere illegal breakpoint data stack: a way to fault"
programs_end:

        .section .rodata.strings, "a"
        .balign 4
        .globl  programs_count
programs_count:
        .word   (programs_end - programs) / 32
