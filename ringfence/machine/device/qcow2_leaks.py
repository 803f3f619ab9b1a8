"""Which clusters of a qcow2 image are somebody's: found before it is written, and what is nobody's is given back.

A pass over its tables counts, for a window of the file, what leads to each cluster. Where more than its refcount says
does, or two things that exclude each other, the image is damaged and is not written.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from ringfence.machine.device.disk import DiskError
from ringfence.machine.device.qcow2_file import ImageFile
from ringfence.machine.device.qcow2_format import (
    COMPRESSED,
    COPIED,
    OFFSET,
    Header,
    Kind,
    damaged,
    place,
    refcounts,
    table,
    words,
)
from ringfence.machine.device.qcow2_refcounts import MAX_CLUSTERS, Refcounts

WINDOW = 1 << 23
"""Clusters of the file that are counted in a pass, two bytes for each."""
_PIECE = 1 << 16
"""Bytes of a table that are read at once."""
_MOST = 0xFFFF


def give_leaks_back(file: ImageFile, header: Header, counts: Refcounts, name: str) -> int:
    """Makes refcounts and the flags that say so true; returns how many refcounts were too high. Raises `DiskError` if
    the image is damaged, having written nothing; `OSError`.
    """
    check = _Check(file, header, counts)
    try:
        end = -(-file.end // header.cluster)
        for number, _ in counts.all_blocks():
            end = max(end, (number + 1) * header.refcounts_each)
        if end > MAX_CLUSTERS:
            raise damaged(f"more than {MAX_CLUSTERS} clusters")
        windows = [range(at, min(at + WINDOW, end)) for at in range(0, end, WINDOW)]
        if len(windows) > 1:
            for window in windows:  # so that none of the passes below is longer than the file
                check.tables(window)
        leaks = sum(1 for window in windows for _ in check.leaks(window))
    except OSError as error:
        raise DiskError(f"disk image {name} cannot be written: {error.strerror}") from error
    if leaks:
        for window in windows:
            counts.put(check.leaks(window))
    if check.unflagged:
        check.flag()
    return leaks


class _Check:
    """What leads to the clusters of a window: 0, nothing; 1, one thing; n + 1, n compressed clusters."""

    def __init__(self, file: ImageFile, header: Header, counts: Refcounts) -> None:
        self._file, self._header, self._counts = file, header, counts
        self._window = range(0)
        self._users = array("H")
        self.unflagged = False
        """Whether an entry is without the flag that its cluster is its own."""

    def tables(self, window: range) -> None:
        """Counts header and tables. Raises `OSError` for two that share a cluster."""
        header, counts = self._header, self._counts
        self._window = window
        self._users = array("H", bytes(2 * len(window)))
        self._own(0, header.cluster)
        self._own(header.l1_offset, header.l1_entries * 8)
        self._own(header.refcount_offset, header.refcount_clusters * header.cluster)
        for _, at in counts.all_blocks():
            self._own(at, header.cluster)
        for _, entry, at in self._l2_tables():
            self._own(at, header.cluster)
            if not entry & COPIED:
                self.unflagged = True

    def leaks(self, window: range) -> Iterator[tuple[int, int]]:
        """Clusters of which the refcount is too high, and what it should be. Raises `OSError` for one too low."""
        self.tables(window)
        for _, _, at in self._l2_tables():
            for done in range(0, self._header.cluster, _PIECE):
                length = min(_PIECE, self._header.cluster)
                data = self._file.read(at + done, length)
                if data.count(0) != length:
                    self._clusters(words(data))
        yield from self._compare()

    def flag(self) -> None:
        """Sets the flags of all that are without."""
        for where, entry, at in self._l2_tables():
            for below_at, below in self._file.entries(at, self._header.l2_entries):
                if below & OFFSET and not below & (COPIED | COMPRESSED):
                    self._file.store(below_at, (below | COPIED).to_bytes(8, "big"))
            if not entry & COPIED:
                self._file.store(where, (entry | COPIED).to_bytes(8, "big"))

    def _l2_tables(self) -> Iterator[tuple[int, int, int]]:
        """Where its entry is, that, and where it is itself."""
        for where, entry in self._file.entries(self._header.l1_offset, self._header.l1_entries):
            yield where, entry, table(entry, self._header)

    def _clusters(self, entries: array[int]) -> None:
        """Counts what L2 entries lead to."""
        bits, first, users = self._header.cluster_bits, self._window.start, self._users
        limit, end = len(users), self._file.end
        low = self._header.cluster - 1 | 0x7F << 56
        for entry in entries:
            # First what most entries are, in few steps: a cluster of the image, and flagged as its own.
            if not entry:
                continue
            if entry & COPIED and not entry & low:
                at = entry ^ COPIED
                if not 0 < at < end:
                    raise damaged(f"L2 entry {entry:#x}")
                index = (at >> bits) - first
                if 0 <= index < limit:
                    if users[index]:
                        raise damaged(f"two things at {at:#x}")
                    users[index] = 1
                continue
            found = place(entry, self._header)
            if found.kind is Kind.PACKED:
                self._share(found.offset, found.length)
            elif found.offset:
                self._own(found.offset, 1)
                self.unflagged |= not entry & COPIED

    def _own(self, offset: int, length: int) -> None:
        """Clusters that lead nowhere else."""
        if offset + length > self._file.end:
            raise damaged(f"it is truncated: something is behind its end, at {offset:#x}")
        for index in self._indexes(offset, length):
            if self._users[index]:
                raise damaged(f"two things at {self._window[index] << self._header.cluster_bits:#x}")
            self._users[index] = 1

    def _share(self, offset: int, length: int) -> None:
        """A compressed cluster."""
        if offset >= self._file.end:
            raise damaged(f"it is truncated: something is behind its end, at {offset:#x}")
        for index in self._indexes(offset, length):
            users = self._users[index]
            if users == 1 or users == _MOST:
                raise damaged(f"two things at {self._window[index] << self._header.cluster_bits:#x}")
            self._users[index] = users + 1 if users else 2

    def _indexes(self, offset: int, length: int) -> range:
        bits, window = self._header.cluster_bits, self._window
        first, end = offset >> bits, (offset + length - 1 >> bits) + 1
        return range(max(first - window.start, 0), min(end - window.start, len(window)))

    def _compare(self) -> Iterator[tuple[int, int]]:
        """The refcounts of the window with its users."""
        window, each = self._window, self._header.refcounts_each
        for number in range(window.start // each, -(-window.stop // each)):
            if number < self._counts.blocks and self._counts.block(number):
                for first, data in self._counts.pages(number):
                    yield from self._differ(first, refcounts(data, self._header.refcount_bits))
            else:
                self._none(range(number * each, (number + 1) * each))

    def _differ(self, first: int, found: array[int]) -> Iterator[tuple[int, int]]:
        low = max(self._window.start - first, 0)
        high = min(self._window.stop - first, len(found))
        if low >= high:
            return
        users = self._users[first + low - self._window.start : first + high - self._window.start]
        if found[low:high] == users:
            return
        for cluster, (count, used) in enumerate(zip(found[low:high], users, strict=True), first + low):
            wanted = used - 1 if used > 1 else used
            if count < wanted:
                raise damaged(f"cluster {cluster} has refcount {count}, not {wanted}")
            if count > wanted:
                yield cluster, wanted

    def _none(self, clusters: range) -> None:
        """These have no refcounts."""
        part = self._users[max(clusters.start - self._window.start, 0) : max(clusters.stop - self._window.start, 0)]
        if any(part):
            raise damaged(f"clusters from {clusters.start} on have no refcounts")
