"""The refcounts of a qcow2 image that is written: which clusters of its file are whose.

Clusters are reserved many at a time, with a refcount of one that is on the medium before anything leads to them. So
whenever everything stops, some clusters may be nobody's and not be free, but none is free and somebody's.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import groupby

from ringfence.machine.device.qcow2_file import PAGE, ImageFile
from ringfence.machine.device.qcow2_format import (
    MAX_REFCOUNT_TABLE,
    REFCOUNT_TABLE,
    REFCOUNT_TABLE_AT,
    Header,
    damaged,
    put_refcount,
    refcounts,
    table,
)

BATCH = 16 << 20
"""Bytes of the file that are reserved at a time, or fewer: no more than `BATCH_CLUSTERS`."""
BATCH_CLUSTERS = 512
UNSETTLED = 1024
"""Clusters that are released and cannot be used yet."""
MAX_CLUSTERS = 1 << 30
"""Clusters of a file that is written."""


class Refcounts:
    """Gives clusters of the file, by number, and takes them back. Errors are `OSError`; what they leave is at worst a
    cluster that is nobody's.
    """

    def __init__(self, file: ImageFile, header: Header) -> None:
        self._file = file
        self._cluster, self._bits, self._each = header.cluster, header.refcount_bits, header.refcounts_each
        self._header = header
        self._table, self._clusters = header.refcount_offset, header.refcount_clusters
        self._batch = max(1, min(BATCH // header.cluster, BATCH_CLUSTERS))
        self._reserved: list[int] = []
        """The next is the last."""
        self._released: list[int] = []
        self._from = 0
        """No cluster before it is free."""

    @property
    def blocks(self) -> int:
        """Entries of the refcount table."""
        return self._clusters * self._cluster // 8

    def all_blocks(self) -> Iterator[tuple[int, int]]:
        """Number and place of those that are."""
        for where, entry in self._file.entries(self._table, self.blocks):
            yield (where - self._table) // 8, table(entry, self._header)

    def block(self, number: int) -> int:
        """Where the block of that entry is; 0: nowhere, and its refcounts are zero."""
        return table(self._file.word(self._table + 8 * number), self._header)

    def pages(self, number: int) -> Iterator[tuple[int, bytes]]:
        """A block in pieces: the first cluster that each is about, and its bytes."""
        at, size = self.block(number), min(PAGE, self._cluster)
        for n in range(self._cluster // size):
            yield number * self._each + n * size * 8 // self._bits, self._file.table(at + n * size, size)

    def take(self) -> int:
        """The offset of a cluster that is nobody's. Raises `OSError` with ENOSPC where there is none."""
        if not self._reserved:
            if self._released:
                self._file.order()
                self.settle()
            self._reserve()
        return self._reserved.pop() * self._cluster

    def give_back(self, offset: int) -> None:
        """What was taken, and to which nothing ever led."""
        self._reserved.append(offset // self._cluster)

    def release(self, offset: int, length: int) -> None:
        """Nothing leads to these bytes any more from one entry that did. Their clusters are used again when that is on
        the medium.
        """
        self._released += range(offset // self._cluster, (offset + length - 1) // self._cluster + 1)
        if len(self._released) >= UNSETTLED:
            self._file.order()
            self.settle()

    def settle(self) -> None:
        """Everything written is on the medium, so what was released is free."""
        released, self._released = Counter(self._released), []
        now = [(cluster, max(0, self.get(cluster) - n)) for cluster, n in sorted(released.items())]
        self.put(now)
        free = [cluster for cluster, count in now if not count]
        for start, n in runs(free):
            self._file.punch(start * self._cluster, n * self._cluster)

    def close(self) -> None:
        """What is reserved is free, and what was released: everything written is on the medium."""
        self.settle()
        reserved, self._reserved = sorted(self._reserved), []
        self.put((cluster, 0) for cluster in reserved)
        self._file.shorten(-(-self._file.blank // self._cluster) * self._cluster)

    def get(self, cluster: int) -> int:
        """A cluster's refcount."""
        where = self._where(cluster)
        if where is None:
            return 0
        size = max(1, self._bits // 8)
        return refcounts(self._file.table(where, size), self._bits)[cluster % max(1, 8 // self._bits)]

    def put(self, values: Iterable[tuple[int, int]]) -> None:
        """Refcounts of these clusters, in rising order, which have blocks. A write for each page that they are in."""
        size, each = min(PAGE, self._cluster), min(PAGE, self._cluster) * 8 // self._bits
        for page, group in groupby(values, key=lambda value: value[0] // each):
            first = self._where(page * each)
            if first is None:
                raise damaged(f"clusters from {page * each} on have no refcounts")
            data = bytearray(self._file.table(first, size))
            low, high = each, 0
            for cluster, count in group:
                index = cluster % each
                put_refcount(data, index, self._bits, count)
                low, high = min(low, index), max(high, index)
                if not count:
                    self._from = min(self._from, cluster)
            span = slice(low * self._bits // 8, high * self._bits // 8 + max(1, self._bits // 8))
            self._file.store(first + span.start, data[span])

    def _where(self, cluster: int) -> int | None:
        """Where the byte is in which a cluster's refcount begins."""
        number, index = divmod(cluster, self._each)
        at = self.block(number) if number < self.blocks else 0
        return at + index * self._bits // 8 if at else None

    def _reserve(self) -> None:
        """Finds free clusters, and makes blocks for them where there are none."""
        taken: list[int] = []
        made: dict[int, tuple[int, int]] = {}
        """By number of a block that is missing: its first cluster, where it is to be, and the end of what is taken."""
        number, most = self._from // self._each, self._most()
        while len(taken) < self._batch and number * self._each < most:
            if number >= self.blocks:
                if taken:
                    break
                self._grow()
                continue
            first, want = number * self._each, self._batch - len(taken)
            if self.block(number):
                taken += (cluster for cluster in self._free(number, want) if cluster < most)
            elif 2 * len(taken) >= self._batch:
                break  # a block lies where its own clusters begin, so one that is not needed makes the file longer
            else:
                last = min(first + 1 + want, first + self._each, most)
                made[number] = first, last
                taken += range(first + 1, last)
            number += 1
        if not taken:
            raise OSError(errno.ENOSPC, "the qcow2 image is full")
        self._file.extend((taken[-1] + 1) * self._cluster)
        old = [cluster for cluster in taken if cluster // self._each not in made]
        try:
            self.put((cluster, 1) for cluster in old)
            for first, last in made.values():
                block = bytearray(self._cluster)
                for index in range(last - first):
                    put_refcount(block, index, self._bits, 1)
                self._file.store(first * self._cluster, block)
            self._file.order()
            for number, (first, _) in made.items():
                self._file.store(self._table + 8 * number, (first * self._cluster).to_bytes(8, "big"))
            if made:
                self._file.order()
        except OSError:
            with suppress(OSError):
                self.put((cluster, 0) for cluster in old)
            raise
        self._from = taken[-1] + 1
        self._reserved = taken[::-1]

    def _free(self, number: int, want: int) -> list[int]:
        found: list[int] = []
        for first, data in self.pages(number):
            counts = refcounts(data, self._bits)
            if 0 in counts:
                found += (first + index for index, count in enumerate(counts) if not count)
                if len(found) >= want:
                    break
        return found[:want]

    def _most(self) -> int:
        """Clusters that the file can have."""
        return MAX_CLUSTERS if self._file.grows else min(MAX_CLUSTERS, self._file.end // self._cluster)

    def _grow(self) -> None:
        """A table twice as large, behind all that the old one counts, with the blocks that count it before it."""
        clusters = min(2 * self._clusters, MAX_REFCOUNT_TABLE // self._cluster)
        start, old = self.blocks * self._each, (self._table, self._clusters)
        blocks = 1
        while blocks * self._each < blocks + clusters:
            blocks += 1
        if clusters == self._clusters or start + blocks + clusters > self._most():
            raise OSError(errno.ENOSPC, "the qcow2 image has no room for more refcounts")
        at = start + blocks
        self._file.extend((at + clusters) * self._cluster)
        entries = bytearray(clusters * self._cluster)
        for done in range(0, self._clusters * self._cluster, self._cluster):
            entries[done : done + self._cluster] = self._file.table(self._table + done, self._cluster)
        for n in range(blocks):
            block = bytearray(self._cluster)
            for index in range(min(self._each, max(0, blocks + clusters - n * self._each))):
                put_refcount(block, index, self._bits, 1)
            self._file.store((start + n) * self._cluster, block)
            entry = 8 * (self.blocks + n)
            entries[entry : entry + 8] = ((start + n) * self._cluster).to_bytes(8, "big")
        self._file.store(at * self._cluster, entries)
        self._file.order()
        self._file.write(REFCOUNT_TABLE_AT, REFCOUNT_TABLE.pack(at * self._cluster, clusters))
        self._file.order()
        self._table, self._clusters = at * self._cluster, clusters
        self.release(old[0], old[1] * self._cluster)


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and count of those that follow one another, of numbers in rising order."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
        else:
            if count:
                yield first, count
            first, count = number, 1
    if count:
        yield first, count
