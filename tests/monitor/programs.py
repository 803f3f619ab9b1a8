"""Small programs in M-mode, by the rows' own encoder, for machines that share harts."""

from __future__ import annotations

from idioms import Code, constant, put

from ringfence import Virt
from ringfence.isa.csr import CSRS
from ringfence.isa.trap import Irq
from ringfence.machine.board import ACLINT, FINISHER, RAM
from ringfence.machine.device.aclint import MTIMECMP
from ringfence.machine.device.syscon import FAIL

NUMBERS = {line.name: number for number, line in CSRS.items()}
TICKS = 30
"""The register in which `ticking` counts interrupts."""


def jump(count: int) -> int:
    """Over so many instructions, or back."""
    return put("jal", rd=0, imm=4 * count)


NOP = put("addi", rd=0, rs1=0, imm=0)
BUSY = [put("addi", rd=5, rs1=5, imm=1), jump(-1)]
WFI = [put("wfi"), jump(-1)]
SPIN = [jump(0)]


def ticking(period: int, wait: Code, enabled: int = 1 << Irq.MTI) -> Code:
    """Wait in a loop for a timer interrupt of each hart every so many ticks (100 ns). `enabled`: bits of mie."""
    handler = [
        put("addi", rd=TICKS, rs1=TICKS, imm=1),
        put("add", rd=28, rs1=28, rs2=6),
        put("sd", rs1=5, rs2=28),
        put("mret"),
    ]
    setup = [
        put("csrrw", rd=0, rs1=7, csr=NUMBERS["mtvec"]),
        put("addi", rd=7, rs1=0, imm=enabled),
        put("csrrw", rd=0, rs1=7, csr=NUMBERS["mie"]),
        put("csrrsi", rd=0, uimm=1 << 3, csr=NUMBERS["mstatus"]),
    ]
    return [
        *constant(5, ACLINT + MTIMECMP),
        put("csrr", rd=7, csr=NUMBERS["mhartid"]),
        put("slli", rd=7, rs1=7, shamt=3),
        put("add", rd=5, rs1=5, rs2=7),
        *constant(6, period),
        put("addi", rd=28, rs1=6, imm=0),
        put("sd", rs1=5, rs2=28),
        put("auipc", rd=7, imm=0),
        put("addi", rd=7, rs1=7, imm=4 * (2 + len(setup) + len(wait))),
        *setup,
        *wait,
        *handler,
    ]


def bursts(work: int, period: int) -> Code:
    """Work for so many rounds of two steps at every timer interrupt; between them wait in WFI."""
    busy = [*constant(8, work), put("addi", rd=8, rs1=8, imm=-1), put("bne", rs1=8, rs2=0, imm=-4)]
    return ticking(period, [put("wfi"), *busy, jump(-len(busy) - 1)])


def fails(rounds: int, status: int) -> Code:
    """Power off with a status, after so many rounds of two steps."""
    return [
        *constant(5, rounds),
        put("addi", rd=5, rs1=5, imm=-1),
        put("bne", rs1=5, rs2=0, imm=-4),
        *constant(6, FINISHER),
        *constant(7, status << 16 | FAIL),
        put("sw", rs1=6, rs2=7),
        jump(0),
    ]


def greedy() -> Code:
    """Write to one frame of RAM after the other."""
    return [
        put("auipc", rd=5, imm=0),
        put("lui", rd=6, imm=4096),
        put("add", rd=5, rs1=5, rs2=6),
        put("sd", rs1=5, rs2=5),
        jump(-2),
    ]


def load_code(machine: Virt, code: Code) -> None:
    """Every hart begins with it."""
    machine.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in code))
    for hart in machine.harts:
        hart.pc = RAM
