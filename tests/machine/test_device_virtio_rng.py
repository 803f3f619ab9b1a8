"""The entropy device: its bytes, and what a hostile driver gets of it."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from virtio_driver import AVAIL, BASE, DATA, DESC, INDIRECT, RAM_BYTES, TABLE, WRITE, EntropyDriver

from ringfence import MiB, Monitor, virt
from ringfence.machine.board import RNG
from ringfence.machine.clock import NEVER
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_request import LATENCY_NS
from ringfence.machine.device.virtio_rng import BUFFER_MAX, HostEntropy, SeededEntropy


@given(st.binary(max_size=64), st.lists(st.integers(0, 300), max_size=20))
def test_seeded_entropy_is_one_sequence(seed: bytes, lengths: list[int]) -> None:
    """However it is cut, it is the same bytes; another seed has others."""
    source = SeededEntropy(seed)
    whole = source.read(0, sum(lengths))
    position = 0
    for length in lengths:
        assert source.read(position, length) == whole[position : position + length]
        position += length
    assert len(whole) == position
    assert SeededEntropy(seed + b"x").read(0, 32) != source.read(0, 32)
    assert source.read((1 << 64) - 1, 64) != source.read(0, 64)


def test_virtio_rng_has_no_configuration_and_one_queue() -> None:
    """Section 5.4: device 4, no features but those of rings, no fields."""
    driver = EntropyDriver()
    assert driver.get(mmio.DEVICE_ID) == 4
    assert driver.get(mmio.DEVICE_FEATURES) == 3 << 28
    assert driver.device.read(mmio.CONFIG, 8) == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(0, 40_000), min_size=1, max_size=4), max_size=8), st.booleans())
def test_virtio_rng_gives_the_sequence(requests: list[list[int]], indirect: bool) -> None:
    """Each buffer gets the next bytes, at most so many, into its pieces in order, and nothing else is written."""
    driver = EntropyDriver()
    position = 0
    for lengths in requests:
        if sum(lengths) == 0:
            continue
        driver.memory.data[DATA - BASE :] = bytes(RAM_BYTES - (DATA - BASE))
        used = driver.ask([(DATA + 40_001 * n, length, WRITE) for n, length in enumerate(lengths)], indirect)
        assert used == min(sum(lengths), BUFFER_MAX)
        got = b"".join(driver.memory.read(DATA + 40_001 * n, length) for n, length in enumerate(lengths))
        assert got == driver.entropy.read(position, used) + bytes(sum(lengths) - used)
        assert not any(driver.memory.read(DATA + 40_001 * n + length, 1)[0] for n, length in enumerate(lengths))
        position += used
        assert driver.device.position == position


def test_virtio_rng_gives_nothing_twice() -> None:
    """A reset forgets the queue, not what was given; a restored device goes on where it was."""
    driver = EntropyDriver()
    found = []
    for _ in range(3):
        driver.start()
        driver.ask()
        found.append(driver.memory.read(DATA, 40))
    assert len(set(found)) == 3
    state = driver.device.snapshot()
    driver.ask()
    once = driver.memory.read(DATA, 40)
    other = EntropyDriver()
    other.device.restore(state)
    other.start()
    other.ask()
    assert other.memory.read(DATA, 40) == once


def test_virtio_rng_answers_at_its_latency() -> None:
    """20 us behind the notification, or behind the last answer."""
    driver = EntropyDriver()
    driver.descriptors(DESC, driver.plain())
    driver.offer()
    driver.offer()
    driver.notify()
    assert driver.clock.next_event() == LATENCY_NS
    driver.clock.steps += LATENCY_NS - 1
    driver.clock.fire()
    assert driver.used() is None and not any(driver.memory.read(DATA, 40))
    driver.clock.steps += 1
    driver.clock.fire()
    assert driver.used() == (0, 64) and driver.used() is None
    assert driver.clock.next_event() == 2 * LATENCY_NS


def nothing_writable(driver: EntropyDriver) -> None:
    driver.descriptors(DESC, [(DATA, 64, 0)])


def no_room(driver: EntropyDriver) -> None:
    driver.descriptors(DESC, [(DATA, 0, WRITE), (DATA, 0, WRITE)])


def outside(driver: EntropyDriver) -> None:
    driver.descriptors(DESC, [(DATA, 8, WRITE), (BASE + RAM_BYTES - 7, 8, WRITE)])


def nowhere(driver: EntropyDriver) -> None:
    driver.descriptors(DESC, [((1 << 64) - 8, 0xFFFF_FFFF, WRITE)])


@pytest.mark.parametrize("breakage", [nothing_writable, no_room, outside, nowhere])
def test_virtio_rng_bad_buffer_stops_the_device_until_reset(breakage: Callable[[EntropyDriver], None]) -> None:
    """There is no status to tell of it."""
    driver = EntropyDriver()
    driver.offer()
    breakage(driver)
    driver.notify()
    driver.run()
    assert driver.needs_reset and driver.used() is None
    driver.notify()
    assert driver.clock.next_event() == NEVER
    driver.start()
    assert driver.ask() == 64


DESCRIPTORS = st.lists(
    st.tuples(
        st.one_of(st.integers(BASE, BASE + RAM_BYTES), st.integers(0, (1 << 64) - 1), st.just(TABLE)),
        st.one_of(st.sampled_from([0, 1, 16, 32, 64, 1 << 20]), st.integers(0, 0xFFFF_FFFF)),
        st.sampled_from([0, 1, WRITE, WRITE, WRITE | 1, INDIRECT, 7]),
        st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
    ),
    max_size=10,
)


@settings(deadline=None, max_examples=300)
@given(DESCRIPTORS, DESCRIPTORS, st.lists(st.integers(0, 9), max_size=8), st.integers(0, 12))
def test_virtio_rng_hostile_queue_costs_a_bounded_amount(
    table: list[tuple[int, int, int, int]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    index: int,
) -> None:
    """Whatever is in the rings, each event gives a bounded number of bytes, and the events end."""
    driver = EntropyDriver()
    for place, rows in ((DESC, table), (TABLE, indirect)):
        for n, row in enumerate(rows):
            driver.store(place + 16 * n, "<QIHH", *row)
    for n, head in enumerate(heads):
        driver.store(AVAIL + 4 + 2 * n, "<H", head)
    driver.store(AVAIL + 2, "<H", index)
    driver.notify()
    for _ in range(1000):
        if not driver.clock.jump():
            break
        accesses, given = driver.memory.accesses, driver.device.position
        driver.clock.fire()
        assert driver.memory.accesses - accesses < 500
        assert driver.device.position - given <= BUFFER_MAX
    assert driver.memory.largest <= BUFFER_MAX
    driver.start()
    assert driver.ask() == 64


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 0x43), st.one_of(st.integers(0, 255), st.integers(0, 0xFFFF_FFFF)))),
    st.data(),
)
def test_virtio_rng_registers_take_noise_beside_a_queue(writes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Random writes to the registers of a device at work raise nothing, and a reset makes it work again."""
    driver = EntropyDriver()
    driver.descriptors(DESC, driver.plain())
    driver.offer()
    for register, value in writes:
        driver.put(4 * register, value)
        if data.draw(st.booleans()):
            driver.notify()
        driver.clock.steps += 7000
        driver.clock.fire()
    driver.put(mmio.QUEUE_SEL, 0)
    driver.start()
    assert driver.ask() == 64


def test_virtio_rng_is_on_every_board() -> None:
    """Behind the disks' slots; with the same inputs the same bytes, at any depth; another seed, others."""
    bare = virt(32 * MiB, engine="reference")
    guest = Monitor(bare).create("guest", 4 * MiB)
    other = virt(4 * MiB, engine="reference", rng_seed=bytes(32))
    for board in (bare, guest, other):
        assert board.bus.read(RNG + mmio.DEVICE_ID, 4) == 4
    first, second, third = (board.rng.entropy.read(0, 64) for board in (bare, guest, other))
    assert first == second != third
    assert b"rng@10009000" in bare.device_tree()


def test_virtio_rng_is_the_hosts_where_the_clock_is() -> None:
    """Unless there is a seed."""
    made = [virt(4 * MiB, engine="reference", clock="host") for _ in range(2)]
    assert all(isinstance(board.rng.entropy, HostEntropy) for board in made)
    assert len({board.rng.entropy.read(0, 32) for board in made}) == 2
    seeded = virt(4 * MiB, engine="reference", clock="host", rng_seed=bytes(32))
    assert seeded.rng.entropy.read(0, 32) == virt(4 * MiB, rng_seed=bytes(32), engine="reference").rng.entropy.read(
        0, 32
    )
