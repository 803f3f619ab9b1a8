"""The first file system of a guest: busybox, the kernel modules it may need, and the script that runs first."""

import shlex
from collections.abc import Iterable, Sequence

from ringfence.errors import ImageError
from ringfence.guest import cpio
from ringfence.guest.modules import Module, alias_index, dependency_index

_DIRECTORIES = {
    "dev": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
}
_LINKS = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin"}
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    # The types that mount tries when it is given none.
    "etc/filesystems": "ext4\n",
}


def initramfs(busybox: bytes, release: str, modules: Iterable[Module]) -> bytes:
    """A cpio archive with a busybox userland and the modules, in load order, of the kernel called `release`."""
    from importlib.resources import files

    modules = list(modules)
    archive = cpio.Archive()
    for path, mode in _DIRECTORIES.items():
        archive.directory(path, mode)
    for path, text in _TEXTS.items():
        archive.file(path, text.encode())
    # Linux opens the console for the first process before that can mount anything.
    archive.character_device("dev/console", 5, 1)
    archive.file("init", files("ringfence.guest").joinpath("init").read_bytes(), 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    for path, target in _LINKS.items():
        archive.symlink(path, target)
    for name in applets(busybox):
        if name != "busybox":
            archive.symlink(f"bin/{name}", "busybox")
    place = f"lib/modules/{release}"
    for module in modules:
        archive.file(f"{place}/{module.file}", module.data)
    archive.file(f"{place}/modules.dep", dependency_index(modules).encode())
    archive.file(f"{place}/modules.alias", alias_index(modules).encode())
    return bytes(archive)


def applets(busybox: bytes) -> list[str]:
    """The commands in a busybox program, from the sorted table of names that it searches itself."""
    start = busybox.find(b"[\0[[\0")
    names: list[str] = []
    while start >= 0:
        name = busybox[start : busybox.index(b"\0", start)].decode("latin-1")
        if not name or (names and name <= names[-1]):
            break
        names.append(name)
        start += len(name) + 1
    if "sh" not in names:
        raise ImageError("the program in the busybox package is not the one that was expected: it has no sh")
    return names


def command_archive(argv: Sequence[str], *, terminal: bool = False) -> bytes:
    """A cpio archive that, put behind an image's initrd, makes the guest run `argv` in place of a shell.

    The guest powers off with the command's status. Its standard streams are the console, which passes output through
    unchanged and does not echo; a line's end and ^D work on input. With `terminal` the console stays as it is set up
    for a person.
    """
    if not argv:
        raise ValueError("a command needs at least its name")
    lines = ["#!/bin/sh", *([] if terminal else ["stty -echo -opost"]), "exec " + shlex.join(argv)]
    archive = cpio.Archive()
    archive.file("ringfence/command", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"), 0o755)
    return bytes(archive)


def joined(*archives: bytes) -> bytes:
    """Archives, or compressed archives, one behind the other as Linux unpacks them: each starts at a multiple of 4."""
    return b"".join(archive + cpio.padding(len(archive)) for archive in archives)
