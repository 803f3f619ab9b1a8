"""qcow2 images: their bytes, what a user is told, and what can be in them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leaks import leaks
from states import SCALE

from ringfence.machine.device import qcow2_file, qcow2_leaks
from ringfence.machine.device.disk import DiskError, RawDisk
from ringfence.machine.device.disk_image import create, open_disk
from ringfence.machine.device.qcow2 import MAX_CHAIN, Qcow2Disk
from ringfence.machine.device.qcow2_format import put_refcount, refcounts

SECTOR = 512
CHANGE = st.tuples(
    st.sampled_from(["write", "write", "zero", "discard", "flush", "reopen"]),
    st.integers(0, 1 << 30),
    st.integers(1, 40 * SECTOR),
    st.integers(1, 255),
)


def change(disk: Qcow2Disk | RawDisk, model: bytearray, how: str, offset: int, length: int, fill: int) -> None:
    """The same to a disk and to its model, in which a discard is zero where the whole cluster is."""
    offset %= len(model)
    length = min(length, len(model) - offset)
    if how == "write":
        data = bytes((fill + n) % 256 for n in range(length))
        disk.write(offset, data)
        model[offset : offset + length] = data
    elif how == "zero":
        disk.zero(offset, length)
        model[offset : offset + length] = bytes(length)
    elif how == "discard":
        disk.discard(offset, length)
        model[offset : offset + length] = disk.read(offset, length)
    else:
        disk.flush()


@settings(max_examples=round(40 * SCALE), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.lists(CHANGE, max_size=12), min_size=1, max_size=4),
    sectors=st.integers(1, 400),
    shapes=st.lists(st.tuples(st.sampled_from([9, 9, 10, 12, 16]), st.integers(0, 6)), min_size=4, max_size=4),
    raw=st.booleans(),
)
def test_chain_is_a_disk(
    tmp_path: Path,
    changes: list[list[tuple[str, int, int, int]]],
    sectors: int,
    shapes: list[tuple[int, int]],
    raw: bool,
) -> None:
    """Whatever is done to an image, over others of other sizes and shapes, it has the bytes of its model, when it is
    opened again too; what is under it stays.
    """
    for old in tmp_path.iterdir():
        old.unlink()
    name: str | None = None
    form = "qcow2"
    model = bytearray()
    if raw:
        model = bytearray(random.Random(sectors).randbytes(SECTOR * (1 + sectors // 2)))
        (tmp_path / "under").write_bytes(model)
        name, form = "under", "raw"
    for level, (these, (bits, order)) in enumerate(zip(changes, shapes, strict=False)):
        size = SECTOR * (1 + (sectors + 37 * level) % 400)
        path = tmp_path / f"{level}.qcow2"
        create(
            path,
            size,
            backing=name,
            backing_format=None if name is None else form,
            cluster_bits=bits,
            refcount_bits=1 << order,
        )
        under = None if name is None else tmp_path / name
        before = None if under is None else under.read_bytes()
        model = (model + bytes(size))[:size]
        disk = Qcow2Disk(path)
        for one in these:
            if one[0] == "reopen":
                disk.close()
                disk = Qcow2Disk(path)
            change(disk, model, *one)
            assert disk.read(0, size) == model
        disk.close()
        with Qcow2Disk(path, readonly=True) as disk:
            assert disk.read(0, size) == model
        assert under is None or under.read_bytes() == before
        assert leaks(path) == 0
        name, form = path.name, "qcow2"


@given(st.binary(min_size=16, max_size=16), st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.data())
def test_refcount_is_put_where_it_is_read(data: bytes, bits: int, more: st.DataObject) -> None:
    """And no other is changed, at any width."""
    index = more.draw(st.integers(0, 128 // bits - 1))
    value = more.draw(st.integers(0, (1 << bits) - 1))
    block = bytearray(data)
    put_refcount(block, index, bits, value)
    expected = list(refcounts(data, bits))
    expected[index] = value
    assert list(refcounts(bytes(block), bits)) == expected


def test_discarded_clusters_are_zero_and_used_again(tmp_path: Path) -> None:
    """Parts of clusters stay; the room is another cluster's; nothing of the backing file shows."""
    (tmp_path / "under").write_bytes(b"\xaa" * 65536)
    create(tmp_path / "disk", 65536, backing="under", backing_format="raw", cluster_bits=12)
    with Qcow2Disk(tmp_path / "disk") as disk:
        disk.write(0, b"\x55" * 65536)
        disk.discard(100, 3 * 4096)
        assert disk.read(0, 16384) == b"\x55" * 4096 + bytes(8192) + b"\x55" * 4096
        disk.discard(0, 65536)
        assert disk.read(0, 65536) == bytes(65536)
    size = (tmp_path / "disk").stat().st_size
    for _ in range(4):
        with Qcow2Disk(tmp_path / "disk") as disk:
            disk.write(0, b"\x55" * 65536)
            disk.zero(0, 65536)
            assert disk.read(0, 65536) == bytes(65536)
    assert (tmp_path / "disk").stat().st_size <= size
    assert (tmp_path / "disk").stat().st_blocks * 512 <= 12 * 4096


def test_raw_disk_is_zeroed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the host's help or without; what is discarded may stay."""
    path = tmp_path / "raw"
    for helped in (True, False):
        path.write_bytes(b"\x55" * 65536)
        with RawDisk(path) as disk:
            if not helped:
                monkeypatch.setattr("ringfence.machine.device.disk.punch", lambda *_: False)
            disk.zero(100, 40000)
            disk.discard(50000, 512)
            assert disk.read(0, 100) + disk.read(40100, 100) == b"\x55" * 200
            assert disk.read(100, 40000) == bytes(40000)
            assert disk.read(50000, 512) in ([b"\x55" * 512] if not helped else [bytes(512), b"\x55" * 512])
            with pytest.raises(OSError, match="behind the end"):
                disk.zero(65000, 1000)


def test_refcount_table_grows(tmp_path: Path) -> None:
    """With the smallest clusters and the widest refcounts, one cluster of table counts 2 MiB."""
    create(tmp_path / "disk", 6 << 20, cluster_bits=9, refcount_bits=64)
    data = random.Random(1).randbytes(6 << 20)
    with Qcow2Disk(tmp_path / "disk") as disk:
        for at in range(0, len(data), 1 << 18):
            disk.write(at, data[at : at + (1 << 18)])
    assert leaks(tmp_path / "disk") == 0
    with Qcow2Disk(tmp_path / "disk") as disk:
        assert disk.read(0, len(data)) == data


def test_windows_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaks are found in many passes as in one."""
    create(tmp_path / "disk", 1 << 20, cluster_bits=9)
    with Qcow2Disk(tmp_path / "disk") as disk:
        disk.write(0, random.Random(2).randbytes(1 << 20))
        disk.discard(1000, 300_000)
    with (tmp_path / "disk").open("r+b") as file:  # the first cluster that is free is said not to be
        file.seek(512)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        counts = list(refcounts(file.read(512), 16))
        file.seek(block + 2 * counts.index(0) if 0 in counts else block + 510)
        file.write(b"\0\2")
    monkeypatch.setattr(qcow2_leaks, "WINDOW", 100)
    assert leaks(tmp_path / "disk") == 1
    assert leaks(tmp_path / "disk") == 0


def test_cache_is_bounded(tmp_path: Path) -> None:
    """A disk with more tables than the cache has room for is the same disk."""
    cache = qcow2_file.TableCache(4 * 512)
    create(tmp_path / "disk", 1 << 20, cluster_bits=9)
    data = random.Random(3).randbytes(1 << 18)
    with Qcow2Disk(tmp_path / "disk", cache=cache) as disk:
        disk.write(512, data)
        assert disk.read(512, len(data)) == data
        assert sum(map(len, cache._pages.values())) <= 4 * 512


# What is refused.

FIELDS = {"version": (4, ">I"), "cluster_bits": (20, ">I"), "size": (24, ">Q"), "crypt": (32, ">I")}
FIELDS |= {"l1_size": (36, ">I"), "l1": (40, ">Q"), "table": (48, ">Q"), "clusters": (56, ">I"), "snaps": (60, ">I")}
FIELDS |= {"features": (72, ">Q"), "order": (96, ">I"), "length": (100, ">I"), "compression": (104, ">B")}
FIELDS |= {"name": (8, ">Q"), "name_length": (16, ">I")}


@pytest.mark.parametrize(
    "values,said",
    [
        ({"version": 1}, "is qcow2 of version 1: only 2 and 3 are supported"),
        ({"version": 4}, "is qcow2 of version 4"),
        ({"cluster_bits": 8}, r"has clusters of 2\*\*8 bytes: 512 to 2 MiB are supported"),
        ({"cluster_bits": 22}, r"has clusters of 2\*\*22 bytes"),
        ({"cluster_bits": 1 << 31}, r"has clusters of 2\*\*2147483648 bytes"),
        ({"size": 0}, "is empty"),
        ({"size": 1000}, "has a disk of 1000 bytes, which is not a multiple of 512"),
        ({"size": (64 << 40) + 512}, "up to 64 TiB are supported"),
        ({"size": 1 << 40}, "has an L1 table of 1 entries, which are too few"),
        ({"crypt": 2}, "is encrypted"),
        ({"snaps": 1}, "has internal snapshots"),
        ({"l1_size": 0}, "has an L1 table of 0 entries"),
        ({"l1_size": 1 << 31}, "has an L1 table of 2147483648 entries, which are too many"),
        ({"l1": 100}, "has an L1 table that does not begin with a cluster"),
        ({"l1": 0}, "has an L1 table in its header"),
        ({"l1": 1 << 40}, "is truncated: it has an L1 table behind its end"),
        ({"l1": (1 << 64) - 65536}, "is truncated"),
        ({"l1": 65536}, "has an L1 table in its refcount table"),
        ({"table": 0}, "has a refcount table in its header"),
        ({"table": 1 << 60}, "has a refcount table behind its end"),
        ({"clusters": 0}, "has a refcount table of 0 clusters"),
        ({"clusters": 1 << 20}, "has a refcount table of 1048576 clusters"),
        ({"features": 1}, "was not closed by who wrote it last"),
        ({"features": 2}, "is marked as corrupt"),
        ({"features": 4}, "has its data in another file"),
        ({"features": 16}, "has extended L2 entries"),
        ({"features": 1 << 63}, "needs a feature that is not known: incompatible bit 63"),
        ({"features": 8}, "compressed in a way that is not known"),
        ({"features": 8, "compression": 2}, "compressed in a way that is not known"),
        ({"compression": 1}, "compressed in a way that is not known"),
        ({"order": 7}, r"has refcounts of 2\*\*7 bits"),
        ({"length": 96}, "has a header of 96 bytes, which cannot be"),
        ({"length": 1 << 30}, "has a header of 1073741824 bytes"),
        ({"name": 200, "name_length": 2000}, "has the name of its backing file where none can be"),
        ({"name": 65530, "name_length": 20}, "has the name of its backing file where none can be"),
    ],
)
def test_unusable_image_is_told(tmp_path: Path, values: dict[str, int], said: str) -> None:
    """One sentence for each thing that cannot be."""
    path = tmp_path / "disk"
    create(path, 1 << 20)
    patch(path, values)
    for readonly in (True, False):
        with pytest.raises(DiskError, match=f"^disk image {path} .*{said}"):
            open_disk(path, readonly=readonly)


def patch(path: Path, values: dict[str, int]) -> None:
    with path.open("r+b") as file:
        for field, value in values.items():
            at, form = FIELDS[field]
            file.seek(at)
            file.write(struct.pack(form, value))


def test_truncated_image_is_told(tmp_path: Path) -> None:
    """Wherever the end is, even where only data are behind it."""
    path = tmp_path / "disk"
    create(path, 1 << 20, cluster_bits=12)
    with Qcow2Disk(path) as disk:
        disk.write(0, b"x" * 65536)
    whole = path.read_bytes()
    for length in (4, 50, 72, 103, 4096, 8192, 3 * 4096):
        path.write_bytes(whole[:length])
        with pytest.raises(DiskError, match="is truncated"):
            open_disk(path, readonly=True)
    path.write_bytes(whole[: len(whole) - 8192])
    with pytest.raises(DiskError, match="is truncated|is damaged"):
        Qcow2Disk(path)
    with Qcow2Disk(path, readonly=True) as disk, pytest.raises(OSError, match="damaged"):
        disk.read(0, 65536)


def test_chain_has_an_end(tmp_path: Path) -> None:
    """One that leads to itself, one too long, and names that are no files are each a sentence."""
    create(tmp_path / "0", 4096)
    for n in range(1, MAX_CHAIN):
        create(tmp_path / str(n), 4096, backing=str(n - 1), backing_format="qcow2")
    with Qcow2Disk(tmp_path / str(MAX_CHAIN - 1)) as disk:
        assert disk.read(0, 4096) == bytes(4096)
    with pytest.raises(DiskError, match="is over more than 64 images"):
        create(tmp_path / "more", 4096, backing=str(MAX_CHAIN - 1), backing_format="qcow2")
    assert not [path for path in tmp_path.iterdir() if "more" in path.name]
    (tmp_path / "0").unlink()
    (tmp_path / "0").symlink_to("5")
    for name, readonly in (("5", True), ("5", False), ("7", False)):
        with pytest.raises(DiskError, match="over itself"):
            Qcow2Disk(tmp_path / name, readonly=readonly)
    (tmp_path / "0").unlink()
    with pytest.raises(DiskError, match="over .*/0, which cannot be opened: No such file"):
        Qcow2Disk(tmp_path / "1")
    for backing in ("json:{}", "nbd://host/disk"):
        with pytest.raises(DiskError, match="no name of a file"):
            create(tmp_path / "new", 4096, backing=backing, backing_format="raw")
    with pytest.raises(DiskError, match="format 'vmdk'"):
        create(tmp_path / "new", 4096, backing="2", backing_format="vmdk")


def test_backing_format_is_not_guessed(tmp_path: Path) -> None:
    """Without a name for it, it is raw, and what then begins as qcow2 is refused."""
    create(tmp_path / "under", 4096)
    create(tmp_path / "disk", 4096, backing="under", backing_format="qcow2")
    image = bytearray((tmp_path / "disk").read_bytes())
    at = image.index(b"\xe2\x79\x2a\xca")
    image[at : at + 4] = b"\x12\x34\x56\x78"
    (tmp_path / "disk").write_bytes(image)
    with pytest.raises(DiskError, match="does not name the format of"):
        Qcow2Disk(tmp_path / "disk")
    (tmp_path / "under").write_bytes(b"raw!" * 1024)
    with Qcow2Disk(tmp_path / "disk") as disk:
        assert disk.read(4, 4) == b"raw!"


def test_guest_does_not_choose_the_format(tmp_path: Path) -> None:
    """A disk that was opened as raw for its contents cannot begin as qcow2 afterwards, however it is written."""
    (tmp_path / "disk").write_bytes(bytes(4096))
    with open_disk(tmp_path / "disk") as disk:
        assert isinstance(disk, RawDisk)
        for offset, data in ((0, b"QFI\xfb" + bytes(508)), (3, b"\xfb")):
            disk.write(0, b"QFI.")
            with pytest.raises(OSError, match="would begin as a qcow2 image"):
                disk.write(offset, data)
        disk.write(4, b"QFI\xfb")
    with open_disk(tmp_path / "disk") as disk:
        assert isinstance(disk, RawDisk)


def test_image_is_locked(tmp_path: Path) -> None:
    """One machine that writes, and nobody who writes under an image."""
    create(tmp_path / "under", 4096)
    create(tmp_path / "disk", 4096, backing="under", backing_format="qcow2")
    with Qcow2Disk(tmp_path / "disk"):
        for name, readonly in (("disk", True), ("disk", False), ("under", False)):
            with pytest.raises(DiskError, match="in use by another machine"):
                Qcow2Disk(tmp_path / name, readonly=readonly)
        Qcow2Disk(tmp_path / "under", readonly=True).close()
    with Qcow2Disk(tmp_path / "disk", readonly=True) as disk:
        disk.flush()
        acts: list[Callable[[], None]] = [
            lambda: disk.write(0, b"x"),
            lambda: disk.zero(0, 512),
            lambda: disk.discard(0, 512),
        ]
        for act in acts:
            with pytest.raises(OSError, match="only read"):
                act()


def test_new_image_replaces_nothing(tmp_path: Path) -> None:
    """What is there stays, and a size or a name that cannot be is told."""
    (tmp_path / "disk").write_bytes(b"precious")
    with pytest.raises(DiskError, match="cannot be made: File exists"):
        create(tmp_path / "disk", 4096)
    assert (tmp_path / "disk").read_bytes() == b"precious"
    attempts: list[tuple[Callable[[], None], str]] = [
        (lambda: create(tmp_path / "new", 4000), "multiple of 512"),
        (lambda: create(tmp_path / "new", 0), "multiple of 512"),
        (lambda: create(tmp_path / "new", 65 << 40), "64 TiB"),
        (lambda: create(tmp_path / "new", 1 << 40, cluster_bits=9), "too small for a disk"),
        (lambda: create(tmp_path / "new", 4096, cluster_bits=22), "not 2"),
        (lambda: create(tmp_path / "new", 4096, refcount_bits=3), "refcounts have"),
        (lambda: create(tmp_path / "new", 4096, backing="disk"), "named together"),
        (lambda: create(tmp_path / "new", 4096, backing="n" * 1100, backing_format="raw"), "too long"),
        (lambda: create(tmp_path / "new", 4096, backing="n" * 450, backing_format="raw", cluster_bits=9), "too long"),
        (lambda: create(tmp_path / "gone" / "new", 4096), "cannot be made: No such file"),
    ]
    for attempt, said in attempts:
        with pytest.raises(DiskError, match=said):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


# Images that lie.


@pytest.mark.parametrize("bits,order", [(9, 0), (9, 4), (12, 6)])
def test_damaged_image_is_an_error_or_data(tmp_path: Path, bits: int, order: int) -> None:
    """Bytes changed anywhere in headers and tables: DiskError, OSError or data, whatever is done then."""
    path, good = tmp_path / "disk", tmp_path / "good"
    (tmp_path / "under").write_bytes(b"u" * 8192)
    create(good, 1 << 17, backing="under", backing_format="raw", cluster_bits=bits, refcount_bits=1 << order)
    with Qcow2Disk(good) as disk:
        disk.write(1000, b"x" * 9000)
        disk.zero(4096, 4096)
        disk.write(70000, b"y" * 600)
    whole = good.read_bytes()
    rng = random.Random(bits)
    tables = [at for at in range(0, len(whole) - 7, 8) if any(whole[at : at + 8]) and whole[at : at + 8] != b"x" * 8]
    outcomes: set[str] = set()
    for n in range(round(100 * SCALE)):
        image = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            at = rng.choice(tables) if n % 4 else rng.randrange(len(image) - 8)
            kind = rng.randrange(4)
            if kind == 0:
                image[at + rng.randrange(8)] ^= 1 << rng.randrange(8)
            elif kind == 1:
                image[at + rng.randrange(8)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            elif kind == 2:
                image[at : at + 8] = rng.choice(tables).to_bytes(8, "big")
            else:
                source = rng.choice(tables)
                image[at : at + 8] = image[source : source + 8]
        path.write_bytes(image)
        for readonly in (True, False):
            try:
                with Qcow2Disk(path, readonly=readonly) as disk:
                    use(disk, rng, outcomes)
            except DiskError as error:
                outcomes.add("refused")
                assert "\n" not in str(error) and str(error).startswith("disk image ")
        assert path.stat().st_size < 1 << 25
    assert outcomes >= {"refused", "error", "data"}


def use(disk: Qcow2Disk, rng: random.Random, outcomes: set[str]) -> None:
    for _ in range(6):
        at = rng.randrange(min(disk.size, 1 << 17) // 512) * 512
        n = min(rng.randrange(1, 30) * 512, disk.size - at)
        try:
            match rng.randrange(5):
                case 0:
                    disk.write(at, bytes([rng.randrange(256)]) * n)
                    assert len(set(disk.read(at, n))) == 1
                case 1:
                    disk.zero(at, n)
                    assert not any(disk.read(at, n))
                case 2:
                    disk.discard(at, n)
                case 3:
                    disk.flush()
                case _:
                    assert len(disk.read(at, n)) == n
            outcomes.add("data")
        except OSError:
            outcomes.add("error")
