// pingpong.c: a byte goes to and fro between parent and child over two pipes.
#include "user.h"

int main(int argc, char **argv)
{
    u64 rounds = 100, started = uptime();
    int there[2], back[2], status = 1;
    char ball = 0;

    if (argc > 1 && !parse_number(argv[1], &rounds))
        return 2;
    if (pipe(there) < 0 || pipe(back) < 0)
        return 1;
    if (fork() == 0) {
        close(there[1]);
        while (read(there[0], &ball, 1) == 1) {
            ball++;
            write(back[1], &ball, 1);
        }
        return 0;
    }
    for (u64 i = 0; i < rounds; i++)
        if (write(there[1], &ball, 1) != 1 || read(back[0], &ball, 1) != 1 || ball != (char)(i + 1)) {
            printf("pingpong: lost the ball in round %lu\n", i);
            return 1;
        }
    close(there[1]);
    wait(&status);
    printf("%lu rounds in %lu ms\n", rounds, uptime() - started);
    return status;
}
