"""What engines remember of translations and code, and what makes it wrong: M-mode changes something, S-mode uses it,
again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from idioms import constant, put
from states import CODE, DATA, END, TABLES, difference, digest, machine

from ringfence.isa import paging, pmp
from ringfence.isa.csr import STATUS_FIXED
from ringfence.isa.trap import M, S, Status
from ringfence.machine.board import RAM, Virt

ALL = paging.V | paging.R | paging.W | paging.X | paging.ACCESSED | paging.DIRTY
PAGE = DATA + 1
"""The page that S-mode uses; register 29 holds its address, 30 that of its entry, 31 what a change flips."""
ENTRY = RAM + TABLES * 4096 + 8 * PAGE
OTHER = TABLES + 4
"""A second table of pages, in which the frames are other ones."""
STEPS = 600


@dataclass(frozen=True)
class Change:
    """`flip`: the bits that `change` works with, at `place`; `use` is what S-mode does before its ECALL."""

    change: list[int]
    use: list[int]
    flip: int = 0
    place: int = ENTRY
    flags: int = ALL
    away: int = 0
    """How far behind the page's own address it is used."""
    state: dict[str, int] = field(default_factory=dict)


LOAD = [put("ld", rd=7, rs1=29, imm=0), put("add", rd=5, rs1=5, rs2=7)]
STORE = [put("sd", rs1=29, rs2=5, imm=8), put("addi", rd=5, rs1=5, imm=1)]
CALL = [put("jalr", rd=1, rs1=29, imm=64)]
TOGGLE = [put("ld", rd=6, rs1=30, imm=0), put("xor", rd=6, rs1=6, rs2=31), put("sd", rs1=30, rs2=6, imm=0)]
STATUS_BIT = [
    put("csrr", rd=6, csr=0x300),
    put("xor", rd=6, rs1=6, rs2=31),
    put("csrrw", rd=0, rs1=6, csr=0x300),
]
THIRDS = [
    put("fdiv.d", fd=1, fs1=2, fs2=3, rm=1),
    put("fadd.d", fd=4, fs1=4, fs2=1, rm=7),
    put("fdiv.d", fd=5, fs1=3, fs2=4, rm=7),
    put("fmv.x.d", rd=7, fs1=5),
    put("add", rd=5, rs1=5, rs2=7),
]
"""One instruction's own rounding mode, and the hart's behind it."""
ROUTINE = [put("addi", rd=5, rs1=5, imm=3), put("jalr", rd=0, rs1=1, imm=0)]

CHANGES = {
    "frame of a page": Change(TOGGLE, LOAD, 1 << 10),
    "frame of a page that is stored to": Change(TOGGLE, STORE, 1 << 10),
    "frame of a page that is executed": Change(TOGGLE, CALL, 1 << 10),
    "validity": Change(TOGGLE, LOAD, paging.V),
    "permission to write": Change(TOGGLE, STORE, paging.W),
    "permission to execute": Change(TOGGLE, CALL, paging.X),
    "accessed bit": Change(TOGGLE, LOAD, paging.ACCESSED, state={"menvcfg": 1 << paging.ADUE}),
    "accessed bit that traps": Change(TOGGLE, LOAD, paging.ACCESSED),
    "dirty bit": Change(TOGGLE, LOAD + STORE, paging.DIRTY, state={"menvcfg": 1 << paging.ADUE}),
    "dirty bit that traps": Change(TOGGLE, LOAD + STORE, paging.DIRTY),
    "table of pages": Change(TOGGLE, LOAD, (TABLES ^ OTHER) << 10, RAM + (TABLES + 1) * 4096),
    "table of pages elsewhere": Change(
        TOGGLE, LOAD, (TABLES ^ OTHER) << 10, RAM + (TABLES + 1) * 4096 + 8, away=2 << 20
    ),
    "validity of a table elsewhere": Change(TOGGLE, STORE, paging.V, RAM + (TABLES + 1) * 4096 + 8, away=2 << 20),
    "table of pages at address 0": Change(TOGGLE, LOAD, RAM + TABLES * 4096 >> 2, RAM + (TABLES + 1) * 4096),
    "validity of a table": Change(TOGGLE, LOAD, paging.V, RAM + (TABLES + 2) * 4096 + 8 * (RAM >> 30)),
    "address space": Change(
        [put("csrr", rd=6, csr=0x180), put("xor", rd=6, rs1=6, rs2=31), put("csrrw", rd=0, rs1=6, csr=0x180)],
        LOAD,
        (TABLES + 2) ^ (TABLES + 6),
    ),
    "SUM": Change(STATUS_BIT, LOAD, 1 << Status.SUM, flags=ALL | paging.USER),
    "MXR": Change(STATUS_BIT, LOAD, 1 << Status.MXR, flags=ALL & ~(paging.R | paging.W)),
    "privilege that M-mode lends": Change(
        [*STATUS_BIT, put("ld", rd=7, rs1=29, imm=0), *STATUS_BIT, put("add", rd=5, rs1=5, rs2=7), *TOGGLE],
        LOAD,
        1 << Status.MPRV,
    ),
    "rounding mode": Change(
        [put("csrr", rd=6, csr=2), put("xor", rd=6, rs1=6, rs2=31), put("csrrw", rd=0, rs1=6, csr=2)], THIRDS, 2
    ),
    "accrued flags": Change(
        [put("csrrci", rd=6, uimm=1, csr=1), *TOGGLE, put("add", rd=5, rs1=5, rs2=6)],
        [put("ld", rd=7, rs1=29, imm=0), put("fcvt.d.l", fd=2, rs1=7, rm=7), *THIRDS[2:]],
        1 << 10,
    ),
    "instruction": Change(TOGGLE, CALL, ROUTINE[0] ^ put("xori", rd=5, rs1=5, imm=3), RAM + PAGE * 4096 + 64),
    "upper half of an instruction": Change(TOGGLE, CALL, 0x0550_0000, RAM + PAGE * 4096 + 64),
    "protection": Change(
        [put("csrr", rd=6, csr=0x3A0), put("xor", rd=6, rs1=6, rs2=31), put("csrrw", rd=0, rs1=6, csr=0x3A0)],
        LOAD + STORE,
        pmp.W,
    ),
    "protection of a table": Change(
        [put("csrr", rd=6, csr=0x3A0), put("xor", rd=6, rs1=6, rs2=31), put("csrrw", rd=0, rs1=6, csr=0x3A0)],
        LOAD,
        pmp.R << 8,
    ),
}


def table(first: int, flags: int, moved: int = 0) -> bytes:
    """Entries of 2 MiB, each for its own frame but for the one that is used."""
    entries = [RAM + n * 4096 >> 2 | ALL for n in range(512)]
    entries[PAGE] = RAM + (PAGE ^ moved) * 4096 >> 2 | flags
    return b"".join(e.to_bytes(8, "little") for e in entries)


def load(board: Virt, change: Change) -> Virt:
    """Tables, code and a hart in M-mode, about to make the first change."""

    def code(words: list[int]) -> bytes:
        return b"".join(w.to_bytes(4, "little") for w in words)

    def place(page: int, data: bytes, offset: int = 0) -> None:
        board.ram.write(RAM + page * 4096 + offset, data)

    for leaf, middle, root, moved in ((TABLES, 1, 2, 0), (OTHER, 5, 6, 1)):
        place(leaf, table(leaf, change.flags, moved))
        place(TABLES + middle, (RAM + leaf * 4096 >> 2 | paging.V).to_bytes(8, "little") * 2)
        place(TABLES + root, (RAM + (TABLES + middle) * 4096 >> 2 | paging.V).to_bytes(8, "little"), 8 * (RAM >> 30))
    for page in range(DATA, TABLES):
        place(page, bytes((page * 7 + n) & 0xFF for n in range(64)) + code([ROUTINE[0] + (page << 20), ROUTINE[1]]))
    # M-mode: count the cause, change, and back to the beginning of S-mode's code.
    again = [
        put("csrr", rd=6, csr=0x342),
        put("add", rd=4, rs1=4, rs2=6),
        put("slli", rd=4, rs1=4, shamt=1),
        *change.change,
    ]
    back = [*constant(6, 1 << Status.MPP), put("csrrs", rd=0, rs1=6, csr=0x300), put("csrrw", rd=0, rs1=8, csr=0x341)]
    place(CODE, code([*again, *back, put("mret")]))
    place(CODE + 1, code([*change.use, put("addi", rd=9, rs1=9, imm=1), put("ecall")]))
    hart = board.harts[0]
    hart.pc = hart.mtvec = RAM + CODE * 4096
    hart.priv, hart.mstatus = M, STATUS_FIXED | S << Status.MPP | 3 << Status.FS
    hart.f[2], hart.f[3] = 0x3FF0 << 48, 0x4008 << 48
    hart.satp = 8 << 60 | RAM + (TABLES + 2) * 4096 >> 12
    hart.x[8], hart.x[29], hart.x[30], hart.x[31] = (
        RAM + (CODE + 1) * 4096,
        RAM + PAGE * 4096 + change.away,
        change.place,
        change.flip,
    )
    hart.pmpaddr0 = (RAM + PAGE * 4096 | 0x7FF) >> 2
    hart.pmpaddr1 = (RAM + TABLES * 4096 | 0x7FF) >> 2
    hart.pmpaddr2 = (1 << 54) - 1
    hart.pmpcfg0 = 0x1F1F1F
    for name, value in change.state.items():
        setattr(hart, name, value)
    board.timer(hart)
    board.protection(hart)
    return board


@pytest.mark.parametrize("sets", [1, 256])
@pytest.mark.parametrize("name", CHANGES)
def test_change_is_seen_at_once(name: str, sets: int) -> None:
    """A change made in M-mode, without any fence, is what S-mode's next use sees, in the reference and the threaded
    engine.
    """
    expected, found = load(machine(), CHANGES[name]), load(machine(sets), CHANGES[name])
    seen = set()
    for end in range(STEPS // 12, STEPS, STEPS // 12):
        before = expected.harts[0].x[5], expected.harts[0].x[9]
        ends = expected.run(until=end), found.run(until=end)
        assert ends[0] == ends[1] and digest(expected) == digest(found), "\n".join(
            difference(expected, found, END * 4096)
        )
        seen.add((expected.harts[0].x[5] - before[0], expected.harts[0].x[9] - before[1]))
    assert expected.harts[0].x[9] > 5 and len(seen) > 1
