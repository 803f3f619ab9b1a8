"""Virtio over memory-mapped registers: feature negotiation, device status, and split virtqueues.

Source: Virtual I/O Device (VIRTIO) Version 1.2: sections 2.1 to 2.7 and 4.2, register names from table 4.1.

A queue that breaks the standard's rules is never an exception: the device stops with DEVICE_NEEDS_RESET set, and
the driver may reset it. Nothing here loops or allocates by a number of the guest's beyond QUEUE_NUM_MAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from ringfence.machine.device.device import AccessFault, Clock, Device, Field, Line, Memory

MAGIC_VALUE = 0x000
VERSION = 0x004
DEVICE_ID = 0x008
VENDOR_ID = 0x00C
DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SEL = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SEL = 0x024
QUEUE_SEL = 0x030
QUEUE_NUM_MAX_REGISTER = 0x034
QUEUE_NUM = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
QUEUE_DESC_LOW, QUEUE_DESC_HIGH = 0x080, 0x084
QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH = 0x090, 0x094
QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH = 0x0A0, 0x0A4
SHM_FIRST, SHM_LAST = 0x0B0, 0x0BC
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

MAGIC = 0x7472_6976
VENDOR = 0x554D_4551
""""QEMU": xv6 drives no other."""
QUEUE_NUM_MAX = 128
"""Entries of a queue, and descriptors of a chain with its indirect table: more are refused."""

FAILED, NEEDS_RESET, FEATURES_OK, DRIVER_OK = 0x80, 0x40, 0x08, 0x04
DRIVER_STATUS = 0x8F
USED_BUFFER, CONFIG_CHANGE = 1, 2

F_INDIRECT_DESC = 28
F_EVENT_IDX = 29
F_VERSION_1 = 32

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1

CHUNK = 1 << 16
"""Bytes that move at a time between RAM and a back end."""

_DESCRIPTOR = Struct("<QIHH")
_USED = Struct("<II")
_U32 = 0xFFFF_FFFF


class QueueFault(Exception):
    """The driver's queue breaks the standard's rules."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A buffer that the driver made available: pieces of RAM as (pa, length)."""

    head: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]


def pieces(buffer: list[tuple[int, int]], start: int, length: int) -> list[tuple[int, int]]:
    """The part of a buffer from byte `start` on, at most `length` bytes long, none of it empty."""
    found = []
    for pa, size in buffer:
        if start < size and length > 0:
            taken = min(size - start, length)
            found.append((pa + start, taken))
            length -= taken
            start = 0
        else:
            start = max(start - size, 0)
    return found


class VirtioMmio(Device):
    """The transport and its queues. A subclass gives `ID`, `QUEUES`, features, `config` and `notify`.

    `pop`, `push` and `more` raise `QueueFault`; the subclass answers it with `fail`. Registers are 32 bits wide and
    take no other access; the configuration space at CONFIG takes any.
    """

    WINDOW: ClassVar[int] = 0x1000
    ID: ClassVar[int]
    QUEUES: ClassVar[int] = 1
    STATE: ClassVar[tuple[Field, ...]] = (
        Field("status", "u8"),
        Field("interrupt_status", "u8"),
        Field("device_features_sel", "u32"),
        Field("driver_features_sel", "u32"),
        Field("driver_features", "u64"),
        Field("features_unknown", "bool"),
        Field("queue_sel", "u32"),
        Field("queue_num", "u32", "QUEUES"),
        Field("queue_ready", "bool", "QUEUES"),
        Field("queue_desc", "u64", "QUEUES"),
        Field("queue_driver", "u64", "QUEUES"),
        Field("queue_device", "u64", "QUEUES"),
        Field("last_avail", "u16", "QUEUES"),
        Field("used_idx", "u16", "QUEUES"),
    )
    status: int
    interrupt_status: int
    device_features_sel: int
    driver_features_sel: int
    driver_features: int
    features_unknown: bool
    queue_sel: int
    queue_num: list[int]
    queue_ready: list[bool]
    queue_desc: list[int]
    queue_driver: list[int]
    queue_device: list[int]
    last_avail: list[int]
    used_idx: list[int]

    def __init__(self, clock: Clock, line: Line, memory: Memory, features: int) -> None:
        self.clock = clock
        self.line = line
        self.memory = memory
        self.features = features | 1 << F_VERSION_1 | 1 << F_INDIRECT_DESC | 1 << F_EVENT_IDX
        super().__init__()

    def config(self) -> bytes:
        """The device's configuration space; behind its end everything reads as 0."""
        return b""

    def notify(self, queue: int) -> None:
        """The driver says that `queue`, which is live, has new buffers."""

    def live(self, queue: int) -> bool:
        """Whether the device may use `queue`."""
        running = self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) == FEATURES_OK | DRIVER_OK
        return running and self.queue_ready[queue]

    def negotiated(self, feature: int) -> bool:
        """Whether the driver took the feature of that bit number."""
        return bool(self.driver_features >> feature & 1)

    def read(self, offset: int, size: int) -> int:
        if offset >= CONFIG:
            return int.from_bytes(self.config()[offset - CONFIG :][:size], "little")
        if size != 4:
            return 0
        if offset == INTERRUPT_STATUS:
            return self.interrupt_status
        if offset == STATUS:
            return self.status
        if offset == MAGIC_VALUE:
            return MAGIC
        if offset == VERSION:
            return 2
        if offset == DEVICE_ID:
            return self.ID
        if offset == VENDOR_ID:
            return VENDOR
        if offset == DEVICE_FEATURES:
            return self.features >> 32 * self.device_features_sel & _U32 if self.device_features_sel < 2 else 0
        if offset == QUEUE_NUM_MAX_REGISTER:
            return QUEUE_NUM_MAX if self.queue_sel < self.QUEUES else 0
        if offset == QUEUE_READY:
            return int(self.queue_sel < self.QUEUES and self.queue_ready[self.queue_sel])
        if SHM_FIRST <= offset <= SHM_LAST and offset & 3 == 0:
            # A region that does not exist has length -1 (section 4.2.2).
            return _U32
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            return
        value &= _U32
        if offset == QUEUE_NOTIFY:
            if value < self.QUEUES and self.live(value):
                self.notify(value)
        elif offset == INTERRUPT_ACK:
            self.interrupt_status &= ~value
            self.line.set(self.interrupt_status != 0)
        elif offset == STATUS:
            self._write_status(value)
        elif offset == DEVICE_FEATURES_SEL:
            self.device_features_sel = value
        elif offset == DRIVER_FEATURES_SEL:
            self.driver_features_sel = value
        elif offset == DRIVER_FEATURES:
            if not self.status & FEATURES_OK:
                self._write_features(self.driver_features_sel, value)
        elif offset == QUEUE_SEL:
            self.queue_sel = value
        elif self.queue_sel < self.QUEUES:
            self._write_queue(self.queue_sel, offset, value)

    def reset(self) -> None:
        super().reset()
        self.line.set(False)

    def pop(self, queue: int) -> Chain | None:
        """Takes the next available buffer, or None; raises `QueueFault`."""
        return self.pop_next(queue) if self.available(queue) else None

    def available(self, queue: int) -> int:
        """How many buffers the driver has made available that are not taken; raises `QueueFault`."""
        waiting = self._load16(self.queue_driver[queue] + 2) - self.last_avail[queue] & 0xFFFF
        if waiting > self.queue_num[queue]:
            raise QueueFault(f"{waiting} buffers available in a queue of {self.queue_num[queue]}")
        return waiting

    def pop_next(self, queue: int) -> Chain:
        """Takes the next buffer, where one is available; raises `QueueFault`."""
        chain = self.peek_next(queue)
        self.last_avail[queue] = self.last_avail[queue] + 1 & 0xFFFF
        return chain

    def peek_next(self, queue: int) -> Chain:
        """The next buffer, where one is available, which stays so; raises `QueueFault`."""
        num, last = self.queue_num[queue], self.last_avail[queue]
        head = self._load16(self.queue_driver[queue] + 4 + 2 * (last % num))
        return self._chain(self.queue_desc[queue], num, head)

    def push(self, queue: int, chain: Chain, written: int) -> None:
        """Gives a buffer back, its first `written` writable bytes stored, and interrupts if the driver wants it."""
        self.push_head(queue, chain.head, written)

    def push_head(self, queue: int, head: int, written: int) -> None:
        """As `push` does, of the buffer that begins with this descriptor."""
        ring = self.queue_device[queue]
        num = self.queue_num[queue]
        old = self.used_idx[queue]
        new = old + 1 & 0xFFFF
        self._store(ring + 4 + 8 * (old % num), _USED.pack(head, written & _U32))
        self._store(ring + 2, new.to_bytes(2, "little"))
        self.used_idx[queue] = new
        driver = self.queue_driver[queue]
        if self.negotiated(F_EVENT_IDX):
            wanted = self._load16(driver + 4 + 2 * num) == old
        else:
            wanted = not self._load16(driver) & AVAIL_NO_INTERRUPT
        if wanted:
            self._interrupt(USED_BUFFER)

    def more(self, queue: int) -> bool:
        """Whether another buffer is available; if not, the driver is to notify of the next. Raises `QueueFault`."""
        last = self.last_avail[queue]
        if self.negotiated(F_EVENT_IDX):
            # Before the index is read: a buffer added in between is seen here or is notified of.
            event = self.queue_device[queue] + 4 + 8 * self.queue_num[queue]
            self._store(event, last.to_bytes(2, "little"))
        return self._load16(self.queue_driver[queue] + 2) != last

    def fail(self) -> None:
        """Stops the device until the driver resets it (section 2.1.2)."""
        self.status |= NEEDS_RESET
        if self.status & DRIVER_OK:
            self._interrupt(CONFIG_CHANGE)

    def _chain(self, table: int, num: int, index: int) -> Chain:
        """Follows the descriptors from `index` on (sections 2.7.5 and 2.7.5.3)."""
        chain = Chain(index, [], [])
        indirect, loaded = False, b""
        while len(chain.readable) + len(chain.writable) < QUEUE_NUM_MAX:
            if index >= num:
                raise QueueFault(f"descriptor {index} of {num}")
            row = loaded[16 * index : 16 * index + 16] or self._load(table + 16 * index, 16)
            pa, length, flags, following = _DESCRIPTOR.unpack(row)
            if flags & DESC_INDIRECT:
                if indirect or flags & DESC_NEXT or not self.negotiated(F_INDIRECT_DESC) or length % 16:
                    raise QueueFault("indirect descriptor out of place")
                indirect = True
                table, num, index = pa, length // 16, 0
                loaded = self._load(table, min(num, QUEUE_NUM_MAX) * 16)
                continue
            if flags & DESC_WRITE:
                chain.writable.append((pa, length))
            elif chain.writable:
                raise QueueFault("readable descriptor behind a writable one")
            else:
                chain.readable.append((pa, length))
            if not flags & DESC_NEXT:
                return chain
            index = following
        raise QueueFault("descriptor chain too long")

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        if value & FEATURES_OK and (self.features_unknown or self.driver_features & ~self.features):
            value &= ~FEATURES_OK
        self.status |= value & DRIVER_STATUS

    def _write_features(self, half: int, value: int) -> None:
        if half < 2:
            self.driver_features = _half(self.driver_features, half, value)
        elif value:
            # There is no feature from 64 on: what the driver took is no subset until a reset (section 2.2.2).
            self.features_unknown = True

    def _write_queue(self, queue: int, offset: int, value: int) -> None:
        if offset == QUEUE_READY:
            num = self.queue_num[queue]
            ready = bool(value & 1) and 0 < num <= QUEUE_NUM_MAX and num & num - 1 == 0
            if ready and not self.queue_ready[queue]:
                self.last_avail[queue] = self.used_idx[queue] = 0
            self.queue_ready[queue] = ready
        elif self.queue_ready[queue]:
            # The driver must not change a queue in use (section 4.2.2.2).
            return
        elif offset == QUEUE_NUM:
            self.queue_num[queue] = value
        elif offset in (QUEUE_DESC_LOW, QUEUE_DESC_HIGH):
            self.queue_desc[queue] = _half(self.queue_desc[queue], offset >> 2 & 1, value)
        elif offset in (QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH):
            self.queue_driver[queue] = _half(self.queue_driver[queue], offset >> 2 & 1, value)
        elif offset in (QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH):
            self.queue_device[queue] = _half(self.queue_device[queue], offset >> 2 & 1, value)

    def _interrupt(self, cause: int) -> None:
        self.interrupt_status |= cause
        self.line.set(True)

    def _load(self, pa: int, length: int) -> bytes:
        try:
            return self.memory.read(pa, length)
        except AccessFault as fault:
            raise QueueFault(f"queue outside RAM at {pa:#x}") from fault

    def _load16(self, pa: int) -> int:
        return int.from_bytes(self._load(pa, 2), "little")

    def _store(self, pa: int, data: bytes) -> None:
        try:
            self.memory.write(pa, data)
        except AccessFault as fault:
            raise QueueFault(f"queue outside RAM at {pa:#x}") from fault


def _half(whole: int, high: int, value: int) -> int:
    """`whole`, 64 bits, with its low or high half replaced."""
    return value << 32 | whole & _U32 if high else whole & ~_U32 | value
