"""Frames that machines of one monitor share: less memory, and no machine notices."""

from __future__ import annotations

import random
from functools import cache
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idioms import put
from states import MEMORY, SCALE, machine
from test_engine_programs import STEPS, Program, check
from test_software_tlb import Filling

from ringfence import CORRAL, MiB, Monitor, load, nested, virt
from ringfence.errors import OutOfMemory
from ringfence.machine.board import RAM, Tlb, Virt
from ringfence.machine.memory import FRAME, WRITE
from ringfence.monitor.monitor import Technique
from ringfence.monitor.stats import stats
from ringfence.monitor.technique.trap import TrapAndEmulate
from ringfence.monitor.vm import VirtualMachine

FRAMES = 8
BASE = 2 * MiB
"""Where the frames that the random changes are made to begin."""

numbers = st.integers(0, FRAMES - 1)
machines = st.integers(0, 2)
written = st.tuples(st.just("write"), machines, numbers, st.integers(0, 2))
others = st.tuples(st.sampled_from(["share", "page out", "zero", "clear", "recreate"]), machines, numbers, st.just(0))
CHANGES = st.lists(written | written | others, max_size=60)


def consistent(monitor: Monitor) -> None:
    """Each f is one to one; who is not alone in a frame cannot write it; a frame is counted once, and free or had."""
    had: dict[int, list[int]] = {}
    for vm in monitor.guests.values():
        own = [(to + n, rights) for _, to, rights, size in vm.ram.f.pages() for n in range(0, size, FRAME)]
        assert len({to for to, _ in own}) == len(own)
        assert vm.held == len(own) * FRAME
        for to, rights in own:
            had.setdefault(to, []).append(rights)
    for to, granted in had.items():
        assert len(granted) == 1 or not any(rights & WRITE for rights in granted), f"one of several writes {to:#x}"
    allocator = monitor._allocator
    free = [*allocator._frames, *(at + n for at in allocator._superpages for n in range(0, 2 * MiB, FRAME))]
    assert len(set(free)) == len(free) and not had.keys() & set(free)
    tables = 4 * len(monitor.guests) + monitor._tables
    lost = monitor.machine.ram.size // FRAME - len(free) - len(had) - tables
    assert lost == 0 or any(isinstance(vm.engine, TrapAndEmulate) for vm in monitor.guests.values())


@pytest.mark.parametrize("depth", [0, 1])
def test_random_changes_are_each_machines_own(depth: int) -> None:
    """Whatever is written, shared and paged out, each machine reads what it has written: as plain bytes would hold."""

    @settings(max_examples=round(60 * SCALE), deadline=None)
    @given(CHANGES, st.lists(st.booleans(), min_size=3, max_size=3))
    def holds(changes: list[tuple[str, int, int, int]], resident: list[bool]) -> None:
        host = nested(depth, 24 * MiB)
        monitor = Monitor(host)
        sizes = [BASE + FRAME if each else 0 for each in resident]
        vms = [monitor.create(f"{n}", 4 * MiB, resident=sizes[n]) for n in range(3)]
        models = [bytearray(FRAMES * FRAME) for _ in vms]
        for kind, who, number, value in changes:
            vm, model, at = vms[who], models[who], number * FRAME
            if kind == "write":
                data = bytes([value]) * (FRAME if number & 1 else 40)
                vm.ram.write(vm.ram.base + BASE + at, data)
                model[at : at + len(data)] = data
            elif kind == "zero":
                vm.ram.zero(BASE + at, FRAME)
                model[at : at + FRAME] = bytes(FRAME)
            elif kind == "page out":
                monitor.page_out(vm, BASE + at)
                if isinstance(host, VirtualMachine):
                    host.monitor.page_out(host, vm.ram.f.find(BASE + at) or 0)
            elif kind == "share":
                before = monitor._allocator.free
                assert monitor.share() == monitor._allocator.free - before
            elif kind == "clear":
                vm.ram.clear()
                models[who] = bytearray(FRAMES * FRAME)
            else:
                monitor.destroy(vm.name)
                vms[who] = monitor.create(vm.name, 4 * MiB, resident=sizes[who])
                models[who] = bytearray(FRAMES * FRAME)
            consistent(monitor)
            for each, known in zip(vms, models, strict=True):
                assert each.ram.read(each.ram.base + BASE, FRAMES * FRAME) == known

    holds()


ALL: dict[Tlb, int] = {"hardware": 700_000, "software": 250_000}
"""Steps. Corral's self-test has ended by then, and it waits for input; where software fills the TLB, it is within."""


@cache
def alone(tlb: Tlb) -> str:
    board = begin(virt(16 * MiB, tlb=tlb))
    board.run(ALL[tlb])
    assert tlb == "software" or " 0 failed" in board.console.text
    return board.digest()


M = TypeVar("M", bound=Virt)


def begin(board: M) -> M:
    load(board, CORRAL)
    board.console.send("selftest\n")
    return board


TECHNIQUES: tuple[Technique, ...] = ("virtualizer", "trap")


@pytest.mark.parametrize(
    ("outside", "inside", "tlb"),
    [
        *((outside, inside, "hardware") for outside in TECHNIQUES for inside in TECHNIQUES),
        ("trap", "trap", "software"),
        ("translation", "translation", "hardware"),
    ],
)
def test_selftest_is_the_same_where_frames_are_shared(outside: Technique, inside: Technique, tlb: Tlb) -> None:
    """At random steps, of machines and of machines on one of them, some of which are paged out: each ends as alone,
    having written what it shared.
    """
    draw = random.Random(f"{outside} {inside} {tlb}")
    below = Monitor(virt(160 * MiB, tlb=tlb))
    outer = below.create("outer", 80 * MiB, technique=outside)
    beside = begin(below.create("beside", 16 * MiB, technique=inside))
    above = Monitor(outer)
    guests = [begin(above.create(name, 16 * MiB, technique=inside)) for name in ("one", "two")]
    monitors = below, above
    for _ in range(16):
        for vm in (*guests, beside):
            vm.run(min(draw.randrange(1, ALL[tlb] // 10), ALL[tlb] - vm.steps))
            monitor = draw.choice(monitors)
            monitor.share()
            if draw.random() < 0.2:
                victim = draw.choice(list(monitor.guests.values()))
                for at, _, _, _ in draw.sample(list(victim.ram.f.pages()), 4):
                    monitor.page_out(victim, at)
        consistent(below)
        consistent(above)
    for vm in (*guests, beside):
        vm.run(ALL[tlb] - vm.steps)
        assert vm.digest() == alone(tlb)
    accounts = [vm.account for vm in (*guests, beside, outer)]
    assert sum(account.shared for account in accounts) > 50
    assert sum(account.separated for account in accounts) > 4


@pytest.mark.parametrize("tlb", ["hardware", "software"])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_random_programs_are_the_same_where_frames_are_shared(technique: Technique, tlb: Tlb) -> None:
    """Two machines that run one program have much in common, at every step: page tables, code, reservations."""
    draw, shared, separated = random.Random(f"{technique} {tlb}"), 0, 0
    for case in range(round(8 * SCALE)):
        program = (Filling if tlb == "software" else Program)(f"shared {case}")
        expected = program.load(machine(tlb=tlb))
        monitor = Monitor(virt(64 * MiB, tlb=tlb))
        vms = [monitor.create(f"{n}", MEMORY, turn=300, seed=1, technique=technique) for n in range(2)]
        for vm in vms:
            program.load(vm)
        for step in (*sorted(draw.sample(range(1, STEPS), 15)), STEPS):
            ends = [board.run(until=program.clock * 100 + step) for board in (expected, *vms)]
            assert ends[1:] == [ends[0]] * 2
            monitor.share()
        shared += sum(vm.account.shared for vm in vms)
        separated += sum(vm.account.separated for vm in vms)
        for vm in vms:
            check(expected, vm, f"program shared {case}")
    assert shared > 40 and separated > 20, (shared, separated)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_reservation_lives_where_its_frame_is_copied(technique: Technique) -> None:
    """LR reads a frame that is shared, and SC writes it: it succeeds, as on the bare machine."""
    again = [
        put("lr.d", rd=5, rs1=10),
        put("addi", rd=5, rs1=5, imm=1),
        put("sc.d", rd=6, rs1=10, rs2=5),
        put("add", rd=7, rs1=7, rs2=6),
        put("jal", rd=0, imm=-16),
    ]

    def load(board: M) -> M:
        board.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in again))
        board.harts[0].pc, board.harts[0]["x10"] = RAM, RAM + FRAME
        return board

    monitor = Monitor(virt(32 * MiB))
    expected = load(virt(MEMORY))
    vms = [load(monitor.create(f"{n}", MEMORY, technique=technique)) for n in range(2)]
    draw = random.Random(1)
    for _ in range(8):
        steps = draw.randrange(20_000, 20_100)
        for board in (expected, *vms):
            board.run(steps)
        monitor.share()
    assert expected.harts[0]["x7"] == 0 < vms[0].account.separated
    assert {vm.digest() for vm in vms} == {expected.digest()}


def fill(vm: Virt, word: int) -> None:
    """Every frame differs from the machine's others, by a word."""
    for at in range(0, vm.ram.size, FRAME):
        vm.ram.write(vm.ram.base + at, (word << 32 | at).to_bytes(8, "little"))


def reads(vm: Virt, word: int) -> bool:
    base = vm.ram.base
    return all(
        vm.ram.read(base + at, 8) == (word << 32 | at).to_bytes(8, "little") for at in range(0, vm.ram.size, FRAME)
    )


def test_memory_is_free_where_it_is_shared() -> None:
    """What one of two equal machines has, but for a table for each 2 MiB, is for a third; and each is taken back."""
    monitor = Monitor(virt(32 * MiB))
    one, two = (monitor.create(name, 8 * MiB) for name in ("one", "two"))
    for vm in (one, two):
        fill(vm, 1)
    assert monitor.share() == 8 * MiB - 8 * FRAME
    assert [stats(vm)["paging"]["frames shared"] for vm in (one, two)] == [0, 8 * MiB // FRAME]
    assert monitor.share() == 0
    third = monitor.create("third", 15 * MiB)
    fill(third, 2)
    assert not any(vm.paged for vm in (one, two, third))
    monitor.destroy("one")
    assert reads(two, 1) and reads(third, 2)
    fill(two, 3)
    assert two.account.separated == 0
    consistent(monitor)


def test_resident_memory_is_not_shared() -> None:
    """So a write there asks for no frame, however short memory is."""
    monitor = Monitor(virt(32 * MiB))
    one, two = (monitor.create(name, 4 * MiB, resident=size) for name, size in (("one", 4 * MiB), ("two", 0)))
    for vm in (one, two):
        fill(vm, 1)
    assert monitor.share() == 0
    assert all(rights & WRITE for _, _, rights, _ in one.ram.f.pages())


@pytest.mark.parametrize("paging", [None, 1 * MiB])
def test_shared_memory_is_written_where_it_is_short(paging: int | None) -> None:
    """By paging; and where that is full the machine that writes is refused in a sentence. Nothing is lost."""
    monitor = Monitor(virt(32 * MiB), paging=paging)
    one, two = (monitor.create(name, 8 * MiB) for name in ("one", "two"))
    for vm in (one, two):
        fill(vm, 1)
    monitor.share()
    third = monitor.create("third", 21 * MiB)
    fill(third, 2)
    if paging is None:
        fill(one, 3)
        fill(two, 4)
        assert reads(one, 3) and reads(two, 4)
    else:
        with pytest.raises(OutOfMemory, match="paging disk is full"):
            fill(one, 3)
        assert reads(two, 1)
    assert reads(third, 2)
    consistent(monitor)
