"""The goldfish real-time clock: nanoseconds since 1970, and one alarm.

Source: "Goldfish Virtual Hardware" of the Android emulator, section on the timer; binding `google,goldfish-rtc`.
"""

from __future__ import annotations

from typing import ClassVar

from ringfence.machine.device.device import Clock, Device, Field, Line

TIME_LOW = 0x00
TIME_HIGH = 0x04
ALARM_LOW = 0x08
ALARM_HIGH = 0x0C
IRQ_ENABLED = 0x10
CLEAR_ALARM = 0x14
ALARM_STATUS = 0x18
CLEAR_INTERRUPT = 0x1C

_LOW = 0xFFFF_FFFF
_ALL = 0xFFFF_FFFF_FFFF_FFFF
_HORIZON = 1 << 63


class GoldfishRtc(Device):
    """A clock that shows `epoch_ns`, nanoseconds since 1970, at guest time 0.

    Reading TIME_LOW latches TIME_HIGH; writing either sets that half of the time. Writing ALARM_LOW arms the alarm
    for ALARM_HIGH:ALARM_LOW, and an alarm in the past goes off at once. Registers are 32 bits wide.
    """

    WINDOW: ClassVar[int] = 0x1000
    STATE: ClassVar[tuple[Field, ...]] = (
        Field("offset", "u64"),
        Field("latched_high", "u32"),
        Field("alarm", "u64"),
        Field("armed", "bool"),
        Field("irq_pending", "bool"),
        Field("irq_enabled", "bool"),
    )
    offset: int
    latched_high: int
    alarm: int
    armed: bool
    irq_pending: bool
    irq_enabled: bool

    def __init__(self, clock: Clock, line: Line, epoch_ns: int) -> None:
        self.clock = clock
        self.line = line
        self.epoch_ns = epoch_ns
        super().__init__()

    def time(self) -> int:
        """Nanoseconds since 1970, modulo 2^64."""
        return self.epoch_ns + self.offset + self.clock.now() & _ALL

    def read(self, offset: int, size: int) -> int:
        if size < 4:
            return 0
        if offset == TIME_LOW:
            time = self.time()
            self.latched_high = time >> 32
            return time & _LOW
        if offset == TIME_HIGH:
            return self.latched_high
        if offset == ALARM_LOW:
            return self.alarm & _LOW
        if offset == ALARM_HIGH:
            return self.alarm >> 32
        if offset == IRQ_ENABLED:
            return int(self.irq_enabled)
        if offset == ALARM_STATUS:
            return int(self.armed)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size < 4:
            return
        value &= _LOW
        if offset == TIME_LOW:
            self._set_time(self.time() & ~_LOW | value)
        elif offset == TIME_HIGH:
            self._set_time(value << 32 | self.time() & _LOW)
        elif offset == ALARM_LOW:
            self.alarm = self.alarm & ~_LOW | value
            self.armed = True
            self._schedule()
        elif offset == ALARM_HIGH:
            self.alarm = value << 32 | self.alarm & _LOW
        elif offset == IRQ_ENABLED:
            self.irq_enabled = bool(value & 1)
            self._update()
        elif offset == CLEAR_ALARM:
            self.armed = False
            self.clock.cancel(self, "alarm", 0)
        elif offset == CLEAR_INTERRUPT:
            self.irq_pending = False
            self._update()

    def event(self, kind: str, number: int) -> None:
        if self.armed:
            self._schedule()

    def reset(self) -> None:
        super().reset()
        self.clock.cancel(self, "alarm", 0)
        self._update()

    def _set_time(self, time: int) -> None:
        self.offset = time - self.epoch_ns - self.clock.now() & _ALL
        if self.armed:
            self._schedule()

    def _schedule(self) -> None:
        """Goes off if the alarm's time has come, and otherwise waits for it."""
        wait = self.alarm - self.time()
        if wait <= 0:
            self.armed = False
            self.irq_pending = True
            self._update()
        if 0 < wait < _HORIZON:
            self.clock.at(self.clock.now() + wait, self, "alarm", 0)
        else:
            self.clock.cancel(self, "alarm", 0)

    def _update(self) -> None:
        self.line.set(self.irq_pending and self.irq_enabled)
