"""A network without rights on the host: NAT to the host's own by libslirp, with DHCP, DNS and forwarded ports.

The library (https://gitlab.freedesktop.org/slirp/libslirp) is loaded when it is first needed; structures and functions
are those of its header, configuration version 1. One thread owns it. IPv4: the guest is 10.0.2.15, the host 10.0.2.2,
the name server 10.0.2.3; IPv6: fec0::/64.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from ringfence.errors import MachineError

LIBRARY = "libslirp.so.0"
PACKAGE = "libslirp0"
"""Debian's name of it."""
GUEST, HOST, NAMES, NETWORK, MASK = "10.0.2.15", "10.0.2.2", "10.0.2.3", "10.0.2.0", "255.255.255.0"
PREFIX6, HOST6, NAMES6 = "fec0::", "fec0::2", "fec0::3"
LOOPBACK = "127.0.0.1"
WAITING = 256
"""Frames of the guest's that wait for the thread; what comes then is lost."""
PATIENCE = 1000
"""Milliseconds, at most, between two looks at timers."""

_IN, _OUT, _PRI, _ERR, _HUP = (1 << n for n in range(5))
_TO_POLL = ((_IN, select.POLLIN), (_OUT, select.POLLOUT), (_PRI, select.POLLPRI))
_FROM_POLL = (*_TO_POLL, (_ERR, select.POLLERR), (_HUP, select.POLLHUP))

_Write = c.CFUNCTYPE(c.c_ssize_t, c.c_void_p, c.c_size_t, c.c_void_p)
_Text = c.CFUNCTYPE(None, c.c_char_p, c.c_void_p)
_Now = c.CFUNCTYPE(c.c_int64, c.c_void_p)
_Fire = c.CFUNCTYPE(None, c.c_void_p)
_New = c.CFUNCTYPE(c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p)
_Free = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)
_Modify = c.CFUNCTYPE(None, c.c_void_p, c.c_int64, c.c_void_p)
_File = c.CFUNCTYPE(None, c.c_int, c.c_void_p)
_Notify = c.CFUNCTYPE(None, c.c_void_p)
_AddPoll = c.CFUNCTYPE(c.c_int, c.c_int, c.c_int, c.c_void_p)
_GetEvents = c.CFUNCTYPE(c.c_int, c.c_int, c.c_void_p)


class _Callbacks(c.Structure):
    _fields_ = [
        ("send_packet", _Write),
        ("guest_error", _Text),
        ("clock_get_ns", _Now),
        ("timer_new", _New),
        ("timer_free", _Free),
        ("timer_mod", _Modify),
        ("register_poll_fd", _File),
        ("unregister_poll_fd", _File),
        ("notify", _Notify),
        ("init_completed", c.c_void_p),
        ("timer_new_opaque", c.c_void_p),
    ]


_Address6 = c.c_uint32 * 4
"""An in6_addr, aligned as C has it."""


class _Config(c.Structure):
    _fields_ = [
        ("version", c.c_uint32),
        ("restricted", c.c_int),
        ("in_enabled", c.c_bool),
        ("vnetwork", c.c_uint32),
        ("vnetmask", c.c_uint32),
        ("vhost", c.c_uint32),
        ("in6_enabled", c.c_bool),
        ("vprefix_addr6", _Address6),
        ("vprefix_len", c.c_uint8),
        ("vhost6", _Address6),
        ("vhostname", c.c_char_p),
        ("tftp_server_name", c.c_char_p),
        ("tftp_path", c.c_char_p),
        ("bootfile", c.c_char_p),
        ("vdhcp_start", c.c_uint32),
        ("vnameserver", c.c_uint32),
        ("vnameserver6", _Address6),
        ("vdnssearch", c.c_void_p),
        ("vdomainname", c.c_char_p),
        ("if_mtu", c.c_size_t),
        ("if_mru", c.c_size_t),
        ("disable_host_loopback", c.c_bool),
        ("enable_emu", c.c_bool),
    ]


class Forward(NamedTuple):
    """A port of the host's, at one address of its or at all (0.0.0.0), that is the guest's."""

    host: int
    guest: int
    udp: bool = False
    address: str = LOOPBACK

    def __str__(self) -> str:
        return f"{'UDP' if self.udp else 'TCP'} port {self.host} of {self.address}"


@cache
def _library() -> c.CDLL:
    """Raises MachineError."""
    try:
        library = c.CDLL(LIBRARY)
    except OSError:
        raise MachineError(
            f"a network to the host needs the library {LIBRARY}: install it (Debian's package is {PACKAGE})"
        ) from None
    library.slirp_new.restype = c.c_void_p
    library.slirp_new.argtypes = [c.POINTER(_Config), c.POINTER(_Callbacks), c.c_void_p]
    library.slirp_cleanup.argtypes = [c.c_void_p]
    library.slirp_pollfds_fill.argtypes = [c.c_void_p, c.POINTER(c.c_uint32), _AddPoll, c.c_void_p]
    library.slirp_pollfds_poll.argtypes = [c.c_void_p, c.c_int, _GetEvents, c.c_void_p]
    library.slirp_input.argtypes = [c.c_void_p, c.c_char_p, c.c_int]
    library.slirp_add_hostfwd.argtypes = [c.c_void_p, c.c_int, c.c_uint32, c.c_int, c.c_uint32, c.c_int]
    return library


class UserNetwork:
    """A link (machine.device.virtio_net) to the host's network."""

    mac = bytes.fromhex("025246000001")

    def __init__(self, forwards: tuple[Forward, ...] = ()) -> None:
        """Raises MachineError where the library is missing, or a port is another's."""
        self._slirp_functions = _library()
        self._receive: Callable[[bytes], None] = lambda frame: None
        self._frames: deque[bytes] = deque()
        self._timers: dict[int, tuple[Callable[[int], None], int, int | None]] = {}
        """By handle: what to call, with what, when (ms)."""
        self._given = 0
        self._polled: list[tuple[int, int]] = []
        """Files and events, as the library asked for them."""
        self._found: dict[int, int] = {}
        self._closing = False
        self._stirred = False
        """The thread will look at frames that have come by now."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._callbacks = self._make_callbacks()
        self._add_poll, self._get_events = _AddPoll(self._add), _GetEvents(self._events)
        config = _configuration()
        self._slirp = self._slirp_functions.slirp_new(c.byref(config), c.byref(self._callbacks), None)
        if not self._slirp:
            os.close(self._wake)
            raise MachineError("libslirp gives no network")
        for forward in forwards:
            there = _number(forward.address), forward.host, _number(GUEST), forward.guest
            if self._slirp_functions.slirp_add_hostfwd(self._slirp, int(forward.udp), *there):
                self._slirp_functions.slirp_cleanup(self._slirp)
                os.close(self._wake)
                raise MachineError(f"{forward} cannot be had: something else has it, or it is not for this user")
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    # A link

    def connect(self, receive: Callable[[bytes], None]) -> None:
        self._receive = receive

    def send(self, frame: bytes) -> None:
        if len(self._frames) < WAITING and not self._closing:  # then the descriptor is another's
            self._frames.append(frame)
            if not self._stirred:
                self._stirred = True
                self._stir()

    def close(self) -> None:
        """Forwarded ports are free again; once is enough."""
        if not self._closing:
            self._closing = True
            self._stir()
            self._thread.join()
            self._slirp_functions.slirp_cleanup(self._slirp)
            os.close(self._wake)

    def __enter__(self) -> UserNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The thread

    def _stir(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        functions, slirp = self._slirp_functions, self._slirp
        while not self._closing:
            timeout = c.c_uint32(PATIENCE)
            self._polled.clear()
            functions.slirp_pollfds_fill(slirp, c.byref(timeout), self._add_poll, None)
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            wanted: dict[int, int] = {}
            for fd, events in self._polled:
                wanted[fd] = wanted.get(fd, 0) | sum(theirs for ours, theirs in _TO_POLL if events & ours)
            for fd, mask in wanted.items():
                poll.register(fd, mask)
            due = [when for _, _, when in self._timers.values() if when is not None]
            wait = min(timeout.value, max(min(due, default=PATIENCE + _now()) - _now(), 0))
            self._found = dict(poll.poll(wait))
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            self._stirred = False
            functions.slirp_pollfds_poll(slirp, 0, self._get_events, None)
            for handle, (call, argument, when) in list(self._timers.items()):
                if when is not None and when <= _now() and handle in self._timers:
                    self._timers[handle] = call, argument, None
                    call(argument)
            while self._frames:
                frame = self._frames.popleft()
                functions.slirp_input(slirp, frame, len(frame))

    def _add(self, fd: int, events: int, _: Any) -> int:
        self._polled.append((fd, events))
        return len(self._polled) - 1

    def _events(self, index: int, _: Any) -> int:
        fd, events = self._polled[index]
        found = self._found.get(fd, 0)
        return sum(ours for ours, theirs in _FROM_POLL if found & theirs) & (events | _ERR | _HUP)

    # What the library asks for

    def _make_callbacks(self) -> _Callbacks:
        def send(data: int, length: int, _: Any) -> int:
            self._receive(c.string_at(data, length))
            return length

        def new(call: int, argument: int, _: Any) -> int:
            self._given += 1
            self._timers[self._given] = _Fire(call), argument, None
            return self._given

        def free(handle: int, _: Any) -> None:
            self._timers.pop(handle, None)

        def modify(handle: int, when: int, _: Any) -> None:
            call, argument, _when = self._timers[handle]
            self._timers[handle] = call, argument, when

        return _Callbacks(
            _Write(send),
            _Text(lambda text, _: None),
            _Now(lambda _: time.monotonic_ns()),
            _New(new),
            _Free(free),
            _Modify(modify),
            _File(lambda fd, _: None),
            _File(lambda fd, _: None),
            _Notify(lambda _: self._stir()),
            None,
            None,
        )


def _now() -> int:
    return time.monotonic_ns() // 1_000_000


def _number(address: str) -> int:
    """As the library takes it: in the order of the network."""
    return int.from_bytes(socket.inet_aton(address), "little")


def _configuration() -> _Config:
    def six(address: str) -> Any:
        return _Address6.from_buffer_copy(socket.inet_pton(socket.AF_INET6, address))

    return _Config(
        version=1,
        in_enabled=True,
        vnetwork=_number(NETWORK),
        vnetmask=_number(MASK),
        vhost=_number(HOST),
        in6_enabled=True,
        vprefix_addr6=six(PREFIX6),
        vprefix_len=64,
        vhost6=six(HOST6),
        vdhcp_start=_number(GUEST),
        vnameserver=_number(NAMES),
        vnameserver6=six(NAMES6),
    )
