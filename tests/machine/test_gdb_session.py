"""gdb itself, as distributions have it, at a machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ringfence import CORRAL, Debugger, MiB, PowerOff, Virt, load, virt
from ringfence.isa import pmp
from ringfence.isa.spec import ISA
from ringfence.machine.board import RAM


def corral(harts: int = 1, commands: bytes = b"") -> Virt:
    board = virt(16 * MiB, harts)
    load(board, CORRAL)
    board.uart.receive(commands)
    return board


def bare(*program: int, harts: int = 1) -> Virt:
    """Every hart runs these instructions in M-mode."""
    board = virt(4 * MiB, harts)
    board.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in program))
    for hart in board.harts:
        hart.pc = RAM
    return board


def gdb(board: Virt, *commands: str, symbols: Path) -> str:
    """A session of gdb-multiarch; what it printed."""
    if shutil.which("gdb-multiarch") is None:
        pytest.skip("gdb-multiarch is not installed")
    client = Debugger(board, wait=True)
    host, port = client.address
    script = ["set pagination off", f"target remote {host}:{port}", *commands, "kill"]
    process = subprocess.Popen(
        [
            "gdb-multiarch",
            "-nx",
            "-batch",
            str(symbols),
            *(word for line in script for word in ("-ex", line)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert isinstance(client.run(until=20_000_000_000), PowerOff)
        return process.communicate(timeout=30)[0]
    finally:
        process.kill()
        client.close()


def test_gdb_session_in_corral() -> None:
    """gdb stops in the embedded guest's kernel by symbol, walks its stack, watches a variable, and steps."""
    said = gdb(
        corral(2, commands=b"run hello\n"),
        "info threads",
        "break put_string",
        "continue",
        "backtrace",
        "delete",
        "watch *(int*)&last_pid",
        "continue",
        "delete",
        "print/x $sstatus",
        "set $sscratch = 0x1234",
        "print/x $sscratch",
        "print $priv",
        "stepi",
        "hbreak reap",
        "continue",
        "monitor machine",
        "maintenance packet Qqemu.PhyMemMode:1",
        "x/wx 0x80200000",
        symbols=CORRAL,
    )
    for pattern in (
        r"\* 1 +Thread 1 \(hart 0, S-mode, running\)",
        r"hit Breakpoint 1, .* in put_string",
        r"#\d+ +0x\w+ in kernel_main",
        r"Old value = 0\nNew value = 1\n",
        r"\$1 = 0x2000\w+\n\$2 = 0x1234\n\$3 = 1\n",
        r"hit Breakpoint 3, .* in reap",
        r"hart 1, S-mode, stopped, pc 0x",
        r"0x80200000 <kernel_start>:\t0x0001",
    ):
        assert re.search(pattern, said), said


def test_gdb_calls_a_function_of_the_guest() -> None:
    """Its stack holds no code that could be executed, and the call comes back all the same."""
    double = ISA["add"].encode(rd=10, rs1=10, rs2=10), ISA["jalr"].encode(rd=0, rs1=1, imm=0)
    board = bare(ISA["jal"].encode(rd=0, imm=0), *double)
    hart = board.harts[0]
    hart["sp"], hart.mtvec = RAM + 0x3000, RAM
    hart.pmpaddr0, hart.pmpcfg0 = (RAM + 0x2000 | 0x7FF) >> 2, pmp.NAPOT | pmp.R | pmp.W | pmp.L
    said = gdb(
        board,
        "print ((long (*)(long)) 0x80000004)(21)",
        "print ((long (*)(long)) 0x80000004)($1)",
        "print/x $pc",
        "print/x $mcause",
        symbols=CORRAL,
    )
    assert re.search(r"\$1 = 42\n\$2 = 84\n\$3 = 0x80000000\n\$4 = 0x0\n", said), said


def test_gdb_steps_through_a_trap_and_its_return() -> None:
    """gdb does not look for what Linux would do at an ECALL, nor behind an MRET."""
    board = bare(ISA["ecall"].encode(), *[0] * 15, ISA["mret"].encode())
    board.harts[0].mtvec = RAM + 64
    said = gdb(board, *["stepi", "print/x $pc"] * 4, symbols=CORRAL)
    assert re.findall(r"\$\d = (0x\w+)", said) == ["0x80000040", "0x80000000"] * 2, said


def test_gdb_holds_all_threads_but_one() -> None:
    """With `scheduler-locking` a hart steps alone, whoever has the turn, and runs alone."""
    count = ISA["addi"].encode(rd=5, rs1=5, imm=1)
    board = bare(count, count, count, ISA["jal"].encode(rd=0, imm=-12), harts=3)
    said = gdb(
        board,
        "set scheduler-locking on",
        "thread 2",
        "stepi",
        "stepi",
        "thread 3",
        "break *0x80000004",
        "continue",
        "stepi",
        "info threads",
        "thread apply all print $t0",
        "monitor translate 4 2",
        symbols=CORRAL,
    )
    assert re.search(r"\* 3 +Thread 3 .*0x0*80000008", said) and re.search(r" 2 +Thread 2 .*0x0*80000008", said), said
    assert re.findall(r"\$\d = (\d)", said) == ["2", "2", "0"], said
    assert "hart 2, M-mode, running: 0x4 is at 0x4\n" in said, said
    assert board.steps == 4


def test_gdb_session_in_debian(tmp_path: Path) -> None:
    """gdb stops at the first C function of Debian's kernel, by the symbols that the kernel itself has."""
    from ringfence import RingfenceError, Store
    from ringfence.guest.kallsyms import symbol_file

    try:
        image = Store().find("debian")
    except RingfenceError as error:
        pytest.skip(str(error))
    symbols = tmp_path / "symbols.elf"
    symbols.write_bytes(symbol_file(image.kernel.read_bytes()))
    board = virt(128 * MiB)
    load(board, image.kernel, initrd=[image.initrd], append=image.append())
    said = gdb(
        board,
        "break *start_kernel",
        "continue",
        "print/x $satp >> 60",
        "x/s linux_banner",
        symbols=symbols,
    )
    assert re.search(r"Breakpoint 1, 0xffffffff8\w+ in start_kernel \(\)", said), said
    assert re.search(r"Linux version 6\.\d+", said), said
