"""Machines whose TLB software fills, on monitors: the guest sees the misses of the bare machine, and no others."""

from __future__ import annotations

import random
from functools import cache

import pytest
import test_engine_changes as changes
from states import MEMORY, SCALE, difference, digest, machine
from test_engine_programs import STEPS, check
from test_equivalence import selftest
from test_software_tlb import CHANGES, LONGER, Filling, load

from ringfence import CORRAL, MiB, Monitor, Virt, nested, virt
from ringfence import load as load_program
from ringfence.machine.board import Tlb
from ringfence.monitor.monitor import Technique
from ringfence.monitor.technique import refill
from ringfence.monitor.technique.refill import SecondLevel, TrapAndRefill

TRAP: list[Technique] = ["trap"]
VIRTUALIZER: list[Technique] = ["virtualizer"]


def inner(techniques: list[Technique], harts: int = 1, turn: int = 300, seed: int = 1, second_level: int = 64) -> Virt:
    """The machine of `states`, on monitors."""
    host: Virt = virt(64 * MiB, tlb="software")
    for technique in techniques[:-1]:
        host = Monitor(host).create("outer", host.ram.size - 8 * MiB, technique=technique)
    return Monitor(host).create(
        "inner", MEMORY, harts, turn=turn, seed=seed, technique=techniques[-1], second_level=second_level
    )


@cache
def bare_selftest(harts: int = 1) -> str:
    return selftest(virt(64 * MiB, harts, tlb="software"))


MIXED = [VIRTUALIZER, VIRTUALIZER * 4, TRAP, TRAP * 2, TRAP + VIRTUALIZER, VIRTUALIZER + TRAP]


@pytest.mark.parametrize("techniques", MIXED, ids="-".join)
def test_selftest_is_the_same_under_any_techniques(techniques: list[Technique]) -> None:
    """Corral's self-test fills the TLB by page tables of every mode, and looks for what it refuses."""
    assert selftest(nested(len(techniques), 64 * MiB, technique=techniques, tlb="software")) == bare_selftest()


@pytest.mark.parametrize("technique", ["virtualizer", "trap", "vm-bit"])
def test_selftest_with_harts_is_the_same(technique: Technique) -> None:
    """Each hart has its own entries."""
    assert selftest(nested(1, 64 * MiB, 3, technique=technique, tlb="software")) == bare_selftest(3)


@pytest.mark.parametrize(("depth", "technique"), [(0, "virtualizer"), (1, "trap"), (1, "vm-bit")])
def test_selftest_is_the_same_in_the_reference(depth: int, technique: Technique) -> None:
    """The reference reading finds the same entries."""
    found = nested(depth, 64 * MiB, engine="reference", technique=technique, tlb="software")
    assert selftest(found) == bare_selftest()


@pytest.mark.parametrize("tlb", ["hardware", "software"])
def test_one_corral_runs_on_either_machine(tlb: Tlb) -> None:
    """The same file asks the device tree; who fills the TLB can count."""
    board = virt(64 * MiB, tlb=tlb)
    load_program(board, CORRAL)
    board.console.expect("corral> ")
    board.console.send("run primes\n")
    board.console.expect("corral> ")
    board.console.send("mem\n")
    board.console.expect("corral> ")
    assert ("misses" in board.console.text) == (tlb == "software")


@pytest.mark.parametrize("techniques", [VIRTUALIZER * 2, TRAP, TRAP * 2, TRAP + VIRTUALIZER], ids="-".join)
def test_random_programs_are_the_same(techniques: list[Technique]) -> None:
    """Programs that fill the TLB and change privilege and code end as in the reference on the bare machine."""
    for case in range(round(8 * SCALE)):
        program = Filling(f"refill {case}")
        expected, found = program.load(machine(tlb="software")), program.load(inner(techniques))
        ends = [board.run(until=program.clock * 100 + STEPS) for board in (expected, found)]
        check(expected, found, f"program refill {case}")
        assert ends[0] == ends[1]


@pytest.mark.parametrize("techniques", [VIRTUALIZER, TRAP], ids="-".join)
def test_random_programs_of_several_harts_are_the_same(techniques: list[Technique]) -> None:
    """Harts share memory, and no entry."""
    for case in range(round(5 * SCALE)):
        program = Filling(f"refill harts {case}", 3)
        expected = program.load(machine(harts=3, turn=50, seed=case, tlb="software"))
        found = program.load(inner(techniques, 3, 50, case))
        ends = [board.run(until=program.clock * 100 + STEPS) for board in (expected, found)]
        check(expected, found, f"program refill harts {case}")
        assert ends[0] == ends[1]


@pytest.mark.parametrize("techniques", [TRAP, TRAP * 2], ids="-".join)
@pytest.mark.parametrize("name", CHANGES)
def test_change_is_seen_at_once(name: str, techniques: list[Technique]) -> None:
    """What the guest makes of an entry is so for its next access, whatever the real TLB and the second level hold."""
    expected = load(machine(tlb="software"), CHANGES[name])
    found = load(inner(techniques, second_level=8), CHANGES[name])
    for end in range(100, LONGER, 400):
        ends = expected.run(until=end), found.run(until=end)
        assert ends[0] == ends[1] and digest(expected) == digest(found), "\n".join(difference(expected, found, 1 << 17))
    assert changes.STEPS < LONGER


def second(guest: Virt) -> SecondLevel:
    assert isinstance(guest.engine, TrapAndRefill)
    return guest.engine.second


def test_second_level_answers_without_the_guest() -> None:
    """Of the misses of the real TLB some are the guest's own, and the others the monitor's: a pair that it remembers,
    or one composed anew; few, for what the guest installs is there at once. Switched off, or small, it changes nothing
    but that.
    """
    found = {}
    for size in (4096, 16, 0):
        host = Monitor(virt(80 * MiB, tlb="software"))
        guest = host.create("guest", 64 * MiB, technique="trap", second_level=size)
        assert selftest(guest) == bare_selftest()
        found[size] = second(guest)
    assert found[4096].answered > found[16].answered > found[0].answered == 0
    assert len({counts.reflected for counts in found.values()}) == 1
    assert len({counts.answered + counts.composed for counts in found.values()}) == 1
    assert {counts.installed for counts in found.values()} == {found[0].installed}
    assert found[0].installed > 4 * found[0].composed


def test_address_spaces_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guest has more than the real TLB can tell apart, numbers are given anew."""
    monkeypatch.setattr(refill, "ASIDS", 2)
    assert selftest(nested(1, 64 * MiB, technique="trap", tlb="software")) == bare_selftest()


@pytest.mark.parametrize("outer", ["trap", "virtualizer"])
def test_frames_taken_from_a_guest_come_back(outer: Technique) -> None:
    """The pairs follow f: frames are taken at both levels while the guest runs, and it ends as it would have."""
    rng = random.Random(3)
    host = Monitor(virt(160 * MiB, tlb="software"))
    middle = host.create("middle", 120 * MiB, technique=outer)
    monitor = Monitor(middle)
    guest = monitor.create("guest", 64 * MiB, technique="trap")
    run = guest.engine.run

    def disturbed(*arguments: object) -> object:
        for taker, victim in ((monitor, guest), (host, middle)):
            for _ in range(40):
                taker.page_out(victim, rng.randrange(victim.ram.size >> 12) << 12)
        return run(*arguments)  # type: ignore[arg-type]

    guest.engine.run = disturbed  # type: ignore[method-assign,assignment]
    assert selftest(guest) == bare_selftest()
