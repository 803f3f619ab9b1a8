// lib.c: output by lines.
#include "../print.h"
#include "user.h"

static char line[128];
static u32 used;

void flush(void)
{
    if (used)
        write(1, line, used);
    used = 0;
}

static void put(char c)
{
    line[used++] = c;
    if (c == '\n' || used == sizeof line)
        flush();
}

void printf(const char *text, ...)
{
    va_list args;

    va_start(args, text);
    format(put, text, args);
    va_end(args);
}
