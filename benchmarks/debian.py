"""The Debian that is measured: the image, with a program of ours."""

from __future__ import annotations

from benchmarks.build import program
from ringfence.guest import cpio
from ringfence.guest.image import Image, Store
from ringfence.guest.initramfs import joined

PROMPT = "~# "


def debian_image() -> Image:
    return Store().find("debian")


def initrd(image: Image) -> bytes:
    """The image's, with /kernelwork."""
    archive = cpio.Archive()
    archive.file("kernelwork", program("kernelwork").read_bytes(), 0o755)
    return joined(image.initrd.read_bytes(), bytes(archive))
