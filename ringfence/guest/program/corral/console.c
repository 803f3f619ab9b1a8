// console.c: lines of text between the UART and whoever reads or writes.
//
// Characters come in by interrupt into `editing`, where they can still be taken back. Enter moves
// them to `ready`, a ring, from which the shell or the foreground process reads.
#include "corral.h"
#include "print.h"

enum { CTRL_C = 3, CTRL_D = 4, BACKSPACE = 8, CTRL_U = 21, ESCAPE = 27, DELETE = 127 };

int console_foreground;

static char editing[128];
static u32 edited;
static char ready[256];  // CTRL_D in it stands for an end of file
static u32 ready_first, ready_count;

void console_putc(char c)
{
    if (c == '\n')
        uart_putc('\r');
    uart_putc(c);
}

void vprintf(const char *text, va_list args)
{
    format(console_putc, text, args);
}

void printf(const char *text, ...)
{
    va_list args;

    va_start(args, text);
    vprintf(text, args);
    va_end(args);
}

static void rub_out(void)
{
    edited--;
    printf("\b \b");
}

// Gives the edited line to readers. A line that finds no room is dropped as a whole.
static void deliver(char last)
{
    if (ready_count + edited + 1 <= sizeof ready) {
        editing[edited] = last;
        for (u32 i = 0; i <= edited; i++)
            ready[(ready_first + ready_count++) % sizeof ready] = editing[i];
        process_wake(ready);
    }
    edited = 0;
}

static void interrupt_foreground(void)
{
    printf("^C\n");
    if (console_foreground) {
        edited = 0;
        ready_count = 0;
        process_kill(console_foreground);
    } else {
        edited = 0;
        deliver('\n');  // an empty line, so that the shell prompts again
    }
}

void console_interrupt(void)
{
    static int escape;  // how far into an escape sequence: arrow keys and the like are ignored

    for (int c; (c = uart_getc()) >= 0;) {
        if (escape) {
            escape = escape == 1 && (c == '[' || c == 'O') ? 2 : escape == 2 && c < '@' ? 2 : 0;
        } else if (c == ESCAPE) {
            escape = 1;
        } else if (c == CTRL_C) {
            interrupt_foreground();
        } else if (c == CTRL_D) {
            if (edited == 0)
                deliver(CTRL_D);
        } else if (c == CTRL_U) {
            while (edited)
                rub_out();
        } else if (c == BACKSPACE || c == DELETE) {
            if (edited)
                rub_out();
        } else if (c == '\r' || c == '\n') {
            console_putc('\n');
            deliver('\n');
        } else if (c >= ' ' && edited < sizeof editing - 1) {
            editing[edited++] = (char)c;
            console_putc((char)c);
        }
    }
}

i64 console_read(char *to, u64 size)
{
    u64 n = 0;

    while (ready_count == 0)
        if (!process_sleep(ready, FOREVER))
            return -1;
    while (n < size && ready_count) {
        char c = ready[ready_first];

        if (c == CTRL_D && n)
            break;  // the next read sees it
        ready_first = (ready_first + 1) % sizeof ready;
        ready_count--;
        if (c == CTRL_D)
            return 0;
        to[n++] = c;
        if (c == '\n')
            break;
    }
    return (i64)n;
}
