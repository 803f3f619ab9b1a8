"""Random programs under the reference and the threaded engine: the same hash, however the run is cut, evicted or
shared.
"""

from __future__ import annotations

import random

import idioms
import pytest
from states import (
    CODE,
    DATA,
    END,
    HANDLERS,
    SCALE,
    TABLES,
    Layout,
    difference,
    digest,
    entry,
    instruction,
    machine,
    rows,
    scramble,
)

from ringfence import Break, Budget
from ringfence.isa.csr import CSRS, STCE
from ringfence.isa.spec import COMPRESSED, ISA, Row, decode
from ringfence.isa.trap import Cause, Irq, Status
from ringfence.machine.board import ACLINT, RAM, Tlb, Virt
from ringfence.machine.engine.threaded import Threaded
from ringfence.machine.hart import SIZE, Hart

STEPS = 3000
POINTERS = (2, 8, 9, 10, 11, 18)
"""Registers that programs mostly leave alone: addresses of data, code (8), page tables (11)."""
PTE, DRAW, SATP = 19, 20, 21
"""And an entry of a page table; what the handlers draw places from; satp as it was."""
ONES = (1 << 64) - 1

JUMPS = [r for r in (*ISA.values(), *COMPRESSED.values()) if r.match & 0x7F in (0x63, 0x6F)] + [
    COMPRESSED[n] for n in ("c.j", "c.beqz", "c.bnez")
]
MEMORY_ROWS = [r for r in ISA.values() if "m" in r.params and "rs1" in r.fields and r not in JUMPS and r.name != "jalr"]
PRIVILEGED = [r for r in ISA.values() if "h" in r.params and "csr" not in r.fields]
CSR_ROWS = [r for r in ISA.values() if "csr" in r.fields]
FATAL = {0x305, 0x105, *(n for n in CSRS if 0x3A0 <= n < 0x3C0)}
"""CSRs that are written seldom: most programs do nothing more behind it."""


class Evicting(Threaded):
    """A threaded engine that forgets at random, and stops at check points where nothing asks it to."""

    def __init__(self, computer: Virt, sets: int) -> None:
        super().__init__(computer, sets, code_bytes=12 * 40_000)
        self.random = random.Random(sets)
        self.ram_size = computer.ram.size

    def run(self, hart: Hart, deadline: int) -> bool:
        lot = self.random.random()
        if lot < 0.2:
            self.native.drop_code()
        elif lot < 0.5:
            self.native.forget_all_translations()
        elif lot < 0.8:
            self.native.make_plain(self.random.randrange(END))
        steps = self._computer.clock.steps
        return super().run(hart, min(deadline, steps + self.random.randrange(1, 200)))


def field_set(row: Row, word: int, name: str, value: int) -> int:
    """The instruction with another value of a field; a compressed row's operand may be a register field of its own."""
    place = row.fields.get(name)
    if place is None:
        return word
    return word & ~place.put(place.get(ONES)) | place.put(value) if not place.signed else word


def one(rng: random.Random, every: list[Row]) -> tuple[Row, int]:
    """A row and its bits, such that programs keep their pointers and do not only trap."""
    while True:
        kind = rng.random()
        if kind < 0.18:
            row: Row = rng.choice(MEMORY_ROWS)
        elif kind < 0.30:
            row = rng.choice(JUMPS)
        elif kind < 0.36:
            row = rng.choice(CSR_ROWS)
        elif kind < 0.39:
            row = rng.choice(PRIVILEGED)
        else:
            row = rng.choice(every)
        word = instruction(rng, row)
        if row in MEMORY_ROWS:
            word = field_set(row, word, "rs1", rng.choice(POINTERS))
            if rng.random() < 0.3:
                word = field_set(row, word, "rs2", PTE)
        if row.name == "tlbwr" and rng.random() < 0.9:
            word = field_set(row, field_set(row, word, "rs1", rng.choice(POINTERS)), "rs2", PTE)
        if row in JUMPS and rng.random() < 0.9:
            word = near(rng, row, word)
        found = decode(word)
        if found is None:
            continue
        meant, operands, _ = found
        if operands.get("rd") in (*POINTERS, PTE, DRAW, SATP, 22) and rng.random() < 0.99:
            continue
        if meant.name == "jalr" and rng.random() < 0.9:
            continue
        if operands.get("csr") in FATAL and rng.random() < 0.9:
            continue
        if row.name in ("wfi", "ebreak", "c.ebreak", "ecall") and rng.random() < 0.6:
            continue
        return row, word


def near(rng: random.Random, row: Row, word: int) -> int:
    """A jump with a target not far away, mostly forward: loops end sooner or later by a timer."""
    place = row.fields.get("imm") or row.fields["simm"]
    reach = min(1 << place.width - 1, rng.choice((16, 64, 512, 4096)))
    target = rng.randrange(2, reach, 2) * (-1 if rng.random() < 0.2 else 1)
    return word & ~place.put(-2) & ~place.put(0) | place.put(target)


def block(rng: random.Random, every: list[Row], size: int) -> bytes:
    code = bytearray()
    while len(code) < size:
        if rng.random() < 0.15:
            pages = range(CODE, END) if rng.random() < 0.2 else range(DATA, TABLES)
            code += b"".join(w.to_bytes(4, "little") for w in idioms.draw(rng, pages, TABLES))
        else:
            row, word = one(rng, every)
            code += word.to_bytes(row.length, "little")
    return bytes(code[:size])


def handler(rng: random.Random, every: list[Row], letter: str) -> bytes:
    """A trap handler. It goes on behind the instruction, but somewhere else in the code where that cannot be fetched
    and under any privilege; an interrupt it disables, or sets the timer again.
    """
    cause, epc, enable, status, ret = {
        "m": (0x342, 0x341, 0x304, 0x300, "mret"),
        "s": (0x142, 0x141, 0x104, 0x100, "sret"),
    }[letter]

    def put(name: str, **operands: int) -> int:
        return ISA[name].encode(**operands)

    def draw() -> list[int]:
        """Register 20 steps on; register 5 is a place in the code."""
        return [
            put("slli", rd=5, rs1=DRAW, shamt=13),
            put("xor", rd=DRAW, rs1=DRAW, rs2=5),
            put("srli", rd=5, rs1=DRAW, shamt=7),
            put("xor", rd=DRAW, rs1=DRAW, rs2=5),
            put("slli", rd=5, rs1=DRAW, shamt=50),
            put("srli", rd=5, rs1=5, shamt=50),
            put("andi", rd=5, rs1=5, imm=-2),
            put("add", rd=5, rs1=5, rs2=8),
        ]

    previous = (
        [put("lui", rd=6, imm=0x2000), put("addi", rd=6, rs1=6, imm=-2048)]
        if letter == "m"
        else [put("addi", rd=6, rs1=0, imm=256)]
    )
    previous += [
        put("csrrc", rd=0, rs1=6, csr=status),
        put("and", rd=6, rs1=6, rs2=DRAW),
        put("csrrs", rd=0, rs1=6, csr=status),
    ]
    elsewhere = [*draw(), put("csrrw", rd=0, rs1=5, csr=epc), *previous]
    if letter == "m" and rng.random() < 0.8:
        elsewhere.append(put("csrrw", rd=0, rs1=SATP, csr=0x180))
    if rng.random() < 0.3:
        elsewhere.append(put("sd", rs1=11, rs2=PTE, imm=rng.choice((rng.randrange(4), rng.randrange(DATA, END))) * 8))
    elsewhere.append(put(ret))
    behind = [put("csrr", rd=5, csr=epc), put("addi", rd=5, rs1=5, imm=rng.choice((2, 4, 4)))]
    behind.append(put("csrrw", rd=0, rs1=5, csr=epc))
    if (
        rng.random() < 0.5
    ):  # an entry of the tables changes with each trap: by its physical address, or as S-mode sees it
        table, at = 22 if letter == "m" else 11, 8 * rng.randrange(DATA, TABLES)
        flip = put("xori", rd=6, rs1=6, imm=rng.choice((1 << 10, 1 << 10, 4, 0x80)))
        behind += [put("ld", rd=6, rs1=table, imm=at), flip, put("sd", rs1=table, rs2=6, imm=at)]
    if rng.random() < 0.3:
        behind.append(one(rng, [r for r in every if r.length == 4 and "fd" in r.fields])[1] & ~3 | 3)
    behind.append(put(ret))
    behind = [w for w in behind if (found := decode(w)) and found[2] == 4]
    timer = [
        put("bset", rd=6, rs1=0, rs2=5),
        put("csrrc", rd=0, rs1=6, csr=enable + 0x40),
        put("csrrc", rd=0, rs1=6, csr=enable),
        put("andi", rd=6, rs1=5, imm=15),
        put("addi", rd=6, rs1=6, imm=-5),
        put("bne", rs1=6, rs2=0, imm=24),
        put("csrrsi", rd=0, uimm=0, csr=enable) if rng.random() < 0.2 else put("bset", rd=6, rs1=0, rs2=5),
        put("csrrs", rd=0, rs1=6, csr=enable),
        put("csrr", rd=6, csr=0xC01),
        put("addi", rd=6, rs1=6, imm=rng.randrange(1, 6)),
        put("csrrw", rd=0, rs1=6, csr=0x14D),
        *([put(ret)] if rng.random() < 0.5 else []),
    ]
    first = [
        put("csrr", rd=5, csr=cause),
        put("blt", rs1=5, rs2=0, imm=24 + 4 * len(behind)),
        put("addi", rd=6, rs1=5, imm=-12),
        put("beq", rs1=6, rs2=0, imm=12 + 4 * (len(behind) + len(timer))),
        put("addi", rd=6, rs1=5, imm=-1),
        put("beq", rs1=6, rs2=0, imm=4 + 4 * (len(behind) + len(timer))),
    ]
    code = [*first, *behind, *timer, *elsewhere]
    body = b"".join(w.to_bytes(4, "little") for w in code)
    entries = b"".join(put("jal", rd=0, imm=2048 - 4 * n).to_bytes(4, "little") for n in range(512))
    return (entries + body).ljust(4096, b"\0")


class Program:
    """Memory and a state of each hart, to be put into as many machines as wanted."""

    def __init__(self, seed: str, harts: int = 1, tlb: Tlb = "hardware") -> None:
        rng = random.Random(seed)
        every = rows()
        self.pages: dict[int, bytes] = {}
        self.harts = machine(harts=harts, tlb=tlb).harts
        layouts = [scramble(rng, hart) for hart in self.harts]
        for page in range(DATA, TABLES):
            self.pages[page] = rng.randbytes(4096)
        for layout in layouts:
            self.pages.update(layout.frames)
        self.pages[CODE] = block(rng, every, 4096 * (HANDLERS - CODE))
        self.pages[HANDLERS] = handler(rng, every, "m")
        self.pages[HANDLERS + 1] = handler(rng, every, "s")
        for hart, layout in zip(self.harts, layouts, strict=True):
            self.point(rng, hart, layout)
        self.clock = rng.choice((0, 0, rng.randrange(1 << 20)))

    def point(self, rng: random.Random, hart: Hart, layout: Layout) -> None:
        hart.pc = layout.code + rng.randrange(0, 4096 * (HANDLERS - CODE), 2) & ONES
        for n in (2, 8, 9, 10):
            hart.x[n] = layout.data + DATA * 4096 + rng.randrange(0, (TABLES - DATA) * 4096 - 2048, 8) & ONES
        hart.x[8] = layout.code
        hart.x[11] = layout.data + TABLES * 4096 & ONES
        hart.x[18] = layout.data + rng.choice((0, 0xFF8, 0xFFC, 0x1000, 0x1FFE, ACLINT + 0x4000 - layout.data)) & ONES
        hart.x[PTE] = entry(rng, RAM + rng.randrange(END) * 4096, bool(rng.getrandbits(1)), 0.5)
        hart.x[22] = RAM + TABLES * 4096
        hart.x[DRAW], hart.x[SATP] = rng.getrandbits(64), hart.satp
        hart.mcounteren = 0xFFFF_FFFF
        if rng.random() < 0.8:
            hart.menvcfg |= 1 << STCE
            hart.mie |= 1 << Irq.STI
            if rng.random() < 0.8:
                hart.mideleg &= ~(1 << Irq.STI)
            hart.mstatus |= 1 << Status.MIE | 1 << Status.SIE
            hart.stimecmp = rng.randrange(1, 10)
        if rng.random() < 0.7:
            hart.mstatus &= ~(1 << Status.MPRV)

    def load(self, board: Virt) -> Virt:
        board.clock.idle_ns = self.clock * 100
        for page, data in self.pages.items():
            board.ram.write(RAM + page * 4096, data)
        for hart, mine in zip(board.harts, self.harts, strict=True):
            hart.block[:SIZE] = mine.block[:SIZE]
            board.timer(hart)
            board.protection(hart)
        return board


def check(expected: Virt, found: Virt, what: str) -> None:
    assert digest(expected) == digest(found), "\n".join([what, *difference(expected, found)])


@pytest.mark.parametrize("sets", [1, 16, 256])
def test_program_hash_is_the_references(sets: int) -> None:
    """A random program ends in the same state under the reference and the threaded engine, however small its TLBs."""
    for case in range(round(40 * SCALE)):
        program = Program(f"{sets} {case}")
        expected, found = program.load(machine()), program.load(machine(sets))
        ends = expected.run(until=program.clock * 100 + STEPS), found.run(until=program.clock * 100 + STEPS)
        check(expected, found, f"program {sets} {case}")
        assert ends[0] == ends[1]


@pytest.mark.parametrize("sets", [1, 256])
def test_program_hash_survives_evictions(sets: int) -> None:
    """A program ends in the same state where translations and decoded code are dropped and runs cut short at random."""
    for case in range(round(36 * SCALE)):
        program = Program(f"evicted {sets} {case}")
        expected, found = program.load(machine()), program.load(machine(sets, Evicting))
        end = program.clock * 100 + STEPS
        assert expected.run(until=end) == found.run(until=end), f"program {case}"
        check(expected, found, f"program evicted {sets} {case}")


def test_program_hash_does_not_depend_on_stops() -> None:
    """A run of exactly n steps ends in the same state in one piece and in many, in either engine."""
    for case in range(round(12 * SCALE)):
        program = Program(f"stops {case}")
        rng = random.Random(case)
        boards = [program.load(machine()), program.load(machine(256)), program.load(machine(16))]
        total, cuts = 9000, sorted(rng.sample(range(1, 9000), 3))
        for board, places in zip(boards, ([total], [total], [*cuts, total]), strict=True):
            done = 0
            for place in places:
                board.run(place - done)
                done = place
        for board in boards[1:]:
            check(boards[0], board, f"program stops {case}")


@pytest.mark.parametrize("harts", [2, 3])
def test_program_hash_with_several_harts(harts: int) -> None:
    """Harts that share memory and take turns of lengths drawn from a seed end in the same state in either engine."""
    for case in range(round(30 * SCALE)):
        program = Program(f"harts {harts} {case}", harts)
        turn = random.Random(case).choice((1, 7, 50, 400))
        boards = [program.load(machine(s, harts=harts, turn=turn, seed=case)) for s in (0, 256)]
        boards.append(program.load(machine(16, Evicting, harts=harts, turn=turn, seed=case)))
        end = program.clock * 100 + STEPS
        ends = [board.run(until=end) for board in boards]
        for board, ended in zip(boards[1:], ends[1:], strict=True):
            assert ended == ends[0], f"program harts {harts} {case}"
            check(boards[0], board, f"program harts {harts} {case}")


@pytest.mark.parametrize("sets", [1, 256])
def test_program_meets_its_breakpoints_in_either_engine(sets: int) -> None:
    """At each the machines are the same: also where the fetch of the instruction will fault, or marks its page as
    accessed. Stops change nothing.
    """
    faults = 0
    for case in range(round(8 * SCALE)):
        program = Program(f"breaks {sets} {case}")
        end = program.clock * 100 + STEPS
        plain = program.load(machine())
        hart = plain.harts[0]
        places, unfetched = {hart.pc}, set()
        while isinstance(plain.run(1, until=end), Budget):
            places.add(hart.pc)
            causes = {(hart.mcause, hart.mepc), (hart.scause, hart.sepc)}
            unfetched |= {pc for cause, pc in causes if cause in (Cause.FETCH_ACCESS, Cause.FETCH_PAGE)} & places
        rng = random.Random(case)
        chosen = {*rng.sample(sorted(places), min(8, len(places))), *sorted(unfetched)[:4]}
        boards = [program.load(machine()), program.load(machine(sets)), program.load(machine(sets, Evicting))]
        met = 0
        for board in boards:
            board.breakpoints |= chosen
        while True:
            ends = [board.run(until=end) for board in boards]
            assert ends[1:] == ends[:-1], f"program breaks {sets} {case}"
            met += 1
            for board in boards[1:] if met < 10 else ():
                check(boards[0], board, f"program breaks {sets} {case}")
            if not isinstance(ends[0], Break):
                break
            faults += ends[0].va in unfetched
        for board in boards:
            check(plain, board, f"program breaks {sets} {case}")
    assert faults > 5


@pytest.mark.parametrize("harts", [2, 3])
def test_program_hash_with_chosen_harts(harts: int) -> None:
    """Where some harts stand still and others take single steps the machines are the same, in either engine; one that
    stands keeps its registers and its counters.
    """
    for case in range(round(8 * SCALE)):
        program = Program(f"chosen {harts} {case}", harts)
        rng = random.Random(case)
        boards = [program.load(machine(s, harts=harts, turn=50, seed=case)) for s in (0, 256)]
        boards.append(program.load(machine(16, Evicting, harts=harts, turn=50, seed=case)))
        for n in range(16):
            chosen = rng.sample(range(harts), rng.randrange(1, harts + 1))
            steps, step = rng.choice((1, 3000)), rng.choice((None, *chosen))
            standing = [h for h in range(harts) if h not in chosen]
            before = [kept(boards[0], h) for h in standing]
            ends = [board.run(steps, harts=chosen, step=step) for board in boards]
            assert ends[1:] == ends[:-1], f"program chosen {harts} {case} {n}"
            for board in boards[1:]:
                check(boards[0], board, f"program chosen {harts} {case} {n}")
            assert [kept(boards[0], h) for h in standing] == before


def kept(board: Virt, hart: int) -> list[int]:
    """What nothing but the hart itself changes."""
    others = ("lines", "waiting", "reservation", "away", "mcycle", "minstret")
    words = [value for name, value in board.harts[hart].architectural() if name not in others]
    return [*words, board.csr("mcycle", hart), board.csr("minstret", hart)]


def test_program_hash_tells_programs_apart() -> None:
    """Programs run: they retire instructions, take traps and interrupts, and change memory; two of them end
    differently.
    """
    digests, moved, traps = set(), 0, 0
    for case in range(30):
        program = Program(f"apart {case}")
        board = program.load(machine())
        board.run(until=program.clock * 100 + STEPS)
        digests.add(digest(board))
        moved += any(board.ram.read(RAM + p * 4096, len(d)) != d for p, d in program.pages.items())
        traps += board.harts[0].mcause != program.harts[0].mcause
    assert len(digests) == 30 and moved > 12 and traps > 15
