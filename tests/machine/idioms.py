"""Short loops that do what engines like to remember wrongly: each changes something between two uses of it.

They use registers 5 to 7 and 28 to 31; programs keep in 8 to 11 and 18 addresses of code, data and page tables (11:
the first table's).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ringfence.isa import paging
from ringfence.isa.spec import COMPRESSED, ISA
from ringfence.isa.trap import Status

Code = list[int]
SSTATUS, MSTATUS = 0x100, 0x300
MTIME = 0x200_BFF8


def put(name: str, **operands: int) -> int:
    return ISA[name].encode(**operands)


def constant(rd: int, value: int) -> Code:
    """Two instructions: the low 32 bits, sign-extended."""
    value = (value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
    low = (value & 0xFFF ^ 0x800) - 0x800
    high = ((value - low & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)
    return [put("lui", rd=rd, imm=high), put("addiw", rd=rd, rs1=rd, imm=low)]


def loop(rng: random.Random, body: Code) -> Code:
    back = put("bne", rs1=28, rs2=0, imm=-4 * (len(body) + 1))
    return [put("addi", rd=28, rs1=0, imm=rng.randrange(2, 7)), *body, put("addi", rd=28, rs1=28, imm=-1), back]


def simple(rng: random.Random) -> int:
    """An instruction on register 6."""
    if rng.random() < 0.4:
        return put(rng.choice(("addi", "xori", "addiw")), rd=6, rs1=6, imm=rng.randrange(-2048, 2048))
    return put(
        rng.choice(("add", "sub", "xor", "mul", "sltu")), rd=6, rs1=rng.choice((5, 6, 7)), rs2=rng.choice((5, 6, 7))
    )


def halves(rng: random.Random) -> int:
    """Two compressed instructions on register 6."""
    first, second = (COMPRESSED["c.addi"].encode(rd=6, simm=rng.choice((-7, -1, 3, 21))) for _ in range(2))
    return first | second << 16


def patch(rng: random.Random) -> Code:
    """Change an instruction of the loop, in whole or in part, or move the boundary between two."""
    old, new = (rng.choice((simple, simple, halves))(rng) for _ in range(2))
    before = [simple(rng) for _ in range(rng.randrange(3))]
    width, shift = rng.choice((("w", 0), ("w", 0), ("h", 0), ("h", 2), ("b", 3)))
    difference = (old ^ new) >> 8 * shift
    if width != "w" and (old & 3 == 3) != (new & 3 == 3):
        width, difference, shift = "w", old ^ new, 0
    head = [*constant(31, difference), put("auipc", rd=29, imm=0)]
    at = 4 * (5 + len(before)) + shift
    body = [
        put("l" + width, rd=7, rs1=29, imm=at),
        put("xor", rd=7, rs1=7, rs2=31),
        put("s" + width, rs1=29, rs2=7, imm=at),
        *before,
        old,
    ]
    return [*head, *loop(rng, body)]


def generated(rng: random.Random) -> Code:
    """Write a routine into a data page, call it, write it again."""
    place = [
        put("andi", rd=29, rs1=rng.choice((9, 10)), imm=-64),
        put("addi", rd=29, rs1=29, imm=rng.choice((0, 32, 62))),
    ]
    old, new = simple(rng), simple(rng)
    ret = put("jalr", rd=0, rs1=1, imm=0)
    body = [
        put("xor", rd=7, rs1=7, rs2=31),
        put("sw", rs1=29, rs2=7, imm=0),
        put("sw", rs1=29, rs2=30, imm=4),
        put("jalr", rd=1, rs1=29, imm=0),
    ]
    return [*place, *constant(7, old), *constant(31, old ^ new), *constant(30, ret), *loop(rng, body)]


def remap(rng: random.Random, pages: range, first_table: int) -> Code:
    """Change a page's entry between accesses to the page; with a fence or without."""
    page = rng.choice(pages)
    flags = (
        1 << 10,
        1 << 10,
        1 << 10,
        paging.W,
        paging.V,
        paging.ACCESSED,
        paging.DIRTY,
        paging.USER,
        1 << 10 | paging.W,
    )
    at = 8 * page + rng.choice((0, 0, 0, -4))
    width = "d" if at % 8 == 0 or rng.random() < 0.5 else "w"
    mask = rng.choice(flags)
    if at % 8:
        mask = 0x1000_0000 if width == "w" else 1 << 30
    access = [put("ld", rd=6, rs1=29, imm=8 * rng.randrange(200)), put("sd", rs1=29, rs2=6, imm=8 * rng.randrange(200))]
    body = [
        put("l" + width, rd=7, rs1=11, imm=at),
        put("xor", rd=7, rs1=7, rs2=31),
        put("s" + width, rs1=11, rs2=7, imm=at),
        *([put("sfence.vma", rs1=rng.choice((0, 29)), rs2=0)] if rng.random() < 0.3 else []),
        *rng.sample(access, rng.choice((1, 2))),
        put("add", rd=5, rs1=5, rs2=6),
    ]
    place = [put("lui", rd=29, imm=(page - first_table) * 4096), put("add", rd=29, rs1=29, rs2=11)]
    return [*constant(31, mask), *place, *loop(rng, body)]


def lent(rng: random.Random) -> Code:
    """Change the bits of mstatus that accesses depend on, between accesses."""
    bit, csr = rng.choice(((Status.SUM, SSTATUS), (Status.SUM, SSTATUS), (Status.MXR, SSTATUS), (Status.MPRV, MSTATUS)))
    base = rng.choice((9, 10))
    body = [
        put("csrrs", rd=0, rs1=31, csr=csr),
        put(rng.choice(("ld", "lw")), rd=6, rs1=base, imm=0),
        put("csrrc", rd=0, rs1=31, csr=csr),
        put(rng.choice(("ld", "lbu")), rd=7, rs1=base, imm=8),
        put("sd", rs1=base, rs2=7, imm=16),
    ]
    return [*constant(31, 1 << bit), *loop(rng, body)]


def flags(rng: random.Random) -> Code:
    """Raise floating-point flags, then read, write and clear them, under changing rounding modes."""
    rows = ("fdiv.d", "fadd.d", "fmul.d", "fdiv.s", "fsub.d", "fmul.s")

    def operation(fd: int, rm: int) -> Code:
        return [put(rng.choice(rows), fd=fd, fs1=rng.randrange(8), fs2=rng.randrange(8), rm=rm)]

    steps = [
        [*operation(1, rng.choice((0, 1, 2, 3))), *operation(2, 7), put("fdiv.d", fd=3, fs1=2, fs2=1, rm=7)],
        operation(4, 7),
        [put("csrrw", rd=6, rs1=rng.choice((0, 5)), csr=rng.choice((1, 1, 3)))],
        [put("csrr", rd=7, csr=1)],
        [put("csrrwi", rd=0, uimm=rng.choice((0, 1, 2, 3, 3, 4)), csr=2)],
        [put("csrrci", rd=5, uimm=rng.randrange(32), csr=1)],
    ]
    rng.shuffle(steps)
    return loop(rng, [word for step in steps for word in step])


def clock(rng: random.Random) -> Code:
    """Set mtime, and read it as the CSR."""
    body = [
        put("csrr", rd=6, csr=0xC01),
        put("addi", rd=6, rs1=6, imm=rng.randrange(-20, 500)),
        put("sd", rs1=29, rs2=6, imm=MTIME % 4096 - 4096),
        put("csrr", rd=7, csr=0xC01),
    ]
    return [put("lui", rd=29, imm=MTIME + 4095 & -4096), *loop(rng, body)]


def unmask(rng: random.Random) -> Code:
    """Raise, enable and disable a software interrupt among instructions that show where it came."""
    level = rng.choice((0x100, 0x300))
    steps = [
        put("csrrs", rd=0, rs1=31, csr=level + 0x44),
        put("csrrs", rd=0, rs1=31, csr=level + 4),
        put("csrrsi", rd=0, uimm=2 if level == 0x100 else 8, csr=level),
        put("csrrci", rd=0, uimm=2 if level == 0x100 else 8, csr=level),
    ]
    rng.shuffle(steps)
    body = [word for step in steps for word in (step, put("addi", rd=6, rs1=6, imm=1))]
    return [*constant(31, 2), *loop(rng, body)]


def chain(rng: random.Random) -> Code:
    """Results that the next instruction takes."""
    return loop(rng, [simple(rng) for _ in range(rng.randrange(3, 8))])


def draw(rng: random.Random, pages: range, first_table: int) -> Code:
    """One of them."""
    kinds: tuple[Callable[[random.Random], Code], ...] = (patch, patch, generated, lent, flags, clock, unmask, chain)
    if rng.random() < 0.3:
        return remap(rng, pages, first_table)
    return rng.choice(kinds)(rng)
