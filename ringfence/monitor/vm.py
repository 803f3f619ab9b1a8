"""A virtual machine is a machine: the board that `virt` gives, with memory, time and devices by its monitor's f."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ringfence.errors import MachineError, RingfenceError
from ringfence.machine.board import Virt
from ringfence.machine.clock import NEVER
from ringfence.machine.exit import Budget, Exit, PowerOff
from ringfence.machine.hart import Hart
from ringfence.machine.map import GuestRam
from ringfence.machine.memory import FRAME
from ringfence.monitor import spin
from ringfence.monitor.scheduler import Account
from ringfence.monitor.technique.para import EXTENSION, Paravirtual

if TYPE_CHECKING:
    from ringfence.monitor.inference import Inference
    from ringfence.monitor.monitor import Monitor


BASE, PROBE = 0x10, 3
"""The SBI's call that asks whether there is an extension."""


class VirtualMachine(Virt):
    """Made by `Monitor.create`, which sets these."""

    name: str
    technique: str
    """How its monitor keeps control."""
    monitor: Monitor
    ram: GuestRam
    resident: int
    """The first bytes of its memory, which the monitor does not page."""
    held: int
    """Bytes of the host's memory that it has."""
    paged: dict[int, int]
    """Frames (by offset) that are on the monitor's paging disk, and in which slot."""
    hand: int
    """Where the search for a frame to take goes on."""
    account: Account
    """What its monitor's scheduler has given it."""
    inference: Inference
    """What its monitor has seen of it."""
    control: Monitor | None = None
    """The monitor that is on it."""
    ended: PowerOff | RingfenceError | None = None
    """Why its monitor lets it run no more."""
    on_end: Callable[[], None] = staticmethod(lambda: None)
    """Called when it has `ended`."""
    spins = False
    """At the end of its last slice it was in an idle loop."""
    skipped = 0
    """Steps of idle loops that were not executed."""
    _stood: spin.Stood = ()
    """Where its harts stood at the end of its last slice."""
    _unseen = 0
    """Slices to the next in which it is looked at whether it spins."""

    @property
    def path(self) -> str:
        """Its name behind those of the machines that it is on, but for the bare one: `outer/inner`."""
        host = self.monitor.machine
        return f"{host.path}/{self.name}" if isinstance(host, VirtualMachine) else self.name

    # Its part of the harts beneath. Setting one raises MachineError.

    @property
    def share(self) -> int:
        return self.account.claim.share

    @share.setter
    def share(self, share: int) -> None:
        self.monitor.grant(self, replace(self.account.claim, share=share))

    @property
    def cap(self) -> float | None:
        return self.account.claim.cap

    @cap.setter
    def cap(self, cap: float | None) -> None:
        self.monitor.grant(self, replace(self.account.claim, cap=cap))

    @property
    def reservation(self) -> float:
        return self.account.claim.reservation

    @reservation.setter
    def reservation(self, reservation: float) -> None:
        self.monitor.grant(self, replace(self.account.claim, reservation=reservation))

    # Running

    @property
    def time(self) -> int:
        """What `Idle.wake` is to be compared with: the time (ns) of the monitor that is on it, or its own clock's."""
        return self.clock.now() if self.control is None else self.control.scheduler.now

    @property
    def idled(self) -> int:
        """How much of it passed without a step."""
        if self.control is not None:
            return self.control.scheduler.idle_ns
        return self.clock.idle_ns + self.skipped * self.clock.step_ns

    def execute(self, steps: int, *, cost: int = NEVER, idle: int = 0) -> Exit:
        """Run what is on it, a monitor's machines or a program on its harts, for at most `steps` steps: it ends at a
        check point fewer than CHECK_SPAN before, or where steps and surcharge come to `cost`. `idle`: the most idle
        time (ns) that may pass. A loop that only waits is idle time.
        """
        if self.control is not None:
            self.clock.allow(cost)
            return self.control.run(steps, idle=idle)
        if self.spins and idle and self.clock.source == "virtual":
            before = self.steps
            skipped, ended = spin.skip(self, idle, steps)
            self.skipped += skipped
            if not isinstance(ended, Budget):
                return ended
            steps -= self.steps - before - skipped
            idle -= skipped * self.clock.step_ns
        self.clock.allow(cost)
        ended = self.slice(steps, idle)
        stood, self._stood = self._stood, spin.stand(self)
        near = isinstance(ended, Budget) and spin.near(stood, self._stood)
        self._unseen = max(self._unseen - 1, 0)
        if near and self._unseen and stood != self._stood:
            near = False
        self.spins = near and not any(hart.launched for hart in self.harts) and spin.spins(self)
        if near:
            self._unseen = 0 if self.spins else spin.UNSEEN + 1
        if self.spins:
            waits = self.awaits()
            if waits.wake is None or waits.wake > self.clock.now():
                return waits
        return ended

    @property
    def impure(self) -> bool:
        """Its operating system has called its monitor, so it is not what it would be on a bare machine."""
        return isinstance(self.engine, Paravirtual) and bool(self.engine.shared)

    def environment_call(self, hart: Hart) -> None:
        """The monitor's own calls are not the firmware's."""
        x = hart.x
        asked = (x[17], x[16], x[10]) == (BASE, PROBE, EXTENSION)
        if not isinstance(self.engine, Paravirtual) or not (asked or x[17] == EXTENSION):
            super().environment_call(hart)
            return
        error, value = (0, 1) if asked else self.engine.call(hart, x[16], tuple(x[10:12]))
        x[10], x[11] = error & (1 << 64) - 1, value

    def hardware_reset(self) -> None:
        super().hardware_reset()
        if isinstance(self.engine, Paravirtual):
            self.engine.reset()

    def interrupt(self) -> None:
        """Make `execute` return soon; from any thread."""
        if self.control is not None:
            self.control.scheduler.leave()
        else:
            self.wanted = True
            self.kick()

    def feed(self, deliver: Callable[[], None]) -> None:
        super().feed(deliver)
        self.stir()

    def stir(self) -> None:
        """It is not to sleep on, nor is any machine beneath; from any thread."""
        self.monitor.scheduler.stir(self)
        if isinstance(host := self.monitor.machine, VirtualMachine):
            host.stir()

    def _asked(self) -> Exit | None:
        scheduler = self.monitor.scheduler
        cut = scheduler.running is self and scheduler.cut
        return super()._asked() or (Budget(self.steps) if cut else None)

    def ran(self, steps: int) -> None:
        self.monitor.machine.charge(steps)
        self.inference.at_rest()

    def charge(self, steps: int) -> None:
        super().charge(steps)
        self.monitor.machine.charge(steps)

    def unused(self) -> int | None:
        """A frame (by offset) that was not used since this was asked last (the clock algorithm; Corbató 1968)."""
        for _ in range(2 * self.ram.size // FRAME):
            at = self.hand if self.resident <= self.hand < self.ram.size else self.resident
            self.hand = at + FRAME
            if at < self.ram.size and self.ram.f.look(at) is not None and not self.ram.recent(at):
                return at
        return None

    def __repr__(self) -> str:
        return f"<{self.path}: {super().__repr__()[1:-1]}>"


class Destroyed(VirtualMachine):
    """What a machine is that its monitor has destroyed: whatever is asked of it raises MachineError."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("name", "account", "ended", "__class__", "__dict__"):
            return object.__getattribute__(self, name)
        raise MachineError(f"the machine {self.name} has been destroyed")

    def __repr__(self) -> str:
        return f"<{self.name}: destroyed>"
