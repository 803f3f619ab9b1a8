"""Directories of the host's that a guest has, as they are asked for on the command line and in a site."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ringfence.cli.guest import READ_ONLY
from ringfence.errors import MachineError

if TYPE_CHECKING:
    from ringfence.guest.image import Image
    from ringfence.machine.device.ninep import Share

share = click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="DIR:PATH[:ro]",
    help="A directory of this host, which a Debian guest mounts at PATH (another by 9P, with PATH for the tag); up to "
    "eight with the disks. With :ro it is only read.",
)


def open_shares(texts: Sequence[str], stack: ExitStack, directory: Path | None = None) -> list[Share]:
    """Each DIR:PATH, perhaps with :ro behind it; DIR is relative to `directory`. Raises MachineError."""
    from ringfence.machine.device.ninep import Share
    from ringfence.machine.device.virtio_9p import TAG_MAX

    shares: dict[str, Share] = {}
    for text in texts:
        path, _, place = text.removesuffix(READ_ONLY).rpartition(":")
        place = posixpath.normpath(place) if place else place
        if not path or not place.startswith("/") or not place.isprintable():
            raise MachineError(f"{text!r} is no share, as ./src:/mnt/src or ./src:/mnt/src{READ_ONLY} is")
        if place.strip("/") == "" or len(os.fsencode(place)) > TAG_MAX:
            raise MachineError(f"no share can be at {place}: it is below /, and has {TAG_MAX} bytes at most")
        if place in shares:
            raise MachineError(f"two shares are at {place}")
        where = Path(path).expanduser() if directory is None else directory / Path(path).expanduser()
        shares[place] = stack.enter_context(closing(Share(where, place, readonly=text.endswith(READ_ONLY))))
    return list(shares.values())


def check_image(image: Image | None, shares: Sequence[object], tell: Callable[[str], None]) -> None:
    """An image of an earlier Ringfence boots, and leaves the mounting to its user."""
    if shares and image is not None and b"mount -t 9p" not in image.initrd.read_bytes():
        tell(
            f"ringfence: the image {image.name} is too old to mount shares by itself: "
            f"`ringfence image pull {image.name} --update` makes it again"
        )
