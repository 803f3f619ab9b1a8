"""The network device, driven by a small driver of the tests' own."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import BASE, INDIRECT, RAM_BYTES, WRITE, Memory, Wire

from ringfence.machine.clock import Clock
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_net import (
    BURST,
    FRAME_LEAST,
    FRAME_MOST,
    LATENCY_NS,
    RECEIVE,
    TRANSMIT,
    WAITING,
    VirtioNet,
)

NUM = 16
RINGS = [(BASE + 0x3000 * n, BASE + 0x3000 * n + 0x1000, BASE + 0x3000 * n + 0x2000) for n in (0, 1)]
"""Of each queue: descriptors, available ring, used ring."""
TABLE, DATA = BASE + 0x7000, BASE + 0x8000
HEADER = 12
FEATURES = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 16 | 1 << 5


class Cable:
    """A link whose far end is the test."""

    mac = bytes.fromhex("025246000001")

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def connect(self, receive: Callable[[bytes], None]) -> None:
        self.receive = receive

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)


class Driver:
    def __init__(self, features: int = FEATURES) -> None:
        self.clock, self.wire, self.memory, self.cable = Clock(), Wire(), Memory(), Cable()
        self.device = VirtioNet(self.clock, self.wire, self.memory, self.cable)
        self.avail, self.seen = [0, 0], [0, 0]
        self.put(mmio.STATUS, 3)
        for half in (0, 1):
            self.put(mmio.DRIVER_FEATURES_SEL, half)
            self.put(mmio.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.put(mmio.STATUS, 11)
        for queue, rings in enumerate(RINGS):
            self.put(mmio.QUEUE_SEL, queue)
            self.put(mmio.QUEUE_NUM, NUM)
            for low, pa in zip((mmio.QUEUE_DESC_LOW, mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DEVICE_LOW), rings, strict=True):
                self.put(low, pa)
            self.put(mmio.QUEUE_READY, 1)
        self.put(mmio.STATUS, 15)

    def put(self, offset: int, value: int) -> None:
        self.device.write(offset, 4, value)

    def offer(self, queue: int, head: int, rows: list[tuple[int, int]], flags: int) -> None:
        """A chain of (pa, length) from descriptor `head` on."""
        descriptors, available, _ = RINGS[queue]
        for n, (pa, length) in enumerate(rows):
            more = 1 if n + 1 < len(rows) else 0
            self.memory.write(
                descriptors + 16 * (head + n), struct.pack("<QIHH", pa, length, flags | more, head + n + 1)
            )
        self.memory.write(available + 4 + 2 * (self.avail[queue] % NUM), struct.pack("<H", head))
        self.avail[queue] = self.avail[queue] + 1 & 0xFFFF
        self.memory.write(available + 2, struct.pack("<H", self.avail[queue]))

    def notify(self, queue: int) -> None:
        self.put(mmio.QUEUE_NOTIFY, queue)

    def used(self, queue: int) -> list[tuple[int, int]]:
        """Buffers that came back since this was asked last: (head, length)."""
        ring, found = RINGS[queue][2], []
        while struct.unpack("<H", self.memory.read(ring + 2, 2))[0] != self.seen[queue]:
            found.append(struct.unpack("<II", self.memory.read(ring + 4 + 8 * (self.seen[queue] % NUM), 8)))
            self.seen[queue] = self.seen[queue] + 1 & 0xFFFF
        return found

    def run(self) -> None:
        while self.clock.jump():
            self.clock.fire()

    @property
    def needs_reset(self) -> bool:
        return bool(self.device.read(mmio.STATUS, 4) & mmio.NEEDS_RESET)


def cut(rng: random.Random, length: int, at: int, most: int = 4) -> list[tuple[int, int]]:
    """`length` bytes as pieces of memory with gaps between them."""
    edges = sorted(rng.randrange(length + 1) for _ in range(rng.randrange(most)))
    pieces, start = [], 0
    for edge in [*edges, length]:
        pieces.append((at, edge - start))
        at, start = at + edge - start + 3, edge
    return pieces


def test_device_tells_of_itself() -> None:
    driver = Driver()
    config = bytes(driver.device.read(mmio.CONFIG + n, 1) for n in range(12))
    assert config[:6] == Cable.mac
    assert struct.unpack("<HHH", config[6:]) == (1, 1, 1500)
    assert driver.device.read(mmio.DEVICE_ID, 4) == 1
    driver.put(mmio.QUEUE_SEL, 2)
    assert driver.device.read(mmio.QUEUE_NUM_MAX_REGISTER, 4) == 0


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30), st.booleans())
def test_frames_arrive_as_they_were_sent(seed: int, events: bool) -> None:
    """Both ways, in order, however the driver cuts its buffers; a buffer says how much of it was stored."""
    rng = random.Random(seed)
    driver = Driver(FEATURES if events else FEATURES & ~(1 << 29))
    sent = []
    for n in range(rng.randrange(1, 30)):
        frame = rng.randbytes(rng.choice((FRAME_LEAST, FRAME_MOST, rng.randrange(FRAME_LEAST, FRAME_MOST + 1))))
        sent.append(frame)
        rows = cut(rng, HEADER + len(frame), DATA)
        data, done = bytes(HEADER) + frame, 0
        for pa, length in rows:
            driver.memory.write(pa, data[done : done + length])
            done += length
        driver.offer(TRANSMIT, 0, rows, 0)
        driver.notify(TRANSMIT)
        driver.run()
        assert driver.used(TRANSMIT) == [(0, 0)]
        rows = cut(rng, HEADER + FRAME_MOST, DATA)
        first = rng.random() < 0.5
        if first:
            driver.offer(RECEIVE, 0, rows, WRITE)
        driver.device.receive(frame)
        if not first:
            assert driver.used(RECEIVE) == []
            driver.offer(RECEIVE, 0, rows, WRITE)
            driver.notify(RECEIVE)
        assert driver.used(RECEIVE) == [(0, HEADER + len(frame))], n
        stored = b"".join(driver.memory.read(pa, length) for pa, length in rows)
        assert stored[:HEADER] == bytes(10) + b"\1\0" and stored[HEADER : HEADER + len(frame)] == frame
    assert driver.cable.sent == sent and not driver.device.dropped
    assert driver.wire.level


def test_frames_leave_at_a_time_of_the_guests() -> None:
    """And an event sends a bounded number of them."""
    driver = Driver()
    driver.memory.write(DATA, bytes(HEADER + 60))
    for n in range(NUM - 1):
        driver.offer(TRANSMIT, n, [(DATA, HEADER + 60)], 0)
    driver.notify(TRANSMIT)
    driver.clock.steps += LATENCY_NS - 1
    driver.clock.fire()
    assert not driver.cable.sent
    driver.clock.steps += 1
    driver.clock.fire()
    assert len(driver.cable.sent) == min(NUM - 1, BURST)


def test_what_has_no_room_is_lost() -> None:
    """Frames that are too short or long, that come before the driver is there, or while too many wait; and one whose
    buffer is too small, which comes back empty.
    """
    driver = Driver()
    for length in (0, FRAME_LEAST - 1, FRAME_MOST + 1, 70_000):
        driver.device.receive(bytes(length))
        driver.offer(TRANSMIT, 0, [(DATA, HEADER + length)] if length < 60_000 else [(DATA, 60_000)], 0)
        driver.notify(TRANSMIT)
        driver.run()
    assert driver.device.dropped == 8 and not driver.cable.sent and len(driver.used(TRANSMIT)) == 4
    for n in range(200):
        driver.device.receive(bytes((n,)) * FRAME_MOST)
    assert len(driver.device.waiting) <= WAITING and driver.device.dropped > 8 + 100
    driver.offer(RECEIVE, 0, [(DATA, 100)], WRITE)
    driver.offer(RECEIVE, 1, [(DATA + 0x1000, 2000)], WRITE)
    driver.notify(RECEIVE)
    assert driver.used(RECEIVE) == [(0, 0), (1, HEADER + FRAME_MOST)]
    assert driver.memory.read(DATA + 0x1000 + HEADER, FRAME_MOST) == b"\1" * FRAME_MOST
    driver.put(mmio.STATUS, 0)
    assert not driver.device.waiting
    driver.device.receive(bytes(60))
    assert not driver.device.waiting


def test_state_is_data() -> None:
    """A device with frames that wait is restored from its snapshot."""
    driver, other = Driver(), Driver()
    driver.device.receive(b"\7" * 60)
    other.device.restore(driver.device.snapshot())
    other.offer(RECEIVE, 0, [(DATA, 2000)], WRITE)
    other.notify(RECEIVE)
    assert other.used(RECEIVE) == [(0, HEADER + 60)]


@pytest.mark.parametrize("seed", range(4))
def test_hostile_rings_stop_the_device_at_worst(seed: int) -> None:
    """Random bytes as rings and descriptors, resets in flight, sizes that change: no exception, bounded work, and a
    reset brings the device back.
    """
    rng = random.Random(seed)
    stopped = 0
    for _ in range(60):
        driver = Driver(FEATURES if rng.random() < 0.7 else 1 << 32)
        for _ in range(rng.randrange(1, 25)):
            match rng.randrange(8):
                case 0:
                    at = rng.choice([pa for rings in RINGS for pa in rings] + [TABLE])
                    driver.memory.write(at, rng.randbytes(rng.choice((2, 4, 16, 64))))
                case 1 | 2:
                    places = (DATA, DATA + 0x900, BASE + RAM_BYTES - 10, 0, rng.getrandbits(64), TABLE)
                    lengths = (0, 1, 12, 26, 60, 1526, 4096, 0xFFFF_FFFF)
                    rows = [(rng.choice(places), rng.choice(lengths)) for _ in range(rng.randrange(1, 4))]
                    flags = rng.choice((0, WRITE, INDIRECT, WRITE | INDIRECT))
                    driver.offer(rng.randrange(2), rng.randrange(NUM - 4), rows, flags)
                case 3:
                    driver.device.receive(rng.randbytes(rng.choice((0, 14, 60, FRAME_MOST, 5000))))
                case 4:
                    driver.run()
                case 5 if rng.random() < 0.2:
                    driver.put(mmio.STATUS, 0)
                case 6 if rng.random() < 0.3:
                    driver.put(rng.choice((mmio.QUEUE_NUM, mmio.QUEUE_READY, mmio.QUEUE_SEL)), rng.randrange(200))
                case _:
                    driver.notify(rng.choice((0, 1, 2, 0xFFFF_FFFF)))
        driver.run()
        stopped += driver.needs_reset
        assert len(driver.device.waiting) <= WAITING
        driver.put(mmio.STATUS, 0)
        assert not driver.needs_reset and not driver.clock.jump()
    assert stopped > 5
