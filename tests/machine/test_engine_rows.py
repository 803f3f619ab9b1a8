"""Every row from random machine states: the threaded engine against the reference."""

from __future__ import annotations

import random

import pytest
from states import (
    CODE,
    DATA,
    END,
    MEMORY,
    SCALE,
    SELF,
    TABLES,
    Layout,
    aim,
    difference,
    instruction,
    listing,
    machine,
    rows,
    scramble,
)

from ringfence.isa.spec import Row
from ringfence.machine.board import RAM, Tlb, Virt
from ringfence.machine.hart import SIZE

CASES = max(1, round(24 * SCALE))
PLACES = (0, 0, 2, 6, 64, 2046, 4088, 4090, 4092, 4094, 4094)
"""Offsets in the page at which the instruction is put."""
LENGTHS = (1, 1, 1, 2, 3, 7, 40)
"""How many steps, at least, are taken."""
IDLE = SELF.to_bytes(2, "little") * 2048


class Pair:
    """Two machines in the same state."""

    def __init__(self, sets: int, tlb: Tlb = "hardware") -> None:
        self.reference, self.threaded = machine(tlb=tlb), machine(sets, tlb=tlb)

    def both(self) -> tuple[Virt, Virt]:
        return self.reference, self.threaded

    def write(self, page: int, data: bytes) -> None:
        for board in self.both():
            board.ram.write(RAM + page * 4096, data)

    def begin(self, rng: random.Random) -> Layout:
        """A random state, no program yet."""
        for board in self.both():
            clock = board.clock
            board.clock.steps = board.clock.idle_ns = 0
            for _, device, kind, number in clock.pending():
                clock.cancel(device, kind, number)
            for _, _, device in board.bus.windows():
                device.reset()
            board.status, board.reset_wanted, board.wanted, board.at_check_point = None, False, False, False
        layout = scramble(rng, self.reference.harts[0])
        for page in range(CODE, DATA):
            self.write(page, IDLE)
        for page in range(DATA, TABLES):
            self.write(page, rng.randbytes(4096))
        for page in range(TABLES, END):
            self.write(page, layout.frames.get(page, bytes(4096)))
        return layout

    def ready(self) -> None:
        """The threaded machine's hart becomes the other's equal."""
        for board in self.both():
            board.harts[0].block[:SIZE] = self.reference.harts[0].block[:SIZE]
            board.timer(board.harts[0])
            board.protection(board.harts[0])


def assemble(rng: random.Random, pair: Pair, layout: Layout, chosen: list[Row]) -> list[int]:
    """Put instructions at the hart's pc, each with operands that suit it."""
    hart = pair.reference.harts[0]
    words = [instruction(rng, row) for row in chosen]
    for word in reversed(words):
        if rng.random() < 0.9:
            aim(rng, layout, hart, word)
    code = b"".join(w.to_bytes(r.length, "little") for w, r in zip(words, chosen, strict=True))
    offset = rng.choice(PLACES)
    hart.pc = layout.code + offset & (1 << 64) - 1
    for board in pair.both():
        board.ram.write(RAM + offset, code)
    return words


def compare(pair: Pair, steps: int, words: list[int], name: str) -> None:
    before = listing(pair.reference.harts[0], words)
    ends = [board.run(until=steps) for board in pair.both()]
    found = difference(*pair.both(), END * 4096)
    if ends[0] != ends[1]:
        found.append(f"ends: {ends}")
    assert not found, "\n".join([name, before, *found])


@pytest.mark.parametrize(("sets", "tlb"), [(1, "hardware"), (16, "hardware"), (256, "hardware"), (16, "software")])
def test_engine_rows_agree(sets: int, tlb: Tlb) -> None:
    """Each row, from random operands and machine states, leaves the same state in the reference and the threaded
    engine.
    """
    pair = Pair(sets, tlb)
    for row in rows():
        for case in range(-(-CASES // 3)):
            rng = random.Random(f"{row.name} {sets} {case}" if tlb == "hardware" else f"{row.name} {tlb} {case}")
            layout = pair.begin(rng)
            words = assemble(rng, pair, layout, [row])
            pair.ready()
            compare(pair, rng.choice(LENGTHS), words, f"{row.name}, case {case}, {sets} sets")
    assert not difference(*pair.both(), MEMORY)


@pytest.mark.parametrize("tlb", ["hardware", "software"])
def test_engine_runs_of_rows_agree(tlb: Tlb) -> None:
    """A few random rows in a row leave the same state in the reference and the threaded engine."""
    pair = Pair(256, tlb)
    every = rows()
    for case in range(round(2500 * SCALE)):
        rng = random.Random(f"few {case}" if tlb == "hardware" else f"few {tlb} {case}")
        layout = pair.begin(rng)
        words = assemble(rng, pair, layout, rng.choices(every, k=rng.randrange(2, 12)))
        pair.ready()
        compare(pair, rng.choice((4, 8, 16)), words, f"case {case}")
    assert not difference(*pair.both(), MEMORY)
