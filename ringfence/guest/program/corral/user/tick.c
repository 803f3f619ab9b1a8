// tick.c: sleeps, so that the hart is free for others, or for nobody.
#include "user.h"

int main(int argc, char **argv)
{
    u64 times = 5;

    if (argc > 1 && !parse_number(argv[1], &times))
        return 2;
    for (u64 i = 1; i <= times; i++) {
        u64 started = uptime();

        sleep(100);
        printf("tick %lu, after %lu ms\n", i, uptime() - started);
    }
    return 0;
}
