// print.c: printf for the kernel and, over another putc, for user programs.
//
//   %d %u %x %ld %lu %lx   numbers, with an optional width, 0 to pad with zeros, - to pad behind
//   %s %c %p %%            %p is 0x and sixteen digits
#include "print.h"

struct format {
    int width;
    bool zeros, left;
};

static void pad(void (*put)(char), int count, char with)
{
    while (count-- > 0)
        put(with);
}

static void put_string(void (*put)(char), const char *s, struct format f)
{
    int spare = f.width - (int)strlen(s);

    if (!f.left)
        pad(put, spare, ' ');
    while (*s)
        put(*s++);
    if (f.left)
        pad(put, spare, ' ');
}

static void put_number(void (*put)(char), u64 value, u64 base, bool negative, struct format f)
{
    char digits[24];
    int n = sizeof digits;

    digits[--n] = 0;
    do
        digits[--n] = "0123456789abcdef"[value % base];
    while (value /= base);
    if (f.zeros)
        while (n > 1 && (int)sizeof digits - 1 - n + negative < f.width)
            digits[--n] = '0';
    if (negative)
        digits[--n] = '-';
    put_string(put, digits + n, f);
}

void format(void (*put)(char), const char *text, va_list args)
{
    for (; *text; text++) {
        struct format f = {0, false, false};
        bool wide = false;

        if (*text != '%') {
            put(*text);
            continue;
        }
        text++;
        for (; *text == '0' || *text == '-'; text++)
            *(*text == '0' ? &f.zeros : &f.left) = true;
        for (; *text >= '0' && *text <= '9'; text++)
            f.width = 10 * f.width + *text - '0';
        for (; *text == 'l'; text++)
            wide = true;
        switch (*text) {
        case 'd': {
            i64 value = wide ? va_arg(args, i64) : va_arg(args, i32);
            put_number(put, value < 0 ? -(u64)value : (u64)value, 10, value < 0, f);
            break;
        }
        case 'u':
        case 'x':
            put_number(put, wide ? va_arg(args, u64) : va_arg(args, u32), *text == 'u' ? 10 : 16, false, f);
            break;
        case 'p':
            put('0'), put('x');
            put_number(put, va_arg(args, u64), 16, false, (struct format){16, true, false});
            break;
        case 's':
            put_string(put, va_arg(args, const char *), f);
            break;
        case 'c':
            put((char)va_arg(args, int));
            break;
        case 0:
            return;
        default:
            put(*text);
        }
    }
}
