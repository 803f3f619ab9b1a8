"""A site: the machine and the guests that one file describes, and what they are given.

    harts = 2                       # of the machine; memory = as much as the guests need, where it is not said
    disks = ["base.img"]            # "base.img:ro" is only read

    [guests.web]
    image = "debian"                # or kernel, initrd, append, bios as `ringfence run` has them
    memory = "256M"
    share = 2                       # also: cap, reservation (fractions of a hart), resident, technique, harts, seed
    minidisks = [{ disk = 0, start = "0", size = "64M", mode = "cow" }]

    [guests.outer.guests.inner]     # a monitor on a guest: `outer` runs no program of its own
    image = "corral"

Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click
import msgspec

from ringfence.cli.run import DEEPEST, Memory, guest_of, open_disks
from ringfence.errors import MachineError
from ringfence.guest.loader import load
from ringfence.machine.board import MiB, virt
from ringfence.machine.clock import Source
from ringfence.machine.device.uart16550 import ConsoleOut
from ringfence.monitor.monitor import Monitor, Technique, overhead
from ringfence.monitor.vdevice.extent import Extent
from ringfence.monitor.vm import VirtualMachine

Consoles = Callable[[str], ConsoleOut]
"""A console for the guest of that path."""


class Minidisk(msgspec.Struct, forbid_unknown_fields=True):
    """An extent of a disk of the machine that the guest is on."""

    size: str
    disk: int = 0
    start: str = "0"
    mode: Literal["rw", "ro", "shared", "cow"] = "rw"


class Guest(msgspec.Struct, forbid_unknown_fields=True):
    """One guest, or with `guests` of its own the machine of a monitor."""

    image: str | None = None
    command: list[str] = msgspec.field(default_factory=list)
    kernel: str | None = None
    initrd: list[str] = msgspec.field(default_factory=list)
    append: str = ""
    bios: str | None = None
    memory: str | None = None
    harts: int = 1
    seed: int | None = None
    share: int = 1
    cap: float | None = None
    reservation: float = 0
    resident: str = "0"
    technique: Technique = "virtualizer"
    minidisks: list[Minidisk] = msgspec.field(default_factory=list)
    guests: dict[str, Guest] = msgspec.field(default_factory=dict)


class Site(msgspec.Struct, forbid_unknown_fields=True):
    """The machine, and its guests by name."""

    guests: dict[str, Guest]
    memory: str | None = None
    harts: int = 1
    disks: list[str] = msgspec.field(default_factory=list)
    paging: str | None = None
    """The most bytes on the paging disk."""


def read(path: Path) -> Site:
    """What the file says. Raises UsageError, with one sentence that names what is wrong and where."""
    try:
        site = msgspec.toml.decode(path.read_bytes(), type=Site)
    except OSError as error:
        raise click.UsageError(f"the site {path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise click.UsageError(f"the site {path} is not as it should be: {error}") from None
    if not site.guests:
        raise click.UsageError(f"the site {path} has no guests")
    return site


def build(
    site: Site, directory: Path, consoles: Consoles, clock: Source, stack: ExitStack
) -> tuple[Monitor, list[VirtualMachine]]:
    """The monitor of the machine, and the guests that have programs, which are loaded. Raises MachineError and what
    `load` raises.
    """
    memory = size(site.memory) if site.memory is not None else _needed(site.guests)
    machine = virt(memory, site.harts, disks=open_disks([_path(directory, disk) for disk in site.disks], stack))
    paging = None if site.paging is None else size(site.paging)
    monitor = Monitor(machine, paging=paging)
    return monitor, list(_create(monitor, site.guests, directory, consoles, clock, DEEPEST))


def _create(
    monitor: Monitor, guests: dict[str, Guest], directory: Path, consoles: Consoles, clock: Source, deepest: int
) -> Iterator[VirtualMachine]:
    if not deepest:
        raise MachineError(f"monitors are at most {DEEPEST} deep")
    for name, guest in guests.items():
        disks = [
            monitor.minidisk(Extent(size(disk.start), size(disk.size), disk.disk), mode=disk.mode)
            for disk in guest.minidisks
        ]
        path = f"{monitor.machine.path}/{name}" if isinstance(monitor.machine, VirtualMachine) else name
        vm = monitor.create(
            name,
            _memory(guest),
            guest.harts,
            clock=clock,
            seed=guest.seed,
            console=None if guest.guests else consoles(path),
            disks=disks,
            resident=size(guest.resident),
            share=guest.share,
            cap=guest.cap,
            reservation=guest.reservation,
            technique=guest.technique,
        )
        if guest.guests:
            if guest.image is not None or guest.kernel is not None or guest.bios is not None:
                raise MachineError(f"{path} has guests of its own, so it runs no program beside their monitor")
            yield from _create(Monitor(vm), guest.guests, directory, consoles, clock, deepest - 1)
        else:
            _load(vm, guest, directory)
            yield vm


def _load(vm: VirtualMachine, guest: Guest, directory: Path) -> None:
    def place(path: str | None) -> str | None:
        return None if path is None else _path(directory, path)

    options = {
        "kernel": place(guest.kernel),
        "initrd": tuple(_path(directory, path) for path in guest.initrd),
        "append": guest.append,
        "bios": guest.bios if guest.bios == "none" else place(guest.bios),
    }
    found = guest_of(guest.image, tuple(guest.command), True, options)
    load(vm, found.kernel, initrd=found.initrd, append=found.append, bios=found.bios)


def size(text: str) -> int:
    """Bytes: a number and perhaps a unit; MiB without one, but for 0. Raises MachineError."""
    try:
        return int(Memory().convert(text, None, None))
    except click.BadParameter as error:
        raise MachineError(error.message) from None


def _memory(guest: Guest) -> int:
    if guest.memory is not None:
        return size(guest.memory)
    return _needed(guest.guests) if guest.guests else size("512M")


def _needed(guests: dict[str, Guest]) -> int:
    """Memory for all of them and their maps."""
    return sum(_memory(guest) + overhead(_memory(guest)) for guest in guests.values()) or MiB


def _path(directory: Path, path: str) -> str:
    return str(directory / Path(path).expanduser()) if not path.startswith("~") else str(Path(path).expanduser())
