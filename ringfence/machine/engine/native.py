"""What native code works with on one bare machine: decoded code, what is derived from each frame, the harts' blocks.

Harts of virtual machines have blocks here too: a virtual machine's code runs as the bare machine's does.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from ringfence.errors import MachineError
from ringfence.machine.engine import code, layout
from ringfence.machine.engine.layout import CODE, DERIVED, SHADOWED, TABLE, WATCHED, WRITABLE, Geometry
from ringfence.machine.hart import FIELDS, Hart
from ringfence.machine.memory import FRAME, Derived, Ram

CODE_BYTES = 256 << 20
"""The room for decoded code; when it is full all of it is dropped."""
HARTS = 1024
"""The most harts of a bare machine and all machines on it."""

INDEX = {name: field.offset >> 3 for name, field in (FIELDS | layout.FIELDS).items()}
MACHINE = {name: field.offset >> 3 for name, field in layout.MACHINE.items()}

_WALKS = slice(INDEX["walks"], INDEX["walks"] + layout.FIELDS["walks"].count)
_NO_WALKS = memoryview(bytes(8 * layout.FIELDS["walks"].count)).cast("Q")
_PLAIN = bytes(flags for flags in range(256) if not flags & DERIVED)
_KEPT = bytes(flags & (SHADOWED | WATCHED) for flags in range(256))
_NO_CODE = bytes(flags & ~CODE for flags in range(256))


def anonymous(size: int) -> mmap.mmap:
    """Zeroes, taken from the host as they are touched."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def host_address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Native(Derived):
    """`sets`: entries of each TLB of a regime."""

    def __init__(self, ram: Ram, sets: int, code_bytes: int) -> None:
        super().__init__()
        functions = code.functions(sets)
        self.enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(functions["enter"])
        self._forget = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)(functions["forget"])
        self.drop_own = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)(functions["drop_own"])
        self._geometry = Geometry(sets)
        frames = ram.size // FRAME
        self._arena = anonymous(code_bytes)
        self._records = anonymous(frames * 8)
        self._tables = anonymous(frames * 8)
        self._writes = anonymous(frames * 2)
        self._shadows = anonymous(frames * 8)
        self._listed = memoryview(self._shadows).cast("B").cast("Q")
        self._lists: dict[int, mmap.mmap] = {}
        """Of frames that have shadows, for native code."""
        self._followers: dict[int, dict[object, tuple[Sequence[int], Callable[[], None]]]] = {}
        """Of the same: by whose they are, the shadows and what makes there be none."""
        self._refills = anonymous(layout.REFILLS * 32)
        self._any_filled = False
        self._filled = memoryview(self._refills).cast("B").cast("Q")
        self._map = ram.map
        self._harts = anonymous(HARTS * 8)
        self._addresses = memoryview(self._harts).cast("B").cast("Q")
        self._blocks: list[memoryview] = []
        """Of harts that run: what is derived is dropped from their TLBs."""
        self._given = 0
        self._first = anonymous(self._geometry.stride)
        self._state = host_address(self._first)
        """A hart's that nobody has, for functions that want one to find the machine by."""
        self.block = anonymous(4096)
        self._flags = memoryview(ram.flags)
        arena = host_address(self._arena)
        self.words = memoryview(self.block).cast("B").cast("Q")
        for name, value in {
            "ram_host": host_address(ram.map),
            "flags": host_address(ram.flags),
            "code": host_address(self._records),
            "tables": host_address(self._tables),
            "shadows": host_address(self._shadows),
            "refills": host_address(self._refills),
            "writes": host_address(self._writes),
            "code_next": arena,
            "code_end": arena + code_bytes,
            "harts": host_address(self._harts),
        }.items():
            self.words[MACHINE[name]] = value
        memoryview(self._first).cast("B").cast("Q")[INDEX["machine"]] = host_address(self.block)
        ram.derived = self

    # Harts

    def add(self, hart: Hart, ram: Ram) -> int:
        """Give a hart, whose memory this is, a block; its address is returned. Raises MachineError."""
        if self._given == HARTS:
            raise MachineError(f"a bare machine and all machines on it have at most {HARTS} harts")
        block = anonymous(self._geometry.stride)
        hart.move(memoryview(block))
        for name, value in {
            "machine": host_address(self.block),
            "ram_base": ram.base,
            "ram_size": ram.size,
            "places": 0 if ram.composed is None else host_address(ram.composed),
            "wholes": 0 if ram.wholes is None else host_address(ram.wholes),
        }.items():
            hart.words[INDEX[name]] = value
        self._given += 1
        return host_address(block)

    def enlist(self, hart: Hart, address: int) -> None:
        """The hart is about to run for the first time: from now on it has translations to drop."""
        self._addresses[len(self._blocks)] = address
        self._blocks.append(hart.words)
        self.words[MACHINE["hart_count"]] = len(self._blocks)

    def remove(self, hart: Hart) -> None:
        """The hart goes on elsewhere, if it does."""
        self._given -= 1
        at = next((n for n, words in enumerate(self._blocks) if words is hart.words), None)
        hart.move(memoryview(bytearray(hart.block)))
        if at is None:  # it never ran
            return
        last = self._blocks.pop()
        self._addresses[at] = self._addresses[len(self._blocks)]
        if at < len(self._blocks):
            self._blocks[at] = last
        self.words[MACHINE["hart_count"]] = len(self._blocks)

    # Derived: before memory changes

    def written(self, place: int, length: int) -> None:
        first = place // FRAME
        last = (place + length - 1) // FRAME
        if last == first:
            flags = int(self._flags[first])
            if flags & WATCHED:
                self.changes(first, first)
            if flags & CODE:
                self._forget(self._state, place, length)
            if flags & SHADOWED:
                self._clear_shadows(first, place, length)
            if flags & TABLE and (length != 8 or place & 7 or self._map[place] & 1):  # no TLB holds what is not valid
                self.forget_all_translations()
                self._flags[first] = int(self._flags[first]) & ~TABLE
            return
        derived = bytes(self._flags[first : last + 1])
        if not derived.translate(None, _PLAIN):
            return
        self.changes(first, last)
        if any(flags & TABLE for flags in derived):
            self.forget_all_translations()
        for frame, flags in enumerate(derived, first):
            start = max(place, frame * FRAME)
            end = min(place + length, (frame + 1) * FRAME)
            if flags & SHADOWED:
                self._clear_shadows(frame, start, end - start)
            if flags & CODE:
                self._forget(self._state, start, end - start)

    def moved(self) -> None:
        super().moved()
        self._forget_filled()
        self.forget_all_translations()

    def everything(self) -> None:
        self._forget_filled()
        self.drop_code()
        self._flags[:] = bytes(self._flags).translate(_KEPT)

    # Watched frames

    def watch(self, frame: int, changes: Callable[[], None]) -> None:
        super().watch(frame, changes)
        self._mark(frame, WATCHED)

    def unwatch(self, frame: int, changes: Callable[[], None]) -> None:
        super().unwatch(frame, changes)
        if frame not in self.watchers:
            self._flags[frame] = int(self._flags[frame]) & ~WATCHED

    def changes(self, first: int, last: int) -> None:
        super().changes(first, last)
        for frame in range(first, last + 1):
            self._flags[frame] = int(self._flags[frame]) & ~WATCHED

    def _mark(self, frame: int, flag: int) -> None:
        """Writes to the frame are seen to from now on."""
        flags = int(self._flags[frame])
        if flags & WRITABLE:
            self.forget_all_translations()
        self._flags[frame] = flags & ~WRITABLE | flag

    # Shadows

    def shadow(self, frame: int, whose: object, shadows: Sequence[int], retire: Callable[[], None]) -> bool:
        followers = self._followers.setdefault(frame, {})
        if shadows:
            followers[whose] = shadows, retire
        else:
            followers.pop(whose, None)
        flags = int(self._flags[frame])
        if not followers:
            del self._followers[frame]
            self._lists.pop(frame, None)
            self._flags[frame] = flags & ~SHADOWED
            self._listed[frame] = 0
            return True
        every = list(self._shadows_of(frame))
        size = 8 * (len(every) + 1)
        listed = self._lists.get(frame)
        if listed is None or len(listed) < size:
            listed = self._lists[frame] = anonymous(2 * size)
        memoryview(listed).cast("B").cast("Q")[: len(every) + 1] = memoryview(array("Q", [len(every), *every]))
        self._listed[frame] = host_address(listed)
        self._mark(frame, SHADOWED)
        return True

    def filled(self, place: int, source: int, entry: int) -> None:
        at = layout.refill_slot(place) >> 3
        was = int.from_bytes(self._map[source : source + 8], "little")
        self._filled[at : at + 4] = memoryview(array("Q", [place, source, was, entry]))
        self._any_filled = True

    def _forget_filled(self) -> None:
        if self._any_filled:
            self._filled[:] = memoryview(bytes(layout.REFILLS * 32)).cast("Q")
            self._any_filled = False

    def cleared(self, place: int) -> None:
        at = layout.refill_slot(place) >> 3
        if self._filled[at] == place:
            self._filled[at] = 0

    def _shadows_of(self, frame: int) -> Iterator[int]:
        return chain.from_iterable(shadows for shadows, _ in self._followers[frame].values())

    def _clear_shadows(self, frame: int, place: int, length: int) -> None:
        """Bytes of a frame that has shadows are about to change."""
        first = place & FRAME - 1 & -8
        length = (place + length - 1 & FRAME - 1 & -8) + 8 - first
        for shadow in self._shadows_of(frame):
            at = shadow * FRAME + first
            self.written(at, length)
            self._map[at : at + length] = bytes(length)

    # Dropping

    def forget_translations(self, words: memoryview) -> None:
        """All slots of a hart's TLBs are for no regime."""
        words[INDEX["data_key"]] = words[INDEX["fetch_key"]] = 0
        for name in ("data_keys", "fetch_keys"):
            for n in range(layout.SLOTS):
                words[INDEX[name] + n] = 0
        words[_WALKS] = _NO_WALKS

    def forget_all_translations(self) -> None:
        for words in self._blocks:
            self.forget_translations(words)

    def drop_code(self) -> None:
        """No code is decoded any more."""
        self.forget_all_translations()
        self._arena.madvise(mmap.MADV_DONTNEED)
        self._records.madvise(mmap.MADV_DONTNEED)
        self._flags[:] = bytes(self._flags).translate(_NO_CODE)
        self.words[MACHINE["code_next"]] = host_address(self._arena)

    def make_plain(self, frame: int) -> None:
        """Nothing is derived from the frame, and no TLB holds it."""
        self.changes(frame, frame)
        for _, retire in list(self._followers.get(frame, {}).values()):
            retire()
        flags = int(self._flags[frame])
        if flags & CODE:
            self._forget(self._state, frame * FRAME, FRAME)
        self.forget_all_translations()
        self._flags[frame] = flags & ~(CODE | TABLE)
        self._writes[2 * frame : 2 * frame + 2] = bytes(2)
