"""What holds for every chip: its state is its table, and no access of a guest's raises."""

from __future__ import annotations

from typing import ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from virtio_driver import Echo

from ringfence.machine.clock import Clock
from ringfence.machine.device.aclint import Aclint
from ringfence.machine.device.device import Device, Field
from ringfence.machine.device.goldfish_rtc import GoldfishRtc
from ringfence.machine.device.plic import Plic
from ringfence.machine.device.ports import ScriptPort
from ringfence.machine.device.syscon import FAIL, PASS, RESET, Syscon
from ringfence.machine.device.uart16550 import Uart16550
from ringfence.machine.device.virtio_9p import Virtio9p
from ringfence.machine.device.virtio_blk import VirtioBlk
from ringfence.machine.device.virtio_console import VirtioConsole
from ringfence.machine.device.virtio_rng import SeededEntropy, VirtioRng
from ringfence.machine.memory import Ram


class Wire:
    def __init__(self) -> None:
        self.level = False

    def set(self, level: bool) -> None:
        self.level = level


class Sink:
    def write(self, data: bytes) -> None:
        assert len(data) == 1


class Power:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def power_off(self, status: int) -> None:
        self.calls.append(("off", status))

    def reset(self) -> None:
        self.calls.append(("reset", 0))


class Platter:
    size = 8192
    readonly = False
    serial = b"disk"

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return bytes(length)

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size

    def discard(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size

    def zero(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size

    def flush(self) -> None:
        pass


def chips(clock: Clock) -> list[Device]:
    wires = [Wire() for _ in range(4)]
    plic = Plic(wires)
    return [
        Uart16550(clock, plic.line(10), Sink()),
        plic,
        Aclint(clock, wires[:2], wires[2:]),
        Syscon(Power()),
        GoldfishRtc(clock, plic.line(11), 1_700_000_000_000_000_000),
        VirtioBlk(clock, plic.line(1), Ram(0x8000_0000, 0x4000), Platter()),
        Virtio9p(clock, plic.line(2), Ram(0x8000_0000, 0x4000), Echo()),
        VirtioRng(clock, plic.line(9), Ram(0x8000_0000, 0x4000), SeededEntropy(b"seed")),
        VirtioConsole(clock, plic.line(2), Ram(0x8000_0000, 0x4000), [ScriptPort("port")]),
    ]


class Sample(Device):
    WINDOW: ClassVar[int] = 8
    STATE: ClassVar[tuple[Field, ...]] = (
        Field("a", "u8", reset=3),
        Field("b", "u64", "harts"),
        Field("c", "bool", 2, reset=1),
        Field("d", "bytes"),
    )
    a: int
    b: list[int]
    c: list[bool]
    d: bytearray

    def __init__(self, harts: int) -> None:
        self.harts = harts
        super().__init__()


def test_device_starts_with_its_tables_reset_values() -> None:
    """A device's attributes, counts and first values follow from its table of fields, and reset brings them back."""
    sample = Sample(3)
    assert (sample.a, sample.b, sample.c, sample.d) == (3, [0, 0, 0], [True, True], bytearray())
    sample.a, sample.b[1], sample.d = 9, 7, bytearray(b"x")
    sample.reset()
    assert sample.snapshot() == {"a": 3, "b": [0, 0, 0], "c": [True, True], "d": b""}


def test_device_snapshot_is_not_shared_with_the_device() -> None:
    """A snapshot stays as it was while the device goes on, and so does the device that took it."""
    sample = Sample(2)
    state = sample.snapshot()
    sample.b[0] = 5
    assert state["b"] == [0, 0]
    sample.restore(state)
    sample.b[0] = 6
    assert state["b"] == [0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": 256},
        {"a": -1},
        {"a": True},
        {"b": [0]},
        {"b": 0},
        {"c": [1, 0]},
        {"d": "text"},
        {"e": 0},
    ],
)
def test_device_refuses_a_state_that_is_not_its_own(wrong: dict[str, object]) -> None:
    """A field that is missing, unknown, too large or of another kind is refused, and nothing has changed."""
    sample = Sample(2)
    before = sample.snapshot()
    with pytest.raises(ValueError, match=".+"):
        sample.restore({**before, "a": 4, **wrong})
    assert sample.snapshot() == before


ACCESSES = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(
            st.integers(0, 0x180),
            st.sampled_from([0x2000, 0x4000, 0xBFF8, 0x20_0000]),
            st.integers(0, 1 << 23),
        ),
        st.integers(0, 31),
        st.sampled_from([1, 2, 4, 4, 4, 8]),
        st.one_of(st.integers(0, 255), st.integers(0, (1 << 64) - 1)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("index", range(7))
@settings(deadline=None, max_examples=150)
@given(accesses=ACCESSES)
def test_device_takes_any_access(index: int, accesses: list[tuple[bool, int, int, int, int]]) -> None:
    """Reads and writes of any size, place and value raise nothing, read what fits, and keep the state valid."""
    clock = Clock()
    every = chips(clock)
    chip = every[index]
    for is_write, near, far, size, value in accesses:
        offset = min((near + far) % chip.WINDOW, chip.WINDOW - size)
        if is_write:
            chip.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= chip.read(offset, size) < 1 << 8 * size
        clock.steps += 1000
        clock.fire()
    for device in every:
        state = device.snapshot()
        device.restore(state)
        assert device.snapshot() == state
        device.reset()


def test_syscon_turns_the_machine_off_with_the_guests_code() -> None:
    """PASS is status 0, FAIL carries a code in its upper half, RESET starts again, and all else does nothing."""
    power = Power()
    syscon = Syscon(power)
    for offset, size, value in [(0, 4, 0), (4, 4, PASS), (0, 1, 0x55), (0, 4, 1 << 16)]:
        syscon.write(offset, size, value)
    assert power.calls == []
    syscon.write(0, 4, PASS)
    syscon.write(0, 4, 42 << 16 | FAIL)
    syscon.write(0, 2, FAIL)
    syscon.write(0, 8, RESET)
    assert power.calls == [("off", 0), ("off", 42), ("off", 0), ("reset", 0)]
