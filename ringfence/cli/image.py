"""`ringfence image`: the guest images on this host, and the ones that can be fetched."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ringfence.errors import RingfenceError

if TYPE_CHECKING:
    from ringfence.guest.download import Progress


class _Reporting(click.Group):
    """A group whose commands end on a RingfenceError with its one sentence and its status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RingfenceError as error:
            click.echo(f"ringfence: {error}", err=True)
            ctx.exit(error.status)


@click.group(cls=_Reporting)
def image() -> None:
    """Guest images: list, pull, path, rm."""


@image.command("list")
def list_images() -> None:
    """List the images that are here or can be pulled."""
    from ringfence.guest.catalog import catalog
    from ringfence.guest.image import Store

    here = {found.name: found for found in Store().images()}
    entries = catalog()
    for name in sorted({*here, *entries}):
        summary = entries[name].summary if name in entries else ""
        if found := here.get(name):
            kernel = found.lock.packages[0]
            state = f"{found.lock.suite} {found.lock.version}, kernel {kernel.version}"
        else:
            state = "not pulled"
        click.echo(f"{name:<12}  {state:<32}  {summary}".rstrip())


@image.command()
@click.argument("name")
@click.option("--mirror", metavar="URL", help="The Debian mirror to use; else what apt on this host uses.")
@click.option("--keyring", metavar="FILE", help="The public keys that may sign; else Debian's, from this host.")
@click.option("--update", is_flag=True, help="Make the image again if the mirror has newer packages.")
def pull(name: str, mirror: str | None, keyring: str | None, update: bool) -> None:
    """Fetch the packages of the image NAME and make it."""
    from ringfence.guest import mirror as settings
    from ringfence.guest.catalog import entry
    from ringfence.guest.image import Store

    entry(name)
    store = Store()
    mirrors, keys = settings.mirrors(mirror), settings.keyring(keyring)
    with _progress() as progress:
        found, changed = store.pull(name, mirrors, keys, update=update, progress=progress)
    versions = ", ".join(f"{package.name} {package.version}" for package in found.lock.packages)
    if changed:
        click.echo(f"{name} is made of {versions}")
    elif update:
        click.echo(f"{name} is up to date: {versions}")
    else:
        click.echo(f"{name} is here already: {versions} (--update asks for newer ones)")


@image.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the directory of the image NAME."""
    from ringfence.guest.image import Store

    click.echo(Store().path(name))


@image.command()
@click.argument("name")
def rm(name: str) -> None:
    """Delete the image NAME."""
    from ringfence.guest.image import Store

    Store().remove(name)
    click.echo(f"{name} is deleted")


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Bars on a terminal, a line for each file elsewhere; on standard error, so that output stays output."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
    from rich.table import Column

    # On a narrow terminal the name gives way, so that a bar stays one line.
    name_column = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = (name_column, BarColumn(20), DownloadColumn(table_column=Column(no_wrap=True)))
    with Progress(*columns, console=Console(stderr=True), expand=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield show


def _lines() -> "Progress":
    seen: set[str] = set()

    def show(name: str, done: int, total: int) -> None:
        if name not in seen:
            seen.add(name)
            click.echo(f"{name}: {total / 1e6:.1f} MB", err=True)

    return show
