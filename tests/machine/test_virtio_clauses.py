"""What VIRTIO 1.2 says that a device MUST do, clause by clause.

Left out are clauses on what no device here has:
    packed virtqueues (2.8), VIRTIO_F_IN_ORDER (2.7.9, 6.2), VIRTIO_F_RING_RESET (2.6.1, QueueReset in 4.2.2.1)
    shared memory regions (2.10), administration of groups, PCI and channel I/O (4.1, 4.3), VIRTIO_F_SR_IOV (6.2)
    legacy interfaces, at the end of most sections
    VIRTIO_BLK_F_CONFIG_WCE, LIFETIME and SECURE_ERASE (5.2.5.2, 5.2.6.2)
    changes of a configuration, which never changes here (ConfigGeneration in 4.2.2.1)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
from virtio_driver import (
    AVAIL,
    BASE,
    DATA,
    DESC,
    INDIRECT,
    NEXT,
    SECTOR,
    STATUS_BYTE,
    TABLE,
    USED,
    WRITE,
    BlockDriver,
    Driver,
    EntropyDriver,
    Platter,
    Rows,
    ShareDriver,
)

from ringfence.machine.clock import NEVER
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_blk import S_IOERR, S_OK, S_UNSUPP, T_DISCARD, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES

VERSION_1, EVENT_IDX, INDIRECT_DESC = 1 << 32, 1 << 29, 1 << 28
Make = Callable[..., Driver]


def offered(driver: Driver) -> int:
    found = 0
    for half in (0, 1):
        driver.put(mmio.DEVICE_FEATURES_SEL, half)
        found |= driver.get(mmio.DEVICE_FEATURES) << 32 * half
    return found


def waiting(driver: Driver) -> None:
    """A request is in the queue, and the device has been told."""
    driver.descriptors(DESC, driver.plain())
    driver.offer()
    driver.notify()


def untouched(driver: Driver) -> bool:
    """The device uses nothing, whatever it is told, and the line is low."""
    before = driver.memory.accesses
    driver.notify()
    driver.run()
    return driver.memory.accesses == before and not driver.wire.level and driver.used() is None


# 2.1 to 2.5: status, features, reset, configuration


def idle_before_driver_ok(make: Make) -> None:
    driver = make()
    driver.put(mmio.STATUS, 0)
    driver.put(mmio.STATUS, 3)
    driver.accept(driver.FEATURES)
    for status in (3, 11):
        driver.put(mmio.STATUS, status)
        driver.queue()
        driver.descriptors(DESC, driver.plain())
        driver.offer()
        assert untouched(driver)


def error_is_told(make: Make) -> None:
    driver = make()
    driver.store(DESC, "<QIHH", DATA, 16, NEXT, 8)
    driver.offer()
    driver.notify()
    driver.run()
    assert driver.needs_reset
    assert driver.wire.level and driver.get(mmio.INTERRUPT_STATUS) & mmio.CONFIG_CHANGE


def offers_what_it_knows(make: Make) -> None:
    driver = make()
    assert offered(driver) & ~(1 << 0 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 3 << 13 | 3 << 28 | 1 << 32) == 0


def accepts_subsets(make: Make) -> None:
    driver = make()
    everything = offered(driver)
    subsets = [everything, VERSION_1, *(everything & ~(1 << bit) for bit in range(32)), VERSION_1 | INDIRECT_DESC]
    for features in subsets:
        driver.start(features)
        assert driver.get(mmio.STATUS) == 15
        driver.ask()


def refuses_others(make: Make) -> None:
    driver = make()
    for bit in range(64):
        if not offered(driver) >> bit & 1:
            driver.start(VERSION_1 | 1 << bit)
            assert not driver.get(mmio.STATUS) & mmio.FEATURES_OK
            assert untouched(driver)


def refuses_others_beyond(make: Make) -> None:
    driver = make()
    driver.put(mmio.STATUS, 0)
    driver.put(mmio.STATUS, 3)
    driver.accept(VERSION_1)
    driver.put(mmio.DRIVER_FEATURES_SEL, 2)
    driver.put(mmio.DRIVER_FEATURES, 0)
    driver.put(mmio.STATUS, 11)
    assert driver.get(mmio.STATUS) == 11
    driver.put(mmio.STATUS, 0)
    driver.put(mmio.STATUS, 3)
    driver.put(mmio.DRIVER_FEATURES_SEL, 2)
    driver.put(mmio.DRIVER_FEATURES, 1)
    driver.accept(VERSION_1)
    driver.put(mmio.STATUS, 11)
    assert driver.get(mmio.STATUS) == 3
    driver.start()
    assert driver.get(mmio.STATUS) == 15


def negotiates_again(make: Make) -> None:
    driver = make()
    for _ in range(3):
        driver.start()
        assert driver.get(mmio.STATUS) == 15
        driver.ask()


def reset_clears_status(make: Make) -> None:
    driver = make()
    for status in (15, 15 | mmio.FAILED):
        driver.start()
        driver.put(mmio.STATUS, status)
        driver.put(mmio.STATUS, 0)
        assert driver.get(mmio.STATUS) == 0
    driver.start()
    error_is_told(lambda: driver)
    driver.put(mmio.STATUS, 0)
    assert driver.get(mmio.STATUS) == 0


def reset_ends_all(make: Make) -> None:
    driver = make()
    waiting(driver)
    driver.put(mmio.STATUS, 0)
    assert driver.clock.next_event() == NEVER
    assert untouched(driver)


def configuration_before_features(make: Make) -> None:
    driver = make()
    fields = [driver.get(mmio.CONFIG + at) for at in range(0, 0x60, 4)]
    for status in (0, 1, 3):
        driver.put(mmio.STATUS, status)
        assert [driver.get(mmio.CONFIG + at) for at in range(0, 0x60, 4)] == fields


# 2.7: split virtqueues


def any_arrangement(make: Make) -> None:
    """The same request in pieces of a byte, of three bytes, with empty ones between, and descriptors backwards."""
    for size in (1, 3, 7):
        driver = make()
        used = driver.ask()
        expected = bytes(driver.memory.data[DATA - BASE : DATA - BASE + 64])
        driver = make()
        rows: Rows = []
        for pa, length, flags in driver.plain():
            if length > 64:  # the device's limit of descriptors
                rows += [(pa, 64, flags), (pa + 64, 0, flags), (pa + 64, length - 64, flags)]
                continue
            rows += [(pa + at, min(size, length - at), flags) for at in range(0, length, size)]
        count = len(rows)
        driver.store(DESC, "<QIHH", TABLE, 16 * count, INDIRECT, 0)
        places = [0, *range(count - 1, 0, -1)]
        for (place, after), (pa, length, flags) in zip([*pairwise(places), (places[-1], None)], rows, strict=True):
            driver.store(TABLE + 16 * place, "<QIHH", pa, length, flags | (after is not None), after or 0)
        driver.offer()
        driver.notify()
        driver.run()
        assert driver.used() == (0, used)
        if isinstance(driver, BlockDriver):
            assert driver.memory.data[DATA - BASE : DATA - BASE + 64] == expected


def writes_nothing_else(make: Make) -> None:
    """Neither readable buffers nor descriptors, in a queue or a table."""
    for indirect in (False, True):
        driver = make()
        driver.ask(indirect=indirect)
        allowed = [(pa, pa + length) for pa, length, flags in driver.plain() if flags & WRITE]
        allowed.append((USED + 2, USED + 4 + 8 * driver.num + 2))
        for pa, length in driver.memory.written:
            assert any(first <= pa and pa + length <= last for first, last in allowed)


def indirect_ignores_write(make: Make) -> None:
    for flags in (INDIRECT, INDIRECT | WRITE):
        driver = make()
        rows = driver.plain()
        driver.descriptors(TABLE, rows)
        driver.store(DESC, "<QIHH", TABLE, 16 * len(rows), flags, 0)
        driver.offer()
        driver.notify()
        driver.run()
        used = driver.used()
        assert used is not None and used[1] and not driver.needs_reset


def indirect_behind_chained(make: Make) -> None:
    whole = make().ask()
    for direct in range(len(make().plain())):
        driver = make()
        rows = driver.plain()
        driver.descriptors(TABLE, rows[direct:])
        driver.descriptors(DESC, [*rows[:direct], (TABLE, 16 * len(rows[direct:]), INDIRECT)])
        driver.offer()
        driver.notify()
        driver.run()
        assert driver.used() == (0, whole)


def interrupts_by_flags(make: Make) -> None:
    """And whatever used_event says."""
    driver = make(features=VERSION_1)
    for n in range(20):
        driver.put(mmio.INTERRUPT_ACK, 1)
        driver.store(AVAIL, "<H", n & 1)
        driver.store(AVAIL + 4 + 2 * driver.num, "<H", n if n & 2 else n + 5)
        driver.ask()
        assert driver.wire.level == bool(driver.get(mmio.INTERRUPT_STATUS) & 1) == (not n & 1)


def interrupts_by_event(make: Make) -> None:
    """And whatever flags say."""
    driver = make(features=VERSION_1 | EVENT_IDX)
    for n, event in enumerate([0, 0, 2, 5, 4, 5, 65535]):
        driver.put(mmio.INTERRUPT_ACK, 1)
        driver.store(AVAIL, "<H", n & 1)
        driver.store(AVAIL + 4 + 2 * driver.num, "<H", event)
        driver.ask()
        assert driver.wire.level == bool(driver.get(mmio.INTERRUPT_STATUS) & 1) == (event == n)
    driver.device.last_avail[0] = driver.device.used_idx[0] = driver.avail = driver.seen = 65535
    driver.store(AVAIL + 4 + 2 * driver.num, "<H", 65535)
    driver.put(mmio.INTERRUPT_ACK, 1)
    driver.ask()
    assert driver.wire.level


def length_before_index(make: Make) -> None:
    driver = make()
    driver.ask()
    elements = [n for n, (pa, _) in enumerate(driver.memory.written) if USED + 4 <= pa < USED + 4 + 8 * driver.num]
    indexes = [n for n, (pa, _) in enumerate(driver.memory.written) if pa == USED + 2]
    assert len(indexes) == 1 and max(elements) < indexes[0]


def data_before_index(make: Make) -> None:
    driver = make()
    rows = driver.plain()
    length = driver.ask(rows)
    index = driver.memory.written.index((USED + 2, 2))
    stored = {at for pa, n in driver.memory.written[:index] for at in range(pa, pa + n)}
    writable = [at for pa, n, flags in rows if flags & WRITE for at in range(pa, pa + n)]
    assert length <= len(writable) and stored.issuperset(writable[:length])


def used_flags(make: Make) -> None:
    for features in (VERSION_1, VERSION_1 | EVENT_IDX):
        driver = make(features=features)
        for _ in range(3):
            driver.ask()
            assert driver.load(USED, "<H") == (0,)


def spurious_notifications(make: Make) -> None:
    driver = make()
    for _ in range(5):
        driver.notify()
        driver.run()
    assert driver.used() is None and not driver.wire.level and not driver.needs_reset
    waiting(driver)
    for _ in range(5):
        driver.notify()
    driver.run()
    assert driver.used() is not None and driver.used() is None


def told_when_looking_ends(make: Make) -> None:
    """avail_event is where the device has come to: the driver tells it of the next buffer."""
    driver = make(features=VERSION_1 | EVENT_IDX)
    for n in range(1, 12):
        driver.ask()
        assert driver.load(USED + 4 + 8 * driver.num, "<H") == (n,)


# 4.2: registers


def magic_and_version(make: Make) -> None:
    driver = make()
    assert driver.get(mmio.MAGIC_VALUE) == 0x7472_6976
    assert driver.get(mmio.VERSION) == 2


def events_until_acknowledged(make: Make) -> None:
    driver = make(features=VERSION_1)
    assert driver.get(mmio.INTERRUPT_STATUS) == 0
    driver.ask()
    for acknowledged in (0, 2):
        driver.put(mmio.INTERRUPT_ACK, acknowledged)
        assert driver.get(mmio.INTERRUPT_STATUS) == 1 and driver.wire.level
    error_is_told(lambda: driver)
    assert driver.get(mmio.INTERRUPT_STATUS) == 3
    driver.put(mmio.INTERRUPT_ACK, 1)
    assert driver.get(mmio.INTERRUPT_STATUS) == 2 and driver.wire.level
    driver.put(mmio.INTERRUPT_ACK, 2)
    assert driver.get(mmio.INTERRUPT_STATUS) == 0 and not driver.wire.level


def reset_clears_registers(make: Make) -> None:
    driver = make(features=VERSION_1)
    driver.ask()
    driver.put(mmio.STATUS, 0)
    assert driver.get(mmio.INTERRUPT_STATUS) == 0 and not driver.wire.level
    for queue in range(4):
        driver.put(mmio.QUEUE_SEL, queue)
        assert driver.get(mmio.QUEUE_READY) == 0


def generation_stays(make: Make) -> None:
    driver = make()
    before = driver.get(mmio.CONFIG_GENERATION)
    driver.ask()
    assert driver.get(mmio.CONFIG_GENERATION) == before


def queue_that_is_not_ready(make: Make) -> None:
    driver = make()
    waiting(driver)
    driver.put(mmio.QUEUE_READY, 0)
    assert driver.get(mmio.QUEUE_READY) == 0
    assert untouched(driver)


def queues_there_are(make: Make) -> None:
    driver = make()
    assert driver.get(mmio.QUEUE_NUM_MAX_REGISTER) >= driver.num
    for queue in (1, 2, 0xFFFF_FFFF):
        driver.put(mmio.QUEUE_SEL, queue)
        assert driver.get(mmio.QUEUE_NUM_MAX_REGISTER) == 0


def no_shared_memory(make: Make) -> None:
    driver = make()
    for region in (0, 1, 255):
        driver.put(0x0AC, region)
        assert [driver.get(at) for at in range(mmio.SHM_FIRST, mmio.SHM_LAST + 1, 4)] == [0xFFFF_FFFF] * 4


def version_1_offered(make: Make) -> None:
    assert offered(make()) & VERSION_1


ANY: list[tuple[str, str, Callable[[Make], None]]] = [
    ("2.1.2", "uses no buffer and does not interrupt before DRIVER_OK", idle_before_driver_ok),
    ("2.1.2", "in an error DEVICE_NEEDS_RESET, then a configuration change notification", error_is_told),
    ("2.2.2", "offers no feature that needs one which it does not offer", offers_what_it_knows),
    ("2.2.2", "accepts any valid subset", accepts_subsets),
    ("2.2.2", "fails FEATURES_OK for what was not offered", refuses_others),
    ("2.2.2", "and for features that there are not", refuses_others_beyond),
    ("2.2.2", "accepts again what it accepted before a reset", negotiates_again),
    ("2.4.1", "status is 0 after a reset", reset_clears_status),
    ("2.4.1", "leaves queues alone and does not interrupt after a reset", reset_ends_all),
    ("2.5.2", "configuration can be read before FEATURES_OK", configuration_before_features),
    ("2.7.4.1", "assumes nothing of how descriptors are arranged", any_arrangement),
    ("2.7.5.1", "writes to no readable buffer, and to no descriptor", writes_nothing_else),
    ("2.7.5.3.2", "ignores WRITE of the descriptor of a table", indirect_ignores_write),
    ("2.7.5.3.2", "takes a table behind chained descriptors", indirect_behind_chained),
    ("2.7.7.2", "without EVENT_IDX interrupts where flags are 0, and ignores used_event", interrupts_by_flags),
    ("2.7.7.2", "with EVENT_IDX interrupts at used_event, and ignores flags", interrupts_by_event),
    ("2.7.8.2", "len is there before idx", length_before_index),
    ("2.7.8.2", "len bytes from the first writable one are there before idx", data_before_index),
    ("2.7.10.2", "used flags are 0 or 1, and 0 with EVENT_IDX", used_flags),
    ("2.7.10.2", "takes spurious notifications", spurious_notifications),
    ("2.7.10.2", "avail_event does not suppress a notification that is needed", told_when_looking_ends),
    ("4.2.2.1", "MagicValue and Version", magic_and_version),
    ("4.2.2.1", "InterruptStatus has each event until InterruptACK, and no other", events_until_acknowledged),
    ("4.2.2.1", "a reset clears InterruptStatus and every QueueReady", reset_clears_registers),
    ("4.2.2.1", "ConfigGeneration tells of changes", generation_stays),
    ("4.2.2.1", "leaves a queue alone whose QueueReady is 0", queue_that_is_not_ready),
    ("4.2.2", "QueueNumMax is 0 of a queue that there is not", queues_there_are),
    ("4.2.2", "a shared memory region that there is not has length and base -1", no_shared_memory),
    ("6.2", "offers VIRTIO_F_VERSION_1", version_1_offered),
]


@pytest.mark.parametrize("make", [BlockDriver, EntropyDriver, ShareDriver])
@pytest.mark.parametrize(("section", "clause", "check"), ANY, ids=[f"{row[0]}-{row[2].__name__}" for row in ANY])
def test_virtio_device_meets_the_clause(section: str, clause: str, check: Callable[[Make], None], make: Make) -> None:
    """Those for every device, by every device."""
    check(make)


# 5.2: the block device


def always_flush() -> None:
    for readonly in (False, True):
        assert offered(BlockDriver(Platter(readonly=readonly))) >> 9 & 1


def padding_is_zero() -> None:
    device = BlockDriver().device
    assert device.read(mmio.CONFIG + 33, 1) == 0
    assert device.read(mmio.CONFIG + 57, 1) == device.read(mmio.CONFIG + 58, 2) == 0


def read_only_is_not_written() -> None:
    driver = BlockDriver(Platter(readonly=True))
    assert offered(driver) >> 5 & 1
    before = bytes(driver.disk.data)
    for features in (BlockDriver.FEATURES, BlockDriver.FEATURES | 1 << 5):
        driver.start(features)
        assert driver.request(T_OUT, 0, [(DATA, SECTOR)])[0] == S_IOERR
    assert driver.disk.data == before


def stable_without_flush() -> None:
    driver = BlockDriver(features=VERSION_1)
    driver.descriptors(DESC, driver.rows(T_OUT, 0, [(DATA, SECTOR)]))
    driver.offer()
    driver.notify()
    driver.run()
    assert driver.used() is not None and driver.disk.flushes == 1


def stable_behind_flush() -> None:
    driver = BlockDriver()
    driver.request(T_OUT, 0, [(DATA, SECTOR)])
    order: list[str] = []
    driver.disk.flush = lambda: order.append("medium")  # type: ignore[method-assign]
    write = driver.memory.write

    def noted(pa: int, data: bytes) -> None:
        order.append("status" if pa == STATUS_BYTE else "ring")
        write(pa, data)

    driver.memory.write = noted  # type: ignore[method-assign]
    assert driver.request(T_FLUSH, 0, [])[0] == S_OK
    assert order[:2] == ["medium", "status"] and order.count("medium") == 1


def unknown_requests() -> None:
    for kind in (2, 3, 5, 10, 14, 1 << 31):
        driver = BlockDriver()
        assert driver.request(kind, 0, [(DATA, SECTOR)])[0] == S_UNSUPP


def capacity_is_kept() -> None:
    driver = BlockDriver()
    last = struct.unpack("<Q", driver.device.read(mmio.CONFIG, 8).to_bytes(8, "little"))[0]
    assert driver.request(T_IN, last - 1, [(DATA, SECTOR)])[0] == S_OK
    for kind in (T_IN, T_OUT):
        assert driver.request(kind, last, [(DATA, SECTOR)])[0] == S_IOERR


def unknown_flags() -> None:
    driver = BlockDriver(features=BlockDriver.FEATURES | 3 << 13)
    before = bytes(driver.disk.data)
    for bit in range(1, 32):
        for kind in (T_DISCARD, T_WRITE_ZEROES):
            assert driver.segments(kind, [(0, 1, 1 << bit)]) == S_UNSUPP
    assert driver.segments(T_DISCARD, [(0, 1, 0), (1, 1, 2)]) == S_UNSUPP
    assert driver.disk.data == before


def discard_does_not_unmap() -> None:
    driver = BlockDriver(features=BlockDriver.FEATURES | 3 << 13)
    assert driver.segments(T_DISCARD, [(0, 1, 1)]) == S_UNSUPP
    assert driver.segments(T_DISCARD, [(0, 1, 0)]) == S_OK


def zeroes_are_read() -> None:
    for unmap in (0, 1):
        driver = BlockDriver(features=BlockDriver.FEATURES | 3 << 13)
        assert driver.segments(T_WRITE_ZEROES, [(5, 3, unmap)]) == S_OK
        assert driver.request(T_IN, 4, [(DATA, 5 * SECTOR)])[0] == S_OK
        got = driver.memory.read(DATA, 5 * SECTOR)
        assert got[SECTOR:-SECTOR] == bytes(3 * SECTOR) and got[0] and got[-SECTOR]


# 5.4: the entropy device


def a_byte_at_least() -> None:
    driver = EntropyDriver()
    for length in (1, 2, 64, 0x1_0000, 0x1_0001, 0x2_0000):
        driver.memory.data[DATA - BASE :] = bytes(len(driver.memory.data) - (DATA - BASE))
        used = driver.ask([(DATA, length, WRITE)])
        assert 1 <= used <= length
        assert not any(driver.memory.read(DATA + used, 0x2_0000 - used))
        assert used < 64 or len(set(driver.memory.read(DATA, used))) > 16


BLOCK: list[tuple[str, str, Callable[[], None]]] = [
    ("5.2.5.2", "always offers VIRTIO_BLK_F_FLUSH", always_flush),
    ("5.2.5.2", "unused0 and unused1 are 0", padding_is_zero),
    ("5.2.6", "no request goes beyond capacity", capacity_is_kept),
    ("5.2.6", "S_UNSUPP for a request that it does not know", unknown_requests),
    ("5.2.6.2", "S_UNSUPP for a flag that is not known", unknown_flags),
    ("5.2.6.2", "S_UNSUPP for a discard with unmap", discard_does_not_unmap),
    ("5.2.6.2", "zeroes are read where zeroes were written, with unmap and without", zeroes_are_read),
    ("5.2.6.2", "with RO offered a write is S_IOERR, and writes nothing", read_only_is_not_written),
    ("5.2.6.2", "with FLUSH offered and not negotiated, a write that is complete is stable", stable_without_flush),
    ("5.2.6.2", "writes before a FLUSH are stable when it completes", stable_behind_flush),
]


ENTROPY: list[tuple[str, str, Callable[[], None]]] = [
    ("5.4.6.2", "one or more random bytes, and no more than there is room for", a_byte_at_least),
]
OWN = BLOCK + ENTROPY


@pytest.mark.parametrize(("section", "clause", "check"), OWN, ids=[f"{row[0]}-{row[2].__name__}" for row in OWN])
def test_virtio_device_meets_its_own_clause(section: str, clause: str, check: Callable[[], None]) -> None:
    """Those for block and entropy devices."""
    check()
