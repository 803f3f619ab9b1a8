"""Steps that are slow for the host: who takes them pays for them, and its neighbours have their parts of the time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import pytest
from idioms import Code, constant, put
from launching import AREA, BLOCK, Request, page, prepare, program, state
from programs import BUSY, TICKS, WFI, jump, load_code, ticking

from ringfence import Deadline, MiB, Virt, virt
from ringfence.isa.trap import M
from ringfence.machine.board import RAM, UART
from ringfence.machine.clock import Source
from ringfence.machine.device.uart16550 import LSR
from ringfence.machine.virtualizer import FLAGS_AT, REQUEST, START
from ringfence.monitor import scheduler
from ringfence.monitor.monitor import Monitor, Technique
from ringfence.monitor.scheduler import QUANTUM
from ringfence.monitor.vm import VirtualMachine

POLL = [*constant(5, UART), put("lbu", rd=6, rs1=5, imm=LSR), jump(-1)]
MS = 1_000_000
SHORT = 14
"""MiB of a machine that has too little memory."""
Load = Callable[[Virt], None]


def busy(machine: Virt) -> None:
    load_code(machine, BUSY)


def polls(machine: Virt) -> None:
    """It reads a register of the UART for ever."""
    load_code(machine, POLL)


def launches(machine: Virt) -> None:
    """It starts a virtual machine, lets it take some steps, and starts it again."""
    again = [put("addi", rd=6, rs1=0, imm=START), put("sd", rs1=10, rs2=6, imm=FLAGS_AT)]
    _monitor(machine, again, BUSY, 10)


def resumes(machine: Virt) -> None:
    """It lets a virtual machine take some steps, and then some more."""
    _monitor(machine, [], BUSY, 10)


def launched_polls(machine: Virt) -> None:
    """On a machine that it has launched, the UART is read for ever."""
    _monitor(machine, [], POLL, 0)


def _monitor(machine: Virt, before: Code, code: Code, budget: int) -> None:
    """It launches a machine with this code again and again, each time behind some instructions."""
    prepare(machine)
    program(machine, [*before, put("vmrun", rs1=10), jump(-len(before) - 1)])
    page(machine, 0, AREA)
    program(machine, code, AREA)
    state(machine, pc=RAM, priv=M)
    machine.ram.write(BLOCK, REQUEST.pack(*astuple(Request(budget=budget))))
    machine.harts[0].pc, machine.harts[0]["a0"] = RAM, BLOCK


def pages(machine: Virt) -> None:
    """It writes to one frame after the other, of more than there are."""
    first = [put("auipc", rd=5, imm=0), *constant(6, 1 * MiB), put("add", rd=5, rs1=5, rs2=6)]
    write = [put("sd", rs1=7, rs2=7), put("add", rd=7, rs1=7, rs2=28), put("addi", rd=29, rs1=29, imm=-1)]
    count = [put("add", rd=7, rs1=5, rs2=0), *constant(28, 4096), *constant(29, 12 * MiB // 4096)]
    round_ = [*count, *write, put("bne", rs1=29, rs2=0, imm=-4 * len(write))]
    load_code(machine, [*first, *round_, jump(-len(round_))])


def site(clock: Source, harts: int = 1, memory: int = 96, quantum: int = QUANTUM) -> Monitor:
    return Monitor(virt(memory * MiB, harts, clock=clock, isa="hv"), quantum=quantum)


def add(
    monitor: Monitor,
    load: Load,
    share: int = 1,
    *,
    cap: float | None = None,
    clock: Source | None = None,
    technique: Technique = "virtualizer",
) -> VirtualMachine:
    name = f"guest{len(monitor.guests)}"
    guest = monitor.create(
        name, 16 * MiB, share=share, cap=cap, clock=clock or monitor.machine.clock.source, technique=technique
    )
    load(guest)
    return guest


def within(monitor: Monitor, share: int = 1) -> Monitor:
    """A monitor on a machine of another's."""
    clock = monitor.machine.clock.source
    return Monitor(monitor.create(f"inner{len(monitor.guests)}", 48 * MiB, share=share, clock=clock))


def part(guest: VirtualMachine, *others: VirtualMachine) -> float:
    """Of the time that they have received together."""
    return guest.account.time / sum(one.account.time for one in (guest, *others))


# By the host clock


@pytest.fixture(scope="module", autouse=True)
def tidy() -> Iterator[None]:
    """To look through what other tests have left, as Python does now and then, takes longer than a slice."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def speed() -> float:
    """Steps of a busy machine in a ns of the processor's time, alone."""
    monitor = site("host")
    guest = add(monitor, busy)
    monitor.run(until=300 * MS)
    return guest.account.steps / guest.account.time


@pytest.mark.parametrize("shares", [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("load", [polls, launches])
def test_processor_time_is_received_by_shares(load: Load, shares: tuple[int, int], speed: float) -> None:
    """Within 15 %, whatever the steps of one of them are; in its part the other gets on as it does alone."""
    monitor = site("host")
    hostile, other = add(monitor, load, shares[0]), add(monitor, busy, shares[1])
    assert isinstance(monitor.run(until=600 * MS), Deadline)
    assert part(hostile, other) == pytest.approx(shares[0] / sum(shares), rel=0.15)
    assert hostile.account.time + other.account.time >= 600 * MS
    assert other.account.steps >= 0.6 * speed * other.account.time


def test_processor_time_of_paging_is_that_of_who_pages(speed: float) -> None:
    """What its monitor does to give it frames it pays for."""
    monitor = site("host", memory=SHORT)
    hostile, other = add(monitor, pages), monitor.create("other", 4 * MiB, clock="host", resident=4 * MiB)
    busy(other)
    monitor.run(until=600 * MS)
    assert hostile.account.paged_in
    assert part(hostile, other) == pytest.approx(1 / 2, rel=0.15)
    assert other.account.steps >= 0.6 * speed * other.account.time


def test_processor_time_is_received_by_shares_at_both_levels(speed: float) -> None:
    """Beneath, the machine with the hostile one on it has its share and no more; there the two divide that."""
    monitor = site("host")
    inner = within(monitor)
    hostile, beside = add(inner, polls), add(inner, busy)
    other = add(monitor, busy, 2)
    monitor.run(until=900 * MS)
    assert isinstance(inner.machine, VirtualMachine)
    assert part(inner.machine, other) == pytest.approx(1 / 3, rel=0.15)
    assert part(hostile, beside) == pytest.approx(1 / 2, rel=0.15)
    for guest in (beside, other):
        assert guest.account.steps >= 0.6 * speed * guest.account.time


def test_cap_is_a_part_of_the_processor() -> None:
    """It is reached, and no more."""
    monitor = site("host")
    hostile, other = add(monitor, polls, cap=0.25), add(monitor, busy)
    monitor.run(until=600 * MS)
    assert part(hostile, other) == pytest.approx(1 / 4, rel=0.15)


def test_slice_ends_in_real_time() -> None:
    """While another machine waits for it, however many steps it has left."""
    monitor = site("host", quantum=1 << 40)
    guests = [add(monitor, busy), add(monitor, busy)]
    monitor.run(until=400 * MS)
    assert part(*guests) == pytest.approx(1 / 2, rel=0.15)
    for guest in guests:
        assert guest.account.time <= 5 * scheduler.LONGEST * guest.account.slices


def test_machines_do_not_notice_that_slices_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any place, at both levels: each is where the bare machine is after as many steps."""
    monkeypatch.setattr(scheduler, "LONGEST", 100_000)
    monitor = site("host")
    loads = [polls, busy, launches]
    upper = [add(within(monitor), load, clock="virtual") for load in loads]
    guests = [*upper, *(add(monitor, load, clock="virtual") for load in loads)]
    for _ in range(10):
        monitor.run(until=monitor.scheduler.now + 40 * MS)
    for guest, load in zip(guests, loads * 2, strict=True):
        assert guest.account.slices > 40 or load is not busy
        assert same_as_bare(guest, load)


# By the virtual clock


def same_as_bare(guest: VirtualMachine, load: Load) -> bool:
    bare = virt(16 * MiB, isa="hv")
    load(bare)
    bare.run(guest.steps)
    return guest.digest() == bare.digest()


@dataclass
class Place:
    """Where the hostile machine is."""

    load: Load = polls
    harts: int = 1
    inner: bool = False
    technique: Technique = "virtualizer"
    shares: tuple[int, int] = (1, 1)


PLACES = {
    "polls": Place(),
    "large share": Place(shares=(3, 1)),
    "small share": Place(shares=(1, 3)),
    "two harts": Place(harts=2),
    "inner": Place(inner=True),
    "trap": Place(technique="trap"),
    "inner trap": Place(inner=True, technique="trap"),
    "launches": Place(launches),
    "inner launches": Place(launches, inner=True),
    "resumes": Place(resumes),
    "launched polls": Place(launched_polls),
    "inner launched polls, trap": Place(launched_polls, inner=True, technique="trap"),
    "pages": Place(pages),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_slow_steps_are_charged_and_runs_are_the_same(place: Place) -> None:
    """The busy machine takes nearly all steps, for its share of the time, and no slice is long. A second run comes out
    the same, to the switch; and neither machine notices.
    """

    def run() -> tuple[VirtualMachine, VirtualMachine, list[tuple[int, ...]]]:
        monitor = site("virtual", place.harts, SHORT if place.load is pages else 96)
        where = within(monitor, place.shares[0]) if place.inner else monitor
        hostile = add(where, place.load, place.shares[0], technique=place.technique)
        other = add(monitor, busy, place.shares[1])
        monitor.run(60_000_000)
        accounts = [guest.account for guest in (*monitor.guests.values(), hostile)]
        return hostile, other, [(n.time, n.steps, n.slices, n.switches, n.faults) for n in accounts]

    hostile, other, told = run()
    assert run()[2] == told
    assert all(time <= 1.2 * QUANTUM * slices for time, _, slices, *_ in told)
    wanted = place.shares[0] / sum(place.shares)
    assert part(hostile, other) == pytest.approx(wanted, rel=0.15)
    assert other.account.steps > 0.99 * (hostile.account.steps + other.account.steps)
    assert same_as_bare(hostile, place.load) and same_as_bare(other, busy)


def accesses(machine: Virt) -> int:
    return machine.bus.accesses


def exits(machine: Virt) -> int:
    assert machine.virtualizer is not None
    return machine.virtualizer.exits.total()


def faults(machine: Virt) -> int:
    assert isinstance(machine, VirtualMachine)
    return machine.account.faults


@pytest.mark.parametrize(
    ("load", "count", "price"),
    [(polls, accesses, 1), (resumes, exits, 5), (launches, exits, 101), (pages, faults, 11)],
)
def test_what_is_slow_has_its_price(load: Load, count: Callable[[Virt], int], price: int) -> None:
    """The same on every host: so many instructions that native code leaves to the reference."""
    monitor = site("virtual", memory=SHORT)
    hostile = add(monitor, load)
    add(monitor, busy)
    monitor.run(60_000_000)
    assert count(hostile) > 100
    surcharge = hostile.account.time - hostile.account.steps
    assert surcharge == pytest.approx(count(hostile) * price * hostile.engine.slow, rel=0.05)


@pytest.mark.parametrize("inner", [False, True])
def test_slow_steps_make_no_time_rush_ahead(inner: bool) -> None:
    """A machine whose ticks come with many of them keeps up with its scheduler, and is never before it."""
    monitor = site("virtual", quantum=50_000)
    where = within(monitor) if inner else monitor
    guest = where.create("ticks", 4 * MiB)
    reads = [*constant(9, UART), *40 * [put("lbu", rd=10, rs1=9, imm=LSR)]]
    load_code(guest, ticking(10_000, [put("wfi"), *reads, jump(-len(reads) - 1)]))
    add(monitor, busy)
    for _ in range(20):
        monitor.run(2_000_000)
        assert guest.clock.now() <= where.scheduler.now <= monitor.scheduler.now
    assert guest.harts[0].x[TICKS] >= 0.9 * monitor.scheduler.now / MS


def test_sleeper_wakes_in_time_beside_slow_steps() -> None:
    """Idle time passes as what the other does costs."""
    monitor = site("virtual", quantum=MS)
    hostile = add(monitor, polls)
    sleeper = monitor.create("sleeper", 4 * MiB)
    load_code(sleeper, ticking(10_000, WFI))
    monitor.run(until=100 * MS)
    assert sleeper.harts[0].x[TICKS] >= 90
    assert hostile.account.time > 90 * MS and hostile.account.steps < MS


def test_reference_engine_takes_all_steps_alike() -> None:
    """There is no slow one."""
    monitor = Monitor(virt(64 * MiB, engine="reference"), quantum=3_000)
    hostile, other = add(monitor, polls), add(monitor, busy)
    monitor.run(60_000)
    assert hostile.account.steps == pytest.approx(other.account.steps, rel=0.1)
    assert hostile.account.time == hostile.account.steps
