"""qcow2 images and another implementation of them, qemu-img: each reads what the other writes."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from ringfence.machine.device.disk import DiskError
from ringfence.machine.device.disk_image import create, open_disk
from ringfence.machine.device.qcow2 import Qcow2Disk

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not on this host")
SIZE = 3 * 1024 * 1024 + 512
MORE = 70_144
SHAPES = [
    f"compat={compat},cluster_size={size},refcount_bits={bits}"
    for compat, size, bits in [
        ("0.10", 512, 16),
        ("0.10", 65536, 16),
        ("1.1", 512, 1),
        ("1.1", 512, 64),
        ("1.1", 1024, 2),
        ("1.1", 4096, 4),
        ("1.1", 4096, 8),
        ("1.1", 65536, 16),
        ("1.1", 65536, 32),
        ("1.1", 2 << 20, 16),
        ("1.1", 2 << 20, 1),
    ]
]


def qemu_img(*words: str | Path) -> str:
    found = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def contents(seed: int, size: int = SIZE) -> bytes:
    """Runs of bytes that are random, zero or the same, so that some clusters can be compressed and some are none."""
    rng = random.Random(seed)
    data = bytearray()
    while len(data) < size:
        n = rng.randrange(1, 300_000)
        data += rng.choice([rng.randbytes(n), bytes(n), bytes([rng.randrange(256)]) * n, b"text " * (n // 5)])
    return bytes(data[:size])


def use(disk: Qcow2Disk, model: bytearray, rng: random.Random) -> None:
    """Changes at random, in whole and in parts of clusters."""
    for _ in range(60):
        at = rng.randrange(len(model))
        n = min(rng.randrange(1, rng.choice([1000, 100_000])), len(model) - at)
        how = rng.randrange(6)
        if how == 0:
            disk.zero(at, n)
            model[at : at + n] = bytes(n)
        elif how == 1:
            disk.discard(at, n)
            model[at : at + n] = disk.read(at, n)
        elif how == 2:
            disk.flush()
        else:
            data = rng.randbytes(n)
            disk.write(at, data)
            model[at : at + n] = data
        assert disk.read(at, n) == model[at : at + n]


def same(path: Path, model: bytes | bytearray, raw: Path) -> None:
    """qemu-img finds nothing wrong with an image, and reads the bytes."""
    qemu_img("check", "-f", "qcow2", path)
    raw.write_bytes(model)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, raw)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ["blank", "converted", "compressed", "zstd", "over qcow2", "over raw", "over neither"])
def test_image_of_qemu_img(tmp_path: Path, shape: str, how: str) -> None:
    """It is read, and written, whatever is in it; what is under it stays."""
    path, raw, under = tmp_path / "disk", tmp_path / "raw", tmp_path / "under"
    model = contents(len(shape))
    raw.write_bytes(model)
    if how == "zstd":
        if "compat=0.10" in shape:
            pytest.skip("version 2 has no zstd")
        shape += ",compression_type=zstd"
    if how == "blank":
        qemu_img("create", "-f", "qcow2", "-o", shape, path, str(SIZE))
        model = bytes(SIZE)
    elif how.startswith("over"):
        if how == "over qcow2":
            qemu_img("convert", "-c", "-O", "qcow2", raw, under)
        else:
            under.write_bytes(model)
        named = ["-F", "qcow2" if how == "over qcow2" else "raw"]
        qemu_img("create", "-f", "qcow2", "-o", shape, "-b", "under", *named, path, str(SIZE + MORE))
        model += bytes(MORE)
    elif "refcount_bits=1" in shape.split(",") and how != "converted":
        pytest.skip("compressed clusters share clusters of the file, which one bit cannot count")
    else:
        packed = [] if how == "converted" else ["-c"]
        qemu_img("convert", *packed, "-f", "raw", "-O", "qcow2", "-o", shape, raw, path)
    if how == "over neither":
        qemu_img("rebase", "-f", "qcow2", "-u", "-b", "", path)
        model = bytes(len(model))
    before = under.read_bytes() if under.exists() else b""
    with open_disk(path, readonly=True) as disk:
        assert isinstance(disk, Qcow2Disk) and disk.size == len(model)
        assert disk.read(0, disk.size) == model
    now = bytearray(model)
    for seed in range(2):
        with Qcow2Disk(path) as disk:
            use(disk, now, random.Random(seed))
            assert disk.read(0, disk.size) == now
        same(path, now, raw)
    assert (under.read_bytes() if under.exists() else b"") == before


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@pytest.mark.parametrize("refcount_bits", [1, 4, 16, 64])
def test_image_is_qemu_imgs(tmp_path: Path, bits: int, refcount_bits: int) -> None:
    """What is made and written here, over an image that is, has the same bytes there; then it writes, and we read."""
    path, under, raw = tmp_path / "disk", tmp_path / "under", tmp_path / "raw"
    create(under, SIZE, cluster_bits=bits, refcount_bits=refcount_bits)
    same(under, bytes(SIZE), raw)
    model = bytearray(SIZE)
    with Qcow2Disk(under) as disk:
        use(disk, model, random.Random(bits))
    same(under, model, raw)
    create(path, SIZE + 4096, backing="under", backing_format="qcow2", cluster_bits=bits, refcount_bits=refcount_bits)
    model += bytes(4096)
    same(path, model, raw)
    with Qcow2Disk(path) as disk:
        use(disk, model, random.Random(refcount_bits))
    same(path, model, raw)
    qemu_img("commit", "-f", "qcow2", path)
    with open_disk(under) as disk:
        assert disk.read(0, disk.size) == model


@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
def test_preallocated_image(tmp_path: Path, how: str) -> None:
    """Clusters that are there before they are written."""
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", "-o", f"preallocation={how}", path, str(SIZE))
    model = bytearray(SIZE)
    with Qcow2Disk(path) as disk:
        assert disk.read(0, SIZE) == model
        use(disk, model, random.Random(4))
    same(path, model, tmp_path / "raw")


def test_snapshots_and_bitmaps_are_told(tmp_path: Path) -> None:
    """An image with either is refused, the latter for writing only; without it again it is written."""
    path = tmp_path / "disk"
    raw = tmp_path / "raw"
    raw.write_bytes(contents(5))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    qemu_img("snapshot", "-c", "one", path)
    with pytest.raises(DiskError, match="has internal snapshots"):
        open_disk(path)
    qemu_img("snapshot", "-d", "one", path)
    qemu_img("bitmap", "--add", path, "changes")
    with pytest.raises(DiskError, match="has bitmaps"):
        open_disk(path)
    with open_disk(path, readonly=True) as disk:
        assert disk.read(0, disk.size) == contents(5)
    qemu_img("bitmap", "--remove", path, "changes")
    model = bytearray(contents(5))
    with Qcow2Disk(path) as disk:
        use(disk, model, random.Random(5))
    same(path, model, raw)


def test_leaks_and_stale_flags_are_repaired(tmp_path: Path) -> None:
    """A refcount that is too high, with the flag that says so: behind us, qemu-img finds neither."""
    path = tmp_path / "disk"
    create(path, 1 << 20)
    with Qcow2Disk(path) as disk:
        disk.write(0, b"x" * 200_000)
    image = bytearray(path.read_bytes())

    def word(at: int) -> int:
        return int.from_bytes(image[at : at + 8], "big") & ~(1 << 63)

    block, l2 = word(65536), word(word(40))
    cluster = word(l2) >> 16
    image[block + 2 * cluster + 1] = 2
    image[l2] ^= 0x80
    image[block + 2 * 100 + 1] = 7
    path.write_bytes(image)
    assert "leaked" in subprocess.run(["qemu-img", "check", path], capture_output=True, text=True).stdout
    Qcow2Disk(path).close()
    qemu_img("check", path)
