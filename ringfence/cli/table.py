"""The table of commands. A command's module is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from ringfence.cli import explain, plain_interrupt

COMMANDS = {
    "run": ("ringfence.cli.run", "run", "Boot a guest."),
    "up": ("ringfence.cli.up", "up", "Run several guests at once, as a file describes them."),
    "explain": ("ringfence.cli.way", "explain", "Show a virtual address's way through page tables and monitors."),
    "trace": ("ringfence.cli.trace", "trace", "Show a run's flow through process, operating system and monitor."),
    "virtualizable": (
        "ringfence.cli.virtualizable",
        "virtualizable",
        "Decide whether the machine can be virtualized by trapping.",
    ),
    "image": ("ringfence.cli.image", "image", "Guest images: list, pull, path, rm."),
}
"""name: (module, its command, what help says of it)"""


class Table(click.Group):
    """The group of `COMMANDS`."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _reader():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        plain_interrupt(cmd_name != "image")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@contextmanager
def _reader() -> Iterator[None]:
    """Where nobody reads the output any more, ends with our status for that; click would end with 1."""
    try:
        yield
    except BrokenPipeError as error:
        sys.exit(explain(error))


@click.command(cls=Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ringfence", prog_name="ringfence")
def ringfence() -> None:
    """A virtual machine monitor: boots unmodified RISC-V operating systems on any host."""
