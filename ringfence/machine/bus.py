"""The bus: which chip answers at a physical address."""

from __future__ import annotations

from bisect import bisect_right

from ringfence.machine.device.device import AccessFault, Device
from ringfence.machine.memory import EXECUTE, Ram


class Rom(Device):
    """Read-only memory; writes to it are ignored."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        super().__init__()

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.content[offset : offset + size], "little")


class Bus:
    """RAM, and devices in windows that do not overlap. Accesses are of 1, 2, 4 or 8 bytes, little-endian."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self._starts: list[int] = []
        self._windows: list[tuple[int, int, Device]] = []
        self.accesses = 0
        """To devices."""

    def attach(self, start: int, size: int, device: Device) -> None:
        at = bisect_right(self._starts, start)
        neighbours = self._windows[max(at - 1, 0) : at + 1]
        if any(s < start + size and start < e for s, e, _ in neighbours):
            raise ValueError(f"{start:#x}: taken")
        self._starts.insert(at, start)
        self._windows.insert(at, (start, start + size, device))

    def windows(self) -> list[tuple[int, int, Device]]:
        """(start, end, device), by address."""
        return list(self._windows)

    def _find(self, pa: int, size: int) -> tuple[Device, int]:
        self.accesses += 1
        at = bisect_right(self._starts, pa) - 1
        if at >= 0:
            start, end, device = self._windows[at]
            if pa + size <= end:
                return device, pa - start
        raise AccessFault

    def read(self, pa: int, size: int) -> int:
        """Raises AccessFault where nothing answers, or for a misaligned access outside RAM."""
        ram = self.ram
        at = pa - ram.base
        if 0 <= at <= ram.size - size:
            return int.from_bytes(ram.peek(at, size), "little")
        if pa & size - 1:
            raise AccessFault
        device, offset = self._find(pa, size)
        return device.read(offset, size)

    def fetch(self, pa: int) -> int:
        """The halfword of an instruction at `pa`: from RAM or ROM, as no chip's registers are executed. Raises as
        `read` does.
        """
        ram = self.ram
        at = pa - ram.base
        if 0 <= at <= ram.size - 2:
            return int.from_bytes(ram.peek(at, 2, EXECUTE), "little")
        device, offset = self._find(pa, 2)
        if not isinstance(device, Rom):
            raise AccessFault
        return device.read(offset, 2)

    def write(self, pa: int, size: int, value: int) -> None:
        """Raises as `read` does."""
        ram = self.ram
        if 0 <= pa - ram.base <= ram.size - size:
            ram.write(pa, value.to_bytes(size, "little"))
            return
        if pa & size - 1:
            raise AccessFault
        device, offset = self._find(pa, size)
        device.write(offset, size, value)
