"""The 16550A UART: a console's two wires, with 16-byte FIFOs.

Source: National Semiconductor PC16550D, "Universal Asynchronous Receiver/Transmitter with FIFOs", section 8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Protocol

from ringfence.machine.device.device import Clock, Device, Field, Line

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

IER_RDA, IER_THRE, IER_RLS, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_RDA, IIR_RLS, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO = 0xC0
FCR_ENABLE, FCR_RESET_RX = 0x01, 0x02
LCR_STOP, LCR_PARITY, LCR_DLAB = 0x04, 0x08, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80

FIFO_BYTES = 16
CLOCK_HZ = 3_686_400
"""The input clock: divisor 2 gives 115,200 baud."""

BYTE_NS = 1000
"""From one byte of input to the next. A sender without a speed would keep a driver in its interrupt handler."""
BURST_NS = 4096 * BYTE_NS
"""So far the sender may be ahead of its speed: what a person or a script types is there at once."""

_TRIGGER = (1, 4, 8, 14)
_BYTE = tuple(bytes((value,)) for value in range(256))


class ConsoleOut(Protocol):
    """Where transmitted bytes go."""

    def write(self, data: bytes) -> None:
        """Takes bytes that the guest sent."""


class Uart16550(Device):
    """A UART whose transmitter is always empty and whose sender never overruns it.

    Received bytes wait outside the chip and refill the FIFO as the guest reads it. They come in only when the guest
    listens: its receive interrupt is enabled, or it reads LSR twice with neither a write nor a vain read of RBR
    between. A FIFO reset gives unread bytes back, and so does any write while the receive interrupt is off. So
    input that is sent before a driver has set itself up is not lost to the flushes and probes with which it does
    so. From when RTS was raised the sender minds it: with RTS low no bytes come in. A change of loopback mode
    empties the FIFO. Each register answers at its offset alone, whatever the access's size.

    A read of LSR, which says that the transmitter is empty, lets go of the line that was raised to say so; IIR goes on
    telling. The chip itself asks for a read of IIR, which xv6 never does: its interrupt would never end.
    """

    WINDOW: ClassVar[int] = 0x100
    STATE: ClassVar[tuple[Field, ...]] = (
        Field("ier", "u8"),
        Field("fcr", "u8"),
        Field("lcr", "u8"),
        Field("mcr", "u8"),
        Field("scr", "u8"),
        Field("divisor", "u16", reset=12),
        Field("overrun", "bool"),
        Field("modem", "u8", reset=MSR_DCD | MSR_DSR | MSR_CTS),
        Field("modem_change", "u8"),
        Field("thre_pending", "bool"),
        Field("thre_seen", "bool"),
        Field("timed_out", "bool"),
        Field("polled", "bool"),
        Field("held", "bool"),
        Field("free_at", "u64"),
        Field("irq", "bool"),
        Field("fifo", "bytes"),
        Field("waiting", "bytes"),
    )
    ier: int
    fcr: int
    lcr: int
    mcr: int
    scr: int
    divisor: int
    overrun: bool
    modem: int
    modem_change: int
    thre_pending: bool
    thre_seen: bool
    timed_out: bool
    polled: bool
    held: bool
    free_at: int
    irq: bool
    fifo: bytearray
    waiting: bytearray

    def __init__(self, clock: Clock, line: Line, out: ConsoleOut) -> None:
        self.clock = clock
        self.line = line
        self.out = out
        super().__init__()

    heir: Uart16550 | None = None
    """Whose console it is, where this chip's machine gave it away."""

    def pass_on(self, heir: Uart16550, feed: Callable[[Callable[[], None]], None]) -> None:
        """What comes from now on, and what the guest has not read, is for a chip of another machine, which `feed`
        tells.
        """
        self.heir, self._feed = heir, feed
        waiting, self.waiting = bytes(self.waiting), bytearray()
        heir.receive(waiting)

    @property
    def owner(self) -> Uart16550:
        """The chip whose guest has the console; from any thread."""
        heir = self.heir
        return self if heir is None else heir.owner

    def receive(self, data: bytes) -> None:
        """Sends `data` to the guest, behind what it has not read yet."""
        if self.heir is not None:
            self._feed(partial(self.heir.receive, data))
            return
        self.waiting += data
        if self.ier & IER_RDA:
            self._refill()

    def read(self, offset: int, size: int) -> int:
        if offset == LSR:
            if not self.fifo and self.waiting and self.polled:
                self._refill()
            self.polled = True
            value = LSR_THRE | LSR_TEMT
            if self.fifo:
                value |= LSR_DR
            if self.overrun:
                value |= LSR_OE
            if self.overrun or not self.thre_seen:
                self.overrun, self.thre_seen = False, True
                self._update()
            return value
        if offset == RBR:
            return self.divisor & 0xFF if self.lcr & LCR_DLAB else self._read_rbr()
        if offset == IIR:
            cause = self._cause()
            if cause == IIR_THRE:
                self.thre_pending = False
                self._update()
            return cause | IIR_FIFO if self.fcr & FCR_ENABLE else cause
        if offset == IER:
            return self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier
        if offset == MSR:
            value = self.modem | self.modem_change
            self.modem_change = 0
            self._update()
            return value
        if offset == LCR:
            return self.lcr
        if offset == MCR:
            return self.mcr
        if offset == SCR:
            return self.scr
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        self.polled = False
        if self.fifo and not self.ier & IER_RDA and not self.mcr & MCR_LOOP:
            self._flush()
            self._settle()
        if offset == THR:
            if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0xFF00 | value
            else:
                if self.mcr & MCR_LOOP:
                    self._loop_back(value)
                else:
                    self.out.write(_BYTE[value])
                self.thre_pending = True
                self.thre_seen = False
                if self.ier & IER_THRE:
                    self._update()
        elif offset == IER:
            if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0xFF | value << 8
            else:
                self._write_ier(value & 0x0F)
        elif offset == FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self.lcr = value
        elif offset == MCR:
            self._write_mcr(value & 0x1F)
        elif offset == SCR:
            self.scr = value

    def event(self, kind: str, number: int) -> None:
        if kind == "refill":
            if self.ier & IER_RDA:
                self._refill()
            return
        self.timed_out = bool(self.fifo)
        self._update()

    def reset(self) -> None:
        """Resets the chip. Bytes that the guest has not read stay: they are outside it."""
        if not self.mcr & MCR_LOOP:
            self.waiting[:0] = self.fifo
        waiting = self.waiting
        irq = self.irq
        super().reset()
        self.clock.cancel(self, "refill", 0)
        self.waiting = waiting
        self.irq = irq
        self._settle()

    def _read_rbr(self) -> int:
        fifo = self.fifo
        if not fifo:
            self.polled = False
            return 0
        value = fifo[0]
        del fifo[0]
        if self.waiting and self.ier & IER_RDA:
            self._refill()
        self._settle()
        return value

    def _write_ier(self, value: int) -> None:
        # An empty transmitter interrupts each time that its interrupt is enabled.
        if value & ~self.ier & IER_THRE:
            self.thre_pending = True
            self.thre_seen = False
        self.ier = value
        if value & IER_RDA:
            self._refill()
        self._update()

    def _write_fcr(self, value: int) -> None:
        flushed = value & FCR_RESET_RX or (value ^ self.fcr) & FCR_ENABLE
        # The trigger is set only by a write that has the FIFOs enabled.
        self.fcr = value & 0xC1 if value & FCR_ENABLE else 0
        if flushed:
            self._flush()
            if self.ier & IER_RDA:
                self._refill()
        self._settle()

    def _write_mcr(self, value: int) -> None:
        if (value ^ self.mcr) & MCR_LOOP:
            self._flush()
        if not (value | self.mcr) & MCR_LOOP and (value ^ self.mcr) & MCR_RTS:
            self.held = not value & MCR_RTS
        self.mcr = value
        if value & MCR_LOOP:
            modem = 0
            for source, signal in (
                (MCR_RTS, MSR_CTS),
                (MCR_DTR, MSR_DSR),
                (MCR_OUT1, MSR_RI),
                (MCR_OUT2, MSR_DCD),
            ):
                modem |= signal if value & source else 0
        else:
            modem = MSR_DCD | MSR_DSR | MSR_CTS
            if self.ier & IER_RDA:
                self._refill()
        change = (modem ^ self.modem) >> 4 & 0x0B
        # The ring indicator counts only where it ends.
        if self.modem & ~modem & MSR_RI:
            change |= 0x04
        self.modem_change |= change
        self.modem = modem
        self._settle()

    def _flush(self) -> None:
        """Empties the FIFO; bytes from outside will come in again."""
        if not self.mcr & MCR_LOOP:
            self.waiting[:0] = self.fifo
            self.free_at = 0
        self.fifo.clear()

    def _loop_back(self, value: int) -> None:
        if len(self.fifo) < self._room():
            self.fifo.append(value)
        else:
            self.overrun = True
            if not self.fcr & FCR_ENABLE:
                self.fifo[0] = value
        self._settle()

    def _refill(self) -> None:
        """Moves waiting bytes into the FIFO as far as there is room."""
        room = self._room() - len(self.fifo)
        if self.held or self.mcr & MCR_LOOP or room <= 0 or not self.waiting:
            return
        now = self.clock.now()
        if self.ier & IER_RDA and self.free_at > now + BURST_NS:
            self.clock.at(self.free_at - BURST_NS, self, "refill", 0)
            return
        self.free_at = max(self.free_at, now) + BYTE_NS * min(room, len(self.waiting))
        self.fifo += self.waiting[:room]
        del self.waiting[:room]
        self._settle()

    def _room(self) -> int:
        return FIFO_BYTES if self.fcr & FCR_ENABLE else 1

    def _trigger(self) -> int:
        return _TRIGGER[self.fcr >> 6]

    def _settle(self) -> None:
        """After the FIFO changed: below its trigger level it times out when nothing happens for four characters."""
        self.timed_out = False
        if 0 < len(self.fifo) < self._trigger():
            bits = 7 + (self.lcr & 3) + bool(self.lcr & LCR_STOP) + bool(self.lcr & LCR_PARITY)
            wait_ns = 4 * bits * 16 * max(self.divisor, 1) * 1_000_000_000 // CLOCK_HZ
            self.clock.at(self.clock.now() + wait_ns, self, "timeout", 0)
        else:
            self.clock.cancel(self, "timeout", 0)
        self._update()

    def _cause(self) -> int:
        """IIR bits 0-3: the enabled cause of highest priority (table IV)."""
        ier = self.ier
        if self.overrun and ier & IER_RLS:
            return IIR_RLS
        if ier & IER_RDA and self.fifo:
            if len(self.fifo) >= self._trigger():
                return IIR_RDA
            if self.timed_out:
                return IIR_TIMEOUT
        if self.thre_pending and ier & IER_THRE:
            return IIR_THRE
        if self.modem_change and ier & IER_MODEM:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        cause = self._cause()
        if cause == IIR_THRE and self.thre_seen:
            irq = bool(self.modem_change and self.ier & IER_MODEM)
        else:
            irq = cause != IIR_NONE
        if irq != self.irq:
            self.irq = irq
            self.line.set(irq)
