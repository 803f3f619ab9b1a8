"""A monitor of two instructions, for tests: it launches a control block that the test writes, and then stands still."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

from ringfence import MiB, Virt, virt
from ringfence.isa.spec import ISA
from ringfence.machine.board import RAM
from ringfence.machine.exit import Deadline
from ringfence.machine.hart import FIELDS, SIZE
from ringfence.machine.memory import FRAME
from ringfence.machine.virtualizer import FOREVER, MODE, REQUEST, RESULT, RESULT_AT, START, STATE_AT, Cause

Engine = Literal["threaded", "reference"]
BLOCK, ROOT, MIDDLE, LOWER, AREA = (RAM + n for n in (0x8000, 0x10000, 0x14000, 0x15000, 0x40_0000))
"""Where a test keeps its control block, the tables of f and the machine's memory."""
VALID, LEAF = 1, 0xD1
R, W, X = 2, 4, 8
MEMORY = 4 * MiB


def put(name: str, **operands: int) -> int:
    return ISA[name].encode(**operands)


STAND = put("jal", rd=0, imm=0)


@dataclass
class Request:
    """The words of a control block, as docs/xhv.md has them."""

    f: int = MODE << 60 | ROOT // FRAME
    number: int = 1
    memory: int = MEMORY
    harts: int = 1
    flags: int = START
    budget: int = 1000
    idle: int = FOREVER


def host(engine: Engine = "threaded") -> Virt:
    """A machine with the monitor in it, and an f that has no answer for anything in its two lowest superpages."""
    machine = virt(16 * MiB, isa="hv", engine=engine)
    prepare(machine)
    return machine


def prepare(machine: Virt) -> None:
    program(machine, [put("vmrun", rs1=10), STAND])
    word(machine, ROOT, MIDDLE // FRAME << 10 | VALID)
    word(machine, MIDDLE, LOWER // FRAME << 10 | VALID)


def program(machine: Virt, code: list[int], at: int = RAM) -> None:
    machine.ram.write(at, b"".join(instruction.to_bytes(4, "little") for instruction in code))


def word(machine: Virt, at: int, value: int) -> None:
    machine.ram.write(at, value.to_bytes(8, "little"))


def page(machine: Virt, n: int, to: int, rights: int = R | W | X) -> None:
    """f: page n of the machine's memory is at `to`."""
    word(machine, LOWER + 8 * n, to // FRAME << 10 | LEAF | rights)


def state(machine: Virt, hart: int = 0, block: int = BLOCK, **fields: int) -> None:
    """Write words of a hart's state in the control block: `pc=`, `priv=`, `x10=`."""
    for name, value in fields.items():
        offset = 8 * int(name[1:]) if name[0] == "x" and name[1:].isdigit() else FIELDS[name].offset
        word(machine, block + STATE_AT + hart * SIZE + offset, value)


def launch(machine: Virt, request: Request, block: int = BLOCK) -> tuple[Cause, int, int, int]:
    """(cause, address, detail, steps) with which the machine is left."""
    machine.ram.write(block, REQUEST.pack(*astuple(request)))
    again(machine, block)
    cause, address, detail, steps, _ = RESULT.unpack(machine.ram.read(block + RESULT_AT, RESULT.size))
    return Cause(cause), address, detail, steps


def again(machine: Virt, block: int = BLOCK) -> None:
    """Launch it as it is."""
    hart = machine.harts[0]
    hart.pc, hart["a0"] = RAM, block
    for _ in range(100):
        ended = machine.run(1000, until=machine.clock.now() + 1_000_000)
        assert not isinstance(ended, Deadline)
        if not hart.launched and hart.pc == RAM + 4:
            return
    raise AssertionError("the machine is not left")
