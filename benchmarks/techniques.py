"""Every technique at every kind of work: time beside the bare machine's, what the monitor was entered for, and how much
of its program it executed. After K. Adams and O. Agesen, "A Comparison of Software and Hardware Techniques for x86
Virtualization" (2006). Written to docs/techniques.md, with a plot.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.compiler import COMMAND, compiler
from benchmarks.debian import PROMPT, debian_image, initrd
from benchmarks.plot import bars
from benchmarks.speed import race
from benchmarks.table import Row
from ringfence.guest.initramfs import joined
from ringfence.guest.loader import load
from ringfence.guest.program import CORRAL
from ringfence.machine.board import MiB, Virt
from ringfence.monitor.monitor import Technique, nested
from ringfence.monitor.stats import QUIET, stats
from ringfence.monitor.vm import VirtualMachine

BARE = "bare"
DEBIAN: tuple[Technique, ...] = ("virtualizer", "trap", "vm-bit", "translation")
CORRALS: tuple[Technique, ...] = (*DEBIAN, "para")
"""The embedded guest can call its monitor."""
COMMANDS = {
    "arithmetic": ("/kernelwork arithmetic $2", 100_000_000),
    "a compile": (COMMAND, 0),
    "system calls": ("/kernelwork syscall $2", 1_000_000),
    "context switches": ("/kernelwork switch $2", 20_000),
    "page faults": ("/kernelwork fault $2", 50_000),
    "fork and exec": ("/kernelwork exec $2", 300),
}
"""And how many of what."""
RUNS = {
    "Corral's system calls": ("calls", 1_000_000, "calls in"),
    "its context switches": ("pingpong", 20_000, "rounds in"),
}
PART = 10
"""Of the work, the part that is done to count."""
FUNCTIONS = 8
"""In what is compiled."""
OVER = "over"
Typed = tuple[str, str]
"""What is typed, and what the guest prints when that is done."""
BARS = {
    ("boot", "translation"): 2.0,
    ("Corral's system calls", "para"): 1.10,
    ("its context switches", "para"): 1.10,
}
"""The most time, the bare machine's = 1."""
PAGE = Path(__file__).parents[1] / "docs" / "techniques.md"
PLOT = PAGE.with_suffix(".svg")
SHORT = {
    "rows applied natively": "applied natively",
    "by the reference": "by the reference",
    "translations": "page faults that filled a shadow",
    "writes to page tables": "writes to page tables",
    "VM-faults": "VM-faults",
    "device accesses": "device accesses",
    "pages written to": "code written to",
    "calls": "calls",
}
"""Kinds of entries, as the page has them."""


@dataclass
class Work:
    """One kind of work. `seconds`: of each technique, of each run."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    entered: dict[str, dict[str, int]] = field(default_factory=dict)
    executed: dict[str, int] = field(default_factory=dict)
    """Instructions of the monitor's program."""

    def add(self, seconds: dict[str, float]) -> None:
        for kind, taken in seconds.items():
            self.seconds.setdefault(kind, []).append(taken)

    def ratio(self, kind: str) -> float:
        runs = zip(self.seconds[kind], self.seconds[BARE], strict=True)
        return statistics.median(taken / bare for taken, bare in runs)


def techniques(runs: int) -> list[Row]:
    """Measures, writes the page, and gives what is promised of it."""
    work = [_boots(runs), *_commands(runs), *_corral(runs)]
    PLOT.write_text(
        bars([(w.name, {kind: w.ratio(kind) for kind in w.executed}) for w in work], "time, the bare machine's = 1")
    )
    PAGE.write_text(page(work, runs))
    rows = []
    for w in work:
        rows += [Row(f"{w.name}, {kind}", w.ratio(kind), "x", BARS.get((w.name, kind))) for kind in w.executed]
    return rows


def _boots(runs: int) -> Work:
    image = debian_image()
    archive = initrd(image)

    def machines() -> dict[str, Virt]:
        made = _machines(DEBIAN, 512 * MiB)
        for machine in made.values():
            load(machine, image.kernel, initrd=[archive], append=image.append(command=False))
        return made

    boot = Work("boot")
    for _ in range(runs):
        boot.add(race(machines(), PROMPT))
    _count(boot, machines(), lambda machine: machine.console.expect(PROMPT))
    return boot


def _commands(runs: int) -> Iterator[Work]:
    image = debian_image()
    files = compiler(FUNCTIONS)
    cases = "".join(f"{n}) {command} ;;\n" for n, (command, _) in enumerate(COMMANDS.values()))
    # Little is typed, as the echo of a line takes the monitor some thousand accesses to a device.
    files.file("w", f"#!/bin/sh\ncase $1 in\n{cases}esac && echo {OVER}$3\n".encode(), 0o755)
    archive = joined(initrd(image), bytes(files))
    machines = _machines(DEBIAN, 512 * MiB)
    for machine in machines.values():
        load(machine, image.kernel, initrd=[archive], append=image.append(command=False))
        machine.console.expect(PROMPT)
    for number, (name, (_, count)) in enumerate(COMMANDS.items()):

        def typed(n: int, part: int, number: int = number, count: int = count) -> Typed:
            end = 1000 + number * 100 + n
            return f"/w {number} {count // part} {end}\n", f"{OVER}{end}\r\n"

        yield _done(Work(name), runs, machines, typed)


def _corral(runs: int) -> Iterator[Work]:
    machines = _machines(CORRALS, 64 * MiB)
    for machine in machines.values():
        load(machine, CORRAL)
        machine.console.expect("corral> ")
    for name, (command, count, end) in RUNS.items():

        def typed(n: int, part: int, command: str = command, count: int = count, end: str = end) -> Typed:
            return f"run {command} {count // part + n}\n", f"{count // part + n} {end}"

        yield _done(Work(name), runs, machines, typed)


def _done(work: Work, runs: int, machines: dict[str, Virt], typed: Callable[[int, int], Typed]) -> Work:
    """`typed`: by a number of its own and the part that is done."""
    for n in range(runs + 1):
        command, printed = typed(n, 1)
        for machine in machines.values():
            machine.console.send(command)
        seconds = race(machines, printed)
        if n:  # what the first use of code costs is in no run
            work.add(seconds)
    command, printed = typed(runs + 1, PART)
    for machine in machines.values():
        machine.console.send(command)
    _count(work, machines, lambda machine: machine.console.expect(printed))
    return work


def _machines(kinds: tuple[Technique, ...], memory: int) -> dict[str, Virt]:
    return {BARE: nested(0, memory), **{kind: nested(1, memory, technique=kind) for kind in kinds}}


def _count(work: Work, machines: dict[str, Virt], run: Callable[[Virt], object]) -> None:
    """What one more run enters the monitor for, and executes of its program: what the bare machine's does not."""
    executed = {}
    for kind, machine in machines.items():
        before, steps = _entries(machine), machine.steps
        with _instructions() as count:
            run(machine)
        after = _entries(machine)
        executed[kind] = count[0]
        if kind == BARE:
            work.steps = machine.steps - steps
            continue
        work.entered[kind] = {what: after[what] - before.get(what, 0) for what in after}
        work.executed[kind] = executed[kind] - executed[BARE]


def _entries(machine: Virt) -> dict[str, int]:
    if not isinstance(machine, VirtualMachine):
        return {}
    found = {what: n for rows in stats(machine).values() for what, n in rows.items()}
    return {SHORT[what]: n for what, n in found.items() if what in SHORT and what not in QUIET}


@contextmanager
def _instructions() -> Iterator[list[int]]:
    """Counts bytecode instructions of this project's functions."""
    count = [0]
    room = str(Path(sys.modules["ringfence"].__file__ or "").parent)

    def step(frame: FrameType, event: str, _: Any) -> Any:
        count[0] += event == "opcode"
        return step

    def call(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith((room, "<string>")):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return step

    sys.settrace(call)
    try:
        yield count
    finally:
        sys.settrace(None)


_HEAD = """# Techniques, compared

Written by `python -m benchmarks techniques`; see [model.md](model.md) for what each technique is. Debian, and the
embedded guest for the last two rows, at depth 1. `para` is for a guest that calls its monitor, which Debian's kernel
does not.

Processor time, the bare machine's in the same run = 1; medians of {runs} alternating runs. Python {python}, {machine}.

As Adams and Agesen found, work in user mode costs the same by every technique but for its page faults and the timer's
ticks; a system call costs a little where a monitor traps it; and what costs is page tables, which a monitor with
shadows is entered for at each page, while the Hardware Virtualizer composes f and φ where the TLB misses. Calls in
place of traps gain little here, as what traps most is applied to the virtual hart natively.

![time by technique](techniques.svg)
"""
_WORK = """
Instructions of the monitor's program (Python bytecode, counted in one run more; those that the bare machine's takes as
well are not counted) for each 1,000 of the guest. What is applied to the virtual hart natively is none of them.
"""


def page(work: list[Work], runs: int) -> str:
    """The page, as Markdown."""
    text = [
        _HEAD.format(runs=runs, python=platform.python_version(), machine=platform.machine()),
        *_table(work, lambda w, kind: f"{w.ratio(kind):.2f}"),
        _WORK,
        *_table(work, lambda w, kind: f"{max(w.executed[kind], 0) / w.steps * 1000:,.1f}"),
        "\nEntries for each million instructions of the guest, by kind:",
    ]
    for w in work:
        named = [what for what in SHORT.values() if any(rows.get(what) for rows in w.entered.values())]
        text.append(f"\n**{w.name}**, {w.steps:,} instructions\n")
        if not named:
            text.append("None.")
            continue
        text += [f"| | {' | '.join(named)} |", "| --- |" + " ---: |" * len(named)]
        for kind, rows in w.entered.items():
            text.append(f"| `{kind}` | {' | '.join(f'{rows.get(what, 0) / w.steps * 1e6:,.1f}' for what in named)} |")
    return "\n".join(text) + "\n"


def _table(work: list[Work], cell: Callable[[Work, str], str]) -> Iterator[str]:
    yield f"| | {' | '.join(f'`{kind}`' for kind in CORRALS)} |"
    yield "| --- |" + " ---: |" * len(CORRALS)
    for w in work:
        yield f"| {w.name} | {' | '.join(cell(w, kind) if kind in w.executed else '' for kind in CORRALS)} |"
