"""A Debian archive: from the signature over its index to the packages that the index lists.

Source: "DebianRepository/Format" in the Debian wiki. Trust goes one way: a key of the
keyring signs InRelease, InRelease has the checksum of Packages, Packages has the checksum of every package.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path

from ringfence.errors import ImageError, MirrorError
from ringfence.guest.deb import Package, decompressed
from ringfence.guest.dependencies import Fields, relation_names
from ringfence.guest.download import Progress, download, host, read, silent
from ringfence.guest.mirror import stanza_fields
from ringfence.guest.signature import signed_text

_INDEX_LIMIT = 8 << 20
_PRIORITIES = ("required", "important", "standard", "optional")
_CLOCK_ERROR = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Release:
    """What a suite's signed index says of itself, and size and SHA-256 of the files that it vouches for."""

    mirror: str
    suite: str
    codename: str
    version: str
    date: datetime
    by_hash: bool
    files: dict[str, tuple[int, str]]


def find_release(mirrors: Sequence[str], suite: str, keyring: Path) -> Release:
    """The release of the first mirror that has the suite; MirrorError if none does, or if it is not to be trusted."""
    for mirror in mirrors:
        address = f"{mirror}/dists/{suite}/InRelease"
        if (data := read(address, _INDEX_LIMIT)) is not None:
            return _release(mirror, suite, signed_text(data, keyring, f"what {host(mirror)} sends as {suite}'s index"))
    names = " and ".join(dict.fromkeys(map(host, mirrors)))
    raise MirrorError(f"{names} has no suite {suite}: name a Debian mirror with --mirror")


def _release(mirror: str, suite: str, text: str) -> Release:
    fields = stanza_fields(text)
    if suite not in (fields.get("codename"), fields.get("suite")):
        raise MirrorError(f"{host(mirror)} sends the index of {fields.get('codename')} for {suite}")
    try:
        date = _date(fields["date"])
        expiry = _date(fields["valid-until"]) if "valid-until" in fields else None
        rows = [line.split() for line in fields["sha256"].splitlines() if line]
        files = {path: (int(size), _sha256(checksum)) for checksum, size, path in rows}
    except (KeyError, ValueError) as error:
        raise MirrorError(f"the index of {suite} on {host(mirror)} cannot be read: {error}") from error
    now = datetime.now(UTC)
    if date > now + _CLOCK_ERROR:
        raise MirrorError(f"the index of {suite} on {host(mirror)} is of {date:%Y-%m-%d}: is this host's clock right?")
    if expiry is not None and expiry < now:
        raise MirrorError(f"the index of {suite} on {host(mirror)} expired on {expiry:%Y-%m-%d}: try another mirror")
    by_hash = fields.get("acquire-by-hash", "no").lower() == "yes"
    return Release(mirror, suite, fields.get("codename", suite), fields.get("version", ""), date, by_hash, files)


def _date(text: str) -> datetime:
    date = parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _sha256(text: str) -> str:
    # It becomes a file's name here, so it has to be what it says.
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"{text!r} is not a SHA-256")
    return text


class Index:
    """The packages of one component and architecture of a release.

    Files come into `directory`, each named by its SHA-256, and stay there.
    """

    def __init__(
        self,
        release: Release,
        component: str,
        architecture: str,
        directory: Path,
        progress: Progress = silent,
    ) -> None:
        self.release = release
        self._directory = directory
        self._progress = progress
        self._text = self._packages(f"{component}/binary-{architecture}")

    def package(self, name: str, version: str | None = None) -> Package:
        """The package of that name, and of that version if one is given; MirrorError if there is none."""
        for start in self._places.get(name, ()):
            fields = self._fields(start)
            try:
                found = Package(
                    name,
                    fields["version"],
                    fields["architecture"],
                    fields["filename"],
                    int(fields["size"]),
                    _sha256(fields["sha256"]),
                    fields.get("depends", ""),
                )
            except (KeyError, ValueError) as error:
                raise MirrorError(f"the index of {self.release.codename} is wrong about {name}: {error}") from error
            if version in (None, found.version):
                return found
        wanted = name if version is None else f"{name} {version}"
        raise MirrorError(f"{host(self.release.mirror)} has no package {wanted} in {self.release.codename}")

    def find(self, name: str) -> Fields | None:
        """The fields of the package of that name."""
        return self._fields(self._places[name][0]) if name in self._places else None

    def providers(self, name: str) -> list[str]:
        """The packages that provide it: what the suite holds most important first."""
        return sorted(self._providers.get(name, ()), key=self._rank)

    def of_priority(self, *priorities: str) -> list[str]:
        """The packages of these priorities (Debian Policy, section 2.5), by name."""
        wanted = "|".join(priorities).encode()
        places = re.finditer(rb"(?m)^Priority: (?:%b)$" % wanted, self._text)
        return sorted({self._name_at(match.start()) for match in places})

    def kernel(self, name: str) -> Package:
        """The package with the kernel itself, which the package `name` is or depends on."""
        package = self.package(name)
        # The version number may be missing, the name never is.
        match = re.search(r"(?:^|,\s*)(linux-image-[^\s,|(]+)(?:\s*\(=\s*([^)\s]+)\s*\))?", package.depends)
        return self.package(match[1], match[2]) if match else package

    def fetch_all(self, packages: Sequence[Package]) -> dict[Package, Path]:
        """The files of packages, with progress as of one."""
        total = sum(package.size for package in packages)
        places: dict[Package, Path] = {}
        for package in packages:
            before = sum(there.size for there in places)

            def show(_: str, done: int, size: int, before: int = before) -> None:
                self._progress("packages", before + done, total)

            places[package] = self.fetch(package, show)
        return places

    def fetch(self, package: Package, progress: Progress | None = None) -> Path:
        """The file of the package, in the directory, once its checksum holds."""
        place = self._directory / package.sha256
        address = f"{self.release.mirror}/{package.filename}"
        download(address, place, size=package.size, sha256=package.sha256, progress=progress or self._progress)
        return place

    def prune(self) -> None:
        """Deletes the files in the directory that the archive does not have."""
        for path in self._directory.iterdir():
            if path.is_file() and path.name.encode() not in self._text:
                path.unlink()

    def _fields(self, start: int) -> Fields:
        end = self._text.find(b"\n\n", start)
        return stanza_fields(self._text[start : end if end >= 0 else None].decode())

    def _name_at(self, place: int) -> str:
        """Whose stanza has that place."""
        start = self._text.rfind(b"\nPackage: ", 0, place) + len(b"\nPackage: ")
        return self._text[start : self._text.index(b"\n", start)].decode()

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Where the stanzas are, by package name."""
        places: dict[str, list[int]] = {}
        for match in re.finditer(rb"(?m)^Package: (.*)$", self._text):
            places.setdefault(match[1].decode(), []).append(match.start())
        return places

    def _rank(self, name: str) -> tuple[int, str]:
        priority = self._fields(self._places[name][0]).get("priority", "")
        return (_PRIORITIES.index(priority) if priority in _PRIORITIES else len(_PRIORITIES)), name

    @cached_property
    def _providers(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for match in re.finditer(rb"(?m)^Provides: (.*)$", self._text):
            for name in relation_names(match[1].decode()):
                found.setdefault(name, set()).add(self._name_at(match.start()))
        return found

    def _packages(self, directory: str) -> bytes:
        from lzma import LZMAError

        for suffix in (".xz", ".gz", ""):
            path = f"{directory}/Packages{suffix}"
            if path in self.release.files:
                break
        else:
            raise MirrorError(f"{self.release.codename} on {host(self.release.mirror)} has no packages for {directory}")
        size, sha256 = self.release.files[path]
        # By its checksum an index can be had even while the mirror is being brought up to date.
        name = f"{directory}/by-hash/SHA256/{sha256}" if self.release.by_hash else path
        address = f"{self.release.mirror}/dists/{self.release.suite}/{name}"
        place = self._directory / sha256
        download(
            address,
            place,
            size=size,
            sha256=sha256,
            progress=lambda _, *sizes: self._progress("Packages", *sizes),
        )
        try:
            with place.open("rb") as file:
                return b"\n" + decompressed(file, suffix).read()
        except (LZMAError, OSError, EOFError) as error:
            raise ImageError(f"the index {path} cannot be unpacked: {error}") from error
