"""The threaded engine: native handlers run the harts; what they leave is the reference's."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ringfence.errors import MachineError
from ringfence.isa import pmp
from ringfence.machine.engine import code, layout
from ringfence.machine.engine.layout import WATCHED_PAGES, Action
from ringfence.machine.engine.native import CODE_BYTES, INDEX, MACHINE, Native, anonymous, host_address
from ringfence.machine.hart import Hart
from ringfence.machine.launch import SPACE, Trapped, user_hart
from ringfence.machine.memory import BLANK, FRAME, Ram

if TYPE_CHECKING:
    from ringfence.machine.clock import Clock
    from ringfence.machine.machine import Computer

SLOW = 2_500
"""5 to 6 µs, where an ordinary step takes 2 ns."""
_WATCHED = range(MACHINE["watched"], MACHINE["watched"] + WATCHED_PAGES)
_NONE = (1 << 64) - 1
_MIP, _LINES, _MIE = INDEX["mip"], INDEX["lines"], INDEX["mie"]
_LIMIT, _DEADLINE, _KICK, _STEPS = (INDEX[n] for n in ("limit", "deadline", "kick", "steps"))
_PMP = slice(INDEX["pmpcfg0"], INDEX["pmpaddr"] + pmp.ENTRIES)


class Threaded:
    """An engine (machine.Engine) for all harts of a computer. `sets`: entries of each TLB of a regime.

    `native` is a virtual machine's: what its bare machine's engine works with.
    """

    slow = SLOW

    def __init__(
        self,
        computer: Computer,
        sets: int = 256,
        code_bytes: int = CODE_BYTES,
        *,
        native: Native | None = None,
    ) -> None:
        self._computer = computer
        self.native = native or Native(computer.ram, sets, code_bytes)
        self._permissions: dict[bytes, mmap.mmap] = {}
        self._protected: list[bytes] = []
        self._addresses: list[int] = []
        self._harts: list[Hart] = []
        self._returned: list[int] = []
        """Numbers of harts that were lent and are back."""
        try:
            for hart in computer.harts:
                self._add(hart)
        except MachineError:
            for hart in self._harts[:-1]:
                self.native.remove(hart)
            raise

    def _add(self, hart: Hart) -> None:
        self._protected.append(b"")
        self._addresses.append(0)
        self._harts.append(hart)
        self._begin(hart)

    def _begin(self, hart: Hart) -> None:
        number = hart.number
        self._protected[number], self._harts[number] = b"", hart
        self._addresses[number] = self.native.add(hart, self._computer.ram)

    # machine.Engine

    def run(self, hart: Hart, deadline: int) -> bool:
        computer = self._computer
        clock, reference = computer.clock, computer.reference
        words, address = hart.words, self._addresses[hart.number]
        enter = self.native.enter
        virtual = clock.source == "virtual"
        deadline = max(deadline, 0)  # a time that was gone before the idle time was jumped over has a negative step
        self._protect(hart)
        while True:
            end = clock.end - clock.surcharge
            if end < deadline:
                deadline = end if end > 0 else 0
            _tell_time(words, clock, computer.aclint.offset)
            words[_STEPS] = clock.steps
            words[_LIMIT] = words[_DEADLINE] = deadline
            if words[_KICK] or (words[_MIP] | words[_LINES]) & words[_MIE]:
                words[_LIMIT] = 0
            action = enter(address)
            clock.steps = words[_STEPS]
            if action == Action.EMULATE:
                if computer.breakpoints and words[INDEX["pc"]] in computer.breakpoints:
                    return False
                check = reference.step(hart)
                clock.surcharge += SLOW
                if computer.wanted:
                    return check
                if check and (
                    clock.steps >= deadline
                    or words[_KICK]  # native code that leaves at once would never heed it
                    or hart.waiting
                    or hart.stopped
                    or (words[_MIP] | words[_LINES]) & words[_MIE]
                ):
                    words[_KICK] = 0
                    return True
                if virtual:
                    deadline = min(deadline, clock.next_step())
                if computer.breakpoints and words[INDEX["pc"]] in computer.breakpoints:
                    return check
            elif not self._seen_to(action, words, clock):
                words[_KICK] = 0
                return True

    def _seen_to(self, action: int, words: memoryview, clock: Clock) -> bool:
        """What native code left for is done, and it can go on."""
        if action == Action.FULL:
            self.native.drop_code()
        elif action == Action.PLAIN:
            self.native.make_plain(words[INDEX["cause"]])
        elif action == Action.FAULT:
            clock.surcharge += SLOW
            ram, at, right = self._computer.ram, words[INDEX["cause"]] * FRAME, words[INDEX["tval"]]
            if not right & BLANK or not ram.blank(at):
                ram.place(at, right & ~BLANK)
        else:
            return False
        return True

    def virtualize(self, computer: Computer, ram: Ram) -> Threaded:
        return Threaded(computer, native=self.native)

    def lend(self, virtual: Hart | None = None, direct: bool = False) -> Hart:
        if self._returned:
            hart = user_hart(self._returned.pop(), self._harts[0])
            self._begin(hart)
        else:
            hart = user_hart(len(self._harts), self._harts[0])
            self._add(hart)
        hart.words[INDEX["lent"]] = 1
        if virtual is not None:
            block = anonymous(4096)
            virtual.move(memoryview(block))
            hart.words[INDEX["virtual"]] = host_address(block)
        return hart

    def take_back(self, hart: Hart) -> None:
        self.native.remove(hart)
        self._returned.append(hart.number)

    def zeroes(self, hart: Hart) -> list[int]:
        at = INDEX["zeroes"]
        return hart.words[at : at + len(layout.ZEROES)].tolist()

    def applied(self, hart: Hart) -> int:
        return hart.words[INDEX["applied"]]

    def space(self, hart: Hart) -> None:
        words = hart.words
        n = next((n for n in range(layout.SPACES) if not words[INDEX["space_keys"] + n]), 0)
        words[INDEX["space_keys"] + n] = words[INDEX["space_key"]]
        words[INDEX["spaces"] + n] = hart.satp
        words[INDEX["code_spaces"] + n] = hart.isatp
        words[INDEX["space_modes"] + n] = hart.priv | hart.mstatus & layout.SPACE_STATUS
        words[INDEX["space_key"]] = 0

    def forget_spaces(self, hart: Hart) -> None:
        for n in range(layout.SPACES):
            hart.words[INDEX["space_keys"] + n] = 0

    def launch(self, hart: Hart, clock: Clock, offset: int, deadline: int) -> Trapped | None:
        words, address = hart.words, self._addresses[hart.number]
        reference = self._computer.reference
        if not self._protected[hart.number]:
            self._protect(hart)
        _tell_time(words, clock, offset)
        words[_STEPS] = clock.steps
        words[INDEX["space_key"]] = 0  # satp is the monitor's choice
        while True:
            end = clock.end - clock.surcharge
            if end < deadline:
                deadline = end
            words[_DEADLINE] = max(deadline, 0)
            words[_LIMIT] = 0 if words[_KICK] else words[_DEADLINE]
            action = self.native.enter(address)
            clock.steps = words[_STEPS]
            if action == Action.LENT:
                return Trapped(words[INDEX["cause"]], words[INDEX["tval"]])
            if action == Action.SPACE:
                return Trapped(SPACE, 0)
            if action == Action.EMULATE:
                if caught := reference.attempt_lent(hart, clock, offset):
                    return Trapped(caught.cause, caught.tval)
                clock.steps += 1
                clock.surcharge += SLOW
                words[_STEPS] += 1
                if reference.checked and clock.steps >= deadline:
                    return None
            elif not self._seen_to(action, words, clock):
                words[_KICK] = 0
                return None

    def kick(self) -> None:
        for hart in self._harts:
            hart.words[_KICK] = 1
            hart.words[_LIMIT] = 0

    def protection(self, hart: Hart) -> None:
        """What translations were checked against has changed."""
        self._protected[hart.number] = b""
        self._protect(hart)

    def retranslate(self, hart: Hart, page: int | None) -> None:
        if page is None:
            self.native.forget_translations(hart.words)
        else:
            self.native.drop_own(self._addresses[hart.number], page)

    def stops(self, breakpoints: Iterable[int], watched: Sequence[int]) -> None:
        """What lies at a breakpoint's place in any page is the reference's; pages with watchpoints are in no TLB."""
        places = {va >> 1 & layout.RECORDS - 1 for va in breakpoints}
        bits = sum(1 << place for place in places)
        at = layout.MACHINE["breaks"].offset
        known = slice(at, at + layout.RECORDS // 8)
        native = self.native
        marked = bits & ~int.from_bytes(native.block[known], "little")
        native.block[known] = bits.to_bytes(layout.RECORDS // 8, "little")
        for n, word in enumerate(_WATCHED):
            native.words[word] = watched[n] if n < len(watched) else _NONE
        native.words[MACHINE["watching"]] = len(watched)
        native.forget_all_translations()
        if marked:  # where there was a breakpoint no record was kept
            native.drop_code()

    def close(self) -> None:
        for hart in self._computer.harts:
            self.native.remove(hart)

    def _protect(self, hart: Hart) -> None:
        """Native code finds the hart's permissions in a byte a frame."""
        key = bytes(hart.words[_PMP])
        if self._protected[hart.number] == key:
            return
        if not hart.words[INDEX["permissions"]]:
            self.native.enlist(hart, self._addresses[hart.number])
        self._protected[hart.number] = key
        permissions = self._permissions.get(key)
        if permissions is None:
            if len(self._permissions) > 4 * len(self._protected):
                self._permissions = {k: v for k, v in self._permissions.items() if k in self._protected}
            permissions = self._permissions[key] = self._derive_permissions(hart)
        hart.words[INDEX["permissions"]] = host_address(permissions)
        self.native.forget_translations(hart.words)

    def _derive_permissions(self, hart: Hart) -> mmap.mmap:
        """R W X in bits 0 to 2 below M, in 4 to 6 for M; none where a frame's bytes differ, for the reference to
        decide.
        """
        ram = self._computer.ram
        frames = ram.size // FRAME
        permissions = anonymous(frames)
        permissions[:] = b"\x70" * frames
        for start, end, cfg in reversed(pmp.entries_of(hart.words, INDEX["pmpcfg0"], INDEX["pmpaddr"])):
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


def _tell_time(words: memoryview, clock: Clock, offset: int) -> None:
    """Native code can read mtime."""
    virtual = clock.source == "virtual"
    words[INDEX["clock_host"]] = 0 if virtual else code.clock_gettime()
    words[INDEX["clock_step_ns"]] = clock.step_ns
    words[INDEX["clock_base_ns"]] = clock.idle_ns if virtual else clock.host_start
    words[INDEX["clock_offset"]] = offset
