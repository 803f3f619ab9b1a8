"""Harts whose TLB software fills: random programs, changes and misses, in both engines."""

from __future__ import annotations

import random

import pytest
import test_engine_changes as changes
from idioms import put
from states import CODE, END, HANDLERS, REFILL, SCALE, TABLES, TLB_TAG, difference, digest, machine
from test_engine_programs import STEPS, Evicting, Program, check

from ringfence import MachineError, virt
from ringfence.isa import paging, tlb
from ringfence.isa.csr import STATUS_FIXED
from ringfence.isa.trap import M, S, Status
from ringfence.machine.board import RAM, Virt
from ringfence.machine.devicetree import unflatten
from ringfence.machine.hart import Hart

STLBVAL = 0x5C2
WRITE = [
    put("csrr", rd=5, csr=STLBVAL),
    put("srli", rd=6, rs1=5, shamt=12),
    put("andi", rd=6, rs1=6, imm=511),
    put("slli", rd=6, rs1=6, shamt=3),
    put("add", rd=6, rs1=6, rs2=22),
    put("ld", rd=6, rs1=6, imm=0),
    put("tlbwr", rs1=5, rs2=6),
]
"""Write what the last level of the page tables has, to which register 22 points."""


def code(words: list[int]) -> bytes:
    return b"".join(w.to_bytes(4, "little") for w in words)


class Filling(Program):
    """A random program whose refill handler knows where the last level of its page tables is."""

    def __init__(self, seed: str, harts: int = 1) -> None:
        super().__init__(seed, harts, "software")
        handlers, place = self.pages[HANDLERS + 1], REFILL & 4095
        assert not any(handlers[place:])
        self.pages[HANDLERS + 1] = handlers[:place] + code([*WRITE, put("tlbret")]).ljust(4096 - place, b"\0")


@pytest.mark.parametrize("sets", [1, 16, 256])
def test_program_hash_is_the_references(sets: int) -> None:
    """A random program ends in the same state under the reference and the threaded engine, however small native TLBs
    are, and wherever they forget.
    """
    for case in range(round(30 * SCALE)):
        program = Filling(f"filling {sets} {case}")
        boards = [program.load(machine(tlb="software")), program.load(machine(sets, tlb="software"))]
        boards.append(program.load(machine(sets, Evicting, tlb="software")))
        ends = [board.run(until=program.clock * 100 + STEPS) for board in boards]
        for board, end in zip(boards[1:], ends[1:], strict=True):
            check(boards[0], board, f"program filling {sets} {case}")
            assert end == ends[0]


@pytest.mark.parametrize("harts", [2, 3])
def test_program_hash_with_several_harts(harts: int) -> None:
    """Each hart has its own entries."""
    for case in range(round(15 * SCALE)):
        program = Filling(f"filling harts {harts} {case}", harts)
        turn = random.Random(case).choice((1, 7, 50, 400))
        boards = [program.load(machine(s, harts=harts, turn=turn, seed=case, tlb="software")) for s in (0, 256)]
        boards.append(program.load(machine(16, Evicting, harts, turn, case, "software")))
        ends = [board.run(until=program.clock * 100 + STEPS) for board in boards]
        for board, end in zip(boards[1:], ends[1:], strict=True):
            check(boards[0], board, f"program filling harts {harts} {case}")
            assert end == ends[0]


def test_programs_miss_and_fill() -> None:
    """The random programs do what they are for: many fill entries, and are refused by some."""
    filled, refused = 0, 0
    for case in range(40):
        program = Filling(f"apart {case}")
        board = program.load(machine(256, tlb="software"))
        board.run(until=program.clock * 100 + STEPS)
        after, before = (hart.words[TLB_TAG : TLB_TAG + 64].tolist() for hart in (board.harts[0], program.harts[0]))
        filled += after != before
        refused += any(board.harts[0][cause] in (12, 13, 15) for cause in ("scause", "mcause"))
    assert filled > 8 and refused > 5


LONGER = 4 * changes.STEPS
WRITTEN = [*changes.TOGGLE, put("tlbwr", rs1=29, rs2=6)]
FENCED = [*changes.TOGGLE, put("sfence.vma", rs1=29, rs2=0)]
CHANGES = {
    "entry that is written again": changes.Change(WRITTEN, changes.LOAD, 1 << 10),
    "entry that is stored by": changes.Change(WRITTEN, changes.STORE, 1 << 10),
    "entry that is executed": changes.Change(WRITTEN, changes.CALL, 1 << 10),
    "validity": changes.Change(WRITTEN, changes.LOAD, paging.V),
    "accessed bit": changes.Change(FENCED, changes.LOAD, paging.ACCESSED, state={"menvcfg": 1 << paging.ADUE}),
    "dirty bit": changes.Change(
        FENCED, changes.LOAD + changes.STORE, paging.DIRTY, state={"menvcfg": 1 << paging.ADUE}
    ),
    "entry that is fenced": changes.Change(FENCED, changes.LOAD, 1 << 10),
    "all that is fenced": changes.Change(
        [*changes.TOGGLE, put("sfence.vma", rs1=0, rs2=0)], changes.LOAD + changes.CALL, 1 << 10
    ),
    "entry of another space that is fenced": changes.Change(
        [*changes.TOGGLE, put("sinval.vma", rs1=29, rs2=9)], changes.LOAD, 1 << 10
    ),
    "address space": changes.Change(
        [
            put("csrr", rd=6, csr=0x180),
            put("xor", rd=6, rs1=6, rs2=31),
            put("csrrw", rd=0, rs1=6, csr=0x180),
            put("slli", rd=6, rs1=9, shamt=10),
            put("ld", rd=7, rs1=30, imm=0),
            put("xor", rd=7, rs1=7, rs2=6),
            put("sd", rs1=30, rs2=7, imm=0),
        ],
        changes.LOAD,
        1 << 44,
    ),
    "page table without a fence": changes.Change(
        [*changes.TOGGLE, put("andi", rd=6, rs1=9, imm=3), put("bne", rs1=6, rs2=0, imm=8), FENCED[-1]],
        changes.LOAD,
        1 << 10,
    ),
    "entries that push it out": changes.Change(
        [
            *changes.TOGGLE,
            put("addi", rd=6, rs1=0, imm=40),
            put("slli", rd=7, rs1=6, shamt=30),
            put("tlbwr", rs1=7, rs2=6),
            put("addi", rd=6, rs1=6, imm=-1),
            put("bne", rs1=6, rs2=0, imm=-12),
        ],
        changes.LOAD,
        1 << 10,
    ),
    "large address": changes.Change(
        [*changes.TOGGLE, put("lui", rd=7, imm=-(1 << 31)), put("tlbwr", rs1=7, rs2=6)], changes.LOAD, 1 << 10
    ),
}


def load(board: Virt, change: changes.Change) -> Virt:
    """As there, with a refill handler that counts in register 10."""
    changes.load(board, change)
    place = RAM + (CODE + 2) * 4096
    board.ram.write(place, code([*WRITE, put("addi", rd=10, rs1=10, imm=1), put("tlbret")]))
    hart = board.harts[0]
    hart.stlbvec, hart.x[22] = place, RAM + TABLES * 4096
    return board


@pytest.mark.parametrize("sets", [1, 256])
@pytest.mark.parametrize("name", CHANGES)
def test_change_is_seen_at_once(name: str, sets: int) -> None:
    """What an instruction makes of an entry is so for the next access, and nothing else is: in both engines."""
    expected, found = (load(machine(s, tlb="software"), CHANGES[name]) for s in (0, sets))
    seen = set()
    for end in range(LONGER // 12, LONGER, LONGER // 12):
        before = expected.harts[0].x[5], expected.harts[0].x[9]
        ends = expected.run(until=end), found.run(until=end)
        assert ends[0] == ends[1] and digest(expected) == digest(found), "\n".join(
            difference(expected, found, END * 4096)
        )
        seen.add((expected.harts[0].x[5] - before[0], expected.harts[0].x[9] - before[1]))
    assert expected.harts[0].x[9] > 5 and expected.harts[0].x[10] and len(seen) > 1


def touching(board: Virt, pages: int, rounds: int) -> Hart:
    """S-mode reads a byte of so many pages in turn, again and again, then stands still; register 10 counts misses."""
    board.ram.write(RAM, code([*WRITE, put("addi", rd=10, rs1=10, imm=1), put("tlbret")]))
    inner = [
        put("lbu", rd=7, rs1=28, imm=0),
        put("add", rd=28, rs1=28, rs2=31),
        put("bltu", rs1=28, rs2=30, imm=-8),
    ]
    again = [put("add", rd=28, rs1=29, rs2=0), *inner, put("addi", rd=9, rs1=9, imm=-1)]
    program = [*again, put("bne", rs1=9, rs2=0, imm=-4 * len(again)), put("jal", rd=0, imm=0)]
    board.ram.write(RAM + 4096, code(program))
    flags = paging.V | paging.R | paging.X | paging.ACCESSED
    board.ram.write(
        RAM + TABLES * 4096, b"".join((RAM + n * 4096 >> 2 | flags).to_bytes(8, "little") for n in range(512))
    )
    hart = board.harts[0]
    hart.priv, hart.mstatus, hart.pc = S, STATUS_FIXED, RAM + 4096
    hart.satp, hart.stlbvec = 8 << 60, RAM
    hart.pmpaddr0, hart.pmpcfg0 = (1 << 54) - 1, 0x1F
    hart.x[9], hart.x[22] = rounds, RAM + TABLES * 4096
    hart.x[29], hart.x[31] = RAM + 0x10_0000, 4096
    hart.x[30] = hart.x[29] + pages * 4096
    board.protection(hart)
    board.run(20 * pages * rounds)
    assert hart.x[9] == 0
    return hart


@pytest.mark.parametrize("sets", [0, 1, 256])
def test_misses_are_those_that_a_user_can_count(sets: int) -> None:
    """As many pages as there are entries miss once each. One more, taken in turn, and none is there when it is wanted
    again.
    """
    board = machine(sets, tlb="software")
    assert touching(board, tlb.ENTRIES - 1, 10).x[10] == tlb.ENTRIES
    board = machine(sets, tlb="software")
    assert touching(board, tlb.ENTRIES, 10).x[10] > 10 * tlb.ENTRIES


@pytest.mark.parametrize("sets", [0, 256])
def test_refill_goes_by_registers_of_its_own(sets: int) -> None:
    """An ordinary trap that is being taken is left alone, and the handler runs untranslated; M-mode gets what it
    lends.
    """
    board = machine(sets, tlb="software")
    hart = board.harts[0]
    board.ram.write(RAM, code([put("tlbret")]))
    hart.priv, hart.mstatus, hart.pc = S, STATUS_FIXED | 1 << Status.SIE | 1 << Status.SPP, 0x4000
    hart.satp, hart.stlbvec, hart.sepc, hart.scause, hart.stval = 9 << 60 | 7 << 44 | 5, RAM, 4, 8, 12
    hart.pmpaddr0, hart.pmpcfg0 = (1 << 54) - 1, 0x1F
    board.protection(hart)
    board.run(1)
    assert (hart.pc, hart.priv, hart.satp, hart.stlbepc, hart.stlbval) == (RAM, S, 7 << 44 | 5, 0x4000, 0x4000)
    assert (hart.sepc, hart.scause, hart.stval, hart.mstatus) == (4, 8, 12, STATUS_FIXED | 1 << Status.SPP)
    assert hart.stlbstatus == 9 << 60 | 1 << Status.SPP | 1 << Status.SPIE
    board.run(1)
    assert (hart.pc, hart.satp, hart.mstatus >> Status.SIE & 1) == (0x4000, 9 << 60 | 7 << 44 | 5, 1)
    board.ram.write(RAM, code([put("ld", rd=5, rs1=6, imm=0)]))
    hart.priv, hart.mstatus, hart.pc, hart.x[6] = M, STATUS_FIXED | 1 << Status.MPRV | S << Status.MPP, RAM, 0x5008
    board.protection(hart)
    board.run(1)
    assert (hart.priv, hart.mcause, hart.mtval, hart.mepc) == (M, 24, 0x5008, RAM)


def test_device_tree_tells_who_fills_the_tlb() -> None:
    """By extensions of the harts; and there is no third way."""
    for kind, there, absent in (("hardware", "svadu", "xrftlb"), ("software", "xrftlb", "svadu")):
        cpu = unflatten(machine(tlb=kind).device_tree()).find("/cpus/cpu@0")  # type: ignore[arg-type]
        assert there in cpu.strings("riscv,isa-extensions") and there in cpu.strings("riscv,isa")[0]
        assert absent not in cpu.strings("riscv,isa-extensions") and absent not in cpu.strings("riscv,isa")[0]
        assert ("mmu-type" in cpu) == (kind == "hardware")
    with pytest.raises(MachineError, match="filled by hardware or software"):
        virt(tlb="magic")  # type: ignore[arg-type]


@pytest.mark.parametrize("sets", [0, 256])
def test_harts_that_walk_know_nothing_of_it(sets: int) -> None:
    """Its instructions and CSRs are illegal there; and in U-mode, and in S-mode where M-mode traps such things."""
    for kind, priv, status in (("hardware", M, 0), ("software", 0, 0), ("software", S, 1 << Status.TVM)):
        for word in (put("tlbwr", rs1=5, rs2=6), put("tlbret"), put("csrr", rd=7, csr=0x5C5)):
            board = machine(sets, tlb=kind)  # type: ignore[arg-type]
            hart = board.harts[0]
            board.ram.write(RAM, code([word]))
            hart.priv, hart.mstatus, hart.pc = priv, STATUS_FIXED | status, RAM
            hart.pmpaddr0, hart.pmpcfg0 = (1 << 54) - 1, 0x1F
            board.protection(hart)
            board.run(1)
            assert (hart.mcause, hart.mepc, hart.mtval) == (2, RAM, word)
