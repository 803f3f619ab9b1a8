// string.c: memory and string functions. User programs link it too.
#include "types.h"

void *memset(void *to, int byte, size_t n)
{
    u8 *t = to;
    u64 word = 0x0101010101010101ul * (u8)byte;

    // Frames are cleared here: that is what this kernel spends most of its time on.
    for (; n && ((u64)t & 7); n--)
        *t++ = (u8)byte;
    for (; n >= 64; n -= 64, t += 64) {
        u64 *w = (u64 *)t;

        w[0] = w[1] = w[2] = w[3] = w[4] = w[5] = w[6] = w[7] = word;
    }
    while (n--)
        *t++ = (u8)byte;
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    u8 *t = to;
    const u8 *f = from;

    if (t > f && t < f + n) {
        while (n--)
            t[n] = f[n];
        return to;
    }
    if ((((u64)t | (u64)f) & 7) == 0)
        for (; n >= 8; n -= 8, t += 8, f += 8)
            *(u64 *)t = *(const u64 *)f;
    while (n--)
        *t++ = *f++;
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    return memmove(to, from, n);
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *x = a, *y = b;

    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;

    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (u8)*a - (u8)*b;
}

int strncmp(const char *a, const char *b, size_t n)
{
    for (; n; n--, a++, b++)
        if (*a != *b || !*a)
            return (u8)*a - (u8)*b;
    return 0;
}

void strlcpy(char *to, const char *from, size_t size)
{
    while (size > 1 && *from)
        *to++ = *from++, size--;
    *to = 0;
}

bool parse_number(const char *s, u64 *value)
{
    u64 base = 10;

    if (s[0] == '0' && s[1] == 'x')
        base = 16, s += 2;
    *value = 0;
    if (!*s)
        return false;
    for (; *s; s++) {
        u64 digit = *s >= '0' && *s <= '9' ? (u64)(*s - '0') : *s >= 'a' && *s <= 'f' ? (u64)(*s - 'a' + 10) : 99;
        if (digit >= base)
            return false;
        *value = *value * base + digit;
    }
    return true;
}
