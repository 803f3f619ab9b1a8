// heap.c: memory by demand: only what is touched takes frames.
#include "user.h"

int main(void)
{
    u64 step = 64 * 1024, got = 0, seen = 0;
    u8 *start = sbrk(0), *old;

    for (; got < 16 * 1024 * 1024 && (i64)(old = sbrk((i64)step)) != -1; got += step)
        old[step / 2] = (u8)(got / step + 1);
    for (u64 at = 0; at < got; at += step)
        seen += start[at + step / 2] == (u8)(at / step + 1) && start[at] == 0;
    printf("asked for %lu KiB, touched %lu pages, found %lu as they were left\n", got / 1024,
           2 * got / step, 2 * seen);
    sbrk(-(i64)got);
    return seen == got / step && sbrk(0) == start ? 0 : 1;
}
