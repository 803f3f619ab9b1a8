// selftest.c: the shell's `selftest`: runs every check and counts. The status is the number of
// failures. All checks together stay under two million instructions, so that the slowest
// interpreter gets through them.
#include "selftest.h"

static const struct check *running;
static bool failed, skipped;
static void *frames[24];
static u32 frames_used;

static void begin_failure(void)
{
    if (!failed)
        printf("FAIL %s: ", running->name);
}

void expect(bool good, const char *why, ...)
{
    va_list args;

    if (good || failed)
        return;
    begin_failure();
    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    printf("\n");
    failed = true;
}

void skip(const char *why, ...)
{
    va_list args;

    printf("skip %s: ", running->name);
    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    printf("\n");
    skipped = true;
}

void expect_trap(struct outcome o, u64 cause, u64 value)
{
    if (o.cause == RETURNED)
        expect(false, "no trap; want %s at %lx", cause_name(cause), value);
    else
        expect(o.cause == cause && o.value == value, "%s (%lx) at %lx, pc %lx; want %s at %lx",
               cause_name(o.cause), o.cause, o.value, o.pc, cause_name(cause), value);
}

void *test_frame(void)
{
    void *frame = frames_used < COUNT(frames) ? frame_alloc() : NULL;

    if (!frame)
        panic("selftest: no memory");
    return frames[frames_used++] = frame;
}

int selftest(void)
{
    static const struct check *const groups[] = {
        trap_checks,   interrupt_checks, paging_checks, permission_checks, fence_checks,    integer_checks,
        atomic_checks, float_checks,     device_checks, block_checks,      firmware_checks,
    };
    u64 started = csr_read(instret), passed = 0, failures = 0, instructions, free;

    if (!pages_open())
        panic("selftest: no memory");
    free = frames_free;
    csr_write(sie, 0);  // a check enables what it waits for
    for (u32 i = 0; i < COUNT(groups); i++)
        for (running = groups[i]; running->name; running++) {
            failed = skipped = false;
            running->run(running->argument);
            while (frames_used)
                frame_free(frames[--frames_used]);
            if (frames_free != free) {
                expect(false, "kept %ld frames", (i64)(free - frames_free));
                free = frames_free;
            }
            if (failed)
                failures++;
            else if (!skipped)
                printf("ok %s\n", running->name), passed++;
        }
    pages_close();
    trap_init();
    timer_set(FOREVER);
    process_forget_fp();
    instructions = csr_read(instret) - started;
    printf("selftest: %lu passed, %lu failed, %lu instructions\n", passed, failures, instructions);
    return failures > 255 ? 255 : (int)failures;
}
