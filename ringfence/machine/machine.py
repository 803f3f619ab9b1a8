"""The computer: harts that take turns, a clock, a bus; and what a machine is to whoever uses it.

Steps = instructions retired + traps taken, of all harts together. Interrupts are taken, events carried out and turns
changed only at check points (docs/model.md), so that a run does not depend on the engine, and a run of n steps can
stop and go on anywhere.
"""

from __future__ import annotations

import operator
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ringfence.errors import MachineError
from ringfence.isa.csr import STCE
from ringfence.isa.trap import Irq
from ringfence.machine.bus import Bus
from ringfence.machine.clock import NEVER, Alarm, Clock
from ringfence.machine.device.aclint import Aclint
from ringfence.machine.device.device import Device
from ringfence.machine.digest import Transcript, digest
from ringfence.machine.engine.layout import WATCHED_PAGES
from ringfence.machine.engine.reference import Known
from ringfence.machine.exit import Break, Budget, Deadline, Exit, Idle, PowerOff, Stopped
from ringfence.machine.hart import Hart
from ringfence.machine.launch import Trapped
from ringfence.machine.memory import Ram
from ringfence.machine.stops import Watch, pages

if TYPE_CHECKING:
    from ringfence.machine.virtualizer import Virtualizer

CHECK_SPAN = 2048
"""The most steps from one check point to the next: a page has so many instructions, and entering a page is one."""


STRETCH = 50_000_000
"""The most steps of native code at a time: Python's signal handlers run between them."""


class Interruptible:
    """While a machine runs in the main thread, Ctrl-C lets it come to a stop, and is raised then."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._came = self._ours = False

    def _handle(self, number: int, frame: object) -> None:
        self._came = True
        self._stop()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *raised: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._came:
            raise KeyboardInterrupt


class Engine(Protocol):
    """What runs a hart."""

    slow: int
    """What an instruction that is left to the reference costs the host beyond others, in steps."""

    def run(self, hart: Hart, deadline: int) -> bool:
        """Run to the first check point at or behind `deadline` steps; or to an earlier one where an interrupt may be
        pending, nothing is left of what the clock allows, the hart waits or the machine needs its computer; or to any
        place where it does, which is behind an instruction that set `wanted`, and before one at a breakpoint. True: the
        hart stands at a check point that is still to be seen to.
        """
        ...

    def kick(self) -> None:
        """Make `run` return soon; from any thread."""
        ...

    def protection(self, hart: Hart) -> None:
        """Protection or configuration of translation has changed."""
        ...

    def retranslate(self, hart: Hart, page: int | None) -> None:
        """The hart's software-filled TLB is about to change what it says of the page at this address, or of any."""
        ...

    def stops(self, breakpoints: Iterable[int], watched: Sequence[int]) -> None:
        """From now on leave instructions at these addresses, and data accesses to these pages, to the reference."""
        ...

    def close(self) -> None:
        """The harts run no more."""
        ...

    # The Hardware Virtualizer: what a monitor asks of the machine that it has

    def virtualize(self, computer: Computer, ram: Ram) -> Engine:
        """What runs the harts of a virtual machine whose memory is `ram`, as this runs those of its own machine."""
        ...

    def lend(self, virtual: Hart | None = None, direct: bool = False) -> Hart:
        """A hart's modes below M, for a monitor to launch (`machine.launch`). Privileged instructions may be applied to
        `virtual` at once, where nobody else has to know of them. `direct`: the lent hart may have the state of S.
        """
        ...

    def take_back(self, hart: Hart) -> None:
        """A hart that was lent is launched no more."""
        ...

    def applied(self, hart: Hart) -> int:
        """How many instructions of a lent hart were applied to its virtual hart with no return of `launch`."""
        ...

    def zeroes(self, hart: Hart) -> list[int]:
        """Of pages that the hart has made zeroes by CBO.ZERO: how many; how many of them were zeroes before, as far as
        their first block tells; and how many were there no frame for.
        """
        ...

    def space(self, hart: Hart) -> None:
        """A lent hart's mode, `satp`, SUM and MXR are to be what they are now whenever its virtual hart's are what they
        are now.
        """
        ...

    def forget_spaces(self, hart: Hart) -> None:
        """`space` told nothing yet."""
        ...

    def launch(self, hart: Hart, clock: Clock, offset: int, deadline: int) -> Trapped | None:
        """Run a hart that was lent to an exception, which is not taken; or, None, as `run` does, to a check point.

        `clock` counts its steps; `offset` is what mtime differs from that, in ticks.
        """
        ...


class Firmware(Protocol):
    """What answers ECALL from S-mode where no M-mode program does."""

    def call(self, hart: Hart) -> None: ...

    def power_on(self, entry: int, tree: int) -> None:
        """Begin at `entry` with the device tree at `tree`."""
        ...

    def another(self, computer: Computer) -> Firmware:
        """The same for another machine."""
        ...


class HartLine:
    """A wire into a hart's mip."""

    __slots__ = ("_bit", "_hart")

    def __init__(self, hart: Hart, irq: Irq) -> None:
        self._hart, self._bit = hart, 1 << irq

    def set(self, level: bool) -> None:
        self._hart.lines = self._hart.lines | self._bit if level else self._hart.lines & ~self._bit


class SupervisorTimers(Device):
    """Sstc: each hart's stimecmp against mtime, driving STIP while menvcfg.STCE is set."""

    def __init__(self, clock: Clock, aclint: Aclint, harts: list[Hart]) -> None:
        self.clock, self.aclint, self.harts = clock, aclint, harts
        super().__init__()

    def event(self, kind: str, number: int) -> None:
        self.update(self.harts[number])

    def update(self, hart: Hart) -> None:
        line = HartLine(hart, Irq.STI)
        if not hart.menvcfg >> STCE & 1:
            line.set(False)
            self.clock.cancel(self, "stimecmp", hart.number)
            return
        missing = hart.stimecmp - self.aclint.mtime()
        line.set(missing <= 0)
        now_ticks = self.clock.now() // 100
        if 0 < missing < 1 << 55:
            self.clock.at((now_ticks + missing) * 100, self, "stimecmp", hart.number)
        else:
            self.clock.cancel(self, "stimecmp", hart.number)


class Turns:
    """The lengths of turns, in steps: always `length`, or drawn from a seed between 1 and twice that."""

    def __init__(self, length: int, seed: int | None) -> None:
        self.length = length
        self.state = None if seed is None else (seed * 2 + 1) & 0xFFFF_FFFF_FFFF_FFFF

    def draw(self) -> int:
        if self.state is None:
            return self.length
        x = self.state  # xorshift64 (Marsaglia 2003)
        x ^= x << 13 & 0xFFFF_FFFF_FFFF_FFFF
        x ^= x >> 7
        x ^= x << 17 & 0xFFFF_FFFF_FFFF_FFFF
        self.state = x
        return 1 + x % (2 * self.length)


def _count(number: int, what: str) -> int:
    wrong = f"run takes a whole number of {what} from 0, not {number!r}"
    try:
        number = operator.index(number)
    except TypeError:
        raise TypeError(wrong) from None
    if number < 0:
        raise MachineError(wrong)
    return number


class Computer:
    """Bare metal. Made by a board (`machine.board.virt`), which wires it."""

    def __init__(
        self, ram: Ram, clock: Clock, harts: list[Hart], *, turn: int = 20_000, seed: int | None = None
    ) -> None:
        self.ram, self.clock, self.harts = ram, clock, harts
        self.bus = Bus(ram)
        self.reference = Known(self)
        self.turns = Turns(turn, seed)
        self.firmware: Firmware | None = None
        self.virtualizer: Virtualizer | None = None
        """Where harts can launch virtual machines."""
        self.engine: Engine
        self.aclint: Aclint
        self.timers: SupervisorTimers
        self.transcript: Transcript
        self.zeroes = [0, 0, 0]
        """As `Engine.zeroes` tells of a hart: those that the reference made, of all harts."""
        self.current = 0
        self.turn_end = NEVER if len(harts) == 1 else self.turns.draw()
        self.at_check_point = False
        self.status: int | None = None
        self.reset_wanted = False
        self.on_reset: Callable[[], None] = lambda: None
        self.breakpoints: set[int] = set()
        """Virtual addresses. This set and the next are changed while the machine stands."""
        self.watchpoints: set[Watch] = set()
        self.wanted = False
        """`run` has something to see to behind this instruction."""
        self._told: tuple[frozenset[int], frozenset[Watch]] = (frozenset(), frozenset())
        self._met: Break | None = None
        self._passed: dict[int, tuple[int, int]] = {}  # by hart: the step at which it stands, and its pc
        self._standing: frozenset[int] = frozenset()
        self._stepping: int | None = None
        self._pause = False
        self._input: deque[Callable[[], None]] = deque()
        self._arrived = threading.Condition()
        self._stop = False
        self._until = NEVER
        self._idle_left: int | None = None

    # What parts of the machine ask of it

    def mtime(self) -> int:
        return self.aclint.mtime()

    def timer(self, hart: Hart) -> None:
        self.timers.update(hart)

    def protection(self, hart: Hart) -> None:
        self.reference.forget()
        self.engine.protection(hart)

    def environment_call(self, hart: Hart) -> None:
        assert self.firmware is not None
        self.firmware.call(hart)

    def power_off(self, status: int) -> None:
        self.status = status
        self.wanted = True

    def reset(self) -> None:
        self.reset_wanted = self.wanted = True

    def pause(self) -> None:
        """`run` returns `Stopped` behind this instruction: from what a running machine calls, as its console and what
        `feed` delivers.
        """
        self._pause = self.wanted = True

    def accessed(self, va: int, size: int, how: int) -> None:
        """The current hart has read or written data; called while there are watchpoints."""
        for watch in self.watchpoints:
            first = watch.met(va, size, how)
            if first is not None and (self._met is None or first < self._met.va):
                self._met = Break(self.clock.steps + 1, self.current, first, watch.kind)
                self.wanted = True

    # Running

    @property
    def steps(self) -> int:
        return self.clock.steps

    def run(
        self,
        steps: int | None = None,
        *,
        until: int | None = None,
        harts: Collection[int] | None = None,
        step: int | None = None,
        idle: int | None = None,
        exact: bool = True,
    ) -> Exit:
        """Run for exactly so many steps, or to the first check point at or behind guest time `until` (ns), or until
        something else ends it. Raises `MachineError` where there is nothing to run.

        `harts`: the others stand still. `step`: to behind the next step of this hart, breakpoint or not; it has the
        turn at once where it can run. `idle`: the most idle time (ns) that may pass; None: any. Not `exact`: to a check
        point at most CHECK_SPAN steps before, which costs much less.
        """
        budget = NEVER if steps is None else _count(steps, "steps")
        end_time = NEVER if until is None else _count(until, "ns as `until`")
        standing = frozenset() if harts is None else frozenset(range(len(self.harts))).difference(harts)
        with Interruptible(self.stop), self.time_goes():
            ended = self._begin(budget, end_time, standing, step, idle, exact)
        if self.clock.source == "virtual":  # who looks at its disks finds the same each time
            self.settle()
        return ended

    def slice(self, steps: int, idle: int | None) -> Exit:
        """`run(steps, idle=idle, exact=False)` for who sees to Ctrl-C himself."""
        if self.clock.source == "virtual" or self.clock.alarm is not None:
            return self._begin(steps, NEVER, frozenset(), None, idle, False)
        with self.time_goes():
            return self._begin(steps, NEVER, frozenset(), None, idle, False)

    def _begin(
        self, budget: int, until: int, standing: frozenset[int], step: int | None, idle: int | None, exact: bool
    ) -> Exit:
        if budget:
            self.check_program()
        self._until, self._standing, self._stepping, self._idle_left = until, standing, step, idle
        self._pause = False
        if self.watchpoints and len(pages(self.watchpoints)) > WATCHED_PAGES:
            raise MachineError(f"watchpoints lie in at most {WATCHED_PAGES} pages")
        before = self.clock.steps
        last = CHECK_SPAN if exact else 0
        try:
            return self._run(before + max(budget - CHECK_SPAN + last, 0), last)
        finally:
            self.ran(self.clock.steps - before)

    @contextmanager
    def time_goes(self) -> Iterator[None]:
        """Host time goes on meanwhile, if that is the machine's, and its events make a hart that runs look."""
        clock = self.clock
        if clock.source == "virtual" or clock.alarm is not None:
            yield
            return
        went = clock.goes  # as that of a machine that was launched does, between its turns too
        clock.start()
        try:
            with Alarm(self.kick) as clock.alarm:
                try:
                    yield
                finally:
                    if not went:
                        clock.stop()
        finally:
            clock.alarm = None
            if not went:
                clock.stop()

    def settle(self) -> None:
        """Returns when all that its devices have given threads to do is done."""
        for _, _, device in self.bus.windows():
            device.settle()

    def check_program(self) -> None:
        """Raises `MachineError` where no program was loaded."""

    def ran(self, steps: int) -> None:
        """`run` has taken so many steps: a virtual machine's are its host machine's too."""

    def charge(self, steps: int) -> None:
        """A machine on this one has taken so many steps of it."""
        self.clock.steps += steps

    @property
    def launched(self) -> Mapping[int, Computer]:
        """The virtual machines that harts have launched, by number."""
        return {} if self.virtualizer is None else self.virtualizer.machines

    def digest(self) -> str:
        """One hash of the whole state; the machine stands."""
        return digest(self)

    def stop(self) -> None:
        """Make `run`, or the next one, return `Stopped` soon; from any thread or signal handler."""
        self._stop = self.wanted = True
        self.kick()
        with self._arrived:
            self._arrived.notify_all()

    def feed(self, deliver: Callable[[], None]) -> None:
        """Input from outside, from any thread: `deliver` is called at a check point."""
        with self._arrived:
            self._input.append(deliver)
            self._arrived.notify_all()
        self.kick()

    def kick(self) -> None:
        """Make what runs look at what is wanted; from any thread."""
        self.engine.kick()
        if self.virtualizer is not None:
            self.virtualizer.kick()

    @property
    def stopping(self) -> bool:
        """`stop` was called, and `run` has not returned for it yet."""
        return self._stop

    def pass_breakpoint(self) -> None:
        """The next run begins with the instruction at which the current hart stands, breakpoint or not."""
        self._passed[self.current] = self.clock.steps, self.harts[self.current].pc

    def _tell(self) -> None:
        """The engine learns of changed breakpoints and watchpoints."""
        if not (self.breakpoints or self.watchpoints or any(self._told)):
            return
        stops = frozenset(self.breakpoints), frozenset(self.watchpoints)
        if stops != self._told:
            self.engine.stops(stops[0], pages(stops[1]))
            self._told = stops

    def _run(self, end: int, last: int) -> Exit:
        """To `end`, the last steps by the reference."""
        clock, harts, stepping = self.clock, self.harts, self._stepping
        if stepping is not None and self.current != stepping and self._runnable(harts[stepping]):
            self._switch(stepping)
            self.at_check_point = True
        while True:
            if self.wanted:
                self.wanted = False
                if ended := self._asked():
                    return ended
            if clock.steps >= end or clock.left <= 0:
                return Budget(clock.steps)
            if self.current in self._standing:
                self.at_check_point = True  # for the turn to go to another
            if self.at_check_point:
                if ended := self._check_point():
                    return ended
                if self.at_check_point:  # an interrupt was taken, a step that ends at one; or `run` is wanted
                    continue
            hart = harts[self.current]
            if self.current == stepping:
                end = clock.steps + 1
            elif self.breakpoints and not hart.launched and hart.pc in self.breakpoints:
                place = clock.steps, hart.pc
                if self._passed.get(self.current) != place:
                    self._passed[self.current] = place
                    return Break(clock.steps, self.current, hart.pc)
                self.at_check_point = self.reference.step(hart)
                continue
            exact = end - clock.steps <= last
            if exact and not hart.launched:
                self.at_check_point = self.reference.step(hart)
            else:
                deadline = min(self.turn_end, end if exact else end - last, clock.steps + STRETCH)
                if clock.source == "virtual":
                    deadline = min(deadline, clock.next_step(), clock.step_at(self._until))
                elif clock.alarm is not None and not clock.alarm.set(clock, min(clock.next_event(), self._until)):
                    deadline = 0
                if self._input:  # it came behind the last check point; `feed` kicks where it comes later
                    deadline = 0
                self._tell()
                if hart.launched:
                    assert self.virtualizer is not None
                    self.at_check_point = self.virtualizer.run(hart, deadline, end if exact else None)
                else:
                    self.at_check_point = self.engine.run(hart, deadline)

    def _asked(self) -> Exit | None:
        """What was asked for by the instruction that has ended, or from outside."""
        steps = self.clock.steps
        if self.status is not None:
            self.wanted = True  # what is off stays off
            self.settle()
            return PowerOff(steps, self.status)
        if self.reset_wanted:
            self.reset_wanted = False
            self._met = None
            self.on_reset()
        if self._met is not None:
            met, self._met = self._met, None
            self.wanted = True
            return met
        if self._pause:
            self._pause, self.wanted = False, True
            return Stopped(steps)
        if self._stop:
            self._stop = False
            return Stopped(steps)
        return None

    def _check_point(self) -> Exit | None:
        """Input, events, turns, interrupts: in that order. An exit is due where every hart waits for input."""
        while self._input:
            self._input.popleft()()
        if self.wanted:
            return None
        clock = self.clock
        clock.fire()
        if clock.now() >= self._until:
            return Deadline(clock.steps)
        hart = self.harts[self.current]
        while clock.steps >= self.turn_end or not self._runnable(hart):
            found = self._next_turn()
            if found is not None:
                hart = found
                break
            if ended := self._idle():
                return ended
            if self.wanted:
                return None
        if hart.launched and (hart.mip | hart.lines) & hart.mie:
            assert self.virtualizer is not None
            self.virtualizer.interrupt(hart)
        self.at_check_point = self.reference.interrupt(hart)
        return Budget(clock.steps) if self.at_check_point and self.current == self._stepping else None

    def _runnable(self, hart: Hart) -> bool:
        if hart.waiting and ((hart.mip | hart.lines) & hart.mie or self._machine_ready(hart)):
            hart.waiting = 0
        return not hart.waiting and not hart.stopped and hart.number not in self._standing

    def _machine_ready(self, hart: Hart) -> bool:
        """The machine that the hart has launched, if any, can go on."""
        return self.virtualizer is not None and hart.launched != 0 and self.virtualizer.ready(hart)

    def stirred(self) -> bool:
        """There is something to do on a machine that waited."""
        due = self.next_event() <= self.clock.now()
        return due or self.wanted or bool(self._input) or any(map(self._runnable, self.harts))

    def next_event(self) -> int:
        """The time of the next event, here or on a machine that was launched; or NEVER."""
        when = self.clock.next_event()
        if self.virtualizer is not None and self.clock.source == "host":
            when = min(when, self.virtualizer.next_event())
        return when

    def _next_turn(self) -> Hart | None:
        """The turn goes to the next hart that can run, this one last."""
        count = len(self.harts)
        for n in range(1, count + 1):
            number = (self.current + n) % count
            hart = self.harts[number]
            if self._runnable(hart):
                self._switch(number)
                return hart
        return None

    def _switch(self, number: int) -> None:
        steps = self.clock.steps
        old, new = self.harts[self.current], self.harts[number]
        old.reservation = (1 << 64) - 1
        if number != self.current:
            old.away = steps
            elsewhere = steps - new.away
            if not new.mcountinhibit & 1:
                new.mcycle -= elsewhere
            if not new.mcountinhibit & 4:
                new.minstret -= elsewhere
            if self._passed.get(number) == (new.away, new.pc):
                self._passed[number] = steps, new.pc
            self.current = number
        if len(self.harts) > 1:
            self.turn_end = steps + self.turns.draw()

    def awaits(self) -> Idle:
        """What a machine says that cannot go on before its next event, or input."""
        clock = self.clock
        when = self.next_event()
        if clock.source == "virtual":
            return Idle(clock.steps, wake=None if when == NEVER else when)
        return Idle(clock.steps, due=NEVER if when == NEVER else clock.host_start + when)

    def _idle(self) -> Exit | None:
        """No hart can run: time passes to the next event, or input comes."""
        clock = self.clock
        when, left, before = self.next_event(), self._idle_left, clock.idle_ns
        if clock.source == "virtual":
            if not clock.jump(self._until if left is None else min(self._until, clock.now() + left)):
                return Idle(clock.steps)
            if left is not None:
                self._idle_left = left - (clock.idle_ns - before)
            clock.fire()
            if clock.now() >= self._until:
                return Deadline(clock.steps)
            return self.awaits() if clock.now() < when else None
        when = min(when, self._until)
        if left is not None and clock.now() < when:
            return self.awaits()
        with self._arrived:
            if not self._input and not self.wanted:
                # Bounded, as a signal handler may call `stop` between the test and the wait.
                self._arrived.wait(min(max(0, when - clock.now()) / 1e9, 0.2))
        while self._input:
            self._input.popleft()()
        if self.wanted:
            return None
        clock.fire()
        return Deadline(clock.steps) if clock.now() >= self._until else None
