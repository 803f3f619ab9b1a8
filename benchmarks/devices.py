"""Devices beside QEMU's: disk, network, and what a guest costs that does nothing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.installed import installed
from benchmarks.performance import Compared, show, write
from benchmarks.shell import KINDS, Kind, Setting, Shell, packed, shells

SIZE = 512 << 20
"""Bytes of the disk that is read and written."""
SECONDS = 3
"""Of a measurement."""
PINGS = 200
SETTLES, WATCHED = 3.0, 10.0
"""Seconds."""
MOST_AT_REST = 2.0
"""Percent of a core."""
GATEWAY = "10.0.2.2"
_ABOUT = f"""The disk is a raw image of {SIZE >> 20} MiB, which each monitor has one of (QEMU's with `cache=writeback`,
so that it, as Ringfence, flushes to the medium what the guest flushes), under `virtio-blk`; fio reads and writes it
with direct I/O for {SECONDS} s. The network is `virtio-net` and libslirp under both, and iperf3's other end is on the
host, at its loopback device. The guest counts, by its clock, which is the host's."""


@dataclass(frozen=True)
class Measure:
    """`figure`: what is read from the command's output, in `unit`. `rate`: more of it is better."""

    what: str
    command: str
    figure: Callable[[str], float]
    unit: str
    rate: bool = True


def _fio(what: str, unit: str, rw: str, size: str, *options: str) -> Measure:
    """In MB/s, or operations a second."""
    command = (
        f"fio --minimal --terse-version=3 --name=one --filename=/dev/vdc --direct=1 --rw={rw} --bs={size} "
        f"--time_based --runtime={SECONDS} {' '.join(options)}"
    )
    # KiB/s and operations a second are the 7th and 8th field for reads, the 48th and 49th for writes.
    field = (6 if "read" in rw else 47) + (unit != "MB/s")

    def figure(printed: str) -> float:
        line = next(line for line in printed.splitlines() if line.startswith("3;fio-"))
        return float(line.split(";")[field]) * (1024 / 1e6 if unit == "MB/s" else 1)

    return Measure(what, command, figure, unit)


def _received(printed: str) -> float:
    """MB/s."""
    found = re.search(r"([\d.]+) Kbits/sec\s+receiver", printed)
    assert found is not None, printed
    return float(found[1]) / 8e3


def _round_trip(printed: str) -> float:
    """Microseconds."""
    found = re.search(r"= [\d.]+/([\d.]+)/", printed)
    assert found is not None, printed
    return float(found[1]) * 1e3


_EACH = "operations/s"
_DEEP = ("--ioengine=libaio", "--iodepth=16")


def measures(port: int) -> tuple[Measure, ...]:
    """`port`: where iperf3 is on the host."""
    iperf = f"iperf3 -c {GATEWAY} -p {port} -t {SECONDS} -f k"
    return (
        _fio("disk: sequential reads of 1 MiB", "MB/s", "read", "1m"),
        _fio("disk: sequential writes of 1 MiB", "MB/s", "write", "1m"),
        _fio("disk: random reads of 4 KiB, one at a time", _EACH, "randread", "4k"),
        _fio("disk: random writes of 4 KiB, one at a time", _EACH, "randwrite", "4k"),
        _fio("disk: random reads of 4 KiB, 16 at a time", _EACH, "randread", "4k", *_DEEP),
        _fio("disk: random writes of 4 KiB, 16 at a time", _EACH, "randwrite", "4k", *_DEEP),
        _fio("disk: random writes of 4 KiB, each followed by fsync", _EACH, "randwrite", "4k", "--fsync=1"),
        Measure("network: TCP from the guest to the host", iperf, _received, "MB/s"),
        Measure("network: TCP from the host to the guest", f"{iperf} -R", _received, "MB/s"),
        Measure(
            f"network: ping's round trip to the gateway, the mean of {PINGS}",
            f"ping -q -i 0.01 -c {PINGS} {GATEWAY}",
            _round_trip,
            "µs",
            rate=False,
        ),
    )


def devices(runs: int) -> None:
    """Measures, shows the table and writes its section of the page, after each run."""
    system = installed()
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as directory, _server() as port:
        place = Path(directory)
        archive = place / "files.tar"
        archive.write_bytes(packed({}))
        own = {kind: _disk(place / f"{kind}.img") for kind in KINDS}
        idle = Compared("a guest that does nothing, at its shell", "% of a core", most=MOST_AT_REST)
        every = measures(port)
        rows = [Compared(measure.what, measure.unit, rate=measure.rate, goal=1.0) for measure in every]
        for run in range(runs):
            with shells(Setting(system, archive, own, network=True)) as pair:
                for kind, share in _at_rest(pair).items():
                    idle.add(kind, 100 * share)
                for measure, row in zip(every, rows, strict=True):
                    for shell in pair if run % 2 == 0 else reversed(pair):
                        row.add(shell.kind, measure.figure(shell.run(measure.command)[1]))
            write("Devices", _ABOUT, [*rows, idle], run + 1, system.versions)
    show(f"Devices; medians of {runs} alternating runs", [*rows, idle])


def _at_rest(pair: Sequence[Shell]) -> dict[Kind, float]:
    """The share of a core that each has while nothing is done in either."""
    time.sleep(SETTLES)
    before, start = [shell.used() for shell in pair], time.monotonic()
    time.sleep(WATCHED)
    seconds = time.monotonic() - start
    return {shell.kind: (shell.used() - then) / seconds for shell, then in zip(pair, before, strict=True)}


def _disk(path: Path) -> Path:
    """With something on all of it."""
    part = os.urandom(1 << 20)
    with path.open("xb") as file:
        for _ in range(SIZE // len(part)):
            file.write(part)
        os.fsync(file.fileno())
    return path


@contextmanager
def _server() -> Iterator[int]:
    """The port at which iperf3 waits on the host."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        ["iperf3", "-s", "-B", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()
