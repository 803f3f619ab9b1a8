"""Programs of Debian's own, inside Debian, beside QEMU: those that people wait for."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.build import SOURCE
from benchmarks.installed import installed
from benchmarks.performance import Compared, show, write
from benchmarks.shell import Setting, packed, shells

LINES = 10_000
INSERTS = 100_000
FORKS = 1_000
SECONDS = 1
"""Of what counts by itself how often it is done."""
FUNCTION = """
static int table%(n)d[%(few)d];

int search%(n)d(const int *at, int count)
{
    int low = 0;
    int high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (at[middle] < %(n)d)
            low = middle + 1;
        else
            high = middle;
    }
    for (int i = 0; i < %(few)d; i++)
        table%(n)d[i] += low;
    if (low < count)
        return at[low] + %(n)d;
    return table%(n)d[0];
}
"""
"""Of what is compiled."""
_ABOUT = f"""Wall-clock time by the host's clock, from the command's start to its end, the first time in its boot: with
what it reads from the disk, and what it takes both to translate it. `openssl speed` instead works for {SECONDS} s and
counts."""


@dataclass(frozen=True)
class Program:
    """`rate`: what is read from the command's output, in `unit`; else its time counts."""

    what: str
    command: str
    unit: str = "s"
    rate: Callable[[str], float] | None = None


def _hashed(printed: str) -> float:
    """MB a second: of `+F:number:name:bytes a second`."""
    found = re.search(r"^\+F:\d+:[^:\n]+:([\d.]+)", printed, re.MULTILINE)
    assert found is not None, printed
    return float(found[1]) / 1e6


def _signed(printed: str) -> float:
    """A second: of `+F2:number:bits:signatures a second:...`."""
    found = re.search(r"^\+F2:\d+:\d+:([\d.]+)", printed, re.MULTILINE)
    assert found is not None, printed
    return float(found[1])


_SPEED = f"openssl speed -mr -elapsed -seconds {SECONDS}"
PROGRAMS = (
    Program(f"gcc -c: a file of {LINES:,} lines of C (cc1 and as)", "gcc -c -o /tmp/program.o program.c"),
    Program("python3: the motion of five bodies, and words counted in a dictionary", "python3 work.py"),
    Program("openssl speed: SHA-256 in blocks of 16 KiB", f"{_SPEED} -bytes 16384 -evp sha256 2>&1", "MB/s", _hashed),
    Program("openssl speed: RSA signatures of 2,048 bits", f"{_SPEED} rsa2048 2>&1", "a second", _signed),
    Program("xz -6: 1 MB of a program", "head -c 1000000 /usr/bin/perl | xz -6 -c >/dev/null"),
    Program("gzip: 8 MB of programs", "cat /usr/bin/perl /usr/bin/python3 | head -c 8000000 | gzip -c >/dev/null"),
    Program(f"sqlite3: {INSERTS:,} inserts in one transaction, on the disk", "sqlite3 /root/table.db <inserts.sql"),
    Program("perl: lines taken apart by an expression, counted and sorted", "perl work.pl"),
    Program(
        f"sh: a loop of {FORKS:,} times fork and exec",
        f"sh -c 'n=0; while [ $n -lt {FORKS} ]; do /usr/bin/true; n=$((n + 1)); done'",
    ),
)


def files() -> dict[str, bytes]:
    """What the programs work on."""
    functions = LINES // FUNCTION.count("\n")
    inserts = "".join(f"insert into t values({n}, '{n * 7919 % 100_003:05}', {n % 97});\n" for n in range(INSERTS))
    return {
        "program.c": "".join(FUNCTION % {"n": n, "few": n % 61 + 3} for n in range(functions)).encode(),
        "inserts.sql": f"create table t(a integer primary key, b text, c int);\nbegin;\n{inserts}commit;\n".encode(),
        **{name: (SOURCE / name).read_bytes() for name in ("work.py", "work.pl")},
    }


def programs(runs: int) -> None:
    """Measures, shows the table and writes its section of the page, after each run."""
    system = installed()
    rows = [Compared(program.what, program.unit, rate=program.rate is not None) for program in PROGRAMS]
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as directory:
        archive = Path(directory) / "files.tar"
        archive.write_bytes(packed(files()))
        for run in range(runs):
            with shells(Setting(system, archive)) as pair:
                for program, row in zip(PROGRAMS, rows, strict=True):
                    for shell in pair if run % 2 == 0 else reversed(pair):
                        seconds, printed = shell.run(program.command)
                        row.add(shell.kind, seconds if program.rate is None else program.rate(printed))
            write("Programs", _ABOUT, rows, run + 1, system.versions)
    show(f"Programs; medians of {runs} alternating runs", rows)
