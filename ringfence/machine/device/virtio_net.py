"""The virtio network device: Ethernet frames to and from a link.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.1. No offloads: a frame is what is on the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import ClassVar, Protocol

from ringfence.machine.device.device import AccessFault, Clock, Field, Line, Memory
from ringfence.machine.device.virtio_mmio import Chain, QueueFault, VirtioMmio, pieces

F_MTU, F_MAC, F_STATUS = 3, 5, 16
S_LINK_UP = 1
RECEIVE, TRANSMIT = 0, 1
"""Queues."""

MTU = 1500
FRAME_LEAST, FRAME_MOST = 14, 14 + MTU
"""Bytes: a header alone, and with the most that it carries; no checksum."""
BURST = 64
"""Frames that one event sends: what it may take is bounded by this."""
WAITING = 64 * FRAME_MOST
"""Bytes of frames that wait for a buffer; what comes then is lost, as on any wire."""
LATENCY_NS = 5_000

_HEADER = Struct("<BBHHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers."""
_CONFIG = Struct("<6sHHH")
_LENGTH = Struct("<H")


class Link(Protocol):
    """What a network device is plugged into."""

    mac: bytes
    """6 bytes: an address for the device, which nothing else on this network has."""

    def connect(self, receive: Callable[[bytes], None]) -> None:
        """From now on each frame for the device is given to `receive`, from any thread."""

    def send(self, frame: bytes) -> None:
        """A frame of the device's, FRAME_LEAST to FRAME_MOST bytes. What cannot be sent is lost."""


class VirtioNet(VirtioMmio):
    """A network interface. Frames leave `latency_ns` of guest time after the driver tells of them; one that comes
    waits, in the state, until the driver gives a buffer.

    A frame of another size than FRAME_LEAST to FRAME_MOST bytes is dropped, and so is one that its buffer has no room
    for; a buffer outside RAM stops the device.
    """

    ID: ClassVar[int] = 1
    QUEUES: ClassVar[int] = 2
    STATE: ClassVar[tuple[Field, ...]] = (
        *VirtioMmio.STATE,
        Field("busy", "bool"),
        Field("waiting", "bytes"),  # of each frame its length, 2 bytes, and itself
        Field("dropped", "u64"),
    )
    busy: bool
    waiting: bytearray
    dropped: int

    def __init__(self, clock: Clock, line: Line, memory: Memory, link: Link, latency_ns: int = LATENCY_NS) -> None:
        self.link, self.latency_ns = link, latency_ns
        super().__init__(clock, line, memory, 1 << F_MTU | 1 << F_MAC | 1 << F_STATUS)

    def config(self) -> bytes:
        return _CONFIG.pack(self.link.mac, S_LINK_UP, 1, MTU)

    def notify(self, queue: int) -> None:
        if queue == RECEIVE:
            self._deliver()
        elif not self.busy:
            self.busy = True
            self.clock.at(self.clock.now() + self.latency_ns, self, "send", queue)

    def event(self, kind: str, number: int) -> None:
        self.busy = False
        if not self.live(number):
            return
        try:
            for _ in range(BURST):
                chain = self.pop(number)
                if chain is None:
                    break
                self._send(chain)
                self.push(number, chain, 0)
            if self.more(number):
                self.notify(number)
        except QueueFault:
            self.fail()

    def reset(self) -> None:
        super().reset()
        self.clock.cancel(self, "send", TRANSMIT)

    def receive(self, frame: bytes) -> None:
        """A frame has come. Called at a check point of the machine's."""
        room = WAITING - len(self.waiting)
        fits = FRAME_LEAST <= len(frame) <= FRAME_MOST and len(frame) + _LENGTH.size <= room
        if not fits or not self.live(RECEIVE):
            self.dropped += 1
            return
        self.waiting += _LENGTH.pack(len(frame)) + frame
        self._deliver()

    def _send(self, chain: Chain) -> None:
        length = sum(length for _, length in chain.readable) - _HEADER.size
        if not FRAME_LEAST <= length <= FRAME_MOST:
            self.dropped += 1
            return
        try:
            parts = pieces(chain.readable, _HEADER.size, length)
            frame = b"".join(self.memory.read(pa, size) for pa, size in parts)
        except AccessFault as fault:
            raise QueueFault("frame outside RAM") from fault
        self.link.send(frame)

    def _deliver(self) -> None:
        """Frames that wait come into the driver's buffers, while there are any of both."""
        try:
            while self.waiting and self.live(RECEIVE):
                chain = self.pop(RECEIVE)
                if chain is None:
                    if not self.more(RECEIVE):
                        return
                    continue
                (length,) = _LENGTH.unpack_from(self.waiting)
                frame = bytes(self.waiting[_LENGTH.size : _LENGTH.size + length])
                del self.waiting[: _LENGTH.size + length]
                self.push(RECEIVE, chain, self._store_frame(chain, frame))
        except QueueFault:
            self.fail()

    def _store_frame(self, chain: Chain, frame: bytes) -> int:
        """How many bytes of the buffer are stored: all of the frame, or none."""
        data = _HEADER.pack(0, 0, 0, 0, 0, 0, 1) + frame
        if sum(length for _, length in chain.writable) < len(data):
            self.dropped += 1
            return 0
        done = 0
        try:
            for pa, length in pieces(chain.writable, 0, len(data)):
                self.memory.write(pa, data[done : done + length])
                done += length
        except AccessFault as fault:
            raise QueueFault("buffer outside RAM") from fault
        return done
