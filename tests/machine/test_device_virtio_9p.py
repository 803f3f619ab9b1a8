"""The 9P transport: messages go to the share and answers come back, and what a hostile driver gets of it."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from virtio_driver import AVAIL, BASE, DATA, DESC, HEADER, INDIRECT, RAM_BYTES, TABLE, WRITE, Echo, ShareDriver

from ringfence import MachineError, MiB, Monitor, nested, virt
from ringfence.machine.board import VIRTIO, VIRTIO_STRIDE
from ringfence.machine.clock import NEVER
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_9p import ANSWER_LEAST, MESSAGE_MAX
from ringfence.machine.device.virtio_request import LATENCY_NS


def test_device_tells_of_its_tag() -> None:
    """Device 9, one feature of its own, and the tag behind its length, in accesses of any size."""
    driver = ShareDriver()
    assert driver.get(mmio.DEVICE_ID) == 9
    assert driver.get(mmio.DEVICE_FEATURES) == 3 << 28 | 1
    assert driver.device.read(mmio.CONFIG, 2) == len(Echo.tag)
    assert bytes(driver.device.read(mmio.CONFIG + 2 + n, 1) for n in range(12)) == Echo.tag + bytes(3)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(7, 3000),
    st.lists(st.integers(1, 700), max_size=5),
    st.lists(st.integers(0, 900), min_size=1, max_size=5),
    st.booleans(),
)
def test_messages_arrive_whole_and_answers_too(size: int, cuts: list[int], room: list[int], indirect: bool) -> None:
    """However they are cut; what lies behind a message in its buffer is no part of it, and nothing else is written."""
    driver = ShareDriver(num=32)
    sent = size.to_bytes(4, "little") + bytes(n % 251 for n in range(size - 4))
    data = sent + b"\xee" * 50
    rows, done = [], 0
    for at in (*sorted(cut for cut in cuts if cut < len(data)), len(data)):
        rows.append((HEADER + done, at - done, 0))
        done = at
    driver.memory.data[HEADER - BASE : HEADER - BASE + len(data)] = data
    rows += [(DATA + 1000 * n, length, WRITE) for n, length in enumerate(room)]
    if sum(room) < ANSWER_LEAST:
        return
    used = driver.ask(rows, indirect)
    assert driver.echo.messages == [sent]
    answer = sent[::-1][: sum(room)]
    assert used == len(answer)
    for n, length in enumerate(room):
        part, answer = answer[:length], answer[length:]
        assert driver.memory.read(DATA + 1000 * n, 1000) == part + bytes(1000 - len(part))


def test_messages_are_answered_one_by_one() -> None:
    """Each 20 us of guest time behind the last, whatever the host takes."""
    driver = ShareDriver()
    driver.descriptors(DESC, driver.plain())
    driver.offer()
    driver.offer()
    driver.notify()
    assert driver.clock.next_event() == LATENCY_NS
    driver.clock.steps += LATENCY_NS
    driver.clock.fire()
    assert driver.used() == (0, 30) and driver.used() is None
    assert driver.clock.next_event() == 2 * LATENCY_NS


def test_a_reset_lets_go_of_everything() -> None:
    """The driver's, as at the start of its session."""
    driver = ShareDriver()
    before = driver.echo.resets
    driver.put(mmio.STATUS, 0)
    assert driver.echo.resets == before + 1


def test_what_a_message_says_of_its_size_bounds_nothing() -> None:
    """A size beyond the buffer, below a header or beyond all bounds: the share gets what there is, and no more."""
    for size, expected in ((0, 7), (6, 7), (100, 30), (0xFFFF_FFFF, 30)):
        driver = ShareDriver()
        rows = driver.plain()
        driver.store(HEADER, "<I", size)
        driver.ask(rows)
        assert [len(message) for message in driver.echo.messages] == [expected]
    driver = ShareDriver(num=128)
    driver.store(BASE + 0x1_0000, "<I", 0xFFFF_FFFF)
    driver.descriptors(TABLE, [*[(BASE + 0x1_0000, 0x2_0000, 0)] * 40, (DATA, 64, WRITE)])
    driver.ask([(TABLE, 16 * 41, INDIRECT)])
    assert [len(message) for message in driver.echo.messages] == [MESSAGE_MAX]


def no_header(driver: ShareDriver) -> None:
    driver.descriptors(DESC, [(HEADER, 6, 0), (DATA, 64, WRITE)])


def no_room(driver: ShareDriver) -> None:
    driver.descriptors(DESC, [(HEADER, 30, 0), (DATA, 10, WRITE)])


def outside(driver: ShareDriver) -> None:
    driver.descriptors(DESC, [*driver.plain()[:1], (BASE + RAM_BYTES - 20, 64, WRITE)])


def from_outside(driver: ShareDriver) -> None:
    driver.store(BASE + RAM_BYTES - 8, "<I", 30)
    driver.descriptors(DESC, [(BASE + RAM_BYTES - 8, 30, 0), (DATA, 64, WRITE)])


def nowhere(driver: ShareDriver) -> None:
    driver.descriptors(DESC, [((1 << 64) - 8, 0xFFFF_FFFF, 0), (DATA, 64, WRITE)])


@pytest.mark.parametrize("breakage", [no_header, no_room, outside, from_outside, nowhere])
def test_a_bad_buffer_stops_the_device_until_reset(breakage: Callable[[ShareDriver], None]) -> None:
    """There is nowhere to tell of it."""
    driver = ShareDriver()
    driver.offer()
    breakage(driver)
    driver.notify()
    driver.run()
    assert driver.needs_reset and driver.used() is None
    driver.notify()
    assert driver.clock.next_event() == NEVER
    driver.start()
    assert driver.ask() == 30


DESCRIPTORS = st.lists(
    st.tuples(
        st.one_of(st.integers(BASE, BASE + RAM_BYTES), st.integers(0, (1 << 64) - 1), st.just(TABLE)),
        st.one_of(st.sampled_from([0, 1, 7, 11, 32, 64, 1 << 20]), st.integers(0, 0xFFFF_FFFF)),
        st.sampled_from([0, 1, WRITE, WRITE, WRITE | 1, INDIRECT, 7]),
        st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
    ),
    max_size=10,
)


@settings(deadline=None, max_examples=200)
@given(DESCRIPTORS, DESCRIPTORS, st.lists(st.integers(0, 9), max_size=8), st.integers(0, 12))
def test_a_hostile_queue_costs_a_bounded_amount(
    table: list[tuple[int, int, int, int]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    index: int,
) -> None:
    """Whatever is in the rings, each event serves one message at most, and the events end."""
    driver = ShareDriver()
    for place, rows in ((DESC, table), (TABLE, indirect)):
        for n, row in enumerate(rows):
            driver.store(place + 16 * n, "<QIHH", *row)
    for n, head in enumerate(heads):
        driver.store(AVAIL + 4 + 2 * n, "<H", head)
    driver.store(AVAIL + 2, "<H", index)
    driver.notify()
    for _ in range(1000):
        if not driver.clock.jump():
            break
        accesses, served = driver.memory.accesses, len(driver.echo.messages)
        driver.clock.fire()
        assert driver.memory.accesses - accesses < 600
        assert len(driver.echo.messages) - served <= 1
    assert all(len(message) <= MESSAGE_MAX for message in driver.echo.messages)
    driver.start()
    assert driver.ask() == 30


def test_shares_are_in_the_slots_behind_the_rest() -> None:
    """At any depth, told of in the device tree, and eight of all at most."""
    one, two = Echo(), Echo()
    bare = virt(64 * MiB, engine="reference", shares=[one, two])
    guest = Monitor(bare).create("guest", 4 * MiB, shares=[two])
    deep = nested(2, 4 * MiB, engine="reference", shares=[one])
    for board, count in ((bare, 2), (guest, 1), (deep, 1)):
        ids = [board.bus.read(VIRTIO + n * VIRTIO_STRIDE + mmio.DEVICE_ID, 4) for n in range(8)]
        assert ids == [9] * count + [0] * (8 - count)
        assert board.device_tree().count(b"virtio_mmio@") == count
        assert board.inputs.shares == (Echo.tag,) * count
    assert bare.shares == [one, two] and deep.shares == [one]
    with pytest.raises(MachineError, match="at most 8 disks, network devices and shares, not 9"):
        virt(4 * MiB, engine="reference", shares=[one] * 9)


def test_a_machine_that_is_destroyed_lets_go() -> None:
    """Of what its guest held."""
    echo = Echo()
    monitor = Monitor(virt(64 * MiB, engine="reference"))
    monitor.create("guest", 4 * MiB, shares=[echo])
    before = echo.resets
    monitor.destroy("guest")
    assert echo.resets > before
