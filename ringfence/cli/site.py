"""A site: a machine and the guests on it, in a TOML file.

    harts = 2                           # memory = what the guests need; isa = "hv" for vmm, else "base"
    disks = ["base.img:ro", "fs.qcow2"] # raw or qcow2; with :ro it is only read,
                                        # with :snapshot what is written is lost

    [guests.web]
    image = "debian"
    memory = "256M"                     # default: 512M
    share = 2
    minidisks = [{ disk = 0, start = "0", size = "64M", mode = "cow" }]

    [guests.xv6]
    kernel = "xv6/kernel"
    bios = "none"
    minidisks = [{ disk = 1 }]          # all of it

    [guests.outer.guests.inner]         # a monitor on the machine `outer`
    image = "corral"

What a guest has:

    image, command                  a command, a list of words, is run instead
                                    of the image's shell
    kernel, initrd, append, bios    instead of an image; as `ringfence run`
    memory, harts, seed             as `ringfence run`
    technique                       virtualizer, trap, vm-bit, translation or para
    snapshot                        true: what is written to the disk that its
                                    image has is lost at the end
    share                           weighs against the others' shares of harts
    cap, reservation                the most and the least that it gets of them,
                                    in fractions of one hart
    resident                        how much of its memory is never paged
    minidisks                       its disks
    networks                        a list of names, a network device for each:
                                    guests that name the same one are joined
    shares                          directories of the host, as `ringfence run`:
                                    ["./src:/mnt/src", "./data:/data:ro"]
    pcap                            a file for the frames of its network devices,
                                    as tcpdump reads it
    guests                          of its own, instead of a program

A guest on a guest may name the networks that the guest which it is on names. No network leads to the host.

A guest whose image has a disk has that before its minidisks. Several can have the same one with `snapshot`.
A minidisk is `size` bytes from `start` on, or all from there, of a disk of the machine that the guest is on. Its mode
is rw (if none is said), ro, shared (others may write it too) or cow (copy on write, until the end).

Memory of the machine that is less than the guests need is paged to the host's disk, of which `paging = "1G"` in the
first lines is the most that it takes. A guest that needs more than there is then is stopped. The memory of a guest that
has ended is the others'. Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import click
import msgspec

from ringfence.cli.console import report
from ringfence.cli.guest import SNAPSHOT, disk_of, guest_of, isa_of, open_disks
from ringfence.cli.network import captured, tell_time
from ringfence.cli.options import DEEPEST, Memory
from ringfence.cli.share import check_image, open_shares
from ringfence.errors import MachineError, OutOfMemory, RingfenceError
from ringfence.machine.board import Isa, MiB, virt
from ringfence.machine.clock import Source
from ringfence.machine.device.uart16550 import ConsoleOut
from ringfence.machine.device.virtio_blk import Disk
from ringfence.machine.device.virtio_net import Link
from ringfence.monitor.monitor import Monitor, Technique, overhead
from ringfence.monitor.vdevice.extent import Extent
from ringfence.monitor.vdevice.switch import Switch
from ringfence.monitor.vm import VirtualMachine

Consoles = Callable[[str], ConsoleOut]
"""A console for the guest of that path."""


class Minidisk(msgspec.Struct, forbid_unknown_fields=True):
    """An extent of a disk of the machine that the guest is on."""

    size: str | None = None
    """None: to the end of the disk."""
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
    snapshot: bool = False
    share: int = 1
    cap: float | None = None
    reservation: float = 0
    resident: str = "0"
    technique: Technique = "virtualizer"
    minidisks: list[Minidisk] = msgspec.field(default_factory=list)
    networks: list[str] = msgspec.field(default_factory=list)
    pcap: str | None = None
    shares: list[str] = msgspec.field(default_factory=list)
    guests: dict[str, Guest] = msgspec.field(default_factory=dict)


class Site(msgspec.Struct, forbid_unknown_fields=True):
    """The machine, and its guests by name."""

    guests: dict[str, Guest]
    memory: str | None = None
    harts: int = 1
    disks: list[str] = msgspec.field(default_factory=list)
    isa: Isa | None = None
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
    names = [_path(directory, disk) for disk in site.disks]
    disks = open_disks([*names, *_image_disks(site.guests)], stack)
    machine = virt(memory, site.harts, clock=clock, disks=disks, isa=site.isa or _isa(site.guests))
    paging = None if site.paging is None else size(site.paging)
    monitor = Monitor(machine, paging=paging)
    networks = {name: Switch() for guest in site.guests.values() for name in guest.networks}
    host = _Host(directory, stack)
    guests = list(_create(monitor, site.guests, consoles, clock, DEEPEST, networks, host, len(names)))
    for vm, guest in guests:
        with _about(vm.path):
            _load(vm, guest, directory)
    return monitor, [vm for vm, _ in guests]


@dataclass(frozen=True)
class _Host:
    """Where a site's paths begin, and what closes its files."""

    directory: Path
    stack: ExitStack


def _create(
    monitor: Monitor,
    guests: dict[str, Guest],
    consoles: Consoles,
    clock: Source,
    deepest: int,
    networks: dict[str, Switch],
    host: _Host,
    first: int,
) -> Iterator[tuple[VirtualMachine, Guest]]:
    """The machines that have programs. Disks of images are those of the monitor's machine from number `first` on."""
    if not deepest:
        raise MachineError(f"monitors are at most {DEEPEST} deep")
    for name, guest in guests.items():
        path = f"{monitor.machine.path}/{name}" if isinstance(monitor.machine, VirtualMachine) else name
        with _about(path):
            if guest.guests and (guest.image is not None or guest.kernel is not None or guest.bios is not None):
                raise MachineError("it has guests of its own, so it runs no program beside their monitor")
            for network in guest.networks:
                if network not in networks:
                    raise MachineError(f"the machine that it is on has no network {network!r}")
            links: Sequence[Link] = [networks[network].port() for network in guest.networks]
            if guest.pcap is not None:
                links = captured(links, Path(_path(host.directory, guest.pcap)), host.stack)
            there = monitor.machine.disks
            images = [Minidisk(disk=first + n) for n in range(len(_image_disks({name: guest})))]
            first += len(images)
            minidisks = [*guest.minidisks, *images] if guest.guests else [*images, *guest.minidisks]
            vm = monitor.create(
                name,
                _memory(guest),
                guest.harts,
                clock=clock,
                seed=guest.seed,
                console=None if guest.guests else consoles(path),
                disks=[monitor.minidisk(_extent(disk, there), mode=disk.mode) for disk in minidisks],
                links=links,
                shares=open_shares(guest.shares, host.stack, host.directory),
                resident=size(guest.resident),
                share=guest.share,
                cap=guest.cap,
                reservation=guest.reservation,
                technique=guest.technique,
            )
        tell_time(links, vm.clock.now)
        vm.on_end = partial(_leave, vm)
        if guest.guests:
            own = {network: Switch(link) for network, link in zip(guest.networks, links, strict=True)}
            yield from _create(Monitor(vm), guest.guests, consoles, clock, deepest - 1, own, host, len(guest.minidisks))
        else:
            yield vm, guest


def _image_disks(guests: Mapping[str, Guest]) -> list[str]:
    """The disks of the images of these guests, and of those on them, in order."""
    disks: list[str] = []
    for name, guest in guests.items():
        with _about(name):
            disks += _image_disks(guest.guests)
            disk = disk_of(guest.image)
            if disk is not None:
                disks.append(f"{disk}{SNAPSHOT}" if guest.snapshot else str(disk))
            elif guest.snapshot:
                raise MachineError("snapshot is for a guest whose image has a disk")
    return disks


@contextmanager
def _about(path: str) -> Iterator[None]:
    """What is wrong is wrong with the guest of that path."""
    try:
        yield
    except click.UsageError as error:
        raise click.UsageError(f"guest {path}: {error.message}") from None
    except OutOfMemory as error:  # the file asks for more than it gives
        raise MachineError(f"guest {path}: {error}") from None
    except RingfenceError as error:
        error.args = (f"guest {path}: {error}",)
        raise


def _extent(minidisk: Minidisk, disks: list[Disk]) -> Extent:
    start, number = size(minidisk.start), minidisk.disk
    if minidisk.size is not None:
        return Extent(start, size(minidisk.size), number)
    there = disks[number].size if 0 <= number < len(disks) else 0
    return Extent(start, max(0, there - start), number)


def _leave(vm: VirtualMachine) -> None:
    """It has ended."""
    vm.resident = 0
    vm.ram.clear()
    vm.leave_shares()


def _load(vm: VirtualMachine, guest: Guest, directory: Path) -> None:
    def place(path: str | None) -> str | None:
        return None if path is None else _path(directory, path)

    program = guest_of(
        guest.image,
        guest.command,
        kernel=place(guest.kernel),
        initrd=[_path(directory, path) for path in guest.initrd],
        append=guest.append,
        bios=guest.bios if guest.bios == "none" else place(guest.bios),
    )
    check_image(program.image, vm.shares, report)
    program.load(vm)


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


def _isa(guests: dict[str, Guest]) -> Isa:
    """What the harts must have for all of them."""
    needed = [_isa(guest.guests) if guest.guests else isa_of(guest.image) for guest in guests.values()]
    return "hv" if "hv" in needed else "base"


def _needed(guests: dict[str, Guest]) -> int:
    """Memory for all of them and their maps."""
    return sum(_memory(guest) + overhead(_memory(guest), guest.technique) for guest in guests.values()) or MiB


def _path(directory: Path, path: str) -> str:
    return str(directory / Path(path).expanduser()) if not path.startswith("~") else str(Path(path).expanduser())
