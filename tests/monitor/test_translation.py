"""Binary translation: the guest's kernel runs translated, and sees the bare machine; also a guest that looks for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from struct import pack, unpack_from

import pytest
from idioms import put
from states import SCALE

from ringfence import MachineError, MiB, Monitor, Virt, VirtualMachine, virt
from ringfence.isa import paging, pmp
from ringfence.isa.csr import CSRS
from ringfence.isa.spec import COMPRESSED, ISA, decode
from ringfence.isa.trap import M, S
from ringfence.machine.board import RAM, UART
from ringfence.machine.device.uart16550 import LSR
from ringfence.machine.engine.handlers import CALL
from ringfence.machine.memory import FRAME
from ringfence.monitor.monitor import Technique
from ringfence.monitor.stats import lines
from ringfence.monitor.technique.translation import OFTEN, SENSITIVE, BinaryTranslation, translate

NUMBERS = {line.name: number for number, line in CSRS.items()}
SSTATUS, SIE, SEPC, STVEC, SSCRATCH = (NUMBERS[n] for n in ("sstatus", "sie", "sepc", "stvec", "sscratch"))
MEMORY = 16 * MiB
CODE, DATA, TABLES = RAM, RAM + 4 * MiB, RAM + 8 * MiB
LOG = DATA + 1 * MiB
"""Where the handler writes the cause, address and value of each trap; register 31 holds where it is."""
RESUME = 30
"""The register with the address behind the next instruction that may trap."""
TECHNIQUES: list[list[Technique]] = [["translation"], ["translation"] * 2, ["trap", "translation"]]
LINK = put("jalr", rd=0, rs1=1, imm=0)


class Program:
    """Code from CODE on, with a handler of traps behind it."""

    def __init__(self, priv: int = S) -> None:
        self.code, self.priv = bytearray(), priv
        self.other: list[tuple[int, bytes]] = []
        """(address, bytes) elsewhere."""
        self.mapped = False

    @property
    def here(self) -> int:
        return CODE + len(self.code)

    def put(self, name: str, **operands: int) -> None:
        self.code += pack("<I", put(name, **operands))

    def half(self, name: str, **operands: int) -> None:
        self.code += pack("<H", COMPRESSED[name].encode(**operands))

    def word(self, word: int) -> None:
        self.code += pack("<I", word)

    def li(self, rd: int, value: int) -> None:
        """A constant of 64 bits, from beside the code."""
        self.put("jal", rd=rd, imm=12)
        self.code += pack("<Q", value & (1 << 64) - 1)
        self.put("ld", rd=rd, rs1=rd, imm=0)

    def pad(self, to: int) -> None:
        """Do nothing up to an offset."""
        while len(self.code) < to:
            self.half("c.addi", rd=8, simm=1)

    def trying(self, word: bytes) -> None:
        """One instruction that may trap."""
        self.put("auipc", rd=RESUME, imm=0)
        self.put("addi", rd=RESUME, rs1=RESUME, imm=8 + len(word))
        self.code += word

    def load(self, board: Virt) -> Virt:
        handler = [
            *(
                put("csrr", rd=28, csr=NUMBERS["scause" if self.priv < M else "mcause"]),
                put("sd", rs1=31, rs2=28, imm=0),
            ),
            *(put("csrr", rd=28, csr=NUMBERS["sepc" if self.priv < M else "mepc"]), put("sd", rs1=31, rs2=28, imm=8)),
            *(
                put("csrr", rd=28, csr=NUMBERS["stval" if self.priv < M else "mtval"]),
                put("sd", rs1=31, rs2=28, imm=16),
            ),
            put("addi", rd=31, rs1=31, imm=24),
            put("csrrw", rd=0, rs1=RESUME, csr=NUMBERS["sepc" if self.priv < M else "mepc"]),
            put("sret" if self.priv < M else "mret"),
        ]
        self.code += pack("<H", 0xA001)  # c.j 0
        self.code += bytes(-len(self.code) % 4)
        vector = self.here
        board.ram.write(CODE, bytes(self.code) + b"".join(pack("<I", word) for word in handler))
        for at, data in self.other:
            board.ram.write(at, data)
        for hart in board.harts:
            hart.pc, hart.priv = CODE, self.priv
            hart.medeleg, hart.mideleg, hart.mcounteren = (0xB3FF, 0x222, 7) if self.priv < M else (0, 0, 0)
            hart.stvec = hart.mtvec = vector
            hart.pmpaddr0, hart.pmpcfg0 = (1 << pmp.ADDRESS_BITS - 2) - 1, pmp.NAPOT | pmp.R | pmp.W | pmp.X
            hart.x[31] = LOG
            hart.x[10] = hart.number
            if self.mapped:
                hart.satp = 8 << 60 | TABLES >> 12
            board.protection(hart)
        return board


Build = Callable[[Program], None]
FLAGS = paging.V | paging.R | paging.W | paging.X
PROGRAMS: dict[str, Build] = {}


def program(build: Build) -> Build:
    PROGRAMS[build.__name__.replace("_", " ")] = build
    return build


def counted(p: Program, count: int, body: Callable[[], None]) -> None:
    """`body` so many times; it leaves register 9 alone."""
    p.li(9, count)
    start = p.here
    body()
    p.put("addi", rd=9, rs1=9, imm=-1)
    p.put("beq", rs1=9, rs2=0, imm=8)
    p.put("jal", rd=0, imm=start - p.here)


def sensitive(p: Program) -> None:
    p.put("csrrsi", rd=12, uimm=2, csr=SSTATUS)
    p.put("csrrci", rd=13, uimm=2, csr=SSTATUS)
    p.put("csrrw", rd=14, rs1=12, csr=SSCRATCH)
    p.put("csrr", rd=15, csr=SSCRATCH)
    p.put("csrrs", rd=16, rs1=9, csr=SIE)


@program
def code_that_changes_itself(p: Program) -> None:
    """An instruction further on in its page, and the next one, without a fence; what it is becomes sensitive."""
    change = put("addi", rd=11, rs1=11, imm=1) ^ put("csrr", rd=11, csr=SSTATUS)
    p.li(7, change)

    def body() -> None:
        sensitive(p)
        for ahead in (0, 40):
            p.put("auipc", rd=5, imm=0)
            p.put("lw", rd=6, rs1=5, imm=16 + ahead)
            p.put("xor", rd=6, rs1=6, rs2=7)
            p.put("sw", rs1=5, rs2=6, imm=16 + ahead)
            p.pad(len(p.code) + ahead)
            p.put("addi", rd=11, rs1=11, imm=1)

    counted(p, 20, body)


@program
def half_of_an_instruction_changes(p: Program) -> None:
    """So that it is another CSR."""
    p.li(7, (SSTATUS ^ NUMBERS["cycle"]) << 4)

    def body() -> None:
        p.put("auipc", rd=5, imm=0)
        p.put("lhu", rd=6, rs1=5, imm=18)
        p.put("xor", rd=6, rs1=6, rs2=7)
        p.put("sh", rs1=5, rs2=6, imm=18)
        p.put("csrr", rd=11, csr=SSTATUS)
        p.put("add", rd=17, rs1=17, rs2=11)

    counted(p, 20, body)


@program
def code_and_data_in_one_page(p: Program) -> None:
    def body() -> None:
        p.put("auipc", rd=5, imm=0)
        p.put("ld", rd=6, rs1=5, imm=400)
        p.put("csrrsi", rd=7, uimm=2, csr=SSTATUS)
        p.put("add", rd=6, rs1=6, rs2=7)
        p.put("sd", rs1=5, rs2=6, imm=400)
        p.put("csrrci", rd=0, uimm=2, csr=SSTATUS)

    counted(p, 30, body)
    p.pad(512)


@program
def exceptions(p: Program) -> None:
    """Each tells the guest's own address and instruction."""
    tried = [
        *(put("ecall"), put("ebreak"), 0x0000_007F, 0xFFFF_FFFF, put("mret"), put("csrr", rd=6, csr=0x300)),
        *(put("ld", rd=6, rs1=0, imm=0), put("sd", rs1=0, rs2=6, imm=8), put("amoadd.d", rd=6, rs1=8, rs2=6)),
        *(put("csrrw", rd=6, rs1=6, csr=0xC00), put("csrr", rd=6, csr=0x180), put("csrr", rd=6, csr=0x5C0)),
        *(put("csrr", rd=6, csr=csr) for csr in sorted(SENSITIVE)),
    ]
    p.li(8, DATA + 1)

    def body() -> None:
        for word in tried:
            p.trying(pack("<I", word))
            sensitive(p)
        p.trying(bytes(2))
        p.trying(pack("<H", COMPRESSED["c.ebreak"].match))

    counted(p, 3, body)


@program
def calls_that_are_the_guests_own(p: Program) -> None:
    """What a translation has in place of an instruction is illegal."""

    def body() -> None:
        for name in ("csrrw", "csrrs", "csrrci", "csrr"):
            for csr in (SSTATUS, SEPC, 0x300, 0x180):
                p.trying(pack("<I", ISA[name].encode(csr=csr, rd=6) | CALL))

    counted(p, 3, body)


@program
def jumps_into_instructions(p: Program) -> None:
    """What is sensitive is the upper half of one and the lower half of the next."""
    word = put("csrrsi", rd=6, uimm=2, csr=SSTATUS)
    first, second = put("addi", rd=11, rs1=11, imm=0) & 0xFFFF | (word & 0xFFFF) << 16, word >> 16

    def body() -> None:
        for into in (0, 2):
            p.put("csrrci", rd=0, uimm=2, csr=SSTATUS)
            p.put("auipc", rd=5, imm=0)
            p.put("jalr", rd=0, rs1=5, imm=8 + into)
            p.word(first)
            p.code += pack("<H", second)
            p.put("csrr", rd=7, csr=SSTATUS)
            p.put("add", rd=17, rs1=17, rs2=7)

    counted(p, 10, body)


@program
def it_reads_its_code(p: Program) -> None:
    def body() -> None:
        sensitive(p)
        p.li(5, CODE)
        p.li(6, CODE + FRAME)
        top = p.here
        p.put("ld", rd=7, rs1=5, imm=0)
        p.put("xor", rd=11, rs1=11, rs2=7)
        p.put("slli", rd=7, rs1=11, shamt=7)
        p.put("add", rd=11, rs1=11, rs2=7)
        p.put("addi", rd=5, rs1=5, imm=8)
        p.put("bltu", rs1=5, rs2=6, imm=top - p.here)

    counted(p, 2, body)


@program
def it_times_itself(p: Program) -> None:
    def body() -> None:
        for csr in ("time", "cycle", "instret"):
            p.put("csrr", rd=5, csr=NUMBERS[csr])
            sensitive(p)
            p.put("csrr", rd=6, csr=NUMBERS[csr])
            p.put("sub", rd=6, rs1=6, rs2=5)
            p.put("slli", rd=11, rs1=11, shamt=5)
            p.put("add", rd=11, rs1=11, rs2=6)

    counted(p, 10, body)


def identity(p: Program, user: int = 0) -> None:
    """Tables that map each address to itself in pages of 4 KiB, 2 MiB and 1 GiB; others map nothing."""
    p.mapped = True
    root, middle, low = bytearray(FRAME), bytearray(FRAME), bytearray(FRAME)

    def entry(table: bytearray, n: int, to: int, flags: int) -> None:
        table[8 * n : 8 * n + 8] = (to >> 2 | flags).to_bytes(8, "little")

    entry(root, 0, 0, FLAGS)  # devices
    entry(root, RAM >> 30, TABLES + FRAME, paging.V)
    for n in range(8):
        entry(middle, n, RAM + (n << 21), FLAGS)
    entry(middle, 0, TABLES + 2 * FRAME, paging.V)
    for n in range(512):
        entry(low, n, RAM + (n << 12), FLAGS)
    p.other.append((TABLES, bytes(root + middle + low)))


@program
def it_walks_its_page_tables(p: Program) -> None:
    identity(p)

    def body() -> None:
        sensitive(p)
        for address in (TABLES, TABLES + FRAME, TABLES + 2 * FRAME):
            p.li(5, address)
            p.li(6, address + FRAME)
            top = p.here
            p.put("ld", rd=7, rs1=5, imm=0)
            p.put("xor", rd=11, rs1=11, rs2=7)
            p.put("slli", rd=7, rs1=11, shamt=3)
            p.put("add", rd=11, rs1=11, rs2=7)
            p.put("addi", rd=5, rs1=5, imm=8)
            p.put("bltu", rs1=5, rs2=6, imm=top - p.here)

    counted(p, 2, body)


@program
def it_probes_the_address_space(p: Program) -> None:
    """Loads, stores and jumps to where nothing is."""
    identity(p)
    rng = random.Random("probe")
    places = [
        *(n << 30 for n in range(1, 256, 3)),
        *((n << 30) - (1 << 39) & (1 << 64) - 1 for n in range(257, 512, 3)),
    ]
    places += [RAM + MEMORY, RAM - FRAME, (1 << 64) - FRAME, 1 << 63, *(rng.getrandbits(64) & ~1 for _ in range(20))]
    table = DATA + 2 * MiB
    p.other.append((table, pack(f"<{len(places)}Q", *places)))

    def body() -> None:
        p.li(18, table)
        p.li(19, table + 8 * len(places))
        top = p.here
        p.put("ld", rd=20, rs1=18, imm=0)
        for word in (put("ld", rd=6, rs1=20), put("sd", rs1=20, rs2=6), put("jalr", rd=0, rs1=20)):
            p.trying(pack("<I", word))
        p.put("csrr", rd=6, csr=SEPC)
        p.put("addi", rd=18, rs1=18, imm=8)
        p.put("bltu", rs1=18, rs2=19, imm=top - p.here)

    counted(p, 1, body)


@program
def the_ends_of_pages(p: Program) -> None:
    """What is sensitive lies across a page's end, at its beginning, and behind an instruction across it. Each page is
    come to from the one before, and then by a jump to its first halfword, whatever that is.
    """
    across = put("csrrsi", rd=6, uimm=2, csr=SSTATUS)
    plain = put("add", rd=11, rs1=15, rs2=13)  # its upper half could be the lower half of an instruction
    assert plain >> 16 & 3 == 3

    def body() -> None:
        for before, words in ((2, (across,)), (0, (across,)), (2, (plain, across)), (2, (plain, plain, across))):
            end = (len(p.code) // FRAME + 1) * FRAME - before
            p.put("jal", rd=1, imm=end - 16 - len(p.code))
            p.code += bytes(end - 16 - len(p.code))
            p.pad(end)
            for word in words:
                p.word(word)
            p.put("csrrci", rd=7, uimm=2, csr=SSTATUS)
            p.put("add", rd=17, rs1=17, rs2=6)
            p.put("beq", rs1=21, rs2=0, imm=8)
            p.put("jalr", rd=0, rs1=RESUME)
        p.put("addi", rd=21, rs1=0, imm=1)
        for n in range(1, 5):
            p.put("lui", rd=5, imm=n * FRAME)
            p.put("add", rd=5, rs1=5, rs2=20)
            p.trying(pack("<I", put("jalr", rd=RESUME, rs1=5, imm=0)))
            p.put("csrrci", rd=7, uimm=2, csr=SSTATUS)
        p.put("addi", rd=21, rs1=0, imm=0)

    p.li(20, CODE)
    counted(p, 2, body)


@program
def memory_and_devices_by_one_instruction(p: Program) -> None:
    """A routine reads what it is told to."""
    p.put("jal", rd=0, imm=12)
    routine = p.here
    p.put("lbu", rd=6, rs1=5, imm=0)
    p.word(LINK)

    def read(address: int, times: int) -> None:
        p.li(5, address)
        p.li(9, times)
        top = p.here
        p.put("jal", rd=1, imm=routine - p.here)
        p.put("add", rd=11, rs1=11, rs2=6)
        p.put("addi", rd=9, rs1=9, imm=-1)
        p.put("bne", rs1=9, rs2=0, imm=top - p.here)

    for _ in range(2):
        read(UART + LSR, 3 * OFTEN)
        read(DATA, 3 * OFTEN)


def bare(build: Build, priv: int, harts: int = 1) -> Virt:
    p = Program(priv)
    build(p)
    return p.load(virt(MEMORY, harts, turn=37))


def on_monitors(
    build: Build, priv: int, techniques: Sequence[Technique], harts: int = 1, code_cache: int | None = None
) -> VirtualMachine:
    p = Program(priv)
    build(p)
    host: Virt = virt(64 * MiB)
    for technique in techniques[:-1]:
        host = Monitor(host).create("outer", host.ram.size - 16 * MiB, technique=technique)
    guest = Monitor(host).create("inner", MEMORY, harts, turn=37, technique=techniques[-1], code_cache=code_cache)
    p.load(guest)
    return guest


def same(expected: Virt, found: Virt, steps: int, every: int) -> None:
    for end in range(every, steps + 1, every):
        ends = expected.run(until=end), found.run(until=end)
        assert ends[0] == ends[1]
        a, b = (dict(board.harts[0].architectural()) for board in (expected, found))
        assert a == b, f"at step {end}: {[(n, hex(a[n]), hex(b[n])) for n in a if a[n] != b[n]]}"
    assert expected.digest() == found.digest()


@pytest.mark.parametrize(("techniques", "priv"), [(TECHNIQUES[0], M), *((stack, S) for stack in TECHNIQUES)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_guest_sees_the_bare_machine(name: str, techniques: list[Technique], priv: int) -> None:
    build = PROGRAMS[name]
    one, other = bare(build, priv), on_monitors(build, priv, techniques)
    same(one, other, 3000, 211)
    for board in (one, other):
        board.run(20_000)
    assert one.digest() == other.digest()


@pytest.mark.parametrize("techniques", TECHNIQUES, ids="-".join)
def test_code_that_another_hart_writes(techniques: list[Technique]) -> None:
    """One hart executes a routine, which the other one writes in the middle of it."""

    def build(p: Program) -> None:
        p.li(8, CODE + FRAME)
        p.li(7, put("addi", rd=11, rs1=11, imm=1) ^ put("csrrs", rd=11, rs1=12, csr=SSCRATCH))
        p.put("addi", rd=12, rs1=0, imm=1)
        p.put("beq", rs1=10, rs2=0, imm=20)
        p.put("lw", rd=6, rs1=8, imm=8)  # the second hart
        p.put("xor", rd=6, rs1=6, rs2=7)
        p.put("sw", rs1=8, rs2=6, imm=8)
        p.put("jal", rd=0, imm=-12)
        p.put("jalr", rd=1, rs1=8)  # the first
        p.put("csrrsi", rd=5, uimm=2, csr=SSTATUS)
        p.put("jal", rd=0, imm=-8)
        p.pad(FRAME)
        p.put("csrr", rd=5, csr=SSTATUS)
        p.put("add", rd=13, rs1=13, rs2=5)
        p.put("addi", rd=11, rs1=11, imm=1)
        p.word(LINK)

    one, other = bare(build, S, 2), on_monitors(build, S, techniques, 2)
    same(one, other, 6000, 499)
    assert one.harts[0].x[11] > 100
    assert translation(other).code.written > 20


def translation(guest: Virt) -> BinaryTranslation:
    assert isinstance(guest.engine, BinaryTranslation)
    return guest.engine


def pages(count: int) -> Build:
    """Round and round through so many pages of code."""

    def build(p: Program) -> None:
        def body() -> None:
            for _ in range(count):
                p.put("csrrsi", rd=5, uimm=2, csr=SSTATUS)
                p.put("add", rd=11, rs1=11, rs2=5)
                p.put("csrrci", rd=5, uimm=2, csr=SSTATUS)
                end = (len(p.code) // FRAME + 1) * FRAME
                p.put("jal", rd=0, imm=end - len(p.code))
                p.code += bytes(end - len(p.code))

        counted(p, 20, body)

    return build


def test_a_small_code_cache_is_enough() -> None:
    """Translations make room for others, and there are never more than were allowed."""
    least = 16 * FRAME
    one, other = bare(pages(40), S), on_monitors(pages(40), S, ["translation"], code_cache=least)
    same(one, other, 2000, 97)
    for board in (one, other):
        board.run(10_000)
    assert one.digest() == other.digest()
    cache = translation(other).code
    assert cache.evicted > 20 * 40 - 100 and len(cache.pages) <= 16
    free = other.monitor._allocator.free
    other.run(10_000)
    assert other.monitor._allocator.free == free


def test_a_code_cache_that_is_too_small_is_refused() -> None:
    with pytest.raises(MachineError, match="a code cache has 64 KiB at least, not 4 KiB"):
        Monitor(virt(64 * MiB)).create("small", MEMORY, technique="translation", code_cache=FRAME)


def test_translations_are_kept() -> None:
    """Pages are translated once, while nobody writes to them; and given back with the machine."""
    monitor = Monitor(virt(64 * MiB))
    free = monitor._allocator.free
    guest = monitor.create("guest", MEMORY, technique="translation")
    p = Program()
    pages(40)(p)
    p.load(guest)
    guest.run(10_000)
    assert translation(guest).code.translated == 41
    told = "\n".join(lines(guest))
    assert "pages translated 41" in told and "instructions replaced 84" in told
    monitor.destroy("guest")
    assert monitor._allocator.free == free


def test_reads_of_devices_become_calls_and_are_undone() -> None:
    guest = on_monitors(PROGRAMS["memory and devices by one instruction"], S, ["translation"])
    guest.run(20_000)
    engine = translation(guest)
    assert engine.code.called == 2
    assert not engine._calls


def instructions(code: bytes) -> list[tuple[int, bytes]]:
    """(offset, bytes) from the first on, as they follow each other."""
    at, found = 0, []
    while at < len(code):
        length = 4 if code[at] & 3 == 3 else 2
        found.append((at, code[at : at + length]))
        at += length
    return found


def is_sensitive(code: bytes, at: int) -> bool:
    """As the hart would execute it there."""
    (word,) = unpack_from("<I", code, at)
    found = decode(word)
    return found is not None and found[1].get("csr") in SENSITIVE


def traps(code: bytes, at: int) -> bool:
    """It is none, or a call."""
    (word,) = unpack_from("<I", code, at)
    return decode(word) is None


def random_page(rng: random.Random) -> bytes:
    """Code, at the even halfwords or the odd ones, and something else in between."""
    csrs = sorted(SENSITIVE)
    names = [name for name, row in ISA.items() if "csr" in row.fields]
    code = bytearray(rng.choice((b"", b"\1\0")))
    while len(code) < FRAME:
        kind = rng.random()
        if kind < 0.2:
            row = ISA[rng.choice(names)]
            word = row.match | rng.getrandbits(32) & 0xFFFFF & ~row.mask | rng.choice(csrs) << 20
            code += pack("<I", word | (CALL if rng.random() < 0.2 else 0))
        elif kind < 0.4:
            code += rng.randbytes(2)
        elif kind < 0.7:
            code += pack("<I", rng.getrandbits(32) | 3)
        else:
            code += pack("<H", COMPRESSED["c.addi"].encode(rd=rng.randrange(1, 32), simm=rng.randrange(-32, 32)))
    return bytes(code[:FRAME])


def test_nothing_sensitive_is_left_and_nothing_else_changes() -> None:
    """At no halfword of a translation is there anything sensitive; and each instruction, as they follow each other from
    the page's beginning, is what it was, or traps. What is sensitive is a call.
    """
    rng = random.Random("translate")
    calls = 0
    for _ in range(round(60 * SCALE)):
        page = random_page(rng)
        for tight, closed in ((False, False), (True, False), (False, True), (True, True)):
            made = translate(page, tight, closed)
            assert not any(is_sensitive(made.code, at) for at in range(0, FRAME - 2, 2))
            for at, instruction in instructions(page):
                end = at + len(instruction)
                if end <= FRAME - 2 and made.code[at:end] != instruction:
                    assert traps(made.code, at), f"{instruction.hex()} at {at:#x} becomes {made.code[at:end].hex()}"
                if at <= FRAME - 4 and is_sensitive(page, at) and not tight:
                    calls += made.code[at] == instruction[0] | CALL
    assert calls > 100


def test_a_translation_can_be_translated() -> None:
    """By the monitor beneath, which leaves the calls of the one above alone."""
    rng = random.Random("again")
    for _ in range(round(20 * SCALE)):
        once = translate(random_page(rng)).code
        assert translate(once, calls=True).code == once
