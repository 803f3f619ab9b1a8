"""`ringfence image`: the guest images on this host, and the ones that can be fetched."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import explain, plain_interrupt, printable
from ringfence.errors import DamagedImage, NoSuchImage, NotBootable, RingfenceError
from ringfence.guest.program import CORRAL, EMBEDDED

if TYPE_CHECKING:
    from ringfence.guest.download import Progress
    from ringfence.guest.image import Image


class _Reporting(click.Group):
    """A group whose commands end on a RingfenceError with its one sentence and its status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RingfenceError as error:
            ctx.exit(explain(error))


@click.group(cls=_Reporting)
def image() -> None:
    """Guest images: list, pull, path, rm."""


@image.command("list")
def list_images() -> None:
    """List the images that are here or can be pulled."""
    from ringfence.guest.catalog import catalog
    from ringfence.guest.image import Store

    here = Store().images()
    summaries = {name: entry.summary for name, entry in catalog().items()}
    states = dict.fromkeys(summaries, "not pulled") | {name: _state(found) for name, found in here.items()}
    states[EMBEDDED] = "built in"
    summaries[EMBEDDED] = "Ringfence's own small operating system"
    for name in sorted(states):
        click.echo(printable(f"{name:<12}  {states[name]:<32}  {summaries.get(name, '')}".rstrip()))


def _state(found: "Image | None") -> str:
    if found is None:
        return "damaged: pull it again"
    return f"{found.lock.suite} {found.lock.version}, kernel {found.lock.packages[0].version}"


@image.command()
@click.argument("name")
@click.option("--mirror", metavar="URL", help="The Debian mirror to use; else what apt on this host uses.")
@click.option("--keyring", metavar="FILE", help="The public keys that may sign; else Debian's, from this host.")
@click.option("--update", is_flag=True, help="Make the image again if the mirror has newer packages.")
def pull(name: str, mirror: str | None, keyring: str | None, update: bool) -> None:
    """Fetch the packages of the image NAME and make it."""
    if name == EMBEDDED:
        click.echo(f"{name} is built in")
        return
    from ringfence.guest import mirror as settings
    from ringfence.guest.catalog import entry
    from ringfence.guest.image import Store

    entry(name)
    store = Store(waiting=_waiting)
    mirrors, keys = settings.mirrors(mirror), settings.keyring(keyring)
    with _progress() as progress:
        found, changed = store.pull(name, mirrors, keys, update=update, progress=progress)
    versions = printable(", ".join(f"{package.name} {package.version}" for package in found.lock.packages))
    if changed:
        click.echo(f"{name} is made of {versions}")
    elif update:
        click.echo(f"{name} is up to date: {versions}")
    else:
        click.echo(f"{name} is here already: {versions} (--update asks for newer ones)")


@image.command()
@click.argument("name")
def path(name: str) -> None:
    """Print where the image NAME is. That is a directory; for the one that is built in, a file."""
    from ringfence.guest.image import Store

    click.echo(CORRAL if name == EMBEDDED else Store().path(name))


@image.command()
@click.argument("name")
def rm(name: str) -> None:
    """Delete the image NAME."""
    from ringfence.guest.image import Store

    Store(waiting=_waiting).remove(name)
    click.echo(f"{name} is deleted")


def pulled(name: str) -> "Image":
    """The image of that name, to be run; made first if it is not here but can be."""
    from ringfence.guest.image import Store

    store = Store(waiting=_waiting)
    try:
        return store.find(name)
    except NoSuchImage:
        from ringfence.guest import mirror
        from ringfence.guest.catalog import entry

        entry(name)
        plain_interrupt(False)
        with _progress() as progress:
            return store.pull(name, mirror.mirrors(None), mirror.keyring(None), progress=progress).image


def unbootable(found: "Image", error: RingfenceError) -> RingfenceError:
    """What to say where the loader refuses an image: that it is damaged, or its reason with the lasting name."""
    if not found.intact(sums=True):
        return DamagedImage(found.name)
    return NotBootable(str(error).replace(str(found.directory), str(found.directory.with_name(found.name))))


def _waiting() -> None:
    """Says why nothing happens."""
    click.echo("another ringfence is at work on the images: waiting for it", err=True)


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Bars on a terminal, a line for each file elsewhere; on standard error, so that output stays output."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
    from rich.table import Column

    class Terminal(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # rich would hide it, and a signal that ends or stops us leave it so

    # On a narrow terminal the name gives way, so that a bar stays one line.
    name_column = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    columns = (name_column, BarColumn(20), DownloadColumn(table_column=Column(no_wrap=True)))
    with Progress(*columns, console=Terminal(stderr=True), expand=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(printable(name), total=total)
            bars.update(tasks[name], completed=done)

        yield show


def _lines() -> "Progress":
    seen: set[str] = set()

    def show(name: str, done: int, total: int) -> None:
        if name not in seen:
            seen.add(name)
            click.echo(f"{printable(name)}: {total / 1e6:.1f} MB", err=True)

    return show
