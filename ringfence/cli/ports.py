"""The ports of a guest that runs alone, as they are asked for on the command line."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ringfence.machine.device.ports import SocketPort


class Port(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The name of a port, and where its socket is."""

    name = "name=path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, path = str(value).partition("=")
        if not (name and equals and path):
            self.fail(f"{value!r} is no port, as agent=/run/user/1000/agent.sock is", param, ctx)
        return name, path


port = click.option(
    "--port",
    "ports",
    type=Port(),
    multiple=True,
    metavar="NAME=PATH",
    help="A port of the guest's, in Linux /dev/vportNpM with that name, which programs of the host connect to, one at "
    "a time, by a UNIX-domain socket at PATH; up to 16. The clock then is the host's if none is given.",
)


def open_ports(options: dict[str, Any], stack: ExitStack) -> list[SocketPort]:
    """Raises MachineError."""
    if not options["ports"]:
        return []
    from ringfence.machine.device.ports import SocketPort

    source = click.get_current_context().get_parameter_source("clock")
    if source is not None and source.name.startswith("DEFAULT"):
        options["clock"] = "host"  # by the virtual one a guest that waits for a program has waited long enough at once
    return [stack.enter_context(SocketPort(name, path)) for name, path in options["ports"]]
