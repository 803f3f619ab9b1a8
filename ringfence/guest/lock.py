"""An image on this host: its files, and the lock that says what they were made from and what they are."""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from ringfence.guest import deb
from ringfence.guest.file import read_regular, store

DISK = "disk.img"
"""The file that is an image's disk; it changes as the system on it does."""


class Lock(msgspec.Struct, frozen=True):
    """What an image was made from: the suite's state, its packages, the recipe's digest; and how it is started."""

    image: str
    suite: str
    version: str
    date: datetime
    packages: tuple[deb.Package, ...]
    recipe: str
    append: str
    append_command: str
    files: dict[str, str]
    """The SHA-256 of each file of the image."""
    sizes: dict[str, int] = {}
    """Their sizes in bytes; none in the locks of earlier versions."""
    disk: bool = False
    """Whether it has a disk."""


@dataclass(frozen=True, slots=True)
class Image:
    """A guest that is on this host and can be started."""

    directory: Path
    """Where its files are; `Store.path` leads here until an update."""
    lock: Lock

    @property
    def name(self) -> str:
        return self.lock.image

    @property
    def kernel(self) -> Path:
        """The kernel, a raw RISC-V Image."""
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        """The first file system, a cpio archive; `joined` puts a `command_archive` behind it."""
        return self.directory / "initrd"

    @property
    def symbols(self) -> Path:
        """The kernel's symbols, an ELF file for gdb; there where the kernel has a table of them."""
        return self.directory / "symbols.elf"

    @property
    def disk(self) -> Path | None:
        """Its disk, a raw image."""
        return self.directory / DISK if self.lock.disk else None

    def append(self, *, command: bool = False) -> str:
        """The kernel's command line, for a person's shell or for one command whose output is all that shows."""
        return self.lock.append_command if command else self.lock.append

    def intact(self, *, sums: bool = False) -> bool:
        """Whether its files are there and have their sizes; with `sums`, which reads all of them, their bytes too."""
        try:
            for name, sha256 in self.lock.files.items():
                found = (self.directory / name).stat()
                if not stat.S_ISREG(found.st_mode) or found.st_size != self.lock.sizes.get(name, found.st_size):
                    return False
                if sums:
                    with (self.directory / name).open("rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                            return False
        except (OSError, ValueError):
            return False
        return {"kernel", "initrd"} <= self.lock.files.keys() and (self.disk is None or self.disk.is_file())


def read_image(directory: Path) -> Image | None:
    """The image whose files are there, or None where its lock cannot be read."""
    try:
        return Image(directory, msgspec.json.decode(read_regular(directory / "lock.json"), type=Lock))
    except (OSError, msgspec.MsgspecError):
        return None


def written(directory: Path, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Stores an image's files; returns the SHA-256 of each."""
    for path, data in contents.items():
        store(directory / path, data)
    return {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
