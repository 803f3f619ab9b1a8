"""The threaded engine: native handlers run the harts; what they leave is the reference's."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ringfence.isa import pmp
from ringfence.machine.engine import code, layout
from ringfence.machine.engine.layout import CODE, TABLE, WATCHED_PAGES, Action, Geometry
from ringfence.machine.hart import FIELDS, Hart
from ringfence.machine.memory import FRAME, Derived

if TYPE_CHECKING:
    from ringfence.machine.machine import Computer

CODE_BYTES = 256 << 20
"""The room for decoded code; when it is full all of it is dropped."""

_INDEX = {name: field.offset >> 3 for name, field in (FIELDS | layout.FIELDS).items()}
_MACHINE = {name: field.offset >> 3 for name, field in layout.MACHINE.items()}
_WATCHED = range(_MACHINE["watched"], _MACHINE["watched"] + WATCHED_PAGES)
_NONE = (1 << 64) - 1
_MIP, _LINES, _MIE = _INDEX["mip"], _INDEX["lines"], _INDEX["mie"]
_LIMIT, _DEADLINE, _KICK, _STEPS = (_INDEX[n] for n in ("limit", "deadline", "kick", "steps"))
_PMP = slice(_INDEX["pmpcfg0"], _INDEX["pmpaddr"] + pmp.ENTRIES)


_PLAIN = bytes(flags for flags in range(256) if not flags & (CODE | TABLE))
_NO_CODE = bytes(flags & ~CODE for flags in range(256))


def _anonymous(size: int) -> mmap.mmap:
    """Zeroes, taken from the host as they are touched."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _host_address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Threaded(Derived):
    """An engine (machine.Engine) for all harts of a computer. `sets`: entries of each TLB of a regime."""

    def __init__(self, computer: Computer, sets: int = 256, code_bytes: int = CODE_BYTES) -> None:
        self._computer = computer
        ram = computer.ram
        functions = code.functions(sets)
        self._enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(functions["enter"])
        self._forget = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)(functions["forget"])
        g = Geometry(sets)
        frames = ram.size // FRAME
        count = len(computer.harts)
        self._blocks = _anonymous(g.stride * count)
        self._arena = _anonymous(code_bytes)
        self._records = _anonymous(frames * 8)
        self._tables = _anonymous(frames * 8)
        self._writes = _anonymous(frames * 2)
        self._machine = _anonymous(4096)
        self._flags = memoryview(ram.flags)
        self._permissions: dict[bytes, mmap.mmap] = {}
        self._protected: list[bytes] = [b""] * count
        arena = _host_address(self._arena)
        machine = self._machine_words = memoryview(self._machine).cast("B").cast("Q")
        for name, value in {
            "ram_host": _host_address(ram.map),
            "ram_base": ram.base,
            "ram_size": ram.size,
            "flags": _host_address(ram.flags),
            "code": _host_address(self._records),
            "tables": _host_address(self._tables),
            "writes": _host_address(self._writes),
            "code_next": arena,
            "code_end": arena + code_bytes,
            "harts": _host_address(self._blocks),
            "hart_count": count,
        }.items():
            machine[_MACHINE[name]] = value
        self._addresses = [_host_address(self._blocks) + g.stride * n for n in range(count)]
        whole = memoryview(self._blocks)
        for hart in computer.harts:
            hart.move(whole[g.stride * hart.number : g.stride * (hart.number + 1)])
            hart.words[_INDEX["machine"]] = _host_address(self._machine)
        ram.derived = self

    # machine.Engine

    def run(self, hart: Hart, deadline: int) -> bool:
        computer = self._computer
        clock, reference = computer.clock, computer.reference
        words, address = hart.words, self._addresses[hart.number]
        virtual = clock.source == "virtual"
        deadline = max(deadline, 0)  # a time that was gone before the idle time was jumped over has a negative step
        self._protect(hart)
        words[_INDEX["clock_host"]] = 0 if virtual else code.clock_gettime()
        words[_INDEX["clock_step_ns"]] = clock.step_ns
        while True:
            words[_INDEX["clock_base_ns"]] = clock.idle_ns if virtual else clock.host_start
            words[_INDEX["clock_offset"]] = computer.aclint.offset
            words[_STEPS] = clock.steps
            words[_LIMIT] = words[_DEADLINE] = deadline
            if words[_KICK] or (words[_MIP] | words[_LINES]) & words[_MIE]:
                words[_LIMIT] = 0
            action = self._enter(address)
            clock.steps = words[_STEPS]
            if action == Action.EMULATE:
                if computer.breakpoints and words[_INDEX["pc"]] in computer.breakpoints:
                    return False
                check = reference.step(hart)
                if computer.wanted:
                    return check
                if check and (
                    clock.steps >= deadline
                    or hart.waiting
                    or hart.stopped
                    or (words[_MIP] | words[_LINES]) & words[_MIE]
                ):
                    return True
                if virtual:
                    deadline = min(deadline, clock.next_step())
                if computer.breakpoints and words[_INDEX["pc"]] in computer.breakpoints:
                    return check
            elif action == Action.FULL:
                self._drop_code()
            elif action == Action.PLAIN:
                self._make_plain(words[_INDEX["cause"]])
            else:
                words[_KICK] = 0
                return True

    def kick(self) -> None:
        for hart in self._computer.harts:
            hart.words[_KICK] = 1
            hart.words[_LIMIT] = 0

    def protection(self, hart: Hart) -> None:
        """What translations were checked against has changed."""
        self._protected[hart.number] = b""
        self._protect(hart)

    def stops(self, breakpoints: Iterable[int], watched: Sequence[int]) -> None:
        """Records at a breakpoint's place in any page are the reference's; pages with watchpoints are in no TLB."""
        places = {va >> 1 & layout.RECORDS - 1 for va in breakpoints}
        bits = sum(1 << place for place in places)
        at = layout.MACHINE["breaks"].offset
        known = slice(at, at + layout.RECORDS // 8)
        marked = bits & ~int.from_bytes(self._machine[known], "little")
        self._machine[known] = bits.to_bytes(layout.RECORDS // 8, "little")
        for n, word in enumerate(_WATCHED):
            self._machine_words[word] = watched[n] if n < len(watched) else _NONE
        self._machine_words[_MACHINE["watching"]] = len(watched)
        self._forget_all_translations()
        if marked:  # where there was a breakpoint no record was kept
            self._drop_code()

    def _protect(self, hart: Hart) -> None:
        """Native code finds the hart's permissions in a byte a frame."""
        key = bytes(hart.words[_PMP])
        if self._protected[hart.number] == key:
            return
        self._protected[hart.number] = key
        permissions = self._permissions.get(key)
        if permissions is None:
            if len(self._permissions) > 4 * len(self._protected):
                self._permissions = {k: v for k, v in self._permissions.items() if k in self._protected}
            permissions = self._permissions[key] = self._derive_permissions(hart)
        hart.words[_INDEX["permissions"]] = _host_address(permissions)
        self._forget_translations(hart)

    def _derive_permissions(self, hart: Hart) -> mmap.mmap:
        """R W X in bits 0 to 2 below M, in 4 to 6 for M; none where a frame's bytes differ, for the reference to
        decide.
        """
        ram = self._computer.ram
        frames = ram.size // FRAME
        permissions = _anonymous(frames)
        permissions[:] = b"\x70" * frames
        for start, end, cfg in reversed(pmp.entries_of(hart.words, _INDEX["pmpcfg0"], _INDEX["pmpaddr"])):
            low = min(max(start - ram.base, 0), ram.size)
            high = min(max(end - ram.base, 0), ram.size)
            if low >= high:
                continue
            first, last = low // FRAME, -(-high // FRAME)
            permissions[first:last] = bytes(last - first)
            first, last = -(-low // FRAME), high // FRAME
            if first < last:
                granted = cfg & 7 | (cfg & 7 if cfg & pmp.L else 7) << 4
                permissions[first:last] = bytes((granted,)) * (last - first)
        return permissions

    # Derived: before memory changes

    def written(self, pa: int, length: int) -> None:
        first = (pa - self._computer.ram.base) // FRAME
        offset = pa - self._computer.ram.base
        last = (offset + length - 1) // FRAME
        if last == first:
            flags = int(self._flags[first])
            if flags & CODE:
                self._forget(self._addresses[0], offset, length)
            if flags & TABLE:
                self._forget_all_translations()
                self._flags[first] = flags & ~TABLE
            return
        derived = bytes(self._flags[first : last + 1])
        if not derived.translate(None, _PLAIN):
            return
        if any(flags & TABLE for flags in derived):
            self._forget_all_translations()
        for frame, flags in enumerate(derived, first):
            if flags & CODE:
                start = max(offset, frame * FRAME)
                end = min(offset + length, (frame + 1) * FRAME)
                self._forget(self._addresses[0], start, end - start)

    def everything(self) -> None:
        self._drop_code()
        self._forget_all_translations()
        self._flags[:] = bytes(len(self._flags))

    # Dropping

    def _forget_translations(self, hart: Hart) -> None:
        """All slots of the hart's TLBs are for no regime."""
        words = hart.words
        words[_INDEX["data_key"]] = words[_INDEX["fetch_key"]] = 0
        for name in ("data_keys", "fetch_keys"):
            for n in range(layout.SLOTS):
                words[_INDEX[name] + n] = 0

    def _forget_all_translations(self) -> None:
        for hart in self._computer.harts:
            self._forget_translations(hart)

    def _drop_code(self) -> None:
        """No code is decoded any more."""
        self._forget_all_translations()
        self._arena.madvise(mmap.MADV_DONTNEED)
        self._records.madvise(mmap.MADV_DONTNEED)
        self._flags[:] = bytes(self._flags).translate(_NO_CODE)
        self._machine_words[_MACHINE["code_next"]] = _host_address(self._arena)

    def _make_plain(self, frame: int) -> None:
        """Nothing is derived from a frame that is written again and again."""
        flags = int(self._flags[frame])
        if flags & CODE:
            self._forget(self._addresses[0], frame * FRAME, FRAME)
        self._forget_all_translations()
        self._flags[frame] = flags & ~(CODE | TABLE)
        self._writes[2 * frame : 2 * frame + 2] = bytes(2)
