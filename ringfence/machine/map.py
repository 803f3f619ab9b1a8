"""f: a virtual machine's memory to its host machine's (Goldberg 1973), and the memory that a virtual machine has by it.

An f is a table in the host machine's own memory, in the format of hgatp's Sv39x4 (privileged manual, "Two-Stage
Address Translation"): 4 KiB and 2 MiB pages, each with its rights. Its monitor writes it; the guest never sees it.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol

from ringfence.errors import WildMap
from ringfence.isa.paging import ACCESSED, DIRTY, PPN, USER, R, V, W, X
from ringfence.machine.memory import BLANK, EXECUTE, FRAME, READ, WRITE, Ram

ALL = READ | WRITE | EXECUTE
SUPERPAGE = 512 * FRAME
ROOT = 4 * FRAME
"""The bytes of a root table, aligned to them."""
_UNKNOWN = memoryview(bytes(8 << 13)).cast("Q")
"""Of frames that are composed no more."""
_LEAF = V | USER | ACCESSED | DIRTY


class Follower(Protocol):
    """What a technique keeps that follows from f, or from the guest's page tables."""

    @property
    def traced(self) -> Collection[int]:
        """The frames (by offset) of the guest's memory of which `written` is told."""
        ...

    def written(self, at: int, length: int) -> None:
        """Bytes in one of them have changed."""
        ...

    def forget(self, frames: Sequence[int]) -> None:
        """f has changed for the frames at these offsets."""
        ...

    def drop(self) -> None:
        """And for all."""
        ...


class Resident(Protocol):
    """What knows where frames of a memory lie that it has tables in."""

    def tables(self) -> Iterator[int]:
        """Their offsets."""
        ...

    def moved(self, at: int, length: int) -> None:
        """Those at an offset lie elsewhere from now on."""
        ...


class F:
    """The map from offsets in a virtual machine's memory to offsets in `host`. Its root table, at first of zeroes, lies
    at offset `root` there.
    """

    def __init__(self, host: Ram, size: int, root: int, table: Callable[[], int], free: Callable[[int], None]) -> None:
        """`size`: of the memory that is mapped. `table` gives the offset of a frame of zeroes in `host`, and `free`
        takes it back.
        """
        self.host, self.size, self.root = host, size, root
        self._table, self._free = table, free

    def seen(self, host: Ram) -> F:
        """The same map, read through another view of the host's memory."""
        return F(host, self.size, self.root, self._table, self._free)

    def _read(self, at: int) -> int:
        return int.from_bytes(self.host.peek(at, 8), "little")

    def _write(self, at: int, entry: int) -> None:
        self.host.write(self.host.base + at, entry.to_bytes(8, "little"))

    def _child(self, at: int) -> int | None:
        """The offset of the table that a table entry leads to."""
        entry = self._read(at)
        if not entry & V or entry & (R | X):
            return None
        return self.inside((entry >> 10 & PPN) * FRAME - self.host.base, FRAME)

    def inside(self, to: int, size: int) -> int:
        """The offset, which is one of the host's memory, whatever the table says. Raises WildMap."""
        if not 0 <= to <= self.host.size - size:
            raise WildMap(f"a map leads to {self.host.base + to:#x}, which is no memory of its machine")
        return to

    def _make_child(self, at: int) -> int:
        child = self._child(at)
        if child is None:
            child = self._table()
            self._write(at, (self.host.base + child) // FRAME << 10 | V)
        return child

    def look(self, at: int) -> tuple[int, int, int] | None:
        """(offset in the host, rights, size) of the page that holds offset `at`; None where f has no answer."""
        middle = self._child(self.root + (at >> 30 << 3))
        if middle is None:
            return None
        slot = middle + (at >> 21 & 511) * 8
        size = SUPERPAGE
        entry = self._read(slot)
        if entry & V and not entry & (R | X):
            lower = self._child(slot)
            assert lower is not None
            entry, size = self._read(lower + (at >> 12 & 511) * 8), FRAME
        if not entry & V:
            return None
        return *self._meaning(entry), size

    def vacant(self, at: int) -> bool:
        """Whether f has no answer for any frame of the superpage that holds offset `at`."""
        middle = self._child(self.root + (at >> 30 << 3))
        return middle is None or not self._read(middle + (at >> 21 & 511) * 8) & V

    def set(self, at: int, to: int, rights: int = ALL, size: int = FRAME) -> None:
        """Map the page of `size` (FRAME or SUPERPAGE) at offset `at` to offset `to` of the host; a superpage of which a
        frame is set is split.
        """
        flags = _LEAF | (R if rights & READ else 0) | (W if rights & WRITE else 0) | (X if rights & EXECUTE else 0)
        entry = (self.host.base + to) // FRAME << 10 | flags
        middle = self._make_child(self.root + (at >> 30 << 3))
        slot = middle + (at >> 21 & 511) * 8
        if size == SUPERPAGE:
            lower = self._child(slot)
            self._write(slot, entry)
            if lower is not None:
                self._free(lower)
        else:
            self._write(self._split(slot) + (at >> 12 & 511) * 8, entry)

    def clear(self, at: int) -> None:
        """f has no answer any more for the frame at offset `at`."""
        if self.look(at) is not None:
            middle = self._child(self.root + (at >> 30 << 3))
            assert middle is not None
            self._write(self._split(middle + (at >> 21 & 511) * 8) + (at >> 12 & 511) * 8, 0)

    def _split(self, slot: int) -> int:
        """The table of frames under an entry, made of the superpage that is there."""
        entry = self._read(slot)
        if not entry & V or not entry & (R | X):
            return self._make_child(slot)
        lower = self._table()
        entries = array("Q", (entry + (n << 10) for n in range(512)))
        self.host.write(self.host.base + lower, entries.tobytes())
        self._write(slot, (self.host.base + lower) // FRAME << 10 | V)
        return lower

    def pages(self) -> Iterator[tuple[int, int, int, int]]:
        """(offset, offset in the host, rights, size) of every page for which there is an answer, by offset. Takes no
        memory.
        """
        for at, table in zip(range(0, self.size, 1 << 30), self._entries(self.root), strict=False):
            if not table & V or table & (R | X):
                continue
            entries = self._entries((table >> 10 & PPN) * FRAME - self.host.base)
            for first, entry in zip(range(at, self.size, SUPERPAGE), entries, strict=False):
                if entry & (R | X):
                    yield first, *self._meaning(entry), SUPERPAGE
                elif entry & V:
                    leaves = self._entries((entry >> 10 & PPN) * FRAME - self.host.base)
                    for frame, leaf in zip(range(first, self.size, FRAME), leaves, strict=False):
                        if leaf & V:
                            yield frame, *self._meaning(leaf), FRAME

    def find(self, at: int) -> int | None:
        """The offset in the host of the frame at offset `at`, as `look` says. Takes no memory."""
        table, slot, inside = self.root, at >> 30, (1 << 30) - 1
        while True:
            entry = self._entries(table + (slot * 8 & -FRAME))[slot & 511]
            to = (entry >> 10 & PPN) * FRAME - self.host.base
            if not entry & V or (table == self.root and entry & (R | X)):
                return None
            if entry & (R | X):
                return to + (at & inside)
            if inside < FRAME:  # no leaf at the last level
                return None
            table, slot, inside = to, (at & inside) * 512 // (inside + 1), inside >> 9

    def _entries(self, table: int) -> array[int]:
        return array("Q", self.host.look(table))

    def _meaning(self, entry: int) -> tuple[int, int]:
        """(offset in the host, rights) of a leaf."""
        rights = (READ if entry & R else 0) | (WRITE if entry & W else 0) | (EXECUTE if entry & X else 0)
        return (entry >> 10 & PPN) * FRAME - self.host.base, rights

    def empty(self) -> None:
        """f has no answer for anything; its tables but for the root are given back."""
        for slot in range(self.root, self.root + ROOT, 8):
            middle = self._child(slot)
            if middle is None:
                continue
            for inner in range(middle, middle + FRAME, 8):
                if (lower := self._child(inner)) is not None:
                    self._free(lower)
            self._free(middle)
            self._write(slot, 0)


def _words(count: int) -> mmap.mmap:
    return mmap.mmap(-1, count * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class GuestRam(Ram):
    """The memory of a virtual machine, under its f and all below: f ∘ f ∘ … is composed page by page as it is used.

    `composed` holds it: for each frame its place in the bare machine's memory and the rights to it, 0 where that is not
    known; `wholes` the same for each superpage whose frames all follow its first. Native code reads them when a TLB
    misses. `fault(offset, right)` is the VM-fault: it gives f an answer. `release` takes all of f's answers back.
    """

    def __init__(
        self, base: int, size: int, f: F, fault: Callable[[int, int], None], release: Callable[[], None]
    ) -> None:
        self.base, self.size, self.f = base, size, f
        self.host = host = f.host
        self.fd, self.map, self.flags, self.derived = host.fd, host.map, host.flags, host.derived
        self.composed, self.wholes = _words(size // FRAME), _words(-(-size // SUPERPAGE))
        self._places, self._wholes = (memoryview(m).cast("B").cast("Q") for m in (self.composed, self.wholes))
        self._fault, self._release = fault, release
        self._blanks = False
        """Some frames were told to be blank."""
        self.absent: dict[int, Callable[[], bytes]] = {}
        """Frames (by offset) that f has no answer for, but that are not zero: how to look at their bytes."""
        self.shadows: Follower | None = None
        self.residents: list[Resident] = []
        """What has page tables here, or tables of an f."""
        self.above: list[GuestRam] = []
        """Memory of virtual machines on this one."""
        if isinstance(host, GuestRam):
            host.above.append(self)

    def place(self, at: int, right: int = READ) -> int:
        entry = self._places[at >> 12]
        if not entry & right:
            entry = self._compose(at & -FRAME, right)
        return entry & -FRAME | at & FRAME - 1

    def blank(self, at: int) -> bool:
        at &= -FRAME
        if self._places[at >> 12] or at in self.absent or self.f.look(at) is not None:
            return self._places[at >> 12] == BLANK
        self._places[at >> 12] = BLANK
        self._blanks = True
        return True

    def places(self, at: int, length: int, right: int = READ) -> Iterator[tuple[int, int]]:
        """What one piece asks for may be taken from another that came before: use each before the next."""
        while length:
            place = self.place(at, right)
            n = min(length, FRAME - (at & FRAME - 1))
            wanted = place + n | right  # frames behind it that are known to lie there too
            while n < length and self._places[at + n >> 12] & (-FRAME | right) == wanted:
                more = min(length - n, FRAME)
                n, wanted = n + more, wanted + more
            yield place, n
            at, length = at + n, length - n

    def _compose(self, at: int, right: int) -> int:
        """The entry of the frame at `at`, with the right; a whole superpage of f at once."""
        found = self.f.look(at)
        if found is None or not found[1] & right:
            self._fault(at, right)
            found = self.f.look(at)
            assert found is not None and found[1] & right, f"f has no answer for {at:#x}"
        to, rights, size = found
        host = self.host
        self.f.inside(to, size)
        inside = at & size - 1
        place = host.place(to + inside, right)
        first, count = at - inside >> 12, min(size, self.size - (at - inside)) >> 12
        whole = to | rights
        if isinstance(host, GuestRam):
            composed = array("Q", host._places[to >> 12 : (to >> 12) + count])
            if rights != ALL or host._blanks:
                composed = array("Q", (entry & (-FRAME | rights) for entry in composed))
            whole = host._wholes[to >> 21] & (-FRAME | rights) if to % SUPERPAGE == 0 else 0
        else:
            composed = array("Q", range(whole, whole + count * FRAME, FRAME))
        self._places[first : first + count] = memoryview(composed)
        self._wholes[at >> 21] = whole if size == SUPERPAGE else 0
        return place | rights

    def give(self, at: int, to: int, rights: int = ALL, size: int = FRAME) -> None:
        """Change f's answer, as `F.set` does, before anything here or above relies on it."""
        self.vacate((at, size))
        self.f.set(at, to, rights, size)
        self._forget((at, size))
        self.derived.moved()

    def take(self, at: int) -> None:
        """Take f's answer for a frame back, which has been vacated."""
        self.f.clear(at)
        self.changed([at])

    def changed(self, frames: Iterable[int]) -> None:
        """f's answers for these frames (by offset) have changed."""
        self._forget(*((at, FRAME) for at in frames))
        self.derived.moved()

    def pinned(self) -> set[int]:
        """The frames (by offset) that page tables with shadows, or shadows, of this machine or one on it lie in."""
        found = {at for resident in self.residents for at in resident.tables()}
        if self.shadows is not None:
            found.update(self.shadows.traced)
        for memory in self.above:
            found.update(to & -FRAME for at in memory.pinned() if (to := memory.f.find(at)) is not None)
        return found

    def _forget(self, *changed: tuple[int, int]) -> None:
        """f has changed for these (offset, length): what was composed with it is dropped, here and above."""
        for at, length in changed:
            for whole in range(at >> 21, (at + length - 1 >> 21) + 1):
                self._wholes[whole] = 0
            end = at + length >> 12
            for first in range(at >> 12, end, len(_UNKNOWN)):
                self._places[first:end][: len(_UNKNOWN)] = _UNKNOWN[: end - first]
        if self.shadows is not None:
            if sum(length for _, length in changed) > SUPERPAGE:
                self.shadows.drop()
            else:
                self.shadows.forget([frame for at, length in changed for frame in range(at, at + length, FRAME)])
        if changed:
            for memory, lying in self._lying(changed):
                memory._forget(*lying)

    def vacate(self, *frames: tuple[int, int]) -> None:
        """No tables of residents lie in these (offset, length) any more. They are emptied, so while the frames are
        there.
        """
        for at, length in frames:
            for resident in self.residents:
                resident.moved(at, length)
        if frames:
            for memory, lying in self._lying(frames):
                if memory.residents or memory.above:
                    memory.vacate(*lying)

    def _lying(self, there: Sequence[tuple[int, int]]) -> Iterator[tuple[GuestRam, Iterator[tuple[int, int]]]]:
        """Memory of virtual machines on this one, and which (offset, length) of it lie in these."""
        if not self.above:
            return
        frames = bytearray(self.size >> 12)
        for at, length in there:
            frames[at >> 12 : at + length >> 12] = b"\1" * (length >> 12)
        for memory in self.above:
            yield memory, memory.lying(frames)

    def lying(self, frames: bytearray) -> Iterator[tuple[int, int]]:
        """Which (offset, length) lie in frames of the host's memory: those with a byte of 1."""
        return ((at, size) for at, to, _, size in self.f.pages() if 1 in frames[to >> 12 : to + size >> 12])

    def write(self, pa: int, data: bytes | memoryview) -> None:
        super().write(pa, data)
        if self.shadows is not None and self.shadows.traced:
            self._tell(pa - self.base, len(data))

    def zero(self, at: int, length: int) -> None:
        super().zero(at, length)
        if self.shadows is not None:
            self._tell(at, length)

    def windows(self, pa: int, length: int) -> Iterator[memoryview]:
        yield from super().windows(pa, length)
        if self.shadows is not None:
            self._tell(pa - self.base, length)

    def _tell(self, at: int, length: int) -> None:
        """Bytes have changed: the page tables among them have shadows."""
        assert self.shadows is not None
        traced = self.shadows.traced
        while length:
            n = min(length, FRAME - (at & FRAME - 1))
            if at & -FRAME in traced:
                self.shadows.written(at, n)
            at, length = at + n, length - n

    def frames(self) -> Iterator[tuple[int, bytes]]:
        nothing = bytes(FRAME)
        there = {n for at, _, _, size in self.f.pages() for n in range(at, min(at + size, self.size), FRAME)}
        for at in sorted(there | self.absent.keys()):
            if (data := self.look(at)) != nothing:
                yield at >> 12, data

    def look(self, at: int) -> bytes:
        if place := self._places[at >> 12] & -FRAME:
            return os.pread(self.fd, FRAME, place)
        if (absent := self.absent.get(at)) is not None:
            return absent()
        to = self.f.find(at)
        return bytes(FRAME) if to is None else self.host.look(to)

    def leave(self) -> None:
        """This memory is not on its host's any more."""
        if isinstance(self.f.host, GuestRam):
            self.f.host.above.remove(self)

    def recent(self, at: int) -> bool:
        """Whether the frame was used since this was asked last. Native code looks it up again from now on."""
        used = bool(self._places[at >> 12])
        self._places[at >> 12] = self._wholes[at >> 21] = 0
        return used

    def clear(self) -> None:
        self.vacate((0, self.size))
        self._release()
        self._forget((0, self.size))
        self.derived.everything()
