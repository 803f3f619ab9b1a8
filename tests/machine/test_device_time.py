"""The two chips that tell time: the core-local interruptor and the real-time clock."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ringfence.machine.clock import NEVER, Clock
from ringfence.machine.device.aclint import MTIME, MTIMECMP, Aclint
from ringfence.machine.device.goldfish_rtc import (
    ALARM_HIGH,
    ALARM_LOW,
    ALARM_STATUS,
    CLEAR_ALARM,
    CLEAR_INTERRUPT,
    IRQ_ENABLED,
    TIME_HIGH,
    TIME_LOW,
    GoldfishRtc,
)

ALL = (1 << 64) - 1
EPOCH = 1_700_000_000_123_456_789


class Wire:
    level = False

    def set(self, level: bool) -> None:
        self.level = level


def aclint(harts: int = 2) -> tuple[Clock, list[Wire], list[Wire], Aclint]:
    clock = Clock()
    software = [Wire() for _ in range(harts)]
    timer = [Wire() for _ in range(harts)]
    return clock, software, timer, Aclint(clock, software, timer)


def test_aclint_time_runs_at_10_mhz() -> None:
    """mtime is guest time in units of 100 ns, whole or by halves."""
    clock, _, _, chip = aclint()
    clock.steps = 0x1_2345_6789 * 100 + 99
    assert chip.read(MTIME, 8) == chip.mtime() == 0x1_2345_6789
    assert chip.read(MTIME, 4) == 0x2345_6789
    assert chip.read(MTIME + 4, 4) == 1


def test_aclint_software_interrupts_follow_msip() -> None:
    """Bit 0 of a hart's msip is its line; the other bits and other harts' are not there."""
    _, software, _, chip = aclint(3)
    chip.write(4, 4, 0xFFFF_FFFF)
    chip.write(12, 4, 1)
    assert [wire.level for wire in software] == [False, True, False]
    assert chip.read(0, 8) == 1 << 32
    chip.write(0, 8, 1)
    assert [wire.level for wire in software] == [True, False, False]
    chip.reset()
    assert not any(wire.level for wire in software)


def test_aclint_timer_is_pending_from_its_time_on() -> None:
    """MTIP rises at the first nanosecond of the tick that mtimecmp names, and falls when mtimecmp is moved on."""
    clock, _, timer, chip = aclint()
    assert clock.next_event() == NEVER
    clock.steps = 55
    chip.write(MTIMECMP + 8, 8, 7)
    assert clock.next_event() == 700
    clock.jump()
    clock.fire()
    assert [wire.level for wire in timer] == [False, True]
    chip.write(MTIMECMP + 8, 4, 8)
    assert not timer[1].level
    chip.write(MTIMECMP + 12, 4, 1)
    assert chip.read(MTIMECMP + 8, 8) == 1 << 32 | 8


TIMES = st.one_of(st.integers(0, 50), st.integers(ALL - 50, ALL))


@given(st.lists(st.tuples(st.sampled_from(["mtime", "mtimecmp", "wait"]), TIMES), max_size=20))
def test_aclint_timer_line_is_the_comparison(operations: list[tuple[str, int]]) -> None:
    """At every event and after every write MTIP is mtime >= mtimecmp, unsigned, across a wrap of mtime too."""
    clock, _, timer, chip = aclint(1)
    for name, value in operations:
        if name == "mtime":
            chip.write(MTIME, 8, value)
        elif name == "mtimecmp":
            chip.write(MTIMECMP, 8, value)
        else:
            until = clock.now() + value % 64 * 70
            while clock.next_event() <= until:
                clock.jump()
                clock.fire()
                assert timer[0].level == (chip.mtime() >= chip.mtimecmp[0])
            clock.steps += until - clock.now()
        assert timer[0].level == (chip.mtime() >= chip.mtimecmp[0])


def test_aclint_wants_as_many_lines_of_each_kind() -> None:
    """A board that gives two software lines and one timer line is told so."""
    with pytest.raises(ValueError, match="2 software lines and 1 timer lines"):
        Aclint(Clock(), [Wire(), Wire()], [Wire()])


def rtc() -> tuple[Clock, Wire, GoldfishRtc]:
    clock, wire = Clock(), Wire()
    return clock, wire, GoldfishRtc(clock, wire, EPOCH)


def now(chip: GoldfishRtc) -> int:
    low = chip.read(TIME_LOW, 4)
    return chip.read(TIME_HIGH, 4) << 32 | low


def test_rtc_shows_the_epoch_and_goes_on() -> None:
    """Time is the epoch plus guest time, and its high half is of the moment when the low half was read."""
    clock, _, chip = rtc()
    assert now(chip) == EPOCH
    low = chip.read(TIME_LOW, 4)
    clock.steps = 1 << 33
    assert chip.read(TIME_HIGH, 4) << 32 | low == EPOCH
    assert now(chip) == EPOCH + (1 << 33)


@given(st.integers(0, ALL), st.integers(0, 1 << 40))
def test_rtc_can_be_set(time: int, passed: int) -> None:
    """A time that was written, high half first, goes on from there."""
    clock, _, chip = rtc()
    clock.steps = 12345
    chip.write(TIME_HIGH, 4, time >> 32)
    chip.write(TIME_LOW, 4, time & 0xFFFF_FFFF)
    clock.steps += passed
    assert now(chip) == time + passed & ALL


def alarm(chip: GoldfishRtc, time: int) -> None:
    chip.write(ALARM_HIGH, 4, time >> 32)
    chip.write(ALARM_LOW, 4, time & 0xFFFF_FFFF)


def test_rtc_alarm_interrupts_at_its_time() -> None:
    """An alarm is armed until its time, then interrupts if enabled until it is cleared."""
    clock, wire, chip = rtc()
    chip.write(IRQ_ENABLED, 4, 1)
    alarm(chip, EPOCH + 1000)
    assert chip.read(ALARM_STATUS, 4) == 1
    assert clock.next_event() == 1000
    clock.jump()
    clock.fire()
    assert chip.read(ALARM_STATUS, 4) == 0
    assert wire.level
    chip.write(IRQ_ENABLED, 4, 0)
    assert not wire.level
    chip.write(IRQ_ENABLED, 4, 1)
    chip.write(CLEAR_INTERRUPT, 4, 1)
    assert not wire.level


def test_rtc_alarm_in_the_past_goes_off_at_once() -> None:
    """An alarm for a time that is over interrupts at once, also if it is over because the time was set."""
    clock, wire, chip = rtc()
    chip.write(IRQ_ENABLED, 4, 1)
    alarm(chip, EPOCH)
    assert wire.level
    chip.write(CLEAR_INTERRUPT, 4, 1)
    alarm(chip, EPOCH + (1 << 33))
    chip.write(TIME_HIGH, 4, (EPOCH >> 32) + 3)
    assert wire.level
    assert clock.next_event() == NEVER


def test_rtc_alarm_can_be_cleared() -> None:
    """A cleared alarm never goes off."""
    clock, wire, chip = rtc()
    chip.write(IRQ_ENABLED, 4, 1)
    alarm(chip, EPOCH + 1000)
    chip.write(CLEAR_ALARM, 4, 1)
    assert clock.next_event() == NEVER
    assert chip.read(ALARM_STATUS, 4) == 0
    assert not wire.level
