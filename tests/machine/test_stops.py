"""Breakpoints and watchpoints: exact in every engine, and nothing to the guest."""

from __future__ import annotations

import random
from functools import cache

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ringfence import CORRAL, Break, Budget, Exit, MachineError, MiB, Virt, Watch, load, virt
from ringfence.isa import paging, pmp
from ringfence.isa.spec import ISA
from ringfence.isa.trap import Cause, Irq, S, Status
from ringfence.machine.board import ACLINT, RAM
from ringfence.machine.stops import pages

ENGINES = ("threaded", "reference")
ONES = (1 << 64) - 1
COMMANDS = b"uptime\nrun fault\n"


def corral(engine: str, harts: int = 1) -> Virt:
    board = virt(16 * MiB, harts, engine=engine)  # type: ignore[arg-type]
    load(board, CORRAL)
    board.uart.receive(COMMANDS)
    return board


def bare(engine: str, *program: int, at: int = RAM) -> Virt:
    """A machine that runs these instructions in M-mode."""
    board = virt(4 * MiB, engine=engine)  # type: ignore[arg-type]
    board.ram.write(at, b"".join(word.to_bytes(4, "little") for word in program))
    board.harts[0].pc = at
    return board


@cache
def address(name: str) -> int:
    """Of something in the embedded guest."""
    with CORRAL.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = table.get_symbol_by_name(name)
        assert found is not None and len(found) == 1
        return int(found[0]["st_value"])


def breaks(board: Virt, most: int = 5000) -> tuple[list[Break], Exit]:
    """Run through all breaks to the end."""
    met: list[Break] = []
    while isinstance(ended := board.run(), Break) and len(met) < most:
        met.append(ended)
    return met, ended


@pytest.mark.parametrize("harts", [1, 3])
def test_stops_are_exact_and_change_nothing(harts: int) -> None:
    """Every engine stops at the same steps, and a run with stops ends in the state of one without."""
    plain = corral("threaded", harts)
    plain.run()
    runs = []
    for engine in ENGINES:
        board = corral(engine, harts)
        board.breakpoints |= {address(name) for name in ("schedule", "put_string", "copy_in")}
        board.watchpoints |= {
            Watch(address("ready_first"), 4),
            Watch(address("ready"), 64, "access"),
            Watch(address("last_pid"), 4, "read"),
        }
        runs.append((*breaks(board), board.digest()))
    assert runs[0] == runs[1]
    assert runs[0][2] == plain.digest()
    assert {b.watch for b in runs[0][0]} == {None, "write", "read", "access"}


@pytest.mark.parametrize("seed", range(3))
def test_breakpoints_anywhere_are_met_each_time(seed: int) -> None:
    """Some of the instructions that a guest executes: each is met as often as it is executed, in native code too."""
    rng = random.Random(seed)
    board = corral("reference")
    executed: list[int] = []
    for _ in range(12_000):
        executed.append(board.harts[0].pc)
        board.run(1)
    chosen = set(rng.sample(sorted(set(executed)), 12))
    expected = [(n, pc) for n, pc in enumerate(executed) if pc in chosen]
    board = corral("threaded")
    board.run(rng.randrange(5000))
    start = board.steps
    board.breakpoints |= chosen
    met = []
    while isinstance(ended := board.run(12_000 - board.steps), Break):
        met.append((ended.steps, ended.va))
    assert met == [(n, pc) for n, pc in expected if n >= start]


@pytest.mark.parametrize("engine", ENGINES)
def test_breakpoint_is_passed_once_it_was_reported(engine: str) -> None:
    """Going on executes the instruction; the next time round it is met again, and not when it is taken away."""
    board = bare(engine, ISA["addi"].encode(rd=5, rs1=5, imm=1), ISA["jal"].encode(rd=0, imm=-4))
    board.breakpoints.add(RAM)
    for n in range(5):
        assert board.run() == Break(2 * n, 0, RAM)
        assert board.harts[0]["t0"] == n
    board.breakpoints.clear()
    assert board.run(10_000) == Budget(10_008)
    board.breakpoints.add(RAM + 4)
    assert board.run() == Break(10_009, 0, RAM + 4)
    board.pass_breakpoint()
    assert board.run() == Break(10_011, 0, RAM + 4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("offset", [4092, 4094, 4096])
def test_breakpoint_at_a_page_end(engine: str, offset: int) -> None:
    """The last instruction of a page, one across its end, and the first of the next."""
    words = [ISA["addi"].encode(rd=5, rs1=5, imm=1)] * 3 + [ISA["jal"].encode(rd=0, imm=-12)]
    board = bare(engine, *words, at=RAM + offset - 4)
    board.breakpoints.add(RAM + offset)
    assert [board.run() for _ in range(3)] == [Break(1 + 4 * n, 0, RAM + offset) for n in range(3)]


LEAF = paging.V | paging.R | paging.W | paging.X | paging.ACCESSED | paging.DIRTY
FAR = 1 << 30
"""Where a virtual page is as `jumper` is told."""


def jumper(engine: str, target: int, leaf: int) -> Virt:
    """A machine in S-mode that jumps to an address in FAR, which `leaf` maps; RAM is mapped to itself."""
    board = bare(engine, ISA["jalr"].encode(rd=0, rs1=6, imm=0))
    board.ram.write(RAM + 0x1000, b"".join(word.to_bytes(8, "little") for word in (0, leaf, RAM >> 2 | LEAF)))
    hart = board.harts[0]
    hart.satp, hart.priv = 8 << 60 | RAM + 0x1000 >> 12, S
    hart.pmpaddr0, hart.pmpcfg0 = (1 << pmp.ADDRESS_BITS - 2) - 1, pmp.NAPOT | pmp.R | pmp.W | pmp.X
    hart["t1"], hart["mtvec"] = target, RAM + 64
    board.protection(hart)
    return board


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("offset", [0, 0x10, 0xFFE])
@pytest.mark.parametrize(
    ("leaf", "cause"),
    [
        (0, Cause.FETCH_PAGE),
        (RAM >> 2 | LEAF & ~paging.X, Cause.FETCH_PAGE),
        (LEAF, Cause.FETCH_ACCESS),
    ],
)
def test_breakpoint_is_met_before_a_fetch_that_faults(engine: str, offset: int, leaf: int, cause: Cause) -> None:
    """gdb lets a function that it calls return to a breakpoint on the stack, where nothing need be executable: were
    the trap taken first the guest would die of the call. Where the run goes on the trap comes.
    """
    board = jumper(engine, FAR + offset, leaf)
    board.breakpoints |= {FAR + offset, RAM + 64}
    assert board.run() == Break(1, 0, FAR + offset)
    assert board.run() == Break(2, 0, RAM + 64)
    assert (board.harts[0]["mepc"], board.harts[0]["mcause"]) == (FAR + offset, cause)


@pytest.mark.parametrize("engine", ENGINES)
def test_breakpoint_is_met_before_its_page_is_marked(engine: str) -> None:
    """The walk for the instruction sets the entry's A bit, and comes when the run goes on."""
    board = jumper(engine, FAR + 64, RAM >> 2 | LEAF & ~paging.ACCESSED)
    board.ram.write(RAM + 64, ISA["jal"].encode(rd=0, imm=0).to_bytes(4, "little"))
    board.breakpoints.add(FAR + 64)
    for accessed in (0, paging.ACCESSED):
        assert board.run() == Break(2 if accessed else 1, 0, FAR + 64)
        assert board.ram.read(RAM + 0x1008, 1)[0] & paging.ACCESSED == accessed


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("row", "reads", "writes"),
    [
        ("lb", True, False),
        ("sb", False, True),
        ("lr.w", True, False),
        ("amoadd.w", True, True),
        ("cbo.zero", False, True),
    ],
)
def test_watchpoint_kinds_are_met_by_their_accesses(engine: str, row: str, reads: bool, writes: bool) -> None:
    """A read, a write, or both; the machine stands behind the instruction."""
    for kind, met in (("read", reads), ("write", writes), ("access", True)):
        board = bare(engine, ISA[row].encode(rs1=6), ISA["jal"].encode(rd=0, imm=0))
        board.harts[0]["t1"] = RAM + 0x2000
        board.watchpoints.add(Watch(RAM + 0x2000, 1, kind))  # type: ignore[arg-type]
        assert board.run(3000) == (Break(1, 0, RAM + 0x2000, kind) if met else Budget(3000))  # type: ignore[arg-type]
        assert isinstance(board.run(10), Budget)


@pytest.mark.parametrize("engine", ENGINES)
def test_watchpoint_is_exact_to_the_byte(engine: str) -> None:
    """Accesses beside it do not meet it; those that overlap it do, across a page's end too."""
    first, end = RAM + 0x2FFE, RAM + 0x3003
    for at in range(first - 10, end + 4):
        board = bare(engine, ISA["sd"].encode(rs1=6, rs2=0), ISA["jal"].encode(rd=0, imm=0))
        board.harts[0]["t1"] = at
        board.watchpoints.add(Watch(first, end - first))
        overlaps = at + 8 > first and at < end
        assert isinstance(board.run(100), Break) == overlaps


@pytest.mark.parametrize("engine", ENGINES)
def test_watchpoint_is_not_met_by_an_access_that_traps(engine: str) -> None:
    """Nor by a store-conditional that stores nothing."""
    board = bare(engine, ISA["sc.w"].encode(rd=5, rs1=6), ISA["lw"].encode(rd=5, rs1=7), ISA["jal"].encode(rd=0, imm=0))
    hart = board.harts[0]
    hart["t1"], hart["t2"], hart["mtvec"] = RAM + 0x2000, 0x4000_0000, RAM + 8
    board.watchpoints |= {Watch(RAM + 0x2000, 8, "access"), Watch(0x4000_0000, 8, "access")}
    assert isinstance(board.run(100), Budget)
    assert hart["mtval"] == 0x4000_0000 and hart["t0"] == 1


def test_watchpoints_in_too_many_pages_are_refused() -> None:
    """Before a step is taken; the sets can be made right again."""
    board = bare("threaded", ISA["jal"].encode(rd=0, imm=0))
    board.watchpoints |= {Watch(RAM + 4096 * n, 8) for n in range(9)}
    with pytest.raises(MachineError, match="at most 8 pages"):
        board.run(10)
    board.watchpoints.pop()
    assert isinstance(board.run(10), Budget)
    assert len(pages([Watch(0, ONES)])) > 8
    assert pages([Watch(ONES - 3, 8)]) == [0, ONES - 4095]


@pytest.mark.parametrize("engine", ENGINES)
def test_run_takes_an_interrupt_as_one_of_its_steps(engine: str) -> None:
    """A run of one step ends behind it, at the handler."""
    board = bare(engine, ISA["jal"].encode(rd=0, imm=0))
    board.ram.write(RAM + 64, ISA["jal"].encode(rd=0, imm=0).to_bytes(4, "little"))
    hart = board.harts[0]
    hart.mie, hart.mtvec, hart.mstatus = 1 << Irq.MSI, RAM + 64, hart.mstatus | 1 << Status.MIE
    assert board.run(1) == Budget(1) and hart.pc == RAM
    board.bus.write(ACLINT, 4, 1)
    assert board.run(1) == Budget(2) and hart.pc == RAM + 64
    assert hart.mcause == 1 << 63 | Irq.MSI
