// syscall.c: what processes can ask for. A bad pointer or number makes the call fail, nothing else.
#include "syscall.h"

#include "corral.h"

typedef i64 call(u64 a, u64 b, u64 c);

static i64 sys_exit(u64 status, u64, u64)
{
    process_exit((u8)status);
}

static i64 sys_write(u64 file, u64 bytes, u64 count)
{
    char part[128];
    u64 done = 0;

    if (file >= MAX_FILES || (file > 2 && !(current->files[file] && current->writes[file])))
        return -1;
    for (u64 n; done < count; done += n) {
        n = count - done < sizeof part ? count - done : sizeof part;
        if (!copy_in(&current->space, part, bytes + done, n))
            return -1;
        if (file > 2) {
            if (pipe_write(current->files[file], part, n) < 0)
                return -1;
        } else {
            for (u64 i = 0; i < n; i++)
                console_putc(part[i]);
        }
    }
    return (i64)done;
}

static i64 sys_read(u64 file, u64 bytes, u64 count)
{
    char part[128];
    i64 n;

    if (file >= MAX_FILES || (file > 2 && (!current->files[file] || current->writes[file])))
        return -1;
    count = count < sizeof part ? count : sizeof part;
    n = file > 2 ? pipe_read(current->files[file], part, count) : console_read(part, count);
    return n > 0 && !copy_out(&current->space, bytes, part, (u64)n) ? -1 : n;
}

static i64 sys_close(u64 file, u64, u64)
{
    if (file >= MAX_FILES || !current->files[file])
        return -1;
    pipe_close(current->files[file], current->writes[file]);
    current->files[file] = NULL;
    return 0;
}

static i64 sys_pipe(u64 files, u64, u64)
{
    int pair[2];

    if (!pipe_open(current, &pair[0], &pair[1]))
        return -1;
    if (copy_out(&current->space, files, pair, sizeof pair))
        return 0;
    sys_close((u64)pair[0], 0, 0);
    sys_close((u64)pair[1], 0, 0);
    return -1;
}

static i64 sys_fork(u64, u64, u64)
{
    int pid = process_fork();

    return pid ? pid : -1;
}

static i64 sys_wait(u64 status, u64, u64)
{
    int value = 0, pid = process_wait(0, &value);

    return pid > 0 && status && !copy_out(&current->space, status, &value, sizeof value) ? -1 : pid;
}

static i64 sys_kill(u64 pid, u64, u64)
{
    return (int)pid > 0 && process_kill((int)pid) ? 0 : -1;
}

static i64 sys_getpid(u64, u64, u64)
{
    return current->pid;
}

static i64 sys_yield(u64, u64, u64)
{
    process_yield();
    return 0;
}

static i64 sys_sleep(u64 ms, u64, u64)
{
    u64 until = timer_now() + timer_ms(ms);

    while (timer_now() < until)
        if (!process_sleep(NULL, until))
            return -1;
    return 0;
}

static i64 sys_sbrk(u64 bytes, u64, u64)
{
    struct space *space = &current->space;
    u64 old = space->brk, brk = old + bytes;

    if (brk < space->heap || brk > USER_STACK - PAGE)  // a page stays between heap and stack
        return -1;
    if (brk < old)
        space_shrink(space, brk);
    space->brk = brk;
    return (i64)old;
}

static i64 sys_uptime(u64, u64, u64)
{
    return (i64)(timer_now() * 1000 / machine.timebase);
}

static call *const calls[] = {
    [SYS_exit] = sys_exit,     [SYS_write] = sys_write, [SYS_read] = sys_read,     [SYS_close] = sys_close,
    [SYS_pipe] = sys_pipe,     [SYS_fork] = sys_fork,   [SYS_wait] = sys_wait,     [SYS_kill] = sys_kill,
    [SYS_getpid] = sys_getpid, [SYS_yield] = sys_yield, [SYS_sleep] = sys_sleep,   [SYS_sbrk] = sys_sbrk,
    [SYS_uptime] = sys_uptime,
};

void syscall(struct frame *frame)
{
    bool known = frame->a7 < COUNT(calls);

    frame->a0 = known ? (u64)calls[frame->a7](frame->a0, frame->a1, frame->a2) : (u64)-1;
}
