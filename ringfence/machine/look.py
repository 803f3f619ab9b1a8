"""Looking into a machine from outside: registers, memory and code, with no effect on what runs in it.

Memory is RAM and ROM: a device's registers are not looked at, as reading one can change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringfence.errors import MachineError
from ringfence.isa.csr import CSRS
from ringfence.isa.paging import ADUE, Access, translate
from ringfence.isa.spec import disassemble
from ringfence.isa.trap import Status
from ringfence.machine.bus import Rom
from ringfence.machine.device.device import AccessFault
from ringfence.machine.engine.reference import Known, Trap
from ringfence.word import Int, Word

if TYPE_CHECKING:
    from ringfence.machine.hart import Hart
    from ringfence.machine.machine import Computer

CSR_NUMBERS = {line.name: number for number, line in CSRS.items()}
PAGE = 4096
_ALL = (1 << 64) - 1


def _number(csr: str) -> int:
    number = CSR_NUMBERS.get(csr)
    if number is None:
        raise MachineError(f"no CSR is called {csr!r}")
    return number


class Look(Known):
    """The rows' view of one hart, for somebody who stands beside it."""

    def __init__(self, computer: Computer, hart: Hart) -> None:
        super().__init__(computer)
        self._hart, self._words = hart, hart.words
        self._retiring = 0

    def steps(self) -> Word:
        """What the hart's counters go by: they stand still while others have their turn."""
        current = self._computer.current == self._hart.number
        return Int((self._computer.clock.steps if current else self._hart.away) - self._retiring)

    def translate(self, va: int) -> int | None:
        """The physical address at the hart's privilege, or None where nothing is mapped. A and D stay as they are."""
        view = _Unchecked(self._computer, self._hart)
        try:
            pa = translate(view, Int(va), Access.LOAD)  # type: ignore[arg-type]
        except Trap:
            return None
        assert isinstance(pa, Int)
        return pa.value

    def csr(self, name: str) -> int:
        """A CSR as its instructions read it. Raises `MachineError`."""
        value = CSRS[_number(name)].read(self)  # type: ignore[arg-type]
        assert isinstance(value, Int)
        return value.value

    def set_csr(self, name: str, value: int) -> None:
        """Write a CSR as the instruction that retired last would have: what is WARL becomes legal. Raises
        `MachineError`.
        """
        number = _number(name)
        if number >> 10 == 3:
            return
        self._retiring = 1
        CSRS[number].write(self, Int(value))  # type: ignore[arg-type]
        self._retiring = 0
        self._computer.protection(self._hart)


class _Unchecked(Known):
    """What a walk reads, with every permission granted."""

    def __init__(self, computer: Computer, hart: Hart) -> None:
        super().__init__(computer)
        self._hart, self._words = hart, hart.words

    @property
    def mstatus(self) -> Word:
        return Int((self._hart.mstatus | 1 << Status.SUM | 1 << Status.MXR) & ~(1 << Status.MPRV))

    @property
    def menvcfg(self) -> Word:
        return Int(self._hart.menvcfg | 1 << ADUE)

    def load_pte(self, pa: Word, va: Word, level: int, access: int) -> Word:
        assert isinstance(pa, Int)
        try:
            return Int(int.from_bytes(self._computer.ram.read(pa.value, 8), "little"))
        except AccessFault:
            raise Trap(0, 0) from None

    def store_pte(self, pa: Word, value: Word, va: Word, access: int) -> None:
        pass


class Memory:
    """Physical memory: `memory[0x80000000]` is a byte, `memory[0x80000000:0x80000010]` bytes; both can be set."""

    def __init__(self, computer: Computer) -> None:
        self._computer = computer

    def place(self, address: int) -> int | None:
        """Where an address is in physical memory."""
        return address

    def read(self, address: int, length: int) -> bytes:
        """As many of the bytes there as can be read."""
        found = bytearray()
        while len(found) < length:
            inside = min(PAGE - (address & PAGE - 1), length - len(found))
            pa = self.place(address)
            piece = b"" if pa is None else self._physical(pa, inside)
            found += piece
            if len(piece) < inside:
                break
            address = address + inside & _ALL
        return bytes(found)

    def write(self, address: int, data: bytes) -> bool:
        """All of it or nothing, to RAM. False: there is not so much."""
        ram = self._computer.ram
        pieces = []
        while data:
            inside = min(PAGE - (address & PAGE - 1), len(data))
            pa = self.place(address)
            try:
                ram.offset(-1 if pa is None else pa, inside)
            except AccessFault:
                return False
            assert pa is not None
            pieces.append((pa, data[:inside]))
            address, data = address + inside & _ALL, data[inside:]
        for pa, piece in pieces:
            ram.write(pa, piece)
        return True

    def _physical(self, pa: int, length: int) -> bytes:
        ram = self._computer.ram
        if ram.base <= pa < ram.base + ram.size:
            return ram.read(pa, min(length, ram.base + ram.size - pa))
        for start, end, device in self._computer.bus.windows():
            if isinstance(device, Rom) and start <= pa < end:
                return device.content[pa - start : pa - start + length]
        return b""

    def __getitem__(self, where: int | slice) -> int | bytes:
        start, length = _range(where)
        data = self.read(start, length)
        if len(data) < length:
            raise MachineError(f"there is no memory at {start + len(data):#x}")
        return data if isinstance(where, slice) else data[0]

    def __setitem__(self, where: int | slice, value: int | bytes) -> None:
        start, length = _range(where)
        data = bytes([value]) if isinstance(value, int) else bytes(value)
        if len(data) != length:
            raise MachineError(f"{len(data)} bytes do not fit a place of {length}")
        if not self.write(start, data):
            raise MachineError(f"there is no RAM for {length} bytes at {start:#x}")

    def __repr__(self) -> str:
        ram = self._computer.ram
        return f"<physical memory: RAM {ram.base:#x} to {ram.base + ram.size:#x}>"


class VirtualMemory(Memory):
    """Memory as a hart's translation shows it at its current privilege."""

    def __init__(self, computer: Computer, hart: Hart) -> None:
        super().__init__(computer)
        self._hart = hart

    def place(self, address: int) -> int | None:
        return Look(self._computer, self._hart).translate(address & _ALL)

    def __repr__(self) -> str:
        return f"<memory of {self._hart!r}>"


def _range(where: int | slice) -> tuple[int, int]:
    if isinstance(where, int):
        return where, 1
    if where.start is None or where.stop is None or where.step is not None or where.stop < where.start:
        raise MachineError("a range of memory has a first address and one behind the last: memory[first:end]")
    return int(where.start), int(where.stop - where.start)


class Listing(tuple[str, ...]):
    """Lines that show as lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(self)


def listing(memory: Memory, pc: int, count: int) -> Listing:
    """`count` instructions from `pc`, disassembled: a line each, fewer where memory ends."""
    lines = []
    for _ in range(count):
        bits = memory.read(pc, 4)
        if len(bits) < (4 if bits[:1] and bits[0] & 3 == 3 else 2):
            break
        length = 4 if bits[0] & 3 == 3 else 2
        word = int.from_bytes(bits[:length], "little")
        lines.append(f"{pc:#x}  {word:0{2 * length}x}{'' if length == 4 else '    '}  {disassemble(word, pc)}")
        pc = pc + length & _ALL
    return Listing(lines)
