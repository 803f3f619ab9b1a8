"""What a monitor learns of a machine without its guest's help.

A monitor sees instructions, frames and blocks, and no process, page table or page cache: the semantic gap (Chen and
Noble, "When Virtual Is Better Than Real", HotOS 2001), or information gap (Arpaci-Dusseau and Arpaci-Dusseau,
"Operating Systems: Three Easy Pieces", appendix on virtual machine monitors). What passes through its hands tells some
of it: which address space a hart is in whenever it gets the hart back (Jones et al., "Antfarm", 2006), whose root leads
to all page tables; and which block went through which frame ("Geiger", 2006). docs/information-gap.md says what it
comes to, and what cannot be known.

Who looks stands beside the machine: nothing is paged in, composed or marked for it, and no time passes.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ringfence.isa.paging import (
    ACCESSED,
    DIRTY,
    MODES,
    PAGE_BITS,
    PBMT,
    PPN,
    RESERVED,
    USER,
    R,
    V,
    W,
    X,
)
from ringfence.isa.trap import M, U
from ringfence.machine.device.disk_worker import quiet
from ringfence.machine.device.virtio_blk import VirtioBlk
from ringfence.machine.hart import FIELDS
from ringfence.machine.memory import FRAME, Ram
from ringfence.monitor.technique.trap import Deprivileged

if TYPE_CHECKING:
    from ringfence.monitor.vm import VirtualMachine

SPACES = 256
"""Address spaces that are remembered of a machine; the one that was not seen for longest goes first."""
TABLES = 1 << 15
"""Page tables that are looked for at most."""
_ALL = (1 << 60) - 1
"""Of satp, but for the mode."""
_PC, _PRIV, _SATP = (FIELDS[name].offset >> 3 for name in ("pc", "priv", "satp"))
_TABLE = V | R | W | X | USER | ACCESSED | DIRTY | PBMT | RESERVED
"""What an entry that leads to a table has of these is V alone."""


@dataclass(frozen=True)
class AddressSpace:
    """A process, as far as a monitor can tell: address spaces are told apart by `satp`; its mode is left out where
    software fills the TLB, as the handler of a miss runs untranslated.
    """

    satp: int
    """As it was last."""
    root: int | None
    """The physical address of its root table; None: the hart knows of none."""
    steps: int
    """Of the machine, before the moments at which it was seen: back to those at which anything was."""
    samples: int
    first: int
    last: int
    """The machine's steps then."""
    over: bool
    """Its root is another's now, or does not lead any more to the code that it was last seen to execute: a guess."""

    @property
    def asid(self) -> int:
        return self.satp >> 44 & 0xFFFF


@dataclass(frozen=True)
class Block:
    """`length` bytes at `inside` of a frame are those at `offset` of the disk in slot `disk`."""

    disk: int
    offset: int
    inside: int
    length: int


@dataclass(frozen=True)
class Zeroed:
    """Frames that were made zeroes. `by_guest`: by CBO.ZERO, from their first block on; `by_both`: of them those that
    the monitor had given as zeroes and that were so still, as far as their first block tells; `no_frame`: those for
    which f had no answer, and was not asked for one.
    """

    by_monitor: int
    """To be given: they had held something else."""
    by_guest: int
    by_both: int
    no_frame: int

    def __str__(self) -> str:
        guest = f"{self.by_guest:,} by the guest, {self.by_both:,} of them again, {self.no_frame:,} without a frame"
        return f"{self.by_monitor:,} frames zeroed by the monitor, {guest}"


@dataclass(frozen=True)
class Learned:
    """`spaces`: by their steps, most first. `steps`: all that were charged to somebody, those to harts that did not
    translate included.
    """

    spaces: tuple[AddressSpace, ...]
    running: AddressSpace | None
    """That of the hart whose turn it is; None: it does not translate."""
    mode: str
    """That hart's: U, S or M."""
    steps: int
    idle: float
    """The part of the machine's time in which it waited, in WFI or in a loop (`monitor.spin`); of virtual time."""
    waits: bool
    tables: frozenset[int]
    """The physical addresses of the frames that are page tables of an address space that is not over."""
    complete: bool
    """There are no more than were looked for."""
    page_cache: dict[int, Block]
    """By the physical addresses of frames: the block that went through last, where its bytes are the disk's now."""
    zeroed: Zeroed

    def __str__(self) -> str:
        living = [space for space in self.spaces if not space.over]
        told = f"{len(living)} address space{'s' * (len(living) != 1)}"
        if self.spaces and self.steps:
            most = self.spaces[0]
            told += f", the longest {most.steps / self.steps:.0%} of the steps (satp {most.satp:#x})"
        more = "" if self.complete else "more than "
        tables = f"{more}{len(self.tables):,} frames of page tables, {len(self.page_cache):,} of page cache"
        return f"{told}; idle {self.idle:.0%}; {tables}; {self.zeroed}"


class _Seen:
    """An address space, while more of it is learned. `pc`: where it was last, in user mode if ever."""

    __slots__ = ("first", "last", "pc", "samples", "satp", "steps", "user")

    def __init__(self, first: int) -> None:
        self.satp = self.steps = self.samples = self.last = 0
        self.first = first
        self.pc: int | None = None
        self.user = False


class Inference:
    """What is kept of one machine while it runs, of a size that its memory bounds."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._walks = vm.inputs.tlb == "hardware"
        self._told_pc = not isinstance(vm.engine, Deprivileged)
        """At a VM-fault the pc is in the hart: not in one that is lent for it."""
        self.forget()
        for number, slot in enumerate(vm.slots):
            if isinstance(slot, VirtioBlk):
                slot.on_move = partial(self.moved, number)

    def forget(self) -> None:
        """The machine begins anew."""
        self._spaces: dict[int, _Seen] = {}
        """The last to be seen last."""
        self._until = steps = self._vm.steps
        """The step to which they are charged."""
        self._untranslated, self._gone = _Seen(steps), _Seen(steps)
        """Where a hart does not translate; and all spaces that are not remembered any more."""
        self._key, self._seen = 0, self._untranslated
        """Where the machine was seen last."""
        self._moved: memoryview | None = None
        """Of each frame two words: an offset on a disk; and the disk's number + 1, where in the frame, and how long."""

    # Which process runs

    def at_fault(self) -> None:
        """The monitor has the hart, in the middle of an instruction."""
        self._sample(self._told_pc)

    def at_rest(self) -> None:
        """The monitor has the hart, which stands."""
        self._sample(True)

    def _sample(self, told_pc: bool) -> None:
        """The steps since the last time are charged to the address space that is there now."""
        vm = self._vm
        words, steps = vm.harts[vm.current].words, vm.clock.steps
        priv, satp = words[_PRIV], words[_SATP]
        if not self._walks:
            satp &= _ALL
        key = satp if priv != M and (satp >> 60 or not self._walks) else 0
        seen = self._seen
        if key != self._key:
            self._key = key
            seen = self._seen = self._space(key, steps) if key else self._untranslated
        seen.steps += steps - self._until
        seen.samples += 1
        seen.satp, seen.last = satp, steps
        if told_pc and (priv == U or not seen.user):
            seen.pc, seen.user = words[_PC], priv == U
        self._until = steps

    def _space(self, key: int, steps: int) -> _Seen:
        """It is the last one to be forgotten now."""
        spaces = self._spaces
        seen = spaces.pop(key, None)
        if seen is None:
            seen = _Seen(steps)
            if len(spaces) == SPACES:
                self._gone.steps += spaces.pop(next(iter(spaces))).steps
        spaces[key] = seen
        return seen

    # What its frames are

    def moved(self, disk: int, pa: int, length: int, offset: int) -> None:
        """So many bytes at `pa` have come from `offset` of a disk, or gone there."""
        if self._moved is None:
            count = self._vm.ram.size // FRAME
            words = mmap.mmap(-1, 16 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._moved = memoryview(words).cast("B").cast("Q")
        moved, at = self._moved, pa - self._vm.ram.base
        while length:
            first = start = at & FRAME - 1
            n = min(length, FRAME - start)
            place = at >> PAGE_BITS << 1
            before, what = moved[place : place + 2]
            if what >> 32 == disk + 1:
                size = what & 0xFFFF
                if size + (what >> 16 & 0xFFFF) == start and before + size == offset:  # it goes on
                    first = start - size
            moved[place] = offset - (start - first)
            moved[place + 1] = disk + 1 << 32 | first << 16 | start + n - first
            at, offset, length = at + n, offset + n, length - n

    def _page_cache(self) -> Iterator[tuple[int, Block]]:
        if self._moved is None:
            return
        vm = self._vm
        for number, what in enumerate(self._moved[1::2].tolist()):
            if what:
                block = Block((what >> 32) - 1, self._moved[2 * number], what >> 16 & 0xFFFF, what & 0xFFFF)
                frame = vm.ram.look(number * FRAME)
                try:
                    with quiet(vm.disks[block.disk]):
                        there = vm.disks[block.disk].read(block.offset, block.length)
                except OSError:
                    continue
                if there == frame[block.inside : block.inside + block.length]:
                    yield vm.ram.base + number * FRAME, block

    # All of it

    def learned(self) -> Learned:
        """As `Monitor.learned`."""
        vm = self._vm
        walks = _Walks(vm.ram)
        owners = {seen.satp & PPN: seen for seen in self._spaces.values()}
        spaces = []
        for seen in self._spaces.values():
            mode, over = seen.satp >> 60, False
            root = (seen.satp & PPN) << PAGE_BITS if mode in MODES and self._walks else None
            if root is not None:
                gone = seen.pc is not None and not walks.executes(root, MODES[mode], seen.pc)
                over = gone or owners[seen.satp & PPN] is not seen
                if not over:
                    walks.take(root, MODES[mode])
            spaces.append(AddressSpace(seen.satp, root, seen.steps, seen.samples, seen.first, seen.last, over))
        running = spaces[-1] if self._seen is not self._untranslated else None
        spaces.sort(key=lambda space: -space.steps)
        now = vm.clock.now()
        return Learned(
            tuple(spaces),
            running,
            "US?M"[vm.harts[vm.current].priv],
            sum(seen.steps for seen in (self._untranslated, self._gone, *self._spaces.values())),
            vm.idled / now if now and vm.clock.source == "virtual" else 0.0,
            vm.spins or all(hart.waiting or hart.stopped for hart in vm.harts),
            frozenset(walks.tables),
            walks.complete,
            dict(self._page_cache()),
            self._zeroed(),
        )

    def _zeroed(self) -> Zeroed:
        vm = self._vm
        every = [vm.zeroes, *(vm.engine.zeroes(hart) for hart in vm.harts)]
        pages, again, blank = map(sum, zip(*every, strict=True))
        return Zeroed(vm.account.zeroed, pages, again - blank, blank)


class _Walks:
    """All that walks of one memory can read, from beside. Each table is looked at once for each level that it is met
    at, whatever leads there, so tables that lead to themselves end, and the work is bounded.
    """

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self.tables: set[int] = set()
        """Physical addresses."""
        self.complete = True
        self._taken: set[tuple[int, int]] = set()

    def _entries(self, pa: int) -> array[int]:
        """Those of a table that is in memory."""
        return array("Q", self._ram.look(pa - self._ram.base))

    def _there(self, pa: int) -> bool:
        return 0 <= pa - self._ram.base <= self._ram.size - FRAME

    def take(self, root: int, levels: int) -> None:
        """The tables of an address space."""
        waiting = [(root, levels - 1)] if self._there(root) else []
        while waiting:
            table = pa, level = waiting.pop()
            if table in self._taken:
                continue
            if len(self._taken) == TABLES:
                self.complete = False
                return
            self._taken.add(table)
            self.tables.add(pa)
            if level:
                lower = {(pte >> 10 & PPN) << PAGE_BITS for pte in self._entries(pa) if pte & _TABLE == V}
                waiting += [(child, level - 1) for child in lower if self._there(child)]

    def executes(self, root: int, levels: int, va: int) -> bool:
        """Whether a page for `va` is mapped that can be executed in some mode."""
        pa = root
        for level in range(levels - 1, -1, -1):
            if not self._there(pa):
                return False
            pte = self._entries(pa)[va >> PAGE_BITS + 9 * level & 511]
            if pte & _TABLE != V:
                return pte & (V | X) == V | X and not pte & RESERVED
            pa = (pte >> 10 & PPN) << PAGE_BITS
        return False
