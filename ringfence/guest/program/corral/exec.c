// exec.c: the programs that are built in, and how one gets into an address space: it is an ELF file
// like any other, except that it lies in the kernel's memory and not on a disk.
#include "corral.h"

struct elf_header {
    u8 ident[16];
    u16 type, machine;
    u32 version;
    u64 entry, phoff, shoff;
    u32 flags;
    u16 ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};

struct elf_segment {
    u32 type, flags;
    u64 offset, vaddr, paddr, filesz, memsz, align;
};

enum { PT_LOAD = 1, PF_X = 1, PF_W = 2, PF_R = 4 };

const struct program *program_find(const char *name)
{
    for (u32 i = 0; i < programs_count; i++)
        if (strcmp(programs[i].name, name) == 0)
            return &programs[i];
    return NULL;
}

static bool load_segment(struct space *space, const u8 *image, const struct elf_segment *s)
{
    u64 flags = PTE_R | (s->flags & PF_W ? PTE_W : 0) | (s->flags & PF_X ? PTE_X : 0);
    u64 end = s->vaddr + s->memsz;

    for (u64 va = ROUND_DOWN(s->vaddr, PAGE); va < end; va += PAGE) {
        u64 from = va > s->vaddr ? va : s->vaddr, to = s->vaddr + s->filesz;
        u8 *frame;

        if (!space_add(space, va, flags))
            return false;
        frame = (u8 *)pte_pa(*vm_entry(space->root, 3, va, 0, false));
        to = to < va + PAGE ? to : va + PAGE;
        if (from < to)
            memcpy(frame + (from - va), image + s->offset + (from - s->vaddr), to - from);
    }
    if (space->heap < ROUND_UP(end, PAGE))
        space->heap = space->brk = ROUND_UP(end, PAGE);
    return true;
}

// The images are our own and are trusted: the build has made them.
bool program_load(struct space *space, const struct program *program, u64 *entry)
{
    const struct elf_header *elf = (const struct elf_header *)program->image;
    const struct elf_segment *segment = (const struct elf_segment *)(program->image + elf->phoff);

    for (u32 i = 0; i < elf->phnum; i++)
        if (segment[i].type == PT_LOAD && !load_segment(space, program->image, &segment[i]))
            return false;
    *entry = elf->entry;
    fence_i();  // the code was written as data
    return true;
}
