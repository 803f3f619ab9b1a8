"""`ringfence run`: boot a guest, with its console here."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from functools import partial
from math import inf
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import click

from ringfence.cli import options as cli
from ringfence.cli.guest import SNAPSHOT, guest_of, isa_of, open_disks
from ringfence.cli.network import network, open_network, pcap, publish, tell_time
from ringfence.cli.ports import open_ports, port
from ringfence.cli.share import check_image, open_shares, share

if TYPE_CHECKING:
    from ringfence.cli.watch import Limits
    from ringfence.guest.loader import Program

SILENCE = 10.0
PATIENCE = 6
"""Seconds of real time for one of silence."""
GDB_PORT = "1234"
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
@click.option("--kernel", type=cli.File(), help="What to boot: an ELF file or a Linux Image, perhaps in gzip.")
@click.option(
    "--initrd",
    type=cli.File(),
    multiple=True,
    help="The kernel's first file system (initramfs); several are put one behind the other.",
)
@click.option(
    "--append", default="", metavar="TEXT", help="The kernel's command line; for an image, what is put behind its own."
)
@click.option(
    "--bios",
    type=cli.File(),
    help="Machine-mode firmware; 'none': the kernel begins in machine mode. Default: the built-in SBI.",
)
@cli.memory
@cli.harts
@click.option(
    "-d",
    "--disk",
    type=cli.File(),
    multiple=True,
    metavar="FILE[:ro|:snapshot]",
    help="A disk image, qcow2 if it begins as one, else raw; up to eight. With :ro it is only read, with :snapshot "
    "what is written is lost at the end; then machines can share it.",
)
@click.option("--snapshot", is_flag=True, help="What is written to the disk that IMAGE itself has is thrown away.")
@share
@network
@publish
@pcap
@port
@cli.clock
@click.option("--seed", type=int, help="Draw the lengths of the harts' turns at random, from this number.")
@click.option("--timeout", type=cli.SECONDS, metavar="SECONDS", help="End with status 124 at this guest time.")
@cli.wall_timeout
@click.option(
    "--silence",
    type=cli.Seconds(min=0),
    metavar="SECONDS",
    help="End with status 132 where nothing is printed for so long in guest time; 0: never. "
    f"Default: {SILENCE:g}, for the boot.",
)
@cli.stats
@click.option("--json", "as_json", is_flag=True, help="At the end, a line of JSON about the run on standard error.")
@click.option(
    "--dump-dtb", type=cli.File(), metavar="FILE", help="Write the device tree and end; '-' is standard output."
)
@click.option(
    "--trace",
    type=cli.Names("kinds", cli.KINDS),
    metavar="KINDS",
    help="A line an event on standard error: insn, trap, csr, io, with commas between. Runs on the reference "
    "engine, which is slow.",
)
@click.option(
    "--gdb",
    type=cli.Address(),
    is_flag=False,
    flag_value=GDB_PORT,
    metavar="[[HOST:]PORT]",
    help="Let gdb connect, on the loopback device where no host is given; an IPv6 address is in brackets. "
    f"Without a port it is {GDB_PORT}; 0 is any.",
)
@click.option("-S", "wait", is_flag=True, help="Wait for gdb before the first instruction.")
@cli.depth
@cli.technique
@click.option(
    "--tlb",
    type=click.Choice(["hardware", "software"]),
    default="hardware",
    show_default=True,
    help="What fills the TLB: the machine, from page tables, or the guest, which the embedded one can.",
)
@cli.isa
@cli.engine
def run(image: str | None, command: tuple[str, ...], **options: Any) -> None:
    """Boot a guest: the embedded one, IMAGE, or a --kernel; with COMMAND, behind `--`, that runs in place of IMAGE's
    shell. `vmm` is a monitor that is a guest itself, and runs the embedded one, or the ELF file that is its --initrd;
    with --append depth=N it runs on itself.

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
    from ringfence.cli.session import Alone
    from ringfence.monitor.monitor import nested

    technique = cli.techniques(options["depth"], options["technique"])
    person = is_terminal()
    program = {name: options[name] for name in ("kernel", "initrd", "append", "bios")}
    guest = guest_of(image, command, person=person, **program)
    terminal = Terminal(0, raw=person)
    output = Output(1, terminal.wake)
    tree = options["dump_dtb"]
    engine: Literal["threaded", "reference"] = (
        "reference" if options["trace"] or tree else options["engine"] or "threaded"
    )
    disks = list(options["disk"])
    if guest.disk is not None:
        disks.insert(0, f"{guest.disk}{SNAPSHOT}" if options["snapshot"] else str(guest.disk))
        if options["network"] is None:
            options["network"] = "user"
    elif options["snapshot"]:
        raise click.UsageError(
            "--snapshot is for an image that has a disk of its own; of a --disk that is said behind its name"
        )
    links, ports = open_network(options, stack), open_ports(options, stack)
    shares = open_shares(options["shares"], stack)
    check_image(guest.image, shares, report)
    board = nested(
        options["depth"],
        options["memory"],
        options["harts"],
        clock=options["clock"],
        seed=options["seed"],
        engine=engine,
        console=output,
        disks=open_disks(disks, stack),
        links=links,
        shares=shares,
        ports=ports,
        technique=technique,
        tlb=options["tlb"],
        isa=options["isa"] or isa_of(image),
    )
    tell_time(links, board.clock.now)
    loaded = guest.load(board)
    if tree:
        _dump(tree, loaded)
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
    session = Alone(
        board, terminal, keyboard, output, limits, asks=guest.asks, as_json=options["as_json"], debugger=debugger
    )
    status = session.run()
    if options["stats"]:
        from ringfence.monitor.stats import lines

        report("\n".join(lines(board) or ["no monitor is beneath the guest"]))
    return status


def _limits(options: dict[str, Any], engine: str) -> Limits:
    from ringfence.cli.watch import Limits

    given = options["silence"]
    silence = SILENCE if given is None else given
    # The reference may take minutes to a guest's first byte.
    patience = PATIENCE * silence if engine == "threaded" else inf
    return Limits(options["timeout"], options["wall_timeout"], silence, given or 0, patience)


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
