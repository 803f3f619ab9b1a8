"""Trap and emulate: a guest whose modes run in others does not notice, where what is sensitive traps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import test_engine_changes as changes
from states import MEMORY, SCALE, difference, digest, machine
from test_engine_programs import STEPS, Program, check
from test_equivalence import bare_selftest, boot, selftest

from ringfence import CORRAL, Image, MachineError, MiB, Monitor, Virt, VirtualMachine, load, nested, virt
from ringfence.machine.engine.native import Native
from ringfence.machine.memory import FRAME
from ringfence.monitor.monitor import Technique
from ringfence.monitor.technique.trap import TrapAndEmulate

Engine = Literal["threaded", "reference"]
TRAP: list[Technique] = ["trap"]
VM_BIT: list[Technique] = ["vm-bit"]
TRANSLATION: list[Technique] = ["translation"]
VIRTUALIZER: list[Technique] = ["virtualizer"]


def trapped(techniques: Sequence[Technique], engine: Engine, harts: int = 1, turn: int = 300, seed: int = 1) -> Virt:
    """The machine of `states`, on monitors."""
    host: Virt = virt(64 * MiB, engine=engine)
    for technique in techniques[:-1]:
        host = Monitor(host).create("outer", host.ram.size - 8 * MiB, technique=technique)
    return Monitor(host).create("inner", MEMORY, harts, turn=turn, seed=seed, technique=techniques[-1])


@pytest.mark.parametrize(
    ("techniques", "engine", "cases"),
    [
        (TRAP, "threaded", 15),
        (TRAP * 3, "threaded", 5),
        (TRAP, "reference", 3),
        (VM_BIT, "threaded", 15),
        (VM_BIT * 3, "threaded", 5),
        (VM_BIT, "reference", 3),
        (TRAP + VM_BIT, "threaded", 5),
        (VM_BIT + TRAP, "threaded", 5),
        (TRAP + VM_BIT, "reference", 2),
        (TRANSLATION, "threaded", 10),
        (TRANSLATION * 3, "threaded", 3),
        (TRANSLATION, "reference", 2),
        (TRAP + TRANSLATION, "threaded", 3),
        (TRANSLATION + VM_BIT, "threaded", 3),
        (VM_BIT + TRANSLATION, "reference", 2),
    ],
)
def test_random_programs_are_the_same(techniques: list[Technique], engine: Engine, cases: int) -> None:
    """Programs that change page tables, privilege and code end as they do in the reference on the bare machine."""
    for case in range(round(cases * SCALE)):
        program = Program(f"trap {case}")
        expected, found = program.load(machine()), program.load(trapped(techniques, engine))
        ends = [board.run(until=program.clock * 100 + STEPS) for board in (expected, found)]
        check(expected, found, f"program trap {case}")
        assert ends[0] == ends[1]


@pytest.mark.parametrize("techniques", [TRAP, VM_BIT, TRANSLATION], ids="-".join)
def test_random_programs_of_several_harts_are_the_same(techniques: list[Technique]) -> None:
    """Harts share shadows, and take turns."""
    for case in range(round(8 * SCALE)):
        program = Program(f"trap harts {case}", 3)
        expected = program.load(machine(harts=3, turn=50, seed=case))
        found = program.load(trapped(techniques, "threaded", harts=3, turn=50, seed=case))
        ends = [board.run(until=program.clock * 100 + STEPS) for board in (expected, found)]
        check(expected, found, f"program trap harts {case}")
        assert ends[0] == ends[1]


@pytest.mark.parametrize("techniques", [TRAP, VM_BIT, TRANSLATION], ids="-".join)
def test_random_programs_do_not_depend_on_stops(techniques: list[Technique]) -> None:
    """A run in pieces is the run in one."""
    for case in range(round(8 * SCALE)):
        program = Program(f"trap stops {case}")
        whole, cut = program.load(machine()), program.load(trapped(techniques, "threaded"))
        whole.run(6000)
        for piece in (1, 998, 1, 3000, 2000):
            cut.run(piece)
        check(whole, cut, f"program trap stops {case}")


CHANGED = [TRAP, TRAP * 2, VM_BIT, VM_BIT * 2, TRAP + VM_BIT, TRANSLATION, TRAP + TRANSLATION]


@pytest.mark.parametrize("techniques", CHANGED, ids="-".join)
@pytest.mark.parametrize("name", changes.CHANGES)
def test_change_is_seen_at_once(name: str, techniques: list[Technique]) -> None:
    """What the guest changes in a page table, protection or status is so for its next access, without any fence."""
    change = changes.CHANGES[name]
    expected, found = changes.load(machine(), change), changes.load(trapped(techniques, "threaded"), change)
    for end in range(100, changes.STEPS, 100):
        ends = expected.run(until=end), found.run(until=end)
        assert ends[0] == ends[1] and digest(expected) == digest(found), "\n".join(difference(expected, found, 1 << 17))


MIXED = [TRAP, TRAP * 2, TRAP * 4, TRAP * 8, TRAP + VIRTUALIZER, VIRTUALIZER + TRAP, TRAP + VIRTUALIZER * 2 + TRAP]
MIXED += [VM_BIT, VM_BIT * 2, VM_BIT * 4, TRAP + VM_BIT, VM_BIT + TRAP, VIRTUALIZER + VM_BIT, VM_BIT + VIRTUALIZER]
MIXED += [TRANSLATION, TRANSLATION * 2, TRANSLATION * 4, TRANSLATION + TRAP, TRAP + TRANSLATION, VM_BIT + TRANSLATION]
MIXED += [TRANSLATION + VM_BIT, TRANSLATION + VIRTUALIZER, VIRTUALIZER + TRANSLATION]


@pytest.mark.parametrize("techniques", MIXED, ids="-".join)
def test_selftest_is_the_same_under_any_techniques(techniques: list[Technique]) -> None:
    """Pure and mixed, to any depth."""
    assert selftest(nested(len(techniques), 64 * MiB, technique=techniques)) == bare_selftest(1)


def test_rings_with_s_are_wrong_without_a_vm_bit() -> None:
    """What does not trap there goes to the hart that is lent: the guest's trap vector with it, so its first trap ends
    nowhere.
    """
    guest, alone = nested(1, 64 * MiB, technique="trap-s"), virt(64 * MiB)
    for board in (guest, alone):
        load(board, CORRAL, append="-- selftest")
        board.run(100_000)
    assert guest.digest() != alone.digest()
    assert guest.harts[0].stvec == 0 != alone.harts[0].stvec
    assert "ok" not in guest.console.text and "ok" in alone.console.text


def test_vm_bit_saves_entries() -> None:
    """What only reads sstatus is not applied by anybody; and S and U share shadows."""
    one, other = (nested(1, 64 * MiB, technique=technique) for technique in (*TRAP, *VM_BIT))
    assert selftest(one) == selftest(other)
    assert isinstance(one.engine, TrapAndEmulate) and isinstance(other.engine, TrapAndEmulate)
    assert other.engine.applied_natively < one.engine.applied_natively
    assert other.engine.filled < one.engine.filled


def test_technique_that_there_is_not_is_refused() -> None:
    """And so is a list that is not one for each monitor."""
    with pytest.raises(MachineError, match="there is no technique 'magic'"):
        Monitor(virt(64 * MiB)).create("guest", 8 * MiB, technique="magic")  # type: ignore[arg-type]
    for depth, techniques in ((0, TRAP), (1, []), (2, TRAP), (1, TRAP * 2)):
        with pytest.raises(MachineError, match="techniques are given for a depth of"):
            nested(depth, 8 * MiB, technique=techniques)


@pytest.mark.parametrize(("harts", "depth"), [(1, 1), (1, 2), (3, 1)])
def test_shadows_may_be_rebuilt_at_each_write_of_satp(harts: int, depth: int) -> None:
    """The guest does not notice; there is more to fill."""
    filled = []
    for shadows in ("kept", "rebuilt"):
        guest: Virt = virt(96 * MiB, harts)
        for memory in (80, 64)[2 - depth :]:
            guest = Monitor(guest).create("guest", memory * MiB, harts, technique="trap", shadows=shadows)
        assert selftest(guest) == bare_selftest(harts)
        assert isinstance(guest.engine, TrapAndEmulate)
        filled.append(guest.engine.filled)
    assert filled[1] > filled[0]


@pytest.mark.parametrize("technique", [*TRAP, *VM_BIT, *TRANSLATION])
def test_selftest_with_harts_is_the_same(technique: Technique) -> None:
    assert selftest(nested(2, 64 * MiB, 3, technique=technique)) == bare_selftest(3)


def test_no_level_adds_steps_for_the_reference() -> None:
    """What a monitor further down cannot map is the fault of the one above it, who can."""
    deep = nested(2, 64 * MiB, technique="trap")
    one = nested(1, 64 * MiB, technique="trap")
    assert selftest(deep) == selftest(one)
    assert isinstance(deep.engine, TrapAndEmulate) and isinstance(one.engine, TrapAndEmulate)
    assert deep.engine.interpreted <= one.engine.interpreted * 1.01


@pytest.mark.parametrize("depth", [1, 2])
def test_entry_that_comes_back_is_filled_natively(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page table's entry that the guest clears and writes again needs no monitor; nor does the guest notice."""
    filled = []
    for _ in range(2):
        guest = nested(depth, 64 * MiB, technique="trap")
        assert selftest(guest) == bare_selftest(1)
        assert isinstance(guest.engine, TrapAndEmulate)
        filled.append(guest.engine.filled)
        monkeypatch.setattr(Native, "filled", lambda self, place, source, entry: None)
    assert filled[0] < filled[1]


@pytest.mark.parametrize("technique", [*TRAP, *VM_BIT, *TRANSLATION])
def test_selftest_is_the_same_in_the_reference(technique: Technique) -> None:
    assert selftest(nested(1, 64 * MiB, engine="reference", technique=technique)) == bare_selftest(1)


@pytest.fixture(scope="module")
def booted(debian: Image) -> str:
    return boot(nested(0, 256 * MiB), debian)


@pytest.mark.parametrize("technique", ["trap", "vm-bit", "translation"])
@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.long)])
def test_debian_boots_the_same(technique: Technique, depth: int, booted: str, debian: Image) -> None:
    """With every mode of its own in user mode; or with a VM bit or translated."""
    assert boot(nested(depth, 256 * MiB, technique=technique), debian) == booted


TAKEN = [("trap", "trap"), ("virtualizer", "trap"), ("vm-bit", "vm-bit"), ("translation",) * 2, ("trap", "translation")]


@pytest.mark.parametrize(("outer", "inner"), TAKEN)
def test_frames_taken_from_a_trapped_guest_come_back(outer: Technique, inner: Technique) -> None:
    """Shadows follow f: frames are taken at both levels while the guest runs, and it ends as it would have."""
    rng = random.Random(3)
    host = Monitor(virt(160 * MiB))
    middle = host.create("middle", 120 * MiB, technique=outer)
    monitor = Monitor(middle)
    guest = monitor.create("guest", 64 * MiB, technique=inner)

    def disturb(run: Callable[..., object]) -> Callable[..., object]:
        def disturbed(*arguments: object, **named: object) -> object:
            for taker, victim in ((monitor, guest), (host, middle)):
                for _ in range(40):
                    taker.page_out(victim, rng.randrange(victim.ram.size >> 12) << 12)
            return run(*arguments, **named)

        return disturbed

    guest.engine.run = disturb(guest.engine.run)  # type: ignore[method-assign,assignment]
    assert selftest(guest) == bare_selftest(1)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("trap", "trap"), ("virtualizer", "trap"), ("virtualizer", "translation"), ("translation",) * 2],
)
def test_frames_taken_while_shadows_are_made_come_back(outer: Technique, inner: Technique) -> None:
    """Memory is short whenever a frame is asked for, at either level, so that the guest's own tables and the shadows'
    are taken away while one that leads to them is made.
    """
    rng = random.Random(7)
    host = Monitor(virt(160 * MiB))
    middle = host.create("middle", 120 * MiB, technique=outer)
    monitor = Monitor(middle)
    guest = monitor.create("guest", 64 * MiB, technique=inner)
    taken = 0

    def short(taker: Monitor, victim: VirtualMachine, tables: Callable[[], Sequence[int]]) -> None:
        allocator = taker._allocator
        give, busy = allocator.frame, False

        def frame(keep: int | None = None) -> int:
            nonlocal busy, taken
            if keep is None:  # for a table of f, for which nothing is taken
                return give()
            if not busy and rng.random() < 0.5:
                busy = True
                some = [*rng.sample(tables(), min(1, len(tables()))), rng.randrange(0, victim.ram.size, FRAME)]
                taken += taker.page_out(victim, rng.choice(some) & -FRAME)
                busy = False
            return give(keep)

        allocator.frame = frame  # type: ignore[method-assign]

    load(guest, CORRAL)
    guest.run(200_000)
    engine = guest.engine
    assert isinstance(engine, TrapAndEmulate)
    shadows = engine._shadows
    short(monitor, guest, lambda: list(shadows.traced))
    short(host, middle, lambda: [table.place for table in shadows._tables.values()])
    load(guest, CORRAL)
    alone = virt(64 * MiB)
    load(alone, CORRAL)
    alone.run(200_000)
    load(alone, CORRAL)
    for board in (alone, guest):
        board.console.expect("corral> ")
        board.console.send("selftest\n")
        board.console.expect(" 0 failed")
    assert guest.digest() == alone.digest()
    assert taken > 20
