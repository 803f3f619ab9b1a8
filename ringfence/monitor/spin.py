"""Idle loops without WFI: told from work, and passed over.

A hart spins where the instructions from its pc lead back to it, change no register, and ask for registers and jumps
alone. Then nothing changes before the next event, input or turn but the count of steps, so whole rounds need not be
executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from ringfence.isa.spec import decode
from ringfence.isa.trap import pending
from ringfence.machine.board import Virt
from ringfence.machine.engine.reference import value_of
from ringfence.machine.exit import Budget, Exit
from ringfence.machine.hart import FIELDS, SIZE, Hart
from ringfence.machine.look import PAGE, Look, VirtualMemory
from ringfence.word import Int, Word

LONGEST = 8
"""Instructions of a loop that is recognized."""
UNSEEN = 15
"""Slices in which a machine that was found to work is not looked at, unless it stands just where it stood."""
_ALL = (1 << 64) - 1
_SCRATCH = FIELDS["x"].offset + 32 * 8
"""What is written to x0; no state."""


class _Works(Exception):
    """An instruction does more than go round."""


class _Jumps:
    """The effect `m` of rows that only jump."""

    def __init__(self, pc: int, link: int) -> None:
        self._pc, self.next = pc, link

    def branch(self, offset: Word, when: Word | None = None) -> None:
        if when is None or value_of(when):
            self.next = self._pc + value_of(offset) & _ALL

    def jump(self, target: Word) -> None:
        self.next = value_of(target)

    def __getattr__(self, name: str) -> NoReturn:
        raise _Works


def loop(machine: Virt, hart: Hart) -> int | None:
    """The number of instructions of the loop in which a hart spins; None: it does not."""
    memory = VirtualMemory(machine, hart)
    pages: dict[int, bytes] = {}

    def half(va: int) -> int:
        page = va & -PAGE
        if page not in pages:
            pages[page] = memory.read(page, PAGE)
        at = va - page
        return int.from_bytes(pages[page][at : at + 2], "little")  # where there is nothing: 0, which is illegal

    start = pc = hart.pc
    before = hart.x.tolist()
    x = list(before)
    for count in range(1, LONGEST + 1):
        found = decode(half(pc) | half(pc + 2 & _ALL) << 16)
        if found is None:
            return None
        row, operands, length = found
        if row.floating or not {"h", "f"}.isdisjoint(row.params):
            return None
        link = pc + length & _ALL
        jumps = _Jumps(pc, link)
        known = {"m": jumps, "pc": Int(pc), "link": Int(link)}
        known |= {n: Int(x[value] if n.startswith("rs") else value) for n, value in operands.items()}
        try:
            result = row.meaning(*(known[name] for name in row.params))
        except _Works:
            return None
        if operands.get("rd") and result is not None:
            x[operands["rd"]] = value_of(result)
        pc = jumps.next
        if pc == start:
            goes_on = x == before and not value_of(pending(Look(machine, hart)))  # type: ignore[arg-type]
            return count if goes_on else None
    return None


Stood = Sequence[tuple[int, bytes]]
"""Of each hart: its pc and its registers."""


def stand(machine: Virt) -> Stood:
    """Where the harts stand now."""
    return [(hart.pc, bytes(hart.block[:_SCRATCH])) for hart in machine.harts]


def near(before: Stood, now: Stood) -> bool:
    """Whether harts that stood and stand so may spin, so that a closer look, which takes longer, is worth it."""
    return len(before) == len(now) and all(
        abs(was - pc) <= 4 * LONGEST for (was, _), (pc, _) in zip(before, now, strict=True)
    )


def spins(machine: Virt) -> bool:
    """Whether every hart that can run spins."""
    if machine.breakpoints:
        return False
    awake = [h for h in machine.harts if not h.stopped and not (h.waiting and not (h.mip | h.lines) & h.mie)]
    return bool(awake) and all(loop(machine, hart) is not None for hart in awake)


def skip(machine: Virt, ns: int, most: int) -> tuple[int, Exit]:
    """Pass over up to `ns` of guest time (virtual clock) in which the harts spin: the number of steps that were not
    executed, and why it ended. At most `most` others are: once a turn each hart goes round for real, through its check
    points.
    """
    clock = machine.clock
    total, end, skipped = ns // clock.step_ns, clock.steps + most, 0
    while skipped < total and spins(machine):
        number = machine.current
        hart = machine.harts[number]
        length = loop(machine, hart)
        if length is None or clock.steps - skipped + length > end:
            break
        before = _state(hart)
        ended = machine.run(length, idle=0)
        if not isinstance(ended, Budget):
            return skipped, ended
        if machine.current != number:
            continue
        if _state(hart) != before:
            break
        event = clock.next_step() - clock.steps
        room = min(total - skipped, event, machine.turn_end - clock.steps)
        if room >= length:
            clock.steps += room // length * length
            skipped += room // length * length
        if min(total - skipped, event) < length:
            break
    return skipped, Budget(clock.steps)


def _state(hart: Hart) -> bytes:
    return bytes(hart.block[:_SCRATCH]) + bytes(hart.block[_SCRATCH + 8 : SIZE])
