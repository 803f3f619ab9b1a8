"""The SiFive test finisher: the register with which a guest turns the machine off or on again.

Source: SiFive's test device as Linux and OpenSBI drive it (`sifive,test0`, `sifive,test1` and `syscon` bindings).
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from ringfence.machine.device.device import Device

FAIL = 0x3333
PASS = 0x5555
RESET = 0x7777


class PowerControl(Protocol):
    """What the machine does when its finisher is written."""

    def power_off(self, status: int) -> None:
        """Turns the machine off; `status` is the guest's exit code, 0 to 65535."""

    def reset(self) -> None:
        """Starts the machine again."""


class Syscon(Device):
    """One write-only 32-bit register at offset 0: a command in bits 0-15, an exit code for `FAIL` in bits 16-31."""

    WINDOW: ClassVar[int] = 0x1000

    def __init__(self, power: PowerControl) -> None:
        self.power = power
        super().__init__()

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != 0:
            return
        command = value & 0xFFFF
        if command == PASS:
            self.power.power_off(0)
        elif command == FAIL:
            self.power.power_off(value >> 16 & 0xFFFF if size >= 4 else 0)
        elif command == RESET:
            self.power.reset()
