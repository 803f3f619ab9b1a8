// count.c: never gives the hart away, so that of two at once each sees the other only by preemption.
#include "user.h"

int main(int argc, char **argv)
{
    u64 last = 10;

    if (argc > 1 && !parse_number(argv[1], &last))
        return 2;
    for (u64 n = 1; n <= last; n++) {
        for (volatile u32 spin = 0; spin < 200000; spin++)
            ;
        printf("process %d counts %lu\n", getpid(), n);
    }
    return 0;
}
