"""A line for each event of a run: what is seen where the reference reads every row.

    insn  STEPS HART MODE PC  bits instruction
    trap  STEPS HART MODE PC  -> mode and pc where it leads, cause, tval
    csr   STEPS HART MODE PC  instruction: what it read, and the fields of the hart's state that it changed
    io    STEPS HART MODE PC  a chip and its register's offset, <- written or -> read (bytes)

Numbers are hexadecimal, but for steps, harts and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from ringfence.errors import MachineError
from ringfence.isa.spec import disassemble
from ringfence.isa.trap import Cause, Irq
from ringfence.machine.bus import Bus
from ringfence.machine.device.device import AccessFault
from ringfence.machine.engine.bound import bind
from ringfence.machine.engine.reference import Known, ReferenceEngine
from ringfence.machine.hart import FIELDS, SIZE, Hart
from ringfence.machine.machine import Computer

KINDS = ("insn", "trap", "csr", "io")
MODES = "US?M"
Line = Callable[[str], None]


def trace(computer: Computer, kinds: Collection[str], line: Line) -> None:
    """From now on give `line` the text of every event of these kinds. Raises `MachineError` for another engine than
    the reference."""
    if unknown := set(kinds) - set(KINDS):
        raise MachineError(f"nothing called {sorted(unknown)[0]!r} can be traced: there is {', '.join(KINDS)}")
    if not isinstance(computer.engine, ReferenceEngine):
        raise MachineError("only the reference engine can be traced")
    traced = _Traced(computer, frozenset(kinds), line)
    computer.reference = traced
    if "io" in kinds:
        bus = _TracedBus(traced, computer.bus)
        computer.bus = bus


class _Traced(Known):
    """The reference, telling what it does."""

    _kinds: frozenset[str]
    _line: Line

    def __init__(self, computer: Computer, kinds: frozenset[str], line: Line) -> None:
        super().__init__(computer)
        self._kinds, self._line = kinds, line
        self._trapped = False

    def step(self, hart: Hart) -> bool:
        pc, mode, csrs = hart.pc, hart.priv, "csr" in self._kinds
        self._trapped = False
        self._where = f"{self._computer.clock.steps} {hart.number} {MODES[mode]} {pc:016x}"
        old = hart.words[: SIZE // 8].tolist() if csrs else []
        check = super().step(hart)
        if self._trapped:
            return check
        if "insn" in self._kinds:
            long = self._bits & 3 == 3
            bits = f"{self._bits:08x}" if long else f"{self._bits & 0xFFFF:04x}    "
            self._line(f"insn {self._where} {bits} {disassemble(self._bits, pc)}")
        bound = bind(self._bits) if csrs else None
        if bound is not None and "csr" in bound.row.fields:
            read = [f"read {hart.words[bound.result]:#x}"] if bound.result < 32 else []  # 32: into x0
            changed = [
                f"{name} {old[f.offset >> 3]:#x} -> {hart[name]:#x}"
                for name, f in FIELDS.items()
                if f.count == 1 and name != "pc" and old[f.offset >> 3] != hart[name]
            ]
            self._line(f"csr  {self._where} {disassemble(self._bits, pc)}: {', '.join(read + changed) or 'no change'}")
        return check

    def interrupt(self, hart: Hart) -> bool:
        self._where = f"{self._computer.clock.steps} {hart.number} {MODES[hart.priv]} {hart.pc:016x}"
        return super().interrupt(hart)

    def _enter(self, cause: int, tval: int, interrupt: bool) -> None:
        super()._enter(cause, tval, interrupt)
        self._trapped = True
        if "trap" in self._kinds:
            name = (Irq if interrupt else Cause)(cause).name
            to = f"{MODES[self._hart.priv]} {self._hart.pc:016x}"
            self._line(f"trap {self._where} -> {to} {name}" + ("" if interrupt else f" tval {tval:#x}"))

    def _access(self, pa: int, text: str) -> None:
        for start, end, device in self._computer.bus.windows():
            if start <= pa < end:
                self._line(f"io   {self._where} {type(device).__name__.lower()}+{pa - start:#x} {text}")


class _TracedBus(Bus):
    def __init__(self, traced: _Traced, bus: Bus) -> None:
        super().__init__(bus.ram)
        self._traced = traced
        for start, end, device in bus.windows():
            self.attach(start, end - start, device)

    def read(self, pa: int, size: int) -> int:
        value = super().read(pa, size)
        if not 0 <= pa - self.ram.base < self.ram.size:
            self._traced._access(pa, f"-> {value:#x} ({size})")
        return value

    def write(self, pa: int, size: int, value: int) -> None:
        if not 0 <= pa - self.ram.base < self.ram.size:
            try:
                self._find(pa, size)
            except AccessFault:
                pass
            else:
                self._traced._access(pa, f"<- {value:#x} ({size})")
        super().write(pa, size, value)
