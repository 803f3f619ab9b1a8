"""The virtio entropy device, and what its bytes come from.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.4.
"""

from __future__ import annotations

import os
from hashlib import shake_256
from typing import ClassVar, Protocol

from ringfence.machine.device.device import AccessFault, Clock, Field, Line, Memory
from ringfence.machine.device.virtio_mmio import Chain, QueueFault, pieces
from ringfence.machine.device.virtio_request import LATENCY_NS, VirtioRequest

BUFFER_MAX = 4096
"""Bytes of a buffer that are filled: they cost the host not much more time than the guest waits for them."""
_BLOCK = 1024


class Entropy(Protocol):
    """Where random bytes come from."""

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes, at `position` of the sequence if there is one."""


class SeededEntropy:
    """A sequence that its seed decides: SHAKE256 of a key made of it and the number of each KiB."""

    def __init__(self, seed: bytes) -> None:
        self._key = shake_256(b"ringfence entropy" + seed).digest(64)

    def read(self, position: int, length: int) -> bytes:
        first, inside = divmod(position, _BLOCK)
        numbers = range(first, -(-(position + length) // _BLOCK))
        blocks = b"".join(shake_256(self._key + n.to_bytes(8, "little")).digest(_BLOCK) for n in numbers)
        return blocks[inside : inside + length]


class HostEntropy:
    """The host's, which is another each time."""

    def read(self, position: int, length: int) -> bytes:
        return os.urandom(length)


class VirtioRng(VirtioRequest):
    """A source of random bytes that fills one buffer at a time, each `latency_ns` of guest time after the last.

    A buffer gets `BUFFER_MAX` bytes at most (section 5.4.6.2). One without room, and one outside RAM, stop the device.
    `position` is how many bytes were given since power-on. A reset keeps it: no byte is given twice.
    """

    ID: ClassVar[int] = 4
    STATE: ClassVar[tuple[Field, ...]] = (*VirtioRequest.STATE, Field("position", "u64"))
    position: int

    def __init__(
        self, clock: Clock, line: Line, memory: Memory, entropy: Entropy, latency_ns: int = LATENCY_NS
    ) -> None:
        self.entropy = entropy
        super().__init__(clock, line, memory, 0, latency_ns)

    def reset(self) -> None:
        position = self.position
        super().reset()
        self.position = position

    def serve(self, chain: Chain) -> int:
        length = min(sum(length for _, length in chain.writable), BUFFER_MAX)
        if length == 0:
            raise QueueFault("entropy request without room")
        data = self.entropy.read(self.position, length)
        self.position = self.position + length & 0xFFFF_FFFF_FFFF_FFFF
        done = 0
        try:
            for pa, n in pieces(chain.writable, 0, length):
                self.memory.write(pa, data[done : done + n])
                done += n
        except AccessFault as fault:
            raise QueueFault("entropy request outside RAM") from fault
        return length
