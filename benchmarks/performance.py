"""docs/performance.md: a table for each kind of work beside QEMU, each written by itself, with what it was measured
on.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

import ringfence
from benchmarks.installed import Versions
from benchmarks.qemu import QEMU
from benchmarks.shell import MEMORY, Kind

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SECTIONS = ("Programs", "Devices")
_HEAD = f"""# Performance, beside QEMU

Written by `python -m benchmarks --only programs` and `--only devices`, a part each; both belong to `make bench`. To
make it again, Debian's packages `qemu-system-misc`, `iperf3` and `libslirp0` are needed on the host, and a mirror of
Debian's archive: the system that is measured is installed once, in the user's cache directory.

Ringfence and QEMU (TCG) run the same kernel, first file system and disk, with {MEMORY.replace("G", " GiB")} of memory
and one hart; Ringfence's guest has the machine itself (`--depth 0`), with the host's clock. A shell is the guest's
first process, and nothing else runs there. In each run both are booted anew, and do each piece of work in turn, now the
one first and now the other. The last column but one is Ringfence's speed with QEMU's = 1: more is better in every row.
"""


@dataclass
class Compared:
    """A row: `what` is measured, in words, as a figure in `unit`. `rate`: more of it is better. `goal`: the least
    speed, QEMU's = 1; `most`: the most that ours may be.
    """

    what: str
    unit: str
    rate: bool = False
    goal: float | None = None
    most: float | None = None
    found: dict[Kind, list[float]] = field(default_factory=lambda: {"ringfence": [], "qemu": []})

    def add(self, kind: Kind, figure: float) -> None:
        self.found[kind].append(figure)

    def median(self, kind: Kind) -> float:
        return statistics.median(self.found[kind])

    @property
    def speed(self) -> float:
        """Ours, QEMU's = 1."""
        ours, theirs = self.median("ringfence"), self.median("qemu")
        more, less = (ours, theirs) if self.rate else (theirs, ours)
        return more / less if less else float("inf")

    @property
    def missed(self) -> bool:
        if self.most is not None and self.median("ringfence") > self.most:
            return True
        return self.goal is not None and self.speed < self.goal

    def cells(self) -> tuple[str, ...]:
        goal = "" if self.goal is None else f"≥ {self.goal:g}"
        if self.most is not None:
            goal = f"≤ {self.most:g} {self.unit}"
        figures = [f"{_figure(self.median(kind))} {self.unit}" for kind in self.found]
        return self.what, *figures, f"{self.speed:.2f}", f"{goal}{', missed' if self.missed else ''}"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number < 10 else f"{number:.1f}"


HEADINGS = ("what is measured", "Ringfence", "QEMU", "speed, QEMU = 1", "goal")


def show(title: str, rows: Sequence[Compared]) -> None:
    table = Table(title=title)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for row in rows:
        table.add_row(*row.cells())
    Console(width=140).print(table)


def write(section: str, about: str, rows: Sequence[Compared], runs: int, versions: Versions, page: Path = PAGE) -> None:
    """Puts the section into the page; the others stay as they are."""
    parts = re.split(r"^## ", page.read_text() if page.exists() else "", flags=re.MULTILINE)[1:]
    known = {part.partition("\n")[0]: part for part in parts}
    known[section] = text(section, about, rows, runs, versions)
    page.write_text("\n".join([_HEAD, *(f"## {known[name].rstrip()}\n" for name in SECTIONS if name in known)]))


def text(section: str, about: str, rows: Sequence[Compared], runs: int, versions: Versions) -> str:
    """A section, as Markdown, behind its `## `."""
    lines = [section, "", about, "", measured_on(runs, versions), ""]
    lines += [f"| {' | '.join(HEADINGS)} |", f"| --- |{' ---: |' * (len(HEADINGS) - 1)}"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    slower = [f"{row.what} ({_slower(row)})" for row in sorted(rows, key=lambda row: row.speed) if row.speed < 1]
    lines += ["", f"Slower than QEMU: {'; '.join(slower)}." if slower else "Slower than QEMU: nothing."]
    return "\n".join(lines)


def _slower(row: Compared) -> str:
    return f"{1 / row.speed:.2f} times {'as much' if row.unit.startswith('%') else 'as long'}"


def measured_on(runs: int, versions: Versions) -> str:
    """Of how many runs, on which machine, and of what versions: one paragraph."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    qemu = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    packages = ", ".join(f"{name} {known}" for name, known in versions.packages.items())
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"Medians of {runs} alternating run{'s' if runs > 1 else ''}, on {os.cpu_count()} cores of "
        f"{cpu[1] if cpu else platform.machine()}, Linux {kernel}. Ringfence "
        f"{ringfence.__version__} on Python {platform.python_version()}; {qemu}. The guest: Debian {versions.debian}, "
        f"kernel {versions.kernel}; "
        f"{packages}. The host's load average over 15 minutes was {os.getloadavg()[2]:.1f} at the end; the benchmark "
        "by itself keeps about one core busy."
    )
