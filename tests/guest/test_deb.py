"""Reading binary packages, whole and damaged."""

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from loopback_archive import ar, deb, tar

from ringfence.errors import ImageError
from ringfence.guest.deb import files, uncompressed

FILES = {"boot/vmlinux-1": b"kernel" * 1000, "usr/share/doc/x": b"text"}
COMPRESSIONS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_package_gives_the_wanted_files(suffix: str, tmp_path: Path) -> None:
    """The files that are asked for come out of a package whatever compresses it, and no others."""
    path = tmp_path / "a.deb"
    compress: Callable[[bytes], bytes] = COMPRESSIONS[suffix]
    path.write_bytes(deb(FILES, suffix, compress))
    assert files(path, lambda name: name.startswith("boot/")) == {"boot/vmlinux-1": b"kernel" * 1000}


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_package_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    """Wherever a package ends too early, the answer is a sentence about it."""
    path = tmp_path / "a.deb"
    whole = deb(FILES, suffix, COMPRESSIONS[suffix])
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"a\.deb"):
            files(path, lambda name: True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF and more",
        ar({}),
        ar({"debian-binary": b"2.0\n"}),
        ar({"data.tar": b"no tar at all" * 100}),
        ar({"data.tar.xz": b"no xz at all"}),
        ar({"data.tar.gz": b"no gzip at all"}),
        ar({"data.tar.zst": b"no zstd at all"}),
        ar({"data.tar.zip": tar(FILES)}),
        b"!<arch>\n" + b"data.tar".ljust(48) + b"-9".ljust(10) + b"`\n",
    ],
)
def test_package_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    """What is no package, or an unknown kind of one, is refused with a sentence."""
    path = tmp_path / "a.deb"
    path.write_bytes(data)
    with pytest.raises(ImageError):
        files(path, lambda name: True)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_uncompressed_package_is_the_same(suffix: str, tmp_path: Path) -> None:
    """Its members are those of the package, in their order, with the data as it was before somebody compressed it."""
    path, plain = tmp_path / "a.deb", tmp_path / "plain.deb"
    path.write_bytes(deb(FILES, suffix, COMPRESSIONS[suffix]))
    with plain.open("w+b") as out:
        uncompressed(path, out)
    assert plain.read_bytes() == deb(FILES, "", COMPRESSIONS[""])
    assert files(plain, lambda name: True) == FILES


def test_uncompressing_a_damaged_package_is_refused(tmp_path: Path) -> None:
    """Wherever it ends too early, or is none."""
    path = tmp_path / "a.deb"
    whole = deb(FILES)
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"a\.deb"), (tmp_path / "out").open("w+b") as out:
            uncompressed(path, out)
