"""What a command line, or a site, gives a machine: the guest that it boots, and its disks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ringfence.errors import MachineError, NotBootable

if TYPE_CHECKING:
    from ringfence.guest.image import Image
    from ringfence.guest.loader import Program, Source
    from ringfence.machine.board import Isa, Virt
    from ringfence.machine.device.disk import RawDisk
    from ringfence.machine.device.qcow2 import Qcow2Disk

READ_ONLY, SNAPSHOT = ":ro", ":snapshot"

_ASK = ("sh", "-c", r"""stty -ixon crtscts; printf '\005'; exec "$@" """.strip(), "sh")
"""Before a command whose input is no terminal: the terminal line is set up by now, and can hold the sender off."""

_SCRIPT = ("sh", "/proc/self/fd/0")
"""Without a person a shell takes its commands from standard input as from a file."""


@dataclass(frozen=True)
class Guest:
    """What is to run: the loader's arguments."""

    kernel: Source | None
    initrd: tuple[Source, ...]
    append: str
    bios: Source | None
    at_end: bytes = b""
    """What end of input is to it."""
    asks: bool = False
    """It asks for its input."""
    image: Image | None = None
    symbols: Path | None = None
    """What gdb can read them from, where that is not for the user to know."""

    @property
    def disk(self) -> Path | None:
        """The image's own."""
        return None if self.image is None else self.image.disk

    def load(self, board: Virt) -> Program:
        """Into a machine. Raises NotBootable and DamagedImage."""
        from ringfence.guest.loader import load

        try:
            return load(board, self.kernel, initrd=self.initrd, append=self.append, bios=self.bios)
        except NotBootable as error:
            if self.image is None:
                raise
            from ringfence.cli.image import unbootable

            raise unbootable(self.image, error) from None


def guest_of(
    image: str | None,
    command: Sequence[str] = (),
    *,
    kernel: str | None = None,
    initrd: Sequence[str] = (),
    append: str = "",
    bios: str | None = None,
    person: bool = True,
) -> Guest:
    """The guest that these options of `ringfence run` describe. Without a `person` at its console it asks for its
    input. Raises UsageError, and ImageError.
    """
    from ringfence.cli.console import END_OF_FILE
    from ringfence.guest.program import CORRAL, EMBEDDED, MONITOR, VMM

    firmware_alone = image is None and bios is not None and bios != "none"
    if kernel is not None or firmware_alone:
        if image is not None:
            raise click.UsageError(f"an image and --kernel do not go together: {image!r} has a kernel of its own")
        return Guest(kernel, tuple(initrd), append, bios)
    if image == MONITOR:
        if command or bios is not None:
            raise click.UsageError("vmm begins in S-mode over the built-in SBI, and runs no command")
        line = f"level=01 {append}".strip()  # which it counts up, to say who speaks
        return Guest(VMM, tuple(initrd) or (CORRAL,), line, bios, END_OF_FILE, symbols=VMM)
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
    if found.disk is not None:
        if command:
            raise click.UsageError(
                f"{image} has a system of its own, which runs no command from here: log in, or use ssh"
            )
        return Guest(found.kernel, (found.initrd,), line, bios, END_OF_FILE, image=found, symbols=symbols)
    if person and not command:
        return Guest(found.kernel, (found.initrd,), line, bios, END_OF_FILE, image=found, symbols=symbols)
    archive = command_archive(tuple(command) if person else (*_ASK, *(command or _SCRIPT)), terminal=person)
    files = (found.initrd, archive)
    return Guest(found.kernel, files, line, bios, END_OF_FILE, asks=not person, image=found, symbols=symbols)


def disk_of(image: str | None) -> Path | None:
    """The disk of the image of that name, which is made if it is not here. Raises ImageError."""
    from ringfence.guest.program import EMBEDDED, MONITOR

    if image is None or image in (EMBEDDED, MONITOR):
        return None
    from ringfence.cli.image import pulled

    return pulled(image).disk


def isa_of(image: str | None) -> Isa:
    """What the harts must have for a guest."""
    from ringfence.guest.program import MONITOR

    return "hv" if image == MONITOR else "base"


def open_disks(names: Sequence[str], stack: ExitStack) -> Sequence[RawDisk | Qcow2Disk]:
    """Each an image, raw or qcow2; with `:ro` behind it, unless a file has all for its name, it is only read; with
    `:snapshot` it is only read too, and what is written is lost at the end. Raises UsageError and MachineError.
    """
    from ringfence.machine.device.disk import DiskError
    from ringfence.machine.device.disk_image import open_disk, open_snapshot

    disks: list[RawDisk | Qcow2Disk] = []
    given: dict[str, bool] = {}  # whether it is only read
    for name in names:
        path, mode = _mode(name)
        readonly = mode != ""
        file = os.path.realpath(path)
        if file in given and not (readonly and given[file]):
            raise MachineError(f"disk image {path} is given twice, which needs {READ_ONLY} or {SNAPSHOT} both times")
        given[file] = readonly
        try:
            disk = open_snapshot(path) if mode == SNAPSHOT else open_disk(path, readonly=readonly)
        except DiskError as error:
            raise MachineError(str(error)) from None
        stack.callback(disk.close)
        disks.append(disk)
    return disks


def _mode(name: str) -> tuple[str, str]:
    """The path of a disk image, and what is behind it."""
    for mode, other in ((READ_ONLY, SNAPSHOT), (SNAPSHOT, READ_ONLY)):
        path = name.removesuffix(mode)
        if path in ("", name) or os.path.lexists(name):
            continue
        if path.endswith(other) and not os.path.lexists(path):
            path = path.removesuffix(other)
            raise click.UsageError(f"disk image {path} is given with {other} and {mode}, and has one of them at most")
        return path, mode
    return name, ""
