"""The walk and trap entry over plain numbers are the definition's."""

from __future__ import annotations

import random
from collections.abc import Callable

from states import MEMORY, SCALE, scramble

from ringfence import Virt, virt
from ringfence.isa import trap
from ringfence.isa.paging import Access, translate
from ringfence.isa.trap import Cause, Irq
from ringfence.machine.board import RAM, Tlb
from ringfence.machine.engine import plain
from ringfence.machine.engine.reference import Trap, value_of
from ringfence.machine.hart import SIZE
from ringfence.machine.memory import FRAME
from ringfence.word import Int

Walk = Callable[[Virt, int, Access], int]


def by_definition(machine: Virt, va: int, access: Access) -> int:
    return value_of(translate(machine.reference, Int(va), access))  # type: ignore[arg-type]


def by_numbers(machine: Virt, va: int, access: Access) -> int:
    return plain.walk(access)(machine.reference, machine.harts[0].words, va)


def outcome(machine: Virt, walk: Walk, va: int, access: Access) -> tuple[object, ...]:
    """Where it leads, or the exception; and all that it wrote."""
    try:
        found: object = walk(machine, va, access)
    except Trap as trap:
        found = trap.cause, trap.tval
    return found, machine.ram.read(RAM, 20 * FRAME), machine.harts[0].block[:SIZE].tobytes()


def agree(tlb: Tlb) -> int:
    """How many walks led somewhere."""
    rng = random.Random(f"walk {tlb}")
    machines = [virt(MEMORY, tlb=tlb) for _ in range(2)]
    led = 0
    for _ in range(round(80 * SCALE)):
        seed = rng.random()
        for machine in machines:
            layout = scramble(random.Random(seed), machine.harts[0])
            for page, data in layout.frames.items():
                machine.ram.write(RAM + page * FRAME, data)
            machine.protection(machine.harts[0])
            machine.reference.permission(machine.harts[0], RAM, 1, False)  # this hart it is about
        for _ in range(10):
            va = layout.pointer() if rng.random() < 0.8 else layout.target()
            for access in Access:
                expected = outcome(machines[0], by_definition, va, access)
                assert outcome(machines[1], by_numbers, va, access) == expected, hex(va)
                led += isinstance(expected[0], int)
    return led


def test_walk_over_numbers_is_the_definition() -> None:
    """In random states of hart, tables and protection: the same address or exception, the same bits set."""
    assert agree("hardware") > 300


def test_walk_over_numbers_finds_the_same_entries_of_a_tlb() -> None:
    """Where software fills it."""
    assert agree("software") > 100


def test_plain_trap_entry_is_the_definition() -> None:
    """From any state, for any cause, it leaves the same state, and goes to the same place."""
    rng = random.Random("entry")
    for n in range(round(300 * SCALE)):
        machine = virt(MEMORY, tlb=("hardware", "software")[n & 1])
        hart, reference = machine.harts[0], machine.reference
        scramble(rng, hart)
        before, interrupt = bytes(hart.block), rng.random() < 0.3
        cause = rng.choice(list(Irq if interrupt else Cause))
        tval = rng.getrandbits(64)
        reached = []
        for by_numbers_ in (False, True):
            hart.block[:] = before
            reference.permission(hart, RAM, 1, False)  # this hart it is about
            if by_numbers_:
                plain.enter(interrupt)(reference, hart.words, cause, tval, hart.pc)
            else:
                trap.enter(reference, Int(cause), Int(tval), Int(hart.pc), interrupt)  # type: ignore[arg-type]
            reached.append((reference._next, hart.block[:SIZE].tobytes()))
        assert reached[0] == reached[1]
