"""Instructions to be tried: every row of isa/, with operands that let it do what it is for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from ringfence.isa.csr import CSRS
from ringfence.isa.spec import COMPRESSED, ISA, Compressed, Insn, Row, decode, disassemble
from ringfence.machine.board import ROM
from ringfence.machine.memory import FRAME
from ringfence.monitor.trial import MACHINE, control_block
from ringfence.monitor.virtual_state import CODE, DATA, NOTHING, ONES, PC, TABLE, State

A0, A1, A2, A3 = 10, 11, 12, 13
_FIELDS = {
    "rd": A0, "fd": A0, "rs1": A1, "fs1": A1, "rs2": A2, "fs2": A2, "rs3": A3, "fs3": A3,
    "rm": 7, "pred": 15, "succ": 15, "shamt": 3, "uimm": 31,
}  # fmt: skip
_NEXT = MACHINE + 1
_DRAWN = Random(1974)
REGISTERS = tuple(_DRAWN.getrandbits(64) for _ in range(32))
FLOATS = tuple(_DRAWN.getrandbits(62) | 1 << 61 for _ in range(32))
CONTENTS: Mapping[int, bytes] = {
    CODE: NOTHING,
    DATA: control_block(_NEXT).ljust(64, b"\0") + bytes(FRAME // 2 - 64) + _DRAWN.randbytes(FRAME // 2),
    DATA + 1: _DRAWN.randbytes(FRAME),
}
"""What pages hold: data begins with a control block, for Xhv."""
PLACE = DATA * FRAME + 0xA40
ACROSS = (DATA + 1) * FRAME - 3
"""Where operands are in memory: aligned, and in two pages."""
NO_RAM = ROM
_VALUES = (ONES, 8 << 60 | 0x5A50)
"""What is written to CSRs; the second is a legal satp."""
_JUMPS = (0b1100011, 0b1100111)
"""Opcodes of branches and of JALR."""
_WORD = 0x0123_4567_89AB_CDEF


@dataclass(frozen=True, slots=True)
class Instance:
    """An instruction with its registers."""

    name: str
    """A CSR's, or the row's."""
    row: str
    word: int
    x: bytes
    """The integer registers."""
    memory: bool
    """It refers to memory, where its first source says."""

    def __str__(self) -> str:
        return disassemble(self.word)

    @property
    def operands(self) -> int:
        """How many."""
        return len((ISA.get(self.row) or COMPRESSED[self.row]).fields)

    @property
    def code(self) -> bytes:
        """What is at PC."""
        return self.word.to_bytes(4, "little")

    def within(self, state: State) -> State:
        """The state with the instruction as the next one, and its registers."""
        at = PC % FRAME
        page = state.frames[state.lies[CODE]]
        frames = {**state.frames, state.lies[CODE]: page[:at] + self.code + page[at + 4 :]}
        return State(self.x + state.words[len(self.x) :], frames, state.lies, state.tables)


def numbers() -> Iterator[tuple[int, str]]:
    """Every CSR, and one that there is not."""
    for number, line in CSRS.items():
        yield number, line.name
    missing = next(number for number in range(1 << 12) if number not in CSRS)
    yield missing, f"{missing:#x}, no CSR"


def instances() -> Iterator[Instance]:
    """Of every row; of those that refer to CSRs with each CSR."""
    csr = [row for row in ISA.values() if "csr" in row.fields]
    for number, name in numbers():
        for row in csr:
            word = _encode(row, csr=number)
            for value in _VALUES if row.name == "csrrw" else _VALUES[:1]:
                yield _instance(row, word, {A1: value}, name)
    for other in (*ISA.values(), *COMPRESSED.values()):
        if "csr" not in other.fields:
            word = _encode(other)
            for registers in _operands(other, word):
                yield _instance(other, word, registers)


def elsewhere(instance: Instance) -> Iterator[Instance]:
    """One that refers to memory, to the state's own page table instead, and to what is no memory."""
    x = array("Q", instance.x)
    found = decode(instance.word)
    assert found is not None
    for place in (TABLE * FRAME + 8 * (DATA & 511), NO_RAM):
        x[found[1]["rs1"]] = place - found[1].get("imm", 0) & ONES
        yield replace(instance, x=x.tobytes())


def _meant(row: Row) -> Insn:
    return row.insn if isinstance(row, Compressed) else row  # type: ignore[return-value]


def _encode(row: Row, **operands: int) -> int:
    """The row's bits with the usual operands; an immediate is 0 where that means this row."""
    for immediate in (0, 16, 0x1000, 0x800):
        chosen = dict(operands)
        for name, field in row.fields.items():
            chosen.setdefault(name, _FIELDS.get(name.rstrip("'"), 0))
            if name in ("imm", "simm") or (name == "uimm" and row.length == 2):
                chosen[name] = immediate
            elif name == "shamt" and row.length == 2:
                chosen[name] = field.get(-1) & 3
        try:
            word = row.encode(**chosen)
        except ValueError:
            continue
        found = decode(word)
        if row.matches(word) and found is not None and found[0] is _meant(row) and found[2] == row.length:
            return word
    raise AssertionError(f"no operands make {row.name}")


def _pointing(word: int, place: int) -> dict[int, int]:
    found = decode(word)
    assert found is not None
    _, operands, _ = found
    return {operands["rs1"]: place - operands.get("imm", 0) & ONES, A2: _WORD}


def _operands(row: Row, word: int) -> Iterator[dict[int, int]]:
    """Registers with which the row is tried."""
    params = _meant(row).params
    if _refers(row):
        yield _pointing(word, PLACE)
        yield _pointing(word, ACROSS)
    elif "h" in params and "rs1" in params:
        yield {A1: DATA * FRAME, A2: 0}
        yield {A1: MACHINE, A2: 0}
    else:
        yield {A1: _WORD, A2: ONES - 5}
        yield {A1: _WORD, A2: _WORD}


def _refers(row: Row) -> bool:
    """To memory, and does not only jump."""
    meant = _meant(row)
    return {"m", "rs1"} <= set(meant.params) and meant.match & 0x7F not in _JUMPS


def _instance(row: Row, word: int, registers: Mapping[int, int], name: str | None = None) -> Instance:
    x = array("Q", REGISTERS)
    x[0] = 0
    for n, value in registers.items():
        x[n] = value
    return Instance(name or row.name, row.name, word, x.tobytes(), _refers(row))
