"""Virtio devices that serve requests one after the other, each a fixed guest time after the last."""

from __future__ import annotations

from typing import ClassVar

from ringfence.machine.device.device import Clock, Field, Line, Memory
from ringfence.machine.device.virtio_mmio import Chain, QueueFault, VirtioMmio

LATENCY_NS = 20_000


class VirtioRequest(VirtioMmio):
    """A device of one queue. A subclass gives `ID`, features, `config` and `serve`.

    A request stays in the driver's queue until its time comes; then its data moves and its buffer is given back, so
    between events nothing is in flight.
    """

    STATE: ClassVar[tuple[Field, ...]] = (*VirtioMmio.STATE, Field("busy", "bool"))
    busy: bool

    def __init__(self, clock: Clock, line: Line, memory: Memory, features: int, latency_ns: int) -> None:
        self.latency_ns = latency_ns
        super().__init__(clock, line, memory, features)

    def serve(self, chain: Chain) -> int:
        """Does one request; returns how many bytes at the front of its writable part are stored. Raises `QueueFault`
        where the device is to stop.
        """
        raise NotImplementedError

    def notify(self, queue: int) -> None:
        if not self.busy:
            self.busy = True
            self.clock.at(self.clock.now() + self.latency_ns, self, "complete", queue)

    def event(self, kind: str, number: int) -> None:
        self.busy = False
        if not self.live(number):
            return
        try:
            chain = self.pop(number)
            if chain is not None:
                self.push(number, chain, self.serve(chain))
            if self.more(number):
                self.notify(number)
        except QueueFault:
            self.fail()

    def reset(self) -> None:
        super().reset()
        self.clock.cancel(self, "complete", 0)
