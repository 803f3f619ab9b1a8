"""Rows as bits: what they encode is what they decode, and the GNU tools read the same in it."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import pytest

import ringfence.isa  # noqa: F401
from ringfence.isa.csr import CSRS
from ringfence.isa.spec import COMPRESSED, F_NAMES, ISA, X_NAMES, Compressed, Field, Insn, Row, decode, disassemble

ROWS: list[Row] = [*ISA.values(), *COMPRESSED.values()]
NARROWER = {
    "csrrs": {"csrr"},
    "csrrc": {"csrr.c"},
    "csrrsi": {"csrr.si"},
    "csrrci": {"csrr.ci"},
    "ori": {"prefetch.i", "prefetch.r", "prefetch.w"},
    "c.lui": {"c.addi16sp"},
    "c.mv": {"c.jr"},
    "c.add": {"c.jalr", "c.ebreak"},
    "c.jalr": {"c.ebreak"},
}
"""Rows in which others lie on purpose: those with more fixed bits are meant there."""
RESERVED = r"c.addi16sp sp,0$"
"""What objdump shows although the manual reserves it."""
GNU = "riscv64-linux-gnu-"
ARCH = "rv64gc_zicbom_zicbop_zicboz_zicsr_zifencei_zba_zbb_zbs_svinval"
needs_binutils = pytest.mark.skipif(
    not (shutil.which(GNU + "as") and shutil.which(GNU + "objdump")),
    reason=f"{GNU}as and {GNU}objdump are not installed",
)


def values(field: Field, rng: random.Random) -> Iterable[int]:
    """All that a field of up to 6 bits can hold; of a wider one the ends and a sample."""
    low = min(p.place for p in field.pieces)
    step, top = 1 << low, 1 << field.width
    start = -(top >> 1) if field.signed else 0
    count = top >> low
    chosen = range(count) if count <= 64 else {0, 1, count - 1, count // 2, *(rng.randrange(count) for _ in range(60))}
    return (start + n * step + field.offset for n in chosen)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_row_decodes_what_it_encodes(row: Row) -> None:
    """Each value of each operand comes back from the bits, through the row itself or one that lies in it on purpose."""
    rng = random.Random(row.name)
    for name, place in row.fields.items():
        for value in values(place, rng):
            operands = {n: rng.choice(list(values(f, rng))) for n, f in row.fields.items()}
            operands[name] = value
            word = row.encode(**operands)
            assert word >> 8 * row.length == 0
            assert {n: f.get(word) for n, f in row.fields.items()} == operands
            found = decode(word)
            if not row.matches(word):
                continue
            assert found is not None
            meant, decoded, length = found
            assert length == row.length
            if isinstance(row, Compressed):
                if not any(COMPRESSED[n].matches(word) for n in NARROWER.get(row.name, ())):
                    assert (meant, decoded) == (row.insn, row.operands(word))
            elif meant is not row:
                assert meant.name in NARROWER[row.name]


def test_field_refuses_what_it_cannot_hold() -> None:
    """An operand too large, of the wrong sign or not a multiple of its unit is an error, not other bits."""
    for name, operands in (
        ("addi", {"imm": 2048}),
        ("addi", {"imm": -2049}),
        ("lui", {"imm": 1}),
        ("beq", {"imm": 3}),
        ("jal", {"imm": 1 << 20}),
        ("slli", {"shamt": 64}),
        ("slliw", {"shamt": 32}),
        ("add", {"rd": 32}),
        ("csrrw", {"csr": 4096}),
        ("sd", {"imm": 2048}),
    ):
        with pytest.raises(ValueError, match="cannot be encoded"):
            ISA[name].encode(**operands)
    for name, operands in (
        ("c.lw", {"rs1'": 7}),
        ("c.lw", {"rs1'": 16}),
        ("c.addi", {"simm": 32}),
        ("c.ld", {"uimm": 4}),
    ):
        with pytest.raises(ValueError, match="cannot be encoded"):
            COMPRESSED[name].encode(**operands)


def test_rows_overlap_on_purpose_only() -> None:
    """No bits mean two rows, but where one has all fixed bits of the other and more, and is known to."""
    for table in (ISA, COMPRESSED):
        for a, b in combinations(table.values(), 2):
            if (a.match ^ b.match) & a.mask & b.mask:
                continue
            wide, narrow = sorted((a, b), key=lambda r: r.mask.bit_count())
            assert wide.mask & narrow.mask == wide.mask and wide.mask != narrow.mask, f"{a.name} and {b.name}"
            assert narrow.name in NARROWER.get(wide.name, ()), f"{narrow.name} lies in {wide.name}"


def test_row_lengths_are_the_encodings() -> None:
    """The two lowest bits tell a row's length."""
    assert all(r.match & r.mask & 3 == 3 and r.mask & 3 == 3 for r in ISA.values())
    assert all(c.mask & 3 == 3 and c.match & 3 != 3 for c in COMPRESSED.values())


def test_decode_finds_the_most_specific_row() -> None:
    """The decoder's buckets lose no row: random bits decode as the first match among all rows does."""
    rng = random.Random(1)
    by_bits: list[Insn] = sorted(ISA.values(), key=lambda r: -r.mask.bit_count())
    for _ in range(20_000):
        row = rng.choice(by_bits)
        word = row.match | rng.getrandbits(32) & ~row.mask | 3
        if rng.random() < 0.5:
            word ^= 1 << rng.randrange(2, 32)
        expected = next((r for r in by_bits if r.matches(word)), None)
        found = decode(word)
        assert (found[0] if found else None) is expected


# Against binutils


def objdump(words: list[tuple[int, int]], directory: Path) -> list[str]:
    """What objdump shows for each (bits, length) that is an instruction to it, at addresses one behind the other from
    0.
    """
    source, target = directory / "words.s", directory / "words.o"
    source.write_text("".join(f".insn {length}, {word:#x}\n" for word, length in words), encoding="ascii")
    subprocess.run([GNU + "as", f"-march={ARCH}", str(source), "-o", str(target)], check=True)
    text = subprocess.run(
        [GNU + "objdump", "-d", "-M", "no-aliases", str(target)], check=True, capture_output=True, text=True
    ).stdout
    lines = [line.split("\t")[2:] for line in text.splitlines() if re.match(r" *[0-9a-f]+:\t", line)]
    assert len(lines) == len(words)
    return [" ".join(part for part in line if part).split(" #")[0] for line in lines]


def canonical(text: str) -> str:
    """The same text for the same instruction: no symbols behind targets, numbers as decimals."""
    return re.sub(r"\b0x[0-9a-f]+", lambda m: str(int(m[0], 16)), text.replace(", ", ","))


def absolute(text: str) -> str:
    """A jump's target as a number, without its symbol."""
    return re.sub(r"([0-9a-f]+) <.*$", r"0x\1", text)


def operands_in_order(text: str) -> list[str]:
    """Registers and numbers, each where it comes first; zeros say nothing."""
    found = re.findall(r"-?0x[0-9a-f]+|-?\b\d+\b|\b[a-z]+\d*\b", text.partition(" ")[2])
    shown = [x if x[0].isalpha() else str(int(x, 0)) for x in found]
    return [x for x in dict.fromkeys(shown) if x not in ("0", "zero")]


@needs_binutils
def test_compressed_patterns_are_objdumps(tmp_path: Path) -> None:
    """Each of the 49,152 patterns of 16 bits is the instruction that objdump sees, with its operands, or illegal to
    both.
    """
    patterns = [n for n in range(1 << 16) if n & 3 != 3]
    hints = {"c.nop": "c.addi", "c.slli64": "c.slli", "c.srli64": "c.srli", "c.srai64": "c.srai"}
    shorts = sorted(COMPRESSED.values(), key=lambda r: -r.mask.bit_count())
    for at, (bits, theirs) in enumerate(zip(patterns, objdump([(n, 2) for n in patterns], tmp_path), strict=True)):
        mine = next((c for c in shorts if c.matches(bits)), None)
        known = theirs.startswith("c.") and not theirs.startswith("c.unimp") and not re.match(RESERVED, theirs)
        assert (mine is not None) == known, f"{bits:#06x}: {mine and mine.name}, {theirs}"
        assert (decode(bits) is not None) == known
        if mine is None:
            continue
        name = theirs.split()[0]
        assert hints.get(name, name) == mine.name, f"{bits:#06x}: {theirs}"
        ours = disassemble(bits, 2 * at)
        wanted = operands_in_order(absolute(theirs))
        if mine.name == "c.jalr":
            wanted = ["ra", *(w for w in wanted if w != "ra")]
        assert operands_in_order(ours) == wanted, f"{bits:#06x}: {ours}, {theirs}"


@needs_binutils
def test_disassembly_is_objdumps(tmp_path: Path) -> None:
    """Random bits of each 32-bit row read as objdump reads them, without aliases."""
    rng = random.Random(7)
    words: list[int] = []
    for row in ISA.values():
        if row.name.startswith(("czero.", "tlb", "vm")):  # binutils know Zicond since 2.41 only, and no rows of our own
            continue
        for _ in range(40):
            word = row.match | rng.getrandbits(32) & ~row.mask
            if "csr" in row.fields:
                word = word & 0xFFFFF | rng.choice([n for n in CSRS if not 0x5C0 <= n < 0x600]) << 20
            if row.name == "fence":
                word = word & 0x0FF0_707F | 0x0110_0000
            if row.name == "fence.i":
                word &= 0x707F
            if row.name in ("fcvt.d.s", "fcvt.d.w", "fcvt.d.wu"):  # with another mode objdump does not know them
                word &= ~0x7000
            if "rm" in row.fields and (word >> 12 & 7) in (5, 6):
                continue
            words.append(word)
    for at, (word, theirs) in enumerate(zip(words, objdump([(w, 4) for w in words], tmp_path), strict=True)):
        assert canonical(disassemble(word, 4 * at)) == canonical(absolute(theirs)), f"{word:#010x}"


def test_disassembly_is_complete() -> None:
    """Every row has a text, and each of its registers is in it."""
    rng = random.Random(3)
    for row in ROWS:
        word = row.match | rng.getrandbits(8 * row.length) & ~row.mask
        found = decode(word)
        if found is None:
            continue
        text = disassemble(word)
        name, _, rest = text.partition(" ")
        assert name and not text.startswith(".insn")
        for operand, value in found[1].items():
            if operand in ("rd", "rs1", "rs2", "fd", "fs1", "fs2", "fs3") and not found[0].name.startswith("fence"):
                names = F_NAMES if operand[0] == "f" else X_NAMES
                assert names[value] in re.split(r"[ ,()]+", rest), text
    assert disassemble(0) == ".insn 2, 0x0000"
    assert disassemble(0xFFFF_FFFF) == ".insn 4, 0xffffffff"
