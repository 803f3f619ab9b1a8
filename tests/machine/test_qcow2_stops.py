"""qcow2 images when everything stops: a full host, a killed process, a host without power."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from leaks import leaks
from states import SCALE

from ringfence.machine.device import qcow2_file, qcow2_refcounts
from ringfence.machine.device.disk_image import create
from ringfence.machine.device.qcow2 import Qcow2Disk

SECTOR = 512


def test_full_host_is_an_error_of_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a write stops, what was written before is there, the image is sound, and it goes on with more room."""
    real = os.pwrite
    for left in range(40):
        path = tmp_path / f"{left}"
        create(path, 1 << 18, cluster_bits=9)
        model = bytearray(1 << 18)
        room = left

        def limited(fd: int, data: memoryview, offset: int) -> int:
            nonlocal room
            room -= 1
            some = len(data) if room >= 0 else (len(data) // 2 & -SECTOR if room == -1 else 0)
            if not some:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, data[:some], offset)

        with Qcow2Disk(path) as disk:
            disk.write(5000, b"before")
            model[5000:5006] = b"before"
            monkeypatch.setattr(os, "pwrite", limited)
            with pytest.raises(OSError) as caught:
                for n in range(40):
                    disk.write(n * 6000, b"w" * 3000)
            assert caught.value.errno == errno.ENOSPC
            for n in range(40):  # each piece may be there
                model[n * 6000 : n * 6000 + 3000] = b"w" * 3000
            monkeypatch.setattr(os, "pwrite", real)
            found = disk.read(0, 1 << 18)
            assert all(
                a in (b, c) for a, b, c in zip(found, bytes(5000) + b"before" + bytes(1 << 18), model, strict=False)
            )
            disk.write(0, b"after")
        with Qcow2Disk(path) as disk:
            assert disk.read(0, 5) == b"after"
            assert disk.read(5, (1 << 18) - 5) == found[5:]
        assert leaks(path) == 0


def test_limit_of_file_size_is_an_error_of_the_medium(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the write fails, and the image is sound."""
    create(tmp_path / "disk", 1 << 24)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with Qcow2Disk(tmp_path / "disk") as disk:
            done = 0
            with pytest.raises(OSError) as caught:
                while True:
                    disk.write(done, b"x" * 65536)
                    done += 65536
            assert caught.value.errno == errno.EFBIG
            assert disk.read(0, done) == b"x" * done and done > 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert leaks(tmp_path / "disk") == 0


WRITER = """
import random, sys
from ringfence.machine.device.qcow2 import Qcow2Disk
r = random.Random(int(sys.argv[2]))
disk = Qcow2Disk(sys.argv[1])
print("open", flush=True)
while True:
    at, n = r.randrange(disk.size - 1), r.randrange(1, 20000)
    n = min(n, disk.size - at)
    match r.randrange(10):
        case 0: disk.zero(at, n)
        case 1: disk.discard(at, 4 * n if at + 4 * n < disk.size else n)
        case 2: disk.flush()
        case _: disk.write(at, r.randbytes(n))
"""


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_killed_writer_leaves_no_damage(tmp_path: Path, bits: int) -> None:
    """Killed at any moment, it leaves leaks at worst, which the next to open the image gives back."""
    path = tmp_path / "disk"
    (tmp_path / "under").write_bytes(random.Random(bits).randbytes(3 << 20))
    create(path, 4 << 20, backing="under", backing_format="raw", cluster_bits=bits)
    moment = random.Random(bits)
    for n in range(round(4 * SCALE)):
        with subprocess.Popen([sys.executable, "-c", WRITER, path, str(n)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"open\n"
            try:
                writer.wait(moment.random() ** 2 * 0.3)
                pytest.fail("the writer has ended")
            except subprocess.TimeoutExpired:
                os.kill(writer.pid, signal.SIGKILL)
        sound(path)
        with Qcow2Disk(path) as disk:
            disk.read(0, disk.size)
        assert leaks(path) == 0


def sound(path: Path) -> None:
    """No worse than leaks, says qemu-img if it is here; Qcow2Disk says it anyway."""
    try:
        found = subprocess.run(["qemu-img", "check", "-f", "qcow2", path], capture_output=True)
    except FileNotFoundError:
        return
    assert found.returncode in (0, 3), found.stdout + found.stderr


class Medium:
    """What a host did to a file, and what its medium may have of that: all before the last time that it waited, and of
    the sectors since then any.
    """

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.image = bytearray(path.read_bytes())
        self.since: list[tuple[int, bytes]] = []
        self.before_wait: Callable[[], None] = lambda: None
        self.size = len(self.image)
        write, cut = os.pwrite, os.ftruncate

        def pwrite(fd: int, data: memoryview, offset: int) -> int:
            self._note(offset, bytes(data))
            return write(fd, data, offset)

        def ftruncate(fd: int, size: int) -> None:
            self.size = size
            cut(fd, size)

        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(os, "ftruncate", ftruncate)
        patch.setattr(os, "fdatasync", lambda fd: self.wait())
        patch.setattr(os, "fsync", lambda fd: self.wait())
        patch.setattr(qcow2_file, "punch", lambda fd, offset, length: self._note(offset, bytes(length)))

    def _note(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            n = min(len(data) - done, SECTOR - (offset + done) % SECTOR)
            self.since.append((offset + done, data[done : done + n]))
            done += n

    def wait(self) -> None:
        """All is there."""
        self.before_wait()
        self.image = self.after(self.since)
        self.since = []

    def after(self, writes: list[tuple[int, bytes]]) -> bytearray:
        """With some more, in the file's length."""
        image = bytearray(self.image)
        for offset, data in writes:
            image.extend(bytes(max(0, offset + len(data) - len(image))))
            image[offset : offset + len(data)] = data
        if self.size > len(image):
            image.extend(bytes(self.size - len(image)))
        return image


@pytest.mark.parametrize("bits,order", [(9, 4), (9, 6), (12, 0)])
def test_host_without_power_leaves_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, order: int
) -> None:
    """Whichever writes since the last flush are on the medium: the image can be written again, and what was flushed
    and not changed since is there.
    """
    path, left = tmp_path / "disk", tmp_path / "left"
    (tmp_path / "under").write_bytes(b"under" * 13107 + b"x")
    create(path, 1 << 17, backing="under", backing_format="raw", cluster_bits=bits, refcount_bits=1 << order)
    rng = random.Random(bits + order)
    model = bytearray(b"under" * 13107 + b"x" + bytes(65536))
    flushed, touched = bytes(model), bytearray(len(model))
    with monkeypatch.context() as patch:
        patch.setattr(qcow2_refcounts, "BATCH_CLUSTERS", 3)
        patch.setattr(qcow2_refcounts, "UNSETTLED", 5)
        medium = Medium(path, patch)
        images: list[tuple[bytearray, bytes, bytes]] = []

        def lose() -> None:
            if rng.random() < 0.4:
                some = [one for one in medium.since if rng.random() < 0.5]
                images.append((medium.after(some), flushed, bytes(touched)))

        medium.before_wait = lose
        with Qcow2Disk(path) as disk:
            for _ in range(round(50 * SCALE)):
                at = rng.randrange(len(model))
                n = min(rng.randrange(1, 6000), len(model) - at)
                if rng.random() < 0.6:
                    at, n = at // SECTOR * SECTOR, -(-n // SECTOR) * SECTOR
                    n = min(n, len(model) - at)
                how = rng.randrange(8)
                if how == 0:
                    disk.flush()
                    flushed, touched = bytes(model), bytearray(len(model))
                    continue
                low, high = at // SECTOR * SECTOR, -(-(at + n) // SECTOR) * SECTOR
                touched[low:high] = b"\1" * (high - low)
                if how < 3:
                    disk.zero(at, n)
                    model[at : at + n] = bytes(n)
                else:
                    model[at : at + n] = rng.randbytes(n)
                    disk.write(at, bytes(model[at : at + n]))
                lose()
    for image, kept, changed in images:
        left.write_bytes(image)
        with Qcow2Disk(left) as disk:
            found = disk.read(0, disk.size)
            assert all(a == b or c for a, b, c in zip(found, kept, changed, strict=True))
            disk.write(0, b"again")
        assert leaks(left) == 0
