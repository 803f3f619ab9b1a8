"""A switch: Ethernet frames between machines by their addresses.

Source: IEEE 802.1Q, "Bridge operation": learning and forwarding; no spanning tree, as there are no loops of ports.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ringfence.errors import MachineError
from ringfence.machine.device.virtio_net import Link

ADDRESS = 6
"""Bytes of an address. A frame begins with its destination, then its source."""
LEARNED = 1024
"""Addresses that are remembered; the one that was heard longest ago makes room."""
PREFIX = bytes.fromhex("02524600")
"""Of the addresses of ports' devices: locally administered; their number follows."""
MOST = (1 << 16) - 1
_GROUP = 1
"""In the first byte: of a group, as broadcast."""


class Switch:
    """`uplink`: a link of the monitor's own machine, as one port more."""

    def __init__(self, uplink: Link | None = None) -> None:
        self._ports: list[Port] = []
        self._given = 0
        self._heard: OrderedDict[bytes, Port] = OrderedDict()
        """By address: the port that it sends from."""
        self.forwarded = self.flooded = 0
        """Frames to the one port of their destination, and to all."""
        if uplink is not None:
            trunk = self.port()
            trunk.connect(uplink.send)
            uplink.connect(trunk.send)

    def port(self) -> Port:
        """A link for one more device. Raises MachineError."""
        if self._given == MOST:
            raise MachineError(f"a switch has had {MOST} ports, and has no more")
        self._given += 1
        self._ports.append(port := Port(self, PREFIX + self._given.to_bytes(2, "big")))
        return port

    def take(self, port: Port, frame: bytes) -> None:
        """A frame has come in at a port."""
        target, source = frame[:ADDRESS], frame[ADDRESS : 2 * ADDRESS]
        if not source[0] & _GROUP:
            self._heard[source] = port
            self._heard.move_to_end(source)
            if len(self._heard) > LEARNED:
                self._heard.popitem(last=False)
        there = None if target[0] & _GROUP else self._heard.get(target)
        if there is None:
            self.flooded += 1
            for other in self._ports:
                if other is not port:
                    other.give(frame)
        elif there is not port:
            self.forwarded += 1
            there.give(frame)

    def unplug(self, port: Port) -> None:
        self._ports.remove(port)
        for address in [address for address, at in self._heard.items() if at is port]:
            del self._heard[address]


class Port:
    """A link (machine.device.virtio_net) of a switch."""

    def __init__(self, switch: Switch, mac: bytes) -> None:
        self._switch, self.mac = switch, mac
        self.give: Callable[[bytes], None] = lambda frame: None
        """A frame for what is plugged in."""

    def connect(self, receive: Callable[[bytes], None]) -> None:
        self.give = receive

    def send(self, frame: bytes) -> None:
        self._switch.take(self, frame)

    def leave(self) -> None:
        """The machine is no more."""
        self._switch.unplug(self)
