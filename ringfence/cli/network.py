"""The network of a guest that runs alone, as it is asked for on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli.options import File

if TYPE_CHECKING:
    from ringfence.machine.device.user_network import Forward
    from ringfence.machine.device.virtio_net import Link

_PORTS = re.compile(r"(?:(?P<address>\d+\.\d+\.\d+\.\d+):)?(?P<host>\d{1,5}):(?P<guest>\d{1,5})(?P<udp>/udp)?(?:/tcp)?")


class Ports(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A port of the host's that is to be one of the guest's."""

    name = "[address:]host:guest[/udp]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Forward:
        from ringfence.machine.device.user_network import LOOPBACK, Forward

        found = _PORTS.fullmatch(str(value))
        if found is None or not all(0 < int(found[name]) < 1 << 16 for name in ("host", "guest")):
            self.fail(f"{value!r} is no pair of ports, as 2222:22, 0.0.0.0:2222:22 or 5353:53/udp is", param, ctx)
        return Forward(int(found["host"]), int(found["guest"]), bool(found["udp"]), found["address"] or LOOPBACK)


network = click.option(
    "--network",
    type=click.Choice(["none", "user"]),
    help="user: a network device, behind which is the host's network, by NAT and with no rights on the host (the guest "
    "is 10.0.2.15, by DHCP, and the host 10.0.2.2). The clock then is the host's if none is given. Default: none, or "
    "user with -p.",
)
publish = click.option(
    "-p",
    "--publish",
    type=Ports(),
    multiple=True,
    metavar="[ADDRESS:]HOST:GUEST[/udp]",
    help="The host's port HOST, on the loopback device where no address is given, is the guest's port GUEST.",
)


pcap = click.option(
    "--pcap",
    type=File(),
    metavar="FILE",
    help="Write the frames of the guest's network to a file, as tcpdump and Wireshark read it.",
)


def open_network(options: dict[str, Any], stack: ExitStack) -> Sequence[Link]:
    """Raises MachineError, UsageError."""
    if options["network"] == "none" and options["publish"]:
        raise click.UsageError("-p is for a guest with a network, and --network none says that it has none")
    if options["network"] != "user" and not options["publish"]:
        if options["pcap"]:
            raise click.UsageError("--pcap is for a guest with a network: ask for one by --network user")
        return ()
    from ringfence.machine.device.user_network import UserNetwork

    source = click.get_current_context().get_parameter_source("clock")
    if source is not None and source.name.startswith("DEFAULT"):
        options["clock"] = "host"  # by the virtual one a guest that waits for an answer has waited long enough at once
    links = [stack.enter_context(UserNetwork(options["publish"]))]
    return captured(links, Path(options["pcap"]), stack) if options["pcap"] else links


def captured(links: Sequence[Link], path: Path, stack: ExitStack) -> Sequence[Link]:
    """The same links, with what goes through them in a file too. Raises MachineError."""
    from ringfence.machine.device.capture import Capture, Captured

    capture = stack.enter_context(closing(Capture(path)))
    return [Captured(link, capture) for link in links]


def tell_time(links: Sequence[Link], now: Callable[[], int]) -> None:
    """Frames in files have the guest's time (ns)."""
    from ringfence.machine.device.capture import Captured

    for link in links:
        if isinstance(link, Captured):
            link.capture.now = now
