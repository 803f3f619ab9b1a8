"""The Debian on a disk whose programs are measured: made once, in the user's cache directory."""

from __future__ import annotations

import secrets
import shutil
import sys
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec

from ringfence.errors import ImageError
from ringfence.guest import mirror
from ringfence.guest.image import Store
from ringfence.guest.installation import Settings
from ringfence.machine.engine.code import cache_directory

PACKAGES = ("gcc", "python3", "openssl", "xz-utils", "sqlite3", "perl", "gzip", "fio", "iperf3", "iputils-ping")
"""Whose programs are measured."""
ROOT = "root=LABEL=root rw"
_SHOWN = ("gcc-14", "python3.13", "dash", *PACKAGES[2:])
"""The same, where the first is not what the work is done by."""
_SIZE = 4 << 30


class Versions(msgspec.Struct, frozen=True):
    """Of what is on the disk."""

    debian: str
    kernel: str
    packages: dict[str, str]


@dataclass(frozen=True)
class Installed:
    """The disk, never written, and what starts it."""

    directory: Path
    versions: Versions

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def installed() -> Installed:
    """Made of what the archive has now, where it is not there yet; that takes some minutes."""
    name = blake2b(repr((PACKAGES, _SIZE)).encode(), digest_size=8).hexdigest()
    directory = cache_directory() / "benchmarks" / f"debian-{name}"
    if not directory.exists():
        _make(directory)
    return Installed(directory, msgspec.json.decode((directory / "versions.json").read_bytes(), type=Versions))


def _make(directory: Path) -> None:
    print("Debian is installed for the benchmarks, once; this takes some minutes", file=sys.stderr)
    partial = directory.with_name(f"{directory.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        system = Store().build(
            "debian", Settings(PACKAGES, _SIZE), mirror.mirrors(), mirror.keyring(), partial / "disk.img"
        )
        for name in ("kernel", "initrd"):
            (partial / name).write_bytes(system.boot[name])
        known = {package.name: package.version for package in system.packages}
        versions = Versions(
            f"{system.release.version} ({system.release.codename})",
            system.packages[0].version,
            {name: known[name] for name in sorted(_SHOWN) if name in known},
        )
        (partial / "versions.json").write_bytes(msgspec.json.encode(versions))
        partial.rename(directory)
    except ImageError as error:
        sys.exit(f"Debian cannot be installed for the benchmarks: {error}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
