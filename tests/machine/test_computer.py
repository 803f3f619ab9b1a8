"""The computer: exact runs, turns, digests, and the host's clock."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any, Literal

import pytest

from ringfence import CORRAL, Budget, Deadline, MachineError, MiB, PowerOff, Virt, load, virt
from ringfence.isa import pmp
from ringfence.isa.csr import CSRS
from ringfence.isa.spec import ISA, X_NAMES
from ringfence.isa.trap import Cause, Irq, Status
from ringfence.machine.board import ACLINT, FINISHER, RAM
from ringfence.machine.clock import NEVER, Alarm, Clock, Source
from ringfence.machine.device.aclint import MTIME, MTIMECMP
from ringfence.machine.device.syscon import PASS
from ringfence.machine.digest import Transcript
from ringfence.machine.engine.threaded import Threaded

EngineName = Literal["reference", "threaded"]
ENGINES: tuple[EngineName, ...] = ("reference", "threaded")
STEPS = 400_000
"""The commands are not through yet."""
COMMANDS = b"harts\nuptime\nrun fault\nselftest\n"
NUMBERS = {line.name: number for number, line in CSRS.items()}


def corral(harts: int = 1, engine: EngineName = "threaded", seed: int | None = None) -> Virt:
    board = virt(16 * MiB, harts, engine=engine, seed=seed)
    load(board, CORRAL)
    board.uart.receive(COMMANDS)
    return board


def machine(engine: EngineName, *code: int, clock: Source = "virtual") -> Virt:
    """A machine in M-mode at the first of these instructions."""
    board = virt(4 * MiB, engine=engine, clock=clock)
    board.ram.write(RAM, struct.pack(f"<{len(code)}I", *code))
    board.harts[0].pc = RAM
    return board


def asm(name: str, **operands: int | str) -> int:
    values = {
        k: (X_NAMES.index(v) if v in X_NAMES else NUMBERS[v]) if isinstance(v, str) else v for k, v in operands.items()
    }
    return ISA[name].encode(**values)


def run_in_pieces(board: Virt, pieces: Iterator[int], steps: int = STEPS) -> None:
    while board.steps < steps:
        length = min(next(pieces), steps - board.steps)
        before = board.steps
        assert board.run(length) == Budget(before + length)


@pytest.mark.parametrize("harts", [1, 3])
def test_run_stops_at_exactly_n_steps_and_nothing_tells_where(harts: int) -> None:
    """However a run is cut, each piece has the steps that were asked for, and the end is the same."""
    whole = corral(harts)
    assert whole.run(STEPS) == Budget(STEPS)
    draw = random.Random(harts)
    for pieces in (cycle([77_777]), iter(lambda: draw.choice((1, 2, 500, 2049, 100_000)), 0)):
        board = corral(harts)
        run_in_pieces(board, pieces)
        assert board.digest() == whole.digest()


@pytest.mark.parametrize(("harts", "seed"), [(1, None), (3, 7)])
def test_engines_end_in_one_digest(harts: int, seed: int | None) -> None:
    """The reference and the threaded engine agree in all that the digest is taken over, part-way and at the end."""
    boards = [corral(harts, engine, seed) for engine in ENGINES]
    for _ in range(2):
        for board in boards:
            board.run(150_000)
        assert boards[0].digest() == boards[1].digest()


@pytest.mark.parametrize("engine", ENGINES)
def test_seed_decides_the_turns(engine: EngineName) -> None:
    """One seed gives one course, again and again; others give others; and with none all turns are as long."""
    counting = asm("addi", rd="a0", rs1="a0", imm=1), asm("jal", rd="zero", imm=-4)

    def counts(seed: int | None) -> tuple[int, ...]:
        board = virt(4 * MiB, 3, engine=engine, turn=500, seed=seed)
        board.ram.write(RAM, struct.pack("<2I", *counting))
        for hart in board.harts:
            hart.pc = RAM
        assert board.run(15_000) == Budget(15_000)
        return tuple(hart["a0"] for hart in board.harts)

    assert counts(None) == (2500, 2500, 2500)
    drawn = [counts(seed) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert all(sum(each) in (7499, 7500, 7501) and min(each) > 1000 for each in drawn)


def test_what_engines_derive_is_invisible() -> None:
    """TLBs of another size, a small room for code, and all of both dropped now and then, change nothing."""
    plain, other = corral(2), corral(2)
    plain.run(STEPS)
    other.engine = engine = Threaded(other, sets=32, code_bytes=1 << 20)
    for _ in range(20):
        other.run(STEPS // 20)
        engine.native.everything()
    assert other.digest() == plain.digest()


def test_digest_tells_everything_that_a_guest_can_tell() -> None:
    """A byte of memory, a register, a chip's state, a step, time and a printed byte each make another digest."""

    def change(board: Virt, what: str) -> None:
        if what == "memory":
            board.ram.write(RAM + 5 * MiB, b"\x01")
        elif what == "register":
            board.harts[0]["s11"] ^= 1
        elif what == "chip":
            board.uart.write(7, 1, 0x55)
        elif what == "step":
            board.run(1)
        elif what == "time":
            board.clock.idle_ns += 1
        elif what == "console":
            board.console.write(b"x")

    digests = set()
    for what in ("nothing", "memory", "register", "chip", "step", "time", "console"):
        board = corral()
        board.run(50_000)
        change(board, what)
        assert board.digest() == board.digest()
        digests.add(board.digest())
    assert len(digests) == 7


def test_digest_takes_no_memory() -> None:
    """Frames that were never written are not touched; ones that hold zeros again count as if they were not either."""
    board = virt(64 * MiB)
    before = board.digest()
    assert list(board.ram.frames()) == []
    board.ram.write(RAM + 0x5678, b"\x01")
    assert board.digest() != before
    assert [number for number, _ in board.ram.frames()] == [5]
    board.ram.write(RAM + 0x5678, b"\x00")
    assert board.digest() == before


def test_transcript_does_not_depend_on_the_pieces() -> None:
    """What was printed has one digest, whether it came by the byte or at once, and each prefix has another."""
    text = bytes(range(256)) * 50
    whole, pieces = Transcript(), Transcript()
    whole.update(text)
    seen = set()
    for at in range(0, len(text), 100):
        pieces.update(text[at : at + 100])
        seen.add(pieces.digest())
    assert pieces.digest() == whole.digest()
    assert len(seen) == len(text) // 100
    assert len(whole.rest) < 4096


@pytest.mark.parametrize("engine", ENGINES)
def test_protection_holds_from_the_next_instruction_on(engine: EngineName) -> None:
    """A program that closes all of memory to U-mode, and enters U-mode in the same run, faults there at once."""
    board = machine(
        engine,
        asm("auipc", rd="t0", imm=0),
        asm("addi", rd="t0", rs1="t0", imm=24),
        asm("csrrw", rd="zero", rs1="t0", csr="mepc"),
        asm("csrrwi", rd="zero", uimm=0, csr="pmpcfg0"),
        asm("mret"),
        asm("jal", rd="zero", imm=0),
        asm("jal", rd="zero", imm=0),
    )
    hart = board.harts[0]
    hart.pmpaddr0, hart.pmpcfg0 = (1 << pmp.ADDRESS_BITS - 2) - 1, pmp.NAPOT | pmp.R | pmp.W | pmp.X
    board.protection(hart)
    board.run(10_000)
    assert (hart.mcause, hart.mtval) == (Cause.FETCH_ACCESS, 0)
    assert board.csr("minstret") == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_wfi_goes_on_with_an_interrupt_pending(engine: EngineName) -> None:
    """WFI does not wait for what is pending already, though interrupts are off; no time is jumped over."""
    board = machine(
        engine,
        asm("csrrsi", rd="zero", uimm=1 << Irq.SSI, csr="mip"),
        asm("csrrsi", rd="zero", uimm=1 << Irq.SSI, csr="mie"),
        asm("addi", rd="t0", rs1="t0", imm=1),
        asm("wfi"),
        asm("jal", rd="zero", imm=-8),
    )
    assert board.run(30_002) == Budget(30_002)
    assert board.harts[0]["t0"] == 10_000
    assert board.clock.now() == 30_002


TIMER = (
    asm("auipc", rd="t0", imm=0),
    asm("addi", rd="t0", rs1="t0", imm=56),
    asm("csrrw", rd="zero", rs1="t0", csr="mtvec"),
    asm("lui", rd="t1", imm=ACLINT + MTIMECMP),
    asm("lui", rd="t2", imm=ACLINT + MTIME + 8),
    asm("lui", rd="t4", imm=400 << 10),  # 41 ms in ticks
    asm("ld", rd="t3", rs1="t2", imm=-8),
    asm("add", rd="t3", rs1="t3", rs2="t4"),
    asm("addi", rd="t4", rs1="zero", imm=1 << Irq.MTI),
    asm("csrrs", rd="zero", rs1="t4", csr="mie"),
    asm("csrrsi", rd="zero", uimm=1 << Status.MIE, csr="mstatus"),
    asm("sd", rs1="t1", rs2="t3", imm=0),
    asm("addi", rd="a0", rs1="a0", imm=1),
    asm("jal", rd="zero", imm=-4),
    # the handler
    asm("lui", rd="t5", imm=FINISHER),
    asm("lui", rd="t6", imm=PASS & ~0xFFF),
    asm("addi", rd="t6", rs1="t6", imm=PASS & 0xFFF),
    asm("sw", rs1="t5", rs2="t6", imm=0),
)
"""Sets its timer, then loops until it interrupts, and switches the machine off."""


@pytest.mark.parametrize("engine", ENGINES)
def test_timer_interrupts_a_busy_loop_by_the_hosts_clock(engine: EngineName) -> None:
    """Nothing but the alarm ends native code there, and the timer was set after it had begun."""
    board = machine(engine, *TIMER, clock="host")
    began = time.monotonic()
    assert isinstance(board.run(until=10_000_000_000), PowerOff)
    assert 0.04 <= time.monotonic() - began < 2
    assert board.harts[0]["a0"] > 100


@pytest.mark.parametrize("engine", ENGINES)
def test_run_until_ends_a_busy_loop_by_the_hosts_clock(engine: EngineName) -> None:
    """A guest time to run until is kept though the guest never rests; the clock stands still between runs."""
    board = machine(engine, asm("jal", rd="zero", imm=0), clock="host")
    for _ in range(3):
        stood = board.clock.now()
        time.sleep(0.01)
        assert board.clock.now() == stood
        assert isinstance(board.run(until=stood + 20_000_000), Deadline)
        assert stood + 20_000_000 <= board.clock.now() < stood + 2_000_000_000


@pytest.mark.parametrize("engine", ENGINES)
def test_run_until_ends_a_loop_of_traps_by_the_hosts_clock(engine: EngineName) -> None:
    """Native code is left at each, before it comes to a check point of its own."""
    board = machine(engine, 0, clock="host")
    board.harts[0].mtvec = RAM
    bound = threading.Timer(5, board.stop)
    bound.start()
    assert isinstance(board.run(until=20_000_000), Deadline)
    bound.cancel()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"steps": -1}, MachineError),
        ({"steps": 1.5}, TypeError),
        ({"until": -1}, MachineError),
        ({"until": 1e9}, TypeError),
        ({"until": "soon"}, TypeError),
    ],
)
def test_run_takes_whole_numbers(arguments: dict[str, Any], error: type[Exception]) -> None:
    """Anything else is refused before a step."""
    board = corral()
    with pytest.raises(error, match=rf"whole number of .* not {next(iter(arguments.values()))!r}$"):
        board.run(**arguments)
    assert board.steps == 0


def test_waiting_by_the_hosts_clock_costs_nothing() -> None:
    """While every hart waits the host's processor does too."""
    board = machine("threaded", asm("wfi"), asm("jal", rd="zero", imm=-4), clock="host")
    worked = time.process_time()
    assert isinstance(board.run(until=500_000_000), Deadline)
    assert time.process_time() - worked < 0.2


def test_alarm_rings_at_the_earliest_time_that_it_was_given() -> None:
    """Once for each time set; an earlier one counts, a later one asked for by `hasten` does not."""
    clock = Clock("host")
    clock.start()
    rung: list[int] = []

    def ring() -> None:
        rung.append(clock.now())

    with Alarm(ring) as alarm:
        assert alarm.set(clock, NEVER)
        assert alarm.set(clock, clock.now() + 10_000_000_000)
        soon = clock.now() + 20_000_000
        alarm.hasten(clock, soon)
        alarm.hasten(clock, soon + 10_000_000)
        deadline = time.monotonic() + 5
        while not rung and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(rung) == 1
        assert rung[0] >= soon
        assert not alarm.set(clock, clock.now() - 1)
