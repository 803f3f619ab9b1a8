"""The rows of F and D: against exact arithmetic, against qemu, and compiled against known words."""

from __future__ import annotations

import ctypes
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

import ringfence.isa.d
import ringfence.isa.f
import ringfence.isa.rv64i  # noqa: F401
from ringfence.isa import ieee754
from ringfence.isa.ieee754 import BINARY32, BINARY64, FORMATS, NV, NX, RDN, RMM, RNE, RTZ, RUP, Format
from ringfence.isa.spec import ISA, Insn
from ringfence.word import Builder, Int, Ir, Word, low, zext

MODES = (RNE, RTZ, RDN, RUP, RMM)
DYNAMIC = 7
ROWS = {n: r for n, r in ISA.items() if n[0] == "f" and n[-2:] in (".s", ".d", ".w", ".l", ".x", "wu", "lu")}
PRIMITIVE = {"fadd", "fsub", "fmul", "fdiv", "fsqrt", "fmadd", "fmsub", "fnmsub", "fnmadd", "fcvt.s.d"}
WORDS = {n: r for n, r in ROWS.items() if n not in PRIMITIVE and n.split(".")[0] not in PRIMITIVE}


class Known:
    """`f` over known words: what the reference does."""

    def __init__(self, frm: int = RNE) -> None:
        self.frm = frm
        self.flags = 0

    def mode(self, rm: Word) -> Word:
        assert isinstance(rm, Int)
        return Int(self.frm, 3) if rm.value == DYNAMIC else rm

    def raise_flags(self, flags: Word) -> None:
        assert isinstance(flags, Int) and flags.width == 5
        self.flags |= flags.value

    def __getattr__(self, operation: str) -> Callable[..., Word]:
        function = getattr(ieee754, operation)

        def apply(*operands: Int) -> Word:
            *numbers, rm = operands
            mode = self.mode(rm)
            assert isinstance(mode, Int)
            width = numbers[0].width
            bits, flags = function(FORMATS[width], *(a.value for a in numbers), mode.value)
            self.flags |= flags
            return Int(bits, 32 if operation == "narrow" else width)

        return apply


def known(row: Insn, registers: tuple[int, ...], rm: int = RNE, frm: int = RNE) -> tuple[int, int]:
    """What a row writes to its register, and the flags it raises. registers[0] is rs1 or fs1."""
    f = Known(frm)
    values = {"f": f, "rm": Int(rm, 3), "rs1": Int(registers[0])}
    values |= {f"fs{n + 1}": Int(value) for n, value in enumerate(registers)}
    result = row.meaning(**{p: values[p] for p in row.params})
    assert isinstance(result, Int) and result.width == 64
    return result.value, f.flags


def boxed(single: int) -> int:
    return single | 0xFFFFFFFF << 32


def numbers(fmt: Format) -> st.SearchStrategy[int]:
    """Bits of numbers, exponents at the edges and those of integers more often."""
    bias, top = fmt.one >> fmt.fraction, fmt.infinity >> fmt.fraction
    limits = st.sampled_from([0, top, *(bias + n for n in (-2, -1, 0, 1, 30, 31, 32, 62, 63, 64))])
    exponent = st.integers(0, top) | st.integers(bias - 3, bias + 66) | limits
    ones = (1 << fmt.fraction) - 1
    short = st.builds(lambda n, s: n << s & ones, st.integers(0, 15), st.integers(0, fmt.fraction))
    fraction = st.integers(0, ones) | short | short.map(lambda n: ones - n)
    return st.builds(lambda s, e, m: s | e << fmt.fraction | m, st.sampled_from([0, fmt.sign]), exponent, fraction)


def integers() -> st.SearchStrategy[int]:
    """64-bit words: few ones, few zeros, or any bits."""
    short = st.builds(lambda n, s: n << s & (1 << 64) - 1, st.integers(0, 1023), st.integers(0, 63))
    near = st.builds(lambda n, m: n + m & (1 << 64) - 1, short, st.integers(-3, 3))
    return st.integers(0, (1 << 64) - 1) | near | near.map(lambda n: n ^ (1 << 64) - 1)


def source(name: str) -> str:
    """The kind of a row's operands: s, d or x."""
    if "rs1" in ROWS[name].fields:
        return "x"
    return "d" if name.endswith("d") or name == "fmv.x.d" else "s"


def register(name: str) -> st.SearchStrategy[int]:
    """A register's contents as a row's operands."""
    if source(name) == "s":
        return numbers(BINARY32).map(boxed) | numbers(BINARY64)
    return numbers(BINARY64) if source(name) == "d" else integers()


# Against exact arithmetic.

CONVERSIONS = {"w": (32, True), "wu": (32, False), "l": (64, True), "lu": (64, False)}


@pytest.mark.parametrize("kind", CONVERSIONS)
@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=["s", "d"])
def test_conversion_to_an_integer_is_exact(fmt: Format, kind: str) -> None:
    """The number is rounded to an integer; one that does not fit, and a NaN, saturate and raise NV alone."""
    width, is_signed = CONVERSIONS[kind]
    least, most = (-1 << width - 1, (1 << width - 1) - 1) if is_signed else (0, (1 << width) - 1)
    row = ROWS[f"fcvt.{kind}.{'s' if fmt is BINARY32 else 'd'}"]

    @settings(max_examples=300, deadline=None)
    @given(numbers(fmt), st.sampled_from(MODES))
    def check(a: int, mode: int) -> None:
        sign, exponent, significand = fmt.unpack(a)
        if a & ~fmt.sign > fmt.infinity:
            wanted, flags = most, NV
        else:
            whole, inexact = ieee754.round_shift(sign, significand, -exponent, mode)
            whole = -whole if sign else whole
            wanted = min(max(whole, least), most)
            flags = NV if wanted != whole else NX if inexact else 0
        extended = wanted & (1 << width) - 1
        extended |= -(extended >> width - 1) << width & (1 << 64) - 1
        assert known(row, (boxed(a) if fmt is BINARY32 else a,), mode) == (extended, flags)

    check()


@pytest.mark.parametrize("kind", CONVERSIONS)
@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=["s", "d"])
def test_conversion_from_an_integer_is_exact(fmt: Format, kind: str) -> None:
    """The integer becomes the number that it rounds to, NX saying whether it is another; zero becomes +0."""
    width, is_signed = CONVERSIONS[kind]
    row = ROWS[f"fcvt.{'s' if fmt is BINARY32 else 'd'}.{kind}"]

    @settings(max_examples=300, deadline=None)
    @given(integers(), st.sampled_from(MODES))
    @example(0, RDN)
    @example((1 << 64) - 1, RUP)
    def check(register: int, mode: int) -> None:
        integer = register & (1 << width) - 1
        if is_signed and integer >> width - 1:
            integer -= 1 << width
        bits, flags = ieee754.round_pack(fmt, int(integer < 0), 0, abs(integer), mode)
        assert known(row, (register,), mode) == (boxed(bits) if fmt is BINARY32 else bits, flags)

    check()


@settings(max_examples=300, deadline=None)
@given(numbers(BINARY32))
def test_widening_is_exact(a: int) -> None:
    """A single becomes the double of its value, a NaN the canonical one, NV saying whether it signaled."""
    if a & ~BINARY32.sign > BINARY32.infinity:
        wanted = BINARY64.nan, 0 if a & BINARY32.quiet else NV
    elif a & ~BINARY32.sign == BINARY32.infinity:
        wanted = BINARY64.infinity | a >> 31 << 63, 0
    else:
        sign, exponent, significand = BINARY32.unpack(a)
        bits, _ = ieee754.round_pack(BINARY64, sign, exponent, significand, RNE)
        wanted = bits, 0
    assert known(ROWS["fcvt.d.s"], (boxed(a),)) == wanted


@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=["s", "d"])
def test_comparisons_follow_the_order_of_the_numbers(fmt: Format) -> None:
    """feq, flt, fle compare values; fmin, fmax order 0s and prefer numbers to NaNs; NV is each row's."""
    kind, convert = ("s", "<If") if fmt is BINARY32 else ("d", "<Qd")
    ends = [
        0,
        1,
        1 << fmt.fraction,
        fmt.one,
        fmt.infinity - 1,
        fmt.infinity,
        fmt.infinity + 1,
        fmt.nan,
        fmt.sign - 1,
    ]
    patterns = [sign | end for end in ends for sign in (0, fmt.sign)]

    def number(bits: int) -> tuple[float, bool]:
        """The value, and whether its sign is clear: the order of fmin and fmax."""
        (value,) = struct.unpack("<" + convert[2], struct.pack(convert[:2], bits))
        return value, not bits & fmt.sign

    for a in patterns:
        for b in patterns:
            nans = [n & ~fmt.sign > fmt.infinity for n in (a, b)]
            quiet = NV if any(n and not bits & fmt.quiet for n, bits in zip(nans, (a, b), strict=True)) else 0
            signaling = NV if any(nans) else 0
            if any(nans):
                least = most = fmt.nan if all(nans) else b if nans[0] else a
            else:
                least, most = sorted((a, b), key=number)
            (x, _), (y, _) = number(a), number(b)
            wanted = {
                "feq": (int(x == y), quiet),
                "flt": (int(x < y), signaling),
                "fle": (int(x <= y), signaling),
                "fmin": (least if kind == "d" else boxed(least), quiet),
                "fmax": (most if kind == "d" else boxed(most), quiet),
            }
            registers = (a, b) if kind == "d" else (boxed(a), boxed(b))
            for stem, result in wanted.items():
                assert known(ROWS[f"{stem}.{kind}"], registers) == result, (stem, hex(a), hex(b))


@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=["s", "d"])
def test_classes_and_signs_are_told_from_the_bits(fmt: Format) -> None:
    """fclass sets the bit of the number's class; injection takes the second operand's sign, nothing else."""
    kind, box = ("s", boxed) if fmt is BINARY32 else ("d", int)
    normal = 1 << fmt.fraction
    classes = {
        (fmt.infinity,): (0, 7),
        (normal, fmt.one, fmt.infinity - 1): (1, 6),
        (1, normal - 1): (2, 5),
        (0,): (3, 4),
        (fmt.infinity + 1, fmt.nan - 1): (8, 8),
        (fmt.nan, fmt.sign - 1): (9, 9),
    }
    for sizes, (negative, positive) in classes.items():
        for a in sizes:
            assert known(ROWS[f"fclass.{kind}"], (box(fmt.sign | a),)) == (1 << negative, 0)
            assert known(ROWS[f"fclass.{kind}"], (box(a),)) == (1 << positive, 0)
            for own in (0, fmt.sign):
                for other in (0, fmt.sign):
                    registers = box(own | a), box(other | fmt.one)
                    for stem, sign in {
                        "fsgnj": other,
                        "fsgnjn": other ^ fmt.sign,
                        "fsgnjx": own ^ other,
                    }.items():
                        assert known(ROWS[f"{stem}.{kind}"], registers) == (box(sign | a), 0)


@given(st.integers(0, (1 << 64) - 1))
def test_loads_and_stores_keep_bits(contents: int) -> None:
    """Loads and stores change no bit; a single is boxed by its load and cut out by its store."""

    class Memory:
        def load(self, va: Word, bits: int) -> Word:
            return Int(contents, bits)

        def store(self, va: Word, value: Word) -> None:
            assert isinstance(value, Int)
            stored.append((value.value, value.width))

    stored: list[tuple[int, int]] = []
    half = contents & 0xFFFFFFFF
    for name, wanted in {"flw": boxed(half), "fld": contents}.items():
        loaded = ISA[name].meaning(m=Memory(), rs1=Int(0), imm=Int(0))
        assert isinstance(loaded, Int) and (loaded.value, loaded.width) == (wanted, 64)
    for name in ("fsw", "fsd"):
        ISA[name].meaning(m=Memory(), rs1=Int(0), fs2=Int(contents), imm=Int(0))
    assert stored == [(half, 32), (contents, 64)]


# Against qemu: one program runs every row, in every rounding mode, over a table of operands.

CASES = 400
BASE, TABLES = 0x400000, {"s": 0x500000, "d": 0x510000, "x": 0x520000}
RESULTS = 0x1000000


def interesting(fmt: Format, dice: random.Random, near: int | None = None) -> int:
    bias, top = fmt.one >> fmt.fraction, fmt.infinity >> fmt.fraction
    ones = (1 << fmt.fraction) - 1
    centre = bias if near is None else (near & fmt.infinity) >> fmt.fraction
    around = centre + dice.randint(-fmt.fraction - 2, fmt.fraction + 2)
    exponent = dice.choice([0, 0, 1, 2, top - 1, top, around, around, around, around, bias + dice.randint(-2, 65)])
    short = dice.getrandbits(4) << dice.randint(0, fmt.fraction) & ones
    fraction = dice.choice([0, short, ones - short, dice.getrandbits(fmt.fraction), dice.getrandbits(fmt.fraction)])
    return dice.choice([0, fmt.sign]) | min(max(exponent, 0), top) << fmt.fraction | fraction


def operands(kind: str, dice: random.Random) -> tuple[int, int, int]:
    """Three registers' contents."""
    if kind == "x":
        word = dice.choice([dice.getrandbits(64), dice.getrandbits(12) << dice.randint(0, 63), dice.getrandbits(3)])
        word = (word + dice.randint(-1, 1)) ^ -dice.getrandbits(1)
        return word & (1 << 64) - 1, 0, 0
    fmt = BINARY32 if kind == "s" else BINARY64
    a = interesting(fmt, dice)
    b = dice.choice([a, a ^ fmt.sign, interesting(fmt, dice), interesting(fmt, dice, near=a)])
    product, _ = ieee754.mul(fmt, a, b, RTZ)
    c = dice.choice([product ^ fmt.sign, interesting(fmt, dice), interesting(fmt, dice, near=product)])
    if kind == "d":
        return a, b, c
    box = [0xFFFFFFFF] * 15 + [0, 0xFFFFFFFE, 0x7FFFFFFF]
    return a | dice.choice(box) << 32, b | dice.choice(box) << 32, c | dice.choice(box) << 32


@cache
def table(kind: str) -> list[tuple[int, int, int]]:
    dice = random.Random(f"operands of kind {kind}")
    return [operands(kind, dice) for _ in range(CASES)]


@cache
def runs() -> list[tuple[str, int, int]]:
    """(row, rm, frm) of each pass over a table."""
    plan = []
    for n, (name, row) in enumerate(ROWS.items()):
        if "rm" in row.fields:
            plan += [(name, mode, 0) for mode in MODES] + [(name, DYNAMIC, MODES[n % 5])]
        else:
            plan.append((name, 0, 0))
    return plan


def code() -> bytes:
    """s0 walks the operands, s1 the results, s2 counts; a record of results is a register and the flags."""
    a0, a1, a2, a7, s0, s1, s2 = 10, 11, 12, 17, 8, 9, 18
    fcsr = {"fflags": 1, "frm": 2}

    def word(name: str, **fields: int) -> int:
        return ISA[name].encode(**fields)

    def number(rd: int, value: int) -> list[int]:
        upper = (value + 0x800) >> 12 << 12
        return [word("lui", rd=rd, imm=upper), word("addi", rd=rd, rs1=rd, imm=value - upper)]

    def call(service: int, *arguments: int) -> list[int]:
        loads = [number(a0 + n, argument) for n, argument in enumerate(arguments)]
        return [w for part in loads for w in part] + [word("addi", rd=a7, rs1=0, imm=service), word("ecall")]

    program = number(s1, RESULTS)
    for name, rm, frm in runs():
        row = ROWS[name]
        registers = {"rd": a1, "fd": a1, "rs1": a0, "fs1": 0, "fs2": 1, "fs3": 2, "rm": rm}
        result = word("sd", rs1=s1, rs2=a1, imm=0) if "rd" in row.fields else word("fsd", rs1=s1, fs2=a1, imm=0)
        loop = [
            word("ld", rd=a0, rs1=s0, imm=0),
            *(word("fld", fd=n, rs1=s0, imm=8 * n) for n in range(3)),
            word("csrrwi", rd=0, csr=fcsr["fflags"], uimm=0),
            row.encode(**{n: v for n, v in registers.items() if n in row.fields}),
            word("csrrs", rd=a2, csr=fcsr["fflags"], rs1=0),
            result,
            word("sd", rs1=s1, rs2=a2, imm=8),
            word("addi", rd=s0, rs1=s0, imm=24),
            word("addi", rd=s1, rs1=s1, imm=16),
            word("addi", rd=s2, rs1=s2, imm=-1),
        ]
        program += [*number(s0, TABLES[source(name)]), *number(s2, CASES)]
        program += [word("csrrwi", rd=0, csr=fcsr["frm"], uimm=frm), *loop]
        program.append(word("bne", rs1=s2, rs2=0, imm=-4 * len(loop)))
    program += [*call(64, 1, RESULTS, len(runs()) * CASES * 16), *call(93, 0)]
    return struct.pack(f"<{len(program)}I", *program)


def executable() -> bytes:
    """A static ELF program: one segment for the code and the tables, one for the results."""
    start = BASE + 0x1000
    image = code().ljust(TABLES["s"] - start, b"\0")
    for kind, at in TABLES.items():
        image = image.ljust(at - start, b"\0") + b"".join(struct.pack("<3Q", *row) for row in table(kind))
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 243, 1, start, 64, 0, 5, 64, 56, 2, 0, 0, 0)
    text = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, start, start, len(image), len(image), 0x1000)
    room = struct.pack("<IIQQQQQQ", 1, 6, 0, RESULTS, RESULTS, 0, len(runs()) * CASES * 16, 0x1000)
    return (header + text + room).ljust(0x1000, b"\0") + image


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], list[tuple[int, int]]]:
    """What qemu's user mode gives for every pass: (register, flags) of each case."""
    qemu = shutil.which("qemu-riscv64") or shutil.which("qemu-riscv64-static")
    if qemu is None:
        pytest.skip("qemu-riscv64 (Debian: qemu-user) is not installed")
    program: Path = tmp_path_factory.mktemp("floating") / "rows"
    program.write_bytes(executable())
    program.chmod(0o755)
    output = subprocess.run([qemu, str(program)], stdout=subprocess.PIPE, check=True, timeout=60).stdout
    records = list(struct.iter_unpack("<QQ", output))
    assert len(records) == len(runs()) * CASES
    return {run: records[n * CASES : (n + 1) * CASES] for n, run in enumerate(runs())}


@pytest.mark.parametrize("name", ROWS)
def test_row_agrees_with_qemu(name: str, peer: dict[tuple[str, int, int], list[tuple[int, int]]]) -> None:
    """A row gives the result and the flags that an independent simulator gives, in every rounding mode."""
    for run in runs():
        if run[0] == name:
            _, rm, frm = run
            for registers, wanted in zip(table(source(name)), peer[run], strict=True):
                assert known(ROWS[name], registers, rm, frm) == wanted, (run, [hex(r) for r in registers])


# Over LLVM values.


class Compiled:
    """`f` over LLVM values: the mode is the field's, flags are gathered."""

    def __init__(self) -> None:
        self.flags: Word = Int(0, 5)

    def mode(self, rm: Word) -> Word:
        return rm

    def raise_flags(self, flags: Word) -> None:
        assert flags.width == 5
        self.flags = self.flags | flags


def function(name: str) -> str:
    """A row as `i64 @"row"(ptr flags, i64 a, i64 b, i64 rm)`."""
    builder, f = Builder(), Compiled()
    a, b, rm = (Ir(f"%{n}", 64, builder) for n in ("a", "b", "rm"))
    values = {"f": f, "rs1": a, "fs1": a, "fs2": b, "rm": low(rm, 3)}
    result = ROWS[name].meaning(**{p: values[p] for p in ROWS[name].params})
    assert result is not None
    builder.emit(f"store i64 {zext(f.flags)}, ptr %flags")
    builder.emit(f"ret i64 {result}")
    return "\n".join([f'define i64 @"{name}"(ptr %flags, i64 %a, i64 %b, i64 %rm) {{', *builder.lines, "}"])


@cache
def compiled() -> Any:
    """An MCJIT engine that holds the rows made of word operations alone, optimised."""
    llvm = pytest.importorskip("llvmlite.binding", reason="llvmlite compiles the rows")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly("\n".join(map(function, WORDS)))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


@pytest.mark.parametrize("name", WORDS)
def test_row_compiles_to_its_own_meaning(name: str) -> None:
    """A row over LLVM values, optimised, gives the result and the flags that it gives over known words."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, *[ctypes.c_uint64] * 3)
    native = prototype(compiled().get_function_address(name))
    flags = ctypes.c_uint64()

    @settings(max_examples=200, deadline=None)
    @given(register(name), register(name), st.sampled_from(MODES))
    def check(a: int, b: int, mode: int) -> None:
        result = native(ctypes.byref(flags), a, b, mode)
        assert (result, flags.value) == known(ROWS[name], (a, b), mode)

    check()
