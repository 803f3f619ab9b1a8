"""`ringfence explain`: the way of a virtual address through φ and every f, from a running guest."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import options as cli
from ringfence.cli.guest import guest_of, isa_of

if TYPE_CHECKING:
    from ringfence.guest.symbols import Symbols
    from ringfence.machine.board import Virt
    from ringfence.monitor.explain import Entry, Phi, Way

PATIENCE = 20
"""Seconds of guest time in which a guest waits for input, or is not waited for."""
SECOND = 1_000_000_000
AT_REST = SECOND // 100
"""Fewer steps in a second, with nothing printed: the guest waits, though its timers go on."""
_ALL = (1 << 64) - 1
_MODES = {0: "no translation", 8: "Sv39", 9: "Sv48", 10: "Sv57"}


@click.command()
@click.argument("image", nargs=-1, metavar="[IMAGE]")
@click.argument("va")
@cli.depth
@cli.technique
@cli.memory
@cli.harts
@click.option("--hart", type=int, default=0, show_default=True, help="The hart whose translation is shown.")
@click.option("--send", metavar="LINE", help="Type this when the guest waits for input, and look when it waits again.")
@click.option(
    "--after", type=cli.SECONDS, metavar="SECONDS", help="Look at this guest time, wherever the guest is then."
)
@cli.engine
def explain(image: tuple[str, ...], va: str, **options: Any) -> None:
    """Show the way of the virtual address VA on a hart: through the guest's own page tables, and through the map (f) of
    every monitor beneath it, to the bare machine's memory.

    VA is a number, or a symbol of the guest's kernel, perhaps with a number behind a plus sign. The guest (the embedded
    one, or IMAGE) has run until it waits for input. Looking changes nothing in it.
    """
    from ringfence.guest.symbols import Symbols
    from ringfence.monitor import explain as way
    from ringfence.monitor.monitor import nested

    if len(image) > 1:
        raise click.UsageError(f"one image runs at a time, and {len(image)} were given: {' '.join(image)}")
    technique = cli.techniques(options["depth"], options["technique"])
    board = nested(
        options["depth"],
        options["memory"],
        options["harts"],
        engine=options["engine"] or "threaded",
        technique=technique,
        isa=isa_of(image[0] if image else None),
    )
    if not 0 <= options["hart"] < options["harts"]:
        raise click.UsageError(f"there is no hart {options['hart']}: the last is {options['harts'] - 1}")
    guest = guest_of(image[0] if image else None)
    guest.load(board)
    symbols = Symbols(guest.symbols)
    address = _address(va, symbols)
    _run(board, options["after"], options["send"])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # φ is not in every character set
    click.echo("\n".join(lines(board, options["hart"], way.explain(board, address, options["hart"]), symbols)))


def _address(text: str, symbols: Symbols) -> int:
    name, _, offset = text.partition("+")
    try:
        value = symbols.addresses[name] if name in symbols.addresses else int(name, 0)
        value += int(offset, 0) if offset else 0
    except ValueError:
        raise click.UsageError(
            f"{text!r} is neither an address, as 0x80200000 is, nor a symbol of the guest's kernel"
        ) from None
    if not 0 <= value <= _ALL:
        raise click.UsageError(f"{text} is no virtual address: they have 64 bits")
    return value


def _run(board: Virt, after: float | None, line: str | None) -> None:
    """To where the guest is to be looked at."""
    if line is not None:
        _wait(board, None)
        board.console.send(line + "\n")
    _wait(board, after)


def _wait(board: Virt, after: float | None) -> None:
    """Until the guest waits for input, or to a guest time."""
    from ringfence.errors import ConsoleError
    from ringfence.machine.exit import Idle, PowerOff

    clock, console = board.clock, board.console
    give_up = clock.now() + PATIENCE * SECOND if after is None else int(after * SECOND)
    while clock.now() < give_up:
        before = board.steps
        console.read()
        end = board.run(until=give_up if after is not None else clock.now() + SECOND)
        if isinstance(end, PowerOff):
            raise ConsoleError(f"the guest switched the machine off, with status {end.status}: there is no way to show")
        at_rest = after is None and board.steps - before < AT_REST and not console.read()
        if isinstance(end, Idle) or at_rest:
            return
    if after is None:
        raise ConsoleError(
            f"the guest does not wait for input within {PATIENCE} seconds of its time: --after says when to look"
        )


def lines(board: Virt, number: int, way: Way, symbols: Symbols) -> Iterator[str]:
    """The text."""
    from ringfence.isa.paging import Access
    from ringfence.machine.memory import EXECUTE, READ, WRITE, amount
    from ringfence.monitor.explain import BARE
    from ringfence.monitor.vm import VirtualMachine

    hart, phi = board.harts[number], way.phi
    where = board.path if isinstance(board, VirtualMachine) else BARE
    function = symbols.function(hart.pc)
    pc = f"pc {hart.pc:#x}" + (f" in {function}" if function else "")
    yield f"hart {number} of {where}, {'US?M'[hart.priv]}-mode, {pc}, at step {board.steps:,}"
    yield ""
    as_mode = f", as {'US?M'[phi.priv]}-mode by MPRV" if phi.priv != hart.priv else ""
    yield f"φ       {way.va:#x} by satp {phi.satp:#x}: {_MODES[phi.satp >> 60]}{as_mode}"
    yield from map(_entry, phi.entries)
    allowed = [a.name.lower() for a in Access if a not in phi.faults and not (as_mode and a is Access.FETCH)]
    yield f"        -> {'nowhere' if phi.pa is None else f'{phi.pa:#x}'}" + (
        f": {', '.join(allowed)}" if allowed else ""
    )
    yield from _faults(phi)
    if phi.pa is None:
        return
    if way.device is not None:
        name, offset = way.device
        yield f"device  {name} of {where}, register {offset:#x}"
        return
    for answer in way.answers:
        yield f"f       {answer.path}: {answer.at:#x}"
        if answer.page is None:
            said = "the frame is on the paging disk" if answer.paged else "f has no answer"
            yield f"        {said}: a VM-fault, which goes to the monitor on {answer.host}"
            continue
        _, rights, size = answer.page
        letters = "".join(c for c, right in (("R", READ), ("W", WRITE), ("X", EXECUTE)) if rights & right)
        assert answer.host_pa is not None
        page = f"in a page of {amount(size)} from {answer.host_pa & -size:#x}, {letters}"
        yield f"        -> {answer.host_pa:#x} on {answer.host}, {page}"
    if way.place is not None:
        yield f"memory  {way.place:#x} on {BARE}"
    for shadow in way.shadows:
        yield f"shadow  in {shadow.host}, for {shadow.mode}"
        yield from map(_entry, shadow.entries)
        yield f"        -> {shadow.host_pa:#x} on {shadow.host}"


def _faults(phi: Phi) -> Iterator[str]:
    """What is not permitted, by why."""
    for why in dict.fromkeys(why for _, why in phi.faults.values()):
        found = [(access, cause) for access, (cause, reason) in phi.faults.items() if reason == why]
        which = " or ".join(f"a {access.name.lower()}" for access, _ in found) if len(found) < 3 else "any access"
        kind = "page fault" if "PAGE" in found[0][1].name else "access fault"
        yield f"        {which} is {'a' if kind[0] == 'p' else 'an'} {kind}: {why}"


def _entry(entry: Entry) -> str:
    return f"        level {entry.level}  {entry.pa:#x}  {entry.value:#018x}  {entry.flags}"
