"""The hart's state: one table, from which come the native layout, register names, snapshots, the debugger's view and
the hash.

Every field is 64 bits, little-endian, in one block a hart. The engine keeps its own fields behind `SIZE` in the same
block.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from ringfence.errors import MachineError
from ringfence.isa.csr import ENVCFG_RESET, STATUS_FIXED
from ringfence.isa.spec import F_NAMES, X_NAMES
from ringfence.isa.tlb import ENTRIES, PAGE, asid_of
from ringfence.isa.trap import M


@dataclass(frozen=True)
class Field:
    """`count` words at byte `offset` of the block."""

    name: str
    offset: int
    count: int


def table(rows: list[tuple[str, int]], start: int = 0) -> dict[str, Field]:
    """Fields one behind the other from byte `start`."""
    fields = {}
    for name, count in rows:
        fields[name] = Field(name, start, count)
        start += 8 * count
    return fields


FIELDS = table(
    [
        ("x", 33),  # x[32] takes what is written to x0
        ("f", 32),
        ("pc", 1),
        ("priv", 1),
        ("virt", 1),  # V of the hypervisor extension: 0
        ("mhartid", 1),
        ("mstatus", 1),
        ("medeleg", 1),
        ("mideleg", 1),
        ("mie", 1),
        ("mip", 1),  # the bits that software writes
        ("lines", 1),  # the bits of mip that devices and timers drive
        ("mtvec", 1),
        ("mscratch", 1),
        ("mepc", 1),
        ("mcause", 1),
        ("mtval", 1),
        ("mcounteren", 1),
        ("mcountinhibit", 1),
        ("menvcfg", 1),
        ("mcycle", 1),  # what to add to the steps; the counter itself while inhibited
        ("minstret", 1),
        ("stvec", 1),
        ("scounteren", 1),
        ("sscratch", 1),
        ("sepc", 1),
        ("scause", 1),
        ("stval", 1),
        ("satp", 1),
        ("senvcfg", 1),
        ("stimecmp", 1),
        ("fflags", 1),
        ("frm", 1),
        ("pmpcfg0", 1),
        ("pmpcfg2", 1),
        ("pmpaddr", 16),
        ("reservation", 1),  # the physical address of the 64-byte granule, or all ones
        ("waiting", 1),  # in WFI
        ("stopped", 1),  # by SBI HSM, or not yet started
        ("away", 1),  # the machine's steps when its last turn ended
        ("firmware", 1),  # ECALL from S is the built-in SBI's
        ("software_tlb", 1),  # the hart does not walk: what follows is its TLB (isa.tlb)
        ("stlbvec", 1),
        ("stlbepc", 1),
        ("stlbval", 1),
        ("stlbstatus", 1),
        ("stlbscratch", 1),
        ("stlbindex", 1),
        ("tlb_tag", ENTRIES),
        ("tlb_pte", ENTRIES),
        ("xhv", 1),  # the hart can launch virtual machines (machine.virtualizer)
        ("launched", 1),  # the control block of the one that it runs; 0: none
        ("vm", 1),  # the VM bit: what S-mode would learn of its mode it has from VMPSL, or it traps (docs/vm-bit.md)
        ("vmpsl", 1),  # the virtual hart's mstatus
        ("isatp", 1),  # a lent hart's: under which it fetches; 0: under satp (isa.paging.space)
    ]
)
for _n in range(16):
    FIELDS[f"pmpaddr{_n}"] = Field(f"pmpaddr{_n}", FIELDS["pmpaddr"].offset + 8 * _n, 1)

SIZE = 2304
assert max(f.offset + 8 * f.count for f in FIELDS.values()) <= SIZE
_MAKE = FIELDS["software_tlb"].offset >> 3, FIELDS["xhv"].offset >> 3
"""What a reset leaves: how the hart is made."""

_REGISTERS = {name: ("x", n) for n, name in enumerate(X_NAMES)} | {name: ("f", n) for n, name in enumerate(F_NAMES)}
_REGISTERS |= {f"x{n}": ("x", n) for n in range(32)} | {f"f{n}": ("f", n) for n in range(32)} | {"fp": ("x", 8)}


def _index(name: str) -> int:
    """Which word of the block has that name in assembly."""
    array, n = _REGISTERS.get(name, (name, 0))
    field = FIELDS.get(array)
    if field is None or (array == name and field.count != 1):
        raise MachineError(f"a hart has no register called {name!r}")
    return (field.offset >> 3) + n


class Hart:
    """A hart's state by name: `hart.pc`, `hart.mstatus`, `hart.x[10]`, `hart["a0"]`. Values are unsigned, 64 bits."""

    __slots__ = ("block", "number", "words")
    block: memoryview
    number: int
    words: memoryview

    def __init__(self, number: int, block: memoryview) -> None:
        """`block`: at least SIZE bytes, writable."""
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "block", block)
        object.__setattr__(self, "words", block.cast("Q"))
        self.reset()

    def reset(self) -> None:
        for n in range(SIZE // 8):
            if n not in _MAKE:
                self.words[n] = 0
        self.priv = M
        self.mhartid = self.number
        self.mstatus = STATUS_FIXED
        self.menvcfg = ENVCFG_RESET
        self.stimecmp = (1 << 64) - 1
        self.reservation = (1 << 64) - 1

    def empty_tlb(self, page: int | None = None, *, keep: Container[int] = ()) -> None:
        """The software-filled TLB has no entries, or none for the page at this address, but in the spaces (by ASID) to
        keep.
        """
        at = FIELDS["tlb_tag"].offset >> 3
        for n, tag in enumerate(self.words[at : at + ENTRIES].tolist(), at):
            if (page is None or not (tag ^ page >> 12) & PAGE) and asid_of(tag) not in keep:
                self.words[n] = 0

    def move(self, block: memoryview) -> None:
        """Keep the state in another block from now on."""
        block[:SIZE] = self.block[:SIZE]
        object.__setattr__(self, "block", block)
        object.__setattr__(self, "words", block.cast("Q"))

    def __getattr__(self, name: str) -> int:
        try:
            return self.words[FIELDS[name].offset >> 3]
        except KeyError:
            raise AttributeError(f"a hart has no {name}") from None

    def __setattr__(self, name: str, value: int) -> None:
        field = FIELDS.get(name)
        if field is None or field.count != 1:
            raise AttributeError(f"a hart has no {name} to set")
        self.words[field.offset >> 3] = value & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def x(self) -> memoryview:
        """The integer registers. x[0] must stay 0."""
        return self.words[0:32]

    @property
    def f(self) -> memoryview:
        at = FIELDS["f"].offset >> 3
        return self.words[at : at + 32]

    def __getitem__(self, name: str) -> int:
        """A register or CSR field by its name in assembly. Raises `MachineError`."""
        return self.words[_index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        index = _index(name)
        if index:  # x0 is the first word
            self.words[index] = value & 0xFFFF_FFFF_FFFF_FFFF

    def architectural(self) -> Iterator[tuple[str, int]]:
        """Every field's words in table order, as (name, value); arrays as name[n]. What hashes and snapshots read."""
        for name, field in FIELDS.items():
            if name.startswith("pmpaddr") and field.count == 1:
                continue
            for n in range(field.count):
                if (name, n) != ("x", 32):
                    yield (f"{name}[{n}]" if field.count > 1 else name), self.words[(field.offset >> 3) + n]

    def __repr__(self) -> str:
        return f"<hart {self.number}: pc {self.pc:#x}, {'US?M'[self.priv]}-mode>"


def _reader(index: int) -> property:
    return property(lambda hart: hart.words[index])


for _field in FIELDS.values():  # found in a third of the time that `__getattr__` takes
    if _field.count == 1:
        setattr(Hart, _field.name, _reader(_field.offset >> 3))
