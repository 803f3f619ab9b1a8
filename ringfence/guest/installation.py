"""Debian, installed: a disk with its packages set up, made without root and without tools of the host's.

The packages are found and fetched here, and installed inside an appliance by Debian's own tools (`install`, a script).
Clock, addresses and random numbers are the appliance's, so the same packages and settings make the same disk, byte for
byte.
"""

from __future__ import annotations

import os
import re
import shlex
import tarfile
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import IO

import msgspec

from ringfence.errors import BadSystem
from ringfence.guest.appliance import Appliance
from ringfence.guest.archive import Index, Release
from ringfence.guest.boot_files import boot_files
from ringfence.guest.catalog import Entry
from ringfence.guest.cpio import Archive
from ringfence.guest.deb import Package, uncompressed
from ringfence.guest.dependencies import closure
from ringfence.guest.download import Progress

CORE = ("base-passwd", "base-files", "dpkg", "libc6", "perl-base", "mawk", "debconf")
"""What dpkg and the scripts of packages need, in the order in which it is installed."""
LINKS = "base-files"
"""The package with the links that the paths of others lead through."""
TOOLS = ("base-files", "e2fsprogs")
SMALLEST = 1 << 30
"""Bytes of a disk."""
_STATUS = re.compile(r"status: ([^:\s]+)(?::\w+)?: (unpacked|installed)")
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HOST = re.compile(r"(?=.{1,63}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?")


class Settings(msgspec.Struct, frozen=True):
    """What a user can say of an installation. `size` in bytes; `keys`: lines of an authorized_keys file, for root and
    `user`, who both need no password at the console.
    """

    packages: tuple[str, ...]
    size: int
    hostname: str = "debian"
    user: str | None = None
    keys: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises BadSystem."""
        if self.size < SMALLEST or self.size % 4096:
            raise BadSystem(f"a Debian needs a disk of at least {SMALLEST >> 20} MiB, a multiple of 4 KiB")
        if not _HOST.fullmatch(self.hostname):
            raise BadSystem(f"{self.hostname!r} is no host name: it has letters, digits and hyphens")
        if self.user is not None and not _NAME.fullmatch(self.user):
            raise BadSystem(f"{self.user!r} is no name for a user: it has small letters, digits and hyphens")


@dataclass(frozen=True)
class Selection:
    """Packages in the order of their names, and which of them are what."""

    all: tuple[Package, ...]
    first: frozenset[str]
    """With them apt works."""
    tools: frozenset[str]
    """With them a file system is made."""
    asked: frozenset[str]


def select(index: Index, system: Sequence[str], settings: Settings) -> Selection:
    """What is to be installed: what the suite requires, the system and what was asked for, each with what it needs.
    Raises ImageError.
    """
    required = index.of_priority("required")
    asked = {*required, *system, *settings.packages}
    if settings.user is not None:
        asked.add("sudo")
    names = closure(index, sorted(asked))
    first = closure(index, [*required, *CORE])
    tools = closure(index, TOOLS)
    every = sorted({*names, *first, *tools})
    return Selection(
        tuple(map(index.package, every)), frozenset(first), frozenset(tools), frozenset(asked)
    )  # fmt: skip


@dataclass(frozen=True)
class System:
    """What a disk was made of, and what starts it."""

    release: Release
    packages: tuple[Package, ...]
    """The kernel's first."""
    boot: dict[str, bytes]
    append: str


def build(index: Index, entry: Entry, settings: Settings, disk: Path, steps: Progress) -> System:
    """Installs the system of the entry on `disk`, a raw image that is made. `steps` is told how many are done. Raises
    ImageError; the disk then is not whole.
    """
    kernel = (index.kernel(entry.kernel), index.package(entry.busybox))
    selection = select(index, entry.system, settings)
    boot = boot_files(entry, *map(index.fetch, kernel), unpacked=True)
    places = index.fetch_all(selection.all)
    version = kernel[0].name.removeprefix("linux-image-")
    done: set[str] = set()

    def line(text: str) -> None:
        if found := _STATUS.match(text):
            done.add(found[0])
            steps("installing", len(done), 2 * len(places))

    steps("installing", 0, 2 * len(places))
    appliance = Appliance(boot["kernel"], boot["initrd"], entry.append_command)
    with tempfile.NamedTemporaryFile(dir=disk.parent, prefix=".packages.") as packages:
        with tarfile.open(fileobj=packages, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for package, place in places.items():
                with tempfile.TemporaryFile(dir=disk.parent) as plain:
                    uncompressed(place, plain)
                    _add(archive, _file(package), plain)
            _add(archive, f"boot/vmlinux-{version}", BytesIO(boot["kernel"]))
            _add(archive, f"boot/initrd.img-{version}", BytesIO(boot["initrd"]))
        packages.flush()
        with disk.open("xb") as blank:
            os.truncate(blank.fileno(), settings.size)
        script = files("ringfence.guest").joinpath("install").read_text()
        within = _files(selection, settings, index.release)
        appliance.run("the installation", script, [disk, Path(packages.name)], files=within, line=line)
    return System(index.release, (*kernel, *selection.all), boot, entry.append_system)


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size = file.seek(0, os.SEEK_END)
    file.seek(0)
    archive.addfile(member, file)


def _files(selection: Selection, settings: Settings, release: Release) -> Archive:
    """What the script finds in /install."""
    by_name = {package.name: package for package in selection.all}
    archive = Archive()
    variables = {
        "now": str(int(release.date.timestamp())),
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, msgspec.json.encode((selection.all, settings)).decode())),
        "user": settings.user or "",
        "needed": " ".join(name for name in sorted(by_name) if name not in selection.asked),
    }
    texts = {
        "settings": "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()),
        "core": _list(by_name[name] for name in CORE),
        "first": _list(by_name[name] for name in (LINKS, *sorted(selection.first - {LINKS}))),
        "tools": _list(package for package in selection.all if package.name in selection.tools),
        "rest": _list(package for package in selection.all if package.name not in selection.first),
    }
    for name, text in texts.items():
        archive.file(f"install/{name}", text.encode())
    for name, text in _tree(settings, release).items():
        archive.file(f"install/tree/{name}", text.encode())
    if settings.keys:
        archive.directory("install/tree/root", 0o700)
        archive.directory("install/tree/root/.ssh", 0o700)
        keys = "".join(f"{key}\n" for key in settings.keys)
        archive.file("install/tree/root/.ssh/authorized_keys", keys.encode(), 0o600)
    return archive


def _tree(settings: Settings, release: Release) -> dict[str, str]:
    """Files of the installed system, by path."""
    source = (
        f"Types: deb\nURIs: {release.mirror}\nSuites: {release.codename}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp\n"
    )
    return {
        "etc/hostname": f"{settings.hostname}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {settings.hostname}\n::1 localhost ip6-localhost ip6-loopback\n",
        # Nobody is asked anything when it first starts.
        "etc/locale.conf": "LANG=C.UTF-8\n",
        "etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\n",
        "etc/apt/sources.list.d/debian.sources": source,
        # By the same name from a machine of the same site.
        "etc/systemd/network/80-ethernet.network": "[Match]\nType=ether\n\n"
        "[Network]\nDHCP=yes\nLinkLocalAddressing=yes\nLLMNR=yes\nMulticastDNS=yes\n",
    }


def _list(packages: Iterable[Package]) -> str:
    return "".join(f"{_file(package)}\n" for package in packages)


def _file(package: Package) -> str:
    """In the archive."""
    return f"{package.name}.deb"
