// block.c: reads sectors from a virtio block device through a virtqueue, once polling and once by
// interrupt. The queue lies in two pages as the old interface wants it; the new one takes any place.
#include "selftest.h"

enum {
    MAGIC = 0, VERSION = 4, DEVICE = 8, FEATURES = 0x10, FEATURES_SELECT = 0x14, ACCEPT = 0x20, ACCEPT_SELECT = 0x24,
    OLD_PAGE_SIZE = 0x28, QUEUE = 0x30, QUEUE_MAX = 0x34, QUEUE_SIZE = 0x38, OLD_ALIGN = 0x3c, OLD_QUEUE_PAGE = 0x40,
    QUEUE_READY = 0x44, NOTIFY = 0x50, INTERRUPT = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70,
    DESCRIPTORS = 0x80, DRIVER = 0x90, DEVICE_AREA = 0xa0, CAPACITY = 0x100,
};
enum { ACKNOWLEDGE = 1, DRIVER_IS_HERE = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { NEXT = 1, DEVICE_WRITES = 2, ENTRIES = 8, BLOCK = 2 };

struct queue {  // two pages
    struct {
        u64 address;
        u32 length;
        u16 flags, next;
    } descriptor[ENTRIES];
    struct {
        u16 flags, index, ring[ENTRIES];
    } available;
    u8 gap[PAGE - 16 * ENTRIES - 4 - 2 * ENTRIES];
    struct {
        u16 flags, index;
        struct {
            u32 id, length;
        } ring[ENTRIES];
    } used;
};

struct request {
    u32 type, reserved;
    u64 sector;
    u8 status;
};

// Two neighbouring pages, which frame_alloc does not promise.
__attribute__((section(".noinit"), aligned(PAGE))) static struct queue queue_pages;

static u64 base;
static volatile struct queue *queue;

static void write64(u32 offset, u64 value)
{
    write32(base + offset, (u32)value);
    write32(base + offset + 4, (u32)(value >> 32));
}

static bool set_up(void)
{
    bool modern = read32(base + VERSION) == 2;

    write32(base + STATUS, 0);
    write32(base + STATUS, ACKNOWLEDGE);
    write32(base + STATUS, ACKNOWLEDGE | DRIVER_IS_HERE);
    write32(base + FEATURES_SELECT, 1);
    expect(!modern || read32(base + FEATURES) & 1, "does not offer VERSION_1");
    write32(base + ACCEPT_SELECT, 0);
    write32(base + ACCEPT, 0);
    if (modern) {
        write32(base + ACCEPT_SELECT, 1);
        write32(base + ACCEPT, 1);  // VERSION_1
        write32(base + STATUS, ACKNOWLEDGE | DRIVER_IS_HERE | FEATURES_OK);
        expect(read32(base + STATUS) & FEATURES_OK, "does not accept VERSION_1");
    } else {
        write32(base + OLD_PAGE_SIZE, PAGE);
    }
    write32(base + QUEUE, 0);
    if (read32(base + QUEUE_MAX) < ENTRIES) {
        expect(false, "the queue has room for %u", read32(base + QUEUE_MAX));
        return false;
    }
    write32(base + QUEUE_SIZE, ENTRIES);
    if (modern) {
        write64(DESCRIPTORS, (u64)queue->descriptor);
        write64(DRIVER, (u64)&queue->available);
        write64(DEVICE_AREA, (u64)&queue->used);
        write32(base + QUEUE_READY, 1);
    } else {
        write32(base + OLD_ALIGN, PAGE);
        write32(base + OLD_QUEUE_PAGE, (u32)((u64)queue / PAGE));
    }
    write32(base + STATUS, read32(base + STATUS) | DRIVER_OK);
    return true;
}

static void describe(u32 i, volatile void *what, u32 length, u16 flags)
{
    queue->descriptor[i].address = (u64)what;
    queue->descriptor[i].length = length;
    queue->descriptor[i].flags = flags;
    queue->descriptor[i].next = (u16)(i + 1);
}

// Reads one sector. With `irq` it waits for the interrupt, otherwise for the used ring.
static bool read_sector(u64 sector, u8 *to, u32 irq)
{
    static volatile struct request request;
    u16 seen = queue->used.index;
    u64 limit = timer_now() + timer_ms(2000);

    request.type = 0;
    request.sector = sector;
    request.status = 0xff;
    describe(0, &request, 16, NEXT);
    describe(1, to, 512, NEXT | DEVICE_WRITES);
    describe(2, &request.status, 1, DEVICE_WRITES);
    queue->available.ring[queue->available.index % ENTRIES] = 0;
    fence();
    queue->available.index++;
    fence();
    write32(base + NOTIFY, 0);
    if (irq) {
        // The PLIC may have kept the interrupt of the request before, which names no reason any more.
        u32 reason = 0;
        plic_enable(irq);
        while (!reason && timer_now() < limit) {
            timer_set(limit);
            csr_write(sie, SIE_SEIE | SIE_STIE);
            struct outcome o = probe(s_wait, 0, 0);
            csr_write(sie, 0);
            u32 claimed = plic_claim();
            expect(o.cause == (CAUSE_INTERRUPT | IRQ_EXTERNAL) && claimed == irq, "cause %lx, claimed %u", o.cause,
                   claimed);
            reason = read32(base + INTERRUPT);
            write32(base + INTERRUPT_ACK, reason);
            plic_complete(claimed);
        }
        expect(reason & 1, "the device names no reason");
        plic_disable(irq);
    }
    // The device answers in its own time, so sleep between looks: polling would cost instructions.
    while (queue->used.index == seen && timer_now() < limit) {
        csr_write(sie, SIE_STIE);
        timer_set(timer_now() + timer_ms(1) / 50);
        wfi();
        csr_write(sie, 0);
    }
    timer_set(FOREVER);
    write32(base + INTERRUPT_ACK, read32(base + INTERRUPT));
    fence();
    expect(queue->used.index == (u16)(seen + 1), "sector %lu: no answer", sector);
    expect(request.status == 0, "sector %lu: status %x", sector, request.status);
    return request.status == 0;
}

static void block(u64)
{
    u8 *first, *again;
    u64 capacity;
    u32 irq = 0;

    base = 0;
    for (u32 i = 0; i < machine.virtios; i++)
        if (read32(machine.virtio[i].base) == 0x74726976 && read32(machine.virtio[i].base + DEVICE) == BLOCK) {
            base = machine.virtio[i].base;
            irq = machine.virtio[i].irq;
            break;
        }
    if (!base) {
        skip("no slot of the device tree holds a block device");
        return;
    }
    memset((void *)&queue_pages, 0, sizeof queue_pages);
    queue = &queue_pages;
    first = test_frame();
    again = test_frame();
    if (set_up()) {
        capacity = read32(base + CAPACITY) | (u64)read32(base + CAPACITY + 4) << 32;
        expect(capacity > 0, "has no sectors");
        memset(first, 0xa5, 512);
        memset(again, 0x5a, 512);
        if (read_sector(0, first, 0) && read_sector(0, again, machine.plic ? irq : 0))
            expect(memcmp(first, again, 512) == 0, "sector 0 was read as two things");
    }
    write32(base + STATUS, 0);
}

const struct check block_checks[] = {
    {"block-device", block, 0},
    {0},
};
