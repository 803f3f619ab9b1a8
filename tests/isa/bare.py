"""A bare-metal program of many small cases, run by QEMU's virt board and by ours: each case leaves sixteen words.

The rows' own encoder assembles it. A case that traps leaves cause + 1, tval, epc and status in its first words and is
over; one may trap into S-mode first. The program sends all that was left through the UART and ends by the test
finisher.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from struct import pack, unpack

from ringfence.isa.csr import CSRS
from ringfence.isa.spec import ISA
from ringfence.machine.board import ACLINT, FINISHER, RAM, UART, virt
from ringfence.machine.device.aclint import MTIMECMP
from ringfence.machine.device.syscon import PASS
from ringfence.machine.exit import PowerOff

QEMU = "qemu-system-riscv64"
MEMORY = 64 << 20
POOL, LOG, TABLES, DATA = RAM + 0x40_0000, RAM + 0x80_0000, RAM + 0x100_0000, RAM + 0x110_0000
WORDS = 16
SLOT = 8 * WORDS
CONSTANTS, RESUME, RESULTS = 25, 26, 27
"""Registers that no case touches: the next constant, where a case ends, where its words are."""
CAUSE, TVAL, EPC, STATUS, S_CAUSE, S_TVAL, S_EPC, S_STATUS, FREE = range(9)
S_VECTOR, VECTOR = 14, 15
"""Words of a case: of the trap into M-mode, of one into S-mode before it, then its own; the vectors they came by."""
ZEROED = ("satp", "medeleg", "mideleg", "mie", "mip", "menvcfg", "senvcfg", "mcounteren", "scounteren")
NUMBERS = {line.name: number for number, line in CSRS.items()}


class Image:
    """The program, while it is written."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.pool: list[int] = []
        self.names: list[str] = []
        self.used = 0
        self.put("jal", rd=0, imm=0)  # to the first case, below
        self.put("addi", rd=0, rs1=0, imm=0)
        self.machine_handler = self.handler("mcause", "mtval", "mepc", "mstatus", CAUSE, VECTOR)
        self.put("jalr", rd=0, rs1=RESUME, imm=0)
        self.supervisor_handler = self.handler("scause", "stval", "sepc", "sstatus", S_CAUSE, S_VECTOR)
        self.put("ecall")
        self.machine_vectors, self.supervisor_vectors = (
            self.vectors(h) for h in (self.machine_handler, self.supervisor_handler)
        )
        self.code[0:4] = pack("<I", ISA["jal"].encode(rd=0, imm=len(self.code)))
        for register, value in ((CONSTANTS, POOL), (RESULTS, LOG)):
            self.put("lui", rd=register, imm=value - (1 << 32) if value >> 31 else value)
            self.put("slli", rd=register, rs1=register, shamt=32)
            self.put("srli", rd=register, rs1=register, shamt=32)
        self.store(ACLINT + MTIMECMP, (1 << 64) - 1)
        self.csr("stimecmp", (1 << 64) - 1)
        self.put("addi", rd=CONSTANTS, rs1=CONSTANTS, imm=8 * self.used)

    @property
    def here(self) -> int:
        return RAM + len(self.code)

    def vectors(self, handler: int) -> int:
        """A table of jumps, which leave in register 6 where they stand."""
        start = self.here
        for _ in range(16):
            self.put("jal", rd=6, imm=handler - self.here)
        return start

    def handler(self, cause: str, tval: str, epc: str, status: str, word: int, vector: int) -> int:
        start = self.here
        self.keep(6, vector)
        for n, name in enumerate((cause, tval, epc, status)):
            self.put("csrr", rd=5, csr=NUMBERS[name])
            if n == 0:
                self.put("addi", rd=5, rs1=5, imm=1)
            self.put("sd", rs1=RESULTS, rs2=5, imm=8 * (word + n))
        return start

    def raw(self, bits: int, length: int = 4) -> None:
        self.code += bits.to_bytes(length, "little")

    def put(self, name: str, **operands: int) -> None:
        self.raw(ISA[name].encode(**operands))

    def constant(self, register: int, value: int) -> None:
        self.put("ld", rd=register, rs1=CONSTANTS, imm=8 * self.used)
        self.pool.append(value & (1 << 64) - 1)
        self.used += 1

    def csr(self, name: str, value: int) -> None:
        self.constant(5, value)
        self.put("csrrw", rd=0, rs1=5, csr=NUMBERS[name])

    def store(self, va: int, value: int) -> None:
        self.constant(5, va)
        self.constant(6, value)
        self.put("sd", rs1=5, rs2=6, imm=0)

    def keep(self, register: int, word: int) -> None:
        """Leave a register in a word of the case."""
        self.put("sd", rs1=RESULTS, rs2=register, imm=8 * word)

    def begin(self, name: str) -> None:
        """A case: M-mode, no paging, no delegation, no interrupts, all memory open to all."""
        self.names.append(name)
        self.used = 0
        for csr in ZEROED:
            self.put("csrrw", rd=0, rs1=0, csr=NUMBERS[csr])
        self.csr("mstatus", 0)
        self.csr("mtvec", self.machine_handler)
        self.csr("stvec", self.supervisor_handler)
        self.csr("pmpaddr0", (1 << 54) - 1)
        self.csr("pmpcfg0", 0x1F)
        self.put("sfence.vma", rs1=0, rs2=0)
        self.start = len(self.code)
        self.put("auipc", rd=RESUME, imm=0)
        self.raw(0)

    def trapped(self) -> None:
        """Where traps lead, and what runs on falls into: M-mode again."""
        if len(self.code) % 4:
            self.raw(1, 2)
        distance = len(self.code) - self.start
        self.code[self.start + 4 : self.start + 8] = pack("<I", ISA["addi"].encode(rd=RESUME, rs1=RESUME, imm=distance))
        for csr in ("mstatus", "satp"):
            self.put("csrrw", rd=0, rs1=0, csr=NUMBERS[csr])

    def end(self) -> None:
        """The case is over; `trapped` comes before."""
        self.put("addi", rd=RESULTS, rs1=RESULTS, imm=SLOT)
        self.put("addi", rd=CONSTANTS, rs1=CONSTANTS, imm=8 * self.used)

    def enter(self, priv: int, va: int, status: int = 0) -> None:
        """Go to an address under a lower privilege, or in M-mode, by MRET."""
        self.csr("mstatus", status & ~(3 << 11) | priv << 11)
        self.csr("mepc", va)
        self.put("mret")

    def finish(self) -> bytes:
        """The whole program: code, then the constants at their place."""
        self.used = 0
        for register, value in ((10, LOG), (11, LOG + SLOT * len(self.names)), (12, UART), (14, FINISHER), (15, PASS)):
            self.constant(register, value)
        for name, operands in (
            ("lbu", {"rd": 13, "rs1": 10}),
            ("sb", {"rs1": 12, "rs2": 13}),
            ("lbu", {"rd": 13, "rs1": 12, "imm": 5}),
            ("andi", {"rd": 13, "rs1": 13, "imm": 0x20}),
            ("beq", {"rs1": 13, "rs2": 0, "imm": -8}),
            ("addi", {"rd": 10, "rs1": 10, "imm": 1}),
            ("bne", {"rs1": 10, "rs2": 11, "imm": -24}),
            ("sw", {"rs1": 14, "rs2": 15}),
            ("jal", {"rd": 0}),
        ):
            self.put(name, **operands)
        assert RAM + len(self.code) <= POOL and POOL + 8 * len(self.pool) <= LOG
        assert LOG + SLOT * len(self.names) <= TABLES
        return bytes(self.code).ljust(POOL - RAM, b"\0") + pack(f"<{len(self.pool)}Q", *self.pool)


Results = list[tuple[int, ...]]


def words(data: bytes, image: Image) -> Results:
    assert len(data) == SLOT * len(image.names), f"{len(data)} bytes for {len(image.names)} cases"
    return [unpack(f"<{WORDS}Q", data[at : at + SLOT]) for at in range(0, len(data), SLOT)]


def run_peer(image: Image, program: bytes, directory: Path) -> Results:
    """What QEMU's board leaves."""
    path, out = directory / "image.bin", directory / "uart.bin"
    path.write_bytes(program)
    subprocess.run(
        [
            *(QEMU, "-M", "virt", "-cpu", "rv64,h=false,svpbmt=true,svinval=true,sstc=true", "-m", str(MEMORY >> 20)),
            *("-bios", str(path), "-display", "none", "-monitor", "none", "-serial", f"file:{out}"),
        ],
        check=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return words(out.read_bytes(), image)


class Bytes:
    """Takes what the UART sends."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data


def run_ours(image: Image, program: bytes) -> Results:
    """What our board leaves."""
    out = Bytes()
    board = virt(memory=MEMORY, console=out)
    board.ram.write(RAM, program)
    board.harts[0].pc = RAM
    ended = board.run(200_000_000)
    assert isinstance(ended, PowerOff) and ended.status == 0, f"{ended} at {board.harts[0].pc:#x}"
    return words(bytes(out.data), image)


def compare(image: Image, theirs: Results, ours: Results, masks: dict[int, dict[int, int]] | None = None) -> list[str]:
    """Lines that tell where QEMU and we differ. `masks`: of a case, by number, the bits of a word that are compared."""
    found = []
    for n, name in enumerate(image.names):
        mask = (masks or {}).get(n, {})
        for word, (a, b) in enumerate(zip(theirs[n], ours[n], strict=True)):
            if (a ^ b) & mask.get(word, -1):
                causes = f"causes {theirs[n][CAUSE] - 1} and {ours[n][CAUSE] - 1}"
                found.append(f"case {n}, {name}: word {word} is {a:#x} on QEMU, {b:#x} here; {causes}")
    return found[:40]
