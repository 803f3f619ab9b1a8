"""What is typed on the command line: types of parameters, and the options that several commands have."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ringfence.machine.clock import Source
    from ringfence.monitor.monitor import Technique

DEEPEST = 64
LONGEST = 1e9
KINDS = ("insn", "trap", "csr", "io")
TECHNIQUES: tuple[Technique, ...] = ("virtualizer", "trap", "trap-s", "vm-bit", "para", "translation")
_UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


class Memory(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """An amount of memory: a number and K, M, G, T or P; MiB without one."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("B").removesuffix("I")
        unit = text[-1:] if text[-1:] in _UNITS else ""
        number = text.removesuffix(unit)
        if not (number.isascii() and number.isdigit() and len(number) < 20):
            self.fail(f"{value!r} is no amount of memory, as 512M or 2G is", param, ctx)
        return int(number) * _UNITS[unit]


class File(click.Path):
    """A path, which has a name in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("a file has a name, and this is empty", param, ctx)
        return super().convert(value, param, ctx)


class Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Some of these names, with commas between."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        self.name, self.known = name, known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(str(value).split(","))
        if unknown := [name for name in names if name not in self.known]:
            self.fail(f"{unknown[0]!r} is none of {', '.join(self.known)}", param, ctx)
        return names


class Address(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A TCP port, perhaps with a host and a colon before it; an IPv6 address is in brackets."""

    name = "[host:]port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        found = re.fullmatch(r"(?:(?:\[(?P<v6>[^]]+)\]|(?P<host>[^]:[]*)):)?(?P<port>[0-9]{1,5})", str(value))
        if found is None or int(found["port"]) >= 1 << 16:
            self.fail(f"{value!r} is no TCP port, as 1234, localhost:1234 or [::1]:1234 is", param, ctx)
        return found["v6"] or found["host"] or "127.0.0.1", int(found["port"])


class Depth(click.IntRange):
    """How many monitors are one on the other."""

    name = "number of monitors"


class Seconds(click.FloatRange):
    """A length of time, no longer than a clock can count."""

    name = "number of seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not seconds <= LONGEST:
            self.fail(f"{value} is not a time of at most {LONGEST:g} seconds", param, ctx)
        return seconds


SECONDS = Seconds(min=0, min_open=True)


def _source(ctx: click.Context, param: click.Parameter, value: Source | None) -> Source:
    return value or ("host" if sys.stdin is not None and sys.stdin.isatty() else "virtual")


memory = click.option(
    "-m",
    "--memory",
    type=Memory(),
    default="512M",
    show_default=True,
    help="RAM, as 96M or 2G; in MiB without a letter.",
)
harts = click.option("--harts", type=int, default=1, show_default=True, help="Harts, which are processors: 1 to 8.")
clock = click.option(
    "--clock",
    type=click.Choice(["virtual", "host"]),
    callback=_source,
    help="Guest time: counted steps, so that a run can be repeated, or the host's. Default: host on a terminal, else "
    "virtual.",
)
wall_timeout = click.option(
    "--wall-timeout", type=SECONDS, metavar="SECONDS", help="End with status 124 after so long in real time."
)
stats = click.option("--stats", is_flag=True, help="At the end, what the monitors had to do, on standard error.")
isa = click.option(
    "--isa",
    type=click.Choice(["base", "hv"]),
    help="What the harts have: hv adds the Hardware Virtualizer, an instruction that launches virtual machines. "
    "Default: hv for vmm, else base.",
)
engine = click.option(
    "--engine",
    type=click.Choice(["threaded", "reference"]),
    help="How instructions run: as native code, or one by one as they are defined, slowly. Default: threaded.",
)
depth = click.option(
    "--depth",
    type=Depth(0, DEEPEST),
    metavar="N",
    default=1,
    show_default=True,
    help="Monitors beneath the guest, one on the other; 0: it has the machine itself.",
)
technique = click.option(
    "--technique",
    type=Names("techniques", TECHNIQUES),
    metavar="NAME[,NAME...]",
    help="How monitors keep control: by the machine's own facility (virtualizer), or by trap and emulate: all of the "
    "guest in user mode (trap), or its kernel in supervisor mode on harts with a VM bit (vm-bit; without one, trap-s, "
    "it goes wrong), or there in translations of its code (translation), or by calls of a guest that knows its "
    "monitor (para). One for all, or one for each, the outermost "
    "first, with commas between. Default: virtualizer.",
)


def techniques(depth: int, given: tuple[Technique, ...] | None) -> Technique | tuple[Technique, ...]:
    """What `nested` is to be told. Raises UsageError."""
    if given is None:
        return "virtualizer"
    if not depth:
        raise click.UsageError("a technique is a monitor's, and at depth 0 there is none")
    return given[0] if len(given) == 1 else given
