"""Disks that are files of the host."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from functools import cache
from types import TracebackType
from typing import Any, Self

from ringfence.errors import RingfenceError
from ringfence.machine.device.disk_worker import quiet

SECTOR = 512
QCOW2_MAGIC = b"QFI\xfb"
"""The first bytes of a qcow2 image."""
_BLANK = 1 << 20
"""Zeroes that are written at once, in bytes."""
_NOWAIT = getattr(os, "RWF_NOWAIT", -1)
"""Linux's; elsewhere no flag is this one."""
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
"""Modes of Linux's fallocate(2)."""


class DiskError(RingfenceError):
    """A disk image cannot be used."""


def open_file(name: str, *, readonly: bool) -> int:
    """A descriptor of a file or a block device, which is locked until it is closed: one machine that writes it, or any
    number that only read it, in this process or another. Raises `DiskError`.
    """
    try:
        fd = os.open(name, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DiskError(f"disk image {name} cannot be opened: {error.strerror}") from error
    try:
        _lock(fd, name, readonly)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, name: str, readonly: bool) -> None:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DiskError(f"disk image {name} is neither a file nor a block device")
    # flock, not fcntl.lockf: a lock of the open file also holds off a second machine of this process.
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DiskError(f"disk image {name} is in use by another machine") from error
    except OSError as error:
        raise DiskError(f"disk image {name} cannot be locked: {error.strerror}") from error


def read_fully(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes at `offset` of a file; raises `OSError` if it gives fewer."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "disk image has become shorter")
        data += more
    return data


def read_now(fd: int, length: int, offset: int) -> bytes | None:
    """The same where the host has it in memory; None where it has to ask the medium, or cannot tell."""
    data = bytearray(length)
    try:
        return bytes(data) if os.preadv(fd, [data], offset, _NOWAIT) == length else None
    except OSError:
        return None


def write_fully(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Stores `data` at `offset` of a file; raises `OSError`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


@cache
def _fallocate() -> Any:
    """The host's fallocate(2), or None."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def punch(fd: int, offset: int, length: int, mode: int = _PUNCH_HOLE) -> bool:
    """Gives the host back what is behind these bytes of a file, which then are zero. False: it cannot, and nothing has
    changed.
    """
    function = _fallocate()
    return function is not None and length > 0 and function(fd, _KEEP_SIZE | mode, offset, length) == 0


class RawDisk:
    """A raw image: byte n of the file is byte n of the disk. Raises `DiskError` if it cannot be used.

    The file is locked while it is open. Nothing is created, and its size never changes. `serial` is what the guest
    reads as the disk's name. `probed`: the file was taken for raw because it begins with no magic, so a write that
    would begin it with one is refused: next time its guest would choose which files of the host are read.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, readonly: bool = False, serial: bytes = b"", probed: bool = False
    ) -> None:
        name = os.fspath(path)
        self.readonly = readonly
        self.serial = serial
        self._probed = probed
        self._fd = open_file(name, readonly=readonly)
        try:
            self.size = self._measure(name)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; raises `OSError` if the file gives fewer."""
        return read_fully(self._fd, length, offset)

    def read_now(self, offset: int, length: int) -> bytes | None:
        """The same where that does not wait for the medium, else None."""
        return read_now(self._fd, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`; raises `OSError`."""
        self._check(offset, len(data))
        if self._probed and offset < len(QCOW2_MAGIC):
            head = bytearray(self.read(0, len(QCOW2_MAGIC)))
            head[offset : offset + len(data)] = data[: len(QCOW2_MAGIC) - offset]
            if head == QCOW2_MAGIC:
                raise OSError(errno.EPERM, "a raw disk would begin as a qcow2 image does")
        write_fully(self._fd, data, offset)

    def zero(self, offset: int, length: int) -> None:
        """`length` bytes at `offset` are zero, and their place stays theirs; raises `OSError`."""
        self._check(offset, length)
        if not punch(self._fd, offset, length, _ZERO_RANGE):
            for done in range(0, length, _BLANK):
                write_fully(self._fd, bytes(min(_BLANK, length - done)), offset + done)

    def discard(self, offset: int, length: int) -> None:
        """`length` bytes at `offset` are not needed: zero where the host takes their room back, else as they were.
        Raises `OSError`.
        """
        self._check(offset, length)
        punch(self._fd, offset, length)

    def flush(self) -> None:
        """Returns when everything written is on the host's medium; raises `OSError`."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Closes the file and gives its lock back, when all that a machine has begun is done; once is enough."""
        if self._fd >= 0:
            with quiet(self):
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        """A change of these bytes may be tried."""
        if self.readonly:
            raise OSError(errno.EBADF, "write to a disk that is only read")
        if offset < 0 or offset + length > self.size:
            raise OSError(errno.ENOSPC, "write behind the end of the disk")

    def _measure(self, name: str) -> int:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size == 0:
            raise DiskError(f"disk image {name} is empty")
        if size % SECTOR:
            raise DiskError(f"disk image {name} has {size} bytes, which is not a multiple of {SECTOR}")
        return size
