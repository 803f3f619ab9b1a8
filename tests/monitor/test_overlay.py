"""Copy on write: the base stays, machines on it do not see each other, and what was flushed outlives any crash."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from platter import Cache, Platter, PowerCut, host

from ringfence import Extent, MachineError, MiB, Monitor
from ringfence.machine.device.virtio_blk import SECTOR
from ringfence.monitor.vdevice.minidisk import Minidisk, release
from ringfence.monitor.vdevice.overlay import BLOCK, Overlay, delta_size

SECTORS = 27
"""Of a base: three blocks and a part of one."""
SIZE = SECTORS * SECTOR


def blank(size: int) -> Platter:
    disk = Platter(size // SECTOR)
    disk.data[:] = bytes(size)
    return disk


def test_machines_on_one_base_do_not_see_each_others_writes() -> None:
    """Each reads the base but for what it has written, with a delta and without, and the base is never written."""
    base, deltas = Platter(SECTORS), blank(2 * delta_size(SIZE))
    before = bytes(base.data)
    monitor = Monitor(host(base, deltas))
    asked = [None, Extent(0, delta_size(SIZE), 1), None, Extent(delta_size(SIZE), delta_size(SIZE), 1)]
    disks = []
    for number, delta in enumerate(asked):
        minidisk = monitor.minidisk(Extent(0, SIZE), mode="cow", delta=delta)
        disks += monitor.create(f"m{number}", 4 * MiB, disks=[minidisk]).disks
    for number, disk in enumerate(disks):
        assert disk.read(0, SIZE) == before
        disk.write(3 * SECTOR + number, bytes([number]) * 9000)
    for number, disk in enumerate(disks):
        at = 3 * SECTOR + number
        assert disk.read(0, SIZE) == before[:at] + bytes([number]) * 9000 + before[at + 9000 :]
    assert base.data == before


def test_what_was_written_is_there_again_where_there_is_a_delta() -> None:
    """On another monitor, and at another depth; without a delta it is lost."""
    base, delta = Platter(SECTORS), blank(delta_size(SIZE))
    for depth in range(3):
        machine = host(base, delta)
        for _ in range(depth):
            monitor = Monitor(machine)
            machine = monitor.create("outer", machine.ram.size - 8 * MiB, disks=monitor.full_packs())
        monitor = Monitor(machine)
        kept = monitor.minidisk(Extent(0, SIZE), mode="cow", delta=Extent(0, delta.size, 1))
        lost = monitor.minidisk(Extent(0, SIZE), mode="cow")
        monitor.create("guest", 4 * MiB, disks=[kept, lost])
        assert kept.read(0, 3) == bytes([depth]) * 3
        assert lost.read(0, 3) == bytes(3)
        for disk in (kept, lost):
            disk.write(0, bytes([depth + 1]) * 3)
            release([disk])
            disk.attach("disk 0 of another")
        assert kept.read(0, 3) == bytes([depth + 1]) * 3
        assert lost.read(0, 3) == bytes(3)


@pytest.mark.parametrize("size", [SIZE, (3 << 20) + SECTOR])
def test_zeroes_are_written_like_anything_else(size: int) -> None:
    """Over the base and over what was written, also where they are more than is written at a time; the base stays."""
    base, delta = Platter(size // SECTOR), blank(delta_size(size))
    before = bytes(base.data)
    overlay = Overlay(base, delta)
    overlay.write(BLOCK + 5, b"x" * BLOCK)
    overlay.zero(SECTOR, size - 2 * SECTOR)
    expected = before[:SECTOR] + bytes(size - 2 * SECTOR) + before[-SECTOR:]
    assert overlay.read(0, size) == Overlay(base, delta).read(0, size) == expected
    assert base.data == before


def test_full_place_refuses_a_write_whole() -> None:
    """An error for the guest that asked, with nothing written of it; blocks that are there already can be written."""
    overlay = Overlay(Platter(SECTORS), blank(2 * BLOCK + 2 * BLOCK))
    overlay.write(BLOCK, b"one")
    before = overlay.read(0, SIZE)
    for _ in range(3):
        with pytest.raises(OSError, match="delta for copy on write is full"):
            overlay.write(SECTOR, b"x" * (3 * BLOCK))
        assert overlay.read(0, SIZE) == before
    overlay.write(BLOCK, b"two")
    overlay.write(0, b"zero")
    assert overlay.read(BLOCK, 3) + overlay.read(0, 4) == b"twozero"


@pytest.mark.parametrize(
    ("offset", "data", "said"),
    [
        (SECTOR - 1, b"x", "neither blank nor"),
        (1080, b"\x53\xef", "neither blank nor"),
        (0, b"ringfence copy-2", "neither blank nor"),
        (BLOCK, b"\xff\xff\xff\xff", "map for copy on write is damaged: block 0"),
        (BLOCK + 4 * 4, b"\x01\0\0\0", "damaged: block 4"),
        (BLOCK + 4, b"\x01\0\0\0\x01\0\0\0", "damaged: block 1"),
    ],
)
def test_place_that_is_something_else_is_refused_and_left_alone(offset: int, data: bytes, said: str) -> None:
    """A file system of somebody's, another version, a map that cannot be."""
    delta = blank(delta_size(SIZE))
    if offset >= BLOCK or data.startswith(b"ringfence"):
        Overlay(Platter(SECTORS), delta).write(0, b"x")
    delta.data[offset : offset + len(data)] = data
    before = bytes(delta.data)
    monitor = Monitor(host(Platter(SECTORS), delta))
    minidisk = monitor.minidisk(Extent(0, SIZE), mode="cow", delta=Extent(0, delta.size, 1))
    with pytest.raises(MachineError, match=f"^disk 0 of guest cannot be used: a .*{said}"):
        monitor.create("guest", 4 * MiB, disks=[minidisk])
    assert delta.data == before
    monitor.create("guest", 4 * MiB, disks=[monitor.minidisk(Extent(0, delta.size, 1))])


def test_place_of_another_size_of_base_is_refused() -> None:
    """Its map would mean other blocks; and so would one of a delta that has grown."""
    delta = blank(2 * delta_size(SIZE))
    monitor = Monitor(host(Platter(2 * SECTORS), delta))

    def cow(size: int, at: int) -> Minidisk:
        return monitor.minidisk(Extent(0, size), mode="cow", delta=Extent(0, at, 1))

    first = cow(SIZE, delta_size(SIZE))
    first.attach("first")
    first.release()
    for other in (cow(SIZE - SECTOR, delta_size(SIZE)), cow(SIZE, delta.size)):
        with pytest.raises(MachineError, match="neither blank nor one of"):
            other.attach("other")


WRITES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 20)).map(lambda w: (w[0], min(w[1], SECTORS - w[0]))),
        st.none(),
    ),
    max_size=12,
)
"""(first sector, how many), or a flush."""


def sectors(data: bytes) -> list[bytes]:
    return [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(WRITES, st.integers(0, 40)), min_size=1, max_size=3), st.data())
def test_crash_between_any_two_writes_loses_nothing_that_was_flushed(
    lives: list[tuple[list[tuple[int, int] | None], int]], data: st.DataObject
) -> None:
    """However much of its cache the disk had saved: each sector is as at the last flush, or as in a write since. It can
    all be written behind the last crash: no room is lost.
    """
    base, delta = Platter(SECTORS), Cache(delta_size(SIZE) // SECTOR)
    delta.write(BLOCK, b"\xff" * (delta.size - BLOCK))  # of somebody's before
    delta.flush()
    may = [{sector} for sector in sectors(bytes(base.data))]  # what each sector may hold
    contents = (n.to_bytes(4, "big") * (SECTOR // 4) for n in count(1))
    for steps, left in lives:
        delta.left = left
        try:
            overlay = Overlay(base, delta)
            now = sectors(overlay.read(0, SIZE))
            assert all(sector in allowed for sector, allowed in zip(now, may, strict=True))
            may = [{sector} for sector in now]
            for step in steps:
                if step is None:
                    overlay.flush()
                    may = [{sector} for sector in now]
                    continue
                first, length = step
                written = [next(contents) for _ in range(length)]
                for n, sector in enumerate(written, first):
                    may[n].add(sector)
                overlay.write(first * SECTOR, b"".join(written))
                now[first : first + length] = written
                assert sectors(overlay.read(0, SIZE)) == now
        except PowerCut:
            pass
        delta.cut(lambda: data.draw(st.booleans()))
    overlay = Overlay(base, delta)
    now = sectors(overlay.read(0, SIZE))
    assert all(sector in allowed for sector, allowed in zip(now, may, strict=True))
    overlay.write(0, b"z" * SIZE)
    assert overlay.read(0, SIZE) == b"z" * SIZE


def test_writes_outlive_the_monitor_without_a_flush() -> None:
    """Where only the monitor ends, and its host goes on, nothing that was written is lost."""
    base, delta = Platter(SECTORS), blank(delta_size(SIZE))
    Overlay(base, delta).write(5000, b"data")
    assert Overlay(base, delta).read(5000, 4) == b"data"


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("wrong", range(4))
def test_flush_that_succeeds_has_saved_all_that_can_be_read(wrong: int, other: bool) -> None:
    """Whichever operation of a write failed, and whatever the medium did with it: the slot, the flush behind it, the
    map. What the guest reads behind its next flush that succeeds, it reads ever after.
    """
    base, delta = Platter(SECTORS), blank(delta_size(SIZE))
    overlay = Overlay(base, delta)
    done = -1

    def fails(what: str) -> bool:
        nonlocal done
        done += what != "read"
        return what != "read" and done == wrong

    delta.fails = fails
    try:
        overlay.write(2 * BLOCK, b"lost?")
    except OSError:
        assert wrong < 3
    else:
        assert wrong == 3
    delta.fails = lambda _: False
    if other:
        overlay.write(SECTOR, b"other")
    overlay.flush()
    seen = overlay.read(0, SIZE)
    assert Overlay(base, delta).read(0, SIZE) == seen
    overlay.write(0, b"z" * SIZE)
    assert Overlay(base, delta).read(0, SIZE) == b"z" * SIZE
