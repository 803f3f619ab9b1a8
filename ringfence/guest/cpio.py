"""A writer of `newc` cpio archives: the form in which Linux takes its first file system.

Source: Documentation/driver-api/early-userspace/buffer-format.rst in the Linux tree. An archive is a run of entries,
each a header of 110 ASCII characters, a name and the contents, name and contents padded to four bytes; the entry
called `TRAILER!!!` ends it. Linux unpacks archives that follow one another, so a second one adds to a first.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass

ALIGNMENT = 4
"""Bytes; every header, and so every archive, starts at a multiple of this."""

_TRAILER = "TRAILER!!!"
_LARGEST = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive: `mode` has the type bits of stat(2), `data` the contents or a link's target."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Archive:
    """A file system under construction; `bytes(archive)` is the archive.

    Paths are relative to the root, with or without a leading slash. Parents that nobody added are made, mode 0755,
    owner root. The bytes depend only on what was added, not on the order, the clock or the host.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Adds a directory; one that is there already takes the new mode."""
        name = self._name(path)
        old = self._entries.get(name)
        if old is not None and not stat.S_ISDIR(old.mode):
            raise ValueError(f"{path} is in the archive already, and is no directory")
        self._parents(name)
        self._entries[name] = Entry(stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Adds a regular file, at most 4 GiB - 1 long."""
        if len(data) > _LARGEST:
            raise ValueError(f"{path} is too large for a cpio archive: {len(data)} bytes")
        self._add(path, Entry(stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """Adds a symbolic link whose text is `target`."""
        self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a character device node."""
        self._add(path, Entry(stat.S_IFCHR | mode, device=(major, minor)))

    def block_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a block device node."""
        self._add(path, Entry(stat.S_IFBLK | mode, device=(major, minor)))

    def __contains__(self, path: str) -> bool:
        return self._name(path) in self._entries

    def __bytes__(self) -> bytes:
        return b"".join(self._chunks())

    def _add(self, path: str, entry: Entry) -> None:
        name = self._name(path)
        if name in self._entries:
            raise ValueError(f"{path} is in the archive already")
        self._parents(name)
        self._entries[name] = entry

    def _parents(self, name: str) -> None:
        while "/" in name:
            name = name.rpartition("/")[0]
            parent = self._entries.setdefault(name, Entry(stat.S_IFDIR | 0o755))
            if not stat.S_ISDIR(parent.mode):
                raise ValueError(f"{name} is in the archive already, and is no directory")

    @staticmethod
    def _name(path: str) -> str:
        name = path.strip("/")
        if not name or "\0" in name or name == _TRAILER or {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"{path!r} is not a path for a cpio archive")
        return name

    def _chunks(self) -> Iterator[bytes]:
        # Sorted, a directory stands before what is in it, which Linux needs.
        for number, (name, entry) in enumerate(sorted(self._entries.items()), start=1):
            yield from _record(number, name, entry)
        yield from _record(0, _TRAILER, Entry(0))


def _record(inode: int, name: str, entry: Entry) -> Iterator[bytes]:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    text = name.encode() + b"\0"
    # Owner and group are 0, the time is the epoch; the third and fourth last fields are what a node stands for.
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(text), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    yield header + text + padding(len(header) + len(text))
    yield entry.data
    yield padding(len(entry.data))


def padding(length: int) -> bytes:
    """The zero bytes that take `length` bytes to the next multiple of four."""
    return bytes(-length % ALIGNMENT)
