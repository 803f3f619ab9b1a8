"""RAM: one memfd per bare machine, so that it can be shared, mapped again and written out."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from weakref import finalize

from ringfence.errors import OutOfMemory
from ringfence.machine.device.device import AccessFault

FRAME = 4096
READ, WRITE, EXECUTE = 1, 2, 4
"""Rights to a frame."""
BLANK = 8
"""In place of rights: f has no answer for the frame, so it is zeroes, and CBO.ZERO has nothing to do there."""


def amount(size: int) -> str:
    """A number of bytes in the largest unit that leaves it whole: 96 MiB, 2 GiB."""
    for power, unit in ((50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size and size % (1 << power) == 0:
            return f"{size >> power} {unit}"
    return f"{size} bytes"


class Ram:
    """`size` bytes from physical address `base`: the bare machine's.

    A place is an offset in the bare machine's memory, `map`. `flags` has a byte for each of its frames: not zero where
    something was derived from it. A virtual machine's memory is a `Ram` too, with other places (`machine.map`).
    """

    base: int
    size: int
    map: mmap.mmap
    flags: mmap.mmap
    derived: Derived
    machines = 0
    """How many virtual machines on the bare machine were launched by instructions (machine.virtualizer)."""
    composed: mmap.mmap | None = None
    """A virtual machine's: of each frame 8 bytes, its place and the rights to it; 0 where that is not known."""
    wholes: mmap.mmap | None = None
    """The same of each superpage, where its frames follow each other."""

    def __init__(self, base: int, size: int) -> None:
        self.base, self.size = base, size
        try:
            self.fd = os.memfd_create("ringfence-ram", os.MFD_CLOEXEC)
            finalize(self, os.close, self.fd)
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
            self.flags = mmap.mmap(-1, max(size // FRAME, 1))
        except (OSError, ValueError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise OutOfMemory(f"the host does not give {amount(size)} of memory: {why}") from None
        self.derived = Derived()

    def offset(self, pa: int, length: int) -> int:
        """How far behind `base` `length` bytes at `pa` are. Raises AccessFault unless all of them are RAM."""
        at = pa - self.base
        if at < 0 or at + length > self.size:
            raise AccessFault
        return at

    def blank(self, at: int) -> bool:
        """Whether there is no frame at an offset, which so is zeroes; it may be relied on until there is one."""
        return False

    def place(self, at: int, right: int = READ) -> int:
        """The place of offset `at`, which is to be read, written or executed."""
        return at

    def places(self, at: int, length: int, right: int = READ) -> Iterator[tuple[int, int]]:
        """(place, length) of the pieces of `length` bytes at offset `at`."""
        yield at, length

    def peek(self, at: int, length: int, right: int = READ) -> bytes:
        """Bytes at offset `at`, all in one frame."""
        place = self.place(at, right)
        return self.map[place : place + length]

    def look(self, at: int) -> bytes:
        """The frame at offset `at`, wherever it is now; that stays as it is."""
        return os.pread(self.fd, FRAME, at)  # of what nothing was written to the host has no memory, and gives none

    def read(self, pa: int, length: int) -> bytes:
        at = self.offset(pa, length)
        if 0 < length <= FRAME - (at & FRAME - 1):  # as most are
            return self.peek(at, length)
        return b"".join(self.map[place : place + n] for place, n in self.places(at, length))

    def write(self, pa: int, data: bytes | memoryview) -> None:
        done, length = 0, len(data)
        at = self.offset(pa, length)
        if 0 < length <= FRAME - (at & FRAME - 1):
            place = self.place(at, WRITE)
            self.derived.written(place, length)
            self.map[place : place + length] = data
            return
        for place, n in self.places(at, length, WRITE):
            self.derived.written(place, n)
            self.map[place : place + n] = data[done : done + n]
            done += n

    def windows(self, pa: int, length: int) -> Iterator[memoryview]:
        """The pieces of `length` bytes at `pa`, to be written. Nothing may have been derived from them."""
        whole = memoryview(self.map)
        for at, n in self.places(self.offset(pa, length), length, WRITE):
            yield whole[at : at + n]

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

    def zero(self, at: int, length: int) -> None:
        """Whole frames from offset `at` become zeroes, and the host gets their memory back."""
        for place, n in self.places(at, length, WRITE):
            self.derived.written(place, n)
            self.map.madvise(mmap.MADV_REMOVE, place, n)

    def clear(self) -> None:
        """All zero again, as at power-on; gives the host its memory back."""
        self.derived.everything()
        self.map.madvise(mmap.MADV_REMOVE)


class Derived:
    """What an engine holds that follows from memory's bytes. It is told before they change."""

    moves = 0
    """How often frames of any virtual machine were moved."""

    def __init__(self) -> None:
        self.watchers: dict[int, set[Callable[[], None]]] = {}
        """Of frames: what is to be called, once, when their bytes are about to change."""

    def watch(self, frame: int, changes: Callable[[], None]) -> None:
        """Something beside translations follows from a frame's bytes."""
        self.watchers.setdefault(frame, set()).add(changes)

    def unwatch(self, frame: int, changes: Callable[[], None]) -> None:
        """It does no more."""
        watchers = self.watchers.get(frame, set())
        watchers.discard(changes)
        if not watchers:
            self.watchers.pop(frame, None)

    def changes(self, first: int, last: int) -> None:
        """These frames are about to."""
        if self.watchers:
            for frame in [frame for frame in self.watchers if first <= frame <= last]:
                for call in self.watchers.pop(frame, ()):
                    call()

    def written(self, place: int, length: int) -> None:
        """`length` bytes at `place` are about to change."""
        self.changes(place // FRAME, (place + length - 1) // FRAME)

    def moved(self) -> None:
        """Frames of a virtual machine are in other places now."""
        self.moves += 1

    def shadow(self, frame: int, whose: object, shadows: Sequence[int], retire: Callable[[], None]) -> bool:
        """A frame is a table whose entries those of `shadows`, which are frames too, follow from: where it changes they
        become zero. They take the place of the last ones of the same `whose`. `retire` is called where the frame is
        written so much that it seems to be none. False: somebody else has to see to that.
        """
        return False

    def filled(self, place: int, source: int, entry: int) -> None:
        """The entry at a place is one of a shadow and follows from the one at `source`, as that is now: where both are
        cleared and that one is so again, until frames move, this may be too.
        """

    def cleared(self, place: int) -> None:
        """It may not."""

    def everything(self) -> None:
        """All of memory is about to change."""
