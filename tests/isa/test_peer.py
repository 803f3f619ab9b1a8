"""The integer rows against QEMU: the same bare-metal program on both boards."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from bare import CAUSE, CONSTANTS, DATA, FREE, QEMU, RESULTS, RESUME, Image, compare, run_ours, run_peer

from ringfence.isa.spec import COMPRESSED, ISA, Compressed, Row, decode
from ringfence.isa.trap import Cause
from ringfence.word import Int

needs_qemu = pytest.mark.skipif(not shutil.which(QEMU), reason=f"{QEMU} is not installed")
ONES = (1 << 64) - 1
EDGES = (
    0,
    1,
    2,
    31,
    32,
    63,
    64,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 63,
    (1 << 63) - 1,
    ONES,
    ONES - 1,
    ONES << 31 & ONES,
)
UNKNOWN = ("czero.eqz", "czero.nez")
"""QEMU 7.2 has no Zicond."""
CASES = 12
SLED = 8


def integer_rows() -> list[Row]:
    """Those that touch neither floating point nor system state."""

    def plain(row: Row) -> bool:
        target = row.insn if isinstance(row, Compressed) else row
        effects = {"h", "f"} & set(getattr(target, "params", ()))
        return not effects and not any(n[0] == "f" and n != "fm" for n in target.fields) and row.name not in UNKNOWN

    return [r for r in (*ISA.values(), *COMPRESSED.values()) if plain(r) and r.name not in ("ebreak", "c.ebreak")]


def value(rng: random.Random) -> int:
    kind = rng.randrange(3)
    return (
        rng.choice(EDGES) if kind == 0 else rng.getrandbits(64) if kind == 1 else rng.getrandbits(rng.randrange(1, 65))
    )


def bits(rng: random.Random, row: Row) -> int:
    """An instruction of the row over registers 10 to 15, jumps going a little forward."""
    while True:
        word = row.match | rng.getrandbits(8 * row.length) & ~row.mask
        for name, place in row.fields.items():
            jump = name in ("imm", "simm") and (
                row.match & 0x7F in (0x63, 0x6F) or row.name in ("c.j", "c.beqz", "c.bnez")
            )
            if name.rstrip("'") in ("rd", "rs1", "rs2"):
                word = word & ~place.put(31 if place.width == 5 else 15) | place.put(rng.randrange(10, 16))
                if place.width == 3:
                    word = word & ~place.put(15) | place.put(rng.randrange(10, 16))
            elif jump:
                everything = place.put(-1 << 1) if place.signed else 0
                word = word & ~everything | place.put(row.length + 4 * rng.randrange(SLED))
        if row.name == "jalr":
            word &= ~(0xFFF << 20)
        found = decode(word)
        meant = row.insn if isinstance(row, Compressed) else row
        if row.matches(word) and found is not None and found[0] is meant:
            return word


def write_case(image: Image, rng: random.Random, row: Row) -> None:
    word = bits(rng, row)
    found = decode(word)
    assert found is not None
    meant, operands, _ = found
    image.begin(f"{row.name} {word:#x}")
    place = DATA + 64 * rng.randrange(64)
    for n in range(4):
        image.store(place + 8 * n, value(rng))
    contents = {n: value(rng) for n in (1, 2, *range(10, 16))}
    base = operands.get("rs1", 0)
    if "m" in meant.params and base and "imm" in operands and meant.name != "jalr" and meant.match & 0x7F != 0x63:
        contents[base] = place + rng.randrange(24) - operands["imm"]
    elif meant.match & 0x7F == 0x2F:
        contents[base] = place + rng.choice((0, 8, 16))
        if not row.name.startswith("sc."):  # without a reservation QEMU's SC fails before it looks at alignment
            contents[base] += rng.choice((0, 0, 0, 4, 1))
    for register, content in contents.items():
        if register != base or meant.name != "jalr":
            image.constant(register, content)
    if meant.name == "jalr":
        there = image.here + 4 + row.length + 4 * rng.randrange(SLED)
        image.constant(base, there)
    if row.name.startswith("sc.") and rng.random() < 0.5:
        image.put("lr." + row.name[-1], rd=0, rs1=base)
    image.raw(word, row.length)
    for _ in range(SLED):
        image.put("addi", rd=3, rs1=3, imm=1)
    for n, register in enumerate((3, *range(10, 16))):
        image.keep(register, FREE + n)
    if meant.match & 0x7F in (0x23, 0x2F, 0x6F, 0x67):
        image.constant(5, place)
        for n in range(3):
            image.put("ld", rd=10 + n, rs1=5, imm=8 * n)
            image.keep(10 + n, FREE - 4 + n)
        image.keep(1, FREE - 1)
    image.keep(2, FREE + 7)
    image.put("addi", rd=3, rs1=0, imm=0)
    image.trapped()
    image.end()


@needs_qemu
def test_integer_rows_are_the_peers(tmp_path: Path) -> None:
    """Each integer, memory, atomic and jump row leaves the same registers, memory or trap on QEMU's board and on
    ours.
    """
    rng = random.Random(11)
    image = Image()
    chosen = integer_rows()
    assert len(chosen) > 140
    for row in chosen:
        for _ in range(CASES):
            write_case(image, rng, row)
    program = image.finish()
    theirs, ours = run_peer(image, program, tmp_path), run_ours(image, program)
    for n, name in enumerate(
        image.names
    ):  # QEMU reports a misaligned AMO as a load; the manual's table has 6, store/AMO
        if name.startswith("amo") and theirs[n][CAUSE] == Cause.LOAD_MISALIGNED + 1:
            theirs[n] = (Cause.STORE_MISALIGNED + 1, *theirs[n][1:])
    differences = compare(image, theirs, ours)
    assert not differences, "\n".join(differences)
    assert len({t[FREE:] for t in theirs}) > len(theirs) // 2


def test_conditional_zero_is_the_manuals() -> None:
    """Zicond, which QEMU 7.2 has not: rs1, or zero where rs2 is (not) zero."""
    for a in EDGES:
        for b in EDGES:
            for name, zero in (("czero.eqz", b == 0), ("czero.nez", b != 0)):
                result = ISA[name].meaning(Int(a), Int(b))
                assert isinstance(result, Int) and result.value == (0 if zero else a)


def test_cases_leave_the_program_alone() -> None:
    """No case's instruction names a register that holds the program together."""
    rng = random.Random(5)
    for row in integer_rows():
        found = decode(bits(rng, row))
        assert found is not None
        assert not {CONSTANTS, RESUME, RESULTS} & {v for n, v in found[1].items() if n in ("rd", "rs1", "rs2")}
