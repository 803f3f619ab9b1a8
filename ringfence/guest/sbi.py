"""The built-in SBI: what answers a supervisor's ECALL where no M-mode program does.

Source: RISC-V Supervisor Binary Interface Specification 2.0. A call is a line of `CALLS`, by extension and function.
What a call leaves behind is in the harts' state and the chips': there is none here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ringfence.isa import pmp
from ringfence.isa.csr import CBCFE, CBIE, CBZE, S_IRQS, STCE
from ringfence.isa.paging import ADUE, PBMTE
from ringfence.isa.trap import Cause, Irq, S, Status
from ringfence.machine.board import Virt
from ringfence.machine.device.device import AccessFault
from ringfence.machine.device.uart16550 import LSR, LSR_DR, RBR
from ringfence.machine.memory import WRITE
from ringfence.word import Int

if TYPE_CHECKING:
    from ringfence.machine.hart import Hart
    from ringfence.machine.machine import Computer

SUCCESS, FAILED, NOT_SUPPORTED, INVALID_PARAM, DENIED, INVALID_ADDRESS = 0, -1, -2, -3, -4, -5
ALREADY_AVAILABLE = -6

VERSION = 2 << 24
IMPLEMENTATION = 0x5246
"""Not one of those that the specification lists."""
IMPLEMENTATION_VERSION = 1

LEGACY_PUTCHAR, LEGACY_GETCHAR = 0x01, 0x02
BASE, TIME, IPI, RFENCE = 0x10, 0x5449_4D45, 0x73_5049, 0x5246_4E43
HSM, SRST, DBCN = 0x48_534D, 0x5352_5354, 0x4442_434E

STARTED, STOPPED, SUSPENDED = 0, 1, 4
"""HSM states. A call takes no time, so the pending ones are never seen."""
RETENTIVE, NON_RETENTIVE = 0, 0x8000_0000
IN_SUSPEND = 2
"""In a hart's `waiting`: by HSM, not by WFI."""

SHUTDOWN, COLD_REBOOT, WARM_REBOOT = 0, 1, 2
NO_REASON, SYSTEM_FAILURE = 0, 1
FAILURE_STATUS = 132
"""The machine's status where the guest says that it shuts down because the system failed."""

CONSOLE_BYTES = 1 << 16
"""The most that one call writes or reads; the specification lets a call do less than it was asked."""

MEDELEG = 0xB3FF & ~(1 << Cause.ECALL_S)
MENVCFG = 1 << STCE | 1 << ADUE | 1 << PBMTE | 3 << CBIE | 1 << CBCFE | 1 << CBZE
_ALL = (1 << 64) - 1
_COUNTERS = 0xFFFF_FFFF

Result = tuple[int, int]
Call = Callable[["Sbi", "Hart", tuple[int, ...]], Result]


class Sbi:
    """The firmware of one machine. `call` serves the ECALL that `hart` executes."""

    def __init__(self, board: Virt) -> None:
        self.board = board

    def another(self, computer: Computer) -> Sbi:
        assert isinstance(computer, Virt)
        return Sbi(computer)

    def power_on(self, entry: int, tree: int) -> None:
        """Hart 0 begins at `entry` in S-mode with a1 the physical address of the device tree; the others are
        stopped."""
        for hart in self.board.harts:
            self.start(hart, entry, tree)
            hart.stopped = int(hart.number != 0)

    def start(self, hart: Hart, entry: int, opaque: int) -> None:
        """The state in which a hart begins S-mode (section "Hart Start"): a0 its number, a1 `opaque`; no paging, no
        interrupts."""
        kept = hart.lines, hart.mcycle, hart.minstret, hart.away
        hart.reset()
        hart.lines, hart.mcycle, hart.minstret, hart.away = kept
        hart.priv = S
        hart.pc = entry
        hart["a0"] = hart.number
        hart["a1"] = opaque
        hart.medeleg, hart.mideleg = MEDELEG, S_IRQS
        hart.mcounteren = _COUNTERS
        hart.scounteren = 7  # cycle, time and instret, which the vDSO reads in U-mode
        hart.menvcfg = MENVCFG
        hart.pmpaddr0 = (1 << pmp.ADDRESS_BITS - 2) - 1
        hart.pmpcfg0 = pmp.NAPOT | pmp.R | pmp.W | pmp.X
        hart.firmware = 1
        self.board.protection(hart)
        self.board.timer(hart)

    def call(self, hart: Hart) -> None:
        """One call: a7 extension, a6 function, a0 to a5 arguments; a0 error, a1 value. The legacy calls give a0
        alone."""
        x = hart.x
        extension, function = x[17], x[16]
        served = CALLS.get((extension, 0 if extension <= 0x0F else function))
        if served is None:
            x[10], x[11] = NOT_SUPPORTED & _ALL, 0
            return
        error, value = served(self, hart, tuple(x[10:16]))
        x[10] = error & _ALL
        if extension > 0x0F:
            x[11] = value & _ALL

    # Services

    def _hart(self, number: int) -> Hart | None:
        return self.board.harts[number] if number < len(self.board.harts) else None

    def _chosen(self, mask: int, base: int) -> list[Hart] | None:
        """The harts that a mask and its base name, or None where one is not there."""
        harts = self.board.harts
        if base == _ALL:
            return list(harts)
        numbers = [base + bit for bit in range(64) if mask >> bit & 1]
        return [harts[n] for n in numbers] if not numbers or numbers[-1] < len(harts) else None

    def _probe(self, hart: Hart, a: tuple[int, ...]) -> Result:
        return SUCCESS, int(a[0] in EXTENSIONS)

    def _set_timer(self, hart: Hart, a: tuple[int, ...]) -> Result:
        """STIP follows the compare register, as the supervisor could set it itself."""
        hart.stimecmp = a[0]
        self.board.timer(hart)
        return SUCCESS, 0

    def _send_ipi(self, hart: Hart, a: tuple[int, ...]) -> Result:
        chosen = self._chosen(a[0], a[1])
        if chosen is None:
            return INVALID_PARAM, 0
        for target in chosen:
            if not target.stopped:
                target.mip |= 1 << Irq.SSI
        return SUCCESS, 0

    def _fence(self, hart: Hart, a: tuple[int, ...]) -> Result:
        """What caches of code hold is invisible here, so only the arguments matter."""
        return (INVALID_PARAM if self._chosen(a[0], a[1]) is None else SUCCESS), 0

    def _fence_range(self, hart: Hart, a: tuple[int, ...]) -> Result:
        """And so is what a TLB holds, but for one that is filled by software: that loses all."""
        chosen = self._chosen(a[0], a[1])
        if chosen is None:
            return INVALID_PARAM, 0
        start, size = a[2], a[3]
        if not (size == _ALL or start == size == 0) and start + size > 1 << 64:
            return INVALID_ADDRESS, 0
        for target in chosen:
            if target.software_tlb:
                self.board.engine.retranslate(target, None)
                target.empty_tlb()
        return SUCCESS, 0

    def _hart_start(self, hart: Hart, a: tuple[int, ...]) -> Result:
        target = self._hart(a[0])
        if target is None:
            return INVALID_PARAM, 0
        if not target.stopped:
            return ALREADY_AVAILABLE, 0
        if not self._executable(a[1]):
            return INVALID_ADDRESS, 0
        self.start(target, a[1], a[2])
        return SUCCESS, 0

    def _hart_stop(self, hart: Hart, a: tuple[int, ...]) -> Result:
        hart.stopped = 1
        return SUCCESS, 0

    def _hart_status(self, hart: Hart, a: tuple[int, ...]) -> Result:
        target = self._hart(a[0])
        if target is None:
            return INVALID_PARAM, 0
        return SUCCESS, STOPPED if target.stopped else SUSPENDED if target.waiting == IN_SUSPEND else STARTED

    def _hart_suspend(self, hart: Hart, a: tuple[int, ...]) -> Result:
        """Until an interrupt that sie enables is pending, whatever sstatus says. Non-retentive: the hart then begins
        at a1."""
        kind = a[0]
        if kind == NON_RETENTIVE:
            if not self._executable(a[1]):
                return INVALID_ADDRESS, 0
            hart.satp = 0
            hart.mstatus &= ~(1 << Status.SIE)
            self.board.reference.jump(Int(a[1]))
            hart.waiting = IN_SUSPEND
            return hart.number, a[2]
        if kind == RETENTIVE:
            hart.waiting = IN_SUSPEND
            return SUCCESS, 0
        reserved = kind > 0xFFFF_FFFF or 0 < kind < 0x1000_0000 or 0x8000_0000 < kind < 0x9000_0000
        return (INVALID_PARAM if reserved else NOT_SUPPORTED), 0

    def _executable(self, pa: int) -> bool:
        return 0 <= pa - self.board.ram.base < self.board.ram.size and not pa & 1

    def _system_reset(self, hart: Hart, a: tuple[int, ...]) -> Result:
        kind, reason = a[0] & 0xFFFF_FFFF, a[1] & 0xFFFF_FFFF
        if kind >= 0xF000_0000:
            return NOT_SUPPORTED, 0
        if kind > WARM_REBOOT or SYSTEM_FAILURE < reason < 0xE000_0000:
            return INVALID_PARAM, 0
        if kind == SHUTDOWN:
            self.board.power_off(FAILURE_STATUS if reason == SYSTEM_FAILURE else 0)
        else:
            self.board.reset()
        return SUCCESS, 0

    def _console_write(self, hart: Hart, a: tuple[int, ...]) -> Result:
        try:
            if a[2]:
                raise AccessFault
            self.board.ram.offset(a[1], a[0])
            data = self.board.ram.read(a[1], min(a[0], CONSOLE_BYTES))
        except AccessFault:
            return INVALID_PARAM, 0
        self.board.uart.out.write(data)
        return SUCCESS, len(data)

    def _console_read(self, hart: Hart, a: tuple[int, ...]) -> Result:
        try:
            if a[2]:
                raise AccessFault
            at = self.board.ram.offset(a[1], a[0])
        except AccessFault:
            return INVALID_PARAM, 0
        most = min(a[0], CONSOLE_BYTES, len(self.board.uart.fifo) + len(self.board.uart.waiting))
        for _ in self.board.ram.places(at, most, WRITE):
            pass  # a VM-fault comes before a byte is taken
        data = bytearray()
        while len(data) < most and (byte := self._received()) is not None:
            data.append(byte)
        self.board.ram.write(a[1], bytes(data))
        return SUCCESS, len(data)

    def _console_write_byte(self, hart: Hart, a: tuple[int, ...]) -> Result:
        self.board.uart.out.write(bytes((a[0] & 0xFF,)))
        return SUCCESS, 0

    def _legacy_getchar(self, hart: Hart, a: tuple[int, ...]) -> Result:
        byte = self._received()
        return (FAILED if byte is None else byte), 0

    def _received(self) -> int | None:
        """The next byte of input. The UART lets it in where it is polled twice."""
        uart = self.board.uart
        if uart.read(LSR, 1) & LSR_DR or uart.read(LSR, 1) & LSR_DR:
            return uart.read(RBR, 1)
        return None


def _constant(value: int) -> Call:
    return lambda sbi, hart, a: (SUCCESS, value)


CALLS: dict[tuple[int, int], Call] = {
    (LEGACY_PUTCHAR, 0): Sbi._console_write_byte,
    (LEGACY_GETCHAR, 0): Sbi._legacy_getchar,
    (BASE, 0): _constant(VERSION),
    (BASE, 1): _constant(IMPLEMENTATION),
    (BASE, 2): _constant(IMPLEMENTATION_VERSION),
    (BASE, 3): Sbi._probe,
    (BASE, 4): _constant(0),  # mvendorid
    (BASE, 5): _constant(0),  # marchid
    (BASE, 6): _constant(0),  # mimpid
    (TIME, 0): Sbi._set_timer,
    (IPI, 0): Sbi._send_ipi,
    (RFENCE, 0): Sbi._fence,  # fence.i
    (RFENCE, 1): Sbi._fence_range,  # sfence.vma
    (RFENCE, 2): Sbi._fence_range,  # sfence.vma of an address space; those of the H extension follow it
    (HSM, 0): Sbi._hart_start,
    (HSM, 1): Sbi._hart_stop,
    (HSM, 2): Sbi._hart_status,
    (HSM, 3): Sbi._hart_suspend,
    (SRST, 0): Sbi._system_reset,
    (DBCN, 0): Sbi._console_write,
    (DBCN, 1): Sbi._console_read,
    (DBCN, 2): Sbi._console_write_byte,
}
EXTENSIONS = frozenset(extension for extension, _ in CALLS)
