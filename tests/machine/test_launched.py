"""What a machine that was launched leaves undone where f has no answer, and machines on machines: nothing is done
twice, nothing is lost, nothing grows.
"""

from __future__ import annotations

from dataclasses import astuple

import pytest
from launching import (
    AREA,
    BLOCK,
    LEAF,
    LOWER,
    MIDDLE,
    STAND,
    Engine,
    R,
    Request,
    W,
    X,
    host,
    launch,
    page,
    prepare,
    program,
    put,
    state,
    word,
)

from ringfence import MiB, Virt, virt
from ringfence.guest import sbi
from ringfence.isa.trap import M, S
from ringfence.machine.board import RAM
from ringfence.machine.clock import Source
from ringfence.machine.launched import Launched
from ringfence.machine.memory import EXECUTE, FRAME, WRITE
from ringfence.machine.virtualizer import REQUEST, RESULT, RESULT_AT, Cause

ENGINES: tuple[Engine, ...] = ("threaded", "reference")
SIZE = 8 * MiB
INNER_BLOCK = AREA + BLOCK - RAM


def launched(machine: Virt) -> Launched:
    return machine.virtualizer.machines[1]  # type: ignore[union-attr]


class Inner:
    """The memory of the machine that `outer` gives, by its own addresses."""

    def __init__(self, machine: Virt) -> None:
        self.ram, self._of = self, machine.ram

    def write(self, pa: int, data: bytes) -> None:
        self._of.write(pa - RAM + AREA, data)

    def read(self, pa: int, length: int) -> bytes:
        return self._of.read(pa - RAM + AREA, length)


def outer(engine: Engine, *code: int) -> tuple[Virt, Virt]:
    """A machine with a monitor, all of whose machine's memory is in one piece from AREA; and that memory, with the same
    monitor in it, and `code` on its machine.
    """
    machine = virt(32 * MiB, isa="hv", engine=engine)
    prepare(machine)
    for n in range(512):
        page(machine, n, AREA + n * FRAME)
    for n in range(1, SIZE // (2 * MiB)):
        word(machine, MIDDLE + 8 * n, (AREA + n * 2 * MiB) // FRAME << 10 | LEAF | R | W | X)
    state(machine, pc=RAM, priv=M, x10=BLOCK)
    inner: Virt = Inner(machine)  # type: ignore[assignment]
    prepare(inner)
    page(inner, 0, AREA)
    program(inner, list(code), AREA)
    return machine, inner


def request(inner: Virt, wanted: Request) -> None:
    inner.ram.write(BLOCK, REQUEST.pack(*astuple(wanted)))


@pytest.mark.parametrize("engine", ENGINES)
def test_table_that_its_monitors_monitor_moves_counts_where_it_is(engine: Engine) -> None:
    """The frame with a table of an inner f is moved by the outer f; a change of the table is seen in its new place."""
    machine, inner = outer(engine, put("ld", rd=5, rs1=10, imm=0), put("jal", rd=0, imm=-4))
    for n in (1, 2):
        word(inner, AREA + n * FRAME, n)
    page(inner, 1, AREA + FRAME, R)
    state(inner, pc=RAM, priv=M, x10=RAM + FRAME)

    def read(flags: int) -> int:
        request(inner, Request(flags=flags, budget=50))
        state(machine, pc=RAM, x10=BLOCK)
        assert launch(machine, Request(memory=SIZE, budget=500, flags=flags))[0] is Cause.BUDGET
        return launched(launched(machine)).harts[0]["t0"]

    assert read(1) == 1
    elsewhere = RAM + 24 * MiB
    machine.ram.write(elsewhere, inner.ram.read(LOWER, FRAME))
    page(machine, (LOWER - RAM) // FRAME, elsewhere)
    assert read(0) == 1
    word(machine, elsewhere + 8, (AREA + 2 * FRAME) // FRAME << 10 | LEAF | R)
    assert read(0) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_launch_takes_the_same_steps_where_its_control_block_is_away(engine: Engine) -> None:
    """The outer monitor takes the frame with the inner control block away while the inner machine runs, and gives it
    back: the inner monitor is told what it would have been told.
    """
    told = []
    for away in (False, True):
        machine, inner = outer(engine, put("addi", rd=5, rs1=5, imm=1), put("jal", rd=0, imm=-4))
        request(inner, Request(budget=5000))
        state(inner, pc=RAM, priv=M)
        asked = Request(memory=SIZE, budget=2500)
        launch(machine, asked)
        asked.flags, asked.budget = 0, 10_000
        if away:
            n = (BLOCK - RAM) // FRAME
            page(machine, n, INNER_BLOCK, R)
            assert launch(machine, asked)[:3] == (Cause.FAULT, n * FRAME, WRITE)
            page(machine, n, INNER_BLOCK)
        launch(machine, asked)
        told.append((inner.ram.read(BLOCK + RESULT_AT, RESULT.size), launched(launched(machine)).digest()))
    assert told[0] == told[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_read_of_the_console_that_faults_takes_no_input(engine: Engine) -> None:
    """Where f has no answer for the buffer of a call of the firmware's, what was typed waits for the next launch."""
    machine = host(engine)
    machine.firmware = sbi.Sbi(machine)
    program(machine, [put("ecall"), STAND], AREA)
    page(machine, 0, AREA)
    state(machine, pc=RAM, priv=S)
    launch(machine, Request(flags=7, budget=1))
    machine.console.send("hello")
    state(machine, pc=RAM, x17=sbi.DBCN, x16=1, x10=100, x11=RAM + FRAME, x12=0)
    asked = Request(flags=6, budget=100)
    assert launch(machine, asked)[:3] == (Cause.FAULT, FRAME, WRITE)
    page(machine, 1, AREA + FRAME)
    assert launch(machine, asked)[0] is Cause.BUDGET
    assert machine.ram.read(AREA + FRAME, 6) == b"hello\0" and launched(machine).harts[0]["a1"] == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_start_that_faults_takes_no_input(engine: Engine) -> None:
    """The inner machine has the console; its control block may not be written yet. What was typed before is for it."""
    machine, inner = outer(engine, STAND)
    state(inner, pc=RAM, priv=M)
    request(inner, Request(flags=5, budget=100))
    n = (BLOCK - RAM) // FRAME
    page(machine, n, INNER_BLOCK, R)
    machine.console.send("hello")
    machine.harts[0].pc = RAM + 4  # where it stands still
    machine.run(10)
    asked = Request(memory=SIZE, budget=500, flags=5)
    assert launch(machine, asked)[:3] == (Cause.FAULT, n * FRAME, WRITE)
    page(machine, n, INNER_BLOCK)
    asked.flags = 4
    launch(machine, asked)
    assert launched(launched(machine)).uart.waiting == b"hello"


@pytest.mark.parametrize("engine", ENGINES)
def test_store_over_two_frames_that_faults_writes_nothing(engine: Engine) -> None:
    """The first is there and the second is not: what the monitor sees is memory as before the store."""
    machine = host(engine)
    program(machine, [put("sd", rs1=10, rs2=5, imm=0), STAND], AREA)
    page(machine, 0, AREA)
    page(machine, 1, AREA + FRAME)
    state(machine, pc=RAM, priv=M, x10=RAM + 2 * FRAME - 4, x5=(1 << 64) - 1)
    assert launch(machine, Request())[:3] == (Cause.FAULT, 2 * FRAME, WRITE)
    assert machine.ram.read(AREA + 2 * FRAME - 4, 4) == bytes(4)
    page(machine, 2, AREA + 2 * FRAME)
    launch(machine, Request(flags=0))
    assert machine.ram.read(AREA + 2 * FRAME - 4, 8) == b"\xff" * 8


def test_map_says_more_than_there_is_memory() -> None:
    """What f maps behind the machine's memory is nothing to anybody, who hashes the machine too."""
    machine = host()
    program(machine, [STAND], AREA)
    page(machine, 0, AREA)
    state(machine, pc=RAM, priv=M)
    launch(machine, Request())
    before = launched(machine).digest()
    for n in (2, 5, 511):
        word(machine, MIDDLE + 8 * n, AREA // FRAME << 10 | LEAF | R | W | X)
    assert launched(machine).digest() == before


def test_tables_that_are_none_any_more_are_forgotten() -> None:
    """A monitor puts one table after another in the same place of f: what we know of it does not grow."""
    machine = host()
    page(machine, 0, AREA, X)
    program(machine, [STAND], AREA)
    state(machine, pc=RAM, priv=M)
    launch(machine, Request(budget=1))
    for n in range(100):
        table = AREA + MiB + n * FRAME
        word(machine, table, AREA // FRAME << 10 | LEAF | X)
        word(machine, MIDDLE, table // FRAME << 10 | 1)
        assert launch(machine, Request(flags=0, budget=1))[0] is Cause.BUDGET
        assert len(list(launched(machine).ram.tables())) == 3
        assert len(machine.ram.derived.watchers) <= 3
    word(machine, MIDDLE, 0)
    assert launch(machine, Request(flags=0, budget=1))[:3] == (Cause.FAULT, 0, EXECUTE)


@pytest.mark.parametrize("clock", ["virtual", "host"])
def test_timer_of_a_machine_that_waits_comes(clock: Source) -> None:
    """Its time goes on while the hart that has launched it waits with it; under the host clock too, and over runs."""
    machine = virt(16 * MiB, isa="hv", clock=clock)
    prepare(machine)
    program(machine, [put("wfi"), put("addi", rd=5, rs1=5, imm=1), STAND], AREA)
    page(machine, 0, AREA)
    state(machine, pc=RAM, priv=M, mie=1 << 5, menvcfg=1 << 63, stimecmp=1_000_000)  # 100 ms
    machine.ram.write(BLOCK, REQUEST.pack(*astuple(Request(budget=0))))
    hart = machine.harts[0]
    hart.pc, hart["a0"] = RAM, BLOCK
    machine.run(until=60_000_000)
    if clock == "host":
        assert launched(machine).harts[0]["t0"] == 0
    machine.run(until=120_000_000)
    assert launched(machine).harts[0]["t0"] == 1 and hart.launched
