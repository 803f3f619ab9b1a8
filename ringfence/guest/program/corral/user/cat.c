// cat.c: reads the console to its end.
#include "user.h"

int main(void)
{
    char line[128];

    for (i64 n; (n = read(0, line, sizeof line)) > 0;)
        write(1, line, (u64)n);
    return 0;
}
