// primes.c: work for the processor alone: the sieve of Eratosthenes, over odd numbers.
#include "user.h"

int main(int argc, char **argv)
{
    u64 limit = 20000, count = 1;  // 2 is the even one
    u8 *composite;

    if (argc > 1 && (!parse_number(argv[1], &limit) || limit < 3 || limit > 100000000)) {
        printf("primes: up to what number from 3 to 100000000?\n");
        return 2;
    }
    composite = sbrk((i64)(limit / 2 + 1));
    if ((i64)composite == -1)
        return 1;
    for (u64 n = 3; n < limit; n += 2) {
        if (composite[n / 2])
            continue;
        count++;
        for (u64 m = n * n; m < limit; m += 2 * n)
            composite[m / 2] = 1;
    }
    printf("%lu primes below %lu\n", count, limit);
    return 0;
}
