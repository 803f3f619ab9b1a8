"""The virtio block device: a disk of 512-byte sectors.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from struct import Struct
from typing import ClassVar

from ringfence.machine.device.block_request import (
    HEADER,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    SECTOR,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    Disk,
    Request,
    begin,
    unpack,
)
from ringfence.machine.device.device import AccessFault, Clock, Field, Line, Memory
from ringfence.machine.device.disk_worker import worker_of
from ringfence.machine.device.virtio_mmio import QUEUE_NUM_MAX, Chain, QueueFault, VirtioMmio, pieces
from ringfence.machine.device.virtio_request import LATENCY_NS

F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1, 2, 5, 6, 9, 13, 14

SEG_MAX = QUEUE_NUM_MAX - 2
"""Data segments of a request: a chain less header and status."""
SIZE_MAX = 1 << 18
"""Bytes of a segment."""
REQUEST_MAX = SEG_MAX * SIZE_MAX
"""Bytes of a request's data."""
IN_FLIGHT = 1 << 20
"""Bytes of the requests that are under way, beyond which no more are taken: with the last, `REQUEST_MAX` more."""
DISCARD_SEG, ZEROES_SEG = 16, 1
"""Segments of a discard, and of a write of zeroes; each is so long that all of them have `REQUEST_MAX` bytes."""
ALIGNMENT = 4096 // SECTOR
"""Sectors that are best discarded together."""
UNMAP = 1
"""A flag of a segment."""
ID_BYTES = 20

__all__ = [
    "SECTOR", "S_IOERR", "S_OK", "S_UNSUPP", "T_DISCARD", "T_FLUSH", "T_GET_ID", "T_IN", "T_OUT", "T_WRITE_ZEROES",
    "Disk", "VirtioBlk",
]  # fmt: skip

_SEGMENT = Struct("<QII")
_CONFIG = Struct("<QII4xI8x4xIIIII4x")
"""What is padding here is of features that are not offered, is write_zeroes_may_unmap, or is unused."""
_LIMITS = {
    T_DISCARD: (REQUEST_MAX // DISCARD_SEG // SECTOR, DISCARD_SEG),
    T_WRITE_ZEROES: (REQUEST_MAX // ZEROES_SEG // SECTOR, ZEROES_SEG),
}
"""Sectors of a segment, and segments of a request."""


class VirtioBlk(VirtioMmio):
    """A disk. Requests are taken as the driver tells of them, up to `IN_FLIGHT` bytes; a worker does them one after the
    other while the machine goes on, and they are completed in the same order.

    By the virtual clock each is completed `latency_ns` of guest time after the last, or after it was taken where that
    is later; if the host is slower, it is waited for. With `feed`, which a machine by the host's clock has, each is
    completed when it is done, at the next check point.

    A request of more than `REQUEST_MAX` bytes, a partial sector, a sector behind the end, more or longer segments than
    the configuration allows and data outside RAM end in VIRTIO_BLK_S_IOERR; one with no header or no status byte stops
    the device. What was taken is done on the disk, whatever becomes of the device; a reset waits for that.
    """

    ID: ClassVar[int] = 2
    STATE: ClassVar[tuple[Field, ...]] = (*VirtioMmio.STATE, Field("taken", "bytes"))

    def __init__(
        self,
        clock: Clock,
        line: Line,
        memory: Memory,
        disk: Disk,
        latency_ns: int = LATENCY_NS,
        feed: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.disk, self.latency_ns, self._feed = disk, latency_ns, feed
        self.on_move: Callable[[int, int, int], None] = lambda pa, length, offset: None
        """Called with each piece of RAM that data has come to, or gone from, and where on the disk."""
        self._requests: deque[Request] = deque()
        self._bytes = 0
        self._fed = False
        features = 1 << F_SIZE_MAX | 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH
        features |= 1 << F_RO if disk.readonly else 1 << F_DISCARD | 1 << F_WRITE_ZEROES
        super().__init__(clock, line, memory, features)

    def config(self) -> bytes:
        limits = (0,) * 5 if self.disk.readonly else (*_LIMITS[T_DISCARD], ALIGNMENT, *_LIMITS[T_WRITE_ZEROES])
        return _CONFIG.pack(self.disk.size // SECTOR, SIZE_MAX, SEG_MAX, SECTOR, *limits)

    # What is under way, as state: done, and not completed

    @property
    def taken(self) -> bytearray:
        self.settle()
        return bytearray(b"".join(request.pack() for request in self._requests))

    @taken.setter
    def taken(self, state: bytes) -> None:
        self._forget()
        self._requests.extend(unpack(state))
        self._bytes = sum(request.length for request in self._requests)

    def restore(self, state: Mapping[str, object]) -> None:
        taken = state.get("taken")
        if isinstance(taken, bytes | bytearray):
            list(unpack(taken))
        super().restore(state)
        if self._feed is not None and self._requests:
            self._tell()

    def settle(self) -> None:
        if self._requests:
            worker = worker_of(self.disk)
            if self._feed is not None:  # the machine has been told by then, too
                with worker.alone():
                    return
            for request in self._requests:
                worker.finish(request)

    def _forget(self) -> None:
        """Nothing is under way: RAM and the queue are left alone from now on."""
        self.settle()
        failure = next((request.failure for request in self._requests if request.failure is not None), None)
        self._requests.clear()
        self._bytes = 0
        self.clock.cancel(self, "complete", 0)
        if failure is not None:
            raise failure

    def reset(self) -> None:
        self._forget()
        super().reset()

    def fail(self) -> None:
        self._forget()
        super().fail()

    def _write_queue(self, queue: int, offset: int, value: int) -> None:
        super()._write_queue(queue, offset, value)
        if not self.queue_ready[queue]:
            self._forget()

    # The way of a request

    def notify(self, queue: int) -> None:
        try:
            self._take(told=True)
        except QueueFault:
            self.fail()

    def _take(self, told: bool) -> None:
        """Requests that the driver has made available are under way, as many as may be. `told`: by it."""
        requests, idle = self._requests, not self._requests
        while True:
            if told or requests:
                for _ in range(self.available(0)):
                    if len(requests) == QUEUE_NUM_MAX or self._bytes >= IN_FLIGHT:
                        break
                    self._begin(self.pop_next(0))
            # The driver need not tell of more while a completion is to come, which looks for them.
            if requests or not self.more(0):
                break
            told = True
        if requests and idle:
            self._await()

    def _begin(self, chain: Chain) -> None:
        """A request is under way."""
        request = begin(chain, self.memory)
        try:
            self._prepare(request, chain)
        except (OSError, AccessFault):
            request.result, request.data, request.ranges, request.length = S_IOERR, [], [], 0
            request.ram, request.offset, request.done = [], 0, True
        self._requests.append(request)
        self._bytes += request.length
        if not request.done:
            worker_of(self.disk).give(request, alone=self._feed is not None)

    def _prepare(self, request: Request, chain: Chain) -> None:
        """What the driver wants of the disk. Raises `OSError` where it cannot be, and `AccessFault`."""
        kind, room = request.kind, request.room
        request.disk = self.disk
        if self._feed is not None:
            request.tell = self._tell
        if kind == T_IN:
            self._check(request.offset, room)
            request.length, request.ram = room, pieces(chain.writable, 0, room)
        elif kind == T_OUT:
            length = sum(length for _, length in chain.readable) - HEADER.size
            self._check(request.offset, length)
            self._writable()
            request.length, request.ram = length, pieces(chain.readable, HEADER.size, length)
            request.fetch(self.memory)
            # A driver that cannot flush relies on every write being durable (section 5.2.6.2).
            request.durable = not self.negotiated(F_FLUSH)
        elif (kind == T_DISCARD and self.negotiated(F_DISCARD)) or (
            kind == T_WRITE_ZEROES and self.negotiated(F_WRITE_ZEROES)
        ):
            self._segments(request, chain)
            request.durable = not self.negotiated(F_FLUSH)
        elif kind == T_FLUSH:
            request.durable = True
        elif kind == T_GET_ID:
            name = self.disk.serial[:ID_BYTES].ljust(ID_BYTES, b"\0")[:room]
            request.data, request.ram, request.done = [name], pieces(chain.writable, 0, len(name)), True
        else:
            request.result, request.done = S_UNSUPP, True
        if kind not in (T_IN, T_OUT):
            request.offset = 0

    def _segments(self, request: Request, chain: Chain) -> None:
        """What is to be discarded or zeroed."""
        length = sum(length for _, length in chain.readable) - HEADER.size
        sectors, most = _LIMITS[request.kind]
        if length % _SEGMENT.size or not 0 < length <= most * _SEGMENT.size:
            raise OSError(f"no whole segments, from 1 to {most}, in {length} bytes")
        data = b"".join(self.memory.read(pa, n) for pa, n in pieces(chain.readable, HEADER.size, length))
        segments = list(_SEGMENT.iter_unpack(data))
        if any(flags & ~(UNMAP if request.kind == T_WRITE_ZEROES else 0) for _, _, flags in segments):
            request.result, request.done = S_UNSUPP, True
            return
        self._writable()
        for sector, count, _ in segments:
            if count > sectors or sector + count > self.disk.size // SECTOR:
                raise OSError(f"no {count} sectors at {sector} of the disk")
        request.ranges = [(sector * SECTOR, count * SECTOR) for sector, count, _ in segments]

    def _check(self, offset: int, length: int) -> None:
        if length % SECTOR or length > REQUEST_MAX or offset + length > self.disk.size // SECTOR * SECTOR:
            raise OSError(f"no {length} bytes at {offset} of the disk")

    def _writable(self) -> None:
        if self.disk.readonly:
            raise OSError("write to a disk that is only read")

    def _await(self) -> None:
        """The first request under way is to be completed."""
        if self._feed is None:
            self.clock.at(self.clock.now() + self.latency_ns, self, "complete", 0)
        elif self._requests[0].done:
            self._tell()

    def _tell(self) -> None:
        """A request is done, and the machine goes by the host's clock; from any thread."""
        if not self._fed:
            self._fed = True
            assert self._feed is not None
            self._feed(self._come)

    def _come(self) -> None:
        """What is done is completed, at a check point."""
        self._fed = False
        self._complete(len(self._requests))

    def event(self, kind: str, number: int) -> None:
        if self._requests:
            worker_of(self.disk).finish(self._requests[0])
        self._complete(1)

    def _complete(self, most: int) -> None:
        """So many requests at most, as far as they are done, are given back; and others taken."""
        requests = self._requests
        if not self.live(0):
            self._forget()
            return
        try:
            while most and requests and requests[0].done:
                request = requests.popleft()
                self._bytes -= request.length
                self._give_back(request)
                most -= 1
            waiting = bool(requests)
            self._take(told=False)
        except QueueFault:
            self.fail()
            return
        if waiting:
            self._await()

    def _give_back(self, request: Request) -> None:
        """Its data is in RAM, and the driver can see what has become of it."""
        if request.failure is not None:
            raise request.failure
        stored = 0
        try:
            if request.kind != T_OUT and request.data:
                try:
                    request.store(self.memory)
                    stored = sum(map(len, request.data))
                except AccessFault:
                    request.result = S_IOERR
            if request.kind in (T_IN, T_OUT) and request.result == S_OK:
                offset = request.offset
                for pa, length in request.ram:
                    self.on_move(pa, length, offset)
                    offset += length
            self.memory.write(request.status_pa, bytes((request.result,)))
        except AccessFault as fault:
            raise QueueFault("block request outside RAM") from fault
        self.push_head(0, request.head, stored + 1 if stored == request.room else stored)
