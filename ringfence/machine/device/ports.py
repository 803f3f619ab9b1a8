"""What ports of a console device lead to: a script's hands, and a socket of the host's."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from ringfence.errors import MachineError

WAITING = 1 << 16
"""Bytes that wait at a port, each way: whoever sends more waits too."""


def _nobody() -> None:
    pass


class ScriptPort:
    """A port whose bytes a Python program writes and reads."""

    def __init__(self, name: str, *, console: bool = False, opened: bool = True) -> None:
        self.name, self.console = name, console
        self._changed: Callable[[], None] = _nobody
        self._lock = threading.Lock()
        self._opened = opened
        self._to_guest, self._from_guest = bytearray(), bytearray()
        self._full = False
        """The guest waits for room."""

    def connect(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    @property
    def opened(self) -> bool:
        """Whether the guest is told that somebody is there; what it sends is lost else."""
        return self._opened

    @opened.setter
    def opened(self, opened: bool) -> None:
        self._opened = opened
        self._changed()

    def send(self, data: bytes) -> None:
        """The guest gets it from the next check point on, as soon as it reads."""
        with self._lock:
            self._to_guest += data
        self._changed()

    def received(self) -> bytes:
        """What the guest has sent since this was asked last. WAITING bytes are kept; then the guest waits."""
        with self._lock:
            data = bytes(self._from_guest)
            self._from_guest.clear()
            full, self._full = self._full, False
        if full:
            self._changed()
        return data

    def read(self, most: int) -> bytes:
        with self._lock:
            data = bytes(self._to_guest[:most])
            del self._to_guest[:most]
        return data

    def write(self, data: bytes) -> int:
        with self._lock:
            n = min(len(data), WAITING - len(self._from_guest))
            self._from_guest += data[:n]
            self._full = n < len(data)
        return n


class SocketPort:
    """A port that programs of the host connect to, one at a time, by a UNIX-domain socket. Whoever reads does not lose
    what the other side sent before it went.
    """

    console = False

    def __init__(self, name: str, path: str | os.PathLike[str]) -> None:
        """Raises MachineError where there can be no such socket."""
        self.name, self._path = name, os.fspath(path)
        self._changed: Callable[[], None] = _nobody
        self._lock = threading.Lock()
        self._to_guest, self._from_guest = bytearray(), bytearray()
        self._full = self._over = False
        self._heard_all = self._gone = False
        """The peer sends no more; and takes no more."""
        self._told = True
        """Since the last one went `opened` has said that nobody is there: then the next one may come."""
        self._peer: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(self._listener, self._path)
        except (OSError, ValueError) as error:
            self._listener.close()
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise MachineError(f"port {name} cannot be at {self._path}: {why}") from None
        found = os.stat(self._path)
        self._identity = found.st_dev, found.st_ino
        self._listener.setblocking(False)
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._thread = threading.Thread(target=self._serve, name="ringfence-port", daemon=True)
        self._thread.start()

    def connect(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    @property
    def opened(self) -> bool:
        opened = self._peer is not None or bool(self._to_guest)
        if not opened and not self._told:
            self._told = True
            self._ring()
        return opened

    def read(self, most: int) -> bytes:
        with self._lock:
            data = bytes(self._to_guest[:most])
            del self._to_guest[:most]
            over = self._peer is None and not self._to_guest
        if data:
            self._ring()
            if over:
                self._changed()
        return data

    def write(self, data: bytes) -> int:
        with self._lock:
            if self._peer is None or self._gone:
                return len(data)
            n = min(len(data), WAITING - len(self._from_guest))
            self._from_guest += data[:n]
            self._full = n < len(data)
        self._ring()
        return n

    def close(self) -> None:
        """Nobody is there any more, and the socket is gone. What the guest has sent goes to who is there, as far as
        that one takes it at once.
        """
        self._over = True
        self._ring()
        self._thread.join()
        for end in (self._listener, self._bell, self._ear):
            end.close()
        with suppress(OSError):
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ring(self) -> None:
        with suppress(OSError):  # if it is full it is heard
            self._bell.send(b"\0")

    def _serve(self) -> None:
        while not self._over:
            poll = select.poll()
            poll.register(self._ear, select.POLLIN)
            peer = self._peer
            if peer is not None:
                room = len(self._to_guest) < WAITING
                if room or not self._gone:  # that it has gone would be told again and again
                    wanted = select.POLLIN * (room and not self._heard_all) | select.POLLOUT * bool(self._from_guest)
                    poll.register(peer, wanted)
            elif self._told:
                poll.register(self._listener, select.POLLIN)
            events = dict(poll.poll())
            with suppress(OSError):
                self._ear.recv(4096)
            if peer is None:
                if self._listener.fileno() in events:
                    self._accept()
            elif happened := events.get(peer.fileno()):
                self._exchange(peer, happened)
        if self._peer is not None:
            with suppress(OSError):
                self._peer.send(self._from_guest)
            self._peer.close()
            self._peer = None

    def _accept(self) -> None:
        with suppress(OSError):
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._heard_all = self._gone = False
            self._from_guest.clear()
            self._peer = peer
            self._changed()

    def _exchange(self, peer: socket.socket, happened: int) -> None:
        tell = False
        self._gone |= bool(happened & (select.POLLHUP | select.POLLERR))
        try:
            room = WAITING - len(self._to_guest)
            if happened & (select.POLLIN | select.POLLHUP) and room and not self._heard_all:
                data = peer.recv(room)
                with self._lock:
                    self._to_guest += data
                self._heard_all = not data
                tell = True
        except BlockingIOError:
            pass
        except OSError:
            self._gone = self._heard_all = True
        try:
            with self._lock:
                if happened & select.POLLOUT and not self._gone:
                    done = peer.send(self._from_guest)
                    del self._from_guest[:done]
                    tell |= self._full
                    self._full = False
        except BlockingIOError:
            pass
        except OSError:
            self._gone = True
        if self._gone and self._heard_all:
            with self._lock:
                self._peer, self._told = None, False
                self._from_guest.clear()
            peer.close()
            tell = True
        if tell:
            self._changed()


def _bind(listener: socket.socket, path: str) -> None:
    """The socket is the user's own. One that nobody listens at any more is in nobody's way."""
    os.fchmod(listener.fileno(), 0o600)
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _abandoned(path):
            raise
        os.unlink(path)
        listener.bind(path)
    listener.listen(1)


def _abandoned(path: str) -> bool:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False
