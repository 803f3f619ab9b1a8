// types.h: the words this kernel is written in, and a few that every C program needs.
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef signed int i32;
typedef signed long i64;

#define PAGE 4096ul
#define MIB (1024ul * 1024)
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define ROUND_DOWN(x, to) ((x) & ~((to) - 1))
#define ROUND_UP(x, to) ROUND_DOWN((x) + (to) - 1, to)

// string.c. The compiler calls the first three by itself.
void *memset(void *to, int byte, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
void strlcpy(char *to, const char *from, size_t size);  // always ends `to`
bool parse_number(const char *s, u64 *value);           // decimal, or hexadecimal after 0x
