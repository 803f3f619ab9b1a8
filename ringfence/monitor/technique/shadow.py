"""Shadow page tables: f ∘ φ in the tables that the host machine walks (VM/370; Agesen and Adams 2006).

A shadow table stands for one table of the guest's as one mode of the guest's sees it, so processes that share a table
share its shadow, and it is kept while `satp` changes. Entry n of a shadow follows from entry n of the guest's table: a
write to that drops what followed from those bytes. Native code sees to it, under a write that the guest does directly;
where the host's engine is not native, a table with a shadow cannot be written directly. Where the guest maps a large
page, or does not translate at all, the shadows beneath stand for no table.

Whatever is read or written here may ask a monitor for a frame, which may be taken from the guest, from its tables, or,
by a monitor further down, from the shadows: `machine.memory.Derived.moves` tells. A table that is no more stays empty
until its own monitor gives its frame to somebody, which no access to memory makes it do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ringfence.isa.paging import ACCESSED, DIRTY, R, V, W, X
from ringfence.machine.memory import FRAME, WRITE, Ram

if TYPE_CHECKING:
    from ringfence.monitor.technique.translation import CodeCache

RIGHTS = R | W | X
SUPERPAGE = 512 * FRAME
DEEPEST = 6
"""The most tables that one page needs."""
_LEAF = V | ACCESSED | DIRTY


class Key(NamedTuple):
    """What a shadow table stands for. `at`: the offset in the guest's memory of its table, or, where there is none, of
    the first byte that is mapped, with `rights` in every page.
    """

    at: int
    level: int
    mode: int
    rights: int | None


class Table:
    """A shadow table in the host's memory, at offset `place`."""

    __slots__ = ("children", "key", "leaves", "lives", "parents", "place")

    def __init__(self, key: Key, place: int) -> None:
        self.key, self.place = key, place
        self.lives = True
        self.leaves: dict[int, int] = {}
        """entry: the offset in the guest's memory of the page that it maps"""
        self.children: dict[int, Table] = {}
        self.parents: set[tuple[Table, int]] = set()


class Shadows:
    """The shadow tables of one virtual machine, in frames of `host`, which `frame` gives and `give_back` takes. There
    are at most `most`.
    """

    def __init__(
        self, guest: Ram, host: Ram, frame: Callable[[], int], give_back: Callable[[int], None], most: int
    ) -> None:
        self.guest, self.host, self.frame, self.give_back, self._most = guest, host, frame, give_back, most
        self.followed = False
        """Whether what is written to a frame that has shadows is seen to by the machine."""
        self._places: dict[int, int] = {}
        """Of frames that have shadows: the bare machine's."""
        self._tables: dict[Key, Table] = {}
        self.traced: dict[int, list[Table]] = {}
        """The frames (by offset) of the guest's memory that have shadows."""
        self._mapped: dict[int, set[tuple[Table, int]]] = defaultdict(set)
        """The entries that map a page (by offset), of any size."""
        self._regions: Counter[int] = Counter()
        self.code: CodeCache | None = None
        """The translations that entries map."""
        self.on_free: Callable[[], None] = lambda: None
        """Called when a table is no more."""

    def table(self, key: Key) -> Table:
        """The shadow table, made where there is none; it may be no more already. Raises OutOfMemory."""
        found = self._tables.get(key)
        if found is None:
            if key.rights is None:
                self.guest.place(key.at, WRITE)  # a frame of its own: shadows follow it by its place
            place = self.frame()
            found = self._tables[key] = Table(key, place)
            if key.rights is None:
                if key.at not in self.traced:
                    self.traced[key.at] = []
                    self._regions[key.at & -SUPERPAGE] += 1
                self.traced[key.at].append(found)
                self._watch(key.at)
        return found

    def another(self, guest: Ram) -> Shadows:
        """For one machine more, on the same host."""
        return Shadows(guest, self.host, self.frame, self.give_back, self._most)

    def _watch(self, at: int) -> None:
        """The machine sees to it that shadows follow the frame; else it is not to be written directly."""
        derived = self.host.derived
        before = derived.moves
        frame = self.guest.place(at) // FRAME
        shadows = [self.host.place(table.place) // FRAME for table in self.traced.get(at, ())]
        if derived.moves != before:  # these are not the places any more
            self.untrace(at)
            return
        self._places[at] = frame
        self.followed = derived.shadow(frame, self, shadows, lambda: self.untrace(at))
        if not self.followed:
            self.unmap(at)

    def moved(self, at: int, length: int) -> None:
        """Frames of the host's memory are about to lie elsewhere."""
        if any(at <= table.place < at + length for table in self._tables.values()):
            self.drop()

    def tables(self) -> Iterator[int]:
        """The offsets in the host's memory of all tables."""
        return (table.place for table in self._tables.values())

    @property
    def full(self) -> bool:
        """There may be too many before one more page is mapped."""
        return len(self._tables) + DEEPEST > self._most

    def whole(self, at: int) -> bool:
        """Whether the superpage at an offset of the guest's memory can be written directly."""
        return self.followed or not self._regions[at & -SUPERPAGE]

    def roots(self, at: int, level: int) -> list[Table]:
        """The shadows, one a mode, of the guest's table at an offset, which is the first of its walks."""
        return [table for key, table in self._tables.items() if (key.at, key.level) == (at, level)]

    def trail(self, table: Table, va: int) -> list[tuple[Table, int]]:
        """The entries (a table and a number in it) that map `va`, from this table on; none where it is not mapped."""
        found = []
        while True:
            n = va >> 12 + 9 * table.key.level & 511
            found.append((table, n))
            if n not in table.children:
                return found if n in table.leaves else []
            table = table.children[n]

    def link(self, table: Table, n: int, child: Table) -> None:
        """Entry `n` leads to `child`, where both are still there."""
        if table.children.get(n) is not child:
            self.clear(table, n)
            if not (table.lives and child.lives):
                return
            table.children[n] = child
            child.parents.add((table, n))
        entry = (self.host.base + child.place) // FRAME << 10 | V
        if self.host.peek(table.place + 8 * n, 8) != entry.to_bytes(8, "little"):
            self._write(table, n, entry)
            if n not in table.children:  # cleared while a frame for the entry was sought
                self._write(table, n, 0)

    def map(self, table: Table, n: int, at: int, to: int, rights: int) -> None:
        """Entry `n`, if the table is still there, maps the page at offset `at` of the guest's memory, which is at
        offset `to` of the host's. `rights`: U among them.
        """
        if n in table.children or table.leaves.get(n, at) != at:
            self.clear(table, n)
        if not table.lives:
            return
        table.leaves[n] = at
        self._mapped[at].add((table, n))
        entry = (self.host.base + to) // FRAME << 10 | _LEAF | rights
        self._write(table, n, entry)
        if n not in table.leaves:
            self._write(table, n, 0)
        elif table.key.rights is None:
            derived = self.host.derived
            before = derived.moves
            place, source = self.host.place(table.place + 8 * n), self.guest.place(table.key.at + 8 * n)
            if derived.moves == before:
                derived.filled(place, source, entry)

    def clear(self, table: Table, n: int) -> None:
        """Entry `n` maps nothing."""
        child = table.children.pop(n, None)
        if child is not None:
            child.parents.discard((table, n))
        else:
            at = table.leaves.pop(n, None)
            if at is None:
                return
            self._mapped[at].discard((table, n))
            self.host.derived.cleared(self.host.place(table.place + 8 * n))
        self._write(table, n, 0)

    def forget(self, frames: Sequence[int]) -> None:
        """f has changed for the frames at these offsets."""
        for at in frames:
            self.untrace(at)
            self.unmap(at)
            if self.code is not None:
                self.code.forget(at)

    def unmap(self, at: int) -> None:
        """No entry maps the frame at an offset of the guest's memory any more."""
        for first in {at, at & -SUPERPAGE}:
            for table, n in list(self._mapped.get(first, ())):
                if first == at or table.key.level:
                    self.clear(table, n)

    def written(self, at: int, length: int) -> None:
        """Bytes of the guest's memory, all in one frame that has shadows, have changed."""
        for table in list(self.traced.get(at & -FRAME, ())):
            for n in range((at & FRAME - 1) >> 3, ((at & FRAME - 1) + length - 1 >> 3) + 1):
                self.clear(table, n)

    def untrace(self, frame: int) -> None:
        """The frame is no table of the guest's any more."""
        tables = self.traced.pop(frame, None)
        if tables is None:
            return
        self._regions[frame & -SUPERPAGE] -= 1
        self._unwatch(frame)
        for table in tables:
            del self._tables[table.key]
        for table in tables:
            for parent, n in list(table.parents):
                self.clear(parent, n)
        self._end(tables)

    def drop(self) -> None:
        """There are no shadow tables."""
        if self.code is not None:
            self.code.drop()
        tables = list(self._tables.values())
        for frame in list(self._places):
            self._unwatch(frame)
        self._tables.clear()
        self.traced.clear()
        self._regions.clear()
        self._end(tables)
        self._mapped.clear()

    def _end(self, tables: list[Table]) -> None:
        """Of tables that nothing leads to."""
        for table in tables:
            table.lives = False
        for table in tables:
            for n in [*table.leaves, *table.children]:
                self.clear(table, n)
            self.give_back(table.place)
        self.on_free()

    def _unwatch(self, frame: int) -> None:
        place = self._places.pop(frame, None)
        if place is not None:
            self.host.derived.shadow(place, self, (), lambda: None)

    def _write(self, table: Table, n: int, entry: int) -> None:
        self.host.write(self.host.base + table.place + 8 * n, entry.to_bytes(8, "little"))
