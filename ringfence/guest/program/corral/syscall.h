// syscall.h: the numbers of the system calls, in a7. Arguments are in a0 to a2, the result in a0;
// a negative result means failure.
#pragma once

#define SYS_exit 0     // (status)
#define SYS_write 1    // (file, bytes, count): how many
#define SYS_read 2     // (file, bytes, count): how many, 0 at the end
#define SYS_close 3    // (file)
#define SYS_pipe 4     // (int files[2]): reader, writer
#define SYS_fork 5     // (): the child's pid; 0 in the child
#define SYS_wait 6     // (int *status): the pid of a child that ended
#define SYS_kill 7     // (pid)
#define SYS_getpid 8   // ()
#define SYS_yield 9    // ()
#define SYS_sleep 10   // (milliseconds)
#define SYS_sbrk 11    // (bytes, may be negative): the old end of the heap
#define SYS_uptime 12  // (): milliseconds since the machine started
