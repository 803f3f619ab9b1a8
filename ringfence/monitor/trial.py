"""A machine on which instructions are tried from any state, one at a time, in the reference reading."""

from __future__ import annotations

from array import array
from collections.abc import Set
from typing import TYPE_CHECKING, NamedTuple

from ringfence.isa.paging import PPN
from ringfence.machine.board import MEMORY_LEAST, RAM, virt
from ringfence.machine.hart import FIELDS, SIZE
from ringfence.machine.memory import FRAME, Derived
from ringfence.machine.virtualizer import MODE, REQUEST, START
from ringfence.monitor.virtual_state import CODE, HIDDEN, NOTHING, PC, TIME, Hidden, State

if TYPE_CHECKING:
    from ringfence.monitor.instance import Instance

Seen = tuple[object, ...]
"""What is visible of an outcome."""
MACHINE = 1
"""The number of a machine that stands there, launched by an instruction."""
_FIRST = RAM // FRAME
_X = slice(0, 32 * 8)
_F_PC = slice(FIELDS["f"].offset, FIELDS["priv"].offset)
_FCSR = slice(FIELDS["fflags"].offset, FIELDS["pmpcfg0"].offset)
_BEFORE = slice(FIELDS["priv"].offset, FIELDS["fflags"].offset)
_PMP = slice(FIELDS["pmpcfg0"].offset, FIELDS["reservation"].offset)
_RESERVATION = slice(FIELDS["reservation"].offset, FIELDS["waiting"].offset)
_BEHIND = slice(FIELDS["waiting"].offset, SIZE)
F_ROOT = _FIRST + 512
"""A frame at which f of a machine that is launched can begin."""


def control_block(number: int) -> bytes:
    """For Xhv: begin a machine of that number."""
    return REQUEST.pack(MODE << 60 | F_ROOT & PPN, number, MEMORY_LEAST, 1, START, 0, 0)


class Outcome(NamedTuple):
    """What an instruction has come to."""

    trapped: tuple[int, int] | None
    """An exception, which was not taken: its code in mcause, and what mtval would be."""
    words: bytes
    """The hart's fields."""
    changed: dict[int, bytes]
    """Frames whose bytes are others now."""
    ended: bool
    """Machines were launched, or are no more."""


class _Written(Derived):
    """Which frames were written."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: set[int] = set()

    def written(self, place: int, length: int) -> None:
        self.frames.update(range(_FIRST + place // FRAME, _FIRST + (place + length - 1) // FRAME + 1))


class Trial:
    """A bare machine with every extension, whose hart and memory are put into any state."""

    def __init__(self, memory: int) -> None:
        """`memory`: bytes."""
        self._board = virt(memory, engine="reference", isa="hv")
        assert self._board.virtualizer is not None
        self._hart, self._virtualizer = self._board.harts[0], self._board.virtualizer
        self._written = self._board.ram.derived = _Written()
        """What is not as the state has it."""
        self._state: State | None = None
        """The last one."""
        self._code, self._own = slice(0, 0), b""
        """Where its next instruction lies in memory, and what it is."""
        self._there: Set[int] = frozenset()
        """Its frames."""
        self._launch()

    def run(self, state: State, instance: Instance | None = None) -> Outcome:
        """Execute one instruction from there; a trap is not taken. `instance`: as from `instance.within(state)`."""
        self._put(state)
        if instance is not None:
            self._hart.block[: len(instance.x)] = instance.x
            self._board.ram.map[self._code] = instance.code
        caught = self._board.reference.attempt(self._hart)
        return self._outcome(state, None if caught is None else (caught.cause, caught.tval))

    def step(self, state: State) -> State:
        """The state behind one step: an instruction, or the trap in its place."""
        self._put(state)
        self._board.reference.step(self._hart)
        self._board.clock.steps -= 1  # its clock stands
        found = self._outcome(state, None)
        return State(found.words + state.words[TIME:], {**state.frames, **found.changed}, state.lies, state.tables)

    def _put(self, state: State) -> None:
        hart = self._hart
        if state is self._state:
            self._board.ram.map[self._code] = self._own
        else:
            at = PC % FRAME
            self._own = state.frames[state.lies[CODE]][at : at + 4]
            first = (state.lies[CODE] - _FIRST) * FRAME + at
            self._code = slice(first, first + 4)
            self._written.frames.update(self._there, state.frames)
            self._state, self._there = state, state.frames.keys()
        for frame in self._written.frames:
            self._write(frame, state.frames.get(frame, NOTHING))
        self._written.frames.clear()
        if bytes(hart.block[_PMP]) != state.words[_PMP]:  # memoryviews compare byte by byte
            self._board.reference.forget()
        hart.block[:SIZE] = state.words[:SIZE]
        self._board.aclint.offset = int.from_bytes(state.words[TIME:], "little")

    def _write(self, frame: int, data: bytes) -> None:
        at = (frame - _FIRST) * FRAME
        self._board.ram.map[at : at + FRAME] = data

    def _outcome(self, state: State, trapped: tuple[int, int] | None) -> Outcome:
        changed = {}
        for frame in self._written.frames:
            data = self._board.ram.peek((frame - _FIRST) * FRAME, FRAME)
            if data != state.frames.get(frame, NOTHING):
                changed[frame] = data
        words = bytes(self._hart.block[:SIZE])
        ended = list(self._virtualizer.machines) != [MACHINE]
        if ended:
            self._launch()
        return Outcome(trapped, words, changed, ended)

    def _launch(self) -> None:
        """There is one machine, which stands."""
        virtualizer, block = self._virtualizer, (F_ROOT + 8) * FRAME
        virtualizer.clear()
        self._board.ram.write(block, control_block(MACHINE))
        virtualizer.launch(self._hart, block)
        virtualizer.machines[MACHINE].hart = None
        self._board.wanted = False


# What of an outcome can be seen, and what cannot

_PARTS: dict[int, list[Hidden]] = {}
"""Of the hidden state, by word."""
for _hidden in HIDDEN.values():
    _PARTS.setdefault(_hidden.index, []).append(_hidden)
_NAMES = {field.offset >> 3: name for name, field in FIELDS.items() if field.count == 1}
_NAMES |= dict.fromkeys(range(FIELDS["tlb_tag"].offset >> 3, FIELDS["xhv"].offset >> 3), "TLB")
_NAMES |= {FIELDS["priv"].offset >> 3: "mode", FIELDS["satp"].offset >> 3: "relocation"}
_SEEN = slice(0, _BEFORE.start), _FCSR, _RESERVATION
_VISIBLE = {n for part in _SEEN for n in range(part.start >> 3, part.stop >> 3)}


def visible(state: State, found: Outcome) -> Seen:
    """All that an instruction of the program can tell: what it is in the state's own pages, wherever those lie."""
    words, changed = found.words, found.changed
    reservation: object = None  # as it was
    if words[_RESERVATION] != state.words[_RESERVATION]:
        pa = int.from_bytes(words[_RESERVATION], "little")
        reservation = next((page << 12 | pa & 4095 for page, frame in state.lies.items() if frame == pa >> 12), pa)
    pages = changed and tuple((page, changed[frame]) for page, frame in state.lies.items() if frame in changed)
    return found.trapped, words[_X], words[_F_PC], words[_FCSR], reservation, pages or None


def affected(state: State, found: Outcome) -> frozenset[str]:
    """The parts of the hidden state that are not as they were; none where it trapped."""
    if found.trapped is not None:
        return frozenset()
    was, words = state.words, found.words
    parts = {"machines"} if found.ended else set()
    if found.changed:
        if found.changed.keys() & state.tables:
            parts.add("relocation")
        if found.changed.keys() - set(state.lies.values()) - state.tables:
            parts.add("memory")
    if words[_BEFORE] != was[_BEFORE] or words[_PMP] != was[_PMP] or words[_BEHIND] != was[_BEHIND]:
        before, after = array("Q", was), array("Q", words)
        for n, value in enumerate(after):
            if value != before[n] and n not in _VISIBLE:
                some = [part.name for part in _PARTS.get(n, ()) if part.get(before) != part.get(after)]
                parts.update(some or [_NAMES[n]])
    return frozenset(parts)
