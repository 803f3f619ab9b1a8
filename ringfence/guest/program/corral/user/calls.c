// calls.c: the shortest system call, many times.
#include "user.h"

int main(int argc, char **argv)
{
    u64 count = 100000, began;
    int pid = getpid(), same = 1;

    if (argc > 1 && !parse_number(argv[1], &count))
        return 2;
    began = uptime();
    for (u64 n = 0; n < count; n++)
        same &= getpid() == pid;
    printf("%lu calls in %lu ms\n", count, uptime() - began);
    return !same;
}
