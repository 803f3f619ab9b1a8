"""The virtio console device: several ports, over each of which bytes go both ways.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import ClassVar, Protocol

from ringfence.machine.device.device import AccessFault, Clock, Field, Line, Memory
from ringfence.machine.device.virtio_mmio import CHUNK, Chain, QueueFault, VirtioMmio, pieces

F_MULTIPORT = 1
DEVICE_READY, DEVICE_ADD, DEVICE_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)
"""Events of control messages."""
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
"""Queues."""

PORTS = 16
"""The most ports."""
NAME_MOST = 64
"""Bytes of a port's name."""
BURST = 64
"""Buffers that one event moves: what it may take is bounded by this, and by CHUNK bytes for each."""
LATENCY_NS = 5_000

_CONFIG = Struct("<HHII")
"""cols, rows, max_nr_ports, emerg_wr."""
_CONTROL = Struct("<IHH")
"""id, event, value."""
_ADD, _CONSOLE, _NAME, _OPEN = 1, 2, 4, 8
"""Of what a driver is to be told."""


class Port(Protocol):
    """What one port of the device leads to. Nothing of it waits, and all is called by the machine's thread."""

    name: str
    """What the guest knows it by: at most NAME_MOST bytes."""
    console: bool
    """Whether the guest is to have a console there."""

    def connect(self, changed: Callable[[], None]) -> None:
        """From now on `changed` is called, from any thread, when there is something to `read`, when there is room again
        after `write` had too little, and when `opened` is another.
        """

    @property
    def opened(self) -> bool:
        """Somebody is there. If not, what the guest sends is lost."""

    def read(self, most: int) -> bytes:
        """So many bytes at most that are for the guest; none where there are none yet."""

    def write(self, data: bytes) -> int:
        """Takes bytes of the guest's: how many from the front on there was room for."""


class VirtioConsole(VirtioMmio):
    """Ports, of which number n has the receive queue 0, or 2 + 2n, and the transmit queue behind it. Bytes wait in the
    driver's buffers, or at the port, until the other side takes them: nothing is lost while somebody is there, and
    nothing of them is kept here. What leaves does so `latency_ns` of guest time after the driver tells of it.

    A driver that does not take F_MULTIPORT has port 0. A buffer outside RAM stops the device; a control message that
    means nothing is passed over.
    """

    ID: ClassVar[int] = 3
    QUEUES: ClassVar[int] = 2 + 2 * PORTS
    STATE: ClassVar[tuple[Field, ...]] = (
        *VirtioMmio.STATE,
        Field("ready", "bool", "PORTS"),  # the driver knows of the port
        Field("guest_open", "bool", "PORTS"),
        Field("host_open", "bool", "PORTS"),  # as the driver was told, or is about to be
        Field("untold", "u8", "PORTS"),  # what the driver is to be told
        Field("sent", "u32", "PORTS"),  # bytes of the first buffer in the transmit queue that have left
        Field("busy", "bool", "QUEUES"),
    )
    PORTS: ClassVar[int] = PORTS
    ready: list[bool]
    guest_open: list[bool]
    host_open: list[bool]
    untold: list[int]
    sent: list[int]
    busy: list[bool]

    def __init__(
        self, clock: Clock, line: Line, memory: Memory, ports: Sequence[Port], latency_ns: int = LATENCY_NS
    ) -> None:
        self.ports, self.latency_ns = tuple(ports), latency_ns
        super().__init__(clock, line, memory, 1 << F_MULTIPORT)

    def config(self) -> bytes:
        return _CONFIG.pack(0, 0, len(self.ports), 0)

    def notify(self, queue: int) -> None:
        if not self.busy[queue]:
            self.busy[queue] = True
            self.clock.at(self.clock.now() + self.latency_ns, self, "move", queue)

    def reset(self) -> None:
        super().reset()
        for queue in range(self.QUEUES):
            self.clock.cancel(self, "move", queue)

    def look(self) -> None:
        """A port has changed. Called at a check point of the machine's."""
        for n, port in enumerate(self.ports):
            if port.opened != self.host_open[n]:
                self.host_open[n] = port.opened
                if self.ready[n]:
                    self.untold[n] |= _OPEN
            for queue in self._queues(n):
                if self.live(queue):
                    self._move(queue)
        if self.live(CONTROL_RECEIVE):
            self._move(CONTROL_RECEIVE)

    def event(self, kind: str, number: int) -> None:
        self.busy[number] = False
        if self.live(number):
            self._move(number)

    def _queues(self, port: int) -> tuple[int, int]:
        first = 2 + 2 * port if port else 0
        return first, first + 1

    def _move(self, queue: int) -> None:
        """As many buffers as there is something for, but BURST at most."""
        port = queue // 2 - 1 if queue > CONTROL_TRANSMIT else 0
        multiport = self.negotiated(F_MULTIPORT)
        if port >= len(self.ports) or (queue >= CONTROL_RECEIVE and not multiport):
            return
        move: Callable[[int, int], bool]
        if queue == CONTROL_RECEIVE:
            move = self._tell
        elif queue == CONTROL_TRANSMIT:
            move = self._hear
        else:
            move = self._transmit if queue % 2 else self._receive
        try:
            for _ in range(BURST):
                if not self.live(queue):  # a message may have stopped the device
                    return
                if not self.available(queue):
                    if not self.more(queue):
                        return
                    continue
                if not move(queue, port):
                    return
            self.notify(queue)
        except (AccessFault, QueueFault):
            self.fail()

    def _receive(self, queue: int, port: int) -> bool:
        """A buffer with what has come. False: nothing has."""
        if self.negotiated(F_MULTIPORT) and not self.guest_open[port]:
            return False
        chain = self.peek_next(queue)
        data = self.ports[port].read(min(sum(length for _, length in chain.writable), CHUNK))
        if not data and any(length for _, length in chain.writable):
            return False
        self._store_front(chain, data)
        self._used(queue, chain, len(data))
        return True

    def _transmit(self, queue: int, port: int) -> bool:
        """The port has some of a buffer, which is given back when it has all. False: there was no room for it."""
        chain = self.peek_next(queue)
        total, sent = sum(length for _, length in chain.readable), self.sent[port]
        if self.ports[port].opened and sent < total:
            n = min(total - sent, CHUNK)
            data = b"".join(self.memory.read(pa, length) for pa, length in pieces(chain.readable, sent, n))
            taken = self.ports[port].write(data)
            self.sent[port] = sent = sent + taken & 0xFFFF_FFFF
            if taken < n:
                return False
            if sent < total:
                return True
        self.sent[port] = 0
        self._used(queue, chain, 0)
        return True

    def _hear(self, queue: int, port: int) -> bool:
        """A control message of the driver's."""
        chain = self.peek_next(queue)
        message = pieces(chain.readable, 0, _CONTROL.size)
        data = b"".join(self.memory.read(pa, length) for pa, length in message)
        self._used(queue, chain, 0)
        if len(data) == _CONTROL.size:
            self._heard(*_CONTROL.unpack(data))
        return True

    def _heard(self, port: int, event: int, value: int) -> None:
        if event == DEVICE_READY and value:
            for n in range(len(self.ports)):
                self.untold[n] |= _ADD
        elif port < len(self.ports) and event == PORT_READY and value:
            self.ready[port] = True
            self.host_open[port] = self.ports[port].opened
            self.untold[port] |= _NAME | (_CONSOLE if self.ports[port].console else 0)
            self.untold[port] |= _OPEN if self.host_open[port] else 0
        elif port < len(self.ports) and event == PORT_OPEN:
            self.guest_open[port] = bool(value)
            receive, _ = self._queues(port)
            if value and self.live(receive):
                self._move(receive)
        if self.live(CONTROL_RECEIVE):
            self._move(CONTROL_RECEIVE)

    def _tell(self, queue: int, port: int) -> bool:
        """A control message for the driver. False: there is none. One that its buffer has no room for is lost."""
        waiting = [n for n, untold in enumerate(self.untold) if untold]
        if not waiting:
            return False
        port = waiting[0]
        what = self.untold[port] & -self.untold[port]
        event, value, name = {
            _ADD: (DEVICE_ADD, 1, b""),
            _CONSOLE: (CONSOLE_PORT, 1, b""),
            _NAME: (PORT_NAME, 1, self.ports[port].name.encode(errors="surrogateescape")),
            _OPEN: (PORT_OPEN, int(self.host_open[port]), b""),
        }[what]
        data = _CONTROL.pack(port, event, value) + name
        chain = self.peek_next(queue)
        if sum(length for _, length in chain.writable) < len(data):
            data = b""
        self._store_front(chain, data)
        self.untold[port] ^= what
        self._used(queue, chain, len(data))
        return True

    def _store_front(self, chain: Chain, data: bytes) -> None:
        done = 0
        for pa, length in pieces(chain.writable, 0, len(data)):
            self.memory.write(pa, data[done : done + length])
            done += length

    def _used(self, queue: int, chain: Chain, written: int) -> None:
        """The buffer that was looked at is given back."""
        self.last_avail[queue] = self.last_avail[queue] + 1 & 0xFFFF
        self.push(queue, chain, written)
