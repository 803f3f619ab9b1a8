"""States of a bare hart, and what a monitor makes of them so that the hart's instructions can run directly.

A state has a visible part (x, f, fcsr, pc, the reservation, and memory as instructions see it) and a hidden one: mode,
relocation and every other field of the hart, of which `HIDDEN` is the table. `deprivileged` is the virtual machine map
of Popek and Goldberg, "Formal Requirements for Virtualizable Third Generation Architectures" (1974): the same visible
part, in another mode, over the monitor's own hidden part.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ringfence.isa import pmp, tlb
from ringfence.isa.csr import ALL_IRQS, CBCFE, CBIE, CBZE, FIOM, S_IRQS, STATUS_FIXED, STCE
from ringfence.isa.paging import ACCESSED, ADUE, DIRTY, MODES, PBMTE, PPN, USER, R, V, W
from ringfence.isa.trap import Irq, M, S, Status, U
from ringfence.machine.board import RAM
from ringfence.machine.hart import FIELDS, SIZE, Hart
from ringfence.machine.map import ALL
from ringfence.machine.memory import FRAME
from ringfence.monitor.technique.rings import Rings, both, flat, mode_of, rights_of
from ringfence.monitor.technique.shadow import RIGHTS

ONES = (1 << 64) - 1
TIME = SIZE
"""Behind the hart's fields in a state's words, in bytes: what mtime differs from the machine's clock by."""
NOTHING = bytes(FRAME)
FIRST = (RAM >> 12) + 16
"""The number of the first page that instructions see: code, two of data, and the table that maps them."""
CODE, DATA, TABLE = FIRST, FIRST + 1, FIRST + 3
PC = CODE * FRAME + 0x800
HOME = 1024
"""How many frames further a guest's memory lies on its monitor's machine."""
_SHADOW = (RAM >> 12) + 8
"""The monitor's frame of its root table."""
_GRANT = (pmp.NAPOT | pmp.R | pmp.W | pmp.X) << 56
"""In pmpcfg2: entry 15 gives all of memory to every mode; those before it, but for a page of some states, are off."""
_LEAF = V | ACCESSED | DIRTY
_PMP = slice(FIELDS["pmpcfg0"].offset >> 3, (FIELDS["pmpaddr"].offset >> 3) + pmp.ENTRIES)
_TLB = FIELDS["tlb_tag"].offset >> 3
_PTE = FIELDS["tlb_pte"].offset >> 3


@dataclass(frozen=True)
class Hidden:
    """Bits of a state's word `index` that instructions must not see, and values that they can have: the first where
    nothing is allowed or pending, the second the opposite.
    """

    name: str
    index: int
    shift: int
    width: int
    values: tuple[int, ...]

    def get(self, words: array[int]) -> int:
        return words[self.index] >> self.shift & (1 << self.width) - 1

    def set(self, words: array[int], value: int) -> None:
        mask = (1 << self.width) - 1 << self.shift
        words[self.index] = words[self.index] & ~mask | value << self.shift

    def other(self, value: int) -> int:
        """A value that it has not."""
        return self.values[value == self.values[0]]


_WORDS: dict[str, tuple[int, ...]] = {
    "medeleg": (0, 0xB3FF),
    "mideleg": (0, S_IRQS),
    "mie": (0, ALL_IRQS),
    "mip": (0, 1 << Irq.SSI | 1 << Irq.STI),
    "lines": (0, ALL_IRQS & ~(1 << Irq.SSI | 1 << Irq.STI)),
    "mcounteren": (0, 0xFFFF_FFFF),
    "scounteren": (0, 0xFFFF_FFFF),
    "mcountinhibit": (0, 5),
    "mhartid": (0, 3),
    "stlbvec": (0, RAM + 0x5A50),
    "stlbstatus": (0, 8 << 60 | 1 << Status.SPP | 1 << Status.SPIE),
    "stlbindex": (0, 63),
    "pmpcfg0": (0, 0x0707_0707_0707_0707),
    **{f"pmpaddr{n}": (0, 0x5A5A_5A50 + n) for n in range(pmp.ENTRIES - 1)},
    "pmpaddr15": (ONES >> 10, ONES >> 11),
}
_ANY = (0, 0x5A5A_0000_8001_5A50)
_FREE = (
    *("mtvec", "mscratch", "mepc", "mcause", "mtval", "mcycle", "minstret", "stvec", "sscratch", "sepc", "scause"),
    *("stval", "stimecmp", "stlbepc", "stlbval", "stlbscratch"),
)
VISIBLE = ("x", "f", "pc", "fflags", "frm", "reservation")
APART = ("priv", "satp")
"""Mode and relocation."""
AT_REST = ("virt", "waiting", "stopped", "away", "launched")
"""0 in a hart that executes an instruction; some have an effect on these."""
MADE = ("firmware", "software_tlb", "xhv", "tlb_tag", "tlb_pte", "vm", "vmpsl", "isatp")
"""How the hart is made; and its software-filled TLB, which is relocation too."""


def _part(register: str, bit: str, shift: int, width: int = 1, values: tuple[int, ...] = (0, 1)) -> Hidden:
    return Hidden(f"{register}.{bit}", FIELDS[register].offset >> 3, shift, width, values)


def _hidden() -> Iterator[Hidden]:
    single = Status.SIE, Status.MIE, Status.SPP, Status.MPRV, Status.SUM, Status.MXR, Status.TVM, Status.TW, Status.TSR
    for bit in single:
        yield _part("mstatus", bit.name, bit)
    for bit in (Status.SPIE, Status.MPIE):  # set, so that a return enables what was not
        yield _part("mstatus", bit.name, bit, values=(1, 0))
    yield _part("mstatus", "MPP", Status.MPP, 2, (0, 3, 1))
    yield _part("mstatus", "FS", Status.FS, 2, (0, 3, 1, 2))
    for register in ("menvcfg", "senvcfg"):
        for name, at in (("FIOM", FIOM), ("CBCFE", CBCFE), ("CBZE", CBZE)):
            yield _part(register, name, at)
        yield _part(register, "CBIE", CBIE, 2, (0, 3, 1))
    for name, at in (("ADUE", ADUE), ("PBMTE", PBMTE), ("STCE", STCE)):
        yield _part("menvcfg", name, at)
    for name, values in (_WORDS | dict.fromkeys(_FREE, _ANY)).items():
        yield Hidden(name, FIELDS[name].offset >> 3, 0, 64, values)
    yield Hidden("pmpcfg2", FIELDS["pmpcfg2"].offset >> 3, 0, 56, (0, 0x07_0707_0707_0707))
    yield Hidden("time", TIME >> 3, 0, 64, (0, 1 << 40))


HIDDEN = {hidden.name: hidden for hidden in _hidden()}


@dataclass(frozen=True, slots=True)
class State:
    """A hart and its machine's memory."""

    words: bytes
    """The hart's fields, and the time."""
    frames: Mapping[int, bytes]
    """Memory, by a frame's number; what is not here is zero."""
    lies: Mapping[int, int]
    """The frames at which the pages lie that instructions see, by their number."""
    tables: frozenset[int]
    """Frames that hold page tables."""

    def field(self, name: str) -> int:
        at = FIELDS[name].offset
        return int.from_bytes(self.words[at : at + 8], "little")

    def hidden(self) -> dict[str, int]:
        words = array("Q", self.words)
        return {name: hidden.get(words) for name, hidden in HIDDEN.items()}

    def having(self, hidden: Mapping[str, int] | None = None, **fields: int) -> State:
        """With other values in hidden parts, and in fields."""
        words = array("Q", self.words)
        for name, value in (hidden or {}).items():
            HIDDEN[name].set(words, value)
        for name, value in fields.items():
            words[FIELDS[name].offset >> 3] = value
        return replace(self, words=words.tobytes())

    def hart(self) -> Hart:
        hart = Hart(0, memoryview(bytearray(SIZE)))
        hart.block[:] = self.words[:SIZE]
        return hart


# Where pages lie


class Relocation(NamedTuple):
    """How a state's pages come to frames. `mode` of satp, 0: each page is the frame of its number."""

    mode: int
    asid: int = 0
    first: int = FIRST
    """The frame of the first page."""
    root: int = FIRST + 32
    """The frame of the root table; those of the levels below are behind it."""

    @property
    def satp(self) -> int:
        return self.mode << 60 | self.asid << 44 | self.root if self.mode else 0


def tables(mode: int, root: int, entries: Mapping[int, int]) -> dict[int, bytes]:
    """Page tables, by frame, with these leaves (page: entry); all pages are in one lowest table."""
    levels = MODES[mode]
    found = [bytearray(FRAME) for _ in range(levels)]
    for page, entry in entries.items():
        for depth in range(levels):
            at = (page >> 9 * (levels - 1 - depth) & 511) * 8
            value = entry if depth == levels - 1 else root + depth + 1 << 10 | V
            found[depth][at : at + 8] = value.to_bytes(8, "little")
    return {root + depth: bytes(table) for depth, table in enumerate(found)}


def _fill_tlb(words: array[int], asid: int, entries: Mapping[int, int]) -> None:
    for n in range(tlb.ENTRIES):
        words[_TLB + n] = words[_PTE + n] = 0
    for n, (page, entry) in enumerate(entries.items()):
        words[_TLB + n], words[_PTE + n] = page | asid << 45 | tlb.PRESENT, entry


def virtual(
    priv: int,
    relocation: Relocation,
    hidden: Mapping[str, int],
    *,
    contents: Mapping[int, bytes],
    registers: Mapping[str, int],
    software_tlb: bool = False,
    entry: Callable[[int, int], int] = lambda page, entry: entry,
    table: bool = False,
) -> State:
    """A state of a bare hart in a mode: pages with these bytes, by their number, that it may read, write and execute.

    `entry`: what to make of a page's entry. `table`: page TABLE is the lowest page table. Where nothing is translated
    a page is the frame of its number, and the tables, if there are any, say the same.
    """
    whole = {name: hidden.get(name, part.values[0]) for name, part in HIDDEN.items()}
    mpp = whole["mstatus.MPP"]
    lends = priv == M and whole["mstatus.MPRV"] == 1
    whole["mstatus.MPRV"] = int(lends)
    identical = priv == M or not relocation.mode
    first = FIRST if identical else relocation.first
    lies = {page: page - FIRST + first for page in contents}
    user = USER if (mpp if lends else priv) == U else 0
    entries = {page: entry(page, frame << 10 | _LEAF | RIGHTS | user) for page, frame in lies.items()}

    hart = Hart(0, memoryview(bytearray(SIZE)))
    hart.priv, hart.mstatus, hart.satp = priv, STATUS_FIXED, relocation.satp
    hart.menvcfg = hart.stimecmp = 0
    hart.pmpcfg2 = _GRANT
    hart.xhv, hart.software_tlb = 1, int(software_tlb)
    for name, value in registers.items():
        hart[name] = value
    if hart.reservation != ONES:
        hart.reservation = lies[hart.reservation >> 12] << 12 | hart.reservation & 4095
    words = array("Q", bytes(hart.block) + bytes(8))
    for name, value in whole.items():
        HIDDEN[name].set(words, value)

    frames = {lies[page]: data for page, data in contents.items()}
    held: dict[int, bytes] = {}
    if software_tlb:
        _fill_tlb(words, relocation.asid, entries)
    elif relocation.mode:
        levels = MODES[relocation.mode]
        if table:
            lies[TABLE] = relocation.root + levels - 1
            entries[TABLE] = entry(TABLE, lies[TABLE] << 10 | _LEAF | RIGHTS | user)
        held = tables(relocation.mode, relocation.root, entries)
    return State(words.tobytes(), frames | held, lies, frozenset(held))


def leaf(v: State, page: int) -> int | None:
    """What the tables, or the software-filled TLB, of a state have for a page; None: nothing."""
    satp = v.field("satp")
    if v.field("software_tlb"):
        words = array("Q", v.words)
        tag = page | (satp >> 44 & 0xFFFF) << 45 | tlb.PRESENT
        return next((words[_PTE + n] for n in range(tlb.ENTRIES) if words[_TLB + n] == tag), None)
    table = satp & PPN
    for level in range(MODES[satp >> 60] - 1, -1, -1):
        at = (page >> 9 * level & 511) * 8
        entry = int.from_bytes(v.frames.get(table, NOTHING)[at : at + 8], "little")
        if not entry & V:
            return None
        if entry & RIGHTS:
            return entry | (page & (1 << 9 * level) - 1) << 10
        table = entry >> 10 & PPN
    return None


# The virtual machine map

FORCED: dict[str, int] = {
    "mstatus.TVM": 1,
    "mstatus.TW": 1,
    "mstatus.TSR": 1,
    "mstatus.MPRV": 0,
    "medeleg": 0,  # what traps enters the monitor
    "mideleg": 0,
    "mcounteren": 0,
    **{name: 0 for name in HIDDEN if name.startswith("menvcfg.")},
}
"""What the monitor needs of the real hart so that as much as possible traps, and no less is granted than it maps."""


def deprivileged(v: State, rings: Rings, vm_bit: bool = False) -> State:
    """The real state in which a monitor runs the virtual state `v`: what is visible is the same, at other frames; the
    mode is the ring's; in the hidden part is what traps most, and for the rest values that `v` has not. `vm_bit`: of
    the real hart (docs/vm-bit.md).
    """
    words, hart = array("Q", v.words), v.hart()
    for name, hidden in HIDDEN.items():
        hidden.set(words, FORCED.get(name, hidden.other(hidden.get(words))))
    words[_PMP.start + 1] = words[_PMP.start + 1] & ONES >> 8 | _GRANT  # translations are its bounds
    dirty = hart.mstatus >> Status.FS & 3 == 3
    HIDDEN["mstatus.FS"].set(words, 3 if dirty else 0)  # the first use traps, so that the guest's FS tells the truth
    for name in ("mstatus.SUM", "mstatus.MXR"):  # in U the shadow's rights say it
        HIDDEN[name].set(words, 0 if rings[S] == rings[U] else HIDDEN[name].get(array("Q", v.words)))
    words[FIELDS["vm"].offset >> 3], words[FIELDS["vmpsl"].offset >> 3] = int(vm_bit), hart.mstatus if vm_bit else 0
    ring = rings[hart.priv]
    words[FIELDS["priv"].offset >> 3] = ring
    words[FIELDS["firmware"].offset >> 3] = 0
    if hart.reservation != ONES:
        words[FIELDS["reservation"].offset >> 3] = hart.reservation + HOME * FRAME

    lies = {page: frame + HOME for page, frame in v.lies.items()}
    entries = {page: lies[page] << 10 | _LEAF | rights for page in lies if (rights := granted(v, hart, page, rings))}
    frames = {frame + HOME: data for frame, data in v.frames.items()}
    asid = 1
    words[FIELDS["satp"].offset >> 3] = 8 << 60 | asid << 44 | _SHADOW
    held: dict[int, bytes] = {}
    if hart.software_tlb:
        _fill_tlb(words, asid, entries)
    else:
        held = tables(8, _SHADOW, entries)
    return State(words.tobytes(), frames | held, lies, frozenset(held))


def granted(v: State, hart: Hart, page: int, rings: Rings) -> int:
    """The rights (of a leaf) that the monitor's tables have for a page: 0 where it maps none, so that it is entered."""
    mode = mode_of(hart, rings)
    status, frame = hart.mstatus, page
    if status >> Status.MPRV & 1 and status >> Status.MPP & 3 != hart.priv:
        return 0  # loads and fetches would need tables of their own
    rights = flat(hart, rings)
    if mode is not None:
        entry = leaf(v, page)
        if entry is None or not entry & ACCESSED:
            return 0
        frame, rights = entry >> 10 & PPN, rights_of(entry, mode)
    if frame != v.lies[page]:
        return 0
    allowed = pmp.entries_of(hart.words, _PMP.start, _PMP.start + 2)
    rights &= both(pmp.permission(allowed, frame * FRAME, FRAME, hart.priv == M), ALL) | USER
    if frame in v.tables or not rights & R:
        rights &= ~W  # a write to its page table is to be seen; W without R is reserved
    return rights if rights & RIGHTS else 0
