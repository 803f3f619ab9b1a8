"""A request of a block device: from what its driver has written, by way of the disk, to what it is told.

A request is taken, when the data of a write is copied out of RAM; carried out, which needs the disk alone; and
completed, when the data of a read is copied into RAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct, error
from typing import Protocol

from ringfence.machine.device.device import AccessFault, Memory
from ringfence.machine.device.virtio_mmio import CHUNK, Chain, QueueFault, pieces

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
SECTOR = 512
HEADER = Struct("<IIQ")
_STATE = Struct("<HBIQQQII")
"""head, result, kind, offset, status_pa, room, pieces of RAM, bytes read."""
_PIECE = Struct("<QQ")


class Disk(Protocol):
    """What a block device's front stands on. Errors of the medium are `OSError`. Its methods are called from any
    thread, one at a time. It may have `read_now` too, as `read` where that does not wait for the medium, and None
    where it would.
    """

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


class Request:
    """A `Task`. With `result` set it is done as it is taken; else it changes or reads so many bytes of the disk at
    `offset`, or the `ranges` (offset, length) of it.
    """

    def __init__(self, head: int, kind: int, offset: int, status_pa: int, room: int) -> None:
        self.head, self.kind, self.offset, self.status_pa, self.room = head, kind, offset, status_pa, room
        self.ram: list[tuple[int, int]] = []
        """(pa, length) of the pieces that the data comes from or goes to."""
        self.length = 0
        """Bytes of the data."""
        self.data: list[bytes] = []
        """What is written, or was read, CHUNK bytes at a time."""
        self.ranges: list[tuple[int, int]] = []
        self.durable = False
        """It is flushed too."""
        self.result = S_OK
        self.done = False
        self.failure: BaseException | None = None
        """What is no error of the medium, for who completes it to raise."""
        self.disk: Disk | None = None
        self.tell: Tell | None = None

    def carry_out(self) -> None:
        try:
            assert self.disk is not None
            self._do(self.disk)
        except OSError:
            self.result, self.data = S_IOERR, []
        except BaseException as failure:
            self.failure = failure
        self.done = True
        if self.tell is not None:
            self.tell()

    def try_now(self) -> bool:
        """Carries it out if it is a small read which waits for no medium; returns whether."""
        read_now = getattr(self.disk, "read_now", None)
        if self.kind != T_IN or not 0 < self.length <= CHUNK or read_now is None:
            return False
        try:
            data: bytes | None = read_now(self.offset, self.length)
        except OSError:
            return False
        if data is not None:
            self.data, self.done = [data], True
        return self.done

    def _do(self, disk: Disk) -> None:
        if self.kind == T_IN:
            self.data = [disk.read(self.offset + at, n) for at, n in _chunks(self.length)]
            return
        if self.kind == T_OUT:
            at = self.offset
            for data in self.data:
                disk.write(at, data)
                at += len(data)
            self.data = []
        for at, length in self.ranges:
            (disk.discard if self.kind == T_DISCARD else disk.zero)(at, length)
        if self.durable:
            disk.flush()

    def fetch(self, memory: Memory) -> None:
        """The data of a write is copied out of RAM. Raises `AccessFault`."""
        if len(self.ram) == 1 and self.length <= CHUNK:
            self.data = [memory.read(*self.ram[0])]
            return
        # In few parts, however many segments the driver has: a copy-on-write disk waits for its medium at each.
        parts: list[bytes] = []
        room = CHUNK
        for pa, length in self.ram:
            while length:
                n = min(length, room)
                parts.append(memory.read(pa, n))
                pa, length, room = pa + n, length - n, room - n
                if not room:
                    self.data.append(b"".join(parts))
                    parts, room = [], CHUNK
        if parts:
            self.data.append(b"".join(parts))

    def store(self, memory: Memory) -> None:
        """What was read is copied into RAM. Raises `AccessFault`."""
        parts = iter(self.data)
        data, done = next(parts), 0
        for pa, length in self.ram:
            while length:
                if done == len(data):
                    data, done = next(parts), 0
                n = min(length, len(data) - done)
                memory.write(pa, data[done : done + n])
                pa, length, done = pa + n, length - n, done + n

    def pack(self) -> bytes:
        """All of it, where it is done."""
        data = b"".join(self.data)
        head = (self.head, self.result, self.kind, self.offset, self.status_pa, self.room, len(self.ram), len(data))
        return _STATE.pack(*head) + b"".join(_PIECE.pack(*piece) for piece in self.ram) + data


class Tell(Protocol):
    """Called from any thread when a request is done."""

    def __call__(self) -> None: ...


def unpack(state: bytes | bytearray) -> Iterator[Request]:
    """The requests that were packed, one behind the other. Raises `ValueError`."""
    at = 0
    while at < len(state):
        try:
            head, result, kind, offset, status_pa, room, count, length = _STATE.unpack_from(state, at)
            at += _STATE.size
            request = Request(head, kind, offset, status_pa, room)
            request.result, request.done = result, True
            request.ram = list(_PIECE.iter_unpack(state[at : at + count * _PIECE.size]))
            at += count * _PIECE.size
        except error as wrong:
            raise ValueError("no requests of a block device") from wrong
        if at + length > len(state) or len(request.ram) != count:
            raise ValueError("requests of a block device end early")
        request.data = [bytes(state[at : at + length])] if length else []
        request.length = sum(n for _, n in request.ram)
        at += length
        yield request


def begin(chain: Chain, memory: Memory) -> Request:
    """The request in a buffer, with nothing of its data. Raises `QueueFault`."""
    room = sum(length for _, length in chain.writable) - 1
    if room < 0 or sum(length for _, length in chain.readable) < HEADER.size:
        raise QueueFault("block request without header or status")
    try:
        if chain.readable[0][1] == HEADER.size:
            header = memory.read(*chain.readable[0])
        else:
            header = b"".join(memory.read(pa, length) for pa, length in pieces(chain.readable, 0, HEADER.size))
    except AccessFault as fault:
        raise QueueFault("block request outside RAM") from fault
    kind, _, sector = HEADER.unpack(header)
    pa, length = chain.writable[-1]
    ((status_pa, _),) = [(pa, 1)] if length == 1 else pieces(chain.writable, room, 1)
    if status_pa >> 64:  # where a piece goes on behind the last address
        raise QueueFault("block request outside RAM")
    return Request(chain.head, kind, sector * SECTOR, status_pa, room)


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts of so many bytes that move at a time."""
    for at in range(0, length, CHUNK):
        yield at, min(CHUNK, length - at)
