"""Sensitive data structures: state that the hart finds in memory, or saves, and whose meaning is the mode.

J. S. Hall, P. T. Robinson, "Virtualizing the VAX Architecture" (1991): beside sensitive instructions a machine has data
that show or decide a mode, and a monitor that compresses rings holds other values of them than its guest does. So each
reference to them by a program without privilege has to trap, or to be answered from a copy. Here small programs make
each reference, on the bare machine and deprivileged; where a technique keeps the rings, under its monitor too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ringfence.isa.csr import CSRS
from ringfence.isa.paging import ACCESSED, DIRTY, USER
from ringfence.isa.spec import ISA
from ringfence.isa.trap import S, Status, U
from ringfence.machine.board import MEMORY_LEAST, MiB, Virt, virt
from ringfence.machine.hart import FIELDS, SIZE
from ringfence.machine.machine import CHECK_SPAN
from ringfence.machine.memory import FRAME
from ringfence.monitor.monitor import Monitor, Technique
from ringfence.monitor.technique.rings import Rings
from ringfence.monitor.technique.trap import TrapAndEmulate
from ringfence.monitor.trial import Outcome, affected, visible
from ringfence.monitor.virtual_state import (
    CODE,
    DATA,
    HOME,
    NOTHING,
    PC,
    TABLE,
    Relocation,
    State,
    deprivileged,
    virtual,
)
from ringfence.monitor.virtualizable import Prepare, breaks, machines

Answer = Literal["a trap", "a copy", "own memory", "the real hart"]
HANDLER = DATA + 1
"""The page of the operating system's trap handler."""
STACK = DATA * FRAME + 0x400
ENTRY = TABLE * FRAME + 8 * (DATA & 511)
"""Where a program that has its page table finds the entry of DATA."""
T0, T1, S0, S1, A0, A1, A2 = 5, 6, 8, 9, 10, 11, 12
_SSTATUS = next(number for number, line in CSRS.items() if line.name == "sstatus")
_SPP = "mstatus.SPP"
IN_MEMORY = "SPP saved in memory"
_HOST = 32 * MiB
PROGRAM = 64
"""Steps that a guest runs at least: its program, and rounds of the loop behind that."""


class Reference(NamedTuple):
    """Somebody's way to refer to a structure."""

    structure: str
    who: str
    answers: tuple[Answer, ...]
    """By what each such instruction is answered, deprivileged."""
    same: bool
    """All ends as on the bare machine."""
    monitor: Counts | None
    """On a machine of a monitor's that keeps the rings; None: there is none."""

    @property
    def holds(self) -> bool:
        return self.same and (self.monitor is None or self.monitor.same)


class Counts(NamedTuple):
    """What a monitor had to do for a program, and whether that ended as on the bare machine."""

    applied: int
    """Instructions that trapped, and that it applied to the virtual hart."""
    filled: int
    """Entries of shadow tables, for those that trapped before and then ran."""
    table_writes: int
    """Of those that it applied: stores to page tables of the guest's."""
    same: bool


@dataclass(frozen=True)
class _Case:
    structure: str
    who: str
    v: State
    watch: tuple[int, ...]
    """Which steps of the program make the reference."""
    steps: int


def put(name: str, **operands: int) -> bytes:
    return ISA[name].encode(**operands).to_bytes(4, "little")


_SPIN = put("jal", rd=0, imm=0)


def _case(
    structure: str,
    who: str,
    mode: int,
    program: Sequence[bytes],
    watch: tuple[int, ...],
    steps: int,
    *,
    handler: Sequence[bytes] = (),
    change: Mapping[int, int] | None = None,
    hidden: Mapping[str, int] | None = None,
) -> _Case:
    """`change`: bits of pages' entries that are others than usual."""
    at = PC % FRAME
    code = b"".join([*program, _SPIN])
    bits = {} if mode == S else {HANDLER: USER, TABLE: USER}
    bits |= change or {}
    v = virtual(
        mode,
        Relocation(8, 0, CODE + 16),
        {"medeleg": 0xB3FF, "stvec": HANDLER * FRAME} | dict(hidden or {}),
        contents={
            CODE: (NOTHING[:at] + code).ljust(FRAME, b"\0"),
            DATA: b"data" * (FRAME // 4),
            HANDLER: b"".join([*handler, _SPIN]).ljust(FRAME, b"\0"),
        },
        registers={"pc": PC, "s0": DATA * FRAME, "s1": ENTRY, "sp": STACK, "a2": USER, "reservation": (1 << 64) - 1},
        entry=lambda page, entry: entry ^ bits.get(page, 0),
        table=True,
    )
    return _Case(structure, who, v, watch, steps)


def _cases() -> Iterator[_Case]:
    load, store = put("ld", rd=A0, rs1=S0, imm=8), put("sd", rs1=S0, rs2=S0, imm=16)
    look, write = put("ld", rd=A1, rs1=S1, imm=0), put("sd", rs1=S1, rs2=A1, imm=0)
    marks = ACCESSED | DIRTY

    name = "U of a page-table entry"
    kernel, process = "the kernel", "a process"
    yield _case(name, f"{kernel}: walks for load, store and fetch", S, [load, store], (0, 1, 2), 3)
    yield _case(name, f"{kernel}: a walk for a process's page", S, [load], (0,), 2, change={DATA: USER})
    yield _case(name, f"{process}: walks for load, store and fetch", U, [load, store], (0, 1, 2), 3)
    yield _case(name, f"{process}: a walk for a kernel's page", U, [load], (0,), 2, change={DATA: USER})
    yield _case(name, f"{kernel}: a load from its page table", S, [look], (0,), 1)
    flip = put("xor", rd=A1, rs1=A1, rs2=A2)
    yield _case(name, f"{kernel}: a store to its page table", S, [look, flip, write, load], (2,), 5)

    name = "A and D of an entry"
    program = [load, look, store, look]
    yield _case(name, "the walk sets them", S, program, (0, 2), 4, change={DATA: marks}, hidden={"menvcfg.ADUE": 1})
    yield _case(name, "the walk finds them set", S, program, (0, 2), 4, hidden={"menvcfg.ADUE": 1})
    clear = put("andi", rd=A1, rs1=A1, imm=~marks)
    program = [load, look, clear, write, load, look]
    yield _case(name, f"{kernel}: a store that clears them", S, program, (3,), 6, hidden={"menvcfg.ADUE": 1})

    name = "SPP saved in the hart"
    read, restore = put("csrr", rd=T0, csr=_SSTATUS), put("csrrw", rd=0, rs1=T0, csr=_SSTATUS)
    sret, ecall = put("sret"), put("ecall")
    handler = [read]
    yield _case(name, f"{kernel}: sstatus, read after a system call", U, [ecall], (1,), 3, handler=handler)
    yield _case(name, f"{kernel}: sstatus, read after an exception", S, [put("ebreak")], (1,), 3, handler=handler)
    ready = {"sepc": HANDLER * FRAME}
    program = [put("addi", rd=T0, rs1=0, imm=1 << Status.SPP), restore, sret]
    yield _case(name, f"{kernel}: sstatus, written before sret", S, program, (1, 2), 4, hidden=ready)
    yield _case(name, f"{kernel}: sret", S, [sret], (0,), 2, hidden=ready | {"mstatus.SPP": 1})

    name = IN_MEMORY
    save, fetch = put("sd", rs1=2, rs2=T0, imm=0), put("ld", rd=T1, rs1=2, imm=0)
    program = [read, save, fetch]
    yield _case(name, f"{kernel}: sstatus to its stack and back", S, program, (1, 2), 3, hidden={"mstatus.SPP": 1})


# Deprivileged, step by step


_Step = tuple[State, State, Outcome]
"""The virtual state, the real one, and what came of that."""


def follow(v: State, steps: int, rings: Rings, prepare: Prepare = deprivileged) -> tuple[State, list[_Step]]:
    """Run a program as a monitor does that prepares the real hart for each instruction: directly where it does not
    trap, else applied to the virtual hart. Where it ends; and of each step both states and the real hart's outcome.
    """
    bare, host = machines()
    found = []
    for _ in range(steps):
        r = prepare(v, rings)
        real = host.run(r)
        found.append((v, r, real))
        v = bare.step(v) if real.trapped is not None else returned(v, real)
    return v, found


def returned(v: State, real: Outcome) -> State:
    """The virtual state behind an instruction that ran directly: what is visible is the real hart's."""
    words = bytearray(v.words)
    for start, end in (("x", "priv"), ("fflags", "pmpcfg0")):
        part = slice(FIELDS[start].offset, FIELDS[end].offset)
        words[part] = real.words[part]
    frames = {frame - HOME: data for frame, data in real.changed.items()}
    return State(bytes(words), {**v.frames, **frames}, v.lies, v.tables)


def _breaks(step: _Step) -> bool:
    v, r, real = step
    bare = machines()[0].run(v)
    return real.trapped is None and breaks(visible(v, bare), affected(v, bare), visible(r, real), affected(r, real))


def _answer(case: _Case, step: _Step) -> Answer:
    """By what an instruction was answered. What it depends on shows where that is taken away."""
    v, r, real = step
    if real.trapped is not None:
        return "a trap"
    host = machines()[1]
    other = r.having({_SPP: 1 - r.hidden()[_SPP]})
    if affected(r, real) or visible(other, host.run(other)) != visible(r, real):
        return "the real hart"
    held = {v.lies[DATA]} if case.structure == IN_MEMORY else v.tables
    without = State(r.words, {**r.frames, **{frame + HOME: NOTHING for frame in held}}, r.lies, r.tables)
    return "own memory" if visible(without, host.run(without)) != visible(r, real) else "a copy"


# Under a monitor


def _monitored(host: Virt, v: State, technique: Technique) -> Counts:
    """The program as a guest, in the reference reading."""
    monitor = Monitor(host)
    guest = monitor.create("guest", MEMORY_LEAST, technique=technique)
    hart = guest.harts[0]
    for frame, data in v.frames.items():
        guest.ram.write(frame * FRAME, data)
    hart.block[:SIZE] = v.words[:SIZE]
    guest.timer(hart)
    guest.protection(hart)
    guest.run(CHECK_SPAN + PROGRAM, exact=False)
    expected = v
    for _ in range(guest.steps):
        expected = machines()[0].step(expected)
    same = bytes(hart.block[:SIZE]) == expected.words[:SIZE]
    same = same and all(guest.ram.read(frame * FRAME, FRAME) == data for frame, data in expected.frames.items())
    engine = guest.engine
    assert isinstance(engine, TrapAndEmulate)
    counts = Counts(engine.interpreted, engine.filled, engine.table_writes, same)
    monitor.destroy("guest")
    return counts


def references(rings: Rings, technique: Technique | None = None, prepare: Prepare = deprivileged) -> list[Reference]:
    """Every reference to every structure. `technique`: one that keeps the rings, whose monitor is to show the same."""
    host = None if technique is None else virt(_HOST, engine="reference")
    found = []
    for case in _cases():
        expected = case.v
        for _ in range(case.steps):
            expected = machines()[0].step(expected)
        end, steps = follow(case.v, case.steps, rings, prepare)
        answers = dict.fromkeys(_answer(case, steps[n]) for n in case.watch)
        same = end.words == expected.words and end.frames == expected.frames and not any(map(_breaks, steps))
        counts = None if host is None or technique is None else _monitored(host, case.v, technique)
        found.append(Reference(case.structure, case.who, tuple(answers), same, counts))
    return found
