"""What a guest's driver does, for the tests of virtio devices: it puts buffers into queue 0, and takes them out."""

from __future__ import annotations

import struct
from typing import ClassVar

from ringfence.machine.clock import Clock
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.device import AccessFault
from ringfence.machine.device.virtio_9p import ANSWER_LEAST, Virtio9p
from ringfence.machine.device.virtio_9p import HEADER as MESSAGE_HEADER
from ringfence.machine.device.virtio_blk import T_IN, T_OUT, VirtioBlk
from ringfence.machine.device.virtio_rng import Entropy, SeededEntropy, VirtioRng

BASE = 0x8000_0000
RAM_BYTES = 0x4_0000
DESC, AVAIL, USED, TABLE, HEADER, STATUS_BYTE, DATA = (BASE + n * 0x1000 for n in (0, 1, 2, 3, 4, 5, 8))
NEXT, WRITE, INDIRECT = 1, 2, 4
SECTOR = 512
OTHER = 0xFF
ALL_FEATURES = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 9 | 1 << 6 | 1 << 2
Rows = list[tuple[int, int, int]]
"""Descriptors of a chain: (pa, length, flags)."""


class Wire:
    level = False

    def set(self, level: bool) -> None:
        self.level = level


class Memory:
    """RAM that counts how often and how much it is asked for, and remembers where it was written."""

    def __init__(self) -> None:
        self.data = bytearray(RAM_BYTES)
        self.accesses = 0
        self.largest = 0
        self.written: list[tuple[int, int]] = []
        """(pa, length)"""

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
        self.written.append((pa, len(data)))


class Platter:
    serial = b"platter"

    def __init__(self, sectors: int = 300, readonly: bool = False) -> None:
        self.data = bytearray(struct.pack("<Q", 0x0123_4567_89AB_CDEF) * (64 * sectors))
        self.size = len(self.data)
        self.readonly = readonly
        self.broken = False
        self.flushes = 0
        self.discarded: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._check(offset, len(data))
        assert not self.readonly
        self.data[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> None:
        """Leaves something else there, as it may."""
        self.write(offset, b"\xdd" * length)
        self.discarded.append((offset, length))

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        self.flushes += 1

    def _check(self, offset: int, length: int) -> None:
        if self.broken:
            raise OSError("medium")
        assert 0 <= offset <= offset + length <= self.size


class Driver:
    """A driver of any device. A subclass makes the device, and says what a request of it is."""

    FEATURES: ClassVar[int] = 1 << 32 | 1 << 29 | 1 << 28
    device: mmio.VirtioMmio

    def __init__(self, features: int | None = None, num: int = 8) -> None:
        self.clock, self.wire, self.memory = Clock(), Wire(), Memory()
        self.device = self.make()
        self.num = num
        self.start(features)

    def make(self) -> mmio.VirtioMmio:
        raise NotImplementedError

    def plain(self) -> Rows:
        """The descriptors of a request that can be done."""
        raise NotImplementedError

    def start(self, features: int | None = None) -> None:
        features = self.FEATURES if features is None else features
        self.put(mmio.STATUS, 0)
        self.avail = self.seen = 0
        self.memory.data[:] = bytes(RAM_BYTES)
        self.put(mmio.STATUS, 3)
        self.accept(features)
        self.put(mmio.STATUS, 11)
        self.queue()
        self.put(mmio.STATUS, 15)

    def accept(self, features: int) -> None:
        for half in (0, 1):
            self.put(mmio.DRIVER_FEATURES_SEL, half)
            self.put(mmio.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)

    def queue(self) -> None:
        """Sets queue 0 up."""
        self.put(mmio.QUEUE_NUM, self.num)
        for low, pa in (
            (mmio.QUEUE_DESC_LOW, DESC),
            (mmio.QUEUE_DRIVER_LOW, AVAIL),
            (mmio.QUEUE_DEVICE_LOW, USED),
        ):
            self.put(low, pa & 0xFFFF_FFFF)
            self.put(low + 4, pa >> 32)
        self.put(mmio.QUEUE_READY, 1)

    def get(self, offset: int) -> int:
        return self.device.read(offset, 4)

    def put(self, offset: int, value: int) -> None:
        self.device.write(offset, 4, value)

    def store(self, pa: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self.memory.data, pa - BASE, *values)

    def load(self, pa: int, layout: str) -> tuple[int, ...]:
        return struct.unpack_from(layout, self.memory.data, pa - BASE)

    def descriptors(self, table: int, rows: Rows, first: int = 0) -> None:
        """A chain in consecutive descriptors."""
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

    def ask(self, rows: Rows | None = None, indirect: bool = False) -> int:
        """One request from start to end, by default a plain one: its used length."""
        rows = self.plain() if rows is None else rows
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
        return used[1]

    @property
    def needs_reset(self) -> bool:
        return bool(self.get(mmio.STATUS) & mmio.NEEDS_RESET)


class EntropyDriver(Driver):
    """A driver of the entropy device."""

    device: VirtioRng

    def __init__(self, features: int | None = None, num: int = 8, entropy: Entropy | None = None) -> None:
        self.entropy = entropy or SeededEntropy(b"seed")
        super().__init__(features, num)

    def make(self) -> VirtioRng:
        return VirtioRng(self.clock, self.wire, self.memory, self.entropy)

    def plain(self) -> Rows:
        return [(DATA, 40, WRITE), (DATA + 0x100, 24, WRITE)]


class Echo:
    """A share, and its only session: every answer is the message backwards, as much as there is room for."""

    tag = b"/mnt/echo"

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.resets = 0

    def session(self) -> Echo:
        return self

    def answer(self, request: bytes, room: int) -> bytes:
        assert len(request) >= MESSAGE_HEADER and room >= ANSWER_LEAST
        self.messages.append(request)
        return request[::-1][:room]

    def reset(self) -> None:
        self.resets += 1


class ShareDriver(Driver):
    """A driver of the 9P transport."""

    FEATURES = Driver.FEATURES | 1
    device: Virtio9p

    def __init__(self, features: int | None = None, num: int = 8) -> None:
        self.echo = Echo()
        super().__init__(features, num)

    def make(self) -> Virtio9p:
        return Virtio9p(self.clock, self.wire, self.memory, self.echo)

    def plain(self) -> Rows:
        self.memory.data[HEADER - BASE : HEADER - BASE + 30] = (30).to_bytes(4, "little") + bytes(range(26))
        return [(HEADER, 30, 0), (DATA, 64, WRITE)]


class BlockDriver(Driver):
    """A driver of the block device."""

    FEATURES = ALL_FEATURES
    device: VirtioBlk

    def __init__(self, disk: Platter | None = None, features: int = ALL_FEATURES, num: int = 8) -> None:
        self.disk = disk or Platter()
        super().__init__(features, num)

    def make(self) -> VirtioBlk:
        return VirtioBlk(self.clock, self.wire, self.memory, self.disk)

    def plain(self) -> Rows:
        return self.rows(T_IN, 0, [(DATA, SECTOR)])

    def rows(self, kind: int, sector: int, data: list[tuple[int, int]], readable: bool | None = None) -> Rows:
        """The descriptors of a request whose data is at these (pa, length); of a write they are `readable`."""
        self.store(HEADER, "<IIQ", kind, 0, sector)
        self.store(STATUS_BYTE, "<B", OTHER)
        flags = 0 if (kind == T_OUT if readable is None else readable) else WRITE
        return [(HEADER, 16, 0), *((pa, length, flags) for pa, length in data), (STATUS_BYTE, 1, WRITE)]

    def request(self, kind: int, sector: int, data: list[tuple[int, int]], indirect: bool = False) -> tuple[int, int]:
        """One request from start to end: its status and used length."""
        used = self.ask(self.rows(kind, sector, data), indirect)
        return self.load(STATUS_BYTE, "<B")[0], used

    def segments(self, kind: int, ranges: list[tuple[int, int, int]], extra: int = 0) -> int:
        """The status of a discard or a write of zeroes, of (sector, number, flags), `extra` bytes behind them."""
        data = b"".join(struct.pack("<QII", *row) for row in ranges) + bytes(extra)
        self.memory.write(DATA, data)
        self.ask(self.rows(kind, 0, [(DATA, len(data))] if data else [], readable=True))
        return self.load(STATUS_BYTE, "<B")[0]
