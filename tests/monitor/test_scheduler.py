"""Time: machines get the harts by their shares, and what they do does not depend on it."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from idioms import Code, constant, put
from programs import (
    BUSY,
    NOP,
    NUMBERS,
    SPIN,
    TICKS,
    WFI,
    bursts,
    fails,
    greedy,
    jump,
    load_code,
    ticking,
)

from ringfence import CORRAL, Break, Budget, Deadline, Idle, MachineError, MiB, PowerOff, Stopped, Virt, load, virt
from ringfence.errors import OutOfMemory
from ringfence.isa.trap import Irq
from ringfence.machine.board import ACLINT
from ringfence.machine.clock import NEVER
from ringfence.machine.device.aclint import MTIME
from ringfence.machine.machine import CHECK_SPAN
from ringfence.monitor import spin
from ringfence.monitor.monitor import Monitor
from ringfence.monitor.scheduler import Claim, admit, fair_level
from ringfence.monitor.vm import VirtualMachine

QUANTUM = 50_000
RUN = 40_000_000
"""Steps, of all harts."""
LONG = 500_000_000
"""Steps behind which slices are long where nothing ends them."""


def site(harts: int = 1, quantum: int = QUANTUM, memory: int = 96) -> Monitor:
    return Monitor(virt(memory * MiB, harts), quantum=quantum)


def add(
    monitor: Monitor,
    code: Code,
    share: int = 1,
    *,
    cap: float | None = None,
    reservation: float = 0,
    harts: int = 1,
    seed: int | None = None,
) -> VirtualMachine:
    """A machine of 4 MiB that runs a program."""
    name = f"guest{len(monitor.guests)}"
    guest = monitor.create(name, 4 * MiB, harts, share=share, cap=cap, reservation=reservation, seed=seed)
    load_code(guest, code)
    return guest


def received(*guests: VirtualMachine) -> list[float]:
    """The parts of what they have received together."""
    steps = [guest.account.steps for guest in guests]
    return [n / sum(steps) for n in steps]


def same_as_bare(guest: VirtualMachine, bare: Virt) -> bool:
    """Whether it is where the bare machine is after as many steps, and as much time."""
    bare.run(guest.steps - bare.steps)
    if bare.clock.now() < guest.clock.now():
        bare.run(until=guest.clock.now())
    return (bare.steps, bare.digest()) == (guest.steps, guest.digest())


# Shares


@pytest.mark.parametrize(("harts", "shares"), [(1, (1, 2, 4)), (2, (2, 3, 4))])
def test_shares_are_received(harts: int, shares: tuple[int, ...]) -> None:
    """Busy machines get time by their shares, within 2 %."""
    monitor = site(harts)
    guests = [add(monitor, BUSY, share) for share in shares]
    assert isinstance(monitor.run(RUN), Budget)
    wanted = [share / sum(shares) for share in shares]
    assert received(*guests) == pytest.approx(wanted, rel=0.02)


def test_share_that_cannot_be_used_goes_to_the_others_by_their_shares() -> None:
    """A machine uses one hart at a time, whatever its share."""
    monitor = site(2)
    guests = [add(monitor, BUSY, share) for share in (1, 2, 30)]
    monitor.run(RUN)
    assert received(*guests) == pytest.approx([1 / 6, 2 / 6, 3 / 6], rel=0.02)


def test_waiting_machine_gives_its_time_by_shares() -> None:
    """What one with a large share does not want is divided among the others by theirs."""
    monitor = site()
    waiting = add(monitor, bursts(25_000, 10_000), 30)
    others = [add(monitor, BUSY, share) for share in (1, 2)]
    monitor.run(RUN)
    assert waiting.account.steps == pytest.approx(RUN * 0.05, rel=0.1)
    assert received(*others) == pytest.approx([1 / 3, 2 / 3], rel=0.02)


def test_cap_holds_though_nobody_else_wants_the_hart() -> None:
    """The hart rests meanwhile."""
    monitor = site()
    guest = add(monitor, BUSY, cap=0.25)
    assert isinstance(monitor.run(until=RUN), Deadline)
    assert guest.account.steps == pytest.approx(RUN / 4, rel=0.02)


def test_cap_holds_beside_others_and_is_reached() -> None:
    """A capped machine gets all of its cap where its share is worth more."""
    monitor = site()
    guests = [add(monitor, BUSY, 5, cap=0.3), add(monitor, BUSY), add(monitor, BUSY)]
    monitor.run(RUN)
    assert received(*guests) == pytest.approx([0.3, 0.35, 0.35], rel=0.02)


def test_reservation_is_kept_against_large_shares() -> None:
    """Whatever others' shares are worth."""
    monitor = site()
    guests = [add(monitor, BUSY, 1, reservation=0.4), add(monitor, BUSY, 99)]
    monitor.run(RUN)
    assert received(*guests) == pytest.approx([0.4, 0.6], rel=0.02)


def test_share_can_be_changed_between_runs() -> None:
    """It counts from then on."""
    monitor = site()
    guests = [add(monitor, BUSY), add(monitor, BUSY)]
    monitor.run(RUN // 2)
    before = guests[0].account.steps
    guests[0].share = 3
    monitor.run(RUN // 2)
    assert guests[0].account.steps - before == pytest.approx(RUN // 2 * 0.75, rel=0.02)


def test_shares_hold_at_both_levels() -> None:
    """Two inner monitors with shares 1:3, each with two machines with shares 1:2."""
    monitor = site()
    inner = [Monitor(monitor.create(f"m{share}", 24 * MiB, share=share), quantum=QUANTUM) for share in (1, 3)]
    guests = [[add(level, BUSY, share) for share in (1, 2)] for level in inner]
    monitor.run(RUN)
    machines = list(monitor.guests.values())
    assert received(*machines) == pytest.approx([1 / 4, 3 / 4], rel=0.02)
    for machine, pair in zip(machines, guests, strict=True):
        assert received(*pair) == pytest.approx([1 / 3, 2 / 3], rel=0.02)
        assert sum(guest.steps for guest in pair) == machine.steps == machine.account.steps
    assert monitor.machine.steps == sum(machine.steps for machine in machines)


def test_inner_monitor_uses_its_harts_share_of_one() -> None:
    """A machine of two harts has one real hart at most; its own guests divide it."""
    monitor = site(2)
    inner = Monitor(monitor.create("inner", 32 * MiB, 2), quantum=QUANTUM)
    guests = [add(inner, BUSY), add(inner, BUSY)]
    alone = add(monitor, BUSY)
    monitor.run(RUN)
    assert received(alone, *guests) == pytest.approx([1 / 2, 1 / 4, 1 / 4], rel=0.02)


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0}, {"cap": 0.0}, {"cap": 1.5}, {"reservation": -0.1}, {"reservation": 0.5, "cap": 0.4}],
)
def test_claim_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    """In a sentence, and the name stays free."""
    monitor = site()
    with pytest.raises(MachineError):
        monitor.create("guest", 4 * MiB, **wrong)  # type: ignore[arg-type]
    monitor.create("guest", 4 * MiB)


def test_reservations_beyond_the_harts_are_refused() -> None:
    """When a machine is made, and when one is changed."""
    monitor = site()
    first = add(monitor, BUSY, reservation=0.6)
    second = add(monitor, BUSY, reservation=0.3)
    with pytest.raises(MachineError, match="more than the 1"):
        add(monitor, BUSY, reservation=0.2)
    with pytest.raises(MachineError, match="more than the 1"):
        second.reservation = 0.5
    assert second.reservation == 0.3
    first.reservation = 0.5
    second.reservation = 0.5


claims = st.lists(
    st.tuples(st.integers(1, 100), st.none() | st.fractions(Fraction(1, 50), 1), st.fractions(0, 1)).map(
        lambda t: Claim(t[0], None if t[1] is None else float(t[1]), float(t[2] * (t[1] or 1)) * 0.999)
    ),
    min_size=1,
    max_size=8,
)


@given(claims, st.integers(1, 8))
def test_allocations_keep_every_bound_and_waste_nothing(them: list[Claim], harts: int) -> None:
    """Nobody is beyond its cap or below its reservation; all harts are used, or everybody has all it can use."""
    try:
        admit(them, harts)
    except MachineError:
        return
    level = fair_level(them, harts)
    given_ = [claim.at(level) for claim in them]
    for claim, fraction in zip(them, given_, strict=True):
        assert claim.reservation <= fraction <= claim.most
    assert sum(given_) == pytest.approx(min(harts, sum(claim.most for claim in them)))
    between = [
        (claim, fraction)
        for claim, fraction in zip(them, given_, strict=True)
        if claim.reservation < fraction < claim.most
    ]
    for claim, fraction in between:
        first, part = between[0]
        assert fraction * first.share == pytest.approx(part * claim.share)


# Waiting


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("wait", [WFI, SPIN], ids=["wfi", "while"])
def test_idle_machine_leaves_the_hart_to_a_busy_one(wait: Code, inner: bool) -> None:
    """A timer interrupt every millisecond, and at least 95 % of the hart for the neighbour; the ticks come in time."""
    monitor = site(quantum=1_000_000)
    busy = add(monitor, BUSY)
    idle = add(Monitor(monitor.create("inner", 32 * MiB)) if inner else monitor, ticking(10_000, wait))
    monitor.run(2 * RUN)
    assert busy.account.steps >= 0.95 * 2 * RUN
    assert idle.harts[0].x[TICKS] >= 2 * RUN // 1_000_000 * 0.9
    bare = virt(4 * MiB)
    load_code(bare, ticking(10_000, wait))
    assert same_as_bare(idle, bare)


def test_idle_time_does_not_rush_ahead() -> None:
    """While another runs, a sleeper's time passes as the other's does; its clock is never ahead."""
    monitor = site()
    add(monitor, BUSY)
    idle = add(monitor, ticking(10_000, WFI))
    for _ in range(20):
        monitor.run(1_000_000)
        assert idle.clock.now() <= monitor.machine.steps + monitor.scheduler.idle_ns


def test_sleeper_keeps_no_claim_to_time_that_it_slept() -> None:
    """When it wakes it has its share from then on."""
    monitor = site()
    busy = add(monitor, BUSY)
    late = add(monitor, ticking(RUN // 200, [put("wfi"), *BUSY]))
    monitor.run(RUN)
    assert late.account.steps == pytest.approx(RUN / 4, rel=0.02)
    assert busy.account.steps == pytest.approx(RUN * 3 / 4, rel=0.02)


def test_time_is_jumped_over_where_all_wait() -> None:
    """Ten machines wait for an hour, and nobody waits for them."""
    monitor = site()
    guests = [add(monitor, ticking(1_000_000_000 + n, WFI)) for n in range(10)]
    assert isinstance(monitor.run(until=3_700 * 10**9), Deadline)
    assert all(guest.harts[0].x[TICKS] >= 36 for guest in guests)
    assert monitor.machine.steps < 100_000


def test_idle_is_returned_where_time_may_not_pass() -> None:
    """A monitor's caller learns how long all wait, and gives it the time when it has passed."""
    monitor = site()
    guest = add(monitor, ticking(10_000, WFI))
    ended = monitor.run(idle=0)
    assert isinstance(ended, Idle) and ended.wake == 1_000_000
    assert isinstance(monitor.run(idle=400_000), Idle) and guest.clock.now() < 1_000_000
    assert guest.harts[0].x[TICKS] == 0
    assert isinstance(monitor.run(idle=600_000), Idle)
    assert guest.harts[0].x[TICKS] == 1


def test_loop_that_nothing_ends_is_idle() -> None:
    """With no timer set, nor input to come, nothing can change."""
    monitor = site()
    guest = add(monitor, SPIN)
    assert monitor.run() == Idle(monitor.machine.steps)
    bare = virt(4 * MiB)
    load_code(bare, SPIN)
    assert same_as_bare(guest, bare)


def test_machine_with_one_spinning_hart_is_not_idle() -> None:
    """The other one works, and gets the machine's part."""
    monitor = site()
    one_works = [put("csrr", rd=7, csr=NUMBERS["mhartid"]), put("beq", rs1=7, rs2=0, imm=0), *BUSY]
    guests = [add(monitor, one_works, harts=2), add(monitor, BUSY)]
    monitor.run(RUN)
    assert received(*guests) == pytest.approx([1 / 2, 1 / 2], rel=0.02)
    assert guests[0].harts[1].x[5] > 0


def test_machine_that_worked_is_passed_over_once_it_spins() -> None:
    """Work in a small loop is hardly looked at; an idle loop behind it, with ticks that change registers, met soon."""
    monitor = site()
    busy = add(monitor, BUSY)
    work = [*constant(8, RUN // 8), put("addi", rd=8, rs1=8, imm=-1), put("bne", rs1=8, rs2=0, imm=-4)]
    idle = add(monitor, ticking(500, [*work, *SPIN]))
    monitor.run(RUN // 8)
    worked = idle.account.slices
    with pytest.MonkeyPatch.context() as patch:
        looks: list[VirtualMachine] = []
        patch.setattr(spin, "spins", lambda machine: looks.append(machine))
        monitor.run(RUN // 8)
        assert 0 < looks.count(idle) <= (idle.account.slices - worked) // spin.UNSEEN + 1
    monitor.run(RUN // 2)
    before = busy.account.steps
    monitor.run(RUN)
    assert busy.account.steps - before >= 0.8 * RUN


def test_loop_that_looks_is_not_idle() -> None:
    """What it waits for may come without an interrupt: here the time, read from the chip."""
    code = [*constant(5, ACLINT + MTIME), put("lbu", rd=7, rs1=5, imm=1), put("beq", rs1=7, rs2=0, imm=-4)]
    monitor = site(quantum=CHECK_SPAN)
    guest = add(monitor, [*code, *fails(1, 3)])
    add(monitor, BUSY)
    monitor.run(2 * RUN)
    assert guest.ended == PowerOff(guest.steps, 3)


@pytest.mark.parametrize("wait", [WFI, SPIN], ids=["wfi", "while"])
def test_input_that_wakes_an_idle_machine_comes_at_its_step(wait: Code) -> None:
    """As on a bare machine to which it comes there: here an interrupt that is never taken back."""
    code = ticking(100_000, wait, 1 << Irq.MTI | 1 << Irq.MSI)
    monitor = site()
    guest = add(monitor, code)
    monitor.run(until=3_000_000)
    assert guest.account.asleep
    bare = virt(4 * MiB)
    load_code(bare, code)
    bare.run(guest.steps)
    for machine in (bare, guest):
        machine.feed(partial(machine.aclint.write, 0, 4, 1))
    monitor.run(until=6_000_000)
    assert guest.harts[0].x[TICKS] > 1_000
    assert same_as_bare(guest, bare)


pieces: list[Code] = [
    [NOP],
    [put("addi", rd=8, rs1=0, imm=3)],
    [put("add", rd=9, rs1=8, rs2=8)],
    [put("jal", rd=11, imm=4)],
    [put("beq", rs1=0, rs2=0, imm=4)],
    [put("fence")],
    [put("wfi")],
    [put("addi", rd=12, rs1=12, imm=1)],
    [put("csrr", rd=13, csr=NUMBERS["mscratch"])],
    [put("auipc", rd=10, imm=4096), put("sd", rs1=10, rs2=8)],
]
loops = st.lists(st.sampled_from(pieces), max_size=9).map(lambda chosen: [word for piece in chosen for word in piece])


@settings(max_examples=40, deadline=None)
@given(
    loops,
    st.integers(60, 5_000),
    st.integers(1, 3),
    st.none() | st.integers(0, 99),
    st.integers(CHECK_SPAN, 30_000),
)
@example([NOP], 3_000, 3, 3, 10_000)
def test_any_loop_ends_as_on_the_bare_machine(
    body: Code, period: int, harts: int, seed: int | None, quantum: int
) -> None:
    """Whatever a loop does, and whether it is taken for idle or not."""
    code = ticking(period, [*body, jump(-len(body))])
    monitor = site(quantum=quantum, memory=32)
    guest = add(monitor, code, harts=harts, seed=seed)
    add(monitor, BUSY)
    monitor.run(300_000)
    bare = virt(4 * MiB, harts, seed=seed)
    load_code(bare, code)
    assert same_as_bare(guest, bare)


def test_breakpoint_in_an_idle_loop_is_met_every_time() -> None:
    """It is the caller's, not the scheduler's, and the loop is not passed over."""
    monitor = site()
    guest = add(monitor, ticking(10_000, SPIN))
    monitor.run(until=RUN)
    guest.breakpoints.add(guest.harts[0].pc)
    steps = guest.steps
    for n in range(5):
        assert monitor.run() == Break(steps + n, 0, guest.harts[0].pc)


# Equivalence


def begin(machine: Virt) -> None:
    load(machine, CORRAL)
    machine.console.send("selftest\n")


def finished(guest: VirtualMachine) -> bool:
    """It waits for input."""
    return guest.account.asleep and guest.account.wake_at == NEVER


@pytest.mark.parametrize("seed", [None, 7, 8])
@pytest.mark.parametrize("depth", [1, 2])
def test_selftest_is_the_same_beside_neighbours(depth: int, seed: int | None) -> None:
    """Busy, idle and spinning ones, at the machine's own level and at the one beneath."""
    harts = 1 if seed is None else 3
    bare = virt(32 * MiB, harts, seed=seed)
    begin(bare)
    assert isinstance(bare.run(), Idle)
    assert " 0 failed" in bare.console.text

    below = monitor = site(2, quantum=10_007)
    if depth == 2:
        monitor = Monitor(below.create("inner", 64 * MiB, 2), quantum=7_001)
        add(below, ticking(3_000, SPIN))
        add(below, BUSY)
    for code in (BUSY, ticking(1_000, WFI), ticking(2_000, SPIN)):
        add(monitor, code)
    guest = monitor.create("corral", 32 * MiB, harts, seed=seed)
    begin(guest)
    while not finished(guest):
        assert isinstance(below.run(300_000), Budget)
    assert guest.digest() == bare.digest()


def test_steps_are_at_most_those_asked_for() -> None:
    """And fewer by less than a check span, at both levels."""
    monitor = site(2)
    add(Monitor(monitor.create("inner", 32 * MiB), quantum=QUANTUM), ticking(1_000, SPIN))
    add(monitor, BUSY)
    before = 0
    for steps in (0, 1, 2_048, 2_049, 10_000, 77_777, 1_000_000):
        assert isinstance(monitor.run(steps), Budget)
        assert steps - CHECK_SPAN <= monitor.machine.steps - before <= steps
        before = monitor.machine.steps


# Ends


def test_machine_that_powers_off_leaves_the_others() -> None:
    """Its status is kept; when the last has ended, so has the run."""
    monitor = site()
    first, second = add(monitor, fails(10_000, 3)), add(monitor, fails(1_000_000, 4))
    assert monitor.run() == PowerOff(monitor.machine.steps, 0)
    assert [guest.ended for guest in (first, second)] == [PowerOff(first.steps, 3), PowerOff(second.steps, 4)]


def test_machine_without_memory_ends_alone() -> None:
    """Its reason is kept; the machine beside it goes on, and ends as it would alone."""
    monitor = Monitor(virt(16 * MiB), paging=1 * MiB, quantum=QUANTUM)
    starved = monitor.create("starved", 64 * MiB)
    load_code(starved, greedy())
    other = monitor.create("other", 4 * MiB, resident=4 * MiB)
    load_code(other, fails(1_000_000, 5))
    assert isinstance(monitor.run(), PowerOff)
    assert isinstance(starved.ended, OutOfMemory) and starved.ended.machine is starved
    bare = virt(4 * MiB)
    load_code(bare, fails(1_000_000, 5))
    assert isinstance(bare.run(), PowerOff)
    assert other.ended == PowerOff(bare.steps, 5) and other.digest() == bare.digest()


def test_lack_of_memory_is_of_the_level_that_lacks_it() -> None:
    """Where the outer monitor cannot give the inner machine what it has promised, all of that ends, and no other."""
    monitor = Monitor(virt(24 * MiB), paging=1 * MiB, quantum=QUANTUM)
    outer = monitor.create("outer", 64 * MiB)
    inner = Monitor(outer, quantum=QUANTUM)
    starved = inner.create("starved", 48 * MiB)
    load_code(starved, greedy())
    other = monitor.create("other", 4 * MiB, resident=4 * MiB)
    load_code(other, fails(1_000_000, 5))
    assert isinstance(monitor.run(), PowerOff)
    assert isinstance(outer.ended, OutOfMemory) and outer.ended.machine is outer
    assert starved.ended is None
    assert isinstance(other.ended, PowerOff)


def test_machine_that_comes_later_revives_its_monitors_machine() -> None:
    """Where all others had ended."""
    monitor = site()
    inner = Monitor(monitor.create("inner", 32 * MiB), quantum=QUANTUM)
    add(inner, fails(10, 0))
    assert isinstance(monitor.run(), PowerOff)
    late = add(inner, BUSY)
    assert isinstance(monitor.run(RUN // 10), Budget)
    assert late.steps > 0.9 * RUN / 10


# From other threads


def test_input_wakes_a_sleeper_beside_a_busy_machine() -> None:
    """At once, not when its neighbour is tired."""
    monitor = site(quantum=100_000_000)
    shell = monitor.create("shell", 32 * MiB)
    load(shell, CORRAL)
    while not finished(shell):
        monitor.run(1_000_000)
    add(monitor, BUSY)
    monitor.run(LONG)
    answered: list[float] = []

    def user() -> None:
        time.sleep(0.1)
        start = time.monotonic()
        shell.console.send("uptime\n")
        while "uptime\n" not in shell.console.text.replace("\r", "") and time.monotonic() < start + 10:
            time.sleep(0.001)
        answered.append(time.monotonic() - start)
        monitor.stop()

    thread = threading.Thread(target=user)
    thread.start()
    assert isinstance(monitor.run(), Stopped)
    thread.join()
    assert answered[0] < 0.3


@pytest.mark.parametrize("inner", [False, True])
def test_host_time_is_waited_for_and_input_ends_the_wait(inner: bool) -> None:
    """Under the host clock a sleeper costs nothing; its timer and its input wake it, at any depth."""
    below = monitor = site()
    if inner:
        monitor = Monitor(below.create("inner", 48 * MiB))
    shell = monitor.create("shell", 32 * MiB, clock="host")
    load(shell, CORRAL)
    timer = monitor.create("timer", 4 * MiB, clock="host")
    load_code(timer, ticking(100_000, WFI))

    def user() -> None:
        time.sleep(0.3)
        shell.console.send("ps\n")
        time.sleep(0.2)
        below.stop()

    thread = threading.Thread(target=user)
    thread.start()
    start, cpu = time.monotonic(), time.process_time()
    assert isinstance(below.run(), Stopped)
    thread.join()
    assert 0.4 < time.monotonic() - start < 2
    assert "ps" in shell.console.text and 30 <= timer.harts[0].x[TICKS] <= 100
    assert time.process_time() - cpu < 0.4


def test_stop_ends_a_run_in_the_middle_of_a_slice() -> None:
    """At any depth, and no machine is told to stop by it later."""
    monitor = site(quantum=1_000_000_000)
    guest = add(Monitor(monitor.create("inner", 32 * MiB), quantum=1_000_000_000), BUSY)
    monitor.run(LONG)
    threading.Timer(0.1, monitor.stop).start()
    start = time.monotonic()
    assert isinstance(monitor.run(), Stopped)
    assert time.monotonic() - start < 0.4
    assert isinstance(guest.run(1_000), Budget)
    assert isinstance(monitor.run(10_000), Budget)
