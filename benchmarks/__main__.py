"""Speed beside QEMU, and on monitors beside the bare machine: `python -m benchmarks [--runs N] [NAME ...]`.

Each workload runs under Ringfence and under Debian's qemu-system-riscv64 (TCG) in turn, in the same run, as whole
processes with the same guest, kernel, initrd and memory; medians of the wall-clock time are compared. A workload with
a baseline is the difference to it: the same boot with nothing to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.build import program
from ringfence.guest import cpio
from ringfence.guest.image import Image, Store
from ringfence.guest.initramfs import command_archive

QEMU = "qemu-system-riscv64"
MEMORY = "256M"


@dataclass(frozen=True)
class Guest:
    """What both run: a bare-metal program, or Debian with a command."""

    kernel: Path
    initrd: Path | None = None
    append: str = ""

    def ringfence(self, *options: str) -> list[str]:
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
            *options,
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
    return lambda: _debian(image(), argv)


def image() -> Image:
    return Store().find("debian")


def _debian(found: Image, argv: tuple[str, ...]) -> Guest:
    """Debian's image, with the benchmark's program in a second archive and the command in a third."""
    archive = cpio.Archive()
    archive.file("kernelwork", program("kernelwork").read_bytes(), 0o755)
    content = found.initrd.read_bytes()
    for part in (bytes(archive), command_archive(argv)):
        content += bytes(-len(content) % 4) + part
    path = Path(_directory.name) / f"initrd-{'-'.join(argv).replace('/', '')}"
    path.write_bytes(content)
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


BARE = ("--depth", "0")
MONITORS = {
    "depth 1": ("--depth", "1"),
    "depth 8": ("--depth", "8"),
    "trap": ("--technique", "trap"),
}
"""What is compared with the bare machine, and how it is asked for."""
PROMISED = {"depth 1": 1.01, "depth 8": 1.05, "trap": None}
"""The most time, with the bare machine's = 1."""


def beside_the_bare_machine(running: list[Workload], guests: dict[str, Guest], runs: int) -> None:
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        for w in running:
            for name, options in (("bare", BARE), *MONITORS.items()):
                if name == "trap" and w.baseline:  # minutes
                    continue
                times.setdefault((w.name, name), []).append(timed(guests[w.name].ringfence(*options))[0])

    def median(w: Workload, name: str) -> float:
        base = statistics.median(times[w.baseline, name]) if w.baseline else 0.0
        return statistics.median(times[w.name, name]) - base

    table = Table(title=f"Time on monitors, the bare machine's = 1; medians of {runs} alternating runs")
    table.add_column("workload")
    for heading in ("bare s", *(f"{name} ({f'at most {most}' if most else 's'})" for name, most in PROMISED.items())):
        table.add_column(heading, justify="right")
    for w in running:
        alone = median(w, "bare")
        shown = []
        for name, most in PROMISED.items():
            if (w.name, name) not in times:
                shown.append("")
            elif most:
                shown.append(f"{median(w, name) / alone:.3f}")
            else:
                shown.append(f"{median(w, name):.2f}")
        table.add_row(w.name, f"{alone:.2f}", *shown)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed beside QEMU, and on monitors beside the bare machine.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=["qemu", "monitors"], help="One of the two tables.")
    parser.add_argument("names", nargs="*", help=", ".join(w.name for w in WORKLOADS))
    options = parser.parse_args()
    wanted = [w for w in WORKLOADS if not options.names or w.name in options.names]
    names = {w.name for w in wanted} | {w.baseline for w in wanted}
    running = [w for w in WORKLOADS if w.name in names]
    guests = {w.name: w.guest() for w in running}
    for w in running:
        timed(guests[w.name].ringfence(*BARE))  # compiles what is not in the cache yet
    if options.only != "monitors":
        beside_qemu(wanted, running, guests, options.runs)
    if options.only != "qemu":
        beside_the_bare_machine(running, guests, options.runs)


def beside_qemu(wanted: list[Workload], running: list[Workload], guests: dict[str, Guest], runs: int) -> None:
    if shutil.which(QEMU) is None:
        sys.exit(f"{QEMU} is not installed: it is in Debian's package qemu-system-misc")
    ours: dict[str, list[float]] = {w.name: [] for w in running}
    theirs: dict[str, list[float]] = {w.name: [] for w in running}
    memory: dict[str, tuple[int, int]] = {}
    for _ in range(runs):
        for w in running:
            seconds, peak = timed(guests[w.name].ringfence(*BARE))
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
        table.add_row(w.name, f"{mine:.2f}", f"{qemu:.2f}", f"{qemu / mine:.2f}", f"{w.bar:.2f}", *peaks)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
