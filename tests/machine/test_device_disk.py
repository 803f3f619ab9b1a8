"""Disks over files: contents, locks, and what a user is told of files that cannot be disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.machine.device import disk as raw
from ringfence.machine.device.disk import DiskError, RawDisk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 8)
    return path


def test_disk_is_the_bytes_of_its_file(image: Path) -> None:
    """Reads and writes reach the file at their offset, and its size stays."""
    with RawDisk(image) as disk:
        assert disk.size == 2048
        assert disk.read(510, 4) == b"\xfe\xff\x00\x01"
        disk.write(512, b"written")
        disk.flush()
        with pytest.raises(OSError, match="behind the end"):
            disk.write(2047, b"12")
    assert image.read_bytes()[512:519] == b"written"
    assert image.stat().st_size == 2048


def test_disk_is_written_by_one_machine_at_a_time(image: Path) -> None:
    """A second writer is refused, in this process too; readers share; closing gives the lock back."""
    with RawDisk(image):
        for readonly in (False, True):
            with pytest.raises(DiskError, match=r"disk\.img is in use by another machine"):
                RawDisk(image, readonly=readonly)
    with (
        RawDisk(image, readonly=True),
        RawDisk(image, readonly=True),
        pytest.raises(DiskError, match="in use"),
    ):
        RawDisk(image)
    disk = RawDisk(image)
    disk.close()
    disk.close()
    RawDisk(image).close()


def test_disk_read_only_opens_what_cannot_be_written(image: Path) -> None:
    """A read-only disk opens the file for reading, and a write through it fails."""
    image.chmod(0o444)
    with RawDisk(image, readonly=True) as disk:
        assert disk.read(0, 2) == b"\x00\x01"
        with pytest.raises(OSError, match=".+"):
            disk.write(0, b"x")


@pytest.mark.parametrize("able", [True, False])
def test_disk_zeroes_and_discards_what_it_is_told(image: Path, able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host that can do it at once and on one that cannot: zeroes are zeroes, all around stays, and so the size."""
    if not able:
        monkeypatch.setattr(raw, "_fallocate", lambda: None)
    size = 3 << 20
    image.write_bytes(b"\xaa" * size)
    with RawDisk(image) as disk:
        disk.zero(512, (2 << 20) + 512)
        assert disk.read(0, size) == b"\xaa" * 512 + bytes((2 << 20) + 512) + b"\xaa" * (size - (2 << 20) - 1024)
        disk.zero(0, 0)
        disk.discard(size - 8192, 4096)
        assert disk.read(size - 4096, 4096) == b"\xaa" * 4096
        assert disk.read(size - 16384, 8192) == b"\xaa" * 8192
        disk.zero(size - 512, 512)
        assert disk.read(size - 512, 512) == bytes(512)
        for beyond in (disk.zero, disk.discard):
            with pytest.raises(OSError, match="behind the end"):
                beyond(size - 512, 1024)
    assert image.stat().st_size == size
    with RawDisk(image, readonly=True) as disk, pytest.raises(OSError, match=".+"):
        disk.zero(0, 512)


def test_disk_gives_discarded_place_back(image: Path) -> None:
    """Where the host's file system can: what is discarded reads as zeroes, and takes less of its medium."""
    image.write_bytes(b"\xaa" * (1 << 20))
    with RawDisk(image) as disk:
        disk.flush()
        before = image.stat().st_blocks
        disk.discard(0, 1 << 20)
        data = disk.read(0, 1 << 20)
    if any(data):
        pytest.skip("the host's file system gives no place back")
    assert image.stat().st_blocks < before


def test_disk_tells_of_a_file_that_became_shorter(image: Path) -> None:
    """Bytes that are gone are an error of the medium, not zeros."""
    with RawDisk(image) as disk:
        image.write_bytes(b"short")
        with pytest.raises(OSError, match="shorter"):
            disk.read(0, 512)


def test_disk_refuses_what_is_no_disk(tmp_path: Path) -> None:
    """A missing file, a directory, an empty file and a partial sector are each one clear sentence."""
    (tmp_path / "empty").touch()
    (tmp_path / "odd").write_bytes(bytes(513))
    for name, said in [
        ("missing", "cannot be opened: No such file or directory"),
        (".", "cannot be opened: Is a directory"),
        ("empty", "is empty"),
        ("odd", "has 513 bytes, which is not a multiple of 512"),
    ]:
        with pytest.raises(DiskError, match=said):
            RawDisk(tmp_path / name)
    for path in (str(tmp_path), "/dev/null"):
        with pytest.raises(DiskError, match="is neither a file nor a block device"):
            RawDisk(path, readonly=True)
