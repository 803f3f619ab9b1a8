"""Whatever a guest does, and whatever a monitor on a virtual machine writes, reaches nothing of others."""

from __future__ import annotations

import random

import pytest
from states import MEMORY, SCALE
from test_engine_programs import Program
from test_equivalence import selftest

from ringfence import CORRAL, MiB, Monitor, load, virt
from ringfence.errors import RingfenceError
from ringfence.machine.memory import FRAME
from ringfence.monitor.monitor import Technique

SECRET = b"nobody else's: " * 64


@pytest.mark.parametrize("technique", ["virtualizer", "trap"])
def test_hostile_guests_change_nothing_of_another(technique: Technique) -> None:
    """Random programs at every privilege, that write page tables, devices and their own code, run in turns with
    Corral's self-test, which ends with the bare machine's hash.
    """
    alone = virt(64 * MiB)
    expected = selftest(alone)
    monitor = Monitor(virt(160 * MiB), quantum=20_000)
    victim = monitor.create("victim", 64 * MiB)
    load(victim, CORRAL)
    hostile = [
        Program(f"hostile {n}").load(monitor.create(f"hostile {n}", MEMORY, turn=300, seed=1, technique=technique))
        for n in range(round(2 * SCALE))
    ]
    victim.console.expect("corral> ")
    victim.console.send("selftest\n")
    while victim.steps < alone.steps - 50_000:
        monitor.run(200_000)
    victim.run(alone.steps - victim.steps)
    assert victim.digest() == expected
    assert sum(guest.steps for guest in hostile) > 100_000


def test_frames_come_to_a_machine_without_what_others_left() -> None:
    """Memory that held another's secret is zero for whoever gets it, after paging and after the other is gone."""
    monitor = Monitor(virt(48 * MiB))
    first = monitor.create("first", 24 * MiB)
    for at in range(0, first.ram.size, FRAME):
        first.ram.write(first.ram.base + at, SECRET)
    for at in range(0, first.ram.size, 7 * FRAME):
        monitor.page_out(first, at)
    second = monitor.create("second", 20 * MiB)
    for at in range(0, second.ram.size, FRAME):
        assert second.ram.read(second.ram.base + at, FRAME) == bytes(FRAME)
    monitor.destroy("first")
    monitor.destroy("second")
    third = monitor.create("third", 40 * MiB)
    assert third.ram.read(third.ram.base, third.ram.size) == bytes(third.ram.size)


def test_wild_map_reaches_nothing_outside_its_machine() -> None:
    """A monitor on a virtual machine writes anything at all into its f tables: its guest may end, with a reason; the
    machine beside that one is as it was.
    """
    rng = random.Random(5)
    ended = 0
    for _ in range(round(3 * SCALE)):
        outer = Monitor(virt(160 * MiB))
        beside = outer.create("beside", 32 * MiB)
        beside.ram.write(beside.ram.base, SECRET * 4000)
        middle = outer.create("middle", 64 * MiB)
        inner = Monitor(middle).create("inner", 32 * MiB)
        load(inner, CORRAL)
        inner.run(50_000)
        f = inner.ram.f
        before = beside.digest()
        for n in range(20):
            slot = rng.choice((f.root + 8 * rng.randrange(1, 4), rng.randrange(0, middle.ram.size, 8)))
            entry = rng.getrandbits(64) if rng.random() < 0.5 else rng.getrandbits(30) << 10 | rng.choice((1, 0xDF))
            if not n:  # the entry that maps all of the guest's memory
                slot, entry = f.root, rng.getrandbits(44) << 10 | 1
            middle.ram.write(middle.ram.base + slot, entry.to_bytes(8, "little"))
        inner.ram._forget((0, inner.ram.size))
        inner.ram.derived.moved()
        try:
            inner.run(200_000)
            inner.ram.read(inner.ram.base, 8 * MiB)
        except RingfenceError:
            ended += 1
        assert beside.digest() == before
        assert beside.ram.read(beside.ram.base, len(SECRET)) == SECRET
    assert ended == round(3 * SCALE)
