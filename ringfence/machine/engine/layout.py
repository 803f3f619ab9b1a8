"""Where native code finds things: the engine's fields behind a hart's own, the TLBs, the machine block, code pages.

    hart block     [state of machine.hart | engine fields | data TLBs | fetch TLBs]
    data TLB       a slot a regime: SETS read entries, SETS write entries; of each, the page's physical address
    fetch TLB      a slot a regime: SETS entries
    TLB entry      (tag: page of the va, all ones: none;
                    addend: va + addend is the host address, or for fetches the page's first record)
    code page      [header | 2048 records of a halfword each | the record behind them: entering the next page]
    record         (handler - decoder, next instruction's handler - decoder, immediate: 4 bytes each;
                    rd, rs1, rs2, rs3: a byte each)

A handler passes what it wrote to rd on in a register. The next instruction's handler, which a record links to at its
first execution, is the one that takes rs1 or rs2 from there where they name that rd. In front of each handler lie the
distances of these (`LINKS`).
"""

from __future__ import annotations

from typing import TypeVar

from ringfence.isa.trap import Status
from ringfence.machine.hart import SIZE, table
from ringfence.word import Word

ZEROES = ("pages", "again", "blank")
"""Of pages whose first block CBO.ZERO has made zeroes: all; those where it was zeroes before; those of no frame."""
Place = TypeVar("Place", int, Word)

SPACES = 16
"""Modes of a virtual hart for which the lent hart's, and its page tables, are known."""
SPACE_STATUS = 1 << Status.SUM | 1 << Status.MXR
WALKS = 64
"""Last tables of walks that are kept."""
WALKS_TURNS = 1 << 20
SLOTS = 16
"""Regimes that a TLB keeps."""
ENTRY = 16
WATCHED_PAGES = 8
"""The most pages with watchpoints in them: a TLB miss looks through a list of so many."""
RECORD = 16
RECORDS = 2048
NEXT = 4
"""In a record: how the next instruction's handler is found."""
LINKS = {"rs1": -16, "rs2": -12, "both": -8}
GIVES = -4
"""In front of a handler: the handlers that take an operand from the last result; whether it gives one."""
HEADER = 112
CODE_PAGE = HEADER + (RECORDS + 1) * RECORD
HOST_PAGE, FRAME_NUMBER = -16, -8
"""In the header, from the first record: the frame's host address, its number."""

FIELDS = table(
    [
        ("limit", 1),  # compared with the steps at check points; 0 asks for attention
        ("deadline", 1),
        ("kick", 1),
        ("steps", 1),  # on the way in and out
        ("action", 1),  # why native code leaves: Action
        ("cause", 1),
        ("tval", 1),
        ("zeroes", len(ZEROES)),  # see there
        ("sink", 8),  # for what CBO.ZERO writes where there is no frame
        ("physical", 1),  # the physical address of the last access that missed its TLB
        ("page_va", 1),  # the virtual page that is executed,
        ("page_base", 1),  # and its first record: with a record's place they give the pc
        ("data_tlb", 1),
        ("fetch_tlb", 1),
        ("data_key", 1),
        ("fetch_key", 1),
        ("float_slow", 1),  # the reference's are, bit 0: all floating-point rows; 1: those that change its state
        ("host_control", 1),  # the host's floating-point control register while native code runs
        ("control", 1),
        ("clock_host", 1),  # 0: virtual
        ("clock_step_ns", 1),
        ("clock_base_ns", 1),  # idle time; or the host's time at guest time 0
        ("clock_offset", 1),  # ticks
        ("timespec", 2),
        ("ram_base", 1),
        ("ram_size", 1),
        ("places", 1),  # 8 bytes a frame of a virtual machine: its place in RAM, and the rights to it
        ("wholes", 1),  # 8 bytes a superpage of it, where its frames follow each other: those of the first; 0: bare
        ("permissions", 1),  # a byte a frame: R W X below M in bits 0 to 2, in M in bits 4 to 6
        ("machine", 1),
        ("lent", 1),  # to a monitor, whom its traps go to
        ("virtual", 1),  # the block of the virtual hart that its privileged instructions are applied to; 0: none
        ("applied", 1),  # how many were
        ("space_key", 1),  # the virtual hart's mode, where its page tables are to be told; 0: they are known
        ("space_keys", SPACES),
        ("spaces", SPACES),  # satp
        ("code_spaces", SPACES),  # isatp
        ("space_modes", SPACES),  # the privilege, and what of mstatus is in SPACE_STATUS
        ("walks_turn", 1),  # walks of others are kept no more; below WALKS_TURNS
        ("walks", 4 * WALKS),  # of each: 2 MiB of addresses | the turn << 1 | 1; satp; physical address; place
        ("scratch", 8),  # records of the instruction across a page's end
        ("data_keys", SLOTS),
        ("data_turn", 1),  # behind the keys: the number of the slot to give up next
        ("fetch_keys", SLOTS),
        ("fetch_turn", 1),
    ],
    SIZE,
)
TLBS = 8192
assert max(f.offset + 8 * f.count for f in FIELDS.values()) <= TLBS

MACHINE = table(
    [
        ("ram_host", 1),
        ("flags", 1),  # a byte a frame
        ("code", 1),  # 8 bytes a frame: its first record, or 0
        ("tables", 1),  # 8 bytes a frame: of which part of the address space it was walked as a table
        ("shadows", 1),  # 8 bytes a frame: where its shadows are listed, how many and then their frames; or 0
        ("refills", 1),  # REFILLS of 32 bytes, see `refill_slot`
        ("writes", 1),  # 2 bytes a frame: slow writes since something was last derived
        ("code_next", 1),
        ("code_end", 1),
        ("harts", 1),  # the addresses of their blocks
        ("hart_count", 1),
        ("breaks", 32),  # a bit a halfword of a page: an instruction there is the reference's
        ("watching", 1),  # how many there are
        ("watched", WATCHED_PAGES),  # of these pages: accesses to them are the reference's
    ]
)

CODE, TABLE, WRITABLE, SHADOWED, WATCHED = 1, 2, 4, 8, 16
"""Frame flags: decoded code was taken from it; a walk read it; it may be in a write TLB; it has shadows, whose entries
follow from its own; somebody is to be called before it changes.
"""
DERIVED = CODE | TABLE | SHADOWED | WATCHED
RETIRE_CODE, RETIRE_TABLE = 1024, 64
"""Slow writes with nothing derived between them after which a frame is plain again."""


REFILLS = 4096
"""Entries of shadows that were filled, each with where it lies, where the one that it follows from lies, what that was,
and what it became: all 0 where none is known.
"""


def refill_slot(place: Place) -> Place:
    """The offset of what is known of the entry at a place in RAM."""
    return (place >> 3 ^ place >> 12) % REFILLS * 32


class Action:
    """Why native code left."""

    NONE = 0
    DEADLINE = 1  # a check point at or behind the deadline
    KICK = 2  # a check point, and somebody asked
    WAIT = 3  # a check point, and the hart waits
    EMULATE = 4  # one instruction is the reference's
    TRAP = 5  # (inside) an exception is to be taken
    FULL = 6  # no code page is left
    PLAIN = 7  # the bare machine's frame `cause` is to be plain again
    FAULT = 8  # f does not give the right `tval` to the machine's frame `cause`
    LENT = 9  # an exception of a hart that is lent to a monitor
    SPACE = 10  # and which page tables its virtual hart has now


class Geometry:
    """Sizes that follow from the number of TLB sets."""

    def __init__(self, sets: int = 256) -> None:
        if sets & sets - 1 or sets < 1:
            raise ValueError("TLB sets: a power of two")
        self.sets = sets
        self.fetch_slot = sets * ENTRY
        self.data_slot = sets * (2 * ENTRY + 2 * 8)
        self.fetch_tlbs = TLBS + SLOTS * self.data_slot
        self.stride = (self.fetch_tlbs + SLOTS * self.fetch_slot + 4095) & ~4095
