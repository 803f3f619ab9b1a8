"""Paravirtualization: a guest that knows its monitor, and calls it (Xen: Barham et al. 2003; Denali: Whitaker et al.
2002; docs/paravirtual.md).

Until a hart calls `REGISTER` the technique is `vm-bit`. From then on the guest's state of S is in the lent hart,
so its own CSR moves and SRET run directly, and exceptions of its processes that are no page faults go straight to its
own vector, as Xen's fast handlers do. What is left is asked for by calls, or lies in a frame that guest and monitor
share: the interrupt flag, what is pending, the alarm.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from ringfence.isa.csr import S_IRQS
from ringfence.isa.paging import ACCESSED, DIRTY, PBMT, PPN, RESERVED, USER, R, V, W
from ringfence.isa.trap import Cause, Irq, S, Status
from ringfence.machine.hart import FIELDS, Hart
from ringfence.machine.launch import DIRECT_STATUS
from ringfence.machine.map import SUPERPAGE, GuestRam
from ringfence.machine.memory import FRAME
from ringfence.monitor.technique.rings import AS_THEY_ARE, RINGS, both, rights_of
from ringfence.monitor.technique.shadow import Shadows
from ringfence.monitor.technique.trap import TrapAndEmulate

if TYPE_CHECKING:
    from ringfence.machine.machine import Computer, Engine
    from ringfence.machine.memory import Ram

EXTENSION = 0x0852_4650
"""Of the calls: an SBI extension number from the range for experiments (SBI, "Experimental SBI Extension Space")."""
REGISTER, UPDATE, IDLE, CLEAR = range(4)
MOST = 512
"""Entries of one UPDATE."""
PERIOD = 1_000_000
"""The most steps until the monitor looks at the shared frame."""
SUCCESS, NOT_SUPPORTED, INVALID_PARAM, INVALID_ADDRESS, ALREADY = 0, -2, -3, -5, -6
"""As the SBI has them."""
IN_CALL = 2
"""In a hart's `waiting`: until an interrupt is pending that is enabled by itself, as in the SBI's hart suspend."""

SHARED = Struct("<5Q")
"""enabled, pending, alarm, first and end of fresh memory."""
ENTRY = Struct("<2Q")
"""Of UPDATE: the physical address of a page-table entry, and its value."""
_FLAG, _ALARM = Struct("<Q"), 16
_PENDING = 8
_DIRECT = tuple(FIELDS[name].offset >> 3 for name in ("stvec", "sscratch", "sepc", "scause", "stval"))
_PRIV, _MSTATUS, _MEDELEG, _VM, _MCOUNTEREN, _SCOUNTEREN = (
    FIELDS[name].offset >> 3 for name in ("priv", "mstatus", "medeleg", "vm", "mcounteren", "scounteren")
)
_STRAIGHT = 1 << Cause.ECALL_U | 1 << Cause.BREAKPOINT | 1 << Cause.FETCH_MISALIGNED
"""Exceptions that the guest takes itself: no page faults, which may be the shadow's."""
_TSR = 1 << Status.TSR
_TIME = 2
_SIE = 1 << Status.SIE


class Paravirtual(TrapAndEmulate):
    """An engine for a machine whose operating system may call its monitor."""

    direct = True

    def __init__(self, computer: Computer, ram: GuestRam, host: Computer, shadows: Shadows, kept: bool = True) -> None:
        self.shared: dict[int, int] = {}
        """By hart: the offset of the frame that it shares with the monitor."""
        self._found: dict[int, int] = {}
        """By hart: the interrupt flag, as it was found last."""
        self.calls = 0
        super().__init__(computer, ram, host, shadows, kept, RINGS["S"], vm_bit=True)

    def virtualize(self, computer: Computer, ram: Ram) -> Engine:
        assert isinstance(ram, GuestRam)
        return Paravirtual(computer, ram, self._host, self._shadows.another(ram), self._kept)

    def reset(self) -> None:
        """No hart has called."""
        self.shared.clear()
        self._found.clear()

    # machine.Engine

    def run(self, hart: Hart, deadline: int) -> bool:
        at = self.shared.get(hart.number)
        if at is None:
            return super().run(hart, deadline)
        self._look(hart, at)
        try:
            return super().run(hart, min(deadline, self._computer.clock.steps + PERIOD))
        finally:
            self._look(hart, at)

    def _look(self, hart: Hart, at: int) -> None:
        """What the guest has written to the shared frame counts, and what is pending is there."""
        ram = self._ram
        enabled, pending, alarm, _, _ = SHARED.unpack(ram.peek(at, SHARED.size))
        if self._found.pop(hart.number, 0) and enabled and hart.priv == S and not hart.mstatus & _SIE:
            ram.write(ram.base + at, _FLAG.pack(enabled := 0))  # a trap was taken since
        hart.mstatus = hart.mstatus & ~_SIE | (_SIE if enabled else 0)
        self._found[hart.number] = enabled
        if alarm != hart.stimecmp:
            hart.stimecmp = alarm
            self._computer.timer(hart)
        if (ready := (hart.mip | hart.lines) & hart.mie) != pending:
            ram.write(ram.base + at + _PENDING, _FLAG.pack(ready))

    # Direct execution

    def _hand_over(self, hart: Hart, real: Hart) -> None:
        words, lent = hart.words, real.words
        direct = hart.number in self.shared
        lent[_MEDELEG] = words[_MEDELEG] & _STRAIGHT if direct else 0
        lent[_VM] = int(not direct)
        lent[_MCOUNTEREN], lent[_SCOUNTEREN] = (_TIME, words[_SCOUNTEREN]) if direct else (0, 0)
        if direct:
            for n in _DIRECT:
                lent[n] = words[n]
            lent[_MSTATUS] = lent[_MSTATUS] & ~(_TSR | DIRECT_STATUS) | words[_MSTATUS] & DIRECT_STATUS
        else:
            lent[_MSTATUS] |= _TSR

    def _take_over(self, hart: Hart, real: Hart) -> None:
        if hart.number in self.shared:
            words, lent = hart.words, real.words
            for n in _DIRECT:
                words[n] = lent[n]
            words[_PRIV] = lent[_PRIV]
            words[_MSTATUS] = words[_MSTATUS] & ~DIRECT_STATUS | lent[_MSTATUS] & DIRECT_STATUS

    # Calls

    def call(self, hart: Hart, function: int, a: tuple[int, ...]) -> tuple[int, int]:
        """(error, value) of a hart's call."""
        self.calls += 1
        if function == REGISTER:
            return self._register(hart, a[0])
        if hart.number not in self.shared:
            return NOT_SUPPORTED, 0
        if function == UPDATE:
            return self._update(hart, a[0], a[1])
        if function == IDLE:
            self._look(hart, self.shared[hart.number])
            hart.waiting = IN_CALL
            return SUCCESS, 0
        if function == CLEAR:
            hart.mip &= ~(1 << Irq.SSI)
            return SUCCESS, 0
        return NOT_SUPPORTED, 0

    def _register(self, hart: Hart, pa: int) -> tuple[int, int]:
        ram = self._ram
        if hart.number in self.shared:
            return ALREADY, 0
        if pa & FRAME - 1 or not 0 <= pa - ram.base < ram.size:
            return INVALID_ADDRESS, 0
        first, end = self._fresh()
        ram.write(pa, SHARED.pack(0, 0, hart.stimecmp, ram.base + first, ram.base + end))
        self.shared[hart.number] = pa - ram.base
        hart.mie |= S_IRQS
        self._forget_spaces()
        return SUCCESS, 0

    def _fresh(self) -> tuple[int, int]:
        """(offset, end) of the longest run of superpages that the guest has not used: they are zero."""
        ram, best, first = self._ram, (0, 0), 0
        last = ram.size & -SUPERPAGE
        absent = {at & -SUPERPAGE for at in ram.absent}
        for at in range(0, last + SUPERPAGE, SUPERPAGE):
            if at < last and ram.f.vacant(at) and at not in absent:
                continue
            best = max(best, (first, at), key=lambda run: run[1] - run[0])
            first = at + SUPERPAGE
        return best

    def _update(self, hart: Hart, pa: int, count: int) -> tuple[int, int]:
        """All of them, or none: the first wrong one is told."""
        ram = self._ram
        size = count * ENTRY.size
        if count > MOST or pa & 7:
            return INVALID_PARAM, 0
        if not 0 <= pa - ram.base <= ram.size - size:
            return INVALID_ADDRESS, 0
        entries = list(ENTRY.iter_unpack(ram.read(pa, size)))
        for n, (at, _) in enumerate(entries):
            if at & 7 or not 0 <= at - ram.base < ram.size:
                return INVALID_ADDRESS, n
        for at, value in entries:
            ram.write(at, value.to_bytes(8, "little"))
            self._foresee(hart, at - ram.base, value)
        return SUCCESS, count

    def _foresee(self, hart: Hart, at: int, pte: int) -> None:
        """A page that a table with shadows maps from now on is mapped there, where nothing has to be sought for it."""
        ram, shadows = self._ram, self._shadows
        page = ((pte >> 10 & PPN) << 12) - ram.base
        marks = ACCESSED | DIRTY if pte & W else ACCESSED
        plain = pte & (V | R) == V | R and pte & marks == marks and not pte & (PBMT | RESERVED)
        if not plain or not 0 <= page < ram.size or page in shadows.traced:
            return
        granted = self._computer.reference.permission(hart, ram.base + page, FRAME, False)
        for table in list(shadows.traced.get(at & -FRAME, ())):
            found = self._lies(page)
            if table.key.level or found is None:
                return
            rights = rights_of(pte, AS_THEY_ARE) & (both(granted, found[1]) | USER)
            if rights & R and table.lives:
                self._owners[found[0], FRAME] = page
                shadows.map(table, (at & FRAME - 1) >> 3, page, found[0], rights)
                self.filled += 1
