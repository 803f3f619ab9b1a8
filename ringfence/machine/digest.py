"""One hash of a machine, which decides equivalence: RAM, the harts as the guest sees them, chips, steps, time and
console.

Where nothing was ever written nothing is read, so that a digest does not make a machine larger.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from ringfence.machine.machine import Computer

_BLOCK = 4096
_U64 = Struct("<Q")


class Transcript:
    """All that was printed, as data of a fixed size: the hash of full blocks, and what is behind them."""

    def __init__(self) -> None:
        self.chain = b""
        self.rest = bytearray()

    def update(self, data: bytes) -> None:
        """The result depends on the bytes alone, not on the pieces in which they came."""
        rest = self.rest
        rest += data
        while len(rest) >= _BLOCK:
            self.chain = blake3(self.chain + rest[:_BLOCK]).digest()
            del rest[:_BLOCK]

    def digest(self) -> bytes:
        return blake3(self.chain + self.rest).digest()


def digest(computer: Computer) -> str:
    """Equal for machines that have come the same way, however they were run."""
    clock = computer.clock
    state = blake3(_U64.pack(clock.steps))
    if clock.source == "virtual":
        state.update(_U64.pack(clock.now()))
    state.update(computer.transcript.digest())
    for hart in computer.harts:
        for _, value in hart.architectural():
            state.update(_U64.pack(value))
    for start, _, device in computer.bus.windows():
        state.update(f"{start:x} {device.snapshot()}\n".encode())
    for number, machine in sorted(computer.launched.items()):
        state.update(f"{number} {machine.digest()}\n".encode())
    for number, frame in computer.ram.frames():
        state.update(_U64.pack(number))
        state.update(frame)
    return state.hexdigest()
