"""A driver of virtio devices that keeps to the standard, beside one that does not (virtio_fuzz), and its back ends."""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable

from virtio_driver import NEXT, SECTOR, WRITE, Echo, Rows

from ringfence.machine.board import Virt
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.ninep_message import NAMED, NOTAG, encode, message
from ringfence.machine.device.ninep_message import VERSION as PROTOCOL
from ringfence.machine.device.ports import ScriptPort
from ringfence.machine.device.virtio_9p import Virtio9p
from ringfence.machine.device.virtio_blk import S_OK, T_IN, T_OUT
from ringfence.machine.device.virtio_net import FRAME_LEAST, FRAME_MOST
from ringfence.machine.device.virtio_rng import VirtioRng

OWN = 256 << 10
"""Bytes at the front of RAM that this driver has for itself."""
PATIENCE_NS = 10_000_000
"""Guest time by the virtual clock; the host may be busy with something else."""


class Medium:
    """A disk in memory, some of whose sectors are bad."""

    serial = b"medium"

    def __init__(self, size: int, bad: range, readonly: bool = False) -> None:
        self.size, self.bad, self.readonly = size, bad, readonly
        self.data = bytearray(b"\x5a" * size)

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return bytes(self.data[offset : offset + length])

    def read_now(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length) if offset % 3 else None

    def write(self, offset: int, data: bytes) -> None:
        self._check(offset, len(data))
        assert not self.readonly
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self.data[offset : offset + length] = bytes(length)

    def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)

    def flush(self) -> None:
        pass

    def _check(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size
        if offset < self.bad.stop and offset + length > self.bad.start:
            raise OSError("medium")


class Cable:
    """A link whose other end is the test's."""

    def __init__(self, number: int) -> None:
        self.mac = bytes((2, 0, 0, 0, 0, number))
        self.sent: deque[bytes] = deque(maxlen=4)
        self.receive: Callable[[bytes], None] = lambda frame: None

    def connect(self, receive: Callable[[bytes], None]) -> None:
        self.receive = receive

    def send(self, frame: bytes) -> None:
        assert FRAME_LEAST <= len(frame) <= FRAME_MOST
        self.sent.append(frame)


class PoliteDriver:
    """A driver that keeps to the standard, in the front of RAM. Each method takes a device from its reset on."""

    def __init__(self, board: Virt, draw: random.Random, go_on: Callable[[int], None]) -> None:
        """`go_on`: the machine does, for so many ns."""
        self.board, self.draw, self.go_on = board, draw, go_on
        self.places = {id(device): start for start, _, device in board.bus.windows()}
        self.base = board.ram.base
        self.data = self.base + 0x8000

    def disk(self, device: mmio.VirtioMmio, disk: Medium) -> None:
        """What is written is read again."""
        self.start(device, 1)
        sector = self.draw.randrange(1024)
        text = self.draw.randbytes(SECTOR)
        header, status = self.data, self.data + 0x100
        for kind, flags in ((T_OUT, 0), (T_IN, WRITE)):
            self.store(header, struct.pack("<IIQ", kind, 0, sector))
            self.store(self.data + 0x200, text if kind == T_OUT else bytes(SECTOR))
            self.store(status, b"\xff")
            rows = [(header, 16, 0), (self.data + 0x200, SECTOR, flags), (status, 1, WRITE)]
            assert self.ask(device, 0, rows) == (SECTOR + 1 if kind == T_IN else 1)
            assert self.load(status, 1)[0] == S_OK
        assert self.load(self.data + 0x200, SECTOR) == text
        assert disk.data[sector * SECTOR : (sector + 1) * SECTOR] == text

    def net(self, device: mmio.VirtioMmio, cable: Cable) -> None:
        """A frame leaves, and one comes."""
        self.start(device, 2)
        frame = self.draw.randbytes(60)
        self.store(self.data, bytes(12) + frame)
        self.ask(device, 1, [(self.data, 12, 0), (self.data + 12, 60, 0)])
        assert cable.sent[-1] == frame
        self.go_on(1)  # what has come for the driver before this one is lost
        self.offer(device, 0, [(self.data + 0x1000, 2048, WRITE)])
        cable.receive(frame[::-1])
        assert self.used(device, 0) == 72
        assert self.load(self.data + 0x1000 + 12, 60) == frame[::-1]

    def share(self, device: mmio.VirtioMmio) -> None:
        """A session begins, or what there is in place of one answers."""
        self.start(device, 1)
        text = message(NAMED["version"].number, NOTAG, encode(NAMED["version"].request, (8192, PROTOCOL)))
        self.store(self.data, text)
        length = self.ask(device, 0, [(self.data, len(text), 0), (self.data + 0x800, 2048, WRITE)])
        answer = self.load(self.data + 0x800, length)
        assert isinstance(device, Virtio9p)
        if isinstance(device.share, Echo):
            assert answer == text[::-1]
        else:
            assert answer[4] == NAMED["version"].number + 1 and answer.endswith(PROTOCOL)

    def console(self, device: mmio.VirtioMmio, port: ScriptPort) -> None:
        """Bytes go both ways."""
        port.opened = True
        self.go_on(1)
        self.start(device, 2, without=1)
        port.received()
        port.read(1 << 20)
        text = self.draw.randbytes(50)
        self.store(self.data, text)
        self.ask(device, 1, [(self.data, 50, 0)])
        assert port.received() == text
        self.offer(device, 0, [(self.data, 100, WRITE)])
        port.send(text[::-1])
        assert self.used(device, 0) == 50
        assert self.load(self.data, 50) == text[::-1]

    def entropy(self, device: mmio.VirtioMmio) -> None:
        """The bytes that are next."""
        self.start(device, 1)
        assert isinstance(device, VirtioRng)
        position = device.position
        assert self.ask(device, 0, [(self.data, 64, WRITE)]) == 64
        assert device.position == position + 64
        assert self.load(self.data, 64) == device.entropy.read(position, 64)

    def start(self, device: mmio.VirtioMmio, queues: int, without: int | None = None) -> None:
        """From reset to ready; `without` a feature."""
        self.put(device, mmio.STATUS, 0)
        self.put(device, mmio.STATUS, 3)
        features = device.features & ~(0 if without is None else 1 << without)
        for half in (0, 1):
            self.put(device, mmio.DRIVER_FEATURES_SEL, half)
            self.put(device, mmio.DRIVER_FEATURES, features >> 32 * half)
        self.put(device, mmio.STATUS, 11)
        assert self.get(device, mmio.STATUS) == 11
        self.avail = [0] * queues
        for number in range(queues):
            place = self.ring(number)
            self.store(place, bytes(0x1000))
            self.put(device, mmio.QUEUE_SEL, number)
            self.put(device, mmio.QUEUE_NUM, 8)
            for n, low in enumerate((mmio.QUEUE_DESC_LOW, mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DEVICE_LOW)):
                self.put(device, low, place + 0x400 * n)
                self.put(device, low + 4, place + 0x400 * n >> 32)
            self.put(device, mmio.QUEUE_READY, 1)
        self.put(device, mmio.STATUS, 15)

    def ring(self, number: int) -> int:
        return self.base + 0x1000 * (1 + number)

    def ask(self, device: mmio.VirtioMmio, queue: int, rows: Rows) -> int:
        """A buffer there and back: how much of it was written."""
        self.offer(device, queue, rows)
        return self.used(device, queue)

    def offer(self, device: mmio.VirtioMmio, queue: int, rows: Rows) -> None:
        place = self.ring(queue)
        for n, (pa, length, flags) in enumerate(rows):
            more = NEXT if n + 1 < len(rows) else 0
            self.store(place + 16 * n, struct.pack("<QIHH", pa, length, flags | more, n + 1))
        self.store(place + 0x404 + 2 * (self.avail[queue] % 8), bytes(2))
        self.avail[queue] += 1
        self.store(place + 0x402, struct.pack("<H", self.avail[queue]))
        self.put(device, mmio.QUEUE_NOTIFY, queue)

    def used(self, device: mmio.VirtioMmio, queue: int) -> int:
        """How much was written of the buffer that comes back, as it does in a time that no device takes."""
        clock, place = self.board.clock, self.ring(queue) + 0x800
        limit = clock.now() + (PATIENCE_NS if clock.source == "virtual" else 1000 * PATIENCE_NS)
        while self.load(place + 2, 2) != struct.pack("<H", self.avail[queue]):
            assert clock.now() < limit, f"no answer of {type(device).__name__}"
            self.go_on(20_000)
        head, length = struct.unpack("<II", self.load(place + 4 + 8 * ((self.avail[queue] - 1) % 8), 8))
        assert head == 0 and not self.get(device, mmio.STATUS) & mmio.NEEDS_RESET
        return int(length)

    def get(self, device: mmio.VirtioMmio, offset: int) -> int:
        return self.board.bus.read(self.places[id(device)] + offset, 4)

    def put(self, device: mmio.VirtioMmio, offset: int, value: int) -> None:
        self.board.bus.write(self.places[id(device)] + offset, 4, value & 0xFFFF_FFFF)

    def store(self, pa: int, data: bytes) -> None:
        self.board.ram.write(pa, data)

    def load(self, pa: int, length: int) -> bytes:
        return self.board.ram.read(pa, length)
