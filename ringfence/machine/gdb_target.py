"""What gdb is told of a hart: its registers, from the hart's state and the list of CSRs, and their description in XML.

Source: "Debugging with GDB", appendix "Target Descriptions", section "RISC-V Features".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ringfence.isa.csr import CSRS
from ringfence.isa.spec import F_NAMES, X_NAMES
from ringfence.isa.trap import M, S, U
from ringfence.machine.look import Look

if TYPE_CHECKING:
    from ringfence.machine.hart import Hart
    from ringfence.machine.machine import Computer

CPU, FPU, CSR, VIRTUAL = (f"org.gnu.gdb.riscv.{part}" for part in ("cpu", "fpu", "csr", "virtual"))
CORE = 33
"""The integer registers and the pc: what one packet holds of them all."""
FIRST_FLOAT, FIRST_CSR = 33, 65
PRIV = FIRST_CSR + 4096
FLOAT_CSRS = ("fflags", "frm", "fcsr")
_TYPES = {
    "ra": "code_ptr",
    "pc": "code_ptr",
    "sp": "data_ptr",
    "gp": "data_ptr",
    "tp": "data_ptr",
    "s0": "data_ptr",
}


@dataclass(frozen=True)
class Register:
    """A 64-bit register by gdb's number. `csr`: it is read and written as its instructions do."""

    name: str
    feature: str
    type: str = "int"
    csr: bool = False


@cache
def registers() -> dict[int, Register]:
    """All of them, by number."""
    found = {
        n: Register("fp" if name == "s0" else name, CPU, _TYPES.get(name, "int"))
        for n, name in enumerate((*X_NAMES, "pc"))
    }
    found |= {FIRST_FLOAT + n: Register(name, FPU, "ieee_double") for n, name in enumerate(F_NAMES)}
    for number, line in sorted(CSRS.items()):
        found[FIRST_CSR + number] = Register(line.name, FPU if line.name in FLOAT_CSRS else CSR, csr=True)
    found[PRIV] = Register("priv", VIRTUAL)
    return found


def read(computer: Computer, hart: Hart, number: int) -> int:
    """Raises KeyError where there is no such register."""
    register = registers()[number]
    return Look(computer, hart).csr(register.name) if register.csr else hart[register.name]


def write(computer: Computer, hart: Hart, number: int, value: int) -> None:
    """What the register cannot hold is not written. Raises KeyError."""
    register = registers()[number]
    if register.csr:
        Look(computer, hart).set_csr(register.name, value)
    elif register.name == "pc":
        hart.pc = value & ~1
    elif register.name != "priv" or value in (U, S, M):
        hart[register.name] = value


@cache
def description() -> bytes:
    """The target description."""
    parts = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    # For Linux's programs gdb works out itself where a step leads, and is wrong at a trap and at its return.
    parts.append("<architecture>riscv:rv64</architecture><osabi>none</osabi>")
    for feature in (CPU, FPU, CSR, VIRTUAL):
        parts.append(f'<feature name="{feature}">')
        for number, r in registers().items():
            if r.feature == feature:
                # What a call of a function by gdb must not put back: the counters run, and a CSR has effects.
                kept = ' save-restore="no"' if r.csr or r.name == "priv" else ""
                parts.append(f'<reg name="{r.name}" bitsize="64" regnum="{number}" type="{r.type}"{kept}/>')
        parts.append("</feature>")
    return "\n".join([*parts, "</target>", ""]).encode()
