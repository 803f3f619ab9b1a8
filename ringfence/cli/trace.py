"""`ringfence trace`: the flow through process, operating system and monitor, from a real run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ringfence.guest.flows import Table, Technique

NAMES = ("syscall", "read", "tlb-miss")
NUMBERS, COLUMN, CELL = 10, 25, 44
"""Widths in characters: of the steps, from one column to the next, and of what is in a column."""


@click.command()
@click.argument("flow", type=click.Choice(NAMES))
@click.option(
    "--technique",
    type=click.Choice(["bare", "virtualizer", "trap"]),
    default="trap",
    show_default=True,
    help="On the bare machine, or how the monitor beneath keeps control.",
)
def trace(flow: str, technique: Technique) -> None:
    """Show who does what, step by step: the process, its operating system, and the monitor beneath them.

    \b
    syscall   a program of the embedded guest makes a system call
    read      one reads from the console, and waits for it
    tlb-miss  one loads what the TLB has no entry for, on harts whose TLB software fills

    The table is that of a real run, in the reference engine. In front is the machine's count of steps.
    """
    from ringfence.guest.flows import FLOWS, table

    found = table(FLOWS[flow], technique)
    where = "on the bare machine" if technique == "bare" else f"on a monitor, by the technique {technique}"
    click.echo(f"{FLOWS[flow].subject}, {where}\n")
    click.echo("\n".join(lines(found)))
    entered = "" if technique == "bare" else f"; the monitor was entered {found.entered} times"
    click.echo(f"\n{found.length} steps {FLOWS[flow].span}{entered}")


def lines(table: Table) -> Iterator[str]:
    """The table in text: each line has one column's."""
    yield "step".ljust(NUMBERS) + "".join(column.ljust(COLUMN) for column in table.columns).rstrip()
    for number, step in enumerate(table.steps, 1):
        left = " " * (COLUMN * table.columns.index(step.who))
        text = textwrap.wrap(f"{number}. {step.what}", CELL, subsequent_indent="   ")
        for n, line in enumerate([*text, *(f"   {code}" for code in step.code)]):
            yield (f"{step.at:,}" if n == 0 else "").ljust(NUMBERS) + left + line
