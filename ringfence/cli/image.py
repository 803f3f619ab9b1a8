"""`ringfence image`: the guest images on this host, and the ones that can be fetched."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import explain, plain_interrupt, printable
from ringfence.cli.options import File, Memory
from ringfence.errors import DamagedImage, ImageError, NoSuchImage, NotBootable, RingfenceError
from ringfence.guest.file import read_regular
from ringfence.guest.program import CORRAL, EMBEDDED

if TYPE_CHECKING:
    from ringfence.guest.deb import Package
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
    """Guest images: list, pull, path, rm; build, import, export those with a disk."""


@image.command("list")
def list_images() -> None:
    """List the images that are here or can be pulled."""
    from ringfence.guest.catalog import catalog
    from ringfence.guest.image import Store

    here = Store().images()
    summaries = catalog().summaries
    states = dict.fromkeys(summaries, "not pulled") | {name: _state(found) for name, found in here.items()}
    states[EMBEDDED] = "built in"
    summaries[EMBEDDED] = "Ringfence's own small operating system"
    for name in sorted(states):
        click.echo(printable(f"{name:<12}  {states[name]:<32}  {summaries.get(name, '')}".rstrip()))


def _state(found: "Image | None") -> str:
    if found is None:
        return "damaged"
    if not found.lock.packages:
        return "imported"
    return f"{found.lock.suite} {found.lock.version}, kernel {found.lock.packages[0].version}"


def _versions(packages: "Sequence[Package]") -> str:
    """Of those that an image is known by."""
    return printable(", ".join(f"{package.name} {package.version}" for package in packages[:2]))


def _tell_of_keys(keys: Sequence[str]) -> None:
    if not keys:
        click.echo("nobody can log in by ssh: there is no public key in ~/.ssh, and --key FILE named none", err=True)


def _keys(files: Sequence[str]) -> tuple[str, ...]:
    """The public keys in these files, or those of the user."""
    lines: list[str] = []
    for file in [Path(file) for file in files] or sorted((Path.home() / ".ssh").glob("*.pub")):
        try:
            text = read_regular(file).decode()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ImageError(f"the key {file} cannot be read: {why}") from None
        lines += [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if wrong := [line for line in lines if "PRIVATE KEY" in line]:
        raise ImageError(f"a public key is asked for, and this is none: {wrong[0]}")
    return tuple(lines)


mirror_option = click.option(
    "--mirror", metavar="URL", help="The Debian mirror to use; else what apt on this host uses."
)
keyring_option = click.option(
    "--keyring", metavar="FILE", help="The public keys that may sign; else Debian's, from this host."
)
key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="FILE",
    help="A public key that may come by ssh. Default: those of ~/.ssh.",
)


@image.command()
@click.argument("name")
@mirror_option
@keyring_option
@click.option("--update", is_flag=True, help="Make the image again if the mirror has newer packages.")
@key_option
def pull(name: str, mirror: str | None, keyring: str | None, update: bool, keys: tuple[str, ...]) -> None:
    """Fetch the packages of the image NAME and make it."""
    if name == EMBEDDED:
        click.echo(f"{name} is built in")
        return
    from ringfence.guest import mirror as settings
    from ringfence.guest.catalog import Installed, entry
    from ringfence.guest.image import Store

    store = Store(waiting=_waiting)
    installed = isinstance(entry(name), Installed)
    if keys and not installed:
        raise click.UsageError(f"--key is for an image with a disk, and {name} has none")
    if update and installed:
        raise click.UsageError(
            f"{name} is brought up to date from inside, by apt: made again, what was done on its disk would be lost"
        )
    mirrors, allowed = settings.mirrors(mirror), settings.keyring(keyring)
    with _progress() as (progress, steps):
        if installed:
            found, changed = store.install(
                name, mirrors, allowed, keys=_keys(keys), progress=progress, steps=steps
            )  # fmt: skip
        else:
            found, changed = store.pull(name, mirrors, allowed, update=update, progress=progress)
    versions = _versions(found.lock.packages)
    if changed:
        click.echo(f"{name} is made of {versions}")
        if installed:
            _tell_of_keys(_keys(keys))
    elif update:
        click.echo(f"{name} is up to date: {versions}")
    elif installed:
        click.echo(f"{name} is here already: {versions}")
    else:
        click.echo(f"{name} is here already: {versions} (--update asks for newer ones)")


@image.command()
@click.argument("name", metavar="SYSTEM")
@click.option("-o", "--output", required=True, type=File(), help="The disk's file, which is made.")
@click.option("--packages", default="", metavar="NAME[,NAME...]", help="What is installed beside the system.")
@click.option("--size", type=Memory(), default="4G", show_default=True, help="The disk's.")
@click.option("--hostname", default="debian", show_default=True)
@click.option("--user", metavar="NAME", help="A user, who may become root by sudo. Else there is root alone.")
@key_option
@mirror_option
@keyring_option
def build(
    name: str,
    output: str,
    packages: str,
    size: int,
    hostname: str,
    user: str | None,
    keys: tuple[str, ...],
    mirror: str | None,
    keyring: str | None,
) -> None:
    """Install SYSTEM (debian) with packages of its archive on a disk, which is a raw image, or a qcow2 one where its
    name ends so. The same packages and options make the same bytes. `ringfence image import` makes it one to run.

    Root, and the user, log in at the console without a password, and by ssh with a key.
    """
    from ringfence.guest import mirror as settings
    from ringfence.guest.image import Store
    from ringfence.guest.installation import Settings

    names = tuple(word for word in packages.split(",") if word)
    wanted = Settings(names, size, hostname, user, _keys(keys))
    place = Path(output)
    with _progress() as (progress, steps):
        store = Store(waiting=_waiting)
        mirrors, allowed = settings.mirrors(mirror), settings.keyring(keyring)
        system = store.build(name, wanted, mirrors, allowed, place, progress=progress, steps=steps)
    click.echo(f"{output} is made of {len(system.packages)} packages, with {_versions(system.packages)}")
    if "openssh-server" in names:
        _tell_of_keys(wanted.keys)


@image.command("import")
@click.argument("file", type=File())
@click.option("--name", required=True, help="What it is to be called.")
@click.option("--kernel", type=File(), help="What to boot it with; else the newest kernel in its /boot.")
@click.option("--initrd", type=File(), help="The kernel's first file system; else the one beside that.")
@click.option("--append", metavar="TEXT", help="The kernel's command line; else one that names where the system is.")
def import_image(file: str, name: str, kernel: str | None, initrd: str | None, append: str | None) -> None:
    """Make a copy of the disk image FILE, raw or qcow2, an image to run."""
    from ringfence.guest.image import Store

    place, given = Path(file), {"kernel": kernel, "initrd": initrd}
    appliance = pulled("debian")
    files = {part: None if path is None else Path(path) for part, path in given.items()}
    Store(waiting=_waiting).add(name, place, appliance, append=append, **files)
    click.echo(f"{name} can be run")


@image.command()
@click.argument("name")
@click.option("-o", "--output", required=True, type=File(), help="The file that is made; it is not there yet.")
def export(name: str, output: str) -> None:
    """Copy the disk of the image NAME to a raw image, or to a qcow2 one where the file's name ends so."""
    from ringfence.guest.image import Store
    from ringfence.guest.transfer import copy

    found = Store().find(name)
    if found.disk is None:
        raise ImageError(f"{name} has no disk: its kernel and first file system are in `ringfence image path {name}`")
    copy(found.disk, Path(output))
    click.echo(f"{output} has the disk of {name}")


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
        from ringfence.guest.catalog import Installed, entry

        installed = isinstance(entry(name), Installed)
        plain_interrupt(False)
        mirrors, keyring = mirror.mirrors(None), mirror.keyring(None)
        with _progress() as (progress, steps):
            if installed:
                return store.install(name, mirrors, keyring, keys=_keys(()), progress=progress, steps=steps).image
            return store.pull(name, mirrors, keyring, progress=progress).image


def unbootable(found: "Image", error: RingfenceError) -> RingfenceError:
    """What to say where the loader refuses an image: that it is damaged, or its reason with the lasting name."""
    if not found.intact(sums=True):
        return DamagedImage(found.name)
    return NotBootable(str(error).replace(str(found.directory), str(found.directory.with_name(found.name))))


def _waiting() -> None:
    """Says why nothing happens."""
    click.echo("another ringfence is at work on the images: waiting for it", err=True)


@contextmanager
def _progress() -> "Iterator[tuple[Progress, Progress]]":
    """What shows downloads, and steps of work: bars on a terminal, a line for each elsewhere; on standard error, so
    that output stays output.
    """
    if not sys.stderr.isatty():
        yield _lines("{:.1f} MB", 1e6), _lines("{:.0f} steps", 1)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Terminal(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # rich would hide it, and a signal that ends or stops us leave it so

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            return (DownloadColumn if task.fields["bytes"] else MofNCompleteColumn)().render(task)

    # On a narrow terminal the name gives way, so that a bar stays one line.
    name_column = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    columns = (name_column, BarColumn(20), Amount(table_column=Column(no_wrap=True)))
    with Progress(*columns, console=Terminal(stderr=True), expand=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int, of_bytes: bool = True) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(printable(name), total=total, bytes=of_bytes)
            bars.update(tasks[name], completed=done)

        yield show, partial(show, of_bytes=False)


def _lines(unit: str, size: float) -> "Progress":
    seen: set[str] = set()

    def show(name: str, done: int, total: int) -> None:
        if name not in seen:
            seen.add(name)
            click.echo(f"{printable(name)}: {unit.format(total / size)}", err=True)

    return show
