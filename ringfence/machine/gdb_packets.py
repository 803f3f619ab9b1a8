"""gdb's packets as bytes of a connection.

Source: "Debugging with GDB", appendix "Remote Serial Protocol", section "Overview".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

LONGEST = 16384
"""Bytes in a packet."""
_ESCAPED = re.compile(rb"\}(.)", re.DOTALL)
_SPECIAL = re.compile(rb"[}$#*]")
_CHECKSUM = re.compile(rb"[0-9a-fA-F]{2}")


class Signal(Enum):
    """What comes beside packets."""

    INTERRUPT = 1  # Ctrl-C
    DAMAGED = 2  # a packet whose checksum is wrong, or that is too long
    AGAIN = 3  # the other side got a damaged one


def frame(payload: bytes) -> bytes:
    """A packet around `payload`, which is escaped."""
    body = _SPECIAL.sub(lambda m: bytes((0x7D, m[0][0] ^ 0x20)), payload)
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


class Packets:
    """Cuts what a connection brings into packets. Bytes between them that mean nothing are passed over."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | Signal]:
        """The payloads that `data` completes, and signals."""
        buffer = self._buffer
        buffer += data
        while buffer:
            if buffer[0] != 0x24:
                byte = buffer.pop(0)
                if byte == 0x03:
                    yield Signal.INTERRUPT
                elif byte == 0x2D:
                    yield Signal.AGAIN
                continue
            end = buffer.find(b"#", 0, LONGEST + 2)
            if end < 0 and len(buffer) > LONGEST:
                del buffer[:LONGEST]
                yield Signal.DAMAGED
            elif end < 0 or len(buffer) < end + 3:
                return
            else:
                body, checksum = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
                del buffer[: end + 3]
                whole = _CHECKSUM.fullmatch(checksum) and int(checksum, 16) == sum(body) & 0xFF
                yield _ESCAPED.sub(lambda m: bytes((m[1][0] ^ 0x20,)), body) if whole else Signal.DAMAGED
