"""Beside Debian's qemu-system-riscv64 (TCG).

Each workload runs under both in turn, in the same run, as whole processes with the same guest, kernel, initrd and
memory; medians of the wall-clock time are compared. A workload with a baseline is the difference to it: the same boot
with nothing to do.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.build import program
from benchmarks.debian import debian_image, initrd
from ringfence.guest.image import Image
from ringfence.guest.initramfs import command_archive, joined

QEMU = "qemu-system-riscv64"
MEMORY = "256M"


@dataclass(frozen=True)
class Guest:
    """What both run: a bare-metal program, or Debian with a command."""

    kernel: Path
    initrd: Path | None = None
    append: str = ""

    def ringfence(self) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "ringfence",
            "run",
            "-m",
            MEMORY,
            "--clock",
            "virtual",
            "--kernel",
            str(self.kernel),
            "--silence",
            "0",
            "--depth",
            "0",
        ]
        if self.initrd is None:
            return [*command, "--bios", "none"]
        return [*command, "--initrd", str(self.initrd), "--append", self.append]

    def qemu(self) -> list[str]:
        command = [QEMU, "-M", "virt", "-m", MEMORY, "-nographic", "-kernel", str(self.kernel)]
        if self.initrd is None:
            return [*command, "-bios", "none"]
        return [*command, "-initrd", str(self.initrd), "-append", self.append]


@dataclass(frozen=True)
class Workload:
    """`bar`: the least ratio of QEMU's time to ours that the project promises."""

    name: str
    guest: Callable[[], Guest]
    bar: float
    baseline: str | None = None


def bare(name: str, rounds: int) -> Callable[[], Guest]:
    return lambda: Guest(program(name, rounds=rounds))


def debian(*argv: str) -> Callable[[], Guest]:
    return lambda: _debian(debian_image(), argv)


def _debian(found: Image, argv: tuple[str, ...]) -> Guest:
    path = Path(_directory.name) / f"initrd-{'-'.join(argv).replace('/', '')}"
    path.write_bytes(joined(initrd(found), command_archive(argv)))
    return Guest(found.kernel, path, found.append(command=True))


_directory = tempfile.TemporaryDirectory(prefix="ringfence-bench-")

WORKLOADS = (
    Workload("integer", bare("integer", 400), 0.8),
    Workload("floating point", bare("floating", 800), 0.5),
    Workload("Debian to user space", debian("true"), 1 / 1.5),
    Workload("null system call", debian("/kernelwork", "syscall", "2000000"), 0.5, "Debian to user space"),
    Workload("page fault", debian("/kernelwork", "fault", "200000"), 0.5, "Debian to user space"),
    Workload("fork and wait", debian("/kernelwork", "fork", "3000"), 0.5, "Debian to user space"),
)


def timed(command: list[str]) -> tuple[float, int]:
    """(seconds, peak memory in KiB) of a whole process, which must end with status 0."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)}\n{output.decode(errors='replace')[-2000:]}\nended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss


def beside_qemu(chosen: Collection[str], runs: int) -> None:
    """The table, of all workloads or of those that are named."""
    if shutil.which(QEMU) is None:
        sys.exit(f"{QEMU} is not installed: it is in Debian's package qemu-system-misc")
    wanted = [w for w in WORKLOADS if not chosen or w.name in chosen]
    names = {w.name for w in wanted} | {w.baseline for w in wanted}
    running = [w for w in WORKLOADS if w.name in names]
    guests = {w.name: w.guest() for w in running}
    for w in running:
        timed(guests[w.name].ringfence())  # compiles what is not in the cache yet
    ours: dict[str, list[float]] = {w.name: [] for w in running}
    theirs: dict[str, list[float]] = {w.name: [] for w in running}
    memory: dict[str, tuple[int, int]] = {}
    for _ in range(runs):
        for w in running:
            seconds, peak = timed(guests[w.name].ringfence())
            ours[w.name].append(seconds)
            seconds, other = timed(guests[w.name].qemu())
            theirs[w.name].append(seconds)
            memory[w.name] = peak >> 10, other >> 10

    def median(runs: dict[str, list[float]], w: Workload) -> float:
        base = statistics.median(runs[w.baseline]) if w.baseline else 0.0
        return statistics.median(runs[w.name]) - base

    table = Table(title=f"Wall-clock medians of {runs} alternating runs")
    for heading in ("workload", "Ringfence s", "QEMU s", "speed, QEMU = 1", "promised", "peak MiB, ours", "QEMU's"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for w in wanted:
        mine, qemu = median(ours, w), median(theirs, w)
        peaks = [str(m) for m in memory[w.name]]
        promised = f"{'MISSED ' if qemu / mine < w.bar else ''}{w.bar:.2f}"
        table.add_row(w.name, f"{mine:.2f}", f"{qemu:.2f}", f"{qemu / mine:.2f}", promised, *peaks)
    Console(width=120).print(table)
