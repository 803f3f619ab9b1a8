"""Memory that the monitor takes away and gives: no machine notices."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest

from ringfence import CORRAL, Idle, Image, MachineError, MiB, Virt, VirtualMachine, load, virt
from ringfence.errors import OutOfMemory
from ringfence.isa.trap import M
from ringfence.machine.memory import FRAME
from ringfence.monitor.monitor import Monitor, Technique

STEPS = 600_000
"""Corral's self-test has ended by then, and it waits for input."""


def begin(machine: Virt) -> None:
    load(machine, CORRAL)
    machine.console.send("selftest\n")


def bare(memory: int = 32 * MiB) -> Virt:
    machine = virt(memory)
    begin(machine)
    assert isinstance(machine.run(STEPS), Idle)
    assert " 0 failed" in machine.console.text
    return machine


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inner", [False, True])
def test_frames_are_taken_at_random_steps(seed: int, inner: bool) -> None:
    """From the machine, or from the one that it is on."""
    draw = random.Random(seed)
    below = Monitor(virt(64 * MiB))
    vm = outer = below.create("outer", 48 * MiB if inner else 32 * MiB)
    if inner:
        vm = Monitor(outer).create("inner", 32 * MiB)
    begin(vm)
    monitors = dict.fromkeys((vm.monitor, below))
    while not isinstance(vm.run(draw.randrange(1, 40_000)), Idle):
        for monitor in monitors:
            (guest,) = monitor.guests.values()
            there = [at // FRAME for at, _, _, _ in guest.ram.f.pages()]
            for number in draw.sample(there, min(len(there), 100)):
                monitor.page_out(guest, number * FRAME)
    assert vm.digest() == bare().digest()


def test_guests_are_paged_where_memory_is_short(debian: Image) -> None:
    """Two Debians of 96 MiB share 80 MiB, and each boots as it does alone."""

    def start(machine: Virt) -> None:
        load(machine, debian.kernel, initrd=[debian.initrd], append=debian.append())

    monitor = Monitor(virt(80 * MiB))
    guests = [monitor.create(name, 96 * MiB) for name in ("one", "two")]
    for guest in guests:
        start(guest)
    for _ in range(22):
        for guest in guests:
            guest.run(50_000_000)
    alone = virt(96 * MiB)
    start(alone)
    alone.run(1_100_000_000)
    assert "root@ringfence" in alone.console.text
    assert {guest.digest() for guest in guests} == {alone.digest()}


def test_full_paging_disk_stops_the_guest_that_asks() -> None:
    """With a reason; the other goes on, and nothing that was written is lost."""
    monitor = Monitor(virt(16 * MiB), paging=1 * MiB)
    greedy = monitor.create("greedy", 64 * MiB)
    other = monitor.create("other", 8 * MiB, resident=8 * MiB)
    begin(other)
    other.run(STEPS // 2)
    with pytest.raises(OutOfMemory, match="paging disk is full"):
        for at in range(0, greedy.ram.size, FRAME):
            greedy.ram.write(greedy.ram.base + at, b"data")
    other.run(STEPS - other.steps)
    assert other.digest() == bare(8 * MiB).digest()
    written = at // FRAME
    assert all(greedy.ram.read(greedy.ram.base + n * FRAME, 4) == b"data" for n in range(written))


@pytest.mark.parametrize("seed", range(6))
def test_full_paging_disk_loses_nothing(seed: int) -> None:
    """Whichever machine writes where and is refused, and whoever comes in the meantime: what was written is there, once
    and in its place.
    """
    draw = random.Random(seed)
    monitor = Monitor(virt(16 * MiB), paging=draw.randrange(1, 9) * MiB // 4)
    kept: dict[VirtualMachine, dict[int, bytes]] = {}
    refused = 0
    for name in ("one", "two", "large", "larger", "largest"):
        try:
            memory = 12 * MiB if len(kept) < 2 else 512 * MiB
            kept[monitor.create(name, memory, resident=draw.choice((0, 2 * MiB)))] = {}
        except MachineError:
            refused += 1
        for _ in range(1200):
            vm = draw.choice(list(kept))
            at = draw.randrange(0, 12 * MiB, FRAME)
            data = draw.randbytes(8)
            try:
                vm.ram.write(vm.ram.base + at, data)
            except OutOfMemory:
                refused += 1
            else:
                kept[vm][at] = data
    assert refused
    for vm, written in kept.items():
        found = dict(vm.ram.frames())
        assert {at: found[at // FRAME][:8] for at in written} == written
        assert not any(vm.ram.f.look(at) for at in vm.paged)


def test_resident_memory_is_not_paged() -> None:
    """A machine keeps what is reserved for it."""
    monitor = Monitor(virt(16 * MiB))
    kept = monitor.create("kept", 8 * MiB, resident=8 * MiB)
    other = monitor.create("other", 32 * MiB)
    for vm in (kept, other):
        for at in range(0, vm.ram.size, FRAME):
            vm.ram.write(vm.ram.base + at, b"data")
    assert not kept.paged and other.paged


def fill(machine: Virt) -> None:
    for at in range(0, machine.ram.size, FRAME):
        machine.ram.write(machine.ram.base + at, b"data")


def test_destroyed_machine_gives_everything_back() -> None:
    """Frames, tables, slots of the paging disk and harts: one machine after the other has them, and finds zeroes."""
    monitor = Monitor(virt(16 * MiB), paging=8 * MiB)
    for _ in range(130):
        vm = monitor.create("guest", 16 * MiB, harts=8)
        assert vm.ram.read(vm.ram.base + 8 * MiB, 4) == bytes(4)
        vm.ram.write(vm.ram.base + 8 * MiB, b"data")
        monitor.destroy("guest")
    for _ in range(3):
        vm = monitor.create("guest", 22 * MiB)
        fill(vm)
        assert vm.paged
        monitor.destroy("guest")
    assert not monitor.guests
    vm = monitor.create("guest", 8 * MiB)
    begin(vm)
    vm.run(STEPS)
    assert vm.digest() == bare(8 * MiB).digest()


def test_destroyed_machine_takes_those_on_it_along() -> None:
    """Its neighbour does not notice."""
    monitor = Monitor(virt(64 * MiB))
    inner = Monitor(monitor.create("outer", 32 * MiB))
    guest = inner.create("inner", 16 * MiB)
    other = monitor.create("other", 8 * MiB)
    for vm in (guest, other):
        begin(vm)
    monitor.run(200_000)
    monitor.destroy("outer")
    assert isinstance(monitor.run(), Idle)
    assert other.digest() == bare(8 * MiB).digest()
    with pytest.raises(MachineError, match="inner has been destroyed"):
        guest.run(1)
    monitor.create("outer", 32 * MiB)


def test_destroyed_machine_is_of_no_use() -> None:
    """Everything that is asked of it is refused in a sentence; and so is destroying it again."""
    monitor = Monitor(virt(32 * MiB))
    vm = monitor.create("guest", 8 * MiB)
    console = vm.console
    monitor.destroy("guest")
    uses: list[Callable[[], object]] = [
        lambda: vm.run(1),
        lambda: vm.execute(1),
        lambda: vm.digest(),
        lambda: vm.stop(),
        lambda: vm.memory[0x8000_0000],
        lambda: console.send("x"),
        lambda: console.expect("x"),
        lambda: Monitor(vm),
    ]
    for use in uses:
        with pytest.raises(MachineError, match="guest has been destroyed"):
            use()
    assert repr(vm) == "<guest: destroyed>"
    with pytest.raises(MachineError, match="no machine 'guest'"):
        monitor.destroy("guest")


def test_refused_machine_leaves_nothing() -> None:
    """However often it is asked for."""
    monitor = Monitor(virt(8 * MiB))
    monitor.create("first", 8 * MiB, resident=6 * MiB)
    for _ in range(150):
        with pytest.raises(MachineError, match="resident memory"):
            monitor.create("guest", 8 * MiB, resident=8 * MiB)
    monitor.create("guest", 4 * MiB, resident=1 * MiB)


def test_machine_too_small_for_a_map_is_refused() -> None:
    """In a sentence."""
    monitor = Monitor(virt(4 * MiB))
    monitor.create("first", 4 * MiB, resident=4 * MiB - 64 * 1024)
    with pytest.raises(MachineError, match="map"):
        for n in range(10):
            monitor.create(f"guest{n}", 4 * MiB)


@pytest.mark.parametrize("technique", ["virtualizer", "trap", "translation"])
def test_machine_that_cannot_be_made_takes_nothing(technique: Technique, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are too few harts for it, at either level: memory and harts are free as before."""
    monkeypatch.setattr("ringfence.machine.engine.native.HARTS", 16)
    below = Monitor(virt(64 * MiB))
    outer = Monitor(below.create("outer", 48 * MiB, technique=technique))
    for monitor in (below, outer, below):
        free = monitor._allocator.free
        for _ in range(3):
            monitor.create("a", 8 * MiB, 5, technique=technique)
            with pytest.raises(MachineError, match="at most 16 harts"):
                monitor.create("b", 8 * MiB, 8, technique=technique)
                monitor.create("c", 8 * MiB, 8, technique=technique)
            for name in set(monitor.guests) - {"outer"}:
                monitor.destroy(name)
            assert monitor._allocator.free == free


@pytest.mark.parametrize("technique", ["virtualizer", "trap", "translation"])
def test_memory_is_all_free_when_all_machines_are_gone(technique: Technique) -> None:
    """Machines are made, run, shared, paged, cleared and destroyed at random, with too little memory and paging disk
    for all: no frame and no slot is free twice, or is free and a machine's, and at the end all are free.
    """
    draw = random.Random(9)
    host = Monitor(virt(96 * MiB)).create("host", 32 * MiB, technique=technique)
    monitor = Monitor(host, paging=MiB)
    everything = frames(monitor)
    done: Counter[str] = Counter()
    for n in range(300):
        names = list(monitor.guests)
        with suppress(OutOfMemory):
            match draw.choice(("make", *["run"] * 6, "share", "page", "page", "clear", "destroy")):
                case "make" if len(names) < 4:
                    vm = monitor.create(f"m{n}", draw.choice((8, 16)) * MiB, resident=draw.choice((0, 5 * FRAME)))
                    load(vm, CORRAL, append="-- selftest")
                case "share":
                    monitor.share()
                case action if not names or action == "make":
                    continue
                case "run":
                    vm = monitor.guests[draw.choice(names)]
                    if vm.harts[0].priv != M:  # else there was no memory for its program
                        vm.run(draw.randrange(100_000))
                case "page":
                    vm = monitor.guests[draw.choice(names)]
                    for at, _, _, size in draw.sample(there := list(vm.ram.f.pages()), min(len(there), 20)):
                        if at >= vm.resident:
                            monitor.page_out(vm, at + draw.randrange(0, size, FRAME))
                case "clear":
                    monitor.guests[draw.choice(names)].on_reset()  # and loaded again
                case "destroy":
                    monitor.destroy(draw.choice(names))
        for vm in monitor.guests.values():
            done.update(shared=vm.account.shared, separated=vm.account.separated, back=vm.account.paged_in)
        held = Counter(
            to + inside
            for vm in monitor.guests.values()
            for _, to, _, size in vm.ram.f.pages()
            for inside in range(0, size, FRAME)
        )
        assert not frames(monitor) & held.keys()
        assert {to: count for to, count in held.items() if count > 1}.items() <= monitor._sharers.items()
        slots = [slot for vm in monitor.guests.values() for slot in vm.paged.values()] + monitor._disk._free
        assert sorted(slots) == list(range(monitor._disk._count))
    assert min(done["shared"], done["separated"], done["back"]) > 100
    for name in list(monitor.guests):
        monitor.destroy(name)
    assert frames(monitor) == everything and not host.ram.above and not host.ram.residents


def frames(monitor: Monitor) -> set[int]:
    """Those that nobody has, each of them once."""
    allocator = monitor._allocator
    found = [at for first in allocator._superpages for at in range(first, first + 512 * FRAME, FRAME)]
    found += allocator._frames
    assert len(found) == len(set(found))
    return set(found)
