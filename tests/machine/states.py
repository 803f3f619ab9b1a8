"""Random machine states, and pairs of machines that are put into the same one.

The first pages of RAM hold, in this order: code, data, page tables. A virtual page of the same number in the 2 MiB from
`Layout.base` is mapped to each, or to another, or to none; the pointers that are drawn lead there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from ringfence.isa import paging, pmp, tlb
from ringfence.isa.csr import ALL_IRQS, CBCFE, CBIE, CBZE, CSRS, FIOM, S_IRQS, STATUS_FIXED, STATUS_WRITABLE, STCE
from ringfence.isa.spec import COMPRESSED, ISA, Compressed, Row, decode, disassemble
from ringfence.isa.trap import M, S, Status, U
from ringfence.machine.board import ACLINT, RAM, UART, Tlb, Virt, virt
from ringfence.machine.engine.threaded import Threaded
from ringfence.machine.hart import FIELDS, SIZE, Hart

SCALE = float(os.environ.get("RINGFENCE_TEST_SCALE", "1"))
"""How many times as many cases as usual are tried."""

ONES = (1 << 64) - 1
MEMORY = 4 << 20
CODE, HANDLERS, DATA, TABLES, END = 0, 4, 6, 12, 20
"""Numbers of pages; tables go to END."""
REFILL = RAM + (HANDLERS + 1) * 4096 + 3840
"""Where the refill handler of harts that do not walk is."""
TLB_TAG, TLB_PTE = (FIELDS[name].offset >> 3 for name in ("tlb_tag", "tlb_pte"))
BASES = (RAM, RAM, 0x4000_0000, 0x3F_FFE0_0000, 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_FFE0_0000, 0xFFFF_FFC0_0000_0000)
SELF = 0xA001
"""c.j 0"""
SENVCFG = 1 << FIOM | 3 << CBIE | 1 << CBCFE | 1 << CBZE
MENVCFG = SENVCFG | 1 << paging.ADUE | 1 << paging.PBMTE | 1 << STCE
EDGES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 63,
    ONES,
    ONES - 1,
    (1 << 63) - 1,
)
FLOATS = (
    *(
        0x0000_0000,
        0x8000_0000,
        0x3F80_0000,
        0xBF80_0000,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0000,
        0x7F80_0001,
        0x0000_0001,
    ),
    *(0x007F_FFFF, 0x0080_0000, 0x7F7F_FFFF, 0x4F00_0000, 0xCF00_0000, 0x5F00_0000, 0x3F00_0000, 0x4020_0000),
)
DOUBLES = (
    *(0, 1 << 63, 0x3FF0 << 48, 0xBFF0 << 48, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, (0x7FF0 << 48) + 1, 1),
    *((1 << 52) - 1, 1 << 52, (0x7FF0 << 48) - 1, 0x41E0 << 48, 0xC1E0 << 48, 0x43E0 << 48, 0x3FE0 << 48, 0x36A0 << 48),
)


@dataclass
class Layout:
    """Where a state's memory is: virtual addresses for fetches and for data, which differ under MPRV."""

    rng: random.Random
    base: int
    code: int
    data: int
    frames: dict[int, bytes] = field(default_factory=dict)

    def pointer(self) -> int:
        """A data address worth an access."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.03:
            return rng.choice(
                (ACLINT, ACLINT + 0x4000, ACLINT + 0xBFF8, UART, 0x1000, 0, RAM + MEMORY, RAM - 8)
            ) + rng.choice((0, 0, 1, 4))
        if kind < 0.06:
            return rng.choice(EDGES) + rng.randrange(-64, 64) & ONES
        page: int = rng.choice((CODE, CODE + 1, *range(DATA, TABLES), *range(DATA, TABLES), *range(TABLES, END)))
        offset: int = rng.choice((rng.randrange(4096), rng.randrange(512) * 8, rng.randrange(4088, 4096), 0))
        return (self.base if rng.random() < 0.05 else self.data) + page * 4096 + offset & ONES

    def target(self) -> int:
        """An address to jump to."""
        rng = self.rng
        if rng.random() < 0.04:
            return self.pointer() & ~1
        page: int = rng.choice((*range(CODE, HANDLERS), *range(CODE, HANDLERS), *range(HANDLERS, DATA)))
        offset: int = rng.choice((rng.randrange(0, 4096, 2), 0, 4092, 4094))
        return self.code + page * 4096 + offset & ONES


def integer(rng: random.Random) -> int:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(EDGES)
    if kind == 1:
        return rng.getrandbits(rng.randrange(1, 65))
    return rng.getrandbits(64) if kind == 2 else rng.randrange(-64, 64) & ONES


def number(rng: random.Random) -> int:
    """What a floating-point register holds."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(DOUBLES)
    if kind == 1:
        return rng.getrandbits(64)
    if kind == 2:
        return rng.getrandbits(1) << 63 | rng.randrange(0x3F0, 0x410) << 52 | rng.getrandbits(52) >> rng.randrange(53)
    single = rng.choice(FLOATS) if kind == 3 else rng.getrandbits(32)
    if kind == 4:
        single = rng.getrandbits(1) << 31 | rng.randrange(0x70, 0x90) << 23 | rng.getrandbits(23) >> rng.randrange(24)
    return single | (ONES << 32 if rng.random() < 0.95 else 0) & ONES


def entry(rng: random.Random, pa: int, user: bool, odd: float) -> int:
    """A leaf for `pa`; odd in something with that probability."""
    flags = paging.V | paging.R | paging.W | paging.X | paging.ACCESSED | paging.DIRTY | (paging.USER if user else 0)
    if rng.random() < odd:
        flags ^= rng.choice((*(1 << n for n in range(8)), paging.W, paging.ACCESSED, paging.DIRTY, paging.DIRTY))
    if rng.random() < odd / 8:
        flags |= 1 << rng.randrange(54, 64)
    return pa >> 2 | flags


def tables(layout: Layout, mode: int, user: bool) -> int:
    """Page tables for the layout's base; their satp."""
    rng, levels = layout.rng, paging.MODES[mode]
    odd = rng.choice((0.0, 0.1, 0.4))
    pages = [bytearray(4096) for _ in range(levels)]
    superpage = rng.choice((0, 0, 0, 1, 2))
    for level in range(levels - 1, -1, -1):
        table = pages[level]
        index = layout.base >> 12 + 9 * level & 511

        def put(at: int, value: int, table: bytearray = table) -> None:
            table[at * 8 : at * 8 + 8] = value.to_bytes(8, "little")

        if level == 0:
            order = list(range(END))
            if rng.random() < 0.3:
                moved = order[DATA:TABLES]
                rng.shuffle(moved)
                order[DATA:TABLES] = moved
            for n, frame in enumerate(order):
                mine = user and not HANDLERS <= n < DATA  # S-mode's handler is where it can run
                put(index + n, entry(rng, RAM + frame * 4096, mine ^ (rng.random() < odd / 4), odd / 2))
        elif level == superpage and superpage < levels:
            put(index, entry(rng, RAM & -(1 << 12 + 9 * level), user, odd / 2))
        else:
            extra = (
                rng.choice((paging.ACCESSED, paging.DIRTY, paging.USER, paging.V, 1 << 61))
                if rng.random() < odd / 16
                else 0
            )
            put(index, (RAM + (TABLES + level - 1) * 4096) >> 2 | paging.V ^ extra)
        layout.frames[TABLES + level] = bytes(table)
    return mode << 60 | rng.choice((0, 0, 1, 0xFFFF)) << 44 | RAM + (TABLES + levels - 1) * 4096 >> 12


def protection(rng: random.Random, hart: Hart) -> None:
    """Mostly one entry that permits all; sometimes others in front of it."""
    configuration = [0] * 16
    hart.pmpaddr15 = (1 << 54) - 1
    configuration[15] = pmp.NAPOT | pmp.R | pmp.W | pmp.X
    if rng.random() < 0.15:
        for n in range(rng.randrange(1, 5)):
            page = RAM + rng.randrange(END) * 4096
            size = rng.choice((8, 64, 4096, 8192, 16384))
            kind = rng.choice((pmp.TOR, pmp.NA4, pmp.NAPOT, pmp.NAPOT))
            setattr(hart, f"pmpaddr{n}", (page & -size | size // 2 - 1) >> 2 if kind == pmp.NAPOT else page >> 2)
            permission = rng.choice((7, 7, 5, 4, 3, 1, 0))
            configuration[n] = pmp.legal_cfg(0, kind | permission | rng.choice((0, 0, pmp.L)))
        if rng.random() < 0.1:
            configuration[15] = 0
    hart.pmpcfg0 = int.from_bytes(bytes(configuration[:8]), "little")
    hart.pmpcfg2 = int.from_bytes(bytes(configuration[8:]), "little")


def filled(rng: random.Random, hart: Hart, layout: Layout, user: bool) -> None:
    """The software-filled TLB: entries for some of the pages, most of them in the hart's address space."""
    hart.stlbvec, hart.stlbindex = REFILL, rng.randrange(tlb.ENTRIES)
    hart.stlbepc, hart.stlbscratch = layout.target(), rng.getrandbits(64)
    hart.stlbstatus = hart.satp & 15 << 60 | rng.getrandbits(1) << Status.SPP | rng.getrandbits(1) << Status.SPIE
    for n in range(rng.choice((0, 8, 40, 64))):
        page = rng.randrange(END)
        va = layout.base + page * 4096 & ONES
        asid = hart.satp >> 44 & 0xFFFF ^ rng.choice((0, 0, 0, 1))
        tag = va >> 12 & (1 << 45) - 1 | rng.choice((asid << 45, asid << 45, tlb.GLOBAL)) | tlb.PRESENT
        mine = user and not HANDLERS <= page < DATA
        hart.words[TLB_TAG + n], hart.words[TLB_PTE + n] = tag, entry(rng, RAM + page * 4096, mine, 0.2)


def scramble(rng: random.Random, hart: Hart, calm: bool = False) -> Layout:
    """Put the hart into a random state. `calm`: interrupts off and handlers in place."""
    software_tlb = hart.software_tlb
    for n in range(SIZE // 8):
        hart.words[n] = 0
    hart.mhartid, hart.software_tlb = hart.number, software_tlb
    hart.priv = rng.choice((U, S, S, M))
    mpp = rng.choice((U, S, M))
    status = rng.getrandbits(64) & STATUS_WRITABLE & ~(3 << Status.MPP | 3 << Status.FS)
    for bit, probability in ((Status.MPRV, 0.2), (Status.TVM, 0.2), (Status.TSR, 0.2), (Status.TW, 0.2)):
        if rng.random() > 2 * probability:
            status &= ~(1 << bit)
    hart.mstatus = status | mpp << Status.MPP | rng.choice((0, 1, 2, 3, 3, 3, 3, 3)) << Status.FS | STATUS_FIXED
    mode = rng.choice((0, 8, 8, 8, 9, 10))
    base = rng.choice(BASES)
    fetching = mode if hart.priv != M else 0
    data = mpp if hart.mstatus >> Status.MPRV & 1 else hart.priv
    layout = Layout(rng, base, base if fetching else RAM, base if mode and data != M else RAM)
    if mode:
        hart.satp = tables(layout, mode, hart.priv == U if rng.random() < 0.9 else bool(rng.getrandbits(1)))
    for n in range(1, 32):
        hart.x[n] = layout.pointer() if rng.random() < 0.4 else integer(rng)
        hart.f[n] = number(rng)
    hart.f[0] = number(rng)
    hart.medeleg = rng.choice((0, 0xB3FF, rng.getrandbits(16) & 0xB3FF))
    hart.mideleg = rng.choice((0, S_IRQS, rng.getrandbits(12) & S_IRQS))
    if not calm and rng.random() < 0.3:
        hart.mie = rng.getrandbits(12) & ALL_IRQS
        hart.mip = rng.getrandbits(12) & S_IRQS
        hart.lines = rng.choice((0, rng.getrandbits(12) & ALL_IRQS))
    machine_handler, handler = RAM + HANDLERS * 4096, layout.base + (HANDLERS + 1) * 4096
    hart.mtvec = machine_handler + 4 * rng.randrange(64) | rng.getrandbits(1)
    hart.stvec = (handler if mode else RAM + (HANDLERS + 1) * 4096) + 4 * rng.randrange(64) & ONES | rng.getrandbits(1)
    if not calm and rng.random() < 0.05:
        hart.stvec = layout.pointer() & ~2
    for name in ("mscratch", "sscratch", "mtval", "stval", "mcause", "scause", "mcycle", "minstret"):
        setattr(hart, name, integer(rng))
    hart.mepc, hart.sepc = layout.target(), layout.target()
    hart.mcounteren, hart.scounteren = (rng.choice((ONES >> 32, rng.getrandbits(32))) for _ in range(2))
    hart.mcountinhibit = rng.choice((0, 0, 1, 4, 5))
    hart.menvcfg = rng.getrandbits(64) & MENVCFG | rng.choice((0, 1 << paging.ADUE, MENVCFG))
    hart.senvcfg = rng.getrandbits(64) & SENVCFG | rng.choice((0, SENVCFG))
    for name in ("menvcfg", "senvcfg"):
        if getattr(hart, name) >> 4 & 3 == 2:
            setattr(hart, name, getattr(hart, name) ^ 3 << 4)
    hart.stimecmp = rng.choice((ONES, ONES, rng.randrange(8), rng.randrange(64)))
    hart.fflags, hart.frm = rng.getrandbits(5), rng.choice((0, 0, 1, 2, 3, 4, 5, 6, 7))
    hart.reservation = rng.choice((ONES, RAM + DATA * 4096 + 64 * rng.randrange(192)))
    protection(rng, hart)
    hart.pc = layout.code
    if software_tlb:
        filled(rng, hart, layout, hart.priv == U)
    return layout


def instruction(rng: random.Random, row: Row) -> int:
    """Random bits that mean this row and no other."""
    limit = 1 << 8 * row.length
    while True:
        word = row.match | rng.randrange(limit) & ~row.mask
        if "csr" in row.fields and rng.random() < 0.98:
            csr = row.fields["csr"]
            word = word & ~csr.put(-1 & 0xFFF) | csr.put(rng.choice(list(CSRS)))
        if "rm" in row.fields and rng.random() < 0.5:
            word |= 7 << 12
        found = decode(word)
        meant = row.insn if isinstance(row, Compressed) else row
        if found is not None and found[0] is meant and found[2] == row.length and row.matches(word):
            return word


def aim(rng: random.Random, layout: Layout, hart: Hart, word: int) -> None:
    """Give the registers of an instruction values that let it do what it is for."""
    found = decode(word)
    assert found is not None
    row, operands, _ = found
    if "m" in row.params and operands.get("rs1", 0) and rng.random() < 0.9:
        place = layout.target() if row.name == "jalr" else layout.pointer()
        if rng.random() < 0.5:
            place &= -8
        hart.x[operands["rs1"]] = place - operands.get("imm", 0) & ONES
    if "csr" in row.params and operands.get("rs1", 0) and rng.random() < 0.5:
        old = hart.satp if operands["csr"] == 0x180 else hart.mstatus
        hart.x[operands["rs1"]] = (old ^ 1 << rng.randrange(64)) if rng.random() < 0.7 else 1 << rng.randrange(64)


def rows() -> list[Row]:
    return [*ISA.values(), *COMPRESSED.values()]


def machine(
    sets: int = 0,
    make: Callable[[Virt, int], Threaded] = Threaded,
    harts: int = 1,
    turn: int = 300,
    seed: int = 1,
    tlb: Tlb = "hardware",
) -> Virt:
    """A board under the reference; or, with TLBs of so many sets, under a threaded engine."""
    board = virt(memory=MEMORY, harts=harts, turn=turn, seed=seed, engine="reference", tlb=tlb)
    if sets:
        board.engine = make(board, sets)
    return board


def describe(board: Virt) -> Iterator[tuple[str, object]]:
    """Everything by which a guest could tell two machines apart, but for RAM's bytes."""
    for hart in board.harts:
        for name, value in hart.architectural():
            yield f"hart {hart.number} {name}", value
    yield "steps", board.steps
    yield "idle", board.clock.idle_ns
    yield "turn", (board.current, board.turn_end if len(board.harts) > 1 else 0)
    yield "status", (board.status, board.reset_wanted, board.wanted)
    for start, _, device in board.bus.windows():
        yield f"device {start:#x}", [(f.name, getattr(device, f.name)) for f in device.STATE]
    yield "console", board.console.text


def digest(board: Virt) -> str:
    found = blake2b(board.ram.read(RAM, board.ram.size), digest_size=16)
    found.update(repr(list(describe(board))).encode())
    return found.hexdigest()


def difference(a: Virt, b: Virt, size: int = MEMORY) -> list[str]:
    """Where two machines differ, in the first `size` bytes of RAM and all else."""
    found = [
        f"{name}: {x:#x} and {y:#x}" if isinstance(x, int) and isinstance(y, int) else f"{name}: {x} and {y}"
        for (name, x), (_, y) in zip(describe(a), describe(b), strict=True)
        if x != y
    ]
    ram_a, ram_b = (board.ram.read(RAM, size) for board in (a, b))
    if ram_a != ram_b:
        at = next(n for n in range(size) if ram_a[n] != ram_b[n])
        found.append(
            f"RAM at {RAM + at:#x}: {ram_a[at & -8 : (at & -8) + 8].hex()} and {ram_b[at & -8 : (at & -8) + 8].hex()}"
        )
    return found


def listing(hart: Hart, words: list[int]) -> str:
    """For a failure's message: the state, and the code as text."""
    state = ", ".join(
        f"{n} {getattr(hart, n):#x}" for n in ("pc", "priv", "mstatus", "satp", "medeleg", "menvcfg", "frm")
    )
    return "\n".join([state, *(disassemble(w) for w in words)])
