"""The virtio transport and the block device, driven by a small driver of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from virtio_driver import (
    AVAIL,
    BASE,
    DATA,
    DESC,
    HEADER,
    INDIRECT,
    NEXT,
    RAM_BYTES,
    SECTOR,
    STATUS_BYTE,
    TABLE,
    USED,
    WRITE,
    BlockDriver,
    Platter,
)

from ringfence.machine.clock import NEVER
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_blk import (
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
)
from ringfence.machine.device.virtio_request import LATENCY_NS


def test_virtio_mmio_identifies_itself() -> None:
    """The registers that a driver probes with are the standard's, and take 32-bit accesses only."""
    driver = BlockDriver()
    assert driver.get(mmio.MAGIC_VALUE).to_bytes(4, "little") == b"virt"
    assert (driver.get(mmio.VERSION), driver.get(mmio.DEVICE_ID)) == (2, 2)
    assert driver.device.read(mmio.MAGIC_VALUE, 1) == 0
    assert driver.get(mmio.QUEUE_NUM_MAX_REGISTER) == 128
    driver.put(mmio.QUEUE_SEL, 1)
    assert driver.get(mmio.QUEUE_NUM_MAX_REGISTER) == driver.get(mmio.QUEUE_READY) == 0
    assert driver.get(mmio.SHM_FIRST) == driver.get(mmio.SHM_FIRST + 4) == 0xFFFF_FFFF


def test_virtio_mmio_refuses_features_it_does_not_offer() -> None:
    """FEATURES_OK stays clear until the driver asks for offered features only, and then the set is fixed."""
    driver = BlockDriver()
    driver.put(mmio.STATUS, 0)
    assert driver.get(mmio.STATUS) == 0
    driver.put(mmio.STATUS, 3)
    driver.put(mmio.DRIVER_FEATURES, 1 << 31)
    driver.put(mmio.STATUS, 11)
    assert driver.get(mmio.STATUS) == 3
    driver.put(mmio.DRIVER_FEATURES, 1 << 9)
    driver.put(mmio.STATUS, 11)
    assert driver.get(mmio.STATUS) == 11
    driver.put(mmio.DRIVER_FEATURES, 1 << 31)
    assert driver.device.driver_features == 1 << 9


@pytest.mark.parametrize(("readonly", "expected"), [(False, 0x3000_6246), (True, 0x3000_0266)])
def test_virtio_blk_offers_what_its_disk_can_do(readonly: bool, expected: int) -> None:
    """Flush, sector size and segment limits are offered always, RO for a disk that is read-only."""
    driver = BlockDriver(Platter(readonly=readonly))
    driver.put(mmio.DEVICE_FEATURES_SEL, 0)
    assert driver.get(mmio.DEVICE_FEATURES) == expected
    driver.put(mmio.DEVICE_FEATURES_SEL, 1)
    assert driver.get(mmio.DEVICE_FEATURES) == 1
    driver.put(mmio.DEVICE_FEATURES_SEL, 2)
    assert driver.get(mmio.DEVICE_FEATURES) == 0


def test_virtio_blk_shows_its_capacity_at_any_width() -> None:
    """The configuration space is bytes: read in ones, fours or eights it is the same, and 0 behind its end."""
    device = BlockDriver().device
    assert device.read(mmio.CONFIG, 8) == 300
    assert bytes(device.read(mmio.CONFIG + n, 1) for n in range(8)) == (300).to_bytes(8, "little")
    assert device.read(mmio.CONFIG + 12, 4) == 126
    assert device.read(mmio.CONFIG + 20, 4) == SECTOR
    assert device.read(mmio.CONFIG + 0xEF8, 8) == 0


@st.composite
def transfers(draw: st.DrawFn) -> tuple[int, int, list[int], bool]:
    sectors = draw(st.integers(0, 6))
    cuts = sorted(draw(st.lists(st.integers(0, sectors * SECTOR), max_size=4)))
    edges = [0, *cuts, sectors * SECTOR]
    lengths = [b - a for a, b in pairwise(edges)]
    return draw(st.sampled_from([T_IN, T_OUT])), draw(st.integers(0, 294)), lengths, draw(st.booleans())


@settings(deadline=None, max_examples=100)
@given(st.lists(transfers(), max_size=12), st.integers(0, (1 << 64) - 1))
def test_virtio_blk_reads_what_was_written(requests: list[tuple[int, int, list[int], bool]], seed: int) -> None:
    """Reads and writes move the disk's bytes, however the driver cuts the data, with and without indirect tables."""
    driver = BlockDriver()
    model = bytearray(driver.disk.data)
    for kind, sector, lengths, indirect in requests:
        pas = [DATA + 0x2000 * n + n for n in range(len(lengths))]
        data = list(zip(pas, lengths, strict=True))
        span = slice(sector * SECTOR, sector * SECTOR + sum(lengths))
        if kind == T_OUT:
            seed = seed * 6364136223846793005 + 1 & (1 << 64) - 1
            content = (seed.to_bytes(8, "little") * 400)[: sum(lengths)]
            done = 0
            for pa, length in data:
                driver.memory.write(pa, content[done : done + length])
                done += length
            model[span] = content
        status, used = driver.request(kind, sector, data, indirect)
        assert status == S_OK
        assert used == (sum(lengths) if kind == T_IN else 0) + 1
        if kind == T_IN:
            assert b"".join(driver.memory.read(pa, length) for pa, length in data) == model[span]
    assert driver.disk.data == model


def test_virtio_blk_takes_as_many_segments_as_it_says() -> None:
    """An indirect table with as many segments as the configuration space tells of is no more than a queue's length."""
    driver = BlockDriver()
    most = driver.device.read(mmio.CONFIG + 12, 4)
    status, used = driver.request(T_IN, 0, [(DATA + 512 * n, SECTOR) for n in range(most)], indirect=True)
    assert (status, used) == (S_OK, most * SECTOR + 1)
    got = b"".join(driver.memory.read(DATA + 512 * n, SECTOR) for n in range(most))
    assert got == driver.disk.data[: most * SECTOR]


def test_virtio_blk_moves_data_at_its_latency_in_guest_time() -> None:
    """Nothing happens before 20 us, and queued requests are served one by one, each 20 us after the last."""
    driver = BlockDriver()
    rows = driver.rows(T_IN, 0, [(DATA, SECTOR)])
    driver.descriptors(DESC, rows)
    driver.offer()
    driver.offer()
    driver.notify()
    driver.clock.steps += LATENCY_NS - 1
    driver.clock.fire()
    assert driver.used() is None
    assert driver.memory.read(DATA, SECTOR) == bytes(SECTOR)
    driver.clock.steps += 1
    driver.clock.fire()
    assert driver.used() is not None
    assert driver.memory.read(DATA, SECTOR) != bytes(SECTOR)
    assert driver.used() is None
    assert driver.clock.next_event() == 2 * LATENCY_NS
    driver.run()
    assert driver.used() is not None


def test_virtio_blk_queue_goes_round() -> None:
    """The rings' indexes pass the queue's size and 65,535 without a buffer lost or told twice."""
    driver = BlockDriver(features=1 << 32, num=4)
    driver.device.last_avail[0] = driver.device.used_idx[0] = driver.avail = driver.seen = 0xFFF0
    for sector in range(40):
        assert driver.request(T_IN, sector, [(DATA, SECTOR)]) == (S_OK, SECTOR + 1)


def test_virtio_interrupt_is_raised_until_acknowledged() -> None:
    """A used buffer sets bit 0 of InterruptStatus and the line; acknowledging clears both."""
    driver = BlockDriver(features=1 << 32)
    driver.request(T_FLUSH, 0, [])
    assert (driver.wire.level, driver.get(mmio.INTERRUPT_STATUS)) == (True, 1)
    driver.put(mmio.INTERRUPT_ACK, 1)
    assert (driver.wire.level, driver.get(mmio.INTERRUPT_STATUS)) == (False, 0)
    driver.store(AVAIL, "<H", 1)
    driver.request(T_FLUSH, 0, [])
    assert not driver.wire.level


def test_virtio_event_index_names_the_interrupt_and_the_notification_wanted() -> None:
    """With the event index the device interrupts at used_event only, and writes what it has seen to avail_event."""
    driver = BlockDriver()
    driver.store(AVAIL + 4 + 2 * driver.num, "<H", 1)
    driver.request(T_FLUSH, 0, [])
    assert not driver.wire.level
    assert driver.load(USED + 4 + 8 * driver.num, "<H") == (1,)
    driver.request(T_FLUSH, 0, [])
    assert driver.wire.level
    assert driver.load(USED + 4 + 8 * driver.num, "<H") == (2,)


def test_virtio_blk_tells_its_serial() -> None:
    """GET_ID gives 20 bytes, the serial and zeros, or as many as there is room for."""
    driver = BlockDriver()
    assert driver.request(T_GET_ID, 0, [(DATA, 20)]) == (S_OK, 21)
    assert driver.memory.read(DATA, 21) == b"platter".ljust(21, b"\0")
    assert driver.request(T_GET_ID, 0, [(DATA, 64)]) == (S_OK, 20)
    assert driver.request(T_GET_ID, 0, [(DATA + 100, 3)]) == (S_OK, 4)
    assert driver.memory.read(DATA + 100, 4) == b"pla\0"


def test_virtio_blk_flushes_when_asked_and_for_drivers_that_cannot_ask() -> None:
    """FLUSH reaches the disk; without the feature every write is flushed before it completes."""
    driver = BlockDriver()
    driver.request(T_OUT, 0, [(DATA, SECTOR)])
    assert driver.disk.flushes == 0
    driver.request(T_FLUSH, 0, [])
    assert driver.disk.flushes == 1
    driver = BlockDriver(features=0)
    driver.request(T_OUT, 0, [(DATA, SECTOR)])
    assert driver.disk.flushes == 1


@pytest.mark.parametrize(
    ("kind", "sector", "data", "status"),
    [
        (T_IN, 300, [(DATA, SECTOR)], S_IOERR),
        (T_IN, 299, [(DATA, 2 * SECTOR)], S_IOERR),
        (T_OUT, 0xFFFF_FFFF_FFFF_FFFF, [(DATA, SECTOR)], S_IOERR),
        (T_IN, 0, [(DATA, SECTOR - 1)], S_IOERR),
        (T_OUT, 0, [(DATA, SECTOR + 1)], S_IOERR),
        (T_IN, 0, [(0x1000, SECTOR)], S_IOERR),
        (T_OUT, 0, [(BASE + RAM_BYTES - 1, SECTOR)], S_IOERR),
        (T_OUT, 0, [(0xFFFF_FFFF_FFFF_FFFF, SECTOR)], S_IOERR),
        (T_IN, 0, [(DATA, 0xFFFF_FE00)] * 5, S_IOERR),
        (11, 0, [(DATA, 16)], S_UNSUPP),
        (0xFFFF_FFFF, 0, [], S_UNSUPP),
    ],
)
def test_virtio_blk_bad_request_fails_alone(kind: int, sector: int, data: list[tuple[int, int]], status: int) -> None:
    """A request that cannot be done gets a status, takes no memory of its size, and the next one is served."""
    driver = BlockDriver()
    before = bytes(driver.disk.data)
    assert driver.request(kind, sector, data)[0] == status
    assert driver.memory.largest <= mmio.CHUNK
    assert driver.disk.data == before
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK
    assert not driver.needs_reset


def test_virtio_blk_medium_errors_are_the_guests() -> None:
    """A disk that fails, or that is read-only, answers VIRTIO_BLK_S_IOERR."""
    driver = BlockDriver()
    driver.disk.broken = True
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_IOERR
    assert driver.request(T_OUT, 0, [(DATA, SECTOR)])[0] == S_IOERR
    driver = BlockDriver(Platter(readonly=True))
    assert driver.request(T_OUT, 0, [(DATA, SECTOR)])[0] == S_IOERR
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK


def test_virtio_blk_serves_a_large_request_in_parts() -> None:
    """A request larger than what moves at a time comes out whole."""
    driver = BlockDriver()
    assert driver.request(T_IN, 1, [(DATA, 0x1_8000)])[0] == S_OK
    assert driver.memory.largest == mmio.CHUNK
    assert driver.memory.read(DATA, 0x1_8000) == driver.disk.data[SECTOR : SECTOR + 0x1_8000]


def test_virtio_blk_writes_a_large_request_in_few_parts() -> None:
    """As many as its bytes need, not as many as it has segments, and in their order."""
    driver = BlockDriver()
    written: list[tuple[int, bytes]] = []
    driver.disk.write = lambda offset, data: written.append((offset, data))  # type: ignore[method-assign]
    data = bytes(range(256)) * 96 * 4
    driver.memory.write(DATA, data)
    segments = [(DATA + 3 * n, 3) for n in range(100)] + [(DATA + 300, len(data) - 300)]
    assert driver.request(T_OUT, 3, segments, indirect=True)[0] == S_OK
    assert [len(part) for _, part in written] == [mmio.CHUNK, len(data) - mmio.CHUNK]
    assert [offset for offset, _ in written] == [3 * SECTOR, 3 * SECTOR + mmio.CHUNK]
    assert b"".join(part for _, part in written) == data


def test_virtio_reset_forgets_everything() -> None:
    """Writing 0 to Status cancels what is pending, lowers the line and takes the queue out of use."""
    driver = BlockDriver()
    driver.request(T_FLUSH, 0, [])
    driver.offer()
    driver.notify()
    assert driver.clock.next_event() != NEVER
    driver.put(mmio.STATUS, 0)
    assert driver.clock.next_event() == NEVER
    assert not driver.wire.level
    assert driver.get(mmio.QUEUE_READY) == driver.get(mmio.STATUS) == 0
    driver.start()
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK


def test_virtio_queue_is_left_alone_before_driver_ok() -> None:
    """Notifications before DRIVER_OK, for a queue that is not ready or does not exist, start nothing."""
    driver = BlockDriver()
    driver.put(mmio.QUEUE_NOTIFY, 1)
    driver.put(mmio.QUEUE_READY, 0)
    driver.notify()
    driver.put(mmio.STATUS, 0)
    driver.put(mmio.STATUS, 11)
    driver.notify()
    assert driver.clock.next_event() == NEVER


@pytest.mark.parametrize("num", [0, 3, 129, 256, 0xFFFF_FFFF])
def test_virtio_queue_of_a_bad_size_never_becomes_ready(num: int) -> None:
    """A size that is no power of two, or above QueueNumMax, is refused."""
    driver = BlockDriver(num=num)
    assert driver.get(mmio.QUEUE_READY) == 0


def loop(driver: BlockDriver) -> None:
    driver.store(DESC, "<QIHH", DATA, 16, NEXT, 0)


def long_chain(driver: BlockDriver) -> None:
    driver.descriptors(TABLE, [(DATA, 0, 0)] * 129)
    driver.store(DESC, "<QIHH", TABLE, 16 * 129, INDIRECT, 0)


def next_outside(driver: BlockDriver) -> None:
    driver.store(DESC, "<QIHH", DATA, 16, NEXT, 8)


def nested_table(driver: BlockDriver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 32, INDIRECT, 0)
    driver.store(TABLE, "<QIHH", TABLE, 32, INDIRECT, 0)


def chained_table(driver: BlockDriver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 16, INDIRECT | NEXT, 1)


def odd_table(driver: BlockDriver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 17, INDIRECT, 0)


def empty_table(driver: BlockDriver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 0, INDIRECT, 0)


def table_outside(driver: BlockDriver) -> None:
    driver.store(DESC, "<QIHH", 0xFFFF_FFFF_FFFF_FFF0, 0xFFFF_FFF0, INDIRECT, 0)


def readable_last(driver: BlockDriver) -> None:
    driver.descriptors(DESC, [(DATA, 16, WRITE), (DATA, 16, 0)])


def no_header(driver: BlockDriver) -> None:
    driver.descriptors(DESC, [(HEADER, 15, 0), (STATUS_BYTE, 1, WRITE)])


def header_outside(driver: BlockDriver) -> None:
    driver.descriptors(DESC, [(0, 16, 0), (STATUS_BYTE, 1, WRITE)])


def no_status(driver: BlockDriver) -> None:
    driver.descriptors(DESC, [(HEADER, 16, 0)])


def empty_status(driver: BlockDriver) -> None:
    driver.descriptors(DESC, [(HEADER, 16, 0), (DATA, 0, WRITE)])


def status_outside(driver: BlockDriver) -> None:
    driver.descriptors(DESC, [(HEADER, 16, 0), (0, 1, WRITE)])


def head_outside(driver: BlockDriver) -> None:
    driver.store(AVAIL + 4, "<H", 8)


def index_jumps(driver: BlockDriver) -> None:
    driver.store(AVAIL + 2, "<H", 9)


def used_outside(driver: BlockDriver) -> None:
    driver.descriptors(DESC, driver.rows(T_FLUSH, 0, []))
    driver.put(mmio.QUEUE_READY, 0)
    driver.put(mmio.QUEUE_DEVICE_HIGH, 0xFFFF_FFFF)
    driver.put(mmio.QUEUE_READY, 1)


def avail_outside(driver: BlockDriver) -> None:
    driver.put(mmio.QUEUE_READY, 0)
    driver.put(mmio.QUEUE_DRIVER_LOW, 0)
    driver.put(mmio.QUEUE_READY, 1)


@pytest.mark.parametrize(
    "breakage",
    [
        loop,
        long_chain,
        next_outside,
        nested_table,
        chained_table,
        odd_table,
        empty_table,
        table_outside,
        readable_last,
        no_header,
        header_outside,
        no_status,
        empty_status,
        status_outside,
        head_outside,
        index_jumps,
        used_outside,
        avail_outside,
    ],
)
def test_virtio_bad_queue_stops_the_device_until_reset(breakage: Callable[[BlockDriver], None]) -> None:
    """A queue against the rules sets DEVICE_NEEDS_RESET and tells the driver; nothing more is served until a reset."""
    driver = BlockDriver()
    driver.offer()
    breakage(driver)
    driver.notify()
    driver.run()
    assert driver.needs_reset
    assert driver.wire.level
    assert driver.get(mmio.INTERRUPT_STATUS) == mmio.CONFIG_CHANGE
    assert driver.memory.accesses < 1000
    driver.notify()
    assert driver.clock.next_event() == NEVER
    driver.start()
    assert not driver.needs_reset
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK


def test_virtio_indirect_table_needs_the_feature() -> None:
    """A table that was not negotiated is a bad queue."""
    driver = BlockDriver(features=1 << 32)
    driver.store(DESC, "<QIHH", TABLE, 16, INDIRECT, 0)
    driver.offer()
    driver.notify()
    driver.run()
    assert driver.needs_reset


DESCRIPTORS = st.lists(
    st.tuples(
        st.one_of(st.integers(BASE, BASE + RAM_BYTES), st.integers(0, (1 << 64) - 1), st.just(TABLE)),
        st.one_of(st.sampled_from([0, 1, 16, 32, SECTOR, 1 << 20]), st.integers(0, 0xFFFF_FFFF)),
        st.integers(0, 7),
        st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
    ),
    max_size=10,
)


@settings(deadline=None, max_examples=300)
@given(
    DESCRIPTORS,
    DESCRIPTORS,
    st.lists(st.integers(0, 9), max_size=8),
    st.integers(0, 12),
    st.binary(max_size=16),
)
def test_virtio_hostile_queue_costs_a_bounded_amount(
    table: list[tuple[int, int, int, int]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    index: int,
    header: bytes,
) -> None:
    """Whatever is in the rings, each event moves a bounded amount in bounded pieces, and the events end."""
    driver = BlockDriver()
    driver.memory.data[HEADER - BASE : HEADER - BASE + len(header)] = header
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
        before = driver.memory.accesses
        driver.clock.fire()
        assert driver.memory.accesses - before < 2000
    assert driver.memory.largest <= mmio.CHUNK


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 0x43), st.one_of(st.integers(0, 255), st.integers(0, 0xFFFF_FFFF)))),
    st.data(),
)
def test_virtio_registers_take_noise_beside_a_queue(writes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Random writes to the registers of a device at work raise nothing, and a reset makes it work again."""
    driver = BlockDriver()
    driver.descriptors(DESC, driver.rows(T_IN, 0, [(DATA, SECTOR)]))
    driver.offer()
    for register, value in writes:
        driver.put(4 * register, value)
        if data.draw(st.booleans()):
            driver.notify()
        driver.clock.steps += 7000
        driver.clock.fire()
    driver.put(mmio.QUEUE_SEL, 0)
    driver.put(mmio.STATUS, 0)
    driver.start()
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK
