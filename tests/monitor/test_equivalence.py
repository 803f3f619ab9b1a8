"""A virtual machine is a machine: what a guest does on it is what it does on the bare one, to the last bit."""

from __future__ import annotations

from functools import cache
from typing import Literal

import pytest

from ringfence import CORRAL, Image, MiB, Virt, load, virt
from ringfence.monitor.monitor import Monitor, nested

Engine = Literal["threaded", "reference"]


def selftest(machine: Virt) -> str:
    """Corral, and the digest behind its self-test."""
    load(machine, CORRAL)
    machine.console.expect("corral> ")
    machine.console.send("selftest\n")
    assert int(machine.console.expect(r"selftest: \d+ passed, (\d+) failed")[1]) == 0
    machine.run(100_000)
    return machine.digest()


@cache
def bare_selftest(harts: int) -> str:
    return selftest(virt(64 * MiB, harts))


@pytest.mark.parametrize("harts", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_selftest_is_the_same_at_any_depth(depth: int, harts: int) -> None:
    """Corral's self-test uses every kind of trap, page table and device."""
    assert selftest(nested(depth, 64 * MiB, harts)) == bare_selftest(harts)


@pytest.mark.parametrize("depth", [1, 8])
def test_selftest_is_the_same_in_the_reference(depth: int) -> None:
    """The reference reading goes through every f too."""
    assert selftest(nested(depth, 64 * MiB, engine="reference")) == bare_selftest(1)


def boot(machine: Virt, image: Image) -> str:
    load(machine, image.kernel, initrd=[image.initrd], append=image.append())
    machine.console.expect(":~# ", timeout=2)
    return machine.digest()


@pytest.mark.parametrize("depths", [(0, 8), pytest.param((0, 1, 2, 4), marks=pytest.mark.long)])
def test_debian_boots_the_same_at_any_depth(depths: tuple[int, ...], debian: Image) -> None:
    """To its shell, with two harts."""
    assert len({boot(nested(depth, 256 * MiB, 2), debian) for depth in depths}) == 1


def test_two_guests_do_not_notice_each_other() -> None:
    """They run in turns, and each comes where it would have come alone."""
    machine = virt(160 * MiB)
    monitor = Monitor(machine)
    guests = [monitor.create(name, 64 * MiB) for name in ("one", "two")]
    for guest in guests:
        load(guest, CORRAL)
    alone = virt(64 * MiB)
    load(alone, CORRAL)
    for steps in (1, 1000, 77_777, 300_000, 5_000_000):
        alone.run(steps)
        for guest in guests:
            guest.run(steps)
    assert {guest.digest() for guest in guests} == {alone.digest()}
    assert machine.steps == 2 * alone.steps
