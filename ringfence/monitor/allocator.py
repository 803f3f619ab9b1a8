"""The allocator: which frames of the host machine are whose. A policy, in plain functions over lists."""

from __future__ import annotations

from ringfence.errors import OutOfMemory
from ringfence.machine.map import ROOT, SUPERPAGE
from ringfence.machine.memory import FRAME, Ram


class Allocator:
    """The frames of `host`, in superpages and frames; offsets in it. What held a guest's data is zeroed before another
    gets it.
    """

    def __init__(self, host: Ram) -> None:
        self._host = host
        whole = host.size // SUPERPAGE * SUPERPAGE
        self._superpages = list(range(whole - SUPERPAGE, -1, -SUPERPAGE))
        self._frames = list(range(host.size - FRAME, whole - FRAME, -FRAME))
        self._used: set[int] = set()
        """Free superpages and frames that are not zero any more."""
        self.zeroed = False
        """What was given last had to be zeroed."""

    @property
    def free(self) -> int:
        """Bytes that nobody has."""
        return len(self._superpages) * SUPERPAGE + len(self._frames) * FRAME

    def superpage(self, keep: int = 0) -> int | None:
        """One of zeroes, where `keep` frames are left beside it; None where there is none whole."""
        if not self._superpages or self.free - SUPERPAGE < keep * FRAME:
            return None
        return self._zero(self._superpages.pop(), SUPERPAGE)

    def frame(self, keep: int = 0) -> int:
        """One of zeroes, where `keep` frames are left beside it. Raises OutOfMemory."""
        if self.free < (keep + 1) * FRAME:
            raise OutOfMemory("the host machine's memory is used up")
        if not self._frames:
            first = self._superpages.pop()
            frames = range(first + SUPERPAGE - FRAME, first - FRAME, -FRAME)
            self._frames.extend(frames)
            if first in self._used:
                self._used.update(frames)
        return self._zero(self._frames.pop(), FRAME)

    def root(self) -> int:
        """ROOT bytes of zeroes, aligned to as much. Raises OutOfMemory."""
        count = ROOT // FRAME
        for _ in range(2):
            free = set(self._frames)
            for at in self._frames:
                wanted = range(at, at + ROOT, FRAME)
                if at % ROOT == 0 and free.issuperset(wanted):
                    self._frames = [frame for frame in self._frames if frame not in wanted]
                    for frame in wanted:
                        self._zero(frame, FRAME)
                    return at
            self._frames.append(self.frame())  # of a superpage that is split for it
        raise OutOfMemory(f"the host machine has no {count} frames of memory side by side")

    def give_back(self, at: int, size: int) -> None:
        """A superpage or frame is nobody's any more."""
        (self._superpages if size == SUPERPAGE else self._frames).append(at)
        self._used.add(at)

    def give_back_root(self, at: int) -> None:
        for frame in range(at, at + ROOT, FRAME):
            self.give_back(frame, FRAME)

    def _zero(self, at: int, size: int) -> int:
        self.zeroed = at in self._used
        if self.zeroed:
            self._used.discard(at)
            self._host.zero(at, size)
        return at
