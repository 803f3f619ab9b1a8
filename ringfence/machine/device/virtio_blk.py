"""The virtio block device: a disk of 512-byte sectors.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import ClassVar, Protocol

from ringfence.machine.device.device import AccessFault, Clock, Field, Line, Memory
from ringfence.machine.device.virtio_mmio import CHUNK, QUEUE_NUM_MAX, Chain, QueueFault, VirtioMmio, pieces

F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH = 1, 2, 5, 6, 9
T_IN, T_OUT, T_FLUSH, T_GET_ID = 0, 1, 4, 8
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2

SECTOR = 512
SEG_MAX = QUEUE_NUM_MAX - 2
"""Data segments of a request: a chain less header and status."""
SIZE_MAX = 1 << 18
"""Bytes of a segment."""
REQUEST_MAX = SEG_MAX * SIZE_MAX
"""Bytes of a request's data: one event's work is bounded by this."""
LATENCY_NS = 20_000
ID_BYTES = 20

_HEADER = Struct("<IIQ")
_CONFIG = Struct("<QIIHBBI")


class Disk(Protocol):
    """What a block device's front stands on. Errors of the medium are `OSError`."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""

    @property
    def serial(self) -> bytes:
        """The disk's name of at most 20 bytes, as the guest reads it."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, inside the disk."""

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`, inside the disk."""

    def flush(self) -> None:
        """Returns when everything written is on the medium."""


class VirtioBlk(VirtioMmio):
    """A disk that serves one request at a time, each `latency_ns` of guest time after the last.

    A request stays in the driver's queue until its time comes; then its data moves and its buffer is given back, so
    between events nothing is in flight. A request of more than `REQUEST_MAX` bytes, a partial sector, a sector
    behind the end and data outside RAM end in VIRTIO_BLK_S_IOERR; one with no header or no status byte stops the
    device.
    """

    ID: ClassVar[int] = 2
    STATE: ClassVar[tuple[Field, ...]] = (*VirtioMmio.STATE, Field("busy", "bool"))
    busy: bool

    def __init__(self, clock: Clock, line: Line, memory: Memory, disk: Disk, latency_ns: int = LATENCY_NS) -> None:
        self.disk = disk
        self.on_move: Callable[[int, int, int], None] = lambda pa, length, offset: None
        """Called with each piece of RAM that data has come to, or gone from, and where on the disk."""
        self.latency_ns = latency_ns
        features = 1 << F_SIZE_MAX | 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH
        super().__init__(clock, line, memory, features | disk.readonly << F_RO)

    def config(self) -> bytes:
        return _CONFIG.pack(self.disk.size // SECTOR, SIZE_MAX, SEG_MAX, 0, 0, 0, SECTOR)

    def notify(self, queue: int) -> None:
        if not self.busy:
            self.busy = True
            self.clock.at(self.clock.now() + self.latency_ns, self, "complete", queue)

    def event(self, kind: str, number: int) -> None:
        self.busy = False
        if not self.live(number):
            return
        try:
            chain = self.pop(number)
            if chain is not None:
                self.push(number, chain, self._serve(chain))
            if self.more(number):
                self.notify(number)
        except QueueFault:
            self.fail()

    def reset(self) -> None:
        super().reset()
        self.clock.cancel(self, "complete", 0)

    def _serve(self, chain: Chain) -> int:
        """Does one request; returns how many bytes at the front of its writable part are stored."""
        room = sum(length for _, length in chain.writable) - 1
        if room < 0 or sum(length for _, length in chain.readable) < _HEADER.size:
            raise QueueFault("block request without header or status")
        ((status_pa, _),) = pieces(chain.writable, room, 1)
        try:
            front = pieces(chain.readable, 0, _HEADER.size)
            header = b"".join(self.memory.read(pa, length) for pa, length in front)
            kind, _, sector = _HEADER.unpack(header)
            stored, result = self._transfer(chain, kind, sector * SECTOR, room)
            self.memory.write(status_pa, bytes((result,)))
        except AccessFault as fault:
            raise QueueFault("block request outside RAM") from fault
        return stored + 1 if stored == room else stored

    def _transfer(self, chain: Chain, kind: int, offset: int, room: int) -> tuple[int, int]:
        """Moves a request's data; returns the bytes stored in RAM and the status."""
        try:
            if kind == T_IN:
                self._check(offset, room)
                data = pieces(chain.writable, 0, room)
                self._read(offset, data)
                self._moved(offset, data)
                return room, S_OK
            if kind == T_OUT:
                length = sum(length for _, length in chain.readable) - _HEADER.size
                self._check(offset, length)
                if self.disk.readonly:
                    return 0, S_IOERR
                data = pieces(chain.readable, _HEADER.size, length)
                self._write(offset, data)
                self._moved(offset, data)
                if not self.negotiated(F_FLUSH):
                    # A driver that cannot flush relies on every write being durable (section 5.2.6.2).
                    self.disk.flush()
                return 0, S_OK
            if kind == T_FLUSH:
                self.disk.flush()
                return 0, S_OK
            if kind == T_GET_ID:
                name = self.disk.serial[:ID_BYTES].ljust(ID_BYTES, b"\0")[:room]
                done = 0
                for pa, length in pieces(chain.writable, 0, len(name)):
                    self.memory.write(pa, name[done : done + length])
                    done += length
                return done, S_OK
        except (OSError, AccessFault):
            return 0, S_IOERR
        return 0, S_UNSUPP

    def _moved(self, offset: int, data: list[tuple[int, int]]) -> None:
        for pa, length in data:
            self.on_move(pa, length, offset)
            offset += length

    def _check(self, offset: int, length: int) -> None:
        if length % SECTOR or length > REQUEST_MAX or offset + length > self.disk.size // SECTOR * SECTOR:
            raise OSError(f"no {length} bytes at {offset} of the disk")

    def _read(self, offset: int, data: list[tuple[int, int]]) -> None:
        for pa, length in data:
            for done in range(0, length, CHUNK):
                self.memory.write(pa + done, self.disk.read(offset + done, min(CHUNK, length - done)))
            offset += length

    def _write(self, offset: int, data: list[tuple[int, int]]) -> None:
        # In few parts, however many segments the driver has: a copy-on-write disk waits for its medium at each.
        for done in range(0, sum(length for _, length in data), CHUNK):
            segments = pieces(data, done, CHUNK)
            self.disk.write(offset + done, b"".join(self.memory.read(pa, length) for pa, length in segments))
