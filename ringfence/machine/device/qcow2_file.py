"""The file of a qcow2 image: what is read lies in it, and what was read of tables is kept for a while."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

from ringfence.machine.device.disk import open_file, punch, read_fully, write_fully
from ringfence.machine.device.qcow2_format import damaged, words

PAGE = 4096
CACHE = 4 << 20
"""Bytes of tables that a chain of images keeps."""


class TableCache:
    """What was read last of the tables of a chain of images."""

    def __init__(self, limit: int = CACHE) -> None:
        self._left = limit
        self._pages: OrderedDict[tuple[ImageFile, int], bytearray] = OrderedDict()

    def get(self, file: ImageFile, page: int) -> bytearray | None:
        """The page, if it is there."""
        found = self._pages.get((file, page))
        if found is not None:
            self._pages.move_to_end((file, page))
        return found

    def put(self, file: ImageFile, page: int, data: bytearray) -> None:
        """The page is here; others may have to leave."""
        self._pages[file, page] = data
        self._left -= len(data)
        while self._left < 0:
            self._left += len(self._pages.popitem(last=False)[1])

    def drop(self, file: ImageFile, page: int) -> None:
        """It is not here."""
        self._left += len(self._pages.pop((file, page), b""))


class ImageFile:
    """A file, locked while it is open. What is written is at once. Raises `DiskError`, later `OSError`.

    `temporary`: nobody reads it behind a crash, so nothing waits for the medium.
    """

    def __init__(self, name: str, cache: TableCache, *, readonly: bool, temporary: bool = False) -> None:
        self._fd = open_file(name, readonly=readonly)
        self._temporary = temporary
        self._cache = cache
        found = os.fstat(self._fd)
        self.identity = found.st_dev, found.st_ino
        self.grows = stat.S_ISREG(found.st_mode)
        """Whether a write behind the end is one."""
        self.end = os.lseek(self._fd, 0, os.SEEK_END)
        """Bytes of the file."""
        self.blank = self.end
        """From here on nothing was ever written."""
        self._page = PAGE

    def divide(self, cluster: int) -> None:
        """Tables are clusters of this size, so a page that is kept has nothing else in it."""
        self._page = min(PAGE, cluster)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that begin in the file; those behind its end are zero."""
        if not 0 <= offset < self.end:
            raise damaged("something behind its end")
        return read_fully(self._fd, min(length, self.end - offset), offset).ljust(length, b"\0")

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Bytes that are no table."""
        try:
            write_fully(self._fd, data, offset)
        finally:
            if offset + len(data) > self.blank and self.grows:
                self.end = max(self.end, os.fstat(self._fd).st_size)
                self.blank = max(self.blank, offset + len(data))

    def table(self, offset: int, length: int) -> bytes:
        """Bytes of a table, inside a page if they are no whole pages."""
        return b"".join(
            self._kept(at // self._page)[at % self._page : at % self._page + min(length, self._page)]
            for at in range(offset, offset + length, self._page)
        )

    def word(self, offset: int) -> int:
        """A 64-bit number of a table."""
        at = offset % self._page
        return int.from_bytes(self._kept(offset // self._page)[at : at + 8], "big")

    def entries(self, offset: int, count: int) -> Iterator[tuple[int, int]]:
        """Those 64-bit numbers of a table that are not zero: where, and what."""
        for at in range(offset, offset + 8 * count, self._page):
            data = self._kept(at // self._page)[: offset + 8 * count - at]
            if data.count(0) != len(data):
                yield from ((at + 8 * n, number) for n, number in enumerate(words(bytes(data))) if number)

    def store(self, offset: int, data: bytes | bytearray) -> None:
        """Bytes of a table."""
        pages = range(offset // self._page, -(-(offset + len(data)) // self._page))
        try:
            self.write(offset, data)
        except BaseException:
            for page in pages:
                self._cache.drop(self, page)
            raise
        for page in pages:
            kept = self._cache.get(self, page)
            if kept is not None:
                start = page * self._page
                low, high = max(offset, start), min(offset + len(data), start + self._page)
                kept[low - start : high - start] = data[low - offset : high - offset]

    def extend(self, end: int) -> None:
        """The file has at least that many bytes, if the host allows."""
        if self.grows and end > self.end:
            try:
                os.ftruncate(self._fd, end)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                return
            self.end = end

    def shorten(self, end: int) -> None:
        """Bytes from there on are nobody's."""
        if self.grows and end < self.end:
            os.ftruncate(self._fd, end)
            self.end = end

    def punch(self, offset: int, length: int) -> None:
        """The host may take back what is behind these bytes."""
        punch(self._fd, offset, length)

    def order(self) -> None:
        """What was written is on the medium before what will be."""
        if not self._temporary:
            os.fdatasync(self._fd)

    def flush(self) -> None:
        """Returns when everything written is on the host's medium."""
        if not self._temporary:
            os.fsync(self._fd)

    def close(self) -> None:
        """Closes the file and gives its lock back; once is enough."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _kept(self, page: int) -> bytearray:
        found = self._cache.get(self, page)
        if found is None:
            found = bytearray(self.read(page * self._page, self._page))
            self._cache.put(self, page, found)
        return found
