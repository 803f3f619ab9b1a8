"""Machines on monitors beside the bare machine.

A machine takes the same steps at every depth, so those that are compared run the same work in turns of some
milliseconds, in one process: what disturbs the host disturbs all alike. Time is the processor's.
"""

from __future__ import annotations

import statistics
import sys
import time

from benchmarks.build import program
from benchmarks.debian import PROMPT, debian_image, initrd
from benchmarks.table import Row
from ringfence.guest.loader import load
from ringfence.machine.board import MiB, Virt
from ringfence.machine.exit import Budget, PowerOff
from ringfence.monitor.monitor import Technique, nested
from ringfence.monitor.stats import direct
from ringfence.monitor.vm import VirtualMachine

MEMORY = 256 * MiB
TURN = 20_000_000
"""Steps."""
OVER = "over"
"""What the guest prints behind a command."""

KINDS: dict[str, tuple[int, Technique]] = {
    "bare": (0, "virtualizer"),
    "depth 1": (1, "virtualizer"),
    "depth 8": (8, "virtualizer"),
    "trap": (1, "trap"),
}
BARS = {"depth 1": 1.01, "depth 8": 1.05}
"""The most time, with the bare machine's = 1."""
TRAP_BOOT = 10.0
"""Seconds."""
DIRECT = 99.9
"""Percent of the steps."""

COMMANDS = {
    "null system call": "syscall 1000000",
    "page fault": "fault 100000",
    "fork and wait": "fork 1000",
    "chase, 32 MiB": "chase 2000000 32",
    "stream, 32 MiB": "stream 50 32",
}


def make(kind: str) -> Virt:
    depth, technique = KINDS[kind]
    return nested(depth, MEMORY, technique=technique)


def race(machines: dict[str, Virt], text: str | None = None) -> dict[str, float]:
    """Seconds of each, to the end of its turn in which it has printed `text`; None: to its power-off."""
    taken = dict.fromkeys(machines, 0.0)
    running = dict(machines)
    while running:
        for name, machine in list(running.items()):
            start = time.process_time()
            why = machine.run(TURN, exact=False)
            taken[name] += time.process_time() - start
            printed = machine.console.text
            if (isinstance(why, PowerOff) and not why.status) if text is None else text in printed:
                del running[name]
            elif not isinstance(why, Budget):
                sys.exit(f"{printed[-2000:]}\nended with {why}")
    return taken


def compared(what: str, runs: list[dict[str, float]]) -> list[Row]:
    """Medians of what each took, the bare machine in the same run = 1."""
    rows = [Row(f"{what}, bare", statistics.median(run["bare"] for run in runs), "s")]
    for kind in runs[0]:
        if kind != "bare":
            ratio = statistics.median(run[kind] / run["bare"] for run in runs)
            rows.append(Row(f"{what}, {kind}", ratio, "x", BARS.get(kind)))
    return rows


def programs(runs: int) -> list[Row]:
    """Work of the processor's, in M-mode."""
    rows = []
    for what, name, rounds in (("integer", "integer", 100), ("floating point", "floating", 300)):
        found = []
        for _ in range(runs):
            machines = {kind: make(kind) for kind in KINDS}
            for machine in machines.values():
                load(machine, program(name, rounds=rounds), bios="none")
            found.append(race(machines))
        rows += compared(what, found)
    return rows


def debian(runs: int) -> tuple[list[Row], list[Row]]:
    """Debian to its shell, and commands there; and what a monitor that traps has to do with it."""
    image = debian_image()
    archive = initrd(image)
    boots, off_monitor = [], 0.0
    for _ in range(runs):
        machines = {kind: make(kind) for kind in KINDS}
        for machine in machines.values():
            load(machine, image.kernel, initrd=[archive], append=image.append(command=False))
        boots.append(race(machines, PROMPT))
        trapped = machines.pop("trap")
        assert isinstance(trapped, VirtualMachine)
        off_monitor = 100 * direct(trapped)
    rows = compared("Debian to its shell", boots)
    seconds = statistics.median(run["trap"] for run in boots)
    traps = [
        Row("Debian to its shell", seconds, "s", TRAP_BOOT),
        Row("its steps with no monitor entered", off_monitor, "%", DIRECT, at_least=True),
    ]
    for first, (what, command) in enumerate(COMMANDS.items()):
        found = []
        for n in range(runs):
            number = first * runs + n
            for machine in machines.values():
                machine.console.send(f"/kernelwork {command} && echo {OVER}$(({number}))\n")
            found.append(race(machines, f"{OVER}{number}\r\n"))
        rows += compared(what, found)
    return rows, traps
