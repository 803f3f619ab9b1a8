"""Privileged behaviour against QEMU: the same program on both boards.

Where QEMU 7.2 uses a freedom of the manual that we do not, or lacks an extension, the masks and choices below leave it
out, each with its reason.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bare import (
    DATA,
    FREE,
    NUMBERS,
    QEMU,
    S_TVAL,
    STATUS,
    TABLES,
    TVAL,
    Image,
    compare,
    run_ours,
    run_peer,
)

from ringfence.isa import paging
from ringfence.isa.csr import ALL_IRQS, CBCFE, CBIE, CBZE, CSRS, FIOM, S_IRQS, STATUS_WRITABLE, STCE
from ringfence.isa.spec import decode
from ringfence.isa.trap import Irq, M, S, Status, U

needs_qemu = pytest.mark.skipif(not shutil.which(QEMU), reason=f"{QEMU} is not installed")
ONES = (1 << 64) - 1
ENVIRONMENT = 1 << FIOM | 3 << CBIE | 1 << CBCFE | 1 << CBZE
ECALLS = 0x0000_0073_0000_0073
FS = 3 << Status.FS
VS = 9
Masks = dict[int, int]


def value(rng: random.Random) -> int:
    kind = rng.randrange(3)
    return rng.choice((0, ONES, 1 << rng.randrange(64))) if kind == 0 else rng.getrandbits(64)


def status(rng: random.Random, keep: int = STATUS_WRITABLE) -> int:
    """A legal mstatus. QEMU 7.2 stores the reserved MPP = 2, which we do not."""
    return value(rng) & keep & ~(3 << Status.MPP) | rng.choice((U, S, M)) << Status.MPP & keep


# Each kind of case writes one and returns the masks of words that are not compared whole.

COMPARED: dict[str, int] = {
    **dict.fromkeys(("mepc", "sepc"), ONES - 1),  # the manual: the lowest bit is always zero; QEMU 7.2 keeps it
    **dict.fromkeys(("mcounteren", "scounteren"), ONES >> 32),  # the manual: 32 bits; QEMU keeps 64
    **dict.fromkeys(
        ("mie", "sie", "mip", "sip"), ALL_IRQS
    ),  # QEMU has the hypervisor's bits without the extension, and LCOFI
    "mideleg": S_IRQS,  # so here
    "misa": ONES ^ 1 << 1,  # B is newer than QEMU 7.2
    **dict.fromkeys(("mstatus", "sstatus"), ONES ^ 3 << VS),  # QEMU has VS without V
    "medeleg": 0xB1FF,  # QEMU lets more be delegated than can happen; whether ECALL from S can is free
    "mcountinhibit": 0b101,  # QEMU's event counters count, ours do not
    "menvcfg": ENVIRONMENT | 1 << paging.PBMTE | 1 << STCE,  # no Svadu in QEMU 7.2
}
WRITTEN: dict[str, Callable[[random.Random], int]] = {
    "mstatus": status,
    "sstatus": lambda rng: value(rng) & ~(3 << Status.UXL | 3 << VS),  # QEMU stores any UXL
    "medeleg": value,
    "mideleg": value,
    "mie": value,
    "sie": value,
    "mip": lambda rng: value(rng) & S_IRQS,
    "sip": value,
    "mtvec": lambda rng: value(rng) & ~2,  # what a reserved mode leaves is free
    "stvec": lambda rng: value(rng) & ~2,
    "mcounteren": value,
    "scounteren": value,
    "mscratch": value,
    "sscratch": value,
    "mepc": value,
    "sepc": value,
    "mcause": value,
    "scause": value,
    "mtval": value,
    "stval": value,
    "satp": lambda rng: value(rng) & ONES >> 4 | rng.choice((*range(16), 0, 8, 9, 10)) << 60,
    "menvcfg": lambda rng: value(rng) & ~(1 << CBIE + 1),  # what CBIE = 2 leaves is free
    "senvcfg": lambda rng: value(rng) & ~(1 << CBIE + 1),
    "mcountinhibit": lambda rng: value(rng) & 0b101,
    "stimecmp": value,
    "pmpcfg0": lambda rng: (
        rng.getrandbits(64) & 0x1818_1818_1818_1818 | rng.choice((0, 1, 3, 4, 5, 7)) * 0x0101_0101_0101_0101
    ),
    "pmpaddr0": lambda rng: rng.getrandbits(54),
}


def csr_case(image: Image, rng: random.Random) -> Masks:
    """What a CSR holds after each kind of write, from M-mode."""
    name = rng.choice(list(WRITTEN))
    image.begin(f"csr {name}")
    if rng.random() < 0.5:
        image.csr("mideleg", value(rng))
    if rng.random() < 0.5:
        image.csr("mie", value(rng))
    if rng.random() < 0.5 or name == "stimecmp":  # without STCE it drives nothing; in QEMU 7.2 it does
        image.csr("menvcfg", 1 << STCE)
    for n, row in enumerate(("csrrw", "csrrs", "csrrc")):
        written = WRITTEN[name](rng)
        if name == "mstatus" and row != "csrrw":
            written &= ~(3 << Status.MPP)
        if name == "satp" and row != "csrrw":
            written &= ONES >> 4
        image.constant(7, written)
        image.put(row, rd=8, rs1=7, csr=NUMBERS[name])
        image.put("csrr", rd=9, csr=NUMBERS[name])
        image.keep(9, FREE + n)
        if name == "mtvec":
            image.csr("mtvec", image.machine_handler)
        if n:
            image.keep(8, FREE + 2 + n)
    image.trapped()
    beside = ("mie", "mip", "mideleg")
    for n, other in enumerate(beside):
        image.put("csrr", rd=9, csr=NUMBERS[other])
        image.keep(9, FREE + 5 + n)
    image.csr("mtvec", image.machine_handler)
    image.csr("stimecmp", ONES)
    image.end()
    mask = {FREE + n: COMPARED.get(name, ONES) for n in range(5)}
    mask |= {FREE + 5 + n: COMPARED[other] for n, other in enumerate(beside)}
    if name == "pmpcfg0":  # clearing bits can make W without R, which is reserved
        mask[FREE + 2] = 0
    return mask


ELSEWHERE = {
    *range(0x7A0, 0x7A5),
    0xF12,
    0xF13,
    0xF15,
    *(base + n for base in (0xB00, 0xC00, 0x320) for n in range(19, 32)),
}
"""Triggers, of which QEMU has other ones; its names for itself; mconfigptr; event counters, of which it has 16."""
TIMING = (0xB00, 0xB02, 0xC00, 0xC01, 0xC02)


def access_case(image: Image, rng: random.Random) -> Masks:
    """Whether a CSR can be read, and written, under each privilege and each enable."""
    number = rng.choice(
        [n for n in CSRS if n not in ELSEWHERE] + [0x5C0, 0x9C0, 0x7C0, 0xCC0, 0xFC0, 0x8FF, 0x1C0, 0xBC0]
    )
    row = rng.choice(("csrr", "csrr", "csrrw", "csrrs", "csrrci"))
    priv = rng.choice((U, S, S, M))
    image.begin(f"access {row} {number:#x} in {priv}")
    image.csr("mcounteren", rng.choice((ONES, 0, value(rng))))
    image.csr("scounteren", rng.choice((ONES, 0, value(rng))))
    image.csr("menvcfg", rng.choice((0, 1 << STCE)))
    image.csr("medeleg", rng.choice((0, 1 << 2)))
    harmless = 0 <= number < 4 or row == "csrr" or number in (0x340, 0x140, 0x141, 0x142, 0x143) or number >> 10 == 3
    row = row if harmless else "csrr"
    image.enter(priv, 0, rng.choice((0, 0, FS, FS, 1 << Status.TVM, 1 << Status.TVM | FS)))
    target(image)
    image.put("addi", rd=7, rs1=0, imm=rng.randrange(1, 32))
    operands = {"csrrci": {"uimm": 1}, "csrr": {}}.get(row, {"rs1": 7})
    image.put(row, rd=8, csr=number, **operands)
    if number not in TIMING and not 0xB00 <= number < 0xC20:
        image.keep(8, FREE)
    image.put("ecall")
    image.trapped()
    image.end()
    return {STATUS: ONES ^ 1 << Status.SD, FREE: COMPARED.get(CSRS[number].name, ONES) if number in CSRS else ONES}


def vectored(image: Image, rng: random.Random) -> None:
    """Handlers that are entered by a table, in half of the cases."""
    if rng.random() < 0.5:
        image.csr("mtvec", image.machine_vectors | 1)
        image.csr("stvec", image.supervisor_vectors | 1)


def target(image: Image) -> None:
    """The MRET that was just written leads here."""
    image.pool[-1] = image.here


ILLEGAL = (
    0,
    0xFFFF_FFFF,
    0x0000_7057,
    0x0000_000B,
    0x8002,
    0x9C41,
    0x8000,
    0x0000_4073,
    0x7C00_0033,
    0x0000_7003,
    0x0000_4023,
)


def trap_case(image: Image, rng: random.Random) -> Masks:
    """Cause, tval and epc of exceptions, taken in M-mode or delegated."""
    priv = rng.choice((U, S, M))
    kinds = (
        "illegal",
        "ecall",
        "ebreak",
        "lr",
        "load",
        "store",
        "jump",
        "wfi",
        "sret",
        "mret",
        "fence",
        "sinval",
        "order",
        "float",
    )
    kind = rng.choice(kinds)
    image.begin(f"trap {kind} in {priv}")
    image.csr("medeleg", rng.choice((0, 0xB1FF, value(rng) & 0xB1FF)))
    vectored(image, rng)
    trapping = sum((rng.random() < 0.4) << bit for bit in (Status.TVM, Status.TSR))
    image.constant(9, DATA + rng.choice((1, 2, 4)))
    image.constant(10, rng.choice((0x8, 0x280_0000, 0x700_0000, 0x1100_0000)))
    image.enter(priv, 0, trapping | rng.choice((0, FS)))
    target(image)
    mask = {}
    if kind == "illegal":
        word = rng.choice(ILLEGAL)
        assert decode(word) is None
        image.raw(word, 4 if word & 3 == 3 else 2)
    elif kind in ("ecall", "ebreak", "mret"):
        image.put(kind)
        if kind == "ebreak":  # tval may be 0 or the address: QEMU writes 0
            mask = {TVAL: 0, S_TVAL: 0}
    elif kind == "lr":
        image.put("lr.d", rd=8, rs1=9)
    elif kind == "load":
        image.put("lw", rd=8, rs1=10)
    elif kind == "store":
        image.put("sb", rs1=10, rs2=8)
    elif kind == "jump":
        image.put("jalr", rd=0, rs1=10)
    elif kind == "wfi" and priv == U:
        image.put("wfi")
    elif kind == "sret" and (priv == U or (priv == S and trapping >> Status.TSR & 1)):
        image.put("sret")
    elif kind == "fence":
        image.put("sfence.vma", rs1=8, rs2=9)
    elif kind == "sinval":
        image.put("sinval.vma", rs1=8, rs2=9)
        mask = {TVAL: 0, S_TVAL: 0}  # 0 or the instruction: QEMU writes 0 for these
    elif kind == "order" and priv != U:  # illegal in U-mode by the manual; QEMU 7.2 lets them pass
        image.put(rng.choice(("sfence.w.inval", "sfence.inval.ir")))
        mask = {TVAL: 0, S_TVAL: 0}
    elif kind == "float":
        image.put("fmv.d.x", fd=1, rs1=8)
    image.put("ecall")
    image.trapped()
    image.end()
    return mask


def return_case(image: Image, rng: random.Random) -> Masks:
    """What xRET makes of mstatus, and where it leads."""
    name = rng.choice(("mret", "sret"))
    image.begin(f"return {name}")
    started = status(rng) & ~(1 << Status.TVM)
    image.csr("mstatus", started)
    image.csr("mepc" if name == "mret" else "sepc", 0)
    image.put(name)
    target(image)
    image.put("ecall")
    image.trapped()
    image.end()
    return {STATUS: ONES ^ 1 << Status.MPRV}  # the manual: xRET below M clears it; QEMU 7.2 does not


def interrupt_case(image: Image, rng: random.Random) -> Masks:
    """Which of several pending interrupts is taken, and by whom, on entering a privilege."""
    priv = rng.choice((U, S, M))
    image.begin(f"interrupt in {priv}")
    while True:
        delegated, enabled, pending = value(rng), value(rng) & ALL_IRQS, rng.getrandbits(12) & S_IRQS
        levels = pending & enabled & delegated, pending & enabled & ~delegated
        # Without AIA QEMU takes the lowest number first; the manual orders SEI, SSI, STI.
        if not any(level >> Irq.SEI & 1 and level & (1 << Irq.SSI | 1 << Irq.STI) for level in levels):
            break
    vectored(image, rng)
    image.csr("mideleg", delegated)
    image.csr("mie", enabled)
    image.csr("mip", pending)
    image.enter(priv, 0, rng.getrandbits(1) << Status.MPIE | rng.getrandbits(1) << Status.SIE)
    target(image)
    for _ in range(3):
        image.put("addi", rd=0, rs1=0, imm=0)
    image.put("ecall")
    image.trapped()
    image.end()
    return {}


def walk_case(image: Image, rng: random.Random) -> Masks:
    """A load, store or fetch through random page-table entries: result, fault, accessed and dirty bits."""
    mode = rng.choice((8, 8, 9, 10))
    levels = paging.MODES[mode]
    leaf = rng.choice((0, 0, 0, 1, 2, levels - 1))
    leaf = min(leaf, levels - 1, 2)
    access = rng.choice(("load", "store", "fetch"))
    priv = rng.choice((U, S))
    image.begin(f"walk sv{9 * levels + 12} leaf {leaf} {access} in {priv}")
    span = 12 + 9 * leaf
    va = rng.getrandbits(9 * levels + 12) & -(1 << span) | DATA & (1 << span) - 1
    va |= -(va >> 9 * levels + 11) << 9 * levels + 11
    if rng.random() < 0.05:
        va ^= 1 << rng.randrange(9 * levels + 12, 64)
    va &= ONES
    odd = rng.random() < 0.6
    places = []
    for level in range(levels - 1, leaf - 1, -1):
        place = TABLES + level * 4096 + 8 * (va >> 12 + 9 * level & 511)
        places.append(place)
        if level == leaf:
            permitted = rng.choice((14, 14, paging.R, paging.X, paging.R | paging.W, paging.R | paging.X, paging.W))
            flags = paging.V | permitted | rng.getrandbits(2) << 6 | (paging.USER if priv == U else 0)
            pte = (DATA & -(1 << span)) >> 2 | flags
        else:
            pte = (TABLES + (level - 1) * 4096) >> 2 | paging.V
        if odd and rng.random() < 0.5:
            pte ^= 1 << rng.choice((*range(8), *range(8), 10, 20, 61, 62))
        image.store(place, pte)
    image.store(DATA, ECALLS)
    image.constant(9, va)
    image.constant(10, ECALLS)
    image.csr(
        "menvcfg", 1 << paging.ADUE | 1 << paging.PBMTE
    )  # without PBMTE, PBMT is a fault; QEMU 7.2 always behaves as with both
    image.csr("satp", mode << 60 | rng.getrandbits(16) << 44 | TABLES + (levels - 1) * 4096 >> 12)
    image.put("sfence.vma", rs1=0, rs2=0)
    extra = rng.getrandbits(1) << Status.SUM | rng.getrandbits(1) << Status.MXR
    if access == "fetch":
        image.enter(priv, va, extra)
    else:
        image.csr("mstatus", 1 << Status.MPRV | priv << Status.MPP | extra)
        if access == "load":
            image.put("ld", rd=8, rs1=9)
        else:
            image.put("sd", rs1=9, rs2=10)
        image.put("csrrw", rd=0, rs1=0, csr=NUMBERS["mstatus"])
        image.keep(8, FREE)
    image.trapped()
    for n, place in enumerate(places):
        image.constant(5, place)
        image.put("ld", rd=6, rs1=5)
        image.keep(6, FREE + 1 + n)
    image.end()
    return {}


def protection_case(image: Image, rng: random.Random) -> Masks:
    """Loads and stores below M-mode under random protection entries, whole and in part."""
    image.begin("protection")
    image.store(DATA, ECALLS)
    configuration, where = 0, rng.randrange(256) * 8
    size = rng.choice((1, 2, 4, 8))  # aligned: a misaligned access may be checked in parts, as QEMU does, or whole
    image.constant(9, DATA + where + rng.randrange(0, 16, size))
    for n in range(3):
        kind = rng.choice((0, 1, 2, 3, 3))
        region = rng.choice((8, 16, 32, 64, 2048, 4096))
        base = DATA + where + rng.choice((0, 0, -8, 8, 4, -region))
        address = (base & -region | region // 2 - 1) >> 2 if kind == 3 else base >> 2
        image.constant(5, address)
        image.put("csrrw", rd=0, rs1=5, csr=NUMBERS["pmpaddr0"] + n)
        configuration |= (kind << 3 | rng.choice((0, 1, 3, 4, 5, 7))) << 8 * n
    image.constant(5, ONES >> 10)
    image.put("csrrw", rd=0, rs1=5, csr=NUMBERS["pmpaddr0"] + 3)
    image.csr("pmpcfg0", configuration | 0x1F << 24)
    image.put("sfence.vma", rs1=0, rs2=0)
    image.constant(7, 1 << Status.MPRV | rng.choice((U, S)) << Status.MPP)
    image.put("csrrw", rd=0, rs1=7, csr=NUMBERS["mstatus"])
    if rng.random() < 0.6:
        image.put({8: "ld", 4: "lw", 2: "lh", 1: "lbu"}[size], rd=8, rs1=9)
    else:
        image.put({8: "sd", 4: "sw", 2: "sh", 1: "sb"}[size], rs1=9, rs2=0)
    image.put("csrrw", rd=0, rs1=0, csr=NUMBERS["mstatus"])
    image.keep(8, FREE)
    image.trapped()
    image.end()
    return {}


Case = Callable[[Image, random.Random], Masks]
KINDS: tuple[tuple[Case, int], ...] = (
    (csr_case, 400),
    (access_case, 600),
    (trap_case, 500),
    (return_case, 150),
    (interrupt_case, 300),
    (walk_case, 900),
    (protection_case, 300),
)


@needs_qemu
@pytest.mark.parametrize(("kind", "count"), KINDS, ids=lambda x: getattr(x, "__name__", ""))
def test_privileged_behaviour_is_the_peers(kind: Case, count: int, tmp_path: Path) -> None:
    """Random cases of each kind leave the same words on QEMU's board and on ours."""
    rng = random.Random(kind.__name__)
    image = Image()
    masks = {n: kind(image, rng) for n in range(count)}
    program = image.finish()
    theirs, ours = run_peer(image, program, tmp_path), run_ours(image, program)
    differences = compare(image, theirs, ours, masks)
    assert not differences, "\n".join(differences)
    assert len(set(theirs)) > 20
