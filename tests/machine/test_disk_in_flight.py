"""Requests that are under way: what a guest, and who stands beside, can tell of the thread that does them."""

from __future__ import annotations

import errno
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from idioms import constant, put
from states import SCALE
from virtio_driver import DATA, DESC, HEADER, SECTOR, STATUS_BYTE, WRITE, BlockDriver, Platter

from ringfence import MiB, Virt, virt
from ringfence.machine.board import FINISHER, RAM
from ringfence.machine.clock import NEVER, Source
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.disk import RawDisk
from ringfence.machine.device.virtio_blk import IN_FLIGHT, S_IOERR, S_OK, SIZE_MAX, T_FLUSH, T_IN, T_OUT, VirtioBlk
from ringfence.machine.exit import Deadline, PowerOff

QUEUE, FRONTS, STATUSES, BUFFERS = RAM + 0x10_0000, RAM + 0x10_4000, RAM + 0x10_8000, RAM + 0x20_0000
BUSY = [put("addi", rd=5, rs1=5, imm=1), put("jal", rd=0, imm=-4)]
OFF = [*constant(6, FINISHER), *constant(7, 0x5555), put("sw", rs1=6, rs2=7, imm=0), put("jal", rd=0, imm=0)]


class Gate(Platter):
    """A disk that does nothing while its gate is closed, and then takes its time."""

    def __init__(self, sectors: int = 300, seconds: float = 0) -> None:
        super().__init__(sectors)
        self.open = threading.Event()
        self.open.set()
        self.seconds = seconds
        self.began = 0

    def _check(self, offset: int, length: int) -> None:
        self.began += 1
        assert self.open.wait(30)
        time.sleep(self.seconds)
        super()._check(offset, length)


class Guest:
    """A machine that executes `program`, and a driver of its disk, which stands beside. Of request n header and status
    byte are at FRONTS + 16 n and STATUSES + n, and its data is anywhere.
    """

    def __init__(self, disk: Platter | RawDisk, clock: Source = "virtual", program: list[int] = BUSY) -> None:
        self.machine: Virt = virt(64 * MiB, clock=clock, disks=[disk])
        self.machine.memory[RAM : RAM + 4 * len(program)] = b"".join(word.to_bytes(4, "little") for word in program)
        for hart in self.machine.harts:
            hart.pc = RAM
        self.start()

    @property
    def device(self) -> VirtioBlk:
        device = self.machine.slots[0]
        assert isinstance(device, VirtioBlk)
        return device

    def start(self) -> None:
        self.device.write(mmio.STATUS, 4, 0)
        self.machine.ram.write(QUEUE, bytes(0x3000))
        self.offered = 0
        for register, value in [
            (mmio.STATUS, 3),
            (mmio.DRIVER_FEATURES, 1 << 9 | 1 << 28),
            (mmio.DRIVER_FEATURES_SEL, 1),
            (mmio.DRIVER_FEATURES, 1),
            (mmio.STATUS, 11),
            (mmio.QUEUE_NUM, 128),
            (mmio.QUEUE_DESC_LOW, QUEUE),
            (mmio.QUEUE_DRIVER_LOW, QUEUE + 0x1000),
            (mmio.QUEUE_DEVICE_LOW, QUEUE + 0x2000),
            (mmio.QUEUE_READY, 1),
            (mmio.STATUS, 15),
        ]:
            self.device.write(register, 4, value)

    def ask(self, kind: int, sector: int = 0, pa: int = BUFFERS, length: int = SECTOR) -> int:
        """The next request, of which the device is not told yet: its number."""
        ram, n = self.machine.ram, self.offered
        ram.write(FRONTS + 16 * n, struct.pack("<IIQ", kind, 0, sector))
        ram.write(STATUSES + n, b"\xff")
        table = RAM + 0x18_0000 + 64 * n
        rows = [(FRONTS + 16 * n, 16, 1, 1), (pa, length, 1 | WRITE * (kind == T_IN), 2), (STATUSES + n, 1, WRITE, 0)]
        if kind == T_FLUSH:
            rows = [rows[0], rows[2]]
        ram.write(table, b"".join(struct.pack("<QIHH", *row) for row in rows))
        ram.write(QUEUE + 16 * n, struct.pack("<QIHH", table, 16 * len(rows), 4, 0))
        ram.write(QUEUE + 0x1004 + 2 * n, n.to_bytes(2, "little"))
        self.offered = n + 1
        ram.write(QUEUE + 0x1002, self.offered.to_bytes(2, "little"))
        return n

    def tell(self) -> None:
        self.device.write(mmio.QUEUE_NOTIFY, 4, 0)

    @property
    def statuses(self) -> list[int]:
        return list(self.machine.ram.read(STATUSES, self.offered))

    def run(self, until: Callable[[], bool], seconds: float = 20) -> None:
        """By the host's clock, until something is so."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end
            self.machine.run(until=self.machine.clock.now() + 5_000_000)

    def finish(self) -> list[int]:
        """All statuses, when all are there."""
        if self.machine.clock.source == "virtual":
            self.machine.run(200_000 * (1 + self.offered))
        else:
            self.run(lambda: 0xFF not in self.statuses)
        return self.statuses


@contextmanager
def opened_soon(disk: Gate) -> Iterator[None]:
    """While somebody waits for the disk its gate is opened."""
    timer = threading.Timer(0.1, disk.open.set)
    timer.start()
    yield
    timer.join()


REQUESTS = st.lists(
    st.tuples(st.sampled_from([T_IN, T_OUT, T_OUT, T_FLUSH]), st.integers(0, 6), st.integers(1, 4)),
    min_size=1,
    max_size=12,
)


def model(guest: Guest, disk: Platter, requests: list[tuple[int, int, int]]) -> tuple[bytearray, dict[int, bytes]]:
    """Asks for all of it; what is to be on the disk then, and in the buffers of what was read."""
    after, found = bytearray(disk.data), {}
    for kind, sector, count in requests:
        n, pa = guest.offered, BUFFERS + 0x1000 * guest.offered
        span = slice(sector * SECTOR, (sector + count) * SECTOR)
        content = bytes([n + 1]) * (count * SECTOR)
        guest.machine.ram.write(pa, content)
        guest.ask(kind, sector, pa, count * SECTOR)
        if kind == T_OUT:
            after[span] = content
        elif kind == T_IN:
            found[pa] = bytes(after[span])
    return after, found


@settings(deadline=None, max_examples=round(15 * SCALE))
@given(REQUESTS, st.sampled_from(["virtual", "host"]))
def test_requests_that_overlap_keep_their_order(requests: list[tuple[int, int, int]], clock: Source) -> None:
    """Given at once, each reads what those before it have written, and the last to write a sector has written it."""
    disk = Gate(seconds=0.0005)
    guest = Guest(disk, clock)
    after, found = model(guest, disk, requests)
    guest.tell()
    assert guest.finish() == [S_OK] * len(requests)
    assert disk.data == after
    for pa, content in found.items():
        assert guest.machine.ram.read(pa, len(content)) == content
    assert disk.flushes == sum(kind == T_FLUSH for kind, _, _ in requests)


@settings(deadline=None, max_examples=round(10 * SCALE))
@given(st.lists(st.tuples(REQUESTS, st.integers(1, 60_000)), min_size=1, max_size=4))
def test_run_does_not_depend_on_how_fast_a_disk_is(batches: list[tuple[list[tuple[int, int, int]], int]]) -> None:
    """By the virtual clock: at any step the machine's state is the same, and so is the disk."""
    found = []
    for seconds in (0, 0.001):
        disk = Gate(seconds=seconds)
        guest = Guest(disk)
        states = []
        for requests, steps in batches:
            model(guest, disk, requests)
            guest.tell()
            guest.machine.run(steps)
            states.append((bytes(disk.data), guest.machine.digest()))
        guest.finish()
        found.append([*states, (guest.machine.digest(), bytes(disk.data))])
    assert found[0] == found[1]


def test_slow_disk_does_not_stop_the_guest() -> None:
    """By the host's clock a guest computes while its request is under way, and is given it when it is done."""
    disk = Gate()
    guest = Guest(disk, "host")
    disk.open.clear()
    guest.ask(T_IN)
    guest.tell()
    machine = guest.machine
    before = machine.steps
    assert isinstance(machine.run(until=machine.clock.now() + 50_000_000), Deadline)
    assert machine.steps - before > 100_000
    assert guest.statuses == [0xFF] and disk.began == 1
    disk.open.set()
    assert guest.finish() == [S_OK]
    assert machine.ram.read(BUFFERS, SECTOR) == disk.data[:SECTOR]


def test_write_is_what_was_there_when_the_device_was_told() -> None:
    """And a read comes into RAM when it is completed, whoever writes there meanwhile."""
    disk = Gate()
    guest = Guest(disk, "host")
    disk.open.clear()
    ram = guest.machine.ram
    ram.write(BUFFERS, b"told" * 128)
    guest.ask(T_OUT, 0)
    guest.ask(T_IN, 1, BUFFERS + SECTOR)
    guest.tell()
    ram.write(BUFFERS, b"late" * 256)
    guest.machine.run(until=guest.machine.clock.now() + 20_000_000)
    assert ram.read(BUFFERS + SECTOR, SECTOR) == b"late" * 128
    disk.open.set()
    assert guest.finish() == [S_OK, S_OK]
    assert disk.data[:SECTOR] == b"told" * 128
    assert ram.read(BUFFERS + SECTOR, SECTOR) == disk.data[SECTOR : 2 * SECTOR]


@pytest.mark.parametrize("clock", ["virtual", "host"])
@pytest.mark.parametrize("how", ["device", "queue", "machine", "broken"])
def test_reset_ends_what_is_under_way(clock: Source, how: str) -> None:
    """Behind it the device touches neither RAM nor queue, and what it had been told to write is written."""
    disk = Gate()
    guest = Guest(disk, clock)
    disk.open.clear()
    for n in range(4):
        guest.ask(T_IN if n % 2 else T_OUT, n, BUFFERS + n * SECTOR)
    guest.tell()
    with opened_soon(disk):
        if how == "device":
            guest.device.write(mmio.STATUS, 4, 0)
        elif how == "queue":
            guest.device.write(mmio.QUEUE_READY, 4, 0)
        elif how == "machine":
            guest.machine.hardware_reset()
        else:
            guest.machine.ram.write(QUEUE + 0x1002, b"\xff\xff")
            guest.tell()
    mark = b"\xa5" * (4 * SECTOR)
    guest.machine.ram.write(BUFFERS, mark)
    guest.machine.ram.write(STATUSES, b"\xa5" * 4)
    guest.machine.ram.write(QUEUE + 0x2000, b"\xa5" * 64)
    guest.machine.memory[RAM : RAM + 8] = b"".join(word.to_bytes(4, "little") for word in BUSY)
    guest.machine.harts[0].pc = RAM
    if clock == "virtual":
        assert all(event[1] is not guest.device for event in guest.machine.clock.pending())
        guest.machine.run(200_000)
    else:
        guest.machine.run(until=guest.machine.clock.now() + 20_000_000)
    assert guest.machine.ram.read(BUFFERS, 4 * SECTOR) == mark
    assert guest.machine.ram.read(STATUSES, 4) == b"\xa5" * 4
    assert guest.machine.ram.read(QUEUE + 0x2000, 64) == b"\xa5" * 64
    assert disk.data[:SECTOR] == disk.data[2 * SECTOR : 3 * SECTOR] == bytes(SECTOR)
    guest.start()
    guest.ask(T_IN)
    guest.tell()
    assert guest.finish() == [S_OK]


@pytest.mark.parametrize("clock", ["virtual", "host"])
def test_error_of_the_medium_is_one_requests(clock: Source) -> None:
    """A full host, in the middle: that request fails, those before and behind it do not."""
    disk = Gate()
    guest = Guest(disk, clock)
    write = disk.write

    def full(offset: int, data: bytes) -> None:
        if offset == SECTOR:
            raise OSError(errno.ENOSPC, "full")
        write(offset, data)

    disk.write = full  # type: ignore[method-assign]
    before = bytes(disk.data[SECTOR : 2 * SECTOR])
    for n in range(3):
        guest.ask(T_OUT, n)
    guest.tell()
    assert guest.finish() == [S_OK, S_IOERR, S_OK]
    assert disk.data[: 3 * SECTOR] == bytes(SECTOR) + before + bytes(SECTOR)


@pytest.mark.parametrize("clock", ["virtual", "host"])
def test_fault_of_a_back_end_is_raised(clock: Source) -> None:
    """One that is no error of a medium comes out of `run`."""
    disk = Gate()
    guest = Guest(disk, clock)
    disk.read = lambda offset, length: bytes(1 // (length - length))  # type: ignore[method-assign]
    guest.ask(T_IN)
    guest.tell()
    with pytest.raises(ZeroDivisionError):
        guest.finish()


@pytest.mark.parametrize("clock", ["virtual", "host"])
def test_power_off_waits_for_what_is_under_way(clock: Source) -> None:
    """When `run` tells of it, everything that the guest has written is on the disk."""
    disk = Gate(seconds=0.01)
    guest = Guest(disk, clock, OFF)
    guest.machine.ram.write(BUFFERS, b"x" * SECTOR)
    for n in range(5):
        guest.ask(T_OUT, n)
    guest.tell()
    assert isinstance(guest.machine.run(), PowerOff)
    assert disk.data[: 5 * SECTOR] == b"x" * (5 * SECTOR)


def test_closing_a_disk_waits_for_what_is_under_way(tmp_path: Path) -> None:
    """Whatever the machine is about, and in the order in which it was asked for."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 * SECTOR))
    with RawDisk(path) as disk:
        guest = Guest(disk, "host")
        write = disk.write

        def slow(offset: int, data: bytes) -> None:
            time.sleep(0.01)
            write(offset, data)

        disk.write = slow  # type: ignore[method-assign]
        for n in range(6):
            guest.machine.ram.write(BUFFERS, bytes([n]) * (16 * SECTOR))
            guest.ask(T_OUT, n, length=16 * SECTOR)
            guest.tell()
    assert path.read_bytes()[: 6 * SECTOR] == b"".join(bytes([n]) * SECTOR for n in range(6))


def test_bytes_under_way_are_bounded() -> None:
    """However many requests a driver has: the others wait in its queue, and all are done in the end."""
    disk = Gate(SIZE_MAX // SECTOR)
    guest = Guest(disk, "host")
    disk.open.clear()
    for _ in range(60):
        guest.ask(T_OUT, length=SIZE_MAX)
    guest.tell()
    guest.tell()
    assert guest.device.last_avail[0] == IN_FLIGHT // SIZE_MAX
    disk.open.set()
    assert guest.finish() == [S_OK] * 60


def test_state_has_what_is_under_way() -> None:
    """A snapshot in the middle: a device that takes it goes on with what was read and done, and asks no disk again."""
    driver = BlockDriver()
    driver.memory.write(DATA, b"x" * SECTOR)
    driver.store(HEADER + 16, "<IIQ", T_OUT, 0, 3)
    driver.descriptors(DESC, driver.rows(T_IN, 5, [(DATA + 0x1000, 100), (DATA + 0x2000, 412)]))
    driver.descriptors(DESC, [(HEADER + 16, 16, 0), (DATA, SECTOR, 0), (STATUS_BYTE + 1, 1, WRITE)], first=4)
    driver.offer(0)
    driver.offer(4)
    driver.notify()
    state = driver.device.snapshot()
    other = BlockDriver(Platter())
    other.memory.data[:] = driver.memory.data
    other.disk.broken = True
    other.device.restore(state)
    assert other.device.snapshot() == state
    other.clock.at(20_000, other.device, "complete", 0)
    driver.run()
    other.run()
    assert other.memory.data == driver.memory.data
    assert driver.used() == (0, SECTOR + 1) and driver.used() == (4, 1)
    assert other.device.snapshot() == driver.device.snapshot()
    assert driver.clock.next_event() == other.clock.next_event() == NEVER


@settings(max_examples=round(50 * SCALE), deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_state_that_is_none_is_refused(taken: bytes) -> None:
    """Bytes that are no requests change nothing."""
    driver = BlockDriver()
    state = driver.device.snapshot()
    try:
        driver.device.restore({**state, "taken": taken, "queue_sel": 7})
    except ValueError:
        assert driver.device.snapshot() == state
    else:
        assert driver.device.snapshot()["taken"] == taken


def test_a_status_byte_behind_the_last_address_stops_the_device() -> None:
    """It is nowhere in RAM, and in no state that is taken meanwhile."""
    driver = BlockDriver()
    rows = driver.rows(T_IN, 0, [(DATA, SECTOR)])
    driver.descriptors(DESC, [*rows[:-1], ((1 << 64) - 1, 2, WRITE)])
    driver.offer()
    driver.notify()
    assert driver.device.snapshot()["taken"] == b""
    driver.run()
    assert driver.needs_reset
