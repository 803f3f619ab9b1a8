"""Harts one by one: which of them go on, and what each has counted."""

from __future__ import annotations

import random

import pytest

from ringfence import CORRAL, Break, Budget, Idle, MiB, Virt, load, virt
from ringfence.isa.spec import ISA
from ringfence.isa.trap import Irq, Status
from ringfence.machine.board import ACLINT, RAM, ROM
from ringfence.machine.look import CSR_NUMBERS, Look

ENGINES = ("threaded", "reference")
ONES = (1 << 64) - 1
LOOP = (
    ISA["addi"].encode(rd=5, rs1=5, imm=1),
    ISA["csrrs"].encode(rd=6, rs1=0, csr=CSR_NUMBERS["mcycle"]),
    ISA["csrrs"].encode(rd=7, rs1=0, csr=CSR_NUMBERS["minstret"]),
    ISA["jal"].encode(rd=0, imm=-12),
)


def loops(engine: str, harts: int = 3, turn: int = 500) -> Virt:
    """Every hart goes round LOOP in M-mode: t0 rounds, with its counters in t1 and t2."""
    board = virt(4 * MiB, harts, turn=turn, engine=engine)  # type: ignore[arg-type]
    board.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in LOOP))
    for hart in board.harts:
        hart.pc = RAM
    return board


def taken(board: Virt, number: int) -> int:
    """The steps that a hart has taken in LOOP."""
    hart = board.harts[number]
    return hart["t0"] * 4 - (RAM - hart.pc & 15) // 4


@pytest.mark.parametrize("engine", ENGINES)
def test_hart_steps_at_once_and_alone(engine: str) -> None:
    """Whoever has the turn: it is one step of the machine, at a breakpoint too."""
    board = loops(engine)
    board.run(10_007)
    board.breakpoints |= {RAM + 4 * n for n in range(4)}
    for n, number in enumerate((2, 0, 1, 1, 2, 0), 1):
        before = [taken(board, each) for each in range(3)]
        assert board.run(step=number, harts=[number] if n % 2 else None) == Budget(10_007 + n)
        before[number] += 1
        assert [taken(board, each) for each in range(3)] == before and board.current == number


@pytest.mark.parametrize("engine", ENGINES)
def test_harts_that_are_not_chosen_stand(engine: str) -> None:
    """The others take their turns among themselves; with none nothing goes on, and all can be let go again."""
    board = loops(engine)
    board.run(700)
    stands = taken(board, 1)
    assert board.run(60_000, harts=(0, 2)) == Budget(60_700)
    assert taken(board, 1) == stands and min(taken(board, 0), taken(board, 2)) > 29_000
    assert isinstance(board.run(harts=()), Idle)
    assert board.run(60_000) == Budget(120_700)
    assert taken(board, 1) > stands + 19_000


@pytest.mark.parametrize("engine", ENGINES)
def test_stepping_whoever_has_the_turn_changes_nothing(engine: str) -> None:
    """Turns come and go in between as ever: a run in single steps ends as one in one piece."""
    boards = []
    for _ in range(2):
        board = virt(16 * MiB, 3, turn=300, engine=engine)  # type: ignore[arg-type]
        load(board, CORRAL)
        board.uart.receive(b"harts\nuptime\n")
        board.run(30_000)
        boards.append(board)
    stepped, plain = boards
    while stepped.steps < 32_000:
        assert isinstance(stepped.run(step=stepped.current), Budget)
    plain.run(stepped.steps - plain.steps)
    assert stepped.digest() == plain.digest()


@pytest.mark.parametrize("engine", ENGINES)
def test_hart_that_waits_steps_when_it_is_woken(engine: str) -> None:
    """The others go on until then; where they stand nothing is left to come."""
    board = loops(engine, 2)
    wake = ISA["sw"].encode(rs1=8, rs2=9, imm=0), ISA["jal"].encode(rd=0, imm=0)
    delay = ISA["addi"].encode(rd=9, rs1=9, imm=-1), ISA["bne"].encode(rs1=9, rs2=0, imm=-4)
    last = ISA["addi"].encode(rd=9, rs1=0, imm=1)
    board.ram.write(RAM + 64, b"".join(word.to_bytes(4, "little") for word in (*delay, last, *wake)))
    first, second = board.harts
    first.pc, first["s0"], first["s1"] = RAM + 64, ACLINT + 4, 100_000
    second.waiting, second.mie = 1, 1 << Irq.MSI
    assert isinstance(board.run(step=1, harts=[1]), Idle) and board.steps == 0
    ended = board.run(step=1)
    assert isinstance(ended, Budget) and 200_002 < ended.steps < 200_002 + 1000
    assert second.pc == RAM + 4 and board.current == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_step_may_be_an_interrupt(engine: str) -> None:
    """That is pending where the hart gets its turn: it stands at the handler then."""
    board = loops(engine)
    hart = board.harts[1]
    hart.mie, hart.mtvec, hart.mstatus = 1 << Irq.MSI, RAM + 64, hart.mstatus | 1 << Status.MIE
    board.bus.write(ACLINT + 4, 4, 1)
    assert board.run(step=1) == Budget(1)
    assert (hart.pc, hart.mepc) == (RAM + 64, RAM)


@pytest.mark.parametrize("engine", ENGINES)
def test_reset_lets_no_hart_go_that_stands(engine: str) -> None:
    """Though the turn is hart 0's then."""
    board = loops(engine)
    board.reset()
    assert board.run(100, harts=[1]) == Budget(100)
    assert [board.csr("mcycle", number) for number in range(3)] == [0, 100, 0]
    assert board.harts[0].pc == board.harts[2].pc == ROM


@pytest.mark.parametrize("engine", ENGINES)
def test_breakpoint_that_was_reported_is_passed_after_others_went_on(engine: str) -> None:
    """The hart has not moved in between; the next time round it is met."""
    board = loops(engine)
    board.harts[0].pc = RAM + 64
    board.ram.write(RAM + 64, b"".join(word.to_bytes(4, "little") for word in LOOP))
    board.breakpoints.add(RAM + 64)
    assert board.run() == Break(0, 0, RAM + 64)
    assert board.run(step=2) == Budget(1)
    assert board.run(2000, harts=(1, 2)) == Budget(2001)
    assert isinstance(board.run(), Break) and board.harts[0]["t0"] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_counters_are_right_whoever_has_the_turn(engine: str) -> None:
    """Read from outside at any time, and by the hart itself; what is written stays, inhibited or not."""
    rng, board = random.Random(1), loops(engine)
    names = {"mcycle": ("cycle", 1, "t1"), "minstret": ("instret", 4, "t2")}
    ahead = {(name, number): 0 for name in names for number in range(3)}  # of the steps; or what an inhibited one is
    inhibited = dict.fromkeys(ahead, False)

    def expected(name: str, number: int) -> int:
        return ahead[name, number] + (0 if inhibited[name, number] else taken(board, number)) & ONES

    for _ in range(150):
        number, name = rng.randrange(3), rng.choice([*names])
        look = Look(board, board.harts[number])
        kind = rng.randrange(4)
        if kind == 0:
            value = rng.choice((0, ONES, rng.getrandbits(64)))
            look.set_csr(name, value)
            ahead[name, number] = value - (0 if inhibited[name, number] else taken(board, number))
        elif kind == 1:
            chosen = rng.choice((0, 1, 4, 5))
            values = {each: expected(each, number) for each in names}
            look.set_csr("mcountinhibit", chosen)
            for each, (_, bit, _) in names.items():
                inhibited[each, number] = bool(chosen & bit)
                ahead[each, number] = values[each] - (0 if chosen & bit else taken(board, number))
        else:
            board.run(rng.choice((1, rng.randrange(700), 5000)), step=rng.choice((None, None, number)))
        for each, at in ahead:
            assert board.csr(each, at) == board.csr(names[each][0], at) == expected(each, at)
    for number, hart in enumerate(board.harts):
        while hart.pc != RAM + 12:
            board.run(step=number)
        for back, (name, (_, _, register)) in zip((2, 1), names.items(), strict=True):
            assert hart[register] == board.csr(name, number) - (0 if inhibited[name, number] else back) & ONES
