"""Xhv, instruction by instruction: what is launched, why it is left, and that maps count as they stand."""

from __future__ import annotations

import random
from array import array

import pytest
from launching import (
    AREA,
    BLOCK,
    LEAF,
    LOWER,
    MEMORY,
    MIDDLE,
    ROOT,
    STAND,
    Engine,
    R,
    Request,
    W,
    X,
    again,
    host,
    launch,
    page,
    prepare,
    program,
    put,
    state,
    word,
)
from states import SCALE

from ringfence import MiB, Monitor, virt
from ringfence.isa.trap import Cause as Exception_
from ringfence.isa.trap import M, S
from ringfence.machine.board import RAM
from ringfence.machine.hart import SIZE
from ringfence.machine.memory import EXECUTE, FRAME, READ, WRITE
from ringfence.machine.virtualizer import MACHINES, MOST, RESULT_AT, STATE_AT, Cause

ENGINES: tuple[Engine, ...] = ("threaded", "reference")
PAGE = 4096


@pytest.mark.parametrize("engine", ENGINES)
def test_vmrun_asks_for_the_rights_that_an_access_needs(engine: Engine) -> None:
    """A fetch, a load and a store each leave for the monitor until f grants just that, and then are done."""
    machine = host(engine)
    program(machine, [put("ld", rd=5, rs1=10, imm=0), put("sd", rs1=11, rs2=5, imm=0), STAND], AREA)
    word(machine, AREA + PAGE, 77)
    state(machine, pc=RAM, priv=M, x10=RAM + PAGE, x11=RAM + 2 * PAGE)
    request = Request()
    assert launch(machine, request) == (Cause.FAULT, 0, EXECUTE, 0)
    page(machine, 0, AREA, X)
    request.flags = 0
    assert launch(machine, request) == (Cause.FAULT, PAGE, READ, 0)
    page(machine, 1, AREA + PAGE, R)
    page(machine, 2, AREA + 2 * PAGE, R)
    assert launch(machine, request) == (Cause.FAULT, 2 * PAGE, WRITE, 1)
    page(machine, 2, AREA + 3 * PAGE, R | W)
    cause, _, _, steps = launch(machine, request)
    assert cause is Cause.BUDGET and 1001 <= steps <= 1003
    assert int.from_bytes(machine.ram.read(AREA + 3 * PAGE, 8), "little") == 77


@pytest.mark.parametrize("engine", ENGINES)
def test_map_counts_as_it_stands(engine: Engine) -> None:
    """A page is given, moved, and taken back by plain stores, at random; what the machine reads is where f leads then:
    no fence is needed, nor a launch that changes anything else.
    """
    rng = random.Random(11)
    machine = host(engine)
    program(machine, [put("ld", rd=5, rs1=10, imm=0), put("jal", rd=0, imm=-4)], AREA)
    page(machine, 0, AREA, X)
    for n in range(1, 8):
        word(machine, AREA + n * PAGE, n)
    state(machine, pc=RAM, priv=M, x10=RAM + PAGE)
    request = Request(budget=20)
    launch(machine, request)
    request.flags = 0
    guest = machine.virtualizer.machines[1]  # type: ignore[union-attr]
    for _ in range(round(60 * SCALE)):
        n = rng.randrange(8)
        if n:
            page(machine, 1, AREA + n * PAGE, rng.choice((R, R | W)))
        elif rng.random() < 0.5:
            word(machine, LOWER + 8, 0)
        else:
            word(machine, MIDDLE, 0)
        cause, address, right, _ = launch(machine, request)
        if n:
            assert cause is Cause.BUDGET and guest.harts[0]["t0"] == n
        else:
            assert (cause, right) in ((Cause.FAULT, READ), (Cause.FAULT, EXECUTE)) and address in (0, PAGE)
            prepare(machine)


@pytest.mark.parametrize("engine", ENGINES)
def test_table_that_serves_twice_counts_twice(engine: Engine) -> None:
    """Where f has one table in two places a change of it is seen in both."""
    machine = host(engine)
    word(machine, MIDDLE + 8, LOWER // FRAME << 10 | 1)
    code = [put("ld", rd=5, rs1=10, imm=0), put("ld", rd=6, rs1=11, imm=0), put("jal", rd=0, imm=-8)]
    program(machine, code, AREA)
    page(machine, 0, AREA, X)
    for n in (1, 2):
        word(machine, AREA + n * PAGE, n)
    page(machine, 1, AREA + PAGE, R)
    state(machine, pc=RAM, priv=M, x10=RAM + PAGE, x11=RAM + 2 * MiB + PAGE)
    request = Request(budget=20)
    launch(machine, request)
    guest = machine.virtualizer.machines[1].harts[0]  # type: ignore[union-attr]
    assert (guest["t0"], guest["t1"]) == (1, 1)
    page(machine, 1, AREA + 2 * PAGE, R)
    request.flags = 0
    launch(machine, request)
    assert (guest["t0"], guest["t1"]) == (2, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_exceptions_stay_in_their_machine(engine: Engine) -> None:
    """A system call and an illegal instruction go to the machine's own handler, and its monitor is not entered."""
    machine = host(engine)
    code = [put("ecall"), put("addi", rd=6, rs1=6, imm=1), 0, put("jal", rd=0, imm=-12)]
    program(machine, code, AREA)
    handler = [
        put("csrr", rd=7, csr=0x341),
        put("addi", rd=7, rs1=7, imm=4),
        put("csrrw", rd=0, rs1=7, csr=0x341),
        put("addi", rd=5, rs1=5, imm=1),
        put("mret"),
    ]
    program(machine, handler, AREA + 0x100)
    page(machine, 0, AREA)
    state(machine, pc=RAM, priv=S, mtvec=RAM + 0x100, pmpaddr0=(1 << 54) - 1, pmpcfg0=0x1F)
    request = Request(budget=6000)
    cause, _, _, steps = launch(machine, request)
    guest = machine.virtualizer.machines[1].harts[0]  # type: ignore[union-attr]
    assert cause is Cause.BUDGET and steps >= 6000
    assert guest["t0"] > 800 and guest.mcause in (Exception_.ECALL_S, Exception_.ILLEGAL)
    assert machine.virtualizer.exits == {Cause.BUDGET: 1}  # type: ignore[union-attr]


def test_state_in_the_block_is_the_machines() -> None:
    """What a monitor reads there is the hart's state, what it changes there is the hart's from the next launch on, and
    what a CSR cannot hold becomes what a write would make of it.
    """
    machine = host()
    program(machine, [put("addi", rd=5, rs1=5, imm=1), put("jal", rd=0, imm=-4)], AREA)
    page(machine, 0, AREA)
    state(machine, pc=RAM, priv=M, x5=1000)
    request = Request(budget=100)
    launch(machine, request)
    guest = machine.virtualizer.machines[1].harts[0]  # type: ignore[union-attr]
    saved = machine.ram.read(BLOCK + STATE_AT, SIZE)
    assert saved == bytes(guest.block[:SIZE])
    request.flags = 0
    state(machine, x5=5, satp=15 << 60 | 5, mtvec=RAM | 3, priv=7)
    launch(machine, request)
    assert 50 <= guest["t0"] <= 60
    assert guest.satp == 0 and guest.mtvec & 2 == 0 and guest.priv == M
    machine.ram.write(BLOCK + STATE_AT, saved)
    launch(machine, request)
    assert 1095 <= guest["t0"] <= 1110


def test_interrupt_of_the_monitors_ends_a_launch() -> None:
    """One that is pending and enabled at the launching hart leaves the machine, also where the hart takes none now."""
    machine = host()
    program(machine, [STAND], AREA)
    page(machine, 0, AREA)
    state(machine, pc=RAM, priv=M)
    machine.harts[0].mie = 1 << 7
    machine.bus.write(0x200_4000, 8, machine.mtime() + 5)  # mtimecmp: 500 ns
    cause, _, _, steps = launch(machine, Request(budget=0))
    assert cause is Cause.INTERRUPT and 400 < steps < 600


WRONG = [
    (Request(f=0), 0x00),
    (Request(f=8 << 60 | (ROOT + PAGE) // FRAME), 0x00),
    (Request(f=8 << 60 | 1), 0x00),
    (Request(f=9 << 60 | ROOT // FRAME), 0x00),
    (Request(number=0), 0x08),
    (Request(number=MACHINES + 1), 0x08),
    (Request(memory=MEMORY + 1), 0x10),
    (Request(memory=1 << 50), 0x10),
    (Request(memory=PAGE), 0x10),
    (Request(harts=0), 0x18),
    (Request(harts=9), 0x18),
    (Request(flags=0), 0x20),
    (Request(flags=8 | 1), 0x20),
    (Request(flags=2 | 1), 0x20),
]


@pytest.mark.parametrize(("request_", "offset"), WRONG)
def test_vmrun_names_the_word_that_is_wrong(request_: Request, offset: int) -> None:
    """Nothing is launched, and the control block says where it is not as it must be."""
    assert launch(host(), request_)[:2] == (Cause.INVALID, offset)


def test_vmrun_is_illegal_without_the_extension_and_in_user_mode() -> None:
    """It traps there as any instruction that is not there."""
    for machine, priv in ((virt(16 * MiB), M), (virt(16 * MiB, isa="hv"), 0)):
        for name in ("vmrun", "vmend"):
            program(machine, [put(name, rs1=10)])
            hart = machine.harts[0]
            hart.pc, hart.priv, hart.mtvec = RAM, priv, RAM + PAGE
            hart.pmpaddr0, hart.pmpcfg0 = (1 << 54) - 1, 0x1F
            machine.run(1)
            assert hart.mcause == Exception_.ILLEGAL and hart.pc == RAM + PAGE


def test_control_block_outside_memory_is_an_access_fault() -> None:
    """So is one that is not aligned to a frame."""
    for block in (0x1000, RAM - PAGE, RAM + 16 * MiB, BLOCK + 8, 1 << 63):
        machine = host()
        hart = machine.harts[0]
        hart.pc, hart["a0"], hart.mtvec = RAM, block, RAM + 4
        machine.run(1)
        assert (hart.mcause, hart.mtval) == (Exception_.STORE_ACCESS, block)


def test_there_is_an_end_to_the_machines_that_a_guest_can_make() -> None:
    """Each machine launches as many as there are numbers; on the bare machine there are at most so many in all."""
    machine = host()
    program(machine, [STAND], AREA)
    page(machine, 0, AREA)
    state(machine, pc=RAM, priv=M)
    for number in range(1, MACHINES + 1):
        assert launch(machine, Request(number=number, budget=10))[0] is Cause.BUDGET
    machine.ram.machines = MOST
    assert launch(machine, Request(number=1, budget=10))[0] is Cause.BUDGET  # in place of another
    machine.ram.machines = MOST
    program(machine, [put("vmend", rs1=10), STAND])
    machine.harts[0].pc, machine.harts[0]["a0"] = RAM, 3
    machine.run(100)
    assert 3 not in machine.virtualizer.machines and machine.ram.machines == MOST - 1  # type: ignore[union-attr]


@pytest.mark.parametrize("engine", ENGINES)
def test_wild_blocks_and_maps_harm_nobody_else(engine: Engine) -> None:
    """A monitor on a virtual machine writes anything into its control blocks, maps and saved states, and launches: the
    machine beside it is as it was, and nothing of ours fails.
    """
    rng = random.Random(3)
    seen = set()
    outer = Monitor(virt(64 * MiB, isa="hv", engine=engine))
    beside = outer.create("beside", 8 * MiB)
    beside.ram.write(RAM, b"nobody else's" * 10_000)
    before = beside.digest()
    machine = outer.create("hostile", 16 * MiB)
    prepare(machine)
    code = [put("ld", rd=5, rs1=10, imm=0), put("add", rd=10, rs1=10, rs2=12), put("sd", rs1=10, rs2=5, imm=0)]
    program(machine, [*code, put("jal", rd=0, imm=-12)], AREA)
    leaves = array("Q", ((AREA + n * PAGE) // FRAME << 10 | LEAF | R | W | X for n in range(512))).tobytes()
    for _ in range(round(100 * SCALE)):
        prepare(machine)
        machine.ram.write(LOWER, leaves)
        state(machine, pc=RAM, priv=M, x10=RAM, x12=rng.choice((8, PAGE, MEMORY)))
        places = [ROOT, MIDDLE, LOWER, LOWER + 8, LOWER + 8 * rng.randrange(512)]
        places += [BLOCK + STATE_AT + 8 * rng.randrange(SIZE // 8) for _ in range(4)]
        for at in rng.sample(places, rng.randrange(4)):
            value = rng.choice(
                (rng.getrandbits(64), rng.getrandbits(34) << 10 | rng.getrandbits(8), rng.getrandbits(12))
            )
            word(machine, at, value)
        request = Request(flags=rng.choice((1, 1, 1, 0, 5)), budget=rng.choice((1, 100, 3000)), idle=0)
        if rng.random() < 0.2:
            setattr(
                request, rng.choice(("f", "number", "memory", "harts", "flags")), rng.getrandbits(rng.randrange(64))
            )
        seen.add(launch(machine, request)[0])
        if rng.random() < 0.3:
            word(machine, BLOCK + 0x20, 0)
            again(machine)
        cause = machine.ram.read(BLOCK + RESULT_AT, 1)[0]
        assert cause in set(Cause)
    machine.digest()
    assert beside.digest() == before
    assert {Cause.BUDGET, Cause.FAULT, Cause.WILD, Cause.INVALID} <= seen
