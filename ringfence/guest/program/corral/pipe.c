// pipe.c: a pipe, a ring of bytes between processes. Readers sleep while it is empty, writers while
// it is full; when all of the other side have closed, reading gives 0 and writing fails.
#include "corral.h"

struct pipe {
    u64 read, written;  // ever; the ring holds the difference
    u32 readers, writers;
    char ring[512];
};

// The first file number that is free; -1: none. 0 to 2 are the console.
static int install(struct process *process, struct pipe *pipe, bool writes)
{
    for (int i = 3; i < MAX_FILES; i++)
        if (!process->files[i]) {
            process->files[i] = pipe;
            process->writes[i] = writes;
            return i;
        }
    return -1;
}

bool pipe_open(struct process *process, int *reader, int *writer)
{
    struct pipe *pipe = frame_alloc();

    if (!pipe)
        return false;
    pipe->readers = pipe->writers = 1;
    *reader = install(process, pipe, false);
    *writer = install(process, pipe, true);
    if (*writer >= 0)
        return true;
    if (*reader >= 0)
        process->files[*reader] = NULL;
    frame_free(pipe);
    return false;
}

void pipe_share(struct pipe *pipe, bool writes)
{
    *(writes ? &pipe->writers : &pipe->readers) += 1;
}

void pipe_close(struct pipe *pipe, bool writes)
{
    *(writes ? &pipe->writers : &pipe->readers) -= 1;
    process_wake(pipe);
    if (pipe->readers + pipe->writers == 0)
        frame_free(pipe);
}

i64 pipe_read(struct pipe *pipe, char *to, u64 size)
{
    u64 n = 0;

    while (pipe->read == pipe->written && pipe->writers)
        if (!process_sleep(pipe, FOREVER))
            return -1;
    while (n < size && pipe->read != pipe->written)
        to[n++] = pipe->ring[pipe->read++ % sizeof pipe->ring];
    process_wake(pipe);
    return (i64)n;
}

i64 pipe_write(struct pipe *pipe, const char *from, u64 size)
{
    for (u64 n = 0; n < size; n++) {
        while (pipe->readers && pipe->written - pipe->read == sizeof pipe->ring) {
            process_wake(pipe);
            if (!process_sleep(pipe, FOREVER))
                return -1;
        }
        if (!pipe->readers)
            return -1;
        pipe->ring[pipe->written++ % sizeof pipe->ring] = from[n];
    }
    process_wake(pipe);
    return (i64)size;
}
