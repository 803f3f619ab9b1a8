"""`vmm`, the monitor that is a guest: itself inside itself, and the embedded guest at the bottom."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Literal

import pytest

from ringfence import CORRAL, VMM, MiB, Monitor, Virt, load, nested, virt
from ringfence.errors import MachineError
from ringfence.machine.exit import Budget, Deadline, PowerOff
from ringfence.machine.launched import Launched
from ringfence.machine.virtualizer import Cause
from ringfence.monitor.monitor import Technique

Engine = Literal["threaded", "reference"]
ENDS = " -- selftest"


def arguments(depth: int, level: int = 1, ends: str = ENDS) -> str:
    return f"depth={depth:02} level={level:02}{ends}"


def memory(depth: int) -> int:
    return (24 + 8 * depth) * MiB


def launched(machine: Virt, number: int = 1) -> Launched:
    assert machine.virtualizer is not None
    return machine.virtualizer.machines[number]


def levels(machine: Virt) -> list[Virt]:
    """The machine, the one that it launches, and so on."""
    found = [machine]
    while found[-1].launched:
        found.append(launched(found[-1]))
    return found


@cache
def bare(depth: int, size: int, harts: int = 1, seed: int | None = None) -> str:
    """The digest of a bare machine that is as the one at the bottom."""
    machine = virt(size, harts, isa="hv", seed=seed)
    load(machine, CORRAL, initrd=[CORRAL], append=arguments(0, depth + 1))
    assert isinstance(machine.run(), PowerOff)
    return machine.digest()


def check(machine: Virt, depth: int, slice_: int | None = None, seed: int | None = None) -> None:
    """The self-test on so many monitors passes, and leaves the bare machine's digest."""
    load(machine, VMM, initrd=[CORRAL], append=arguments(depth))
    while isinstance(ended := machine.run(slice_), Budget):
        pass
    assert isinstance(ended, PowerOff) and ended.status == 0, machine.console
    assert "95 passed, 0 failed" in machine.console.text or len(machine.harts) > 1
    bottom = levels(machine)[-1]
    assert len(levels(machine)) == depth + 1
    assert bottom.digest() == bare(depth, bottom.ram.size, len(machine.harts), seed)


@pytest.mark.parametrize("depth", range(1, 9))
def test_vmm_inside_itself_leaves_the_bare_hash(depth: int) -> None:
    """A monitor of C, on itself, to any depth: the guest at the bottom ends as on the bare machine."""
    check(virt(memory(depth), isa="hv"), depth)


@pytest.mark.parametrize("seed", [None, 7])
def test_vmm_gives_machines_of_several_harts(seed: int | None) -> None:
    """They take turns on the hart that launches, as they do on a bare machine."""
    check(virt(memory(2), 3, isa="hv", seed=seed), 2, seed=seed)


@pytest.mark.parametrize("depth", [1, 2])
def test_vmm_is_the_same_in_the_reference(depth: int) -> None:
    """The reference reading launches too."""
    check(virt(memory(depth), isa="hv", engine="reference"), depth)


def test_vmm_is_the_same_wherever_runs_stop() -> None:
    """A run of the machine beneath stops anywhere, and goes on."""
    check(virt(memory(3), isa="hv"), 3, slice_=7919)


@pytest.mark.parametrize(
    "techniques", [["virtualizer"], ["trap"], ["virtualizer", "trap"], ["trap", "trap"], ["translation"]]
)
def test_vmm_stands_on_monitors_of_python(techniques: list[Technique]) -> None:
    """It cannot tell a virtual machine of theirs from the bare one."""
    depth = 2
    check(nested(len(techniques), memory(depth), technique=techniques, isa="hv"), depth)


def exits(path: list[Virt]) -> list[Counter[Cause]]:
    """Why each level has been entered, and how often."""
    return [Counter(level.virtualizer.exits) for level in path[:-1] if level.virtualizer is not None]


def own_steps(path: list[Virt]) -> list[int]:
    """How many steps each level's monitor has taken itself."""
    return [below.steps - above.steps for below, above in pairwise(path)]


def test_vmm_is_entered_for_nothing_but_faults_of_its_machine() -> None:
    """Typing, system calls, page faults of processes and the timer of the guest at the bottom enter no monitor. Memory
    that nobody has touched enters each, once, as none has an answer for it.
    """
    machine = virt(memory(4), isa="hv")
    load(machine, VMM, initrd=[CORRAL], append=arguments(4, ends=""))
    machine.console.expect("corral> ")
    path = levels(machine)

    def type_(*commands: str) -> None:
        for command in commands:
            machine.console.send(f"run {command}\n")
            machine.console.expect("corral> ")

    commands = ("hello", "fault", "pingpong", "tick")
    type_(*commands)
    before, own = exits(path), own_steps(path)
    type_(*commands)
    assert exits(path) == before and own_steps(path) == own
    type_("heap")
    for now, then, steps, others in zip(exits(path), before, own_steps(path), own, strict=True):
        faults = now - then  # no f had an answer yet
        assert set(faults) == {Cause.FAULT}
        assert 0 < steps - others < 200 * faults[Cause.FAULT]


def test_vmm_that_goes_mad_leaves_those_beneath_it_running() -> None:
    """The monitor at level 3 writes over all of its memory. Those at levels 1 and 2 go on, and so do their other
    guests, which pass their self-tests, and end as on a bare machine.
    """
    machine = virt(160 * MiB, isa="hv")
    line = f"depth=4 level=1 other=1 crash=3{ENDS}"
    load(machine, VMM, initrd=[CORRAL], append=line)
    for _ in range(100):
        machine.run(10_000_000)
        one = launched(machine)
        others = [launched(machine, 2), launched(one, 2)]
        if all(other.status is not None for other in others):
            break
    assert "vmm 3: goes mad" in machine.console.text
    assert [other.status for other in others] == [0, 0]
    for level, other in enumerate(others, 1):
        alone = virt(other.ram.size, isa="hv")
        load(alone, CORRAL, initrd=[CORRAL], append=f"depth=0 level={level + 1} other=1 crash=3{ENDS}")
        alone.run()
        assert other.digest() == alone.digest()
    assert isinstance(machine.run(5_000_000), Budget)


def test_vmm_hands_on_console_status_and_restarts() -> None:
    """What is typed comes to the guest at the bottom; the status with which that ends is the machine's; a guest that
    resets itself begins again, and its monitors stay.
    """
    machine = virt(memory(3), isa="hv")
    load(machine, VMM, initrd=[CORRAL], append=arguments(3, ends=""))
    machine.console.expect("corral> ")
    machine.console.send("run primes\n")
    machine.console.expect("2262 primes")
    bottom = levels(machine)[-1]
    bottom.reset()
    machine.console.expect("a small operating system")
    machine.console.expect("corral> ")
    assert levels(machine)[-1] is not bottom
    machine.console.send("poweroff 5\n")
    ended = machine.run()
    assert isinstance(ended, PowerOff) and ended.status == 5


def test_vmm_at_rest_waits_in_real_time() -> None:
    """Under the host clock nothing runs while the guest at the bottom waits, and a key wakes it."""
    machine = virt(memory(2), isa="hv", clock="host")
    load(machine, VMM, initrd=[CORRAL], append=arguments(2, ends=""))
    machine.console.expect("corral> ")
    before = machine.steps
    assert isinstance(machine.run(until=machine.clock.now() + 300_000_000), Deadline)
    assert machine.steps < before + 100_000
    machine.console.send("run hello\n")
    machine.console.expect("corral> ")


def test_vmm_destroyed_with_its_machine_leaves_nothing() -> None:
    """A virtual machine with launched machines on it is destroyed, and its memory is free."""
    monitor = Monitor(virt(128 * MiB, isa="hv"))
    for _ in range(8):
        machine = monitor.create("a", 64 * MiB)
        load(machine, VMM, initrd=[CORRAL], append=arguments(3))
        machine.run(600_000)
        assert monitor.machine.ram.machines == 3
        monitor.destroy("a")
        assert monitor.machine.ram.machines == 0


def test_there_is_an_end_to_the_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of monitors in Python count too: a machine above the last is not launched, and its monitor is told."""
    monkeypatch.setattr("ringfence.machine.virtualizer.MOST", 2)
    machine = nested(1, memory(2), isa="hv")
    load(machine, VMM, initrd=[CORRAL], append=arguments(2))
    ended = machine.run()
    assert isinstance(ended, PowerOff) and ended.status == 1
    assert "vmm 2: the program cannot run: cause 8" in machine.console.text


@pytest.mark.parametrize(
    ("machine", "options", "said"),
    [
        (lambda: virt(64 * MiB), {"initrd": [CORRAL]}, "no Hardware Virtualizer: --isa hv"),
        (lambda: virt(64 * MiB, isa="hv"), {}, "it is given as initrd"),
        (lambda: virt(16 * MiB, isa="hv"), {"initrd": [CORRAL]}, "16 MiB are too few"),
        (lambda: virt(64 * MiB, isa="hv"), {"initrd": [b"no program"]}, "the initrd is no ELF file"),
    ],
)
def test_vmm_says_why_it_cannot_run(machine, options, said) -> None:  # type: ignore[no-untyped-def]
    """One sentence, and a status."""
    board = machine()
    load(board, VMM, **options)
    ended = board.run(10_000_000)
    assert isinstance(ended, PowerOff) and ended.status == 1
    assert said in board.console.text


def test_isa_is_one_that_there_is() -> None:
    """Another is refused in a sentence."""
    with pytest.raises(MachineError, match="there is no ISA 'x86'"):
        virt(64 * MiB, isa="x86")  # type: ignore[arg-type]


def test_vmm_gets_its_share_and_leaves_what_it_does_not_need() -> None:
    """A monitor that is a guest, with a busy machine three levels up, has its share of the hart like any other; while
    its guest waits for input the neighbour has all of it.
    """
    monitor = Monitor(virt(192 * MiB, isa="hv"), quantum=100_000)
    nested_ = monitor.create("nested", 64 * MiB, share=2)
    load(nested_, VMM, initrd=[CORRAL], append=arguments(3, ends=""))
    nested_.console.expect("corral> ")
    busy = monitor.create("busy", 32 * MiB)
    load(busy, CORRAL)
    busy.console.expect("corral> ")
    busy.console.send("run count 1000\n")
    before = nested_.steps, busy.steps
    monitor.run(3_000_000)
    waited, worked = nested_.steps - before[0], busy.steps - before[1]
    assert worked >= 0.95 * (worked + waited)

    nested_.console.send("run count 1000\n")
    monitor.run(1_000_000)
    before = nested_.steps, busy.steps
    monitor.run(6_000_000)
    assert (nested_.steps - before[0]) / (busy.steps - before[1]) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("technique", ["virtualizer", "trap", "translation"])
def test_vmm_does_not_notice_that_its_memory_is_taken(technique: Technique) -> None:
    """Frames with its program, maps and machines' memory go to the paging disk at random steps, and come back; or are
    shared with another's, and copied when they are written.
    """
    rng = random.Random(5)
    depth, taken = 2, 0
    monitor = Monitor(virt(128 * MiB, isa="hv"))
    machine = monitor.create("machine", memory(depth), technique=technique)
    twin = monitor.create("twin", 32 * MiB)
    for guest, append in ((machine, arguments(depth)), (twin, "")):
        load(guest, VMM, initrd=[CORRAL], append=append)
    twin.run(200_000)
    while isinstance(ended := machine.run(rng.randrange(1, 20_000)), Budget):
        for at, _, _, size in rng.sample(held := list(machine.ram.f.pages()), min(len(held), 8)):
            taken += monitor.page_out(machine, at + rng.randrange(0, size, 4096))
        if rng.random() < 0.2:
            monitor.share()
    assert isinstance(ended, PowerOff) and taken > 300
    assert machine.account.shared + twin.account.shared > 10 and machine.account.separated
    bottom = levels(machine)[-1]
    assert bottom.digest() == bare(depth, bottom.ram.size)
