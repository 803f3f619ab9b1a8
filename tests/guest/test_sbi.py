"""The built-in SBI, call by call, against the text of SBI 2.0."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ringfence.guest import sbi
from ringfence.guest.sbi import CALLS, Sbi
from ringfence.isa.spec import ISA
from ringfence.isa.trap import Irq, S, Status
from ringfence.machine.board import RAM, MiB, Virt, virt
from ringfence.machine.exit import Budget, Idle, PowerOff
from ringfence.machine.hart import Hart

ENTRY = RAM + 0x1000
ALL = (1 << 64) - 1


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class Bench:
    """A machine of some harts that stands where the SBI starts it."""

    def __init__(self, harts: int = 2) -> None:
        self.sink = Sink()
        self.board: Virt = virt(4 * MiB, harts, engine="reference", console=self.sink)
        self.sbi = Sbi(self.board)
        self.board.firmware = self.sbi
        self.sbi.power_on(ENTRY, 0x1234)

    def call(self, extension: int, function: int, *arguments: int, hart: int = 0) -> tuple[int, int]:
        """(error, value), signed."""
        target = self.board.harts[hart]
        for n, value in enumerate((*arguments, 0, 0, 0, 0, 0, 0)[:6]):
            target.x[10 + n] = value & ALL
        target["a6"], target["a7"] = function, extension
        self.sbi.call(target)
        return _signed(target["a0"]), _signed(target["a1"])

    def program(self, *words: int, at: int = ENTRY) -> None:
        self.board.ram.write(at, b"".join(word.to_bytes(4, "little") for word in words))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _state(hart: Hart) -> dict[str, int]:
    return {name: value for name, value in hart.architectural() if name not in ("x[10]", "x[11]")}


def test_sbi_starts_hart_0_as_the_boot_protocol_says() -> None:
    """The first hart is in S-mode with its number in a0, the tree in a1, satp 0 and interrupts off; the others wait
    to be started."""
    bench = Bench(3)
    first, *others = bench.board.harts
    assert (first.priv, first.pc, first["a0"], first["a1"], first.satp) == (S, ENTRY, 0, 0x1234, 0)
    assert not first.mstatus >> Status.SIE & 1
    assert [hart.stopped for hart in bench.board.harts] == [0, 1, 1]
    assert all(hart.firmware for hart in others)


def test_sbi_base_names_itself_and_what_it_has() -> None:
    """Version 2.0; every extension of the table is there and no other."""
    bench = Bench()
    assert bench.call(sbi.BASE, 0) == (0, 2 << 24)
    assert bench.call(sbi.BASE, 1) == (0, sbi.IMPLEMENTATION)
    for extension in (sbi.BASE, sbi.TIME, sbi.IPI, sbi.RFENCE, sbi.HSM, sbi.SRST, sbi.DBCN):
        assert bench.call(sbi.BASE, 3, extension)[1] != 0
    for extension in (0x0A, 0x504D55, 0x535553, 0x4E41434C):
        assert bench.call(sbi.BASE, 3, extension) == (0, 0)


@pytest.mark.parametrize("extension", [sbi.BASE, sbi.TIME, sbi.HSM, sbi.DBCN, 0x0A00_0000, 0x99])
def test_sbi_refuses_what_it_has_not(extension: int) -> None:
    """A function or extension that is not there is SBI_ERR_NOT_SUPPORTED."""
    assert Bench().call(extension, 77) == (sbi.NOT_SUPPORTED, 0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*CALLS, (0x1234, 5)]), st.lists(st.integers(0, ALL), min_size=6, max_size=6))
def test_sbi_changes_only_a0_and_a1(call: tuple[int, int], arguments: list[int]) -> None:
    """Whatever the arguments, a call raises nothing, and all other registers of the caller that it is not asked to
    change stay."""
    bench = Bench()
    hart = bench.board.harts[0]
    for n in (5, 6, 9, 18, 31):
        hart.x[n] = n * 0x1111
    bench.call(*call, *arguments)
    assert [hart.x[n] for n in (5, 6, 9, 18, 31)] == [n * 0x1111 for n in (5, 6, 9, 18, 31)]
    assert [hart.x[12 + n] for n in range(4)] == arguments[2:]


def test_sbi_timer_drives_stip_until_it_is_set_again() -> None:
    """set_timer in the past raises STIP, one in the future takes it back."""
    bench = Bench()
    hart = bench.board.harts[0]
    bench.board.clock.idle_ns = 1_000_000
    assert bench.call(sbi.TIME, 0, 5) == (0, 0)
    assert hart.lines >> Irq.STI & 1
    assert bench.call(sbi.TIME, 0, ALL) == (0, 0)
    assert not hart.lines >> Irq.STI & 1


def test_sbi_timer_wakes_a_hart_that_waits() -> None:
    """A hart in WFI goes on at the time that set_timer names."""
    bench = Bench(1)
    bench.program(ISA["wfi"].encode(), ISA["jal"].encode(rd=0, imm=0))
    bench.board.harts[0].mie = 1 << Irq.STI
    bench.call(sbi.TIME, 0, 5000)
    assert isinstance(bench.board.run(100), Budget)
    assert bench.board.clock.now() >= 500_000


def test_sbi_ipi_reaches_just_the_harts_of_the_mask() -> None:
    """SSIP is set in the harts that the mask and its base name; base -1 is all of them."""
    bench = Bench(4)
    for n in range(1, 4):
        bench.call(sbi.HSM, 0, n, ENTRY, 0)
    assert bench.call(sbi.IPI, 0, 0b101, 1) == (0, 0)
    assert [hart.mip >> Irq.SSI & 1 for hart in bench.board.harts] == [0, 1, 0, 1]
    assert bench.call(sbi.IPI, 0, 0, ALL) == (0, 0)
    assert all(hart.mip >> Irq.SSI & 1 for hart in bench.board.harts)


@pytest.mark.parametrize("extension,function", [(sbi.IPI, 0), (sbi.RFENCE, 0), (sbi.RFENCE, 1), (sbi.RFENCE, 2)])
def test_sbi_masks_of_harts_that_are_not_there_are_refused(extension: int, function: int) -> None:
    """A hart mask that names a hart beyond the last is SBI_ERR_INVALID_PARAM, and nothing is done."""
    bench = Bench(2)
    assert bench.call(extension, function, 0b100, 0) == (sbi.INVALID_PARAM, 0)
    assert bench.call(extension, function, 1, 64) == (sbi.INVALID_PARAM, 0)
    assert bench.call(extension, function, 0b11, 0) == (0, 0)
    assert bench.call(extension, function, 0b100, 1) == (sbi.INVALID_PARAM, 0)


def test_sbi_fences_check_their_range() -> None:
    """A range that wraps is SBI_ERR_INVALID_ADDRESS; size -1 is everything."""
    bench = Bench()
    assert bench.call(sbi.RFENCE, 1, 1, 0, ALL - 4095, 8192) == (sbi.INVALID_ADDRESS, 0)
    assert bench.call(sbi.RFENCE, 1, 1, 0, 0x1000, ALL) == (0, 0)
    assert bench.call(sbi.RFENCE, 3, 1, 0, 0, 0) == (sbi.NOT_SUPPORTED, 0)


def test_sbi_hart_start_begins_a_stopped_hart() -> None:
    """It is STARTED at the address, with its number in a0 and the opaque word in a1."""
    bench = Bench()
    assert bench.call(sbi.HSM, 2, 1) == (0, sbi.STOPPED)
    assert bench.call(sbi.HSM, 0, 1, ENTRY, 0xABCD) == (0, 0)
    assert bench.call(sbi.HSM, 2, 1) == (0, sbi.STARTED)
    hart = bench.board.harts[1]
    assert (hart.pc, hart["a0"], hart["a1"], hart.priv, hart.stopped) == (ENTRY, 1, 0xABCD, S, 0)


@pytest.mark.parametrize(
    "number,address,error",
    [
        (0, ENTRY, sbi.ALREADY_AVAILABLE),
        (2, ENTRY, sbi.INVALID_PARAM),
        (ALL, ENTRY, sbi.INVALID_PARAM),
        (1, 0, sbi.INVALID_ADDRESS),
        (1, RAM + 4 * MiB, sbi.INVALID_ADDRESS),
        (1, ENTRY + 1, sbi.INVALID_ADDRESS),
    ],
)
def test_sbi_hart_start_says_what_is_wrong(number: int, address: int, error: int) -> None:
    """A running hart, one that is not there and an address that cannot be executed have an error each."""
    bench = Bench()
    before = _state(bench.board.harts[1])
    assert bench.call(sbi.HSM, 0, number, address, 0) == (error, 0)
    assert _state(bench.board.harts[1]) == before


def test_sbi_hart_stop_is_where_a_hart_ends() -> None:
    """A hart that stops itself executes nothing more, and can be started again."""
    bench = Bench(1)
    bench.program(
        ISA["addi"].encode(rd=6, rs1=6, imm=1), ISA["ecall"].encode(), ISA["addi"].encode(rd=6, rs1=6, imm=10)
    )
    hart = bench.board.harts[0]
    hart["a7"], hart["a6"] = sbi.HSM, 1
    assert isinstance(bench.board.run(100), Idle)
    assert (hart.stopped, hart.x[6], bench.board.steps) == (1, 1, 2)


def test_sbi_retentive_suspend_returns_behind_the_call() -> None:
    """The hart is SUSPENDED until an interrupt that it enables is pending, then goes on with SBI_SUCCESS."""
    bench = Bench(2)
    bench.program(ISA["ecall"].encode(), ISA["addi"].encode(rd=6, rs1=10, imm=7), ISA["jal"].encode(rd=0, imm=0))
    hart = bench.board.harts[0]
    hart.mie = 1 << Irq.SSI
    hart["a7"], hart["a6"], hart["a0"] = sbi.HSM, 3, sbi.RETENTIVE
    assert isinstance(bench.board.run(50), Idle)
    assert bench.call(sbi.HSM, 2, 0, hart=1) == (0, sbi.SUSPENDED)
    bench.call(sbi.IPI, 0, 1, 0, hart=1)
    bench.board.run(5)
    assert hart.x[6] == 7
    assert bench.call(sbi.HSM, 2, 0, hart=1) == (0, sbi.STARTED)


def test_sbi_non_retentive_suspend_resumes_at_its_address() -> None:
    """The hart begins at the address with its number in a0, the opaque word in a1, no paging and interrupts off."""
    bench = Bench(1)
    bench.program(ISA["ecall"].encode())
    bench.program(ISA["jal"].encode(rd=0, imm=0), at=ENTRY + 0x100)
    hart = bench.board.harts[0]
    hart.mie = 1 << Irq.SSI
    hart.mstatus |= 1 << Status.SIE
    hart["a7"], hart["a6"], hart["a0"] = sbi.HSM, 3, sbi.NON_RETENTIVE
    hart["a1"], hart["a2"] = ENTRY + 0x100, 0x77
    assert isinstance(bench.board.run(50), Idle)
    hart.mip |= 1 << Irq.SSI
    bench.board.run(3)
    assert (hart.pc, hart["a0"], hart["a1"], hart.satp) == (ENTRY + 0x100, 0, 0x77, 0)
    assert not hart.mstatus >> Status.SIE & 1


@pytest.mark.parametrize(
    "kind,error",
    [
        (1, sbi.INVALID_PARAM),
        (0x1000_0000, sbi.NOT_SUPPORTED),
        (0x8000_0001, sbi.INVALID_PARAM),
        (1 << 32, sbi.INVALID_PARAM),
    ],
)
def test_sbi_suspend_refuses_other_types(kind: int, error: int) -> None:
    """Reserved types are SBI_ERR_INVALID_PARAM, the platform's own SBI_ERR_NOT_SUPPORTED."""
    bench = Bench()
    assert bench.call(sbi.HSM, 3, kind, ENTRY, 0) == (error, 0)
    assert not bench.board.harts[0].waiting


def test_sbi_shutdown_ends_the_machine_with_its_reason() -> None:
    """Without a reason the status is 0; a system failure is 132."""
    for reason, status in ((0, 0), (1, sbi.FAILURE_STATUS)):
        bench = Bench(1)
        bench.program(ISA["ecall"].encode())
        hart = bench.board.harts[0]
        hart["a7"], hart["a6"], hart["a0"], hart["a1"] = sbi.SRST, 0, sbi.SHUTDOWN, reason
        ended = bench.board.run(100)
        assert isinstance(ended, PowerOff) and ended.status == status


def test_sbi_reboot_starts_the_machine_again() -> None:
    """Either reboot calls the machine's reset."""
    for kind in (sbi.COLD_REBOOT, sbi.WARM_REBOOT):
        bench = Bench()
        assert bench.call(sbi.SRST, 0, kind, 0) == (0, 0)
        assert bench.board.reset_wanted


@pytest.mark.parametrize(
    "kind,reason,error",
    [(3, 0, sbi.INVALID_PARAM), (0, 2, sbi.INVALID_PARAM), (0xF000_0000, 0, sbi.NOT_SUPPORTED)],
)
def test_sbi_reset_refuses_reserved_types(kind: int, reason: int, error: int) -> None:
    """Reserved types and reasons are errors, and the machine goes on."""
    bench = Bench()
    assert bench.call(sbi.SRST, 0, kind, reason) == (error, 0)
    assert not bench.board.reset_wanted and bench.board.status is None


def test_sbi_console_writes_from_memory() -> None:
    """The bytes at the physical address come out, and their number back."""
    bench = Bench()
    bench.board.ram.write(ENTRY, b"hello")
    assert bench.call(sbi.DBCN, 0, 5, ENTRY, 0) == (0, 5)
    assert bench.call(sbi.DBCN, 2, 0x121) == (0, 0)
    assert bench.call(sbi.LEGACY_PUTCHAR, 0, ord("?"))[0] == 0
    assert bench.sink.data == b"hello!?"


@pytest.mark.parametrize("function", [0, 1])
@pytest.mark.parametrize("size,low,high", [(5, 0, 0), (5, RAM + 4 * MiB - 4, 0), (5, ENTRY, 1), (ALL, ENTRY, 0)])
def test_sbi_console_refuses_what_is_not_memory(function: int, size: int, low: int, high: int) -> None:
    """A range that is not all RAM is SBI_ERR_INVALID_PARAM, and nothing is written or read."""
    bench = Bench()
    bench.board.uart.receive(b"x")
    assert bench.call(sbi.DBCN, function, size, low, high) == (sbi.INVALID_PARAM, 0)
    assert bench.sink.data == b""
    assert bench.call(sbi.LEGACY_GETCHAR, 0)[0] == ord("x")


def test_sbi_console_reads_what_there_is() -> None:
    """As many bytes as have come, at most as asked; none is no error."""
    bench = Bench()
    assert bench.call(sbi.DBCN, 1, 8, ENTRY, 0) == (0, 0)
    bench.board.uart.receive(b"0123456789abcdefghijklmn")
    assert bench.call(sbi.DBCN, 1, 20, ENTRY, 0) == (0, 20)
    assert bench.board.ram.read(ENTRY, 21) == b"0123456789abcdefghij\0"
    assert bench.call(sbi.LEGACY_GETCHAR, 0)[0] == ord("k")
    assert bench.call(sbi.DBCN, 1, 20, ENTRY, 0) == (0, 3)
    assert bench.call(sbi.LEGACY_GETCHAR, 0)[0] == -1
