"""The host's network behind a guest's device: both ways over the loopback device, with Debian's own driver."""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import md5

import pytest

from ringfence import Image, MachineError, MiB, load, nested
from ringfence.machine.device import user_network
from ringfence.machine.device.user_network import GUEST, HOST, HOST6, LIBRARY, Forward, UserNetwork

BULK = 2_000_000


def there() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


needs_library = pytest.mark.skipif(not there(), reason=f"the host has no {LIBRARY}")


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(data: bytes, address: str = "127.0.0.1") -> Iterator[int]:
    """A port of the host's that gives this to one who comes."""
    server = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)

    def serve() -> None:
        connection, _ = server.accept()
        with closing(connection):
            connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    with closing(server):
        yield server.getsockname()[1]
        thread.join()


@needs_library
@pytest.mark.parametrize("depth", [0, 2])
def test_debian_reaches_the_host_and_is_reached(depth: int, debian: Image) -> None:
    """An address by DHCP, TCP and UDP to servers on the host, TCP from the host to a forwarded port; and an IPv6
    address from the router that the network is, with TCP to a server on the host.
    """
    port = free_port()
    got: list[bytes] = []

    def client() -> None:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
            connection.settimeout(20)
            got.append(connection.recv(100))

    with UserNetwork((Forward(port, 99),)) as network, serving(b"x" * BULK) as server:
        machine = nested(depth, 96 * MiB, clock="host", links=[network])
        load(machine, debian.kernel, initrd=[debian.initrd.read_bytes()], append=debian.append(command=False))
        console = machine.console
        console.expect("~# ")
        console.send("ifconfig eth0 up; udhcpc -i eth0 -n -q -s /bin/true; echo DO''NE1\n")
        console.expect("DONE1")
        assert f"lease of {GUEST} obtained from {HOST}" in console.text
        console.send(f"ifconfig eth0 {GUEST}; nc {HOST} {server} | wc -c; echo DO''NE2\n")
        console.expect("DONE2")
        assert f"\n{BULK}\r" in console.text
        with serving(b"x" * BULK, "::1") as server6:
            console.send(
                "until ip -6 addr show eth0 | grep -v tentative | grep -q fec0; do sleep 0.2; done; echo DO''NE6\n"
            )
            console.expect("DONE6")
            console.send(f"nc {HOST6} {server6} | md5sum; echo DO''NE7\n")
            console.expect("DONE7")
        assert md5(b"x" * BULK).hexdigest() in console.text
        console.send("(sleep 1; echo RE''ADY) & echo hallo | nc -l -p 99; echo DO''NE3\n")
        console.expect("READY")
        thread = threading.Thread(target=client)
        thread.start()
        console.expect("DONE3")
        thread.join()
        assert got == [b"hallo\n"]
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as datagrams:
            datagrams.bind(("127.0.0.1", 0))
            datagrams.settimeout(20)
            thread = threading.Thread(target=tftp, args=(datagrams,))
            thread.start()
            console.send(f"tftp -g -r name -l got {HOST} {datagrams.getsockname()[1]}; cat got; echo DO''NE4\n")
            console.expect("DONE4")
            thread.join()
        assert "\na datagram\r" in console.text


def tftp(server: socket.socket) -> None:
    """The only block of a file (RFC 1350)."""
    request, there = server.recvfrom(1000)
    assert request.startswith(b"\0\1name\0")
    server.sendto(b"\0\3\0\1a datagram\n", there)


@needs_library
def test_port_that_is_taken_is_refused_in_a_sentence() -> None:
    """And one that was forwarded is free when the network is closed."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"TCP port {port} of 127.0.0.1 cannot be had"):
            UserNetwork((Forward(port, 22),))
    port = free_port()
    for _ in range(3):
        with UserNetwork((Forward(port, 22), Forward(port, 22, udp=True))), pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port), reuse_port=False)


@needs_library
def test_frames_that_nobody_takes_are_bounded() -> None:
    """A guest that sends faster than the host takes loses frames, and the host goes on."""
    with UserNetwork() as network:
        for n in range(20_000):
            network.send(bytes((n & 0xFF,)) * 60)
            assert len(network._frames) <= user_network.WAITING


def test_missing_library_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_network, "LIBRARY", "libslirp.so.none")
    user_network._library.cache_clear()
    with pytest.raises(MachineError, match=r"needs the library libslirp.so.none: install it \(Debian's package is"):
        UserNetwork()
    user_network._library.cache_clear()
