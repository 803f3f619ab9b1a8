"""Discard and write zeroes of the block device: what moves, and what is refused."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from virtio_driver import ALL_FEATURES, DATA, SECTOR, WRITE, BlockDriver, Platter

from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_blk import (
    DISCARD_SEG,
    REQUEST_MAX,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_DISCARD,
    T_IN,
    T_WRITE_ZEROES,
    ZEROES_SEG,
)

FEATURES = ALL_FEATURES | 3 << 13
WILD = st.one_of(st.integers(0, 301), st.integers(0, (1 << 64) - 1))


def driver(disk: Platter | None = None, features: int = FEATURES) -> BlockDriver:
    return BlockDriver(disk, features)


def limits(driver: BlockDriver) -> tuple[int, ...]:
    """max_discard_sectors to max_write_zeroes_seg."""
    return tuple(driver.get(mmio.CONFIG + at) for at in range(36, 56, 4))


def test_virtio_blk_tells_its_limits() -> None:
    """One request has no more work than a write of the most bytes; a read-only disk has neither of the two."""
    sectors, segments, alignment, zeroes, zero_segments = limits(driver())
    assert sectors * segments * SECTOR <= REQUEST_MAX and zeroes * zero_segments * SECTOR <= REQUEST_MAX
    assert (segments, alignment, zero_segments) == (DISCARD_SEG, 8, ZEROES_SEG)
    readonly = driver(Platter(readonly=True))
    assert limits(readonly) == (0,) * 5
    assert not readonly.get(mmio.DEVICE_FEATURES) & 3 << 13
    assert driver().device.read(mmio.CONFIG + 56, 1) == 0


@pytest.mark.parametrize("kind", [T_DISCARD, T_WRITE_ZEROES])
def test_virtio_blk_does_neither_unless_negotiated(kind: int) -> None:
    """Each feature is for its own request."""
    for other in (0, 1 << (14 if kind == T_DISCARD else 13)):
        guest = driver(features=ALL_FEATURES | other)
        before = bytes(guest.disk.data)
        assert guest.segments(kind, [(0, 1, 0)]) == S_UNSUPP
        assert guest.disk.data == before


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([T_DISCARD, T_WRITE_ZEROES]),
    st.lists(
        st.tuples(
            WILD,
            st.one_of(st.integers(0, 301), st.sampled_from([4033, 64513, 0xFFFF_FFFF])),
            st.sampled_from([0, 0, 0, 0, 1, 2, 3, 1 << 31]),
        ),
        max_size=18,
    ),
    st.sampled_from([0, 0, 0, 1, 15]),
)
def test_virtio_blk_segments_do_as_the_model(kind: int, ranges: list[tuple[int, int, int]], extra: int) -> None:
    """Sectors that are named are zero, or anything; all others stay; and a request that is refused does nothing."""
    guest = driver()
    model = bytearray(guest.disk.data)
    known = 1 if kind == T_WRITE_ZEROES else 0
    most = DISCARD_SEG if kind == T_DISCARD else ZEROES_SEG
    if extra or not 1 <= len(ranges) <= most:
        expected = S_IOERR
    elif any(flags & ~known for _, _, flags in ranges):
        expected = S_UNSUPP
    elif any(sector + count > 300 for sector, count, _ in ranges):
        expected = S_IOERR
    else:
        expected = S_OK
        for sector, count, _ in ranges:
            fill = b"\0" if kind == T_WRITE_ZEROES else b"\xdd"
            model[sector * SECTOR : (sector + count) * SECTOR] = fill * count * SECTOR
    assert guest.segments(kind, ranges, extra) == expected
    assert guest.disk.data == model
    assert not guest.needs_reset and guest.memory.largest <= mmio.CHUNK
    assert guest.request(T_IN, 0, [(DATA, SECTOR)])[0] == S_OK


@pytest.mark.parametrize("kind", [T_DISCARD, T_WRITE_ZEROES])
def test_virtio_blk_segment_is_no_longer_than_is_told(kind: int) -> None:
    """On a disk that is larger: the most sectors are done, one more is refused."""
    sectors, segments, _, zeroes, _ = limits(driver())
    most = sectors if kind == T_DISCARD else zeroes
    count = segments if kind == T_DISCARD else 1

    class Large(Platter):
        def __init__(self) -> None:
            super().__init__(1)
            self.size = 2 * REQUEST_MAX
            self.done: list[tuple[int, int]] = []

        def discard(self, offset: int, length: int) -> None:
            self.done.append((offset, length))

        def zero(self, offset: int, length: int) -> None:
            self.done.append((offset, length))

    disk = Large()
    guest = driver(disk)
    assert guest.segments(kind, [(8, most, 0)] * count) == S_OK
    assert disk.done == [(8 * SECTOR, most * SECTOR)] * count
    assert guest.segments(kind, [(8, most + 1, 0)]) == S_IOERR
    assert len(disk.done) == count


def test_virtio_blk_segments_come_in_any_arrangement() -> None:
    """Segments cut anywhere between descriptors, header and data in one."""
    guest = driver()
    data = struct.pack("<IIQ", T_DISCARD, 0, 0) + struct.pack("<QIIQII", 3, 2, 0, 9, 1, 0)
    for size in (1, 5, 16, 48):
        guest.disk.discarded.clear()
        guest.memory.write(DATA, data)
        rows = [(DATA + at, min(size, len(data) - at), 0) for at in range(0, len(data), size)]
        used = guest.ask([*rows, (DATA + 0x100, 1, WRITE)], indirect=True)
        assert (used, guest.load(DATA + 0x100, "<B")) == (1, (S_OK,))
        assert guest.disk.discarded == [(3 * SECTOR, 2 * SECTOR), (9 * SECTOR, SECTOR)]


def test_virtio_blk_zeroes_are_durable_for_drivers_that_cannot_flush() -> None:
    """As writes are; and an error of the medium is the guest's."""
    for features, flushes in ((FEATURES, 0), (FEATURES & ~(1 << 9), 1)):
        guest = driver(features=features)
        assert guest.segments(T_WRITE_ZEROES, [(0, 3, 1)]) == S_OK
        assert guest.disk.flushes == flushes
        guest.disk.broken = True
        assert guest.segments(T_WRITE_ZEROES, [(0, 3, 1)]) == S_IOERR
        assert guest.segments(T_DISCARD, [(0, 3, 0)]) == S_IOERR
        assert guest.disk.flushes == flushes


def test_virtio_blk_segments_outside_ram_are_an_error() -> None:
    """Of the request, and not of the queue."""
    guest = driver()
    guest.ask(guest.rows(T_DISCARD, 0, [(0x1000, 16)], readable=True))
    assert guest.load(0x8000_5000, "<B") == (S_IOERR,) and not guest.needs_reset
    assert guest.disk.discarded == []
