// user.h: what a program can use: the system calls, printf, and the functions of string.c.
#pragma once

#include "../types.h"

// start.S, one for each number in syscall.h
__attribute__((noreturn)) void exit(int status);
i64 write(int file, const void *bytes, u64 count);
i64 read(int file, void *bytes, u64 count);
int close(int file);
int pipe(int files[2]);
int fork(void);
int wait(int *status);
int kill(int pid);
int getpid(void);
int yield(void);
int sleep(u64 ms);
void *sbrk(i64 bytes);
u64 uptime(void);

// lib.c. A line goes out in one write, so that lines of two processes do not mix.
__attribute__((format(printf, 1, 2))) void printf(const char *text, ...);
void flush(void);
