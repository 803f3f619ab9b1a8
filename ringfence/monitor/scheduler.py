"""The scheduler: which of a monitor's machines has which hart of its own machine, and for how long.

Its time is in ns, and a slice takes as much of it as it cost the host (`Scheduler`). The harts go on beside each other:
each has come to a time of its own, and the one that is behind has the next slice. A machine has one hart at most, as
its own harts take turns.

Of the machines that want to run, the one comes next that has received least for its weight, which is its share as far
as it can use it (stride scheduling, Waldspurger and Weihl 1995; on several harts with readjusted weights, Chandra et
al. 2000). One that waits gives its time away and keeps no claim to it. It does not rush ahead: idle time passes for it
as it does for the others, or at once where all wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import fsum
from typing import TYPE_CHECKING

from ringfence.errors import MachineError, OutOfMemory, RingfenceError
from ringfence.machine.board import Virt
from ringfence.machine.clock import NEVER, Alarm
from ringfence.machine.exit import Break, Budget, Deadline, Exit, Idle, PowerOff, Stopped
from ringfence.machine.machine import CHECK_SPAN, Interruptible

if TYPE_CHECKING:
    from ringfence.monitor.vm import VirtualMachine

QUANTUM = 4_000_000
"""Steps of a slice."""
ALONE = 8
"""Quanta of a slice while no other machine wants to run."""
LONGEST = 10_000_000
"""Under the host clock, the ns of real time behind which a slice of a quantum ends, however few its steps are."""
PATIENCE = 256
"""A machine that was found to spin is looked at again after this part of a quantum, then after longer and longer."""


@dataclass(frozen=True)
class Claim:
    """To the harts beneath: a share, which weighs against others' shares; and the most and the least that a machine
    gets while it wants to run, in fractions of one hart. Raises MachineError.
    """

    share: int = 1
    cap: float | None = None
    reservation: float = 0

    def __post_init__(self) -> None:
        if self.share < 1:
            raise MachineError(f"a share is at least 1, not {self.share}")
        if self.cap is not None and not 0 < self.cap <= 1:
            raise MachineError(f"a cap is a fraction of one hart, not {self.cap}")
        if not 0 <= self.reservation <= self.most:
            raise MachineError(f"a reservation is at most {self.most:g} of a hart, not {self.reservation}")

    @property
    def most(self) -> float:
        return 1 if self.cap is None else self.cap

    def at(self, level: float) -> float:
        """The fraction of a hart, where everybody has `level` for each point of its share, within its bounds."""
        return min(max(level * self.share, self.reservation), self.most)


def admit(claims: Sequence[Claim], harts: int) -> None:
    """Raises MachineError where more is reserved than there is."""
    reserved = fsum(claim.reservation for claim in claims)
    if reserved > harts:
        raise MachineError(f"reservations of {reserved:g} harts are more than the {harts} that there are")


def fair_level(claims: Sequence[Claim], harts: int) -> float:
    """The level at which all harts are used, or everybody has the most it can use: what one cannot use goes to the
    others by their shares (max-min fairness).
    """

    def total(level: float) -> float:
        return fsum(claim.at(level) for claim in claims)

    wanted = min(harts, fsum(claim.most for claim in claims))
    below = 0.0
    for edge in sorted(bound / claim.share for claim in claims for bound in (claim.reservation, claim.most)):
        low, high = total(below), total(edge)
        if high >= wanted > low:  # between two edges the sum is linear
            return below + (edge - below) * (wanted - low) / (high - low)
        if high > wanted:
            break
        below = edge
    return below


@lru_cache(1024)
def weights(claims: tuple[Claim, ...], harts: int) -> tuple[float, ...]:
    """Shares as they count among machines that want to run: smaller than they are for those that cannot use all of
    theirs, and larger for those that a reservation helps.
    """
    level = fair_level(claims, harts)
    return tuple(claim.at(level) / (level or 1) for claim in claims)


@dataclass
class Account:
    """What a machine has received, and where it stands with its scheduler, in whose time the times are."""

    claim: Claim
    time: int = 0
    """What its slices have cost."""
    steps: int = 0
    slices: int = 0
    switches: int = 0
    """Slices that began on a hart on which another machine was last."""
    idle_ns: int = 0
    """Its time that passed without a step, `skipped` ones included."""
    skipped: int = 0
    """Steps of idle loops that nobody executed."""
    faults: int = 0
    """VM-faults that the monitor answered for it."""
    paged_out: int = 0
    paged_in: int = 0
    shared: int = 0
    """Frames in whose place it got one that another machine has too."""
    separated: int = 0
    """Such frames that it has written, and so has a copy of."""
    zeroed: int = 0
    """Frames that the monitor zeroed to give them to it: they had held something else."""

    service: float = 0.0
    """Time received, that of each slice divided by its weight then."""
    free_at: int = 0
    """When its last slice is over, and its cap lets it have another."""
    capped_until: int = 0
    asleep: bool = True
    since: int = 0
    """When it fell asleep."""
    wake_at: int = 0
    due: int | None = None
    """When it is to wake by the host's monotonic clock, in ns."""
    stirred: bool = False
    """There is input for it."""
    owed: int = 0
    """Time that has passed for the others since it fell asleep, or over slow steps of its own, and that is yet to pass
    for it as idle time.
    """
    patience: int = QUANTUM
    """The most steps before it is looked at whether it spins."""


class Scheduler:
    """Of the machines on `machine`, in slices of at most `quantum` steps.

    By the host clock of `machine` a slice costs the processor's time that it took. By the virtual clock it costs a ns a
    step, and more for steps that are slow for every host (`Clock.surcharge`): no run depends on how fast the host is.
    """

    def __init__(self, machine: Virt, quantum: int = QUANTUM) -> None:
        if quantum < CHECK_SPAN:
            raise MachineError(f"a quantum has at least {CHECK_SPAN} steps, not {quantum}")
        self.quantum = quantum
        self.guests: dict[str, VirtualMachine] = {}
        self.idle_ns = 0
        """Time in which no step was taken."""
        self.running: VirtualMachine | None = None
        self.cut = False
        """The slice is to end: there is something to look at."""
        self._machine = machine
        self._times = [0] * len(machine.harts)
        self._last: list[VirtualMachine | None] = [None] * len(machine.harts)
        self._floor = 0.0
        self._idle_left: int | None = None
        self._leave = self._stop = False
        self._changed = threading.Condition()
        self._alarm: Alarm | None = None
        """Ends long slices while the machine has the host clock."""

    @property
    def now(self) -> int:
        """The time to which the harts have come, in ns: the one that is ahead."""
        return max(self._times)

    # From other threads

    def stop(self) -> None:
        """Make `run`, or the next one, return `Stopped` soon."""
        self._stop = True
        self._interrupt()

    def leave(self) -> None:
        """Make `run` return `Budget` soon: the machine beneath is wanted."""
        self._leave = True
        self._interrupt()

    def stir(self, guest: VirtualMachine) -> None:
        """There is input for a machine, or for one on it."""
        guest.account.stirred = True
        if self.running is not guest:
            self._interrupt()

    def _interrupt(self) -> None:
        self.cut = True
        if (guest := self.running) is not None:
            guest.interrupt()
        with self._changed:
            self._changed.notify_all()

    def _slice_is_long(self) -> None:
        if self.running is not None:
            self._interrupt()

    # Running

    def run(self, steps: int | None, until: int | None, idle: int | None) -> Exit:
        """As `Monitor.run`."""
        self._idle_left = idle
        end = NEVER if steps is None else self._machine.steps + steps
        with Interruptible(self.stop), ExitStack() as stack:
            for going in self._going():
                stack.enter_context(going)
            return self._run(end, NEVER if until is None else until)

    def _going(self) -> Iterator[AbstractContextManager[None]]:
        """What goes on by the host's time, here and above: the machines that no monitor is on, and schedulers."""
        if self._machine.clock.source == "host" and self._alarm is None:
            yield self._alarmed()
        for guest in self.guests.values():
            if guest.control is not None:
                yield from guest.control.scheduler._going()
            elif guest.clock.source == "host":
                yield guest.time_goes()

    @contextmanager
    def _alarmed(self) -> Iterator[None]:
        try:
            with Alarm(self._slice_is_long) as self._alarm:
                yield
        finally:
            self._alarm = None

    def _run(self, end: int, until: int) -> Exit:
        while True:
            self.cut = False
            steps = self._machine.steps
            if self._stop:
                self._stop = False
                return Stopped(steps)
            if self._leave or min(end - steps, self._machine.clock.left) <= CHECK_SPAN:
                self._leave = False
                return Budget(steps)
            hart = self._times.index(min(self._times))
            now = self._times[hart]
            if now >= until:
                return Deadline(steps)
            awake = self._awake(now)
            chosen = self._choose(awake, now)
            if chosen is None:
                ended = self._pass_time(hart, awake, until)
            else:
                length = min(self._length(chosen[0], awake, now), until - now)
                if self._alarm is not None and len(self.guests) > 1:
                    self._alarm.set_host(time.monotonic_ns() + LONGEST * max(1, length // self.quantum))
                ended = self._slice(hart, *chosen, length + CHECK_SPAN, end - steps)
            if ended is not None:
                return ended

    def _awake(self, now: int) -> list[VirtualMachine]:
        """The machines that want to run."""
        awake = []
        for guest in self.guests.values():
            account = guest.account
            if guest.ended is not None:
                continue
            if account.asleep:
                due = account.due is not None and account.due <= time.monotonic_ns()
                if not (account.stirred or account.wake_at <= now or due):
                    continue
                if account.wake_at < NEVER:
                    account.owed += max(0, min(now, account.wake_at) - account.since)
                account.asleep = False
                account.service = max(account.service, self._floor)
            awake.append(guest)
        return awake

    def _choose(self, awake: list[VirtualMachine], now: int) -> tuple[VirtualMachine, float] | None:
        """The machine that comes next, and its weight."""
        best = None
        counted = weights(tuple(guest.account.claim for guest in awake), len(self._times))
        for guest, weight in zip(awake, counted, strict=True):
            account = guest.account
            if weight and account.free_at <= now and (best is None or account.service < best[0].account.service):
                best = guest, weight
        return best

    def _length(self, guest: VirtualMachine, awake: list[VirtualMachine], now: int) -> int:
        """The steps of a slice."""
        account = guest.account
        length = self.quantum
        if len(awake) == 1 and account.claim.cap is None and self._due() is None:
            length = max(length, min(self._soonest(awake, now) - now, ALONE * length))
        return min(length, account.patience)

    def _slice(self, hart: int, guest: VirtualMachine, weight: float, length: int, most: int) -> Exit | None:
        """At most so many steps are taken. An exit is due where it is not the scheduler's business."""
        account = guest.account
        account.slices += 1
        account.switches += self._last[hart] is not guest
        account.stirred = False
        self._last[hart] = guest
        self._floor = max(self._floor, account.service)
        clock, own = self._machine.clock, guest.clock
        before, spent, surcharge = clock.steps, self._spent(), own.surcharge
        idled, skipped = guest.idled, guest.skipped
        self.running = guest
        ended: Exit | RingfenceError | None = None
        try:
            if not self.cut:
                ended = guest.execute(min(length, most), cost=min(length, clock.left), idle=account.owed)
        except RingfenceError as error:
            if isinstance(error, OutOfMemory) and error.machine not in (None, guest):
                raise
            ended = error
        finally:
            self.running = None
            own.end = NEVER
            surcharge, passed = own.surcharge - surcharge, guest.idled - idled
            clock.surcharge += surcharge
            self.idle_ns += surcharge
            account.owed += surcharge - passed
            account.steps += clock.steps - before
            account.idle_ns += passed
            account.skipped += guest.skipped - skipped
            self._charge(hart, account, self._spent() - spent, weight)
        if isinstance(ended, PowerOff | RingfenceError):
            guest.ended = ended
            guest.on_end()
        elif isinstance(ended, Idle):
            self._sleep(guest, ended, self._times[hart])
        elif isinstance(ended, Break | Stopped):
            return ended
        shortest = max(self.quantum // PATIENCE, CHECK_SPAN)
        account.patience = shortest if guest.spins else min(2 * account.patience, ALONE * self.quantum)
        return None

    def _spent(self) -> int:
        """What all slices have cost, from any time on."""
        clock = self._machine.clock
        return time.thread_time_ns() if clock.source == "host" else clock.steps + clock.surcharge

    def _charge(self, hart: int, account: Account, took: int, weight: float) -> None:
        """A slice that cost so much is over."""
        account.time += took
        began = self._times[hart]
        self._times[hart] = account.free_at = began + took
        account.service += took / weight
        if (cap := account.claim.cap) is not None:
            # What it could not use of the last quantum, as others had the harts, it may have yet.
            account.capped_until = max(account.capped_until, began - self.quantum) + int(took / cap)
            account.free_at = max(account.free_at, account.capped_until)

    def _sleep(self, guest: VirtualMachine, idle: Idle, since: int) -> None:
        account = guest.account
        account.asleep, account.since, account.due = True, since, idle.due
        if idle.wake is None:
            account.wake_at = NEVER
            account.owed = 0
        else:
            account.wake_at = since + max(0, idle.wake - guest.time - account.owed)

    # Where nothing can run

    def _soonest(self, awake: list[VirtualMachine], now: int) -> int:
        """When the next machine wakes, or one that is awake may run again."""
        free = (guest.account.free_at for guest in awake if guest.account.free_at > now)
        return min([*free, *(guest.account.wake_at for guest in self._sleepers())], default=NEVER)

    def _due(self) -> int | None:
        """The host's time at which the next machine wakes; None: there is none that waits for that."""
        return min((due for guest in self._sleepers() if (due := guest.account.due) is not None), default=None)

    def _sleepers(self) -> Iterator[VirtualMachine]:
        return (guest for guest in self.guests.values() if guest.account.asleep and guest.ended is None)

    def _pass_time(self, hart: int, awake: list[VirtualMachine], until: int) -> Exit | None:
        """No machine can run on the hart now: time passes for it, as it has for the others, or for all of them."""
        now, steps = self._times[hart], self._machine.steps
        soonest = self._soonest(awake, now)
        if now < self.now:
            self._times[hart] = min(soonest, self.now)
            return None
        due = self._due()
        if soonest < NEVER:
            gap = min(soonest, until) - now
            passed = gap if self._idle_left is None else min(gap, self._idle_left)
            self._times = [now + passed] * len(self._times)
            self.idle_ns += passed
            if self._idle_left is not None:
                self._idle_left -= passed
            return None if passed == gap else Idle(steps, soonest, due)
        if due is None:
            ended = self.guests and all(guest.ended is not None for guest in self.guests.values())
            return PowerOff(steps, 0) if ended else Idle(steps)
        if self._idle_left is not None:
            return Idle(steps, due=due)
        with self._changed:
            if not self.cut:
                # Bounded, as a signal handler may call `stop` between the test and the wait.
                self._changed.wait(min(max(0, due - time.monotonic_ns()) / 1e9, 0.2))
        return None
