"""The virtio block device: a disk of 512-byte sectors.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import ClassVar, Protocol

from ringfence.machine.device.device import AccessFault, Clock, Line, Memory
from ringfence.machine.device.virtio_mmio import CHUNK, QUEUE_NUM_MAX, Chain, QueueFault, pieces
from ringfence.machine.device.virtio_request import LATENCY_NS, VirtioRequest

F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1, 2, 5, 6, 9, 13, 14
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2

SECTOR = 512
SEG_MAX = QUEUE_NUM_MAX - 2
"""Data segments of a request: a chain less header and status."""
SIZE_MAX = 1 << 18
"""Bytes of a segment."""
REQUEST_MAX = SEG_MAX * SIZE_MAX
"""Bytes of a request's data: one event's work is bounded by this."""
DISCARD_SEG, ZEROES_SEG = 16, 1
"""Segments of a discard, and of a write of zeroes; each is so long that all of them have `REQUEST_MAX` bytes."""
ALIGNMENT = 4096 // SECTOR
"""Sectors that are best discarded together."""
UNMAP = 1
"""A flag of a segment."""
ID_BYTES = 20

_HEADER = Struct("<IIQ")
_SEGMENT = Struct("<QII")
_CONFIG = Struct("<QII4xI8x4xIIIII4x")
"""What is padding here is of features that are not offered, is write_zeroes_may_unmap, or is unused."""
_LIMITS = {
    T_DISCARD: (REQUEST_MAX // DISCARD_SEG // SECTOR, DISCARD_SEG),
    T_WRITE_ZEROES: (REQUEST_MAX // ZEROES_SEG // SECTOR, ZEROES_SEG),
}
"""Sectors of a segment, and segments of a request."""


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

    def discard(self, offset: int, length: int) -> None:
        """Nobody needs these bytes inside the disk any more: what is read there is anything. May do nothing."""

    def zero(self, offset: int, length: int) -> None:
        """Stores zeroes at `offset`, inside the disk."""

    def flush(self) -> None:
        """Returns when everything written is on the medium."""


class VirtioBlk(VirtioRequest):
    """A disk that serves one request at a time, each `latency_ns` of guest time after the last.

    A request of more than `REQUEST_MAX` bytes, a partial sector, a sector behind the end, more or longer segments than
    the configuration allows and data outside RAM end in VIRTIO_BLK_S_IOERR; one with no header or no status byte stops
    the device.
    """

    ID: ClassVar[int] = 2

    def __init__(self, clock: Clock, line: Line, memory: Memory, disk: Disk, latency_ns: int = LATENCY_NS) -> None:
        self.disk = disk
        self.on_move: Callable[[int, int, int], None] = lambda pa, length, offset: None
        """Called with each piece of RAM that data has come to, or gone from, and where on the disk."""
        features = 1 << F_SIZE_MAX | 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH
        features |= 1 << F_RO if disk.readonly else 1 << F_DISCARD | 1 << F_WRITE_ZEROES
        super().__init__(clock, line, memory, features, latency_ns)

    def config(self) -> bytes:
        limits = (0,) * 5 if self.disk.readonly else (*_LIMITS[T_DISCARD], ALIGNMENT, *_LIMITS[T_WRITE_ZEROES])
        return _CONFIG.pack(self.disk.size // SECTOR, SIZE_MAX, SEG_MAX, SECTOR, *limits)

    def serve(self, chain: Chain) -> int:
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
                self._written()
                return 0, S_OK
            if (kind == T_DISCARD and self.negotiated(F_DISCARD)) or (
                kind == T_WRITE_ZEROES and self.negotiated(F_WRITE_ZEROES)
            ):
                return 0, self._segments(chain, kind)
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

    def _segments(self, chain: Chain, kind: int) -> int:
        """Discards or zeroes, and returns the status."""
        length = sum(length for _, length in chain.readable) - _HEADER.size
        sectors, most = _LIMITS[kind]
        if length % _SEGMENT.size or not 0 < length <= most * _SEGMENT.size:
            raise OSError(f"no whole segments, from 1 to {most}, in {length} bytes")
        data = b"".join(self.memory.read(pa, n) for pa, n in pieces(chain.readable, _HEADER.size, length))
        segments = list(_SEGMENT.iter_unpack(data))
        if any(flags & ~(UNMAP if kind == T_WRITE_ZEROES else 0) for _, _, flags in segments):
            return S_UNSUPP
        for sector, count, _ in segments:
            if count > sectors or sector + count > self.disk.size // SECTOR:
                raise OSError(f"no {count} sectors at {sector} of the disk")
        for sector, count, _ in segments:
            if kind == T_DISCARD:
                self.disk.discard(sector * SECTOR, count * SECTOR)
            else:
                self.disk.zero(sector * SECTOR, count * SECTOR)
        self._written()
        return S_OK

    def _written(self) -> None:
        if not self.negotiated(F_FLUSH):
            # A driver that cannot flush relies on every write being durable (section 5.2.6.2).
            self.disk.flush()

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
