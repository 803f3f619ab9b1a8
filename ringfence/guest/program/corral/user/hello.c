// hello.c: the first program.
#include "user.h"

int main(int argc, char **argv)
{
    printf("Hello from process %d, in user mode.\n", getpid());
    for (int i = 1; i < argc; i++)
        printf("argument %d is \"%s\"\n", i, argv[i]);
    return 0;
}
