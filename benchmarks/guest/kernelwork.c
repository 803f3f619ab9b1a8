// Runs inside Debian: null system calls, page faults, fork and wait, the same with exec, switches between two processes,
// rounds of arithmetic, loads that each depend on the last, or passes over memory, as many as argv says; the last two in
// small pages of so many MiB.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void *small_pages(long length) {
    void *p = mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) exit(1);
    madvise(p, length, MADV_NOHUGEPAGE);
    return p;
}

typedef struct line { struct line *next; char rest[56]; } line;

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    long n = atol(argv[2]), length = argc > 3 ? atol(argv[3]) << 20 : 0;
    if (!strcmp(argv[1], "syscall")) {
        for (long i = 0; i < n; i++) syscall(SYS_getppid);
    } else if (!strcmp(argv[1], "fault")) {
        const long pages = 1024;
        for (long i = 0; i < n; i += pages) {
            char *p = small_pages(pages * 4096);
            for (long j = 0; j < pages; j++) p[j * 4096] = 1;
            munmap(p, pages * 4096);
        }
    } else if (!strcmp(argv[1], "fork")) {
        for (long i = 0; i < n; i++) {
            pid_t child = fork();
            if (child == 0) _exit(0);
            waitpid(child, 0, 0);
        }
    } else if (!strcmp(argv[1], "exec")) {
        for (long i = 0; i < n; i++) {
            pid_t child = fork();
            if (child == 0) {
                execl(argv[0], argv[0], "syscall", "0", (char *)0);
                _exit(1);
            }
            waitpid(child, 0, 0);
        }
    } else if (!strcmp(argv[1], "switch")) {
        int there[2], back[2];
        char c = 0;
        if (pipe(there) || pipe(back)) return 1;
        pid_t child = fork();
        for (long i = 0; i < n; i++) {
            if (child == 0) {
                if (read(there[0], &c, 1) != 1 || write(back[1], &c, 1) != 1) _exit(1);
            } else if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1) {
                return 1;
            }
        }
        if (child == 0) _exit(0);
        waitpid(child, 0, 0);
    } else if (!strcmp(argv[1], "arithmetic")) {
        unsigned long a = 1, b = n;
        for (long i = 0; i < n; i++) {
            a = a * 6364136223846793005 + 1442695040888963407;
            b ^= a >> 33 | b << 7;
            if (b & 1) a += b;
        }
        return a == b;
    } else if (!strcmp(argv[1], "chase")) {
        line *lines = small_pages(length), *at = lines;
        long count = length / sizeof *lines;
        unsigned random = 1;
        for (long i = 0; i < count; i++) lines[i].next = &lines[i];
        for (long i = count - 1; i > 0; i--) {  // one cycle (Sattolo 1986)
            random = random * 1664525 + 1013904223;
            line *other = &lines[(random >> 8) % i], *next = lines[i].next;
            lines[i].next = other->next, other->next = next;
        }
        for (long i = 0; i < n; i++) at = at->next;
        return at == 0;
    } else if (!strcmp(argv[1], "stream")) {
        volatile long *words = small_pages(length);
        for (long i = 0; i < n; i++)
            for (long j = 0; j < length / 8; j += 8) words[j] += words[j + 4];
    } else {
        return 2;
    }
    return 0;
}
