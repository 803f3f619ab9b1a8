"""Disks over files: contents, locks, and what a user is told of files that cannot be disks."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from ringfence.machine.device import disk as raw
from ringfence.machine.device.disk import DiskError, RawDisk
from ringfence.machine.device.disk_image import create, open_disk, open_snapshot


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


def _image(directory: Path, qcow2: bool) -> Path:
    """300 sectors, the second 100 of them not blank."""
    path = directory / ("base.qcow2" if qcow2 else "base.img")
    path.unlink(missing_ok=True)
    if qcow2:
        create(path, 300 * 512, cluster_bits=12)
    else:
        path.write_bytes(bytes(300 * 512))
    with open_disk(path) as disk:
        disk.write(100 * 512, bytes(range(256)) * 200)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "zero", "flush"]), st.integers(0, 299), st.integers(1, 60)), max_size=12
    ),
    st.booleans(),
)
def test_snapshot_is_a_disk_that_is_forgotten(tmp_path: Path, changes: list[tuple[str, int, int]], qcow2: bool) -> None:
    """What is written is read, beside another snapshot of the same image; the image stays as it is, byte for byte."""
    path = _image(tmp_path, qcow2)
    before = path.read_bytes()
    with open_snapshot(path) as disk, open_snapshot(path) as other:
        model = bytearray(other.read(0, other.size))
        for n, (how, sector, length) in enumerate(changes):
            span = slice(sector * 512, min((sector + length) * 512, disk.size))
            if how == "write":
                model[span] = bytes([n + 1]) * (span.stop - span.start)
                disk.write(span.start, bytes(model[span]))
            elif how == "zero":
                model[span] = bytes(span.stop - span.start)
                disk.zero(span.start, span.stop - span.start)
            else:
                disk.flush()
            assert disk.read(0, disk.size) == model
        assert other.read(0, other.size)[100 * 512 : 200 * 512] == bytes(range(256)) * 200
    assert path.read_bytes() == before
    with open_snapshot(path) as disk:
        assert disk.read(0, disk.size)[100 * 512 : 200 * 512] == bytes(range(256)) * 200


@pytest.mark.parametrize("qcow2", [False, True])
def test_snapshot_leaves_no_file_whatever_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qcow2: bool) -> None:
    """What is written has no name in the temporary directory while it is there, waits for no medium, and its image
    cannot be written by another machine meanwhile.
    """
    path, temporary = _image(tmp_path, qcow2), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)

    def waits(fd: int) -> None:
        raise AssertionError("waits for the medium")

    monkeypatch.setattr(os, "fsync", waits)
    monkeypatch.setattr(os, "fdatasync", waits)
    with open_snapshot(path) as disk:
        disk.write(512, b"x" * 512)
        disk.flush()
        assert not list(temporary.iterdir())
        with pytest.raises(DiskError, match="in use by another machine"):
            RawDisk(path)
    path.chmod(0o400)
    open_snapshot(path).close()


def test_snapshot_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the image, or with the temporary directory."""
    with pytest.raises(DiskError, match=r"nothing\.img cannot be opened: No such file"):
        open_snapshot(tmp_path / "nothing.img")
    path = _image(tmp_path, False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(DiskError, match=r"a temporary file over .*base\.img cannot be made: No such file"):
        open_snapshot(path)
    RawDisk(path).close()
