"""The virtio 9P transport: messages of a file system's protocol, to a server and back.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5, which gives it the number 9 and no more; its configuration
and its one feature are Linux's, include/uapi/linux/virtio_9p.h, and its buffers net/9p/trans_virtio.c.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from ringfence.machine.device.device import AccessFault, Clock, Line, Memory
from ringfence.machine.device.virtio_mmio import QUEUE_NUM_MAX, Chain, QueueFault, pieces
from ringfence.machine.device.virtio_request import LATENCY_NS, VirtioRequest

F_MOUNT_TAG = 0
HEADER, ANSWER_LEAST = 7, 11
"""Bytes: size[4] type[1] tag[2]; the shortest room that every error fits in."""
MESSAGE_MAX = (QUEUE_NUM_MAX - 3) * 4096
"""Bytes of a message that are taken: one event's work is bounded by this. Linux has a page in each descriptor."""
TAG_MAX = 255
"""Bytes of a tag."""


class Session(Protocol):
    """What answers a driver."""

    def answer(self, request: bytes, room: int) -> bytes:
        """The answer, of `room` bytes at most and HEADER at least, to a message, of HEADER bytes at least."""

    def reset(self) -> None:
        """Forgets what the driver has."""


class Share(Protocol):
    """A file system that machines are given; each has a session of its own."""

    tag: bytes
    """What the guest finds it by: 1 to TAG_MAX bytes."""

    def session(self) -> Session:
        """Something to answer another driver."""


class Virtio9p(VirtioRequest):
    """A device that gives one message at a time to its share, each `latency_ns` of guest time after the last.

    What the session holds of the host is no state of the device's, as the network behind a link is none. A buffer with
    no header, no room for an answer or a part outside RAM stops the device.
    """

    ID: ClassVar[int] = 9

    def __init__(self, clock: Clock, line: Line, memory: Memory, share: Share, latency_ns: int = LATENCY_NS) -> None:
        self.share, self.session = share, share.session()
        super().__init__(clock, line, memory, 1 << F_MOUNT_TAG, latency_ns)

    def config(self) -> bytes:
        return len(self.share.tag).to_bytes(2, "little") + self.share.tag

    def reset(self) -> None:
        super().reset()
        self.session.reset()

    def serve(self, chain: Chain) -> int:
        room = sum(length for _, length in chain.writable)
        if room < ANSWER_LEAST or sum(length for _, length in chain.readable) < HEADER:
            raise QueueFault("message without header or without room for an answer")
        try:
            size = int.from_bytes(self._take(chain, 4), "little")
            answer = self.session.answer(self._take(chain, min(max(size, HEADER), MESSAGE_MAX)), room)
            done = 0
            for pa, length in pieces(chain.writable, 0, len(answer)):
                self.memory.write(pa, answer[done : done + length])
                done += length
        except AccessFault as fault:
            raise QueueFault("message outside RAM") from fault
        return done

    def _take(self, chain: Chain, length: int) -> bytes:
        """At most so many bytes from the front of a message."""
        return b"".join(self.memory.read(pa, size) for pa, size in pieces(chain.readable, 0, length))
