// frames.c: frames of physical memory. Those given back are in a list; the others are handed out
// in order, so that booting does not touch memory that nobody asks for.
#include "corral.h"

u64 frames_total, frames_free;

static struct free_frame {
    struct free_frame *next;
} *list;
static u64 fresh, end;  // frames in [fresh, end) were never used

// Moves `fresh` over memory that is not ours.
static void skip_holes(void)
{
    for (u32 i = 0; i < machine.holes; i++)
        if (fresh < machine.hole[i].end && fresh + PAGE > machine.hole[i].start) {
            fresh = ROUND_UP(machine.hole[i].end, PAGE);
            i = (u32)-1;  // holes come in any order: look at all again
        }
}

static u64 count_fresh(void)
{
    u64 count = (end - fresh) / PAGE;

    for (u32 i = 0; i < machine.holes; i++) {
        u64 from = ROUND_DOWN(machine.hole[i].start, PAGE), to = ROUND_UP(machine.hole[i].end, PAGE);

        from = from > fresh ? from : fresh;
        to = to < end ? to : end;
        if (from < to)
            count -= (to - from) / PAGE;
    }
    return count;
}

void frames_init(void)
{
    fresh = (u64)kernel_end;
    end = ROUND_DOWN(machine.ram + machine.ram_size, PAGE);
    if (end > USER_BASE)
        end = USER_BASE;  // RAM is mapped where it is, and processes live above
    frames_total = frames_free = count_fresh();
}

void *frame_alloc(void)
{
    void *frame = list;
    bool zero = false;

    if (frame) {
        list = list->next;
    } else {
        skip_holes();
        if (fresh >= end)
            return NULL;
        frame = (void *)fresh;
        zero = para_fresh(fresh);
        fresh += PAGE;
    }
    frames_free--;
    return zero ? frame : memset(frame, 0, PAGE);
}

void frame_free(void *frame)
{
    struct free_frame *f = frame;

    f->next = list;
    list = f;
    frames_free++;
}
