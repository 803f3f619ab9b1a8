"""What is loaded, where, and what is refused."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from struct import Struct

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from ringfence.errors import NotBootable
from ringfence.guest.loader import LOW_END, load
from ringfence.guest.program import CORRAL
from ringfence.isa.spec import ISA
from ringfence.machine.board import RAM, MiB, Virt, virt
from ringfence.machine.devicetree import unflatten

HEADER = Struct("<16sHHIQQQIHHHHHH")
SEGMENT = Struct("<IIQQQQQQ")
CODE = ISA["jal"].encode(rd=0, imm=0).to_bytes(4, "little") * 4
KERNEL = RAM + 0x20_0000

Segments = list[tuple[int, int, bytes, int]]


def machine(memory: int = 8 * MiB) -> Virt:
    return virt(memory, engine="reference")


def elf(
    segments: Segments | None = None,
    *,
    entry: int = KERNEL,
    machine: int = 243,
    ident: bytes = b"\x7fELF\2\1\1",
    kind: int = 2,
) -> bytes:
    """An ELF file of segments (virtual address, physical address, bytes, size in memory)."""
    if segments is None:
        segments = [(KERNEL, KERNEL, CODE, 0x1000)]
    table = HEADER.size
    at = table + SEGMENT.size * len(segments)
    rows, data = b"", b""
    for va, pa, content, extent in segments:
        rows += SEGMENT.pack(1, 7, at + len(data), va, pa, len(content), extent, 4096)
        data += content
    head = HEADER.pack(ident.ljust(16, b"\0"), kind, machine, 1, entry, table, 0, 0, 64, 56, len(segments), 64, 0, 0)
    return head + rows + data


def image(size: int = 0x1000, *, text_offset: int = 0x20_0000, image_size: int | None = None, flags: int = 0) -> bytes:
    head = CODE[:8] + Struct("<QQQIIQ8s4s4x").pack(
        text_offset, size if image_size is None else image_size, flags, 2, 0, 0, b"RISCV\0\0\0", b"RSC\x05"
    )
    return head + bytes(range(256)) * ((size - len(head)) // 256 + 1)


def test_loader_places_an_elf_files_segments() -> None:
    """Segments are at their physical addresses, the rest of their extent is zero, and hart 0 begins at the entry in
    S-mode."""
    board = machine()
    board.ram.write(KERNEL + 0x800, b"old")
    load(board, elf())
    assert board.ram.read(KERNEL, 16) == CODE
    assert board.ram.read(KERNEL + 16, 0x1000) == bytes(0x1000)
    assert (board.harts[0].pc, board.harts[0].priv) == (KERNEL, 1)


def test_loader_begins_a_kernel_at_its_physical_entry() -> None:
    """An entry that is a virtual address is where that segment is in memory."""
    board = machine()
    load(board, elf([(0xFFFF_FFFF_8000_0000, KERNEL, CODE, 0x100)], entry=0xFFFF_FFFF_8000_0004))
    assert board.harts[0].pc == KERNEL + 4


def test_loader_places_a_linux_image_at_its_text_offset() -> None:
    """The Image is whole at RAM's base and its text_offset; so is one in gzip."""
    for data in (image(), gzip.compress(image())):
        board = machine()
        load(board, data)
        assert board.ram.read(KERNEL, 0x1000) == image()[:0x1000]
        assert board.harts[0].pc == KERNEL


@pytest.mark.parametrize("memory", [4 * MiB, 8 * MiB, 512 * MiB, 3072 * MiB])
def test_loader_gives_a_tree_that_says_where_the_initrds_are(memory: int) -> None:
    """The initrds lie one behind the other at multiples of 4, like the tree in RAM below 3 GiB; a1 and the tree lead
    there."""
    board = machine(memory)
    load(board, elf(), initrd=[b"first", b"second"], append="quiet x=1")
    tree = unflatten(board.ram.read(board.harts[0]["a1"], 65536 if memory > 8 * MiB else 4096))
    chosen = tree.find("/chosen")
    assert chosen.strings("bootargs") == ("quiet x=1",)
    start, end = (chosen.cells(f"linux,initrd-{name}") for name in ("start", "end"))
    first, behind = start[0] << 32 | start[1], end[0] << 32 | end[1]
    assert board.ram.read(first, behind - first) == b"first\0\0\0second"
    assert RAM <= first < behind <= min(RAM + memory, LOW_END) and first % 4096 == 0


def test_loader_loads_again_at_reset() -> None:
    """After a reset memory, harts and devices are as at power-on."""
    board = machine()
    load(board, elf(), initrd=[b"data"])
    before = (board.ram.read(RAM, 8 * MiB), [dict(hart.architectural()) for hart in board.harts], board.uart.snapshot())
    board.ram.write(KERNEL, b"\xff" * 4096)
    board.ram.write(RAM + 64, b"junk")
    board.harts[0]["a0"], board.harts[0].satp, board.uart.scr = 9, 8, 7
    board.reset()
    board.run(0)
    assert before == (
        board.ram.read(RAM, 8 * MiB),
        [dict(hart.architectural()) for hart in board.harts],
        board.uart.snapshot(),
    )


def test_loader_begins_machine_mode_at_the_reset_vector() -> None:
    """Without firmware every hart runs the ROM and comes to the entry in M-mode with a0 its number and a1 the tree."""
    board = virt(8 * MiB, 2, engine="reference", turn=50)
    load(board, elf([(RAM, RAM, CODE, 64)], entry=RAM), bios="none")
    board.run(400)
    for hart in board.harts:
        assert (hart.priv, hart.pc, hart["a0"]) == (3, RAM, hart.number)
        assert board.ram.read(hart["a1"], 4) == b"\xd0\x0d\xfe\xed"


def test_loader_tells_firmware_where_the_kernel_is() -> None:
    """a2 is fw_dynamic's information: magic, version 2, the kernel's entry, S-mode."""
    board = machine()
    load(board, elf(), bios=elf([(RAM, RAM, CODE, 0x1000)], entry=RAM))
    board.run(10)
    assert board.harts[0].pc == RAM
    at = board.harts[0]["a2"]
    found = [board.bus.read(at + 8 * n, 8) for n in range(6)]
    assert found == [int.from_bytes(b"OSBI", "little"), 2, KERNEL, 1, 0, 0]


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"#!/bin/sh\n" * 100, "neither"),
    "short": (b"\x7fEL", "ends in its header"),
    "header": (elf()[:40], "ends in its header"),
    "truncated": (elf()[:-8], "ends before"),
    "table": (elf()[:70], "table of segments"),
    "x86": (elf(machine=62), "for x86-64, not for RISC-V"),
    "unknown": (elf(machine=9999), "for processor 9999"),
    "32-bit": (elf(ident=b"\x7fELF\1\1\1"), "32-bit"),
    "big-endian": (elf(ident=b"\x7fELF\2\2\1"), "big-endian"),
    "object": (elf(kind=1), "no program"),
    "no segments": (elf([]), "table of segments"),
    "overlapping": (elf([(KERNEL, KERNEL, CODE, 64), (KERNEL + 32, KERNEL + 32, CODE, 64)]), "overlap"),
    "below RAM": (elf([(0x1000, 0x1000, CODE, 64)], entry=0x1000), "memory is"),
    "behind RAM": (elf([(KERNEL, RAM + 8 * MiB - 8, CODE, 64)]), "memory is"),
    "wraps": (elf([(KERNEL, (1 << 64) - 8, CODE, 64)]), "memory is"),
    "huge": (elf([(KERNEL, KERNEL, CODE, 1 << 40)]), "more than the 8 MiB of memory"),
    "entry": (elf(entry=0x1234), "begins at 0x1234"),
    "odd entry": (elf(entry=KERNEL + 1), "begins at"),
    "more in the file": (elf([(KERNEL, KERNEL, CODE, 8)]), "ends before"),
    "Image too large": (image(image_size=64 * MiB, size=2 * MiB), "more than the 8 MiB of memory"),
    "Image cut": (image(image_size=1 << 40), "of an Image of"),
    "Image big-endian": (image(flags=1), "big-endian"),
    "Image odd": (image(text_offset=0x20_0001), "for 0x200001 behind .*, which is odd"),
    "Image far away": (image(text_offset=1 << 63), "memory is"),
    "gzip cut": (gzip.compress(image())[:-20], "ends too early"),
    "gzip damaged": (gzip.compress(image())[:20] + b"\xff" * 50, "damaged gzip"),
    "gzip bomb": (gzip.compress(bytes(9 * MiB)), "larger than memory"),
    "gzip text": (gzip.compress(b"hello" * 100), "neither"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_loader_refuses_what_cannot_boot(name: str) -> None:
    """Foreign, damaged and hostile kernels are refused with a sentence that says why, and the machine is untouched."""
    data, why = REFUSED[name]
    board = machine()
    board.ram.write(RAM, b"mine")
    with pytest.raises(NotBootable, match=why):
        load(board, data)
    assert board.ram.read(RAM, 4) == b"mine"


def test_loader_refuses_a_table_that_no_file_reaches(tmp_path: Path) -> None:
    """Not even the host's own files are so large."""
    path = tmp_path / "kernel"
    for place in (1 << 63, (1 << 64) - 1):
        path.write_bytes(elf()[:32] + place.to_bytes(8, "little") + elf()[40:])
        with pytest.raises(NotBootable, match="table of segments"):
            load(machine(), path)


def test_loader_refuses_an_initrd_that_does_not_fit() -> None:
    """One larger than memory, and one that reaches into the kernel."""
    with pytest.raises(NotBootable, match="does not fit 8 MiB"):
        load(machine(), elf(), initrd=[bytes(9 * MiB)])
    with pytest.raises(NotBootable, match="overlap"):
        load(machine(), elf(), initrd=[bytes(7 * MiB)])
    with pytest.raises(NotBootable, match="initrd is empty"):
        load(machine(), elf(), initrd=[b""])


def test_loader_refuses_a_kernel_where_firmware_is() -> None:
    """Two programs at one place."""
    with pytest.raises(NotBootable, match="overlap"):
        load(machine(), elf(), bios=elf())
    with pytest.raises(NotBootable, match="no kernel"):
        load(machine(), None)


def test_loader_refuses_linux_where_harts_do_not_walk() -> None:
    """It would hang at its first page table."""
    with pytest.raises(NotBootable, match="is a Linux kernel, which needs harts that walk page tables"):
        load(virt(8 * MiB, engine="reference", tlb="software"), image())


def test_loader_says_which_file_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory, a device, and a name that is none."""
    for path, why in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path, "is a directory"),
        (Path("/dev/null"), "no file with bytes"),
        (Path("a\0b"), "cannot be opened"),
        (tmp_path / ("x" * 300), "cannot be opened"),
    ):
        with pytest.raises(NotBootable, match=why) as caught:
            load(machine(), path)
        assert "kernel" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_loader_says_that_a_file_may_not_be_read(tmp_path: Path) -> None:
    """A file without permission."""
    path = tmp_path / "secret"
    path.write_bytes(elf())
    path.chmod(0)
    with pytest.raises(NotBootable, match="Permission denied"):
        load(machine(), path)


def test_loader_says_that_a_file_shrank_before_a_reset(tmp_path: Path) -> None:
    """A kernel that was truncated while the machine ran is a sentence at its next start."""
    path = tmp_path / "kernel"
    path.write_bytes(elf())
    board = machine()
    load(board, path)
    path.write_bytes(elf()[:100])
    board.reset()
    with pytest.raises(NotBootable, match="has become shorter"):
        board.run(0)


CORRAL_BYTES = Path(str(CORRAL)).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([elf(), CORRAL_BYTES, image(), gzip.compress(image())]),
    st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=8)), max_size=6),
    st.one_of(st.none(), st.integers(0, 4096)),
)
def test_loader_takes_or_refuses_any_mutation(data: bytes, changes: list[tuple[int, bytes]], cut: int | None) -> None:
    """Whatever was done to a good file, it is loaded or it is `NotBootable`: nothing else is raised, and no memory
    but the guest's is taken."""
    mutated = bytearray(data)
    for at, new in changes:
        mutated[at : at + len(new)] = new
    board = machine()
    try:
        load(board, bytes(mutated[:cut] if cut is not None else mutated))
    except NotBootable as error:
        assert "\n" not in str(error)
    else:
        assert RAM <= board.harts[0].pc < RAM + 8 * MiB
