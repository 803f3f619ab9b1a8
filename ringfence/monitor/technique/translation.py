"""Binary translation: the guest's kernel runs in supervisor mode, in translations of its code (VMware: Bugnion et al.
2012; Adams and Agesen 2006; docs/translation.md).

A page of code is translated when it is first reached: what is sensitive and does not trap becomes a call of the
monitor, the rest stays as it is. Its translation lies in a frame of the host machine's that the hart fetches from, at
the guest's own addresses: the lent hart has an instruction space of its own (`isa.paging.space`). So a jump from one
translation leads into the next, traps tell the guest's own pc, and whoever reads the page finds the original.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ringfence.errors import OutOfMemory
from ringfence.isa.spec import ISA
from ringfence.isa.trap import S
from ringfence.machine.engine.handlers import CALL
from ringfence.machine.hart import FIELDS, Hart
from ringfence.machine.map import GuestRam
from ringfence.machine.memory import EXECUTE, FRAME, Ram
from ringfence.monitor.technique.rings import RINGS
from ringfence.monitor.technique.shadow import Shadows, Table
from ringfence.monitor.technique.trap import Mapped, TrapAndEmulate

if TYPE_CHECKING:
    from ringfence.machine.machine import Computer, Engine

SENSITIVE = frozenset((0x100, 0x104, 0x105, 0x106, 0x10A, 0x140, 0x141, 0x142, 0x143, 0x144))
"""The CSRs that do not trap in supervisor mode but are not the guest's there: `ringfence virtualizable --rings S`."""
OFTEN = 16
"""Traps of one instruction to a device, from which on it is a call."""

CALLS = 1024
"""Of these, the most that may become again what they were."""

_OPCODE = ISA["csrrw"].match & 0x7F
_CANDIDATE = re.compile(
    b"[%s](?=..[%s])"
    % tuple(
        b"".join(re.escape(bytes((n,))) for n in sorted(found))
        for found in (
            {code | high for code in (_OPCODE, _OPCODE | CALL) for high in (0, 0x80)},
            {csr >> 4 for csr in SENSITIVE},
        )
    ),
    re.DOTALL,
)
"""The first byte of what may be an instruction on one of them, or a call."""
_CODE, _TIGHT, _CLOSED, _CALLS = 1, 2, 4, 8
"""In what a translation is known by, beside the page's offset in the guest's memory: that it is one; the ways that it
differs from others of the page (`translate`).
"""
_PC = FIELDS["pc"].offset >> 3


class Translated(NamedTuple):
    """What a page becomes. An instruction may begin on the page before and end here, or begin here and end on the
    next: `edge`: then what is sensitive at the beginning would be found at other places; `open`: one may begin here.
    """

    code: bytes
    replaced: int
    edge: bool
    open: bool


def translate(code: bytes, tight: bool = False, closed: bool = False, calls: bool = False) -> Translated:
    """`calls`: it may hold calls, as it is a translation already. `tight`: of what may be sensitive at the page's
    beginning, whatever lies before, nothing is executed directly; `closed`: nor an instruction that ends on the next.

    An instruction begins behind each halfword whose two lowest bits are not set, whatever came before it; only from one
    such place to the next are there two ways to read the code, the second by a jump into an instruction.
    """
    translated, replaced = bytearray(code), 0
    edge = _begin(code, len(code)) == 0
    for found in _CANDIDATE.finditer(code):
        at = found.start()
        word = int.from_bytes(code[at : at + 4], "little")
        if at & 1 or not word >> 12 & 3 or word >> 20 not in SENSITIVE or (calls and word & CALL):
            continue
        replaced += 1
        begin = _begin(code, at)
        edge |= begin == 0
        if begin == 0 and tight:
            translated[: at + 2] = bytes(at + 2)
        elif at - begin & 2:  # inside an instruction
            translated[at - 2 : at + 2] = bytes(4)
        elif word & CALL:  # the guest's own, and illegal
            translated[at : at + 2] = bytes(2)
        else:
            translated[at] |= CALL
    last = len(code) - 2
    opened = code[last] & 3 == 3 and not last - _begin(code, last) & 2
    if code[last] & 0x7F | CALL == _OPCODE | CALL:  # what it says is on the next page
        translated[last - (0 if opened else 2) :] = bytes(2 if opened else 4)
    elif closed and opened:
        translated[last:] = bytes(2)
    return Translated(bytes(translated), replaced, edge, opened)


def _begin(code: bytes, at: int) -> int:
    """Where the instructions begin of which one holds, or ends before, the halfword at `at`."""
    while at and code[at - 2] & 3 == 3:
        at -= 2
    return at


class Page:
    """A translation in the code cache, at offset `place` of the host's memory."""

    __slots__ = ("at", "edge", "key", "open", "place", "trapped")

    def __init__(self, key: int, place: int, made: Translated) -> None:
        self.key, self.at, self.place = key, key & -FRAME, place
        self.edge, self.open = made.edge, made.open
        self.trapped: Counter[int] = Counter()
        """By the offset of an instruction: how often it came to a device."""


class CodeCache:
    """The translations of one virtual machine's code, in at most `most` frames of the host machine's memory; where that
    is not enough the oldest makes room.
    """

    def __init__(self, shadows: Shadows, most: int) -> None:
        """Entries of these shadows map the translations."""
        self._shadows, self.most = shadows, most
        self._guest, self._host = shadows.guest, shadows.host
        self.pages: dict[int, Page] = {}
        """By `key`, the oldest first."""
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        """By the offset of a page that has translations: the bare machine's frame, and what is called where it
        changes.
        """
        self.changed: int | None = None
        """The last page whose translations ended as it was written to."""
        self.translated = self.replaced = self.written = self.evicted = self.called = 0
        """Pages translated, instructions replaced in them, pages that were written to, translations that others took
        the place of, instructions that became calls as they trapped often.
        """

    def page(self, key: int) -> Page | None:
        """The translation; None: frames were moved for it, so there is none yet. Raises OutOfMemory."""
        page = self.pages.get(key)
        if page is not None:
            return page
        if len(self.pages) >= self.most:
            self._end(next(iter(self.pages)))
            self.evicted += 1
        place, at = self._shadows.frame(), key & -FRAME
        moves = self._host.derived.moves
        try:
            code, source = self._guest.peek(at, FRAME, EXECUTE), self._guest.place(at, EXECUTE) // FRAME
            made = translate(code, *(bool(key & way) for way in (_TIGHT, _CLOSED, _CALLS)))
            self._host.write(self._host.base + place, made.code)
        except OutOfMemory:
            self._shadows.give_back(place)
            raise
        if self._host.derived.moves != moves:
            self._shadows.give_back(place)
            return None
        page = self.pages[key] = Page(key, place, made)
        if at not in self._watched:
            self._watched[at] = source, partial(self._change, at)
            self._host.derived.watch(*self._watched[at])
        self.translated += 1
        self.replaced += made.replaced
        return page

    def patch(self, page: Page, inside: int, call: bool) -> None:
        """An instruction that nothing was put in place of is a call of the monitor, or itself again."""
        code = bytes(2) if call else self._guest.peek(page.at + inside, 2)
        self._host.write(self._host.base + page.place + inside, code)
        self.called += call

    def _change(self, at: int) -> None:
        self.written += 1
        self.changed = at
        self.forget(at)

    def forget(self, at: int) -> None:
        """A page has no translations any more."""
        for key in self._ways(at):
            self._end(key)

    def _ways(self, at: int) -> list[int]:
        """The keys of a page's translations."""
        keys = (at | _CODE | ways for ways in range(0, 2 * _CALLS, _TIGHT))
        return [key for key in keys if key in self.pages]

    def _end(self, key: int) -> None:
        page = self.pages.pop(key)
        self._shadows.unmap(key)
        self._shadows.give_back(page.place)
        if not self._ways(page.at):
            self._host.derived.unwatch(*self._watched.pop(page.at))

    def drop(self) -> None:
        """There are no translations. Nothing maps them any more, or will in a moment."""
        for page in self.pages.values():
            self._shadows.give_back(page.place)
        self.pages.clear()
        for watched in self._watched.values():
            self._host.derived.unwatch(*watched)
        self._watched.clear()


class BinaryTranslation(TrapAndEmulate):
    """M and S of the guest in the real S, in translations; U in U, directly."""

    def __init__(
        self, computer: Computer, ram: GuestRam, host: Computer, shadows: Shadows, kept: bool, most: int
    ) -> None:
        """`most`: pages of translated code."""
        self.code = shadows.code = CodeCache(shadows, most)
        self._calls: dict[int, Page] = {}
        """By address: translations in which the instruction there became a call as it trapped often."""
        super().__init__(computer, ram, host, shadows, kept, RINGS["S"])

    def virtualize(self, computer: Computer, ram: Ram) -> Engine:
        assert isinstance(ram, GuestRam)
        return BinaryTranslation(computer, ram, self._host, self._shadows.another(ram), self._kept, self.code.most)

    def _translates(self, hart: Hart) -> bool:
        return self.rings[hart.priv] == S

    def _separate(self, hart: Hart) -> bool:
        return self._translates(hart) or super()._separate(hart)

    def _instructions(self, hart: Hart, top: Table, va: int, at: int) -> Mapped | None:
        if not self._translates(hart):
            return super()._instructions(hart, top, va, at)
        code = self.code
        if code.changed == at:
            code.changed = None  # by an instruction of its own, it may be, which is to be executed first
            return None
        key = at | _CODE | (_CALLS if hart.isatp else 0)
        before, behind = (self._translation(top, va + step) for step in (-FRAME, FRAME))
        page = code.page(key)
        if page is not None and page.edge and before is not None and before.open:
            page = code.page(key | _TIGHT)
            if not before.key & _CLOSED:
                self._shadows.unmap(before.key)
        if page is not None and page.open and behind is not None and behind.edge:
            page = code.page(page.key | _CLOSED)
            if not behind.key & _TIGHT:
                self._shadows.unmap(behind.key)
        return None if page is None else Mapped(page.key, page.place)

    def _at_device(self, hart: Hart) -> None:
        if not self._translates(hart) or hart.number >= len(self._computer.harts):
            return
        pc = self._real[hart.number].words[_PC]
        page, inside = self._translation(self._top(hart, True), pc), pc & FRAME - 1
        if page is not None:
            page.trapped[inside] += 1
            if page.trapped[inside] == OFTEN:
                self.code.patch(page, inside, True)
                if len(self._calls) == CALLS:
                    self._calls.clear()
                self._calls[pc] = page

    def _interpret(self, hart: Hart) -> bool:
        pc, bus = hart.words[_PC], self._computer.bus
        before = bus.accesses
        check = super()._interpret(hart)
        if pc in self._calls and bus.accesses == before:  # another device's driver, or memory, or nothing
            page = self._calls.pop(pc)
            if self.code.pages.get(page.key) is page:
                page.trapped[pc & FRAME - 1] = 0
                self.code.patch(page, pc & FRAME - 1, False)
        return check

    def _translation(self, top: Table, va: int) -> Page | None:
        """What is mapped at an address."""
        trail = self._shadows.trail(top, va)
        if not trail:
            return None
        table, n = trail[-1]
        return self.code.pages.get(table.leaves[n])
