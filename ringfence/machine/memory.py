"""RAM: one memfd per bare machine, so that it can be shared, mapped again and written out."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from weakref import finalize

from ringfence.errors import MachineError
from ringfence.machine.device.device import AccessFault

FRAME = 4096


class Ram:
    """`size` bytes from physical address `base`. `flags` has a byte for each frame: not zero where something was
    derived from it.
    """

    def __init__(self, base: int, size: int) -> None:
        self.base, self.size = base, size
        try:
            self.fd = os.memfd_create("ringfence-ram", os.MFD_CLOEXEC)
            finalize(self, os.close, self.fd)
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
            self.flags = mmap.mmap(-1, max(size // FRAME, 1))
        except (OSError, ValueError, OverflowError) as error:
            raise MachineError(f"cannot get {size >> 20} MiB of memory: {error}") from None
        self.bytes = memoryview(self.map)
        self.derived: Derived | None = None

    def offset(self, pa: int, length: int) -> int:
        """Where `length` bytes at `pa` are. Raises AccessFault unless all of them are RAM."""
        at = pa - self.base
        if at < 0 or at + length > self.size:
            raise AccessFault
        return at

    def read(self, pa: int, length: int) -> bytes:
        at = self.offset(pa, length)
        return self.map[at : at + length]

    def write(self, pa: int, data: bytes | memoryview) -> None:
        at = self.offset(pa, len(data))
        if self.derived is not None:
            self.derived.written(pa, len(data))
        self.bytes[at : at + len(data)] = data

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of each frame that is not all zero."""
        nothing = bytes(FRAME)
        end = 0
        while end < self.size:
            try:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
            except OSError:  # there is none behind `end`
                return
            end = os.lseek(self.fd, start, os.SEEK_HOLE)
            for at in range(start, end, FRAME):
                frame = self.map[at : at + FRAME]
                if frame != nothing:
                    yield at // FRAME, frame

    def clear(self) -> None:
        """All zero again, as at power-on; gives the host its memory back."""
        if self.derived is not None:
            self.derived.everything()
        self.map.madvise(mmap.MADV_REMOVE)


class Derived:
    """What an engine holds that follows from memory's bytes. It is told before they change."""

    def written(self, pa: int, length: int) -> None:
        """`length` bytes at `pa`, all RAM, are about to change."""

    def everything(self) -> None:
        """All of memory is about to change."""
