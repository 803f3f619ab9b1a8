"""A virtual machine is a machine: the board that `virt` gives, with memory, time and devices by its monitor's f."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringfence.machine.board import Virt
from ringfence.machine.memory import FRAME
from ringfence.monitor.map import GuestRam

if TYPE_CHECKING:
    from ringfence.monitor.monitor import Monitor


class VirtualMachine(Virt):
    """Made by `Monitor.create`, which sets these."""

    name: str
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

    @property
    def path(self) -> str:
        """Its name behind those of the machines that it is on, but for the bare one: `outer/inner`."""
        host = self.monitor.machine
        return f"{host.path}/{self.name}" if isinstance(host, VirtualMachine) else self.name

    def ran(self, steps: int) -> None:
        self.monitor.machine.charge(steps)

    def unused(self) -> int | None:
        """A frame (by offset) that was not used since this was asked last (the clock algorithm; Corbató 1968)."""
        for _ in range(2 * self.ram.size // FRAME):
            at = self.hand if self.resident <= self.hand < self.ram.size else self.resident
            self.hand = at + FRAME
            if at < self.ram.size and self.ram.f.look(at) is not None and not self.ram.recent(at):
                return at
        return None

    def charge(self, steps: int) -> None:
        super().charge(steps)
        self.monitor.machine.charge(steps)

    def __repr__(self) -> str:
        return f"<{self.path}: {super().__repr__()[1:-1]}>"
