"""The UART as drivers see it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ringfence.machine.clock import Clock
from ringfence.machine.device.uart16550 import (
    DLL,
    DLM,
    FCR,
    IER,
    IIR,
    LCR,
    LSR,
    MCR,
    MSR,
    RBR,
    SCR,
    THR,
    Uart16550,
)


class Wire:
    level = False

    def set(self, level: bool) -> None:
        assert level != self.level
        self.level = level


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class Bench:
    """A UART with what it is wired to."""

    def __init__(self) -> None:
        self.clock, self.wire, self.sink = Clock(), Wire(), Sink()
        self.uart = Uart16550(self.clock, self.wire, self.sink)

    def get(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def put(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def drain(self) -> bytes:
        """What a driver that polls reads until there is nothing."""
        data = b""
        self.get(LSR)
        while self.get(LSR) & 1:
            data += bytes((self.get(RBR),))
        return data


def test_uart_sends_each_byte_at_once() -> None:
    """A byte written to THR is out before the next access, and the transmitter is empty again."""
    bench = Bench()
    for byte in b"hello\xff\x00":
        assert bench.get(LSR) & 0x60 == 0x60
        bench.put(THR, byte)
    assert bench.sink.data == b"hello\xff\x00"


def test_uart_divisor_latch_hides_the_data_registers() -> None:
    """With DLAB set, offsets 0 and 1 are the divisor, nothing is sent, and IER keeps its value."""
    bench = Bench()
    bench.put(IER, 0xFF)
    bench.put(LCR, 0x83)
    bench.put(DLL, 0x34)
    bench.put(DLM, 0x12)
    assert (bench.get(DLL), bench.get(DLM)) == (0x34, 0x12)
    bench.put(LCR, 3)
    assert bench.get(IER) == 0x0F
    assert bench.sink.data == b""


def test_uart_is_identified_as_a_16550a() -> None:
    """Linux's probes find a scratch register, working FIFOs, no EFR, no 64-byte FIFO and a loopback of MCR in MSR."""
    bench = Bench()
    bench.put(SCR, 0xA5)
    assert bench.get(SCR) == 0xA5
    bench.put(FCR, 0x01)
    assert bench.get(IIR) & 0xC0 == 0xC0
    bench.put(LCR, 0xBF)
    assert bench.get(FCR) != 0
    bench.put(LCR, 0)
    bench.put(FCR, 0x21)
    assert bench.get(IIR) & 0x20 == 0
    bench.put(FCR, 0)
    assert bench.get(IIR) & 0xC0 == 0
    bench.put(MCR, 0x1A)
    assert bench.get(MSR) & 0xF0 == 0x90
    bench.put(MCR, 0)
    assert bench.get(MSR) & 0xF0 == 0xB0


def test_uart_loops_back_what_it_sends() -> None:
    """In loopback mode a byte comes back and does not leave; one more than the FIFO holds is an overrun, told once."""
    bench = Bench()
    bench.put(FCR, 0x01)
    bench.put(MCR, 0x10)
    bench.uart.receive(b"outside")
    for byte in range(17):
        bench.put(THR, byte)
    assert bench.get(LSR) & 3 == 3
    assert bench.get(LSR) & 3 == 1
    assert [bench.get(RBR) for _ in range(16)] == list(range(16))
    assert bench.get(LSR) & 1 == 0
    assert bench.sink.data == b""
    bench.put(MCR, 0)
    assert bench.drain() == b"outside"


def test_uart_interrupts_whenever_the_empty_transmitter_is_enabled() -> None:
    """Enabling the THRE interrupt raises it, reading IIR takes it away, enabling it again or sending raises it
    again."""
    bench = Bench()
    for _ in range(2):
        bench.put(IER, 2)
        assert bench.wire.level
        assert bench.get(IIR) == 0x02
        assert bench.get(IIR) == 0x01
        assert not bench.wire.level
        bench.put(IER, 0)
    bench.put(IER, 2)
    bench.get(IIR)
    bench.put(THR, 65)
    assert bench.wire.level
    assert bench.get(IIR) == 0x02


def test_uart_lets_go_of_the_line_where_a_driver_reads_that_the_transmitter_is_empty() -> None:
    """A driver that never reads IIR, as xv6's, is interrupted once for each enabling and each byte sent."""
    bench = Bench()
    for offset, value in ((IER, 2), (THR, 65)):
        bench.put(offset, value)
        assert bench.wire.level
        assert bench.get(LSR) & 0x20
        assert not bench.wire.level
        assert bench.get(IIR) == 0x02
        assert bench.get(IIR) == 0x01


def test_uart_interrupts_at_the_trigger_level_or_after_four_characters() -> None:
    """Eight bytes interrupt at once at trigger 8; fewer do so when nothing has happened for four characters."""
    bench = Bench()
    bench.put(LCR, 0x80)
    bench.put(DLL, 2)
    bench.put(LCR, 0x03)
    bench.put(FCR, 0x81)
    bench.put(IER, 1)
    bench.uart.receive(b"12345678")
    assert bench.wire.level
    assert bench.get(IIR) == 0xC4
    assert bench.get(RBR) == ord("1")
    assert not bench.wire.level
    # 40 bits at 115,200 baud.
    assert bench.clock.next_event() == 40 * 1_000_000_000 // 115_200
    bench.clock.jump()
    bench.clock.fire()
    assert bench.get(IIR) == 0xCC
    assert bench.wire.level
    assert bench.get(RBR) == ord("2")
    assert not bench.wire.level
    assert bench.drain() == b"345678"
    assert not bench.clock.jump()


def test_uart_modem_interrupt_tells_what_changed_once() -> None:
    """A change of a modem line interrupts until MSR is read; the ring indicator counts where it ends."""
    bench = Bench()
    bench.put(MCR, 0x10)
    bench.get(MSR)
    bench.put(IER, 8)
    bench.put(MCR, 0x16)
    assert bench.wire.level
    assert bench.get(IIR) == 0x00
    assert bench.get(MSR) == 0x51
    assert not bench.wire.level
    bench.put(MCR, 0x12)
    assert bench.get(MSR) == 0x14
    assert bench.get(MSR) == 0x10


@given(st.lists(st.binary(max_size=50), max_size=5), st.sampled_from([0x00, 0x01, 0xC1]), st.booleans())
def test_uart_loses_no_input(chunks: list[bytes], fcr: int, interrupts: bool) -> None:
    """Whatever arrives is read, in order, with FIFOs and without, by a driver that polls and by one that does not."""
    bench = Bench()
    bench.put(FCR, fcr)
    data = b""
    for chunk in chunks:
        bench.uart.receive(chunk)
        if interrupts:
            bench.put(IER, 1)
            while bench.wire.level or bench.clock.jump():
                bench.clock.fire()
                if bench.get(IIR) & 4:
                    data += bytes((bench.get(RBR),))
        else:
            data += bench.drain()
    assert data == b"".join(chunks)


def test_uart_keeps_input_from_a_drivers_set_up() -> None:
    """Input sent before a driver flushes the FIFOs, reads RBR in vain and probes by loopback still reaches it."""
    bench = Bench()
    bench.uart.receive(b"early")
    for _ in range(2):
        bench.put(FCR, 0x01)
        bench.put(FCR, 0x07)
        bench.put(FCR, 0x00)
        for register in (LSR, RBR, IIR, MSR):
            bench.get(register)
        bench.put(IER, 2)
        bench.get(LSR)
        bench.put(IER, 0)
    bench.put(FCR, 0x81)
    bench.put(IER, 5)
    assert bench.get(LSR) & 1
    bench.put(FCR, 0x83)
    assert bytes(bench.get(RBR) for _ in range(5)) == b"early"


def test_uart_reset_keeps_what_the_guest_has_not_read() -> None:
    """A machine that starts again finds its input, and the interrupt line low."""
    bench = Bench()
    bench.put(IER, 1)
    bench.uart.receive(b"ab")
    assert bench.wire.level
    bench.uart.reset()
    assert not bench.wire.level
    assert bench.get(IER) == 0
    assert bench.drain() == b"ab"


def test_uart_takes_back_what_a_poll_let_in() -> None:
    """A byte that two looks at LSR let in, but that a write shows was not wanted, is there for the driver later."""
    bench = Bench()
    bench.uart.receive(b"ab")
    bench.get(LSR)
    assert bench.get(LSR) & 1
    bench.put(IER, 0)
    bench.get(LSR)
    bench.get(RBR)  # a driver's probe
    bench.put(IER, 1)
    assert bench.get(RBR) == ord("a")


def test_uart_holds_input_while_rts_is_low_again() -> None:
    """Once RTS was raised no byte comes in while it is low; before that it does not matter."""
    bench = Bench()
    bench.uart.receive(b"a")
    bench.put(IER, 1)
    assert bench.get(RBR) == ord("a")
    bench.put(MCR, 0x02)
    bench.put(MCR, 0x00)
    bench.uart.receive(b"b")
    assert not bench.get(LSR) & 1
    bench.put(MCR, 0x02)
    assert bench.get(RBR) == ord("b")


def test_uart_lets_input_in_at_a_speed() -> None:
    """Behind 4 KiB at once the next bytes come a microsecond each, so that an interrupt handler ends."""
    bench = Bench()
    bench.put(FCR, 0x01)
    bench.put(IER, 1)
    bench.uart.receive(bytes(10_000))
    count = 0
    while bench.get(LSR) & 1:
        bench.get(RBR)
        count += 1
    assert 4096 <= count <= 4096 + 16
    while len(bench.uart.waiting):
        assert bench.clock.jump()
        bench.clock.fire()
        while bench.get(LSR) & 1:
            bench.get(RBR)
    assert bench.clock.now() == pytest.approx((10_000 - 4096) * 1000, abs=40_000)
