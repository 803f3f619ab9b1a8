"""Disks from elsewhere, and for elsewhere: copies of disk images, and the kernels that lie on them."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from ringfence.errors import ImageError
from ringfence.guest.appliance import Appliance
from ringfence.guest.lock import DISK, Image, Lock, written
from ringfence.machine.device.disk import DiskError
from ringfence.machine.device.disk_image import create, open_disk
from ringfence.machine.device.virtio_blk import Disk

CHUNK = 1 << 20
SCRATCH = 1 << 30
"""Bytes, at most, of a kernel and its first file system."""
QCOW2 = ".qcow2"

_FIND = r"""set -e
mkdir -p /system /out
touch /out/looked
for device in /dev/vda?* /dev/vda; do
    [ -b "$device" ] && mount -o ro "$device" /system 2>/dev/null || continue
    for boot in /system/boot /system; do
        for kernel in $(ls $boot/vmlinu[xz]* 2>/dev/null | sort -V); do
            version=${kernel#*/vmlinu?}
            cp -L "$kernel" /out/kernel
            for initrd in $boot/initrd.img$version $boot/initramfs$version.img; do
                [ ! -e "$initrd" ] || cp -L "$initrd" /out/initrd
            done
        done
        [ ! -e /out/kernel ] || break
    done
    [ ! -e /system/etc/fstab ] || echo "root:$device"
    umount /system
done
tar -C /out -cf /dev/vdb $(ls /out)
"""


def taken_in(
    name: str,
    file: Path,
    directory: Path,
    appliance: Image,
    kernel: Path | None,
    initrd: Path | None,
    append: str | None,
) -> Lock:
    """Fills the directory of an image with a copy of the disk in `file`; see `Store.add`."""
    copy(file, directory / DISK)
    told = kernel is not None and append is not None
    files, root = ({}, None) if told else _look(directory / DISK, appliance)
    for part, given in (("kernel", kernel), ("initrd", initrd)):
        if given is not None:
            try:
                files[part] = given.read_bytes()
            except OSError as error:
                raise ImageError(f"{given} cannot be read: {error.strerror}") from None
    if "kernel" not in files:
        raise ImageError(f"no kernel lies on {file}, in /boot of an ext4 file system: name one with --kernel")
    if root is None and append is None:
        raise ImageError(f"no system lies on {file}, in an ext4 file system: say by --append where it is")
    files.setdefault("initrd", appliance.initrd.read_bytes())
    line = f"console=ttyS0 earlycon root={root}" if append is None else append
    return Lock(
        image=name,
        suite="",
        version="",
        date=datetime.now(UTC),
        packages=(),
        recipe="",
        append=line,
        append_command=line,
        files=written(directory, files),
        sizes={part: len(data) for part, data in files.items()},
        disk=True,
    )


def _look(disk: Path, appliance: Image) -> tuple[dict[str, bytes], str | None]:
    """The newest kernel on a disk, with its first file system, and where the system is."""
    roots: list[str] = []

    def line(text: str) -> None:
        if found := re.fullmatch(r"root:(/dev/vda\d*)", text):
            roots.append(found[1])

    with tempfile.NamedTemporaryFile(dir=disk.parent) as scratch:
        os.truncate(scratch.name, SCRATCH)
        Appliance(appliance.kernel.read_bytes(), appliance.initrd.read_bytes(), appliance.append(command=True)).run(
            "the search for a kernel", _FIND, [disk, Path(scratch.name)], line=line
        )
        with tarfile.open(scratch.name) as archive:
            files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            contents = {name: file.read() for name, file in files.items() if file is not None}
            return contents, roots[0] if roots else None


def moved(raw: Path, target: Path) -> None:
    """Gives a raw image its name; a copy of it, where by that name it is a qcow2 one. Raises ImageError, OSError."""
    if target.suffix == QCOW2:
        copy(raw, target)
    else:
        with raw.open("rb") as file:
            os.fsync(file.fileno())
        os.link(raw, target)  # which does not replace what is there


def copy(source: Path, target: Path) -> None:
    """Copies a disk to a new image, qcow2 if its name ends so, else raw; what is zero takes no room. ImageError."""
    try:
        with open_disk(source, readonly=True) as old:
            if target.suffix == QCOW2:
                create(target, old.size)
            else:
                with target.open("xb") as file:
                    os.truncate(file.fileno(), old.size)
            try:
                with open_disk(target) as new:
                    _copy(old, new)
            except BaseException:
                target.unlink()
                raise
    except DiskError as error:
        raise ImageError(str(error)) from None
    except OSError as error:
        raise ImageError(f"{source} cannot be copied to {target}: {error.strerror}") from None


def _copy(old: Disk, new: Disk) -> None:
    blank = bytes(CHUNK)
    for offset in range(0, old.size, CHUNK):
        data = old.read(offset, min(CHUNK, old.size - offset))
        if data != blank[: len(data)]:
            new.write(offset, data)
    new.flush()
