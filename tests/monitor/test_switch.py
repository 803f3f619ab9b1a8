"""A switch joins machines: each frame gets where it is to, and stock Debians talk over it, at any depth."""

from __future__ import annotations

import random

import pytest

from ringfence import Image, MiB, Monitor, VirtualMachine, load, virt
from ringfence.monitor.vdevice.switch import LEARNED, Port, Switch

ALL = b"\xff" * 6
MEMORY = 96 * MiB


def test_frames_go_where_they_are_to() -> None:
    """As a model says: to the port that an address was heard from last, or to all others where it was not heard from
    or is a group's; never back.
    """
    rng = random.Random(1)
    switch = Switch()
    ports = [switch.port() for _ in range(4)]
    got: list[list[bytes]] = [[] for _ in ports]
    for mine, port in zip(got, ports, strict=True):
        port.connect(mine.append)
    assert len({port.mac for port in ports}) == 4
    heard: dict[bytes, int] = {}
    addresses = [bytes((2, 0, 0, 0, 0, n)) for n in range(6)] + [ALL, b"\1\0\x5e\0\0\1"]
    for n in range(500):
        source, target, at = rng.choice(addresses), rng.choice(addresses), rng.randrange(4)
        frame = target + source + n.to_bytes(2, "big")
        if not source[0] & 1:
            heard[source] = at
        there = heard.get(target)
        expected = {there} if there is not None else set(range(4))
        ports[at].send(frame)
        assert {k for k, mine in enumerate(got) if mine and mine[-1] == frame} == expected - {at}


def test_what_is_remembered_is_bounded_and_forgotten_with_its_port() -> None:
    switch = Switch()
    one, two = switch.port(), switch.port()
    got: list[bytes] = []
    two.connect(got.append)
    for n in range(2 * LEARNED):
        one.send(ALL + b"\2" + n.to_bytes(5, "big"))
    assert len(switch._heard) == LEARNED
    one.leave()
    assert not switch._heard
    two.send(b"\2" + bytes(5) + b"\4" + bytes(5))  # to nobody
    assert len(got) == 2 * LEARNED


def machines(image: Image) -> tuple[Monitor, list[VirtualMachine]]:
    """A guest, and one on a guest, whose monitor joins its own switch to that guest's port."""
    monitor = Monitor(virt(280 * MiB))
    switch = Switch()
    beside = monitor.create("beside", MEMORY, links=[switch.port()])
    trunk: Port = switch.port()
    outer = monitor.create("outer", 120 * MiB, links=[trunk])
    inner = Monitor(outer).create("inner", MEMORY, links=[Switch(trunk).port()])
    for machine in (beside, inner):
        load(machine, image.kernel, initrd=[image.initrd.read_bytes()], append=image.append(command=False))
    return monitor, [beside, inner]


def until(monitor: Monitor, machine: VirtualMachine, text: str) -> None:
    end = monitor.machine.steps + 6_000_000_000
    while text not in machine.console.text:
        monitor.run(20_000_000)
        assert monitor.machine.steps < end, machine.console.text[-1000:]


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_debians_talk_over_a_switch(runs: int, debian: Image) -> None:
    """Their own drivers, ping, and a megabyte over TCP; the same again in a second run."""
    digests = []
    for _ in range(runs):
        monitor, guests = machines(debian)
        beside, inner = guests
        for n, guest in enumerate(guests):
            until(monitor, guest, "~# ")
            guest.console.send(f"ifconfig eth0 10.0.0.{n + 1} up; echo UP''{n}\n")
            until(monitor, guest, f"UP{n}")
        beside.console.send("ping -c 2 -i 0.1 10.0.0.2; echo PI''NG\n")
        until(monitor, beside, "PING\r")
        assert "2 packets received, 0% packet loss" in beside.console.text
        inner.console.send("nc -l -p 99 | md5sum; echo GO''T\n")
        beside.console.send("yes ringfence | head -c 1000000 > x; md5sum < x; nc 10.0.0.2 99 < x; echo SE''NT\n")
        until(monitor, beside, "SENT")
        until(monitor, inner, "GOT")
        sums = [line for guest in guests for line in guest.console.text.splitlines() if line.endswith("  -")]
        assert len(sums) == 2 and sums[0] == sums[1]
        digests.append([guest.digest() for guest in guests])
    assert all(found == digests[0] for found in digests)
