"""A machine under gdb: the remote protocol over TCP, for one gdb at a time.

`Debugger.run` is used in the place of the machine's own: it runs the machine, and lets it stand while gdb wants that.
A thread reads the connection; everything else happens where the machine runs. While it stands its clock does too,
and nothing that gdb looks at changes what the guest does.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from typing import TYPE_CHECKING

from ringfence.errors import MachineError
from ringfence.machine.exit import Break, Budget, Exit, Idle, PowerOff, Stopped
from ringfence.machine.gdb_packets import Packets, Signal, frame
from ringfence.machine.gdb_stub import EVERYBODY, SIGINT, SIGTRAP, Stub

if TYPE_CHECKING:
    from ringfence.machine.machine import Computer

LOOPBACK = "127.0.0.1"
SEND_SECONDS = 5
"""A gdb that does not read for so long is taken for gone."""
LOOK_SECONDS = 0.05
"""How often a standing machine looks whether somebody else wants it."""
_AHEAD = 256


class Debugger:
    """`computer`, for a gdb that connects to `address`; with `wait` it stands until one has come and lets it go on.

    Raises `MachineError` where nobody can listen there. Port 0 is any that is free.
    """

    def __init__(self, computer: Computer, host: str = LOOPBACK, port: int = 0, *, wait: bool = False) -> None:
        self.computer = computer
        self._listener = _socket_at(host, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._halted = wait
        self._waiting = wait  # until a gdb lets it go on
        self._stub: Stub | None = None
        self._connection: socket.socket | None = None
        self._going = EVERYBODY
        self._said = b""
        self._events: queue.Queue[tuple[socket.socket, bytes | Signal | bool]] = queue.Queue(_AHEAD)
        self._woken = False
        self._paused = False
        self._closed = False
        threading.Thread(target=self._listen, name="ringfence-gdb", daemon=True).start()

    @property
    def attached(self) -> bool:
        """A gdb is there."""
        return self._stub is not None

    def close(self) -> None:
        """Listen no more; a gdb that is there loses its connection."""
        self._closed = True
        for open_ in (self._listener, self._connection):
            if open_ is not None:
                _shut(open_)
        if self._stub is not None:
            self._stub.clear()
            self._stub = None

    def run(self, steps: int | None = None, *, until: int | None = None) -> Exit:
        """As the machine's own, but for the breaks that are gdb's."""
        computer = self.computer
        end = None if steps is None else computer.steps + steps
        while True:
            self._attend()
            while self._halted:
                if computer.stopping or computer.status is not None:
                    return self._tell(computer.run(0))
                self._attend(LOOK_SECONDS)
            left = None if end is None else end - computer.steps
            if (ended := self._go(left, until)) is not None:
                return self._tell(ended)

    def _go(self, left: int | None, until: int | None) -> Exit | None:
        """Run. None: it is gdb's affair that the machine has stopped."""
        computer, going, before = self.computer, self._going, self.computer.steps
        self._paused = False
        ended = computer.run(left, until=until, harts=going.harts, step=going.step)
        if isinstance(ended, Budget) and computer.current == going.step and computer.steps > before:
            self._halt(SIGTRAP)
            return None
        if isinstance(ended, Stopped) and self._paused:
            return None
        if self._stub is not None:
            if isinstance(ended, Break):
                self._halt(ended)
                return None
            if isinstance(ended, Idle):
                self._attend(LOOK_SECONDS)
                return None
        return ended

    def _tell(self, ended: Exit) -> Exit:
        """gdb learns that there is nothing to debug any more."""
        if isinstance(ended, PowerOff) and self._stub is not None:
            self._send(b"W%02x" % (ended.status & 0xFF))
            self._drop()
        return ended

    def _halt(self, why: Break | int) -> None:
        went, self._halted, self._going = self._going, True, EVERYBODY
        if self._stub is not None:
            self._send(self._stub.stopped(why, went))

    # What gdb says, where the machine runs

    def _attend(self, seconds: float = 0) -> None:
        """See to everything that has come, or that comes in so much time."""
        try:
            event = self._events.get(timeout=seconds) if seconds else self._events.get_nowait()
            while True:
                self._heed(*event)
                event = self._events.get_nowait()
        except queue.Empty:
            pass

    def _heed(self, connection: socket.socket, event: bytes | Signal | bool) -> None:
        if event is True:
            self._connection, self._stub = connection, Stub(self.computer)
            self._halted, self._going = True, EVERYBODY
        elif connection is not self._connection or self._stub is None:
            pass
        elif event is False:
            self._drop()
        elif event is Signal.INTERRUPT:
            if not self._halted:
                self._halt(SIGINT)
        elif event is Signal.AGAIN:
            self._send_bytes(self._said)
        elif event is Signal.DAMAGED:
            self._send_bytes(b"-")
        elif isinstance(event, bytes):
            self._packet(self._stub, event)

    def _packet(self, stub: Stub, packet: bytes) -> None:
        if stub.acknowledges:
            self._send_bytes(b"+")
        stub.resume = None
        if (reply := stub.answer(packet)) is not None:
            self._send(reply)
        if stub.ended is not None:
            self._waiting = False
            self._drop()
            if stub.ended == "killed":
                self.computer.power_off(0)
        elif stub.resume is not None and self._halted:
            self._halted, self._going = False, stub.resume
            self._waiting = False
            self.computer.pass_breakpoint()

    def _drop(self) -> None:
        """gdb is gone, or as good as that: the machine goes on without it, unless it still waits for its first."""
        if self._stub is not None and self._connection is not None:
            self._stub.clear()
            _shut(self._connection)
        self._stub = self._connection = None
        self._halted, self._going = self._waiting, EVERYBODY

    def _send(self, payload: bytes) -> None:
        self._said = frame(payload)
        self._send_bytes(self._said)

    def _send_bytes(self, data: bytes) -> None:
        try:
            if self._connection is not None:
                self._connection.sendall(data)
        except OSError:
            self._drop()

    # The thread of the connection

    def _listen(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
                self._put(connection, True)
                packets = Packets()
                while data := connection.recv(4096):
                    for event in packets.feed(data):
                        self._put(connection, event)
            except OSError:
                pass
            self._put(connection, False)

    def _put(self, connection: socket.socket, event: bytes | Signal | bool) -> None:
        while not self._closed:
            try:
                self._events.put((connection, event), timeout=0.2)
                break
            except queue.Full:
                pass
        if not self._woken:
            self._woken = True
            self.computer.feed(self._wake)

    def _wake(self) -> None:
        """Delivered at a check point of the running machine."""
        self._woken = False
        self._paused = True
        self.computer.pause()


def target(host: str, port: int) -> str:
    """The address as gdb takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _socket_at(host: str, port: int) -> socket.socket:
    """Listens there, by IPv4 where a name has both."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server((address[0], port, *address[2:]), family=family, backlog=16)
    except ValueError:
        why = "that is no name of a host"
    except socket.gaierror as error:
        why = str(error.strerror)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    raise MachineError(f"gdb cannot be waited for at {target(host, port)}: {why}")


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
