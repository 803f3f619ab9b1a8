"""Debian binary packages, and reading them: an `ar` file that holds a version, a control tar and a data tar.

Source: deb(5), ar(5). The tars are plain or compressed with gzip, xz or zstd; members are read as a stream, so a
package of 100 MB costs the memory of the files that are asked for.
"""

import io
import shutil
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


def uncompressed(package: Path, out: IO[bytes]) -> None:
    """Writes the same package with its files not compressed, which is quicker to unpack. ImageError as `files`."""
    with _reading(package) as file:
        out.write(_MAGIC)
        for name, size in _members(file, package):
            stream: IO[bytes] = io.BufferedReader(_Slice(file, size))
            start = out.tell()
            out.write(bytes(_HEADER))
            stem, dot, suffix = name.rpartition(".")
            if name.startswith("data.tar."):
                stream, name = decompressed(stream, dot + suffix), stem
            shutil.copyfileobj(stream, out)
            length = out.tell() - start - _HEADER
            out.write(b"\n" * (length % 2))
            end = out.tell()
            out.seek(start)
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{length:<10}`\n".encode())
            out.seek(end)


@contextmanager
def _data(package: Path) -> "Iterator[tarfile.TarFile]":
    import tarfile

    with _reading(package) as file:
        data = next((member for member in _members(file, package) if member[0].startswith("data.tar")), None)
        if data is None:
            raise ImageError(f"the package {package.name} is damaged: it has no data.tar")
        contents = decompressed(io.BufferedReader(_Slice(file, data[1])), data[0].removeprefix("data.tar"))
        with tarfile.open(fileobj=contents, mode="r|") as archive:
            yield archive
        # Behind the last member are the checksums.
        while contents.read(io.DEFAULT_BUFFER_SIZE):
            pass


@contextmanager
def _reading(package: Path) -> Iterator[IO[bytes]]:
    """The file, and what is wrong with it as a sentence."""
    import gzip
    import lzma
    import tarfile
    import zlib

    import zstandard

    with package.open("rb") as file:
        try:
            yield file
        except (
            tarfile.TarError,
            lzma.LZMAError,
            gzip.BadGzipFile,
            zlib.error,
            zstandard.ZstdError,
            EOFError,
        ) as error:
            raise ImageError(f"the package {package.name} is damaged: {error}") from error


def _members(file: IO[bytes], package: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes of the members of the `ar` file, which stands at the bytes of each meanwhile."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ImageError(f"{package.name} is not a Debian package")
    while header := file.read(_HEADER):
        name, size = header[:16].decode("latin-1").rstrip(" /"), header[48:58].strip()
        if len(header) < _HEADER or header[58:] != b"`\n" or not size.isdigit():
            raise ImageError(f"the package {package.name} is damaged: it ends too early")
        place = file.tell()
        yield name, int(size)
        file.seek(place + int(size) + int(size) % 2)
