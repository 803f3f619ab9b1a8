"""Puts what is to run into a machine: firmware, kernel, initrd and device tree, and the harts where they begin.

    memory     [firmware | kernel at its own place ...                   initrd | device tree]   the last two below 3
    GiB boot ROM   the reset vector, where there is M-mode software; without any, the built-in SBI is the firmware

Sources: System V ABI, "Object Files" (ELF-64); Linux, Documentation/arch/riscv/boot-image-header.rst and boot.rst;
OpenSBI, docs/firmware/fw_dynamic.md. What cannot be booted is refused with `NotBootable` before anything of the
machine has changed.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import IO

from ringfence.errors import NotBootable
from ringfence.guest.sbi import Sbi
from ringfence.isa.spec import ISA, X_NAMES
from ringfence.machine.board import MiB, Virt
from ringfence.machine.memory import amount

Source = str | os.PathLike[str] | bytes
"""A file, or what would be in one."""

LOW_END = 0xC000_0000
"""The initrd and the device tree are below this: firmware and kernels may not reach further yet."""
PAGE = 4096
LARGE_PAGE = 2 * MiB
NO_FIRMWARE = "none"

_IDENT = b"\x7fELF"
_ELF = Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = Struct("<IIQQQQQQ")
_EXECUTABLE, _SHARED, _LOAD, _RISCV = 2, 3, 1, 243
_MACHINES = {
    3: "x86",
    40: "Arm",
    62: "x86-64",
    183: "Arm64",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S390",
    258: "LoongArch",
}
_IMAGE = Struct("<8sQQQI4xQQ4s4x")
_IMAGE_MAGIC = b"RSC\x05"
_GZIP = b"\x1f\x8b"
_DYNAMIC_INFO = Struct("<4s4x5Q")
"""magic, version, next address, next mode, options, boot hart."""


class Blob:
    """The bytes of one file, which stays open for the machine's next start. `what` is its part: kernel, initrd, ..."""

    def __init__(self, what: str, source: Source) -> None:
        self._file: IO[bytes] | None = None
        self._data = b""
        if isinstance(source, bytes):
            self.name = what
            self._data, self.size = source, len(source)
        else:
            self.name = f"{what} {os.fspath(source)}"
            self._file = self._open(source)
        if not self.size:
            raise NotBootable(f"{self.name} is empty")

    def _open(self, source: str | os.PathLike[str]) -> IO[bytes]:
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise NotBootable(f"{self.name} does not exist") from None
            why = error.strerror if isinstance(error, OSError) else error
            raise NotBootable(f"{self.name} cannot be opened: {why}") from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no file with bytes in it"
            raise NotBootable(f"{self.name} is {kind}")
        self.size = found.st_size
        return open(fd, "rb", buffering=0)

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes at `offset`, which may be anywhere."""
        if self._file is None or offset >= self.size:
            return self._data[offset : offset + length]
        try:
            return os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise NotBootable(f"{self.name} cannot be read: {error.strerror}") from None

    def into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset` on."""
        if self._file is None:
            view[:] = self._data[offset : offset + len(view)]
            return
        done = 0
        try:
            while done < len(view):
                got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
                if not got:
                    raise NotBootable(f"{self.name} has become shorter")
                done += got
        except OSError as error:
            raise NotBootable(f"{self.name} cannot be read: {error.strerror or errno.errorcode[errno.EIO]}") from None

    def unpacked(self, limit: int) -> Blob:
        """Itself, or what is in it where it is compressed with gzip, at most `limit` bytes."""
        if self.read(0, 2) != _GZIP:
            return self
        unpack = zlib.decompressobj(31)
        try:
            data = unpack.decompress(self.read(0, self.size), limit + 1)
        except zlib.error:
            raise NotBootable(f"{self.name} is a damaged gzip file") from None
        if len(data) > limit:
            raise NotBootable(f"{self.name} is larger than memory when unpacked")
        if not unpack.eof:
            raise NotBootable(f"{self.name} is a gzip file that ends too early")
        return Blob(self.name, data)


@dataclass(frozen=True)
class Piece:
    """`length` bytes at `offset` of a file go to `pa`, and `extent` bytes there are its own: the rest are zero."""

    pa: int
    blob: Blob
    offset: int
    length: int
    extent: int

    @property
    def end(self) -> int:
        return self.pa + self.extent


@dataclass(frozen=True)
class Program:
    """What a machine runs from power-on; the last piece is the device tree. `sbi` is the firmware where none was
    given."""

    board: Virt
    pieces: tuple[Piece, ...]
    entry: int
    tree: int
    rom: bytes
    sbi: Sbi | None

    @property
    def tree_blob(self) -> bytes:
        """The device tree."""
        piece = self.pieces[-1]
        return piece.blob.read(0, piece.length)

    def power_on(self) -> None:
        """The machine as at power-on: what a reset does too."""
        board = self.board
        board.hardware_reset()
        ram = board.ram
        for piece in self.pieces:
            ram.offset(piece.pa, piece.extent)
            done = piece.offset
            for window in ram.windows(piece.pa, piece.length):
                piece.blob.into(window, done)
                done += len(window)
        board.rom.content = self.rom
        board.firmware = self.sbi
        if self.sbi is not None:
            self.sbi.power_on(self.entry, self.tree)


def load(
    board: Virt,
    kernel: Source | None,
    *,
    initrd: Sequence[Source] = (),
    append: str = "",
    bios: Source | None = None,
) -> Program:
    """Load `kernel` (an ELF file, or a Linux Image, perhaps in gzip) and switch the machine on; a reset loads again.

    By default the kernel begins in S-mode over the built-in SBI. With `bios` (OpenSBI and its like, ELF or flat `.bin`)
    that begins in M-mode and finds the kernel by its own address or by fw_dynamic; with bios "none" the kernel itself
    begins in M-mode, on all harts. Several initrds lie one behind the other, each at a multiple of 4. Raises
    `NotBootable`.
    """
    base, size = board.ram.base, board.ram.size
    pieces: list[Piece] = []
    entry = kernel_entry = 0
    if bios is not None and bios != NO_FIRMWARE:
        entry, found = _program(Blob("firmware", bios), base, size, flat=True)
        pieces += found
    if kernel is not None:
        blob = Blob("kernel", kernel).unpacked(size)
        if board.inputs.tlb == "software" and _is_image(blob.read(0, _IMAGE.size)):
            raise NotBootable(
                f"{blob.name} is a Linux kernel, which needs harts that walk page tables, and this machine's do not"
            )
        kernel_entry, found = _program(blob, base, size, flat=bios == NO_FIRMWARE)
        pieces += found
    elif bios is None or bios == NO_FIRMWARE:
        raise NotBootable("there is no kernel to boot")
    if bios is None or bios == NO_FIRMWARE:
        entry = kernel_entry

    extents = _initrd([Blob("initrd", source) for source in initrd])
    total = extents[-1][0] + extents[-1][1].size if extents else 0
    tree_size = len(board.device_tree(append, (0, 0) if extents else None))
    top = min(base + size, LOW_END)
    align = LARGE_PAGE if size >= 32 * LARGE_PAGE else PAGE
    tree_at = top - tree_size & -align
    initrd_at = tree_at - total & -PAGE
    if tree_at < base or initrd_at < base:
        raise NotBootable(f"an initrd of {amount(total)} does not fit {amount(size)} of memory")
    span = (initrd_at, initrd_at + total) if extents else None
    tree = Blob("device tree", board.device_tree(append, span))
    pieces += [Piece(initrd_at + at, blob, 0, blob.size, blob.size) for at, blob in extents]
    pieces.append(Piece(tree_at, tree, 0, tree.size, tree.size))
    _separate(pieces)

    sbi = Sbi(board) if bios is None else None
    rom = b"" if sbi else reset_vector(entry, tree_at, kernel_entry)
    program = Program(board, tuple(pieces), entry, tree_at, rom, sbi)
    board.on_reset = program.power_on
    program.power_on()
    return program


def reset_vector(entry: int, tree: int, next_address: int) -> bytes:
    """The boot ROM: every hart goes to `entry` in M-mode with a0 its number, a1 the tree and a2 fw_dynamic's
    information."""
    t0, a0, a1, a2 = (X_NAMES.index(name) for name in ("t0", "a0", "a1", "a2"))
    data = 6 * 4  # where the data begins: `entry`, `tree`, then the information
    code = (
        ISA["auipc"].encode(rd=t0, imm=0),
        ISA["csrr"].encode(rd=a0, csr=0xF14),
        ISA["addi"].encode(rd=a2, rs1=t0, imm=data + 16),
        ISA["ld"].encode(rd=a1, rs1=t0, imm=data + 8),
        ISA["ld"].encode(rd=t0, rs1=t0, imm=data),
        ISA["jalr"].encode(rd=0, rs1=t0, imm=0),
    )
    supervisor = 1
    words = b"".join(word.to_bytes(4, "little") for word in code)
    return words + Struct("<2Q").pack(entry, tree) + _DYNAMIC_INFO.pack(b"OSBI", 2, next_address, supervisor, 0, 0)


def _program(blob: Blob, base: int, size: int, *, flat: bool) -> tuple[int, list[Piece]]:
    """The physical address at which a program begins, and its pieces, each inside RAM. `flat`: a .bin lies at RAM's
    base."""
    head = blob.read(0, _IMAGE.size)
    if head.startswith(_IDENT[: len(head)]):
        entry, pieces = _elf(blob)
    elif _is_image(head):
        entry, pieces = _image(blob, base)
    elif flat and blob.name.endswith(".bin"):
        entry, pieces = base, [Piece(base, blob, 0, blob.size, blob.size)]
    else:
        raise NotBootable(f"{blob.name} is neither a RISC-V ELF file nor a RISC-V Linux Image")
    for piece in pieces:
        if piece.pa < base or piece.end > base + size:
            if piece.extent > size:
                needed = amount(-(-piece.extent // MiB) * MiB)
                raise NotBootable(f"{blob.name} needs {needed}, which is more than the {amount(size)} of memory")
            where, memory = f"{piece.pa:#x} to {piece.end:#x}", f"{base:#x} to {base + size:#x}"
            raise NotBootable(f"{blob.name} has bytes for {where}, and memory is {memory}")
    return entry, pieces


def _is_image(head: bytes) -> bool:
    """Whether a file of Linux's boot format begins so."""
    return len(head) == _IMAGE.size and _IMAGE.unpack(head)[7] == _IMAGE_MAGIC


def _image(blob: Blob, base: int) -> tuple[int, list[Piece]]:
    _, text_offset, image_size, flags, _, _, _, _ = _IMAGE.unpack(blob.read(0, _IMAGE.size))
    if flags & 1:
        raise NotBootable(f"{blob.name} is big-endian, and this machine is little-endian")
    if text_offset & 1:
        raise NotBootable(f"{blob.name} is an Image for {text_offset:#x} behind the start of memory, which is odd")
    if image_size and blob.size < image_size // 64:
        raise NotBootable(f"{blob.name} has {blob.size} bytes of an Image of {image_size}")
    start = base + text_offset
    return start, [Piece(start, blob, 0, blob.size, max(image_size, blob.size))]


def _elf(blob: Blob) -> tuple[int, list[Piece]]:
    head = blob.read(0, _ELF.size)
    if len(head) < _ELF.size:
        raise NotBootable(f"{blob.name} is an ELF file that ends in its header")
    ident, kind, machine, _, entry, table, _, _, _, entry_size, count, _, _, _ = _ELF.unpack(head)
    if ident[5] == 2:
        raise NotBootable(f"{blob.name} is a big-endian ELF file, and this machine is little-endian")
    if machine != _RISCV:
        raise NotBootable(f"{blob.name} is for {_MACHINES.get(machine, f'processor {machine}')}, not for RISC-V")
    if ident[4] != 2:
        raise NotBootable(f"{blob.name} is a 32-bit ELF file, and this machine is a 64-bit one")
    if kind not in (_EXECUTABLE, _SHARED):
        raise NotBootable(f"{blob.name} is an ELF file, but no program that was linked")
    rows = blob.read(table, entry_size * count) if count and entry_size == _SEGMENT.size else b""
    if not rows or len(rows) != entry_size * count:
        raise NotBootable(f"{blob.name} is an ELF file whose table of segments is damaged or missing")
    pieces = []
    start = None
    for kind, _, offset, va, pa, length, extent, _ in _SEGMENT.iter_unpack(rows):
        if kind != _LOAD or not extent:
            continue
        if length > extent or offset + length > blob.size:
            raise NotBootable(f"{blob.name} is an ELF file that ends before its segments do")
        pieces.append(Piece(pa, blob, offset, length, extent))
        if va <= entry < va + extent:
            start = pa + entry - va
    if start is None or start & 1:
        raise NotBootable(f"{blob.name} is an ELF file that begins at {entry:#x}, where it has no instruction")
    _separate(pieces)
    return start, pieces


def _initrd(blobs: list[Blob]) -> list[tuple[int, Blob]]:
    """Each with its offset from the first, at multiples of 4, which is how Linux finds the next archive."""
    placed = []
    at = 0
    for blob in blobs:
        placed.append((at, blob))
        at += blob.size + 3 & ~3
    return placed


def _separate(pieces: list[Piece]) -> None:
    """Refuse pieces that overlap."""
    ordered = sorted(pieces, key=lambda piece: (piece.pa, piece.end))
    for one, other in pairwise(ordered):
        if other.pa < one.end:
            if one.blob is other.blob:
                raise NotBootable(f"{one.blob.name} has segments that overlap at {other.pa:#x}")
            raise NotBootable(
                f"{one.blob.name} and {other.blob.name} overlap at {other.pa:#x}: the machine needs more memory"
                if "firmware" not in one.blob.name
                else f"{one.blob.name} and {other.blob.name} overlap at {other.pa:#x}"
            )
