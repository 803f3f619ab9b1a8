"""What a machine switch costs, and a VM-fault: under the monitor in Python, and under vmm, which is a guest itself.

Time is the processor's. A switch saves one machine and restores another: what a run in short slices takes longer than
one of as many steps in long ones, for each switch.
"""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import Callable

from benchmarks.build import program
from benchmarks.table import Row
from ringfence.guest.loader import load
from ringfence.guest.program import VMM
from ringfence.machine.board import MiB, virt
from ringfence.machine.machine import Computer
from ringfence.machine.map import SUPERPAGE
from ringfence.machine.virtualizer import Cause
from ringfence.monitor.monitor import Monitor

SHORT, LONG = 20_000, 100_000_000
"""Steps of a slice."""
TURN, TURNS = 10_000_000, 10
SWITCH = 20.0
"""The most microseconds of a switch."""
FAULTS = 64
DEPTHS = range(1, 9)


def switches(runs: int) -> list[Row]:
    """Of two machines that are busy."""
    found: list[tuple[float, float]] = []
    for _ in range(runs):
        found.append((_switch(_monitor), _switch(_vmm)))
    python, guest = (statistics.median(column) for column in zip(*found, strict=True))
    return [
        Row("from one machine to another, by the monitor in Python", python, "µs", SWITCH),
        Row("from one machine to another, by vmm", guest, "µs", SWITCH),
    ]


Site = tuple[Callable[[int], object], Callable[[], int]]
"""What runs two machines for so many steps, and how many switches there were."""


def _switch(make: Callable[[int], Site]) -> float:
    """Microseconds."""
    sites = {quantum: make(quantum) for quantum in (SHORT, LONG)}
    seconds, switches = dict.fromkeys(sites, 0.0), {}
    for quantum, (run, count) in sites.items():
        run(TURN)
        switches[quantum] = -count()
    for _ in range(TURNS):  # in turns: what disturbs the host disturbs both
        for quantum, (run, _) in sites.items():
            start = time.process_time()
            run(TURN)
            seconds[quantum] += time.process_time() - start
    for quantum, (_, count) in sites.items():
        switches[quantum] += count()
    return 1e6 * (seconds[SHORT] - seconds[LONG]) / (switches[SHORT] - switches[LONG])


def _monitor(quantum: int) -> Site:
    monitor = Monitor(virt(64 * MiB), quantum=quantum)
    guests = [monitor.create(name, 16 * MiB) for name in ("one", "other")]
    for guest in guests:
        load(guest, program("integer", rounds=4000), bios="none")
    return monitor.run, lambda: sum(guest.account.switches for guest in guests)


def _vmm(quantum: int) -> Site:
    machine = virt(64 * MiB, isa="hv")
    busy = program("integer", rounds=4000, supervisor=True)
    load(machine, VMM, initrd=[busy], append=f"depth=1 level=1 other=1 quantum={quantum}")
    assert machine.virtualizer is not None
    exits = machine.virtualizer.exits
    return lambda steps: machine.run(steps, exact=False), lambda: exits[Cause.BUDGET]


def faults(runs: int) -> list[Row]:
    """VM-faults of the machine at the bottom of vmm on vmm, whose monitors' own memory is there."""
    rows, most = [], 0.0
    micros: dict[int, float] = {}
    for depth in DEPTHS:
        found = [_faults(depth) for _ in range(runs)]
        seconds, steps, entered = (statistics.median(column) / FAULTS for column in zip(*found, strict=True))
        micros[depth] = 1e6 * seconds
        most = max(most, entered)
        rows.append(Row(f"at depth {depth}, with {steps:.0f} steps of its monitor", micros[depth], "µs"))
    first, last = DEPTHS[0], DEPTHS[-1]
    return [
        *rows,
        Row(f"at depth {last}, that at depth {first} = 1", micros[last] / micros[first], "x", last / first),
        Row("monitors entered for one, at most", most, "", 1),
    ]


def _faults(depth: int) -> tuple[float, float, float]:
    """(seconds, steps of the monitor, monitors entered) of FAULTS at this depth."""
    machine = virt((FAULTS + 8 + 4 * depth) * SUPERPAGE, isa="hv")
    load(machine, VMM, initrd=[_touching()], append=f"depth={depth} level=1")
    machine.console.expect("<")
    levels: list[Computer] = [machine]
    while levels[-1].launched:
        levels.append(levels[-1].launched[1])
    assert len(levels) == depth + 1
    monitor, bottom = levels[-2:]
    begun, entered = monitor.steps - bottom.steps, _entered(levels)
    start = time.process_time()
    machine.console.expect(">")
    seconds = time.process_time() - start
    return seconds, monitor.steps - bottom.steps - begun, _entered(levels) - entered


def _entered(levels: list[Computer]) -> int:
    return sum(level.virtualizer.exits.total() for level in levels if level.virtualizer is not None)


def _touching() -> bytes:
    """The program with a word to load in every superpage that it will ask for: the monitor that loads it has written
    there, so those below have given the memory.
    """
    content = program("touch", rounds=FAULTS, supervisor=True).read_bytes()
    header = bytearray(content[:64])
    at, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
    segments = content[at : at + 56 * count]
    for n in range(1, FAULTS + 1):
        place = 0x8020_0000 + n * SUPERPAGE
        segments += struct.pack("<IIQQQQQQ", 1, 6, len(content), place, place, 8, 8, 8)
    struct.pack_into("<Q", header, 32, len(content) + 8)
    struct.pack_into("<H", header, 56, count + FAULTS)
    return bytes(header) + content[64:] + bytes(8) + segments
