"""Guests that mean harm, or know no better: what happens is their own trap."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
from typing import Literal

import pytest

from ringfence import MiB, virt
from ringfence.isa.spec import ISA, X_NAMES
from ringfence.isa.trap import Cause
from ringfence.machine.board import RAM, Virt
from ringfence.machine.exit import Budget, PowerOff

EngineName = Literal["reference", "threaded"]
ENGINES: tuple[EngineName, ...] = ("reference", "threaded")
TABLE = RAM + 1 * MiB


def machine(engine: EngineName, *code: int) -> Virt:
    """A machine in M-mode at the first of these instructions."""
    board = virt(4 * MiB, engine=engine)
    board.memory[RAM : RAM + 4 * len(code)] = struct.pack(f"<{len(code)}I", *code)
    board.harts[0].pc = RAM
    return board


def asm(name: str, **operands: int | str) -> int:
    return ISA[name].encode(**{k: X_NAMES.index(v) if isinstance(v, str) else v for k, v in operands.items()})


@pytest.mark.parametrize("engine", ENGINES)
def test_jump_to_nowhere_is_the_guests_own_trap(engine: EngineName) -> None:
    """A jump to where nothing is traps; with no handler there either, the guest traps for ever and time passes."""
    board = machine(engine, asm("addi", rd="t0", rs1="zero", imm=-2048), asm("jalr", rd="zero", rs1="t0", imm=0))
    assert board.run(2) == Budget(2)
    assert board.run(1) == Budget(3)
    hart = board.harts[0]
    assert (hart.mcause, hart.mepc, hart.mtval) == (Cause.FETCH_ACCESS, 2**64 - 2048, 2**64 - 2048)
    assert board.run(50_000) == Budget(50_003)
    assert (hart.mcause, hart.mepc, board.csr("minstret")) == (Cause.FETCH_ACCESS, 0, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_loop_on_a_fault_can_be_stopped(engine: EngineName) -> None:
    """A handler that faults itself goes on for ever, in steps that are counted exactly."""
    load = asm("ld", rd="t1", rs1="zero", imm=0)
    board = machine(engine, asm("auipc", rd="t0", imm=0), asm("csrrw", rd="zero", rs1="t0", csr=0x305), load)
    assert board.run(30_002) == Budget(30_002)
    assert board.harts[0].mcause == Cause.LOAD_ACCESS


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(3))
def test_noise_in_every_device_register_harms_nobody(engine: EngineName, seed: int) -> None:
    """Random stores and loads of all sizes over all device windows end in a power-off or in the program's own end."""
    draw = random.Random(seed)
    count = 3000
    board = virt(4 * MiB, engine=engine)
    windows = [(start, end) for start, end, _ in board.bus.windows()]
    entries = []
    for _ in range(count):
        start, end = draw.choice(windows)
        place = start + draw.randrange(min(end - start, draw.choice((64, 4096, 1 << 30))))
        entries.append((place & ~7 if draw.random() < 0.7 else place, draw.getrandbits(draw.choice((1, 8, 32, 64)))))
    loop = [
        asm("ld", rd="a0", rs1="s0", imm=0),
        asm("ld", rd="a1", rs1="s0", imm=8),
    ]
    for name in draw.choices(("sb", "sh", "sw", "sd"), k=2):
        loop.append(asm(name, rs1="a0", rs2="a1", imm=0))
    for name in draw.choices(("lbu", "lh", "lw", "ld"), k=2):
        loop.append(asm(name, rs1="a0", rd="a2", imm=0))
    loop.append(asm("addi", rd="s0", rs1="s0", imm=16))
    loop.append(asm("bne", rs1="s0", rs2="s1", imm=-4 * len(loop)))
    end = asm("jal", rd="zero", imm=0)
    skip = [  # the handler: go on behind the access that faulted
        asm("csrr", rd="t0", csr=0x341),
        asm("addi", rd="t0", rs1="t0", imm=4),
        asm("csrrw", rd="zero", rs1="t0", csr=0x341),
        ISA["mret"].encode(),
    ]
    code = [*loop, end, *skip]
    board.memory[RAM : RAM + 4 * len(code)] = struct.pack(f"<{len(code)}I", *code)
    board.memory[TABLE : TABLE + 16 * count] = b"".join(struct.pack("<QQ", *e) for e in entries)
    hart = board.harts[0]
    hart.pc, hart.mtvec = RAM, RAM + 4 * (len(loop) + 1)
    hart["s0"], hart["s1"] = TABLE, TABLE + 16 * count
    ended = board.run(60 * count)
    assert isinstance(ended, PowerOff) or hart["s0"] == hart["s1"]


def test_ctrl_c_stops_a_run_between_two_instructions() -> None:
    """Ctrl-C while native code runs an endless loop raises KeyboardInterrupt, and the machine can go on."""
    board = machine("threaded", asm("addi", rd="t0", rs1="t0", imm=1), asm("jal", rd="zero", imm=-4))
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            board.run()
    finally:
        timer.join()
    assert board.run(1001) == Budget(board.steps)
    assert board.harts[0]["t0"] == (board.steps + 1) // 2
