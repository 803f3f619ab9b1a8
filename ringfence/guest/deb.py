"""Debian binary packages, and reading them: an `ar` file that holds a version, a control tar and a data tar.

Source: deb(5), ar(5). The tars are plain or compressed with gzip, xz or zstd; members are read as a stream, so a
package of 100 MB costs the memory of the files that are asked for.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import msgspec

from ringfence.errors import ImageError

if TYPE_CHECKING:
    import tarfile

_MAGIC = b"!<arch>\n"
_HEADER = 60


class Package(msgspec.Struct, frozen=True):
    """A binary package as the signed index has it: `size` in bytes, `filename` relative to the mirror."""

    name: str
    version: str
    architecture: str
    filename: str
    size: int
    sha256: str
    depends: str = ""


class _Slice(io.RawIOBase):
    """The `size` bytes of `file` from its present place on, as a file of their own."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview[int]") -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise EOFError("it ends too early")
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def _xz(stream: IO[bytes]) -> IO[bytes]:
    import lzma

    return lzma.open(stream)


def _gzip(stream: IO[bytes]) -> IO[bytes]:
    import gzip

    return cast(IO[bytes], gzip.open(stream))


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    import zstandard

    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True))


_DECOMPRESS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    "": lambda stream: stream,
    ".xz": _xz,
    ".gz": _gzip,
    ".zst": _zstd,
}


def decompressed(stream: IO[bytes], suffix: str) -> IO[bytes]:
    """The contents of `stream`, compressed as its `suffix` says: "", ".xz", ".gz" or ".zst"; else ImageError."""
    if suffix not in _DECOMPRESS:
        raise ImageError(f"nothing here unpacks {suffix} files")
    return _DECOMPRESS[suffix](stream)


def files(package: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files of a package whose path, without the leading "./", is `wanted`; path to contents.

    ImageError says that the file is no package, or that it is damaged.
    """
    found: dict[str, bytes] = {}
    with _data(package) as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if member.isfile() and wanted(path):
                contents = archive.extractfile(member)
                assert contents is not None
                found[path] = contents.read()
    return found


@contextmanager
def _data(package: Path) -> "Iterator[tarfile.TarFile]":
    import gzip
    import lzma
    import tarfile
    import zlib

    import zstandard

    with package.open("rb") as file:
        try:
            stream, suffix = _member(file, "data.tar", package)
            contents = decompressed(stream, suffix)
            with tarfile.open(fileobj=contents, mode="r|") as archive:
                yield archive
            # Behind the last member are the checksums.
            while contents.read(io.DEFAULT_BUFFER_SIZE):
                pass
        except (
            tarfile.TarError,
            lzma.LZMAError,
            gzip.BadGzipFile,
            zlib.error,
            zstandard.ZstdError,
            EOFError,
        ) as error:
            raise ImageError(f"the package {package.name} is damaged: {error}") from error


def _member(file: IO[bytes], stem: str, package: Path) -> tuple[IO[bytes], str]:
    """The member of the `ar` file called `stem` and a suffix, and that suffix."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ImageError(f"{package.name} is not a Debian package")
    while header := file.read(_HEADER):
        name, size = header[:16].decode("latin-1").rstrip(" /"), header[48:58].strip()
        if len(header) < _HEADER or header[58:] != b"`\n" or not size.isdigit():
            break
        if name.startswith(stem):
            return io.BufferedReader(_Slice(file, int(size))), name.removeprefix(stem)
        file.seek(int(size) + int(size) % 2, io.SEEK_CUR)
    raise ImageError(f"the package {package.name} is damaged: it has no {stem}")
