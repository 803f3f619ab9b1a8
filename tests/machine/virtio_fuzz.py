"""A driver that means harm to the virtio devices of one board, beside one that does not.

Cases come from a seed. One is a few accesses to a device's registers, or chains in its rings that look right but for
what was changed of them, or something from outside; then the machine goes on for a while. Nothing waits for what is in
flight. What must hold is in `Fuzz.run`.
"""

from __future__ import annotations

import gc
import os
import random
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from virtio_driver import INDIRECT, NEXT, SECTOR, WRITE, Echo, Rows
from virtio_polite import OWN, Cable, Medium, PoliteDriver

from ringfence.isa.spec import ISA
from ringfence.machine.board import MiB, virt
from ringfence.machine.clock import Source
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.device import AccessFault
from ringfence.machine.device.ninep import Share as DirectoryShare
from ringfence.machine.device.ninep_message import NAMED, NOFID, NOTAG, encode, message
from ringfence.machine.device.ninep_message import VERSION as PROTOCOL
from ringfence.machine.device.ports import ScriptPort
from ringfence.machine.device.virtio_9p import Share, Virtio9p
from ringfence.machine.device.virtio_blk import T_IN, T_OUT, VirtioBlk
from ringfence.machine.device.virtio_console import VirtioConsole
from ringfence.machine.device.virtio_net import VirtioNet
from ringfence.machine.memory import Ram

MEMORY = 4 * MiB
POLITE_EVERY = 64
"""Cases from one check of that driver's to the next."""
SLOWEST = 2.0
"""Seconds of the host's processor that a case may take: a read of the most bytes is 32 MB."""
GROWTH = 24 * MiB
"""Bytes by which the process may become larger once it has been at work for a while."""
PENDING = 64
"""Events and input that may wait."""
REGISTERS = (
    *(mmio.DEVICE_FEATURES_SEL, mmio.DRIVER_FEATURES, mmio.DRIVER_FEATURES_SEL, mmio.QUEUE_SEL, mmio.QUEUE_NUM),
    *(mmio.QUEUE_READY, mmio.QUEUE_NOTIFY, mmio.INTERRUPT_ACK, mmio.STATUS, mmio.QUEUE_DESC_LOW, mmio.QUEUE_DESC_HIGH),
    *(mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DRIVER_HIGH, mmio.QUEUE_DEVICE_LOW, mmio.QUEUE_DEVICE_HIGH, mmio.CONFIG),
    *(mmio.MAGIC_VALUE, mmio.VERSION, mmio.DEVICE_ID, mmio.VENDOR_ID, mmio.DEVICE_FEATURES, mmio.SHM_FIRST),
    *(mmio.QUEUE_NUM_MAX_REGISTER, mmio.INTERRUPT_STATUS, mmio.CONFIG_GENERATION),
)
LENGTHS = (0, 1, 2, 8, 11, 12, 16, 17, 512, 4096, 1 << 16, 1 << 18, 1 << 20, 1 << 31, (1 << 32) - 1)
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 11, 15, 16, 64, 127, 128, 129, 255, 1 << 15, 1 << 16, 1 << 31, (1 << 32) - 1)


class Fence:
    """RAM but for what is the well-behaved driver's, as an IOMMU shows it to a device."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram

    def read(self, pa: int, length: int) -> bytes:
        self._check(pa)
        return self.ram.read(pa, length)

    def write(self, pa: int, data: bytes) -> None:
        self._check(pa)
        self.ram.write(pa, data)

    def _check(self, pa: int) -> None:
        assert pa >= 0
        if pa < self.ram.base + OWN:
            raise AccessFault


@dataclass
class Queue:
    """As its driver has set it up, or means to have."""

    num: int = 8
    desc: int = 0
    driver: int = 0
    device: int = 0
    avail: int = 0


@dataclass
class Target:
    """A device that is driven: where its registers and its part of RAM are."""

    device: mmio.VirtioMmio
    base: int
    arena: int
    queues: dict[int, Queue] = field(default_factory=dict)


@dataclass
class Report:
    """What a run took."""

    cases: int
    seconds: float
    slowest: float
    """Seconds of the processor for a case."""
    growth: int
    """Bytes, since a tenth of the cases."""
    checks: int
    """How often the well-behaved driver was right."""
    served: int
    """Buffers that devices gave back to the other one."""


class Fuzz:
    """A board, and the cases of a seed. With a `directory` its first share is that one."""

    def __init__(self, seed: int, clock: Source = "virtual", directory: Path | None = None) -> None:
        self.draw = random.Random(seed)
        self.stack = ExitStack()
        self.cables = Cable(1), Cable(2)
        self.port = ScriptPort("first")
        self.ports = self.port, ScriptPort("second", console=True), ScriptPort("third", opened=False)
        self.disks = Medium(40 * MiB, range(MiB, MiB + 4096), seed % 4 == 3), Medium(MiB, range(0))
        first: Share = Echo()
        if directory is not None:
            first = self.stack.enter_context(closing(DirectoryShare(directory, "/mnt/first")))
        self.shares = first, Echo()
        self.board = virt(
            MEMORY, engine="reference", clock=clock, disks=self.disks, links=self.cables, shares=self.shares,
            ports=self.ports, rng_seed=bytes(32),
        )  # fmt: skip
        board = self.board
        code = ISA["wfi"].encode(), ISA["jal"].encode(rd=0, imm=-4)
        board.memory[board.ram.base : board.ram.base + 8] = struct.pack("<2I", *code)
        board.harts[0].pc = board.ram.base
        self.fence = Fence(board.ram)
        self.targets: list[Target] = []
        wicked = [board.slots[0], board.slots[2], board.slots[4], board.slots[6], board.rng]
        for start, _, device in board.bus.windows():
            if isinstance(device, mmio.VirtioMmio) and device in wicked:
                device.memory = self.fence
                arena = board.ram.base + MiB + (len(self.targets) << 16)
                self.targets.append(Target(device, start, arena))
        self.actions: tuple[tuple[int, Callable[[Target], None]], ...] = (
            (30, self._chains), (8, self._registers), (4, self._mutate), (3, self._configure), (3, self._outside),
            (2, self._requeue), (1, self._reset), (2, self._notify), (1, self._noise), (1, self._restore),
        )  # fmt: skip
        self.checks = self.served = 0

    def close(self) -> None:
        self.board.settle()
        self.board.leave_shares()
        self.stack.close()

    # What must hold

    def run(self, cases: int) -> Report:
        """So many. No exception leaves the machine; no case takes SLOWEST; nothing grows; and other devices, and the
        same ones after a reset, do right.
        """
        weights = [weight for weight, _ in self.actions]
        slowest, before, began = 0.0, 0, time.monotonic()
        with self.board.time_goes():
            for n in range(cases):
                target = self.draw.choice(self.targets)
                (_, action), *_ = self.draw.choices(self.actions, weights)
                start = time.process_time()
                action(target)
                self.go_on(self.draw.choice((0, 5_000, 20_000, 100_000)))
                took = time.process_time() - start
                slowest = max(slowest, took)
                assert took < SLOWEST, f"case {n}: {action.__name__} of {type(target.device).__name__}: {took} s"
                assert len(self.board.clock.pending()) < PENDING
                if n % POLITE_EVERY == POLITE_EVERY - 1:
                    self._polite_turn()
                if n == cases // 10:
                    before = _resident()
        growth = _resident() - before
        assert growth < GROWTH, f"{growth} bytes more"
        return Report(cases, time.monotonic() - began, slowest, growth, self.checks, self.served)

    def go_on(self, ns: int) -> None:
        """The machine runs, all harts waiting: what is due happens, and nothing is left of what came."""
        self.board.slice(10_000, ns)

    # What it does

    def pa(self, target: Target, near: float = 0.8) -> int:
        """An address: `near` is how probable one of the device's part of RAM is."""
        draw, ram = self.draw, self.board.ram
        if draw.random() < near:
            return target.arena + draw.randrange(1 << 16)
        kind = draw.random()
        if kind < 0.5:
            return ram.base + ram.size - draw.choice((0, 1, 2, 15, 16, 512, 4096, 1 << 17))
        if kind < 0.75:
            return ram.base + MiB + draw.randrange(1 << 19)
        return draw.choice((0, 1, (1 << 64) - 1, 1 << 63, ram.base - 1, target.base, draw.getrandbits(64)))

    def put(self, target: Target, offset: int, value: int, size: int = 4) -> None:
        try:
            self.board.bus.write(target.base + offset, size, value & (1 << 8 * size) - 1)
        except AccessFault:
            assert offset % size

    def poke(self, pa: int, data: bytes) -> None:
        """Into RAM, where that is the hostile driver's."""
        try:
            self.fence.write(pa, data)
        except AccessFault:
            pass

    def _registers(self, target: Target) -> None:
        """Any access to any register, in any order."""
        draw = self.draw
        for _ in range(draw.randrange(1, 8)):
            offset = draw.choice(REGISTERS) if draw.random() < 0.8 else draw.randrange(0x1000)
            size = 4 if draw.random() < 0.8 else draw.choice((1, 2, 4, 8))
            if draw.random() < 0.3:
                try:
                    self.board.bus.read(target.base + offset, size)
                except AccessFault:
                    assert offset % size
                continue
            value = draw.choice(NUMBERS) if draw.random() < 0.6 else draw.getrandbits(64)
            if offset == mmio.STATUS and draw.random() < 0.8:
                value |= 1
            self.put(target, offset, value, size)

    def _configure(self, target: Target) -> None:
        """From a reset to a driver that is ready, most often."""
        draw, device = self.draw, target.device
        self.put(target, mmio.STATUS, 0)
        self.put(target, mmio.STATUS, 3)
        features = device.features
        if draw.random() < 0.02:
            features ^= 1 << draw.choice((1, 31, 40, 63))
            self.put(target, mmio.DRIVER_FEATURES_SEL, 2)
            self.put(target, mmio.DRIVER_FEATURES, draw.randrange(2))
        for bit in (mmio.F_EVENT_IDX, mmio.F_INDIRECT_DESC, draw.randrange(34)):
            if draw.random() < 0.3:
                features &= ~(1 << bit)
        for half in (0, 1):
            self.put(target, mmio.DRIVER_FEATURES_SEL, half)
            self.put(target, mmio.DRIVER_FEATURES, features >> 32 * half)
        self.put(target, mmio.STATUS, 11)
        target.queues.clear()
        for number in range(min(device.QUEUES, 8)):
            self._set_up(target, number)
        self.put(target, mmio.STATUS, 15)

    def _set_up(self, target: Target, number: int) -> None:
        draw = self.draw
        place = target.arena + 0x1800 * number
        queue = Queue(draw.choice((1, 2, 8, 8, 16, 128)), place, place + 0x800, place + 0x1000)
        if draw.random() < 0.1:  # rings over one another, or elsewhere
            name = draw.choice(("desc", "driver", "device"))
            setattr(queue, name, draw.choice((queue.desc, queue.driver, queue.device)) + draw.randrange(-16, 16))
            if draw.random() < 0.3:
                setattr(queue, name, self.pa(target))
        target.queues[number] = queue
        self.poke(queue.driver, bytes(4))
        self.put(target, mmio.QUEUE_SEL, number)
        self.put(target, mmio.QUEUE_NUM, queue.num if draw.random() < 0.97 else draw.choice(NUMBERS))
        for low, pa in (
            (mmio.QUEUE_DESC_LOW, queue.desc),
            (mmio.QUEUE_DRIVER_LOW, queue.driver),
            (mmio.QUEUE_DEVICE_LOW, queue.device),
        ):
            self.put(target, low, pa)
            self.put(target, low + 4, pa >> 32)
        self.put(target, mmio.QUEUE_READY, 1)

    def _ready(self, target: Target) -> tuple[int, Queue]:
        """One of the queues of a device that is set up; if it is not, it is now."""
        if not target.queues or target.device.status & (mmio.NEEDS_RESET | mmio.DRIVER_OK) != mmio.DRIVER_OK:
            self._configure(target)
        number = self.draw.choice(list(target.queues))
        return number, target.queues[number]

    def _chains(self, target: Target) -> None:
        """Buffers, and time for them."""
        number = self._offer(target)
        used = int(target.device.used_idx[number])
        self.go_on(20_000)
        self.served += target.device.used_idx[number] - used & 0xFFFF

    def _offer(self, target: Target) -> int:
        """Buffers that look right, but for what is changed of them, in one of the queues, which is returned."""
        draw = self.draw
        number, queue = self._ready(target)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            first = draw.randrange(queue.num)
            rows = self._rows(target, number)
            table = queue.desc
            if draw.random() < 0.3:
                inside = target.arena + draw.randrange(0, 1 << 16, 16)
                self._table(target, inside, 0, 1 << 15, rows)
                length = 16 * len(rows) if draw.random() < 0.9 else draw.choice(LENGTHS)
                rows = [(inside, length, INDIRECT if draw.random() < 0.95 else INDIRECT | NEXT)]
            self._table(target, table, first, queue.num, rows)
            slot = queue.driver + 4 + 2 * (queue.avail % queue.num)
            self.poke(slot, struct.pack("<H", first if draw.random() < 0.97 else draw.getrandbits(16)))
            queue.avail += 1 if draw.random() < 0.97 else draw.choice((0, 2, queue.num, queue.num + 1, 1 << 15))
            self.poke(queue.driver + 2, struct.pack("<H", queue.avail & 0xFFFF))
            if draw.random() < 0.02:  # as often as there is room
                for n in range(queue.num):
                    self.poke(queue.driver + 4 + 2 * n, struct.pack("<H", first))
                queue.avail += queue.num - 1
                self.poke(queue.driver + 2, struct.pack("<H", queue.avail & 0xFFFF))
            if draw.random() < 0.1:  # the flags, or the index that an interrupt is wanted at
                self.poke(queue.driver, draw.randbytes(2))
                self.poke(queue.driver + 4 + 2 * queue.num, draw.randbytes(2))
            if draw.random() < 0.05:
                self._mutate(target)
        if draw.random() < 0.95:
            self.put(target, mmio.QUEUE_NOTIFY, number)
        return number

    def _table(self, target: Target, table: int, first: int, num: int, rows: Rows) -> None:
        draw = self.draw
        for n, (pa, length, flags) in enumerate(rows):
            index, following = (first + n) % num, (first + n + 1) % num
            if n + 1 < len(rows):
                flags |= NEXT
            if draw.random() < 0.04:
                what = draw.randrange(4)
                if what == 0:
                    pa = self.pa(target, 0.3)
                elif what == 1:
                    length = draw.choice(LENGTHS)
                elif what == 2:
                    flags ^= draw.choice((NEXT, WRITE, INDIRECT, 8, 0xFFFF))
                else:
                    following = draw.choice((first, index, num, 0xFFFF))
            self.poke(table + 16 * index, struct.pack("<QIHH", pa & (1 << 64) - 1, length, flags, following))

    def _rows(self, target: Target, number: int) -> Rows:
        """A buffer that the device knows what to do with, most often."""
        draw, device = self.draw, target.device
        data = target.arena + 0xC000 + draw.randrange(0, 0x1000, 64)
        if draw.random() < 0.1:
            return [
                (self.pa(target), draw.choice(LENGTHS), draw.choice((0, 0, WRITE, WRITE, INDIRECT)))
                for _ in range(draw.choice((1, 2, 3, 8, 130)))
            ]
        if isinstance(device, VirtioBlk):
            kind = draw.choice((T_IN, T_IN, T_OUT, T_OUT, 4, 8, 11, 13, draw.getrandbits(32)))
            most = device.disk.size // SECTOR
            sector = draw.choice((0, 2048, 2047, most - 1, most, (1 << 64) - 1, draw.randrange(most)))
            self.poke(data, struct.pack("<IIQ", kind, 0, sector))
            flags = 0 if kind in (T_OUT, 11, 13) else WRITE
            size = 16 if kind in (11, 13) else SECTOR
            if size == 16:
                self.poke(data + 64, struct.pack("<QII", sector, draw.choice((1, 8, 1 << 12, 1 << 31)), 0))
            pieces = [(data + 64, size, flags)] * draw.choice((0, 1, 1, 2, 5))
            if draw.random() < 0.05:
                pieces = [(self.board.ram.base + MiB, 1 << 18, flags)] * draw.choice((1, 1, 1, 8, 100))
            return [(data, 16, 0), *pieces, (data + 32, 1, WRITE)]
        if isinstance(device, VirtioNet):
            if number == 0:
                return [(data, draw.choice((12, 64, 1526, 4096)), WRITE)]
            return [(data, 12, 0), (data + 16, draw.choice((13, 14, 60, 1514, 1515)), 0)]
        if isinstance(device, Virtio9p):
            text = self._message()
            self.poke(data, text)
            return [(data, len(text), 0), (data + 0x800, draw.choice((7, 11, 64, 2048)), WRITE)]
        if isinstance(device, VirtioConsole):
            if number == 3:
                self.poke(data, struct.pack("<IHH", draw.choice((0, 0, 1, 2, 3, 1 << 31)), draw.randrange(9), 1))
                return [(data, draw.choice((8, 8, 8, 7, 9, 64)), 0)]
            return [(data, draw.choice((1, 8, 64, 4096)), 0 if number % 2 else WRITE)]
        return [(data, draw.choice((1, 16, 64, 4096, 1 << 20)), WRITE)]

    def _message(self) -> bytes:
        """Of 9P: a session's beginning, or any request with anything in it."""
        draw = self.draw
        known = draw.randrange(6)
        if known == 0:
            text = message(NAMED["version"].number, NOTAG, encode(NAMED["version"].request, (8192, PROTOCOL)))
        elif known == 1:
            text = message(NAMED["attach"].number, 1, encode(NAMED["attach"].request, (0, NOFID, b"root", b"", 0)))
        elif known == 2:
            names = [draw.choice((b"file", b"directory", b"..", b".", b"a/b", b"link"))] * draw.choice((0, 1, 2))
            values = (draw.randrange(3), draw.randrange(40), names)
            text = message(NAMED["walk"].number, 2, encode(NAMED["walk"].request, values))
        else:
            number = draw.choice([row.number for row in NAMED.values() if row.number != NAMED["fsync"].number])
            body = b"".join(draw.choice((bytes(4), b"\1\0\0\0", draw.randbytes(4))) for _ in range(draw.randrange(12)))
            text = message(number, 3, body)
        if draw.random() < 0.1:
            at = draw.randrange(len(text))
            text = text[:at] + draw.randbytes(1) + text[at + 1 :]
        return text

    def _mutate(self, target: Target) -> None:
        """Bytes of the rings, while the device has buffers."""
        draw = self.draw
        for _ in range(draw.choice((1, 1, 4))):
            queue = draw.choice(list(target.queues.values()) or [Queue(8, target.arena, target.arena, target.arena)])
            place = draw.choice((queue.desc, queue.driver, queue.device)) + draw.randrange(64)
            self.poke(place, draw.randbytes(draw.choice((1, 2, 8))))

    def _requeue(self, target: Target) -> None:
        """A queue's size, or place, is changed after the start; or it is stopped, and perhaps started again."""
        draw = self.draw
        number, _ = self._ready(target)
        self.put(target, mmio.QUEUE_SEL, number)
        what = draw.randrange(4)
        if what == 0:
            self.put(target, mmio.QUEUE_NUM, draw.choice(NUMBERS))
        elif what == 1:
            offset = draw.choice((mmio.QUEUE_DESC_LOW, mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DEVICE_HIGH))
            self.put(target, offset, draw.choice((self.pa(target), 0, 1)))
        elif what == 2:
            self.put(target, mmio.QUEUE_READY, draw.choice((0, 0, 1, 2, 3)))
        else:
            self.put(target, mmio.QUEUE_READY, 0)
            self._set_up(target, number)

    def _reset(self, target: Target) -> None:
        """With whatever is in flight."""
        self._offer(target)
        self.put(target, mmio.STATUS, 0)

    def _restore(self, target: Target) -> None:
        """Its state is taken, and given again: of no consequence."""
        self._offer(target)
        target.device.restore(target.device.snapshot())

    def _notify(self, target: Target) -> None:
        """Of a queue that may have nothing, or not be there."""
        for _ in range(self.draw.choice((1, 1, 20))):
            self.put(target, mmio.QUEUE_NOTIFY, self.draw.choice((0, 0, 1, 2, 3, 4, 5, 33, 34, 1 << 31)))

    def _noise(self, target: Target) -> None:
        """All over the device's part of RAM."""
        self.poke(target.arena + self.draw.randrange(0xC000), self.draw.randbytes(512))

    def _outside(self, target: Target) -> None:
        """Frames and bytes come, and go."""
        draw = self.draw
        for _ in range(draw.choice((1, 1, 80))):
            self.cables[0].receive(draw.randbytes(draw.choice((0, 13, 14, 60, 1514, 1515))))
        for port in self.ports:
            if draw.random() < 0.5:
                port.received()
            if draw.random() < 0.3 and len(port._to_guest) < 1 << 16:
                port.send(draw.randbytes(draw.choice((1, 64, 5000))))
            if draw.random() < 0.2:
                port.opened = not port.opened

    # The driver that means no harm

    def _polite_turn(self) -> None:
        """A device that nobody harms, whatever is in flight beside it, or one of the others after a reset."""
        board = self.board
        polite = PoliteDriver(board, self.draw, self.go_on)
        polite.disk(board.slots[1], self.disks[1])
        polite.net(board.slots[3], self.cables[1])
        polite.share(board.slots[5])
        target = self.draw.choice(self.targets)
        device = target.device
        self._offer(target)  # of which nothing may be left
        device.memory = board.ram
        try:
            if isinstance(device, VirtioBlk):
                if not device.disk.readonly:
                    polite.disk(device, self.disks[0])
            elif isinstance(device, VirtioNet):
                polite.net(device, self.cables[0])
            elif isinstance(device, Virtio9p):
                polite.share(device)
            elif isinstance(device, VirtioConsole):
                polite.console(device, self.port)
            else:
                polite.entropy(device)
        finally:
            self.put(target, mmio.STATUS, 0)
            device.memory = self.fence
        target.queues.clear()
        self.checks += 4


def shared(directory: Path) -> Path:
    """A directory for the first share, with something in it."""
    place = directory / "share"
    (place / "directory").mkdir(parents=True)
    (place / "file").write_text("text\n" * 1000)
    (place / "link").symlink_to("file")
    return place


def _resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
