"""Disks that are files of the host."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from types import TracebackType
from typing import Self

from ringfence.errors import RingfenceError

SECTOR = 512


class DiskError(RingfenceError):
    """A disk image cannot be used."""


class RawDisk:
    """A raw image: byte n of the file is byte n of the disk. Raises `DiskError` if it cannot be used.

    The file is locked while it is open: one machine that writes it, or any number that only read it, in this process
    or another. Nothing is created, and its size never changes. `serial` is what the guest reads as the disk's name.
    """

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False, serial: bytes = b"") -> None:
        name = os.fspath(path)
        self.readonly = readonly
        self.serial = serial
        try:
            self._fd = os.open(name, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DiskError(f"disk image {name} cannot be opened: {error.strerror}") from error
        try:
            self.size = self._lock_and_measure(name)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; raises `OSError` if the file gives fewer."""
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "disk image has become shorter")
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`; raises `OSError`."""
        if offset + len(data) > self.size:
            raise OSError(errno.ENOSPC, "write behind the end of the disk")
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written

    def flush(self) -> None:
        """Returns when everything written is on the host's medium; raises `OSError`."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Closes the file and gives its lock back; once is enough."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock_and_measure(self, name: str) -> int:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DiskError(f"disk image {name} is neither a file nor a block device")
        # flock, not fcntl.lockf: a lock of the open file also holds off a second machine of this process.
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self.readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DiskError(f"disk image {name} is in use by another machine") from error
        except OSError as error:
            raise DiskError(f"disk image {name} cannot be locked: {error.strerror}") from error
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size == 0:
            raise DiskError(f"disk image {name} is empty")
        if size % SECTOR:
            raise DiskError(f"disk image {name} has {size} bytes, which is not a multiple of {SECTOR}")
        return size
