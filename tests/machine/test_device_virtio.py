"""The virtio transport and the block device, driven by a small driver of the tests' own."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ringfence.machine.clock import NEVER, Clock
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.device import AccessFault
from ringfence.machine.device.virtio_blk import (
    LATENCY_NS,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    VirtioBlk,
)

BASE = 0x8000_0000
RAM_BYTES = 0x4_0000
DESC, AVAIL, USED, TABLE, HEADER, STATUS_BYTE, DATA = (BASE + n * 0x1000 for n in (0, 1, 2, 3, 4, 5, 8))
NEXT, WRITE, INDIRECT = 1, 2, 4
SECTOR = 512
OTHER = 0xFF
ALL_FEATURES = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 9 | 1 << 6 | 1 << 2


class Wire:
    level = False

    def set(self, level: bool) -> None:
        self.level = level


class Memory:
    """RAM that counts how often and how much it is asked for."""

    def __init__(self) -> None:
        self.data = bytearray(RAM_BYTES)
        self.accesses = 0
        self.largest = 0

    def offset(self, pa: int, length: int) -> int:
        self.accesses += 1
        self.largest = max(self.largest, length)
        assert pa >= 0
        if pa < BASE or pa + length > BASE + RAM_BYTES:
            raise AccessFault
        return pa - BASE

    def read(self, pa: int, length: int) -> bytes:
        at = self.offset(pa, length)
        return bytes(self.data[at : at + length])

    def write(self, pa: int, data: bytes) -> None:
        at = self.offset(pa, len(data))
        self.data[at : at + len(data)] = data


class Platter:
    serial = b"platter"

    def __init__(self, sectors: int = 300, readonly: bool = False) -> None:
        self.data = bytearray(struct.pack("<Q", 0x0123_4567_89AB_CDEF) * (64 * sectors))
        self.size = len(self.data)
        self.readonly = readonly
        self.broken = False
        self.flushes = 0

    def read(self, offset: int, length: int) -> bytes:
        if self.broken:
            raise OSError("medium")
        assert 0 <= offset <= offset + length <= self.size
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        if self.broken:
            raise OSError("medium")
        assert 0 <= offset <= offset + len(data) <= self.size
        assert not self.readonly
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushes += 1


class Driver:
    """What a guest does: sets the device up, puts requests into queue 0, and takes them out again."""

    def __init__(self, disk: Platter | None = None, features: int = ALL_FEATURES, num: int = 8) -> None:
        self.clock, self.wire, self.memory = Clock(), Wire(), Memory()
        self.disk = disk or Platter()
        self.device = VirtioBlk(self.clock, self.wire, self.memory, self.disk)
        self.num = num
        self.start(features)

    def start(self, features: int = ALL_FEATURES) -> None:
        self.put(mmio.STATUS, 0)
        self.avail = self.seen = 0
        self.memory.data[:] = bytes(RAM_BYTES)
        self.put(mmio.STATUS, 3)
        for half in (0, 1):
            self.put(mmio.DRIVER_FEATURES_SEL, half)
            self.put(mmio.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.put(mmio.STATUS, 11)
        self.put(mmio.QUEUE_NUM, self.num)
        for low, pa in (
            (mmio.QUEUE_DESC_LOW, DESC),
            (mmio.QUEUE_DRIVER_LOW, AVAIL),
            (mmio.QUEUE_DEVICE_LOW, USED),
        ):
            self.put(low, pa & 0xFFFF_FFFF)
            self.put(low + 4, pa >> 32)
        self.put(mmio.QUEUE_READY, 1)
        self.put(mmio.STATUS, 15)

    def get(self, offset: int) -> int:
        return self.device.read(offset, 4)

    def put(self, offset: int, value: int) -> None:
        self.device.write(offset, 4, value)

    def store(self, pa: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self.memory.data, pa - BASE, *values)

    def load(self, pa: int, layout: str) -> tuple[int, ...]:
        return struct.unpack_from(layout, self.memory.data, pa - BASE)

    def descriptors(self, table: int, rows: list[tuple[int, int, int]], first: int = 0) -> None:
        """A chain of (pa, length, flags) in consecutive descriptors."""
        for index, (pa, length, flags) in enumerate(rows):
            more = NEXT if index + 1 < len(rows) else 0
            self.store(table + 16 * (first + index), "<QIHH", pa, length, flags | more, first + index + 1)

    def offer(self, head: int = 0) -> None:
        """Makes the chain at `head` available, without telling the device."""
        self.store(AVAIL + 4 + 2 * (self.avail % self.num), "<H", head)
        self.avail = self.avail + 1 & 0xFFFF
        self.store(AVAIL + 2, "<H", self.avail)

    def notify(self) -> None:
        self.put(mmio.QUEUE_NOTIFY, 0)

    def run(self) -> None:
        """Lets the device finish all that it was told of."""
        while self.clock.jump():
            self.clock.fire()

    def used(self) -> tuple[int, int] | None:
        """The next buffer that the device gave back: head and length."""
        if self.load(USED + 2, "<H")[0] == self.seen:
            return None
        head, length = self.load(USED + 4 + 8 * (self.seen % self.num), "<II")
        self.seen = self.seen + 1 & 0xFFFF
        return head, length

    def rows(self, kind: int, sector: int, data: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """The descriptors of a request whose data is at these (pa, length)."""
        self.store(HEADER, "<IIQ", kind, 0, sector)
        self.store(STATUS_BYTE, "<B", OTHER)
        flags = 0 if kind == T_OUT else WRITE
        return [(HEADER, 16, 0), *((pa, length, flags) for pa, length in data), (STATUS_BYTE, 1, WRITE)]

    def request(self, kind: int, sector: int, data: list[tuple[int, int]], indirect: bool = False) -> tuple[int, int]:
        """One request from start to end: its status and used length."""
        rows = self.rows(kind, sector, data)
        if indirect:
            self.descriptors(TABLE, rows)
            rows = [(TABLE, 16 * len(rows), INDIRECT)]
        self.descriptors(DESC, rows)
        self.offer()
        self.notify()
        self.run()
        used = self.used()
        assert used is not None
        assert used[0] == 0
        assert self.used() is None
        return self.load(STATUS_BYTE, "<B")[0], used[1]

    @property
    def needs_reset(self) -> bool:
        return bool(self.get(mmio.STATUS) & mmio.NEEDS_RESET)


def test_virtio_mmio_identifies_itself() -> None:
    """The registers that a driver probes with are the standard's, and take 32-bit accesses only."""
    driver = Driver()
    assert driver.get(mmio.MAGIC_VALUE).to_bytes(4, "little") == b"virt"
    assert (driver.get(mmio.VERSION), driver.get(mmio.DEVICE_ID)) == (2, 2)
    assert driver.device.read(mmio.MAGIC_VALUE, 1) == 0
    assert driver.get(mmio.QUEUE_NUM_MAX_REGISTER) == 128
    driver.put(mmio.QUEUE_SEL, 1)
    assert driver.get(mmio.QUEUE_NUM_MAX_REGISTER) == driver.get(mmio.QUEUE_READY) == 0
    assert driver.get(mmio.SHM_FIRST) == driver.get(mmio.SHM_FIRST + 4) == 0xFFFF_FFFF


def test_virtio_mmio_refuses_features_it_does_not_offer() -> None:
    """FEATURES_OK stays clear until the driver asks for offered features only, and then the set is fixed."""
    driver = Driver()
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


@pytest.mark.parametrize(("readonly", "expected"), [(False, 0x3000_0246), (True, 0x3000_0266)])
def test_virtio_blk_offers_what_its_disk_can_do(readonly: bool, expected: int) -> None:
    """Flush, sector size and segment limits are offered always, RO for a disk that is read-only."""
    driver = Driver(Platter(readonly=readonly))
    driver.put(mmio.DEVICE_FEATURES_SEL, 0)
    assert driver.get(mmio.DEVICE_FEATURES) == expected
    driver.put(mmio.DEVICE_FEATURES_SEL, 1)
    assert driver.get(mmio.DEVICE_FEATURES) == 1
    driver.put(mmio.DEVICE_FEATURES_SEL, 2)
    assert driver.get(mmio.DEVICE_FEATURES) == 0


def test_virtio_blk_shows_its_capacity_at_any_width() -> None:
    """The configuration space is bytes: read in ones, fours or eights it is the same, and 0 behind its end."""
    device = Driver().device
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
    driver = Driver()
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
    driver = Driver()
    most = driver.device.read(mmio.CONFIG + 12, 4)
    status, used = driver.request(T_IN, 0, [(DATA + 512 * n, SECTOR) for n in range(most)], indirect=True)
    assert (status, used) == (S_OK, most * SECTOR + 1)
    got = b"".join(driver.memory.read(DATA + 512 * n, SECTOR) for n in range(most))
    assert got == driver.disk.data[: most * SECTOR]


def test_virtio_blk_moves_data_at_its_latency_in_guest_time() -> None:
    """Nothing happens before 20 us, and queued requests are served one by one, each 20 us after the last."""
    driver = Driver()
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
    driver = Driver(features=1 << 32, num=4)
    driver.device.last_avail[0] = driver.device.used_idx[0] = driver.avail = driver.seen = 0xFFF0
    for sector in range(40):
        assert driver.request(T_IN, sector, [(DATA, SECTOR)]) == (S_OK, SECTOR + 1)


def test_virtio_interrupt_is_raised_until_acknowledged() -> None:
    """A used buffer sets bit 0 of InterruptStatus and the line; acknowledging clears both."""
    driver = Driver(features=1 << 32)
    driver.request(T_FLUSH, 0, [])
    assert (driver.wire.level, driver.get(mmio.INTERRUPT_STATUS)) == (True, 1)
    driver.put(mmio.INTERRUPT_ACK, 1)
    assert (driver.wire.level, driver.get(mmio.INTERRUPT_STATUS)) == (False, 0)
    driver.store(AVAIL, "<H", 1)
    driver.request(T_FLUSH, 0, [])
    assert not driver.wire.level


def test_virtio_event_index_names_the_interrupt_and_the_notification_wanted() -> None:
    """With the event index the device interrupts at used_event only, and writes what it has seen to avail_event."""
    driver = Driver()
    driver.store(AVAIL + 4 + 2 * driver.num, "<H", 1)
    driver.request(T_FLUSH, 0, [])
    assert not driver.wire.level
    assert driver.load(USED + 4 + 8 * driver.num, "<H") == (1,)
    driver.request(T_FLUSH, 0, [])
    assert driver.wire.level
    assert driver.load(USED + 4 + 8 * driver.num, "<H") == (2,)


def test_virtio_blk_tells_its_serial() -> None:
    """GET_ID gives 20 bytes, the serial and zeros, or as many as there is room for."""
    driver = Driver()
    assert driver.request(T_GET_ID, 0, [(DATA, 20)]) == (S_OK, 21)
    assert driver.memory.read(DATA, 21) == b"platter".ljust(21, b"\0")
    assert driver.request(T_GET_ID, 0, [(DATA, 64)]) == (S_OK, 20)
    assert driver.request(T_GET_ID, 0, [(DATA + 100, 3)]) == (S_OK, 4)
    assert driver.memory.read(DATA + 100, 4) == b"pla\0"


def test_virtio_blk_flushes_when_asked_and_for_drivers_that_cannot_ask() -> None:
    """FLUSH reaches the disk; without the feature every write is flushed before it completes."""
    driver = Driver()
    driver.request(T_OUT, 0, [(DATA, SECTOR)])
    assert driver.disk.flushes == 0
    driver.request(T_FLUSH, 0, [])
    assert driver.disk.flushes == 1
    driver = Driver(features=0)
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
    driver = Driver()
    before = bytes(driver.disk.data)
    assert driver.request(kind, sector, data)[0] == status
    assert driver.memory.largest <= mmio.CHUNK
    assert driver.disk.data == before
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK
    assert not driver.needs_reset


def test_virtio_blk_medium_errors_are_the_guests() -> None:
    """A disk that fails, or that is read-only, answers VIRTIO_BLK_S_IOERR."""
    driver = Driver()
    driver.disk.broken = True
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_IOERR
    assert driver.request(T_OUT, 0, [(DATA, SECTOR)])[0] == S_IOERR
    driver = Driver(Platter(readonly=True))
    assert driver.request(T_OUT, 0, [(DATA, SECTOR)])[0] == S_IOERR
    assert driver.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK


def test_virtio_blk_serves_a_large_request_in_parts() -> None:
    """A request larger than what moves at a time comes out whole."""
    driver = Driver()
    assert driver.request(T_IN, 1, [(DATA, 0x1_8000)])[0] == S_OK
    assert driver.memory.largest == mmio.CHUNK
    assert driver.memory.read(DATA, 0x1_8000) == driver.disk.data[SECTOR : SECTOR + 0x1_8000]


def test_virtio_blk_writes_a_large_request_in_few_parts() -> None:
    """As many as its bytes need, not as many as it has segments, and in their order."""
    driver = Driver()
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
    driver = Driver()
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
    driver = Driver()
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
    driver = Driver(num=num)
    assert driver.get(mmio.QUEUE_READY) == 0


def loop(driver: Driver) -> None:
    driver.store(DESC, "<QIHH", DATA, 16, NEXT, 0)


def long_chain(driver: Driver) -> None:
    driver.descriptors(TABLE, [(DATA, 0, 0)] * 129)
    driver.store(DESC, "<QIHH", TABLE, 16 * 129, INDIRECT, 0)


def next_outside(driver: Driver) -> None:
    driver.store(DESC, "<QIHH", DATA, 16, NEXT, 8)


def nested_table(driver: Driver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 32, INDIRECT, 0)
    driver.store(TABLE, "<QIHH", TABLE, 32, INDIRECT, 0)


def chained_table(driver: Driver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 16, INDIRECT | NEXT, 1)


def odd_table(driver: Driver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 17, INDIRECT, 0)


def empty_table(driver: Driver) -> None:
    driver.store(DESC, "<QIHH", TABLE, 0, INDIRECT, 0)


def table_outside(driver: Driver) -> None:
    driver.store(DESC, "<QIHH", 0xFFFF_FFFF_FFFF_FFF0, 0xFFFF_FFF0, INDIRECT, 0)


def readable_last(driver: Driver) -> None:
    driver.descriptors(DESC, [(DATA, 16, WRITE), (DATA, 16, 0)])


def no_header(driver: Driver) -> None:
    driver.descriptors(DESC, [(HEADER, 15, 0), (STATUS_BYTE, 1, WRITE)])


def header_outside(driver: Driver) -> None:
    driver.descriptors(DESC, [(0, 16, 0), (STATUS_BYTE, 1, WRITE)])


def no_status(driver: Driver) -> None:
    driver.descriptors(DESC, [(HEADER, 16, 0)])


def empty_status(driver: Driver) -> None:
    driver.descriptors(DESC, [(HEADER, 16, 0), (DATA, 0, WRITE)])


def status_outside(driver: Driver) -> None:
    driver.descriptors(DESC, [(HEADER, 16, 0), (0, 1, WRITE)])


def head_outside(driver: Driver) -> None:
    driver.store(AVAIL + 4, "<H", 8)


def index_jumps(driver: Driver) -> None:
    driver.store(AVAIL + 2, "<H", 9)


def used_outside(driver: Driver) -> None:
    driver.descriptors(DESC, driver.rows(T_FLUSH, 0, []))
    driver.put(mmio.QUEUE_READY, 0)
    driver.put(mmio.QUEUE_DEVICE_HIGH, 0xFFFF_FFFF)
    driver.put(mmio.QUEUE_READY, 1)


def avail_outside(driver: Driver) -> None:
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
def test_virtio_bad_queue_stops_the_device_until_reset(breakage: Callable[[Driver], None]) -> None:
    """A queue against the rules sets DEVICE_NEEDS_RESET and tells the driver; nothing more is served until a reset."""
    driver = Driver()
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
    driver = Driver(features=1 << 32)
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
    driver = Driver()
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
    driver = Driver()
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
