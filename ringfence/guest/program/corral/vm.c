// vm.c: page tables, and the kernel's own map: memory and devices at their physical addresses.
//
// A and D bits are always set, so nothing depends on who would set them. Entries are written
// before anybody can have looked at them, or followed by a fence. Where the hart does not walk the
// tables, refill.S does.
#include "corral.h"

pte *kernel_root;
struct tlb_refill tlb;

static u32 index(u64 va, int level)
{
    return va >> (12 + 9 * level) & 511;
}

// The entry for `va` in a table of `level` (0: the last) below a root of `levels` levels. Makes
// the tables on the way if asked to. NULL: there is none, or a larger page is in the way.
pte *vm_entry(pte *root, int levels, u64 va, int level, bool make)
{
    pte *table = root;

    for (int l = levels - 1; l > level; l--) {
        pte *entry = &table[index(va, l)];

        if (!(*entry & PTE_V)) {
            void *frame = make ? frame_alloc() : NULL;

            if (!frame)
                return NULL;
            *entry = pte_make((u64)frame, PTE_V);
        } else if (*entry & PTE_LEAF) {
            return NULL;
        }
        table = (pte *)pte_pa(*entry);
    }
    return &table[index(va, level)];
}

// Maps with the largest pages that alignment and size allow: 4 KiB, 2 MiB or 1 GiB.
bool vm_map(pte *root, int levels, u64 va, u64 pa, u64 size, u64 flags)
{
    for (u64 done = 0, step; done < size;) {
        int level = 2;
        pte *entry;

        for (step = 1ul << 30; level && ((va + done) % step || (pa + done) % step || size - done < step); level--)
            step >>= 9;
        entry = vm_entry(root, levels, va + done, level, true);
        if (!entry)
            return false;
        // A larger page can only begin where this table ends.
        do {
            pte_write(entry++, pte_make(pa + done, flags | PTE_A | PTE_D | PTE_V));
            done += step;
        } while (size - done >= step && index(va + done, level));
        pte_flush();
    }
    return true;
}

static void identity(u64 from, u64 to, u64 flags)
{
    from = ROUND_DOWN(from, PAGE);
    if (!vm_map(kernel_root, 3, from, from, ROUND_UP(to, PAGE) - from, flags | PTE_G))
        panic("no memory for the kernel's page tables");
}

void vm_use(pte *root)
{
    csr_write(satp, SATP_SV39 | (u64)root >> 12);
    if (!para)
        sfence_vma();
}

void vm_init(void)
{
    u64 end = machine.ram + machine.ram_size;

    kernel_root = frame_alloc();
    if (!kernel_root)
        panic("no memory");
    identity((u64)kernel_start, (u64)rodata_start, PTE_R | PTE_X);
    identity((u64)rodata_start, (u64)data_start, PTE_R);
    identity((u64)data_start, end < USER_BASE ? end : USER_BASE, PTE_R | PTE_W);

    if (machine.uart)
        identity(machine.uart, machine.uart + (8ul << machine.uart_shift), PTE_R | PTE_W);
    if (machine.plic)
        identity(machine.plic, machine.plic + machine.plic_size, PTE_R | PTE_W);
    if (machine.finisher)
        identity(machine.finisher, machine.finisher + PAGE, PTE_R | PTE_W);
    if (machine.rtc)
        identity(machine.rtc, machine.rtc + PAGE, PTE_R | PTE_W);
    for (u32 i = 0; i < machine.virtios; i++)
        identity(machine.virtio[i].base, machine.virtio[i].base + PAGE, PTE_R | PTE_W);
    if (machine.isa & ISA_TLB) {
        tlb.ram_end = end;
        csr_write(CSR_STLBSCRATCH, (u64)&tlb);
        csr_write(CSR_STLBVEC, (u64)tlb_refill);
    }
    vm_use(kernel_root);
}
