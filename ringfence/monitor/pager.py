"""Paging to the host's disk: frames that are taken from a machine without its notice, and given back when it asks."""

from __future__ import annotations

import os
import tempfile

from ringfence.errors import OutOfMemory
from ringfence.machine.memory import FRAME

FULL = "memory is used up, and the paging disk is full"


class PagingDisk:
    """Slots of a frame each in a file that has no name. `size`: the most bytes, None: what the host's disk has."""

    def __init__(self, size: int | None = None) -> None:
        self._file = tempfile.TemporaryFile(prefix="ringfence-paging-")  # noqa: SIM115
        self._most = None if size is None else size // FRAME
        self._free: list[int] = []
        self._count = 0

    def write(self, data: bytes) -> int:
        """The slot where the frame is now. Raises OutOfMemory, with nothing written."""
        slot = self._free[-1] if self._free else self._count
        if self._most is not None and slot >= self._most:
            raise OutOfMemory(FULL)
        try:
            if os.pwrite(self._file.fileno(), data, slot * FRAME) != FRAME:
                raise OutOfMemory(FULL)
        except OSError as error:
            raise OutOfMemory(f"memory is used up, and the paging disk cannot be written: {error.strerror}") from None
        if self._free:
            self._free.pop()
        else:
            self._count += 1
        return slot

    def read(self, slot: int) -> bytes:
        return os.pread(self._file.fileno(), FRAME, slot * FRAME)

    def free(self, slot: int) -> None:
        self._free.append(slot)
