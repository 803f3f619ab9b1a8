"""Disks that are qcow2 images: in a file that grows, over other images or none.

Data goes to a cluster that is nobody's, then its entry to the L2 table, then a new L2 table's to the L1 table; so
wherever everything stops, each entry leads to what is whole. A cluster that nothing leads to any more is used again
when the medium knows.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from types import TracebackType
from typing import Protocol, Self

from ringfence.machine.device.disk import QCOW2_MAGIC, DiskError, RawDisk
from ringfence.machine.device.disk_worker import quiet
from ringfence.machine.device.qcow2_file import ImageFile, TableCache
from ringfence.machine.device.qcow2_format import (
    AUTOCLEAR_AT,
    COPIED,
    MAX_CLUSTER_BITS,
    MIN_CLUSTER_BITS,
    ZERO,
    Header,
    Kind,
    Place,
    damaged,
    parse,
    place,
    table,
)
from ringfence.machine.device.qcow2_leaks import give_leaks_back
from ringfence.machine.device.qcow2_refcounts import Refcounts

MAX_CHAIN = 64
"""Images of a chain."""
_AT_ONCE = 512
"""Entries of an L2 table that are changed at once."""
_ZSTD_WINDOW = 8 << 20


class Backing(Protocol):
    """What a chain of images stands on."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def close(self) -> None: ...


class Qcow2Disk:
    """A qcow2 image. Raises `DiskError` if it cannot be used; then `OSError`, for a damaged image too.

    Its file is locked while it is open, and the images behind it are too, as those that are only read. Opening it for
    writing reads all of its tables, refuses it if they contradict each other, and frees clusters that are nobody's.
    `above` are device and inode of the images that stand on this one, and `cache` is theirs. `temporary`: nothing of it
    is to outlast the process, so a flush waits for nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        serial: bytes = b"",
        above: Sequence[tuple[int, int]] = (),
        cache: TableCache | None = None,
        temporary: bool = False,
    ) -> None:
        name = os.fspath(path)
        self.readonly = readonly
        self.serial = serial
        cache = TableCache() if cache is None else cache
        self._unpacked: tuple[Place, bytes] | None = None
        """The compressed cluster that was read last."""
        self._backing: Backing | None = None
        with ExitStack() as stack:
            self._file = ImageFile(name, cache, readonly=readonly, temporary=temporary)
            stack.callback(self._file.close)
            try:
                self._header = header = self._read_header(name)
            except OSError as error:
                raise DiskError(f"disk image {name} cannot be read: {error.strerror}") from error
            self._file.divide(header.cluster)
            if header.zstd:
                _zstd(name)
            self.size = header.size
            if header.backing:
                self._backing = _open_backing(name, header, [*above, self._file.identity], cache)
                stack.callback(self._backing.close)
            self._refcounts = Refcounts(self._file, header)
            if not readonly:
                self._begin(name)
            self._writes = not readonly
            stack.pop_all()

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; raises `OSError`."""
        if offset < 0 or offset + length > self.size:
            raise OSError(errno.EIO, "read behind the end of the disk")
        return b"".join(self._read(*run) for run in self._runs(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`; raises `OSError`, and then what was there is, or some of `data`."""
        self._check(offset, len(data))
        view, done = memoryview(data), 0
        moved: list[tuple[int, int, int]] = []
        """Clusters that have a new place: which, the entry that they had, where they are to be."""
        wait = False
        try:
            for number, inside, n in self._clusters(offset, len(data)):
                part = view[done : done + n]
                done += n
                entry = self._entry(number)
                found = place(entry, self._header)
                if found.kind is Kind.DATA and entry & COPIED:
                    if found.offset >= self._file.end:
                        raise damaged("something behind its end")
                    self._file.write(found.offset + inside, part)
                else:
                    to = self._refcounts.take()
                    moved.append((number, entry, to))
                    wait |= self._fill(to, number, found, inside, part)
            if wait:
                self._file.order()
        except BaseException:
            for _, _, to in moved:
                self._refcounts.give_back(to)
            raise
        self._link([(number, entry, to | COPIED) for number, entry, to in moved])

    def zero(self, offset: int, length: int) -> None:
        """`length` bytes at `offset` are zero, and whole clusters among them take no room; raises `OSError`."""
        self._check(offset, length)
        first, last = self._whole(offset, length)
        if first >= last or not self._can_clear():
            self._write_zeroes(offset, length)
            return
        start, end = first * self._header.cluster, min(last * self._header.cluster, self.size)
        self._write_zeroes(offset, start - offset)
        self._clear(first, last)
        self._write_zeroes(end, offset + length - end)

    def discard(self, offset: int, length: int) -> None:
        """`length` bytes at `offset` are not needed: whole clusters among them are zero and take no room, the others
        are as they were; raises `OSError`. In version 2 nothing is done over a backing file.
        """
        self._check(offset, length)
        first, last = self._whole(offset, length)
        if first < last and self._can_clear():
            self._clear(first, last)

    def flush(self) -> None:
        """Returns when everything written is on the host's medium; raises `OSError`."""
        self._file.flush()
        if self._writes:
            self._refcounts.settle()

    def close(self) -> None:
        """Gives back what is reserved, closes the files and gives their locks back, when all that a machine has begun
        is done; once is enough.
        """
        with quiet(self):
            if self._writes:
                self._writes = False
                with suppress(OSError):  # which leaves clusters that are nobody's, to be found by the next who opens it
                    self._file.order()
                    self._refcounts.close()
            self._file.close()
        if self._backing is not None:
            self._backing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_header(self, name: str) -> Header:
        end = self._file.end
        front = self._file.read(0, min(24, end)) if end else b""
        bits = int.from_bytes(front[20:24], "big")
        length = 1 << bits if MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS else 104
        return parse(self._file.read(0, min(length, end)) if end else b"", end, name)

    def _begin(self, name: str) -> None:
        """The image is about to be written."""
        if self._header.bitmaps:
            raise DiskError(f"disk image {name} has bitmaps of what has changed, so it can only be read")
        try:
            give_leaks_back(self._file, self._header, self._refcounts, name)
            if self._header.autoclear:
                self._file.write(AUTOCLEAR_AT, bytes(8))
        except OSError as error:
            raise DiskError(f"disk image {name} cannot be written: {error.strerror}") from error

    def _check(self, offset: int, length: int) -> None:
        """A change of these bytes may be tried."""
        if self.readonly:
            raise OSError(errno.EBADF, "write to a disk that is only read")
        if offset < 0 or offset + length > self.size:
            raise OSError(errno.ENOSPC, "write behind the end of the disk")

    def _clusters(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(number, offset in it, length) of the pieces of `length` bytes at `offset`."""
        while length > 0:
            number, inside = divmod(offset, self._header.cluster)
            n = min(length, self._header.cluster - inside)
            yield number, inside, n
            offset, length = offset + n, length - n

    def _entry(self, number: int) -> int:
        """The L2 entry of a cluster."""
        high, low = divmod(number, self._header.l2_entries)
        l2 = table(self._file.word(self._header.l1_offset + 8 * high), self._header)
        return self._file.word(l2 + 8 * low) if l2 else 0

    def _runs(self, offset: int, length: int) -> Iterator[tuple[Place, int, int, int]]:
        """(place, offset in it, offset of the disk, length) of pieces that are side by side in their place too."""
        last: tuple[Place, int, int, int] | None = None
        for number, inside, n in self._clusters(offset, length):
            found = place(self._entry(number), self._header)
            if last is not None:
                before, start, at, so_far = last
                if before.kind is found.kind is not Kind.PACKED and (
                    found.kind is not Kind.DATA or before.offset + start + so_far == found.offset
                ):
                    last = before, start, at, so_far + n
                    continue
                yield last
            last = found, inside, number * self._header.cluster + inside, n
        if last is not None:
            yield last

    def _read(self, found: Place, inside: int, at: int, length: int) -> bytes:
        if found.kind is Kind.DATA:
            return self._file.read(found.offset + inside, length)
        if found.kind is Kind.PACKED:
            return self._unpack(found)[inside : inside + length]
        if found.kind is Kind.BLANK or self._backing is None or at >= self._backing.size:
            return bytes(length)
        return self._backing.read(at, min(length, self._backing.size - at)).ljust(length, b"\0")

    def _unpack(self, found: Place) -> bytes:
        """All of a compressed cluster."""
        if self._unpacked is None or self._unpacked[0] != found:
            data, size = self._file.read(found.offset, found.length), self._header.cluster
            plain = _inflate_zstd(data, size) if self._header.zstd else _inflate(data, size)
            if len(plain) != size:
                raise damaged(f"compressed cluster at {found.offset:#x}")
            self._unpacked = found, plain
        return self._unpacked[1]

    def _fill(self, to: int, number: int, found: Place, inside: int, part: memoryview) -> bool:
        """Writes a cluster that nothing leads to yet: `part`, and around it what the disk has there. Returns whether
        the medium must have it before anything does, as more than `part` would be lost.
        """
        cluster, at = self._header.cluster, number * self._header.cluster
        there = min(cluster, self.size - at)
        if len(part) == there == cluster:
            self._file.write(to, part)
            return False
        blank = to >= self._file.blank
        old = bytearray(self._read(found, 0, at, there).ljust(cluster, b"\0"))
        old[inside : inside + len(part)] = bytes(len(part))
        plain = old.count(0) == cluster
        if plain and blank:
            self._file.write(to + inside, part)
            return False
        old[inside : inside + len(part)] = part
        self._file.write(to, old)
        return len(part) < there

    def _link(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Gives clusters, in rising order, L2 entries: number, the one before, the one now."""
        waiting = list(entries)
        try:
            for high, group in groupby(entries, key=lambda item: item[0] // self._header.l2_entries):
                changed = list(group)
                where = self._header.l1_offset + 8 * high
                l2 = table(self._file.word(where), self._header)
                if l2:
                    del waiting[: len(changed)]  # whatever comes, they may be linked
                    self._store(l2, changed)
                else:
                    self._new_table(where, changed, waiting)
                for _, before, _ in changed:
                    self._release(before)
        except BaseException:
            for _, _, now in waiting:
                if now & COPIED:
                    self._refcounts.give_back(now ^ COPIED)
            raise

    def _store(self, l2: int, changed: list[tuple[int, int, int]]) -> None:
        """Those that are side by side with one write."""
        for _, group in groupby(enumerate(changed), key=lambda item: item[1][0] - item[0]):
            items = [item for _, item in group]
            data = b"".join(now.to_bytes(8, "big") for _, _, now in items)
            self._file.store(l2 + 8 * (items[0][0] % self._header.l2_entries), data)

    def _new_table(self, where: int, changed: list[tuple[int, int, int]], waiting: list[tuple[int, int, int]]) -> None:
        """An L2 table for an L1 entry. When it may have that, its entries are not among `waiting` any more."""
        l2 = self._refcounts.take()
        try:
            blank = l2 >= self._file.blank
            data = bytearray(self._header.cluster)
            for number, _, now in changed:
                low = number % self._header.l2_entries
                data[8 * low : 8 * low + 8] = now.to_bytes(8, "big")
            self._file.store(l2, data)
            if not blank:  # what the medium has there until then are no entries
                self._file.order()
        except BaseException:
            self._refcounts.give_back(l2)
            raise
        del waiting[: len(changed)]
        self._file.store(where, (l2 | COPIED).to_bytes(8, "big"))

    def _release(self, entry: int) -> None:
        """Nothing leads where this L2 entry did."""
        found = place(entry, self._header)
        if found.offset:
            self._refcounts.release(found.offset, found.length)

    def _can_clear(self) -> bool:
        """Whether an entry can say that a cluster is zero."""
        return self._header.version == 3 or self._backing is None

    def _whole(self, offset: int, length: int) -> tuple[int, int]:
        """The clusters inside these bytes, of which the disk's last may have fewer: first, and the one behind."""
        end = offset + length
        last = -(-end // self._header.cluster) if end == self.size else end // self._header.cluster
        return -(-offset // self._header.cluster), last

    def _clear(self, first: int, last: int) -> None:
        """Clusters are zero, with nothing behind them."""
        each, under = self._header.l2_entries, 0 if self._backing is None else self._backing.size
        blank = ZERO if self._header.version == 3 else 0
        while first < last:
            high = first // each
            end = min(last, (high + 1) * each)
            bare = not self._file.word(self._header.l1_offset + 8 * high)
            if bare and first * self._header.cluster >= under:
                first = end
                continue
            end = min(end, first + _AT_ONCE)
            entries = [(number, self._entry(number), blank) for number in range(first, end)]
            self._link(
                [
                    (number, before, now)
                    for number, before, now in entries
                    if before != now and (before or number * self._header.cluster < under)
                ]
            )
            first = end

    def _write_zeroes(self, offset: int, length: int) -> None:
        for number, inside, n in self._clusters(offset, length):
            at = number * self._header.cluster + inside
            kind = place(self._entry(number), self._header).kind
            if kind is Kind.BLANK or (kind is Kind.UNALLOCATED and self._backing is None):
                continue
            self.write(at, bytes(n))


def _open_backing(name: str, header: Header, above: Sequence[tuple[int, int]], cache: TableCache) -> Backing:
    """The image behind the one of that name. Raises `DiskError`."""
    text = os.fsdecode(header.backing)
    if "\0" in text or ":" in text.split("/")[0]:
        raise DiskError(f"disk image {name} is over {text!r}, which is no name of a file")
    path = os.path.join(os.path.dirname(name), text)
    try:
        found = os.stat(path)
    except OSError as error:
        raise DiskError(f"disk image {name} is over {path}, which cannot be opened: {error.strerror}") from error
    if (found.st_dev, found.st_ino) in above:
        raise DiskError(f"disk image {name} is over {path}, which is over itself")
    if len(above) >= MAX_CHAIN:
        raise DiskError(f"disk image {name} is over more than {MAX_CHAIN} images")
    if header.backing_format == "qcow2":
        return Qcow2Disk(path, readonly=True, above=above, cache=cache)
    if header.backing_format not in (None, "raw"):
        raise DiskError(f"disk image {name} is over one in format {header.backing_format!r}: raw and qcow2 are known")
    raw = RawDisk(path, readonly=True)
    if header.backing_format is None and _begins_with_magic(raw):
        raw.close()
        raise DiskError(
            f"disk image {name} does not name the format of {path}: `qemu-img rebase -u -b FILE -F qcow2` says it"
        )
    return raw


def _begins_with_magic(raw: RawDisk) -> bool:
    try:
        return raw.read(0, len(QCOW2_MAGIC)) == QCOW2_MAGIC
    except OSError:
        return False


def _inflate(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(data, size)
    except zlib.error:
        return b""


def _inflate_zstd(data: bytes, size: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(data) as stream:
            return stream.read(size)
    except zstandard.ZstdError:
        return b""


def _zstd(name: str) -> None:
    """Raises `DiskError` where this Python cannot read it."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        raise DiskError(f"disk image {name} is compressed with zstd, which this Python cannot read") from None
