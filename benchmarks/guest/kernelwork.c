// Runs inside Debian: null system calls, page faults, or fork and wait, as many as argv says.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    long n = atol(argv[2]);
    if (!strcmp(argv[1], "syscall")) {
        for (long i = 0; i < n; i++) syscall(SYS_getppid);
    } else if (!strcmp(argv[1], "fault")) {
        const long pages = 1024;
        for (long i = 0; i < n; i += pages) {
            char *p = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) return 1;
            madvise(p, pages * 4096, MADV_NOHUGEPAGE);
            for (long j = 0; j < pages; j++) p[j * 4096] = 1;
            munmap(p, pages * 4096);
        }
    } else if (!strcmp(argv[1], "fork")) {
        for (long i = 0; i < n; i++) {
            pid_t child = fork();
            if (child == 0) _exit(0);
            waitpid(child, 0, 0);
        }
    } else {
        return 2;
    }
    return 0;
}
