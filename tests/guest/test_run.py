"""Whole guests: the embedded one, and others where this host has them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest

from ringfence.errors import MachineError
from ringfence.guest.loader import load
from ringfence.guest.program import CORRAL
from ringfence.isa.spec import ISA
from ringfence.machine.board import EPOCH_NS, HARTS, MiB, Virt, virt
from ringfence.machine.devicetree import unflatten
from ringfence.machine.exit import Deadline, Idle, PowerOff
from ringfence.machine.trace import trace

Engine = Literal["threaded", "reference"]
ENGINES: tuple[Engine, ...] = ("reference", "threaded")


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def corral(
    typed: bytes = b"", *, harts: int = 1, engine: Engine = "reference", seed: int | None = None
) -> tuple[Virt, Sink]:
    sink = Sink()
    board = virt(32 * MiB, harts, engine=engine, console=sink, seed=seed)
    load(board, CORRAL)
    board.uart.receive(typed)
    return board, sink


@pytest.mark.parametrize("engine", ENGINES)
def test_corral_boots_to_its_shell(engine: Engine) -> None:
    """The embedded guest prints its prompt and then waits for input, with no time passing."""
    board, sink = corral(engine=engine)
    assert isinstance(board.run(), Idle)
    assert sink.data.endswith(b"corral> ")


@pytest.mark.parametrize("engine", ENGINES)
def test_corral_passes_its_selftest(engine: Engine) -> None:
    """Every kind of trap, page table and device: all that the guest tries is as the manuals say."""
    board, sink = corral(b"selftest\rpoweroff\r", engine=engine)
    assert board.run() == PowerOff(board.steps, 0)
    assert b" 0 failed" in sink.data
    assert b"FAIL" not in sink.data


def test_corral_runs_alike_in_both_engines() -> None:
    """The same steps, console and end of every hart, with two harts and drawn turns."""
    ends = []
    for engine in ENGINES:
        board, sink = corral(b"harts\rrun hello\rfault\rpoweroff 7\r", harts=2, engine=engine, seed=5)
        ended = board.run(2_000_000)
        ends.append((ended, sink.data, [list(hart.architectural()) for hart in board.harts], board.clock.now()))
    assert ends[0] == ends[1]
    assert isinstance(ends[0][0], PowerOff) and ends[0][0].status == 7


def test_corral_boots_again_after_a_reset() -> None:
    """A reset in the middle of its work starts it from the beginning."""
    board, sink = corral()
    board.run()
    board.reset()
    assert isinstance(board.run(), Idle)
    assert sink.data.count(b"a small operating system") == 2
    assert sink.data.endswith(b"corral> ")


def test_corral_boots_over_opensbi() -> None:
    """Real machine-mode firmware boots the same kernel, found by fw_dynamic's information."""
    firmware = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.elf")
    if not firmware.exists():
        pytest.skip("this host has no OpenSBI: Debian's package opensbi")
    sink = Sink()
    board = virt(64 * MiB, 2, console=sink)
    load(board, CORRAL, bios=firmware)
    board.uart.receive(b"poweroff 3\r")
    assert board.run(50_000_000) == PowerOff(board.steps, 3)
    assert b"OpenSBI" in sink.data and b"corral> " in sink.data


def test_run_until_a_time_ends_there() -> None:
    """A deadline in guest time ends a run at the first check point behind it, whether the guest works or waits."""
    board, _ = corral(b"run mandel\r")
    assert isinstance(board.run(until=20_000), Deadline)
    assert 20_000 <= board.clock.now() < 20_000 + 4096


@pytest.mark.parametrize(
    "arguments,why",
    [
        ({"harts": 0}, "1 to 8 harts, not 0"),
        ({"harts": 1000}, "1 to 8 harts, not 1000"),
        ({"memory": 0}, "at least 4 MiB"),
        ({"memory": 5 * MiB + 1}, "multiple of 4 KiB, which 5242881 bytes is not"),
        ({"memory": 1 << 50}, "^1 PiB of memory is more than the host's"),
        ({"turn": 0}, "at least 1 step"),
        ({"clock": "foo"}, "no clock 'foo': a machine's is virtual or host"),
        ({"engine": "foo"}, "no engine 'foo': a machine's is threaded or reference"),
    ],
)
def test_board_refuses_what_no_machine_is(arguments: dict[str, Any], why: str) -> None:
    """Limits are errors that say them."""
    with pytest.raises(MachineError, match=why):
        virt(**{"engine": "reference", **arguments})


@pytest.mark.parametrize("harts", [1, HARTS])
def test_board_describes_itself_without_a_warning(harts: int, tmp_path: Path) -> None:
    """dtc has nothing to say about the device tree, whose bytes depend on the inputs alone."""
    tree = virt(64 * MiB, harts, engine="reference").device_tree("quiet", (0x8100_0000, 0x8200_0000))
    assert tree == virt(64 * MiB, harts, engine="reference").device_tree("quiet", (0x8100_0000, 0x8200_0000))
    assert len(unflatten(tree).find("/cpus").children) == harts + 1
    if shutil.which("dtc") is None:
        pytest.skip("this host has no dtc: Debian's package device-tree-compiler")
    found = subprocess.run(["dtc", "-I", "dtb", "-O", "dts", "-o", "/dev/null"], input=tree, capture_output=True)
    assert (found.returncode, found.stderr) == (0, b"")


def test_board_has_fixed_inputs_under_the_virtual_clock() -> None:
    """Epoch and seed are the same in every run by the virtual clock, and the host's by its clock."""
    virtual = virt(4 * MiB, engine="reference")
    host = virt(4 * MiB, engine="reference", clock="host")
    assert virtual.inputs.epoch_ns == EPOCH_NS
    assert host.inputs.epoch_ns > EPOCH_NS
    assert host.inputs.rng_seed != virtual.inputs.rng_seed


def test_trace_writes_a_line_an_event() -> None:
    """Instructions, traps, CSRs and device registers, each with step, hart, mode and pc."""
    board, _ = corral(b"fault\rpoweroff\r")
    lines: list[str] = []
    trace(board, ("insn", "trap", "csr", "io"), lines.append)
    ended = board.run()
    assert {line.split()[0] for line in lines} == {"insn", "trap", "csr", "io"}
    assert lines[0].startswith("insn 0 0 S 0000000080200000 ")
    assert sum(line.startswith(("insn", "trap")) for line in lines) == ended.steps
    assert any("uart16550+0x0 <- " in line for line in lines)
    assert any(" sstatus" in line for line in lines if line.startswith("csr"))
    reads = [line for line in lines if re.match(r"csr .*csrrs a0, time, zero", line)]
    assert reads and all(re.search(r": read 0x[1-9a-f]", line) for line in reads)


def test_trace_needs_the_reference() -> None:
    """Native code cannot be traced, and there is no fifth kind."""
    board, _ = corral()
    with pytest.raises(MachineError, match="nothing called 'x'"):
        trace(board, ("x",), print)
    threaded, _ = corral(engine="threaded")
    with pytest.raises(MachineError, match="only the reference"):
        trace(threaded, ("trap",), print)


def test_host_clock_wakes_a_guest_that_works() -> None:
    """By the host's clock a timer interrupts a guest that never waits, in either engine."""
    for engine in ENGINES:
        board = virt(4 * MiB, engine=engine, clock="host")
        spin = ISA["jal"].encode(rd=0, imm=0).to_bytes(4, "little")
        board.ram.write(0x8000_0000, spin)
        board.harts[0].pc = 0x8000_0000
        board.bus.write(0x200_4000, 8, 100_000)
        assert isinstance(board.run(until=30_000_000), Deadline)
        assert board.harts[0].lines & 1 << 7
