"""`ringfence run`: boot a guest, with its console here."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import click

from ringfence.errors import NotBootable

if TYPE_CHECKING:
    from ringfence.cli.session import Limits
    from ringfence.guest.image import Image
    from ringfence.guest.loader import Program, Source
    from ringfence.machine.board import Virt
    from ringfence.machine.clock import Source as ClockSource
    from ringfence.machine.device.disk import RawDisk

SILENCE = 10.0
PATIENCE = 6
"""Seconds of real time for one of silence."""
DEEPEST = 64
LONGEST = 1e9
GDB_PORT = "1234"
READ_ONLY = ":ro"
KINDS = ("insn", "trap", "csr", "io")
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


class Kinds(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Names of `KINDS` with commas between."""

    name = "kinds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        kinds = tuple(str(value).split(","))
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            self.fail(f"{unknown[0]!r} is none of {', '.join(KINDS)}", param, ctx)
        return kinds


class Address(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A TCP port, perhaps with a host and a colon before it; an IPv6 address is in brackets."""

    name = "[host:]port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        found = re.fullmatch(r"(?:(?:\[(?P<v6>[^]]+)\]|(?P<host>[^]:[]*)):)?(?P<port>[0-9]{1,5})", str(value))
        if found is None or int(found["port"]) >= 1 << 16:
            self.fail(f"{value!r} is no TCP port, as 1234, localhost:1234 or [::1]:1234 is", param, ctx)
        return found["v6"] or found["host"] or "127.0.0.1", int(found["port"])


@dataclass(frozen=True)
class Guest:
    """What is to run: the loader's arguments."""

    kernel: Source | None
    initrd: tuple[Source, ...]
    append: str
    bios: Source | None
    at_end: bytes
    """What end of input is to it."""
    asks: bool = False
    """It asks for its input."""
    image: Image | None = None
    symbols: Path | None = None
    """What gdb can read them from, where that is not for the user to know."""


_ASK = ("sh", "-c", r"""stty -ixon crtscts; printf '\005'; exec "$@" """.strip(), "sh")
"""Before a command whose input is no terminal: the terminal line is set up by now, and can hold the sender off."""

_SCRIPT = ("sh", "/proc/self/fd/0")
"""Without a person a shell takes its commands from standard input as from a file."""


class Seconds(click.FloatRange):
    """A length of time, no longer than a clock can count."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not seconds <= LONGEST:
            self.fail(f"{value} is not a time of at most {LONGEST:g} seconds", param, ctx)
        return seconds


SECONDS = Seconds(min=0, min_open=True)
EPILOG = """\b
Exit status: the guest's own, and
    2  wrong usage                     127  no image of that name
  124  a time limit, or the guest      129  the terminal was closed
       waits for input and there       130  Ctrl-C outside the raw console
       is no more                      132  the guest panicked, died, or
  125  a fault of Ringfence's own           printed nothing at boot
  126  what was given cannot boot      141  nobody reads the output
"""


@click.command(epilog=EPILOG)
@click.argument("image", required=False)
@click.argument("command", nargs=-1)
@click.option("--kernel", type=File(), help="A kernel: an ELF file or a Linux Image, perhaps in gzip.")
@click.option("--initrd", type=File(), multiple=True, help="Its first file system; several lie one behind the other.")
@click.option("--append", default="", metavar="TEXT", help="Its command line; behind the image's own, for an image.")
@click.option("--bios", type=File(), help="Machine-mode firmware, or 'none'. Default: the built-in SBI.")
@click.option("-m", "--memory", type=Memory(), default="512M", show_default=True, help="RAM, as 96M or 2G.")
@click.option("--harts", type=int, default=1, show_default=True, help="1 to 8.")
@click.option(
    "--disk",
    type=File(),
    multiple=True,
    metavar="FILE[:ro]",
    help="A raw disk image; up to eight. With :ro it is only read, and machines can share it.",
)
@click.option(
    "--clock",
    type=click.Choice(["virtual", "host"]),
    help="Guest time: counted steps, or the host's. Default: host on a terminal, else virtual.",
)
@click.option("--seed", type=int, help="Draw the lengths of the harts' turns from this number.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="End with status 124 at this guest time.")
@click.option("--wall-timeout", type=SECONDS, metavar="SECONDS", help="End with status 124 after so long in real time.")
@click.option(
    "--silence",
    type=Seconds(min=0),
    metavar="SECONDS",
    help="End with status 132 where nothing is printed for so long in guest time; 0: never. "
    f"Default: {SILENCE:g}, for the boot.",
)
@click.option("--stats", is_flag=True, help="At the end, what the monitors had to do, on standard error.")
@click.option("--json", "as_json", is_flag=True, help="At the end, a line of JSON about the run on standard error.")
@click.option("--dump-dtb", type=File(), metavar="FILE", help="Write the device tree and end; '-' is standard output.")
@click.option(
    "--trace",
    type=Kinds(),
    metavar="KINDS",
    help="A line an event on standard error: insn, trap, csr, io, with commas between. Runs on the reference "
    "engine, which is slow.",
)
@click.option(
    "--gdb",
    type=Address(),
    is_flag=False,
    flag_value=GDB_PORT,
    metavar="[[HOST:]PORT]",
    help="Let gdb connect, on the loopback device where no host is given; an IPv6 address is in brackets. "
    f"Without a port it is {GDB_PORT}; 0 is any.",
)
@click.option("-S", "wait", is_flag=True, help="Wait for gdb before the first instruction.")
@click.option(
    "--depth",
    type=click.IntRange(0, DEEPEST),
    default=1,
    show_default=True,
    help="Monitors beneath it, one on the other; 0: it has the machine itself.",
)
@click.option(
    "--technique",
    type=click.Choice(["virtualizer", "trap"]),
    default="virtualizer",
    show_default=True,
    help="How monitors keep control: the machine's own facility, or trap and emulate.",
)
@click.option(
    "--tlb",
    type=click.Choice(["hardware", "software"]),
    default="hardware",
    show_default=True,
    help="What fills the TLB: the machine, from page tables, or the guest, which the embedded one can.",
)
@click.option("--engine", type=click.Choice(["threaded", "reference"]), help="What runs harts. Default: threaded.")
def run(image: str | None, command: tuple[str, ...], **options: Any) -> None:
    """Boot a guest: the embedded one, IMAGE, or a --kernel; with COMMAND, that runs in place of IMAGE's shell.

    Ctrl-a x ends the machine, Ctrl-a h helps.
    """
    if options["trace"] and options["engine"] == "threaded":
        raise click.UsageError(
            "only the reference engine can be traced, so --trace and --engine threaded do not go together"
        )
    if options["wait"] and options["gdb"] is None:
        raise click.UsageError("-S waits for gdb, so it needs --gdb")
    with ExitStack() as stack:
        click.get_current_context().exit(_boot(image, command, options, stack))


def _boot(image: str | None, command: tuple[str, ...], options: dict[str, Any], stack: ExitStack) -> int:
    from ringfence.cli.console import Input, Output, Terminal, is_terminal, report
    from ringfence.cli.session import Session
    from ringfence.guest.loader import load
    from ringfence.monitor.monitor import nested

    person = is_terminal()
    guest = guest_of(image, command, person, options)
    terminal = Terminal(0, raw=person)
    output = Output(1, terminal.wake)
    tree = options["dump_dtb"]
    clock: ClockSource = options["clock"] or ("host" if sys.stdin is not None and sys.stdin.isatty() else "virtual")
    engine: Literal["threaded", "reference"] = (
        "reference" if options["trace"] or tree else options["engine"] or "threaded"
    )
    board = nested(
        options["depth"],
        options["memory"],
        options["harts"],
        clock=clock,
        seed=options["seed"],
        engine=engine,
        console=output,
        disks=open_disks(options["disk"], stack),
        technique=options["technique"],
        tlb=options["tlb"],
    )
    try:
        program = load(board, guest.kernel, initrd=guest.initrd, append=guest.append, bios=guest.bios)
    except NotBootable as error:
        if guest.image is None:
            raise
        from ringfence.cli.image import unbootable

        raise unbootable(guest.image, error) from None
    if tree:
        _dump(tree, program)
        return 0
    if options["trace"]:
        from ringfence.machine.trace import trace

        trace(board, options["trace"], _tracer(sys.stderr))
    limits = _limits(options, engine)
    if command:  # once
        board.on_reset = partial(board.power_off, 0)
    keyboard = Input(0, raw=person, at_end=guest.at_end, literal=guest.asks)
    debugger = None
    if options["gdb"] is not None:
        from ringfence.machine.gdb import LOOPBACK, Debugger, target

        debugger = Debugger(board, *options["gdb"], wait=options["wait"])
        stack.callback(debugger.close)
        host, port = debugger.address
        there = target("" if host == LOOPBACK else host, port)
        report(f"{'waiting for gdb' if options['wait'] else 'gdb can come'}: target remote {there}")
        if guest.symbols is not None:
            report(f"the guest's symbols: symbol-file {shlex.quote(str(guest.symbols))}")
    session = Session(
        board, terminal, keyboard, output, limits, asks=guest.asks, as_json=options["as_json"], debugger=debugger
    )
    status = session.run()
    if options["stats"]:
        from ringfence.monitor.stats import lines

        report("\n".join(lines(board) or ["no monitor is beneath the guest"]))
    return status


def _limits(options: dict[str, Any], engine: str) -> Limits:
    from ringfence.cli.session import Limits

    given = options["silence"]
    silence = SILENCE if given is None else given
    # The reference may take minutes to a guest's first byte.
    patience = PATIENCE * silence if engine == "threaded" else inf
    return Limits(options["timeout"], options["wall_timeout"], silence, given or 0, patience)


def guest_of(image: str | None, command: tuple[str, ...], person: bool, options: dict[str, Any]) -> Guest:
    from ringfence.cli.console import END_OF_FILE
    from ringfence.guest.program import CORRAL, EMBEDDED

    kernel, initrd, append, bios = (options[name] for name in ("kernel", "initrd", "append", "bios"))
    if kernel is None and bios is not None and bios != "none" and image is None:
        return Guest(None, initrd, append, bios, b"")
    if kernel is not None:
        if image is not None:
            raise click.UsageError(f"an image and --kernel do not go together: {image!r} has a kernel of its own")
        return Guest(kernel, initrd, append, bios, b"")
    if initrd:
        raise click.UsageError("--initrd needs a --kernel: an image has its own")
    if image is None or image == EMBEDDED:
        if command:
            raise click.UsageError("the embedded guest runs no command: give it on its console")
        if bios == "none":
            raise click.UsageError("the embedded guest begins in S-mode: --bios none needs a --kernel that does not")
        return Guest(CORRAL, (), append, bios, END_OF_FILE, symbols=CORRAL)

    from ringfence.cli.image import pulled
    from ringfence.guest.image import Store, command_archive

    found = pulled(image)
    line = f"{found.append(command=bool(command))} {append}".strip()
    symbols = Store().path(image) / found.symbols.name if found.symbols.exists() else None
    if person and not command:
        return Guest(found.kernel, (found.initrd,), line, bios, END_OF_FILE, image=found, symbols=symbols)
    archive = command_archive(command if person else (*_ASK, *(command or _SCRIPT)), terminal=person)
    initrd = (found.initrd, archive)
    return Guest(found.kernel, initrd, line, bios, END_OF_FILE, asks=not person, image=found, symbols=symbols)


def open_disks(names: Sequence[str], stack: ExitStack) -> Sequence[RawDisk]:
    """Each a file, or with `:ro` behind it one that is only read, unless a file has the whole for its name."""
    from ringfence.errors import MachineError
    from ringfence.machine.device.disk import DiskError, RawDisk

    disks = []
    given: dict[str, bool] = {}  # whether it is only read
    for name in names:
        readonly = len(name) > len(READ_ONLY) and name.endswith(READ_ONLY) and not os.path.lexists(name)
        path = name.removesuffix(READ_ONLY) if readonly else name
        file = os.path.realpath(path)
        if file in given and not (readonly and given[file]):
            raise MachineError(f"disk image {path} is given twice, which needs {READ_ONLY} behind it both times")
        given[file] = readonly
        try:
            disks.append(stack.enter_context(RawDisk(path, readonly=readonly)))
        except DiskError as error:
            raise MachineError(str(error)) from None
    return disks


def _dump(path: str, program: Program) -> None:
    from ringfence.errors import RingfenceError

    tree = program.tree_blob
    try:
        if path == "-":
            sys.stdout.buffer.write(tree)
            sys.stdout.flush()
        else:
            Path(path).write_bytes(tree)
    except BrokenPipeError:
        raise
    except OSError as error:
        to = "standard output" if path == "-" else path
        raise RingfenceError(f"the device tree cannot be written to {to}: {error.strerror}") from None


def _tracer(stream: IO[str]) -> Any:
    def line(text: str) -> None:
        stream.write(text + "\n")

    return line


def describe(board: Virt) -> list[str]:
    """Where each hart stands."""
    lines = []
    for hart in board.harts:
        state = ", stopped" if hart.stopped else ", waiting for an interrupt" if hart.waiting else ""
        lines.append(f"hart {hart.number}: pc {hart.pc:#x}, {'US?M'[hart.priv]}-mode{state}")
    return lines
