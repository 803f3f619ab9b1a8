"""The machine's one clock, and the events that wait on it.

`virtual`: a step is `step_ns` of guest time, plus the idle time that was jumped over. `host`: real time since
power-on, standing still while the machine does. A pending event is data: (time, device, kind, number).
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from ringfence.machine.device.device import Device

NEVER = 1 << 63
Source = Literal["virtual", "host"]


class Clock:
    """Guest time in ns. `steps` is the machine's count; whoever runs harts keeps it."""

    def __init__(self, source: Source = "virtual", step_ns: int = 1) -> None:
        self.source, self.step_ns = source, step_ns
        self.steps = 0
        self.surcharge = 0
        """What slow steps have cost the host beyond a step each, in steps (`Engine.slow`): no time of the guest's."""
        self.end = NEVER
        """Where steps and surcharge come to so much, whoever runs harts comes back at the next check point."""
        self.idle_ns = 0
        self._queue: list[tuple[int, int, Device, str, int]] = []
        self._live: dict[tuple[int, str, int], tuple[int, int]] = {}
        self._order = 0
        self._host_start = time.monotonic_ns()
        self._stopped_at: int | None = self._host_start
        self._beneath: Clock | None = None
        self.alarm: Alarm | None = None

    def allow(self, most: int) -> None:
        """Harts are to run until steps and surcharge come to so much more."""
        self.end = self.steps + self.surcharge + most

    @property
    def left(self) -> int:
        """Of what was allowed."""
        return self.end - self.steps - self.surcharge

    def now(self) -> int:
        if self.source == "virtual":
            return self.steps * self.step_ns + self.idle_ns
        at = self._real() if self._stopped_at is None else self._stopped_at
        return at - self._host_start

    def _real(self) -> int:
        return time.monotonic_ns() if self._beneath is None else self._beneath.now()

    def follow(self, beneath: Clock) -> None:
        """A clock that stands: from now on the time of `beneath` is what host time is to it."""
        now, self._beneath = self.now(), beneath
        self._stopped_at = self._real()
        self._host_start = self._stopped_at - now

    def start(self) -> None:
        """Host time goes on."""
        if self._stopped_at is not None:
            self._host_start += self._real() - self._stopped_at
            self._stopped_at = None

    def stop(self) -> None:
        """Host time stands still while nothing runs."""
        if self._stopped_at is None:
            self._stopped_at = self._real()

    @property
    def goes(self) -> bool:
        """Whether host time goes on."""
        return self._stopped_at is None

    @property
    def host_start(self) -> int:
        """The host's monotonic time, in ns, at guest time 0."""
        return self._host_start if self._beneath is None else self._host_start + self._beneath.host_start

    def at(self, time_ns: int, device: Device, kind: str, number: int) -> None:
        """Schedule; replaces a pending event of the same device, kind and number."""
        self._order += 1
        self._live[id(device), kind, number] = (time_ns, self._order)
        heapq.heappush(self._queue, (time_ns, self._order, device, kind, number))
        if self.alarm is not None:  # a hart that goes on running must be stopped in time for it
            self.alarm.hasten(self, time_ns)
        if len(self._queue) > 64 + 2 * len(self._live):
            self._queue = [e for e in self._queue if self._live.get((id(e[2]), e[3], e[4])) == e[:2]]
            heapq.heapify(self._queue)

    def cancel(self, device: Device, kind: str, number: int) -> None:
        self._live.pop((id(device), kind, number), None)

    def _prune(self) -> None:
        queue = self._queue
        while queue and self._live.get((id(queue[0][2]), queue[0][3], queue[0][4])) != queue[0][:2]:
            heapq.heappop(queue)

    def next_event(self) -> int:
        """The time of the next event, or NEVER."""
        self._prune()
        return self._queue[0][0] if self._queue else NEVER

    def next_step(self) -> int:
        """The first step at which an event is due by the virtual clock, or NEVER."""
        return self.step_at(self.next_event())

    def step_at(self, time_ns: int) -> int:
        """The first step at or behind a time of the virtual clock; NEVER for NEVER."""
        return NEVER if time_ns == NEVER else -(-(time_ns - self.idle_ns) // self.step_ns)

    def fire(self) -> None:
        """Carry out the events that are due, in order of time, then of scheduling."""
        now = self.now()
        while self.next_event() <= now:
            _, _, device, kind, number = heapq.heappop(self._queue)
            del self._live[id(device), kind, number]
            device.event(kind, number)

    def jump(self, until: int = NEVER) -> bool:
        """Idle time passes to the next event, but not behind `until` (virtual clock). False: there is no event."""
        when = self.next_event()
        if when == NEVER:
            return False
        self.idle_ns += max(0, min(when, until) - self.now())
        return True

    def pending(self) -> list[tuple[int, Device, str, int]]:
        """The events to come, in order."""
        live = [e for e in self._queue if self._live.get((id(e[2]), e[3], e[4])) == e[:2]]
        return [(e[0], e[2], e[3], e[4]) for e in sorted(live, key=lambda e: e[:2])]


class Alarm:
    """Calls `ring` from a thread of its own when the host's time comes: under the host clock nothing else ends a
    run."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._changed = threading.Condition()
        self._at = NEVER  # by the host's monotonic clock
        self._over = False
        self._thread = threading.Thread(target=self._watch, name="ringfence-alarm", daemon=True)

    def set(self, clock: Clock, time_ns: int) -> bool:
        """Ring at this guest time. False: it is past."""
        at = NEVER if time_ns == NEVER else clock.host_start + time_ns
        self.set_host(at)
        return at > time.monotonic_ns()

    def set_host(self, at: int) -> None:
        """Ring at this time of the host's monotonic clock, in ns."""
        if at != self._at:
            with self._changed:
                sooner, self._at = at < self._at, at
                if sooner:
                    self._changed.notify()

    def hasten(self, clock: Clock, time_ns: int) -> None:
        """Ring at this guest time at the latest."""
        if clock.host_start + time_ns < self._at:
            self.set(clock, time_ns)

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                missing = self._at - time.monotonic_ns()
                if missing > 0:
                    self._changed.wait(min(missing / 1e9, 3600.0))
                else:
                    self._at = NEVER
                    self._ring()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()
