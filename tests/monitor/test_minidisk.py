"""Minidisks: at any depth they are the bytes of their extents, and nothing that a guest asks for leaves them."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from platter import Platter, host
from test_equivalence import selftest

from ringfence import Extent, Image, MachineError, MiB, Monitor, RawDisk, Virt, VirtualMachine, load, nested, virt
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_blk import SECTOR, T_DISCARD, T_IN, T_OUT, T_WRITE_ZEROES
from ringfence.machine.device.virtio_request import LATENCY_NS
from ringfence.monitor.vdevice.minidisk import Minidisk, Mode, release
from ringfence.monitor.vdevice.overlay import delta_size

SMALL = 4 * MiB


def extent(first: int, count: int, disk: int = 0) -> Extent:
    """So many sectors from that one."""
    return Extent(first * SECTOR, count * SECTOR, disk)


def give(monitor: Monitor, *minidisks: Minidisk, name: str = "guest") -> VirtualMachine:
    return monitor.create(name, SMALL, disks=minidisks)


# What a minidisk is


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 4))
def test_minidisk_is_the_bytes_of_its_extents_at_any_depth(data: st.DataObject, depth: int) -> None:
    """Any extents in any order, copy on write at any level: reads and writes are those of plain bytes, and all else on
    the disk below stays as it was.
    """
    platter, deltas = Platter(300), Platter(depth * delta_size(300 * SECTOR) // SECTOR + 1)
    deltas.data[:] = bytes(deltas.size)
    machine: Virt = virt(64 * MiB, engine="reference", disks=[platter, deltas])
    stores = [bytearray(platter.data)]  # the real disk, and what each copy-on-write level makes of what is below it
    where = [(0, n) for n in range(300)]  # of the sectors of the disk at hand: which store, and which sector there
    for level in range(depth):
        cuts = data.draw(st.lists(st.integers(0, len(where)), min_size=2, max_size=6, unique=True).map(sorted))
        spans = data.draw(st.permutations(list(zip(cuts[::2], cuts[1::2], strict=False))))
        where = [where[n] for first, end in spans for n in range(first, end)]
        rest = Extent(delta_size(300 * SECTOR), (depth - level - 1) * delta_size(300 * SECTOR) + SECTOR, 1)
        delta: Extent | None = None
        modes: list[Mode] = ["rw", "shared", "cow"]
        mode = data.draw(st.sampled_from(modes))
        if mode == "cow" and data.draw(st.booleans()):
            delta = Extent(0, delta_size(300 * SECTOR), 1)
        if mode == "cow":
            stores.append(bytearray().join(stores[s][n * SECTOR : (n + 1) * SECTOR] for s, n in where))
            where = [(len(stores) - 1, n) for n in range(len(where))]
        monitor = Monitor(machine)
        minidisk = monitor.minidisk(*(extent(a, b - a) for a, b in spans), mode=mode, delta=delta)
        machine = monitor.create("guest", machine.ram.size - 12 * MiB, disks=[minidisk, monitor.minidisk(rest)])
    disk = machine.disks[0]
    assert disk.size == len(where) * SECTOR
    for _ in range(data.draw(st.integers(0, 8))):
        start = data.draw(st.integers(0, disk.size))
        length = data.draw(st.integers(0, min(disk.size - start, 20_000)))
        at = [
            (stores[s], n * SECTOR + b % SECTOR) for b in range(start, start + length) for s, n in [where[b // SECTOR]]
        ]
        what = data.draw(st.sampled_from(["read", "read", "write", "write", "zero", "discard"]))
        if what != "read":
            written = data.draw(st.binary(min_size=3, max_size=3)) * (length // 3 + 1)
            if what == "write":
                disk.write(start, written[:length])
            elif what == "zero":
                disk.zero(start, length)
                written = bytes(length)
            else:
                disk.discard(start, length)
                written = disk.read(start, length)  # anything
            for (store, n), byte in zip(at, written, strict=False):
                store[n] = byte
        assert disk.read(start, length) == bytes(store[n] for store, n in at)
    assert disk.read(0, disk.size) == b"".join(stores[s][n * SECTOR : (n + 1) * SECTOR] for s, n in where)
    assert platter.data == stores[0]


def test_minidisk_flush_and_errors_go_through_every_level() -> None:
    """A flush reaches the real medium once, whatever the extents; an error of the medium comes back as one."""
    platter = Platter(64)
    machine = nested(3, 20 * MiB, engine="reference", disks=[platter])
    monitor = Monitor(machine)
    disk = give(monitor, monitor.minidisk(extent(8, 8), extent(30, 8))).disks[0]
    disk.write(0, b"x" * SECTOR)
    assert platter.flushes == 0
    disk.flush()
    assert platter.flushes == 1
    platter.fails = lambda _: True
    for ask in (lambda: disk.read(0, SECTOR), lambda: disk.write(0, bytes(SECTOR)), disk.flush):
        with pytest.raises(OSError, match="medium"):
            ask()
    platter.fails = lambda _: False
    assert disk.read(0, SECTOR) == b"x" * SECTOR


def test_discards_reach_the_disk_and_copy_on_write_keeps_them() -> None:
    """Each extent's part is a discard there; what a base has is not this machine's to discard."""
    platter = Platter(64)
    machine = nested(2, 20 * MiB, engine="reference", disks=[platter])
    monitor = Monitor(machine)
    both = [monitor.minidisk(extent(8, 8), extent(30, 8)), monitor.minidisk(extent(40, 8), mode="cow")]
    own, copied = monitor.create("guest", SMALL, disks=both).disks
    own.discard(6 * SECTOR, 4 * SECTOR)
    assert platter.discarded == [(14 * SECTOR, 2 * SECTOR), (30 * SECTOR, 2 * SECTOR)]
    before = bytes(platter.data)
    copied.discard(0, copied.size)
    copied.zero(0, copied.size)
    assert copied.read(0, copied.size) == bytes(copied.size)
    assert len(platter.discarded) == 2 and platter.data == before


def test_shared_minidisks_show_each_others_writes() -> None:
    """Two machines that both say shared write one extent, the second even where it is only a part of its own."""
    monitor = Monitor(host(Platter(64)))
    one = give(monitor, monitor.minidisk(extent(0, 16), mode="shared"), name="one").disks[0]
    two = give(monitor, monitor.minidisk(extent(40, 4), extent(8, 16), mode="shared"), name="two").disks[0]
    one.write(8 * SECTOR, b"from one")
    assert two.read(4 * SECTOR, 8) == b"from one"
    two.write(4 * SECTOR, b"from two")
    assert one.read(8 * SECTOR, 8) == b"from two"


# What is refused


def table(*wanted: tuple[Mode, Extent] | tuple[Mode, Extent, Extent]) -> None:
    """A machine for each of these minidisks of a disk of 64 sectors, beside a read-only disk of 32 and a blank one."""
    blank = Platter(64)
    blank.data[:] = bytes(blank.size)
    monitor = Monitor(host(Platter(64), Platter(32, readonly=True), blank))
    for number, (mode, base, *delta) in enumerate(wanted):
        give(monitor, monitor.minidisk(base, mode=mode, delta=delta[0] if delta else None), name=f"m{number}")


@pytest.mark.parametrize("first", ["rw", "ro", "shared", "cow"])
@pytest.mark.parametrize("second", ["rw", "ro", "shared", "cow"])
def test_minidisks_overlap_only_where_nobody_writes_or_all_share(first: Mode, second: Mode) -> None:
    """By one sector, at either end or inside; side by side anything goes."""
    allowed = {first, second} <= {"ro", "cow"} or first == second == "shared"
    for there in (extent(15, 4), extent(0, 9), extent(10, 1), extent(0, 64)):
        if allowed:
            table((first, extent(8, 8)), (second, there))
        else:
            with pytest.raises(MachineError, match=r"^disk 0 of m1 \(.*\) overlaps disk 0 of m0 \(.*\)$"):
                table((first, extent(8, 8)), (second, there))
    table((first, extent(8, 8)), (second, extent(16, 8)), (second, extent(0, 8)), (second, extent(8, 8, disk=2)))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ([("rw", extent(0, 65))], "33280 bytes at 0 of disk 0 are not inside its 32768 bytes"),
        ([("ro", extent(64, 1))], "are not inside"),
        ([("ro", extent(-1, 2))], "are not inside"),
        ([("ro", extent(1 << 62, 1))], "are not inside"),
        ([("rw", extent(3, 0))], "an extent has at least 512 bytes, not 0"),
        ([("rw", extent(3, -1))], "an extent has at least 512 bytes, not -512"),
        ([("rw", Extent(1, 512))], "whole sectors of 512 bytes, which 512 bytes at 1 of disk 0 are not"),
        ([("rw", Extent(0, 513))], "whole sectors"),
        ([("rw", extent(0, 1, disk=3))], "the host machine has no disk 3"),
        ([("rw", extent(0, 1, disk=-1))], "the host machine has no disk -1"),
        ([("rw", extent(0, 1, disk=1))], "disk 1 of the host machine is read-only"),
        ([("shared", extent(0, 1, disk=1))], "disk 1 of the host machine is read-only"),
        ([("cow", extent(0, 8), extent(0, 32, disk=1))], "disk 1 of the host machine is read-only"),
        ([("cow", extent(0, 8), extent(7, 32))], r"the delta of disk 0 of m0 \(.*\) overlaps disk 0 of m0 \("),
        ([("cow", extent(0, 8), extent(0, 32, 2)), ("ro", extent(31, 1, 2))], "overlaps the delta of disk 0 of m0"),
        ([("cow", extent(0, 8), extent(0, 23, 2))], "disk 0 of m0 cannot be used: 11776 bytes are too few"),
        ([("cow", extent(0, 8), extent(8, 32))], "disk 0 of m0 cannot be used: a delta .* is neither blank nor"),
        ([("rw", extent(0, 8), extent(0, 32, 2))], "a delta is for what is written to a cow minidisk"),
        ([("rx", extent(0, 8))], "a minidisk is rw, ro, shared or cow, not 'rx'"),
    ],
)
def test_bad_minidisk_is_refused_in_one_sentence(wanted: list[tuple[Mode, Extent]], said: str) -> None:
    """Behind the end, empty, unaligned, of no disk, not to be written, of no such kind."""
    with pytest.raises(MachineError, match=said) as error:
        table(*wanted)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_minidisk_without_extents_and_one_that_overlaps_itself_are_refused() -> None:
    """One that can be written would have two places for a sector; one that cannot may show it twice."""
    monitor = Monitor(host(Platter(64)))
    with pytest.raises(MachineError, match="a minidisk has at least one extent"):
        monitor.minidisk()
    twice = extent(0, 8), extent(4, 8)
    with pytest.raises(MachineError, match="disk 0 of guest .* overlaps disk 0 of guest"):
        give(monitor, monitor.minidisk(*twice))
    disk = give(monitor, monitor.minidisk(*twice, mode="ro")).disks[0]
    assert disk.read(4 * SECTOR, 4 * SECTOR) == disk.read(8 * SECTOR, 4 * SECTOR)


def test_refused_machine_takes_nothing() -> None:
    """Neither extents nor memory: what it had asked for can be given to the next."""
    monitor = Monitor(host(Platter(64)))
    first, second = monitor.minidisk(extent(0, 8)), monitor.minidisk(extent(7, 8))
    give(monitor, second, name="one")
    for _ in range(20):
        with pytest.raises(MachineError, match="disk 1 of two .* overlaps disk 0 of one"):
            monitor.create("two", SMALL, disks=[monitor.minidisk(extent(20, 44)), first], resident=SMALL)
    give(monitor, monitor.minidisk(extent(20, 44)), name="two")
    assert first.owner is None


def test_minidisk_is_one_machines_of_its_monitor() -> None:
    """It cannot be given twice, not even if shared, nor by a monitor that has not the disk."""
    machine = host(Platter(64))
    monitor = Monitor(machine)
    minidisk = monitor.minidisk(extent(0, 8), mode="shared")
    outer = give(monitor, minidisk, name="outer")
    with pytest.raises(MachineError, match="disk 1 of two is disk 0 of outer already"):
        monitor.create("two", SMALL, disks=[monitor.minidisk(extent(0, 8), mode="shared"), minidisk])
    with pytest.raises(MachineError, match="disk 0 of three is a minidisk of another monitor's"):
        give(Monitor(outer), monitor.minidisk(extent(8, 8)), name="three")


def test_released_minidisk_reaches_nothing() -> None:
    """Its extents can be given to another, and the machine that had it, and those on that one, get errors."""
    platter = Platter(64)
    monitor = Monitor(host(platter))
    old = monitor.create("old", 20 * MiB, disks=[monitor.minidisk(extent(0, 8))])
    above = Monitor(old)
    inner = give(above, above.minidisk(extent(0, 8)))
    release(old.disks)
    release(old.disks)
    new = monitor.minidisk(extent(0, 8))
    new.attach("disk 0 of new")
    before = bytes(platter.data)
    for disk in (old.disks[0], inner.disks[0]):
        for ask in (lambda: disk.read(0, SECTOR), lambda: disk.write(0, bytes(SECTOR)), disk.flush):
            with pytest.raises(OSError, match="no machine's"):
                ask()
    assert platter.data == before
    new.write(0, b"new")


# What a guest asks for

QUEUE, HEADER, STATUS, DATA = 0x8010_0000, 0x8010_4000, 0x8010_5000, 0x8020_0000


def driver(machine: Virt, slot: int = 0) -> None:
    """Sets a block device up, with a queue of eight."""
    device = machine.slots[slot]
    device.write(mmio.STATUS, 4, 0)
    machine.ram.write(QUEUE, bytes(0x3000))
    for register, value in [
        (mmio.STATUS, 3),
        (mmio.DRIVER_FEATURES_SEL, 1),
        (mmio.DRIVER_FEATURES, 1),
        (mmio.STATUS, 11),
        (mmio.QUEUE_NUM, 8),
        (mmio.QUEUE_DESC_LOW, QUEUE),
        (mmio.QUEUE_DRIVER_LOW, QUEUE + 0x1000),
        (mmio.QUEUE_DEVICE_LOW, QUEUE + 0x2000),
        (mmio.QUEUE_READY, 1),
        (mmio.STATUS, 15),
    ]:
        device.write(register, 4, value)


def request(machine: Virt, kind: int, sector: int, buffers: list[tuple[int, int]], slot: int = 0) -> int:
    """The status of a request whose data is at these (pa, length), or 255 where the device had none."""
    driver(machine, slot)
    ram = machine.ram
    ram.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
    ram.write(STATUS, b"\xff")
    rows = [(HEADER, 16, 0), *((pa, length, 0 if kind == T_OUT else 2) for pa, length in buffers), (STATUS, 1, 2)]
    for n, (pa, length, flags) in enumerate(rows):
        more = n + 1 < len(rows)
        ram.write(QUEUE + 16 * n, struct.pack("<QIHH", pa, length, flags | more, n + 1))
    ram.write(QUEUE + 0x1000, struct.pack("<HHH", 0, 1, 0))
    machine.slots[slot].write(mmio.QUEUE_NOTIFY, 4, 0)
    began = machine.clock.now()
    machine.clock.jump()
    machine.clock.fire()
    assert machine.clock.now() == began + LATENCY_NS
    return ram.read(STATUS, 1)[0]


WILD = st.one_of(st.integers(0, (1 << 64) - 1), st.integers((1 << 64) - 64, (1 << 64) - 1))
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([T_IN, T_OUT, T_OUT, 4, 8, T_DISCARD, T_WRITE_ZEROES, 0xFFFF_FFFF]),
        st.one_of(st.integers(0, 40), st.integers(1 << 55, (1 << 55) + 40), WILD),
        st.lists(
            st.tuples(
                st.one_of(st.integers(DATA, DATA + 0x1_0000), WILD),
                st.one_of(st.integers(0, 40).map(lambda n: n * SECTOR), st.integers(0, 0xFFFF_FFFF)),
            ),
            max_size=5,
        ),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), st.sampled_from(["rw", "ro", "shared", "cow"]), REQUESTS)
def test_hostile_requests_reach_nothing_else(
    depth: int, mode: Mode, requests: list[tuple[int, int, list[tuple[int, int]]]]
) -> None:
    """Whatever the sector, the lengths and the addresses: all sectors around are as they were, none of them was read,
    and the neighbour and this one are still served.
    """
    platter = Platter(96)
    platter.data[:] = b"\xee" * platter.size
    own = range(40 * SECTOR, 60 * SECTOR)
    platter.data[own.start : own.stop] = b"\x11" * len(own)
    machine: Virt = virt(48 * MiB, engine="reference", disks=[platter])
    for level in range(1, depth):
        monitor = Monitor(machine)
        machine = monitor.create("outer", (48 - 12 * level) * MiB, disks=monitor.full_packs())
    monitor = Monitor(machine)
    guest = give(monitor, monitor.minidisk(extent(50, 10), extent(40, 10), mode=mode))
    other = give(monitor, monitor.minidisk(extent(60, 20)), name="other")
    for kind, sector, buffers in requests:
        request(guest, kind, sector, buffers)
    around = bytearray(platter.data)
    del around[own.start : own.stop]
    assert around == b"\xee" * len(around)
    assert not any(b"\xee" * 16 in frame for number, frame in guest.ram.frames() if number >= (DATA - QUEUE) >> 12)
    if mode in ("ro", "cow"):
        assert platter.data[own.start : own.stop] == b"\x11" * len(own)
    assert request(guest, T_IN, 19, [(DATA, SECTOR)]) == 0
    assert request(guest, T_IN, 20, [(DATA, SECTOR)]) == 1
    assert request(guest, T_OUT, 0, [(DATA, SECTOR)]) == (1 if mode == "ro" else 0)
    assert request(other, T_IN, 0, [(DATA, 20 * SECTOR)]) == 0
    assert other.ram.read(DATA, 20 * SECTOR) == b"\xee" * 20 * SECTOR


@pytest.mark.parametrize("mode", ["rw", "ro", "shared", "cow"])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(16 * SECTOR, 1), (15 * SECTOR, SECTOR + 1), (-1, 1), (-SECTOR, SECTOR), (1 << 64, SECTOR), (0, 1 << 64), (8, -1)],
)
def test_request_of_a_monitor_is_verified_too(mode: Mode, offset: int, length: int) -> None:
    """A machine's monitor reaches its disks without a driver, and no more of them than a driver does."""
    platter = Platter(64)
    before = bytes(platter.data)
    monitor = Monitor(host(platter))
    disk = give(monitor, monitor.minidisk(extent(30, 8), extent(8, 8), mode=mode)).disks[0]
    with pytest.raises(OSError, match=f"no {length} bytes at {offset} of a minidisk of 8192"):
        disk.read(offset, length)
    with pytest.raises(OSError, match="of a minidisk of 8192"):
        disk.write(offset, bytes(9000))
    for change in (disk.discard, disk.zero):
        with pytest.raises(OSError, match="of a minidisk of 8192"):
            change(offset, length)
    if mode == "ro":
        with pytest.raises(OSError, match="read-only"):
            disk.write(0, b"x")
        for change in (disk.discard, disk.zero):
            with pytest.raises(OSError, match="read-only"):
                change(0, 1)
    assert platter.data == before


def under_way(machine: Virt, sector: int, content: bytes) -> None:
    """A write of a sector that the device has been told of."""
    machine.ram.write(DATA, content * (SECTOR // len(content)))
    rows = [(HEADER, 16, 1, 1), (DATA, SECTOR, 1, 2), (STATUS, 1, 2, 0)]
    machine.ram.write(HEADER, struct.pack("<IIQ", T_OUT, 0, sector))
    machine.ram.write(QUEUE, b"".join(struct.pack("<QIHH", *row) for row in rows))
    (count,) = struct.unpack("<H", machine.ram.read(QUEUE + 0x1002, 2))
    machine.ram.write(QUEUE + 0x1002, (count + 1).to_bytes(2, "little"))
    machine.slots[0].write(mmio.QUEUE_NOTIFY, 4, 0)


class Slow(Platter):
    """A disk that takes its time, and is asked for one thing at a time."""

    def __init__(self, sectors: int, seconds: float) -> None:
        super().__init__(sectors)
        self.seconds, self.doing = seconds, 0

    def _begin(self, what: str, offset: int, length: int) -> None:
        self.doing += 1
        assert self.doing == 1
        time.sleep(self.seconds)
        super()._begin(what, offset, length)
        self.doing -= 1


def test_requests_of_machines_that_share_a_disk_keep_their_order() -> None:
    """However slow it is: by the virtual clock the last to be told of is what is there. One has it through a minidisk
    that lies on another disk too, and one through a machine in between; what a new minidisk finds is behind them all.
    """
    found = []
    for seconds in (0.0, 0.002):
        platters = Slow(64, seconds), Slow(64, seconds)
        monitor = Monitor(host(*platters))
        one = give(monitor, monitor.minidisk(extent(0, 16), mode="shared"), name="one")
        two = give(monitor, monitor.minidisk(extent(0, 8, disk=1), extent(8, 8), mode="shared"), name="two")
        outer = monitor.create("outer", 16 * MiB, disks=[monitor.minidisk(extent(0, 16), mode="shared")])
        above = Monitor(outer)
        three = give(above, above.minidisk(extent(4, 12)), name="three")
        for machine in (one, two, three):
            driver(machine)
        for n in range(4):
            under_way(one, 8, b"1%03d" % n)
            under_way(two, 8, b"2%03d" % n)
            under_way(three, 4 + n % 2, b"3%03d" % n)
        if seconds:
            seen = give(monitor, monitor.minidisk(extent(8, 8), mode="shared"), name="new").disks[0]
            monitor.destroy("two")
            above.destroy("three")
            assert seen.read(0, SECTOR) == b"2003" * 128
        else:
            for machine in (one, two, three):
                machine.settle()
        found.append([bytes(platter.data) for platter in platters])
        assert found[-1][0][8 * SECTOR : 9 * SECTOR] == b"2003" * 128
        assert found[-1][0][9 * SECTOR : 10 * SECTOR] == b"3003" * 128
    assert found[0] == found[1]


def test_released_minidisk_has_what_was_written_to_it() -> None:
    """A machine that is destroyed, and one whose disk is taken away, with requests under way."""
    for destroyed in (True, False):
        platter = Slow(64, 0.005)
        monitor = Monitor(host(platter))
        guest = give(monitor, monitor.minidisk(extent(8, 8)))
        driver(guest)
        for n in range(4):
            under_way(guest, n, b"%04d" % n)
        if destroyed:
            monitor.destroy("guest")
        else:
            release(guest.disks)
        assert platter.data[8 * SECTOR : 12 * SECTOR] == b"".join(b"%04d" % n * 128 for n in range(4))


def test_medium_errors_are_the_askers() -> None:
    """A guest whose sectors cannot be read gets a status, and its neighbour on the same disk notices nothing."""
    bad, good = Platter(64), Platter(64)
    monitor = Monitor(host(bad, good))
    one = give(monitor, monitor.minidisk(extent(0, 8), extent(0, 8, disk=1)), name="one")
    two = give(monitor, monitor.minidisk(extent(8, 8, disk=1)), name="two")
    bad.fails = lambda _: True
    assert request(one, T_IN, 7, [(DATA, 2 * SECTOR)]) == 1
    assert request(one, T_IN, 8, [(DATA, SECTOR)]) == 0
    assert request(two, T_OUT, 0, [(DATA, 8 * SECTOR)]) == 0


# Whole guests


@pytest.mark.parametrize("mode", ["rw", "ro", "shared", "cow"])
def test_selftest_on_minidisks_is_the_bare_machines(mode: Mode) -> None:
    """Corral reads its disk, polling and by interrupt, at depth 3; a neighbour has the same disk where it can."""
    platter = Platter(64)
    alone = selftest(virt(32 * MiB, disks=[Platter(32, readonly=mode == "ro")]))
    outer = nested(2, 96 * MiB, disks=[platter])
    monitor = Monitor(outer)
    for name in ["one"] if mode == "rw" else ["one", "two"]:
        guest = monitor.create(name, 32 * MiB, disks=[monitor.minidisk(extent(0, 32), mode=mode)])
        assert selftest(guest) == alone


def answer(machine: Virt, command: str) -> str:
    """What a command prints at Debian's shell."""
    machine.console.send(command + "\n")
    machine.console.expect("\r\n")
    return machine.console.expect(r"(?s)(.*?)[^\n]*:~# ")[1].strip()


def work(machine: Virt, image: Image) -> str:
    """Debian writes to one disk, copies it to the other, reads both again; the digest behind that."""
    load(machine, image.kernel, initrd=[image.initrd], append=image.append())
    machine.console.expect(":~# ", timeout=2)
    for command in (
        "head -c 400000 /dev/urandom >/tmp/data",
        "cat /tmp/data >/dev/vda; sync",
        "dd if=/dev/vda of=/dev/vdb bs=4096 count=97 seek=20 2>&1; sync",
        "echo 3 >/proc/sys/vm/drop_caches",
        "dd if=/dev/vdb bs=4096 count=97 skip=20 of=/tmp/back 2>&1",
    ):
        answer(machine, command)
    sums = [answer(machine, f"head -c 397312 {name} | md5sum") for name in ("/tmp/data", "/dev/vda", "/tmp/back")]
    assert len(set(sums)) == 1 and len(sums[0].split()[0]) == 32
    return machine.digest()


def test_debian_works_on_two_minidisks_as_on_two_disks(debian: Image, tmp_path: Path) -> None:
    """Both are parts of one file, at depth 2, one in two extents and one copy on write: digest and bytes are those of
    the bare machine with two files of the same contents, and the rest of the file is as it was.
    """
    size, path = 4 * MiB, tmp_path / "disk"
    contents = os.urandom(20 * MiB)
    delta = Extent(14 * MiB, delta_size(size))
    end = delta.start + delta.size
    path.write_bytes(contents[: delta.start] + bytes(delta.size) + contents[end:])
    pieces = Extent(5 * MiB, 3 * MiB), Extent(2 * MiB, MiB)
    first = b"".join(contents[piece.start :][: piece.size] for piece in pieces)
    second = contents[9 * MiB :][:size]
    (tmp_path / "first").write_bytes(first)
    (tmp_path / "second").write_bytes(second)
    with RawDisk(tmp_path / "first") as one, RawDisk(tmp_path / "second") as two:
        alone = work(virt(128 * MiB, disks=[one, two]), debian)
    written = (tmp_path / "first").read_bytes(), (tmp_path / "second").read_bytes()
    assert written[0] != first and written[1] != second

    with RawDisk(path) as disk:
        monitor = Monitor(nested(1, 160 * MiB, disks=[disk]))
        disks = monitor.minidisk(*pieces), monitor.minidisk(Extent(9 * MiB, size), mode="cow", delta=delta)
        guest = monitor.create("guest", 128 * MiB, disks=disks)
        assert work(guest, debian) == alone
        assert (disks[0].read(0, size), disks[1].read(0, size)) == written
    now = path.read_bytes()
    assert now[5 * MiB : 8 * MiB] + now[2 * MiB : 3 * MiB] == written[0]
    others = [(0, 2 * MiB), (3 * MiB, 5 * MiB), (8 * MiB, 14 * MiB), (end, 20 * MiB)]
    assert all(now[a:b] == contents[a:b] for a, b in others)

    with RawDisk(path) as disk:
        monitor = Monitor(nested(1, 32 * MiB, disks=[disk]))
        again = give(monitor, monitor.minidisk(Extent(9 * MiB, size), mode="cow", delta=delta))
        assert again.disks[0].read(0, size) == written[1]
