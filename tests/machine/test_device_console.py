"""The console device and its ports, driven by a small driver of the tests' own; and sockets of the host."""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from states import SCALE
from virtio_driver import BASE, NEXT, RAM_BYTES, WRITE, Driver

from ringfence import virt
from ringfence.errors import MachineError
from ringfence.machine.board import MiB
from ringfence.machine.clock import NEVER
from ringfence.machine.device import ports as back_ends
from ringfence.machine.device import virtio_console
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.ports import WAITING, ScriptPort, SocketPort
from ringfence.machine.device.virtio_console import (
    CONSOLE_PORT,
    DEVICE_ADD,
    DEVICE_READY,
    LATENCY_NS,
    NAME_MOST,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    PORTS,
    VirtioConsole,
)

NUM, PLACE, ROOM = 8, 0x800, 0x1000
MULTIPORT = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 1


class ConsoleDriver(Driver):
    """A driver of all queues of two ports: queue q has its rings at BASE + PLACE q, and of each of its buffers ROOM
    bytes from `buffer(q, n)` on.
    """

    device: VirtioConsole

    def __init__(self, *ports: ScriptPort, features: int = MULTIPORT) -> None:
        self.ports = ports or (ScriptPort("one"), ScriptPort("two", console=True))
        super().__init__(features)

    def make(self) -> VirtioConsole:
        device = VirtioConsole(self.clock, self.wire, self.memory, self.ports)
        for port in self.ports:
            port.connect(device.look)
        return device

    def queue(self) -> None:
        self.count, self.taken = [0] * 6, [0] * 6
        for queue in range(6):
            self.put(mmio.QUEUE_SEL, queue)
            self.put(mmio.QUEUE_NUM, NUM)
            at = BASE + PLACE * queue
            for low, pa in (
                (mmio.QUEUE_DESC_LOW, at),
                (mmio.QUEUE_DRIVER_LOW, at + 0x200),
                (mmio.QUEUE_DEVICE_LOW, at + 0x400),
            ):
                self.put(low, pa & 0xFFFF_FFFF)
                self.put(low + 4, pa >> 32)
            self.put(mmio.QUEUE_READY, 1)

    def buffer(self, queue: int, n: int) -> int:
        return BASE + 0x4000 + (queue * NUM + n % NUM) * ROOM % 0x3_8000

    def give(self, queue: int, content: bytes | int, told: bool = True) -> None:
        """A buffer with these bytes, or with so much room, in two pieces where it has two bytes."""
        n, at = self.count[queue], BASE + PLACE * queue
        pa, head = self.buffer(queue, n), n % (NUM // 2) * 2
        length = content if isinstance(content, int) else len(content)
        flags = WRITE if isinstance(content, int) else 0
        if isinstance(content, bytes):
            self.memory.write(pa, content)
        rows = [(pa, length // 2, flags | NEXT), (pa + length // 2, length - length // 2, flags)]
        for index, (start, size, flag) in enumerate(rows):
            self.store(at + 16 * (head + index), "<QIHH", start, size, flag, head + 1)
        self.store(at + 0x204 + 2 * (n % NUM), "<H", head)
        self.count[queue] = n + 1
        self.store(at + 0x202, "<H", n + 1 & 0xFFFF)
        if told:
            self.put(mmio.QUEUE_NOTIFY, queue)

    def back(self, queue: int) -> list[bytes]:
        """What was stored in the buffers that came back since this was asked last."""
        found, at = [], BASE + PLACE * queue
        while self.load(at + 0x402, "<H")[0] != self.taken[queue] & 0xFFFF:
            n = self.taken[queue]
            head, length = self.load(at + 0x404 + 8 * (n % NUM), "<II")
            assert head == n % (NUM // 2) * 2
            found.append(self.memory.read(self.buffer(queue, n), length))
            self.taken[queue] = n + 1
        return found

    def control(self, port: int, event: int, value: int) -> None:
        self.give(3, struct.pack("<IHH", port, event, value))
        self.run()

    def told(self) -> list[tuple[int, int, int, bytes]]:
        """The device's control messages: port, event, value, and what is behind; room for more is given."""
        found: list[tuple[int, int, int, bytes]] = []
        while True:
            while self.count[2] - self.taken[2] < NUM // 2:
                self.give(2, 100)
            self.run()
            messages = self.back(2)
            if not messages:
                return found
            found += [(*struct.unpack_from("<IHH", message), message[8:]) for message in messages]

    def begin(self) -> None:
        """Both ports are open on this side."""
        self.control(0, DEVICE_READY, 1)
        for port in range(len(self.ports)):
            self.control(port, PORT_READY, 1)
            self.control(port, PORT_OPEN, 1)
        self.told()


def test_console_tells_of_its_ports() -> None:
    """Which there are, when the driver is there; of each, when that is ready, its kind, its name, and who is there."""
    driver = ConsoleDriver(ScriptPort("org.first"), ScriptPort("zweiter é", console=True, opened=False))
    assert driver.get(mmio.DEVICE_ID) == 3 and driver.get(mmio.CONFIG + 4) == 2
    assert driver.told() == []
    driver.control(0, DEVICE_READY, 1)
    assert driver.told() == [(0, DEVICE_ADD, 1, b""), (1, DEVICE_ADD, 1, b"")]
    driver.control(1, PORT_READY, 1)
    assert driver.told() == [(1, CONSOLE_PORT, 1, b""), (1, PORT_NAME, 1, "zweiter é".encode())]
    driver.control(0, PORT_READY, 1)
    assert driver.told() == [(0, PORT_NAME, 1, b"org.first"), (0, PORT_OPEN, 1, b"")]
    driver.ports[0].opened = False
    driver.ports[1].opened = True
    assert driver.told() == [(0, PORT_OPEN, 0, b""), (1, PORT_OPEN, 1, b"")]


def test_console_without_several_ports_has_one() -> None:
    """A driver that knows of one only sends and receives, and nothing is told."""
    driver = ConsoleDriver(features=1 << 32)
    driver.give(0, 100)
    driver.give(1, b"up")
    driver.give(2, 100)
    driver.control(0, DEVICE_READY, 1)
    driver.ports[0].send(b"down")
    driver.run()
    assert driver.back(0) == [b"down"] and driver.ports[0].received() == b"up"
    assert driver.back(2) == driver.back(3) == []


def test_console_sends_at_its_latency_and_keeps_what_nobody_reads() -> None:
    """Nothing leaves before; nothing comes to a port that the guest has not opened, and all of it then."""
    driver = ConsoleDriver()
    driver.begin()
    driver.control(0, PORT_OPEN, 0)
    driver.ports[0].send(b"for later")
    driver.give(0, 100)
    driver.run()
    assert driver.back(0) == []
    driver.control(0, PORT_OPEN, 1)
    assert driver.back(0) == [b"for later"]
    driver.give(1, b"x")
    assert driver.clock.next_event() == driver.clock.now() + LATENCY_NS
    assert driver.ports[0].received() == b""
    driver.run()
    assert driver.ports[0].received() == b"x"
    driver.ports[0].opened = False
    driver.give(1, b"to nobody")
    driver.run()
    driver.ports[0].opened = True
    assert driver.back(1) == [b"", b""] and driver.ports[0].received() == b""


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["send", "give", "room", "run", "take"]), st.integers(0, 1), st.integers(0, 900)),
    max_size=60,
)


@settings(deadline=None, max_examples=round(80 * SCALE))
@given(ACTIONS, st.integers(40, 700))
def test_bytes_come_as_they_were_sent(actions: list[tuple[str, int, int]], waiting: int) -> None:
    """Over both ports, both ways, in order, however slowly either side takes them: nothing is lost, and no more waits
    than may.
    """
    before, back_ends.WAITING = back_ends.WAITING, waiting
    try:
        driver = ConsoleDriver()
        driver.begin()
        down, up = [bytearray(), bytearray()], [bytearray(), bytearray()]
        came, went = [bytearray(), bytearray()], [bytearray(), bytearray()]
        count = 0

        def collect(port: int) -> None:
            part = driver.ports[port].received()
            assert len(part) <= waiting
            went[port] += part
            driver.back(4 * port + 1)
            for data in driver.back(4 * port):
                came[port] += data

        end = [("room", 0, 900), ("room", 1, 900), ("run", 0, 0), ("take", 0, 0)] * (len(actions) + 4)
        for what, port, size in [*actions, *end]:
            receive = 4 * port
            if what == "send":
                content = bytes(count + n & 0xFF for n in range(size))
                driver.ports[port].send(content)
                down[port] += content
            elif what == "give" and driver.count[receive + 1] - driver.taken[receive + 1] < NUM // 2:
                content = bytes(count + n & 0xFF for n in range(size))
                driver.give(receive + 1, content)
                up[port] += content
            elif what == "room" and size and driver.count[receive] - driver.taken[receive] < NUM // 2:
                driver.give(receive, size)
            elif what == "run":
                driver.run()
            elif what == "take":
                collect(0)
                collect(1)
            count += size
        before_that = -1
        while sum(map(len, went)) > before_that:
            before_that = sum(map(len, went))
            driver.run()
            collect(0)
            collect(1)
        assert (went, came) == (up, down)
    finally:
        back_ends.WAITING = before


def test_guest_waits_for_a_port_that_is_full() -> None:
    """What it sends stays with it, so nothing grows; and a state that is taken then goes on where it was."""
    driver = ConsoleDriver()
    driver.begin()
    sent = b""
    for n in range(60):
        content = bytes([n]) * 4000
        if driver.count[1] - driver.taken[1] == NUM // 2:
            break
        driver.give(1, content)
        sent += content
        driver.run()
        driver.back(1)
    assert len(sent) > WAITING
    state = driver.device.snapshot()
    first = driver.ports[0].received()
    assert first == sent[:WAITING]
    other = ConsoleDriver()
    other.memory.data[:] = driver.memory.data
    other.device.restore(state)
    other.device.look()
    for each in (driver, other):
        each.run()
        assert each.ports[0].received() == sent[WAITING:]


@settings(deadline=None, max_examples=round(150 * SCALE))
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.one_of(
                st.binary(max_size=12),
                st.integers(0, 40),
                st.builds(
                    lambda *message: struct.pack("<IHH", *message),
                    st.one_of(st.integers(0, 17), st.integers(0, 0xFFFF_FFFF)),
                    st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)),
                    st.integers(0, 2),
                ),
            ),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.binary(min_size=16, max_size=16)), max_size=4),
)
def test_hostile_messages_and_rings_stop_the_device_at_worst(
    gifts: list[tuple[int, bytes | int, bool]], broken: list[tuple[int, int, bytes]]
) -> None:
    """Whatever is in them: nothing is raised, events end, and behind a reset all is as at first."""
    driver = ConsoleDriver()
    driver.control(0, DEVICE_READY, 1)
    for n, (queue, content, run) in enumerate(gifts):
        driver.give(queue, content)
        if n % 5 == 0:
            driver.ports[n % 2].send(b"something")
        if n == len(gifts) // 2:
            for where, index, row in broken:
                driver.memory.write(BASE + PLACE * where + 16 * index, row)
        if run:
            driver.run()
    for _ in range(3000):
        if not driver.clock.jump():
            break
        before = driver.memory.accesses
        driver.clock.fire()
        assert driver.memory.accesses - before < 30_000
    else:
        raise AssertionError("events without end")
    assert driver.memory.largest <= mmio.CHUNK
    driver.start()
    driver.ports[0].read(WAITING)
    driver.ports[0].received()
    assert not driver.needs_reset
    driver.begin()
    driver.give(0, 10)
    driver.ports[0].send(b"again")
    driver.give(1, b"and back")
    driver.run()
    assert driver.back(0) == [b"again"] and driver.ports[0].received() == b"and back"


def test_buffer_outside_ram_stops_the_device() -> None:
    """Of any queue, with what there is for it."""
    for queue in (0, 1, 2, 3):
        driver = ConsoleDriver()
        if queue != 2:
            driver.begin()
        else:
            driver.control(0, DEVICE_READY, 1)
        driver.ports[0].send(b"x" * 8)
        at = BASE + PLACE * queue
        head = driver.count[queue] % (NUM // 2) * 2
        driver.give(queue, 8 if queue % 2 == 0 else b"12345678", told=False)
        driver.store(at + 16 * head, "<Q", BASE + RAM_BYTES)
        driver.put(mmio.QUEUE_NOTIFY, queue)
        driver.run()
        assert driver.needs_reset and driver.clock.next_event() == NEVER


def test_console_goes_on_where_there_is_much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one event moves."""
    monkeypatch.setattr(virtio_console, "BURST", 2)
    driver = ConsoleDriver()
    driver.begin()
    for n in range(4):
        driver.give(1, b"%d" % n, told=False)
        driver.give(0, 2, told=False)
    driver.ports[0].send(b"abcdefgh")
    driver.put(mmio.QUEUE_NOTIFY, 1)
    driver.run()
    assert driver.ports[0].received() == b"0123"
    assert driver.back(0) == [b"ab", b"cd", b"ef", b"gh"]


def test_device_that_stops_at_a_message_hears_no_more() -> None:
    """One that opens a port whose buffer is outside RAM: what is behind it stays in the queue."""
    driver = ConsoleDriver()
    driver.begin()
    driver.control(0, PORT_OPEN, 0)
    driver.ports[0].send(b"x")
    driver.back(3)
    driver.give(0, 8, told=False)
    driver.store(BASE, "<Q", BASE + RAM_BYTES)
    for value in (1, 1):
        driver.give(3, struct.pack("<IHH", 0, PORT_OPEN, value), told=False)
    driver.put(mmio.QUEUE_NOTIFY, 3)
    driver.run()
    assert driver.needs_reset and len(driver.back(3)) == 1


def test_ports_that_cannot_be_are_refused() -> None:
    """In one sentence."""
    for ports, said in [
        ([ScriptPort("a"), ScriptPort("a")], "two ports of a machine have the name 'a'"),
        ([ScriptPort("")], f"a port needs a name of at most {NAME_MOST} bytes, not ''"),
        ([ScriptPort("é" * 33)], "a port needs a name of at most"),
        ([ScriptPort(str(n)) for n in range(PORTS + 1)], "a machine has at most 16 ports, not 17"),
    ]:
        with pytest.raises(MachineError, match=said):
            virt(16 * MiB, engine="reference", ports=ports)


# Sockets of the host


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not so():
        assert time.monotonic() < end
        time.sleep(0.002)


def reach(path: Path) -> socket.socket:
    program = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    program.settimeout(10)
    program.connect(str(path))
    return program


def test_socket_carries_both_ways_to_one_program_at_a_time(tmp_path: Path) -> None:
    """What a program has sent before it goes is read yet, and then the next one is there; the socket is the user's."""
    path = tmp_path / "port"
    with SocketPort("port", path) as port:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert not port.opened and port.write(b"to nobody") == 9
        one, two = reach(path), reach(path)
        until(lambda: port.opened)
        assert port.write(b"hello") == 5 and one.recv(100) == b"hello"
        two.sendall(b"second")
        one.sendall(b"first")
        one.close()
        got = b""

        while len(got) < 5:
            got += port.read(2)
        time.sleep(0.05)
        assert got == b"first" and port.read(10) == b""
        until(lambda: not port.opened)
        until(lambda: port.opened)
        while len(got) < 11:
            got += port.read(2)
        assert got == b"firstsecond"
        two.shutdown(socket.SHUT_WR)
        assert port.write(b"still there") == 11 and two.recv(100) == b"still there"
        two.close()
        until(lambda: not port.opened)
    assert not path.exists()


def test_socket_keeps_a_bounded_amount(tmp_path: Path) -> None:
    """Each side that does not read makes the other wait, and all arrives when it does."""
    path = tmp_path / "port"
    with SocketPort("port", path) as port, reach(path) as program:
        until(lambda: port.opened)
        changes = [0]

        def changed() -> None:
            changes[0] += 1

        port.connect(changed)
        up = os.urandom(1 << 16) * 40
        sent = 0
        while (n := port.write(up[sent : sent + 30_000])) or sent < WAITING:
            sent += n
            assert sent < len(up)
            time.sleep(0.001)
        before = changes[0]
        program.setblocking(False)
        got = b""
        while len(got) < sent:
            try:
                got += program.recv(1 << 16)
            except BlockingIOError:
                time.sleep(0.001)
        assert got == up[:sent]
        until(lambda: changes[0] > before)
        down, done = os.urandom(1 << 16) * 40, 0
        while True:
            try:
                done += program.send(down[done:])
            except BlockingIOError:
                time.sleep(0.05)
                try:
                    done += program.send(down[done:])
                except BlockingIOError:
                    break
        assert WAITING < done < len(down)
        program.close()
        took = os.times()
        time.sleep(0.3)
        assert os.times().user + os.times().system - took.user - took.system < 0.2  # nobody runs in circles
        got = b""
        while port.opened:
            got += port.read(10_000)
            time.sleep(0.0005)
        assert got == down[:done]


def test_socket_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file that is there stays; one of a process that is gone is replaced; one that is in use is not."""
    path = tmp_path / "port"
    path.write_text("mine")
    with pytest.raises(MachineError, match=r"port p cannot be at .*port: Address already in use"):
        SocketPort("p", path)
    assert path.read_text() == "mine"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
        gone.bind(str(path))
    with SocketPort("p", path) as port:
        with pytest.raises(MachineError, match="Address already in use"):
            SocketPort("q", path)
        with reach(path):
            until(lambda: port.opened)
    with pytest.raises(MachineError, match="No such file"):
        SocketPort("p", tmp_path / "nowhere" / "port")
    with pytest.raises(MachineError, match="port p cannot be at .*: .*path too long"):
        SocketPort("p", tmp_path / ("x" * 200))
