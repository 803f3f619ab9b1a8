"""Guest images: kernels and first file systems, made from the archive's packages, and disks with a system on them.

An image is a directory with `kernel`, `initrd` and `lock.json`; `symbols.elf` where the kernel tells its symbols, and
`disk.img` where it has a disk, which is written by who runs it.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ringfence.errors import DamagedImage, ImageError, MirrorError, NoSuchImage
from ringfence.guest import catalog
from ringfence.guest.download import Progress, silent, unwritable
from ringfence.guest.initramfs import command_archive, joined
from ringfence.guest.lock import DISK, Image, Lock, written
from ringfence.guest.program import EMBEDDED, MONITOR
from ringfence.guest.shelf import Shelf
from ringfence.machine.device.disk import DiskError
from ringfence.machine.device.disk_image import open_disk

if TYPE_CHECKING:
    from ringfence.guest.archive import Index
    from ringfence.guest.installation import Settings, System

__all__ = ["Image", "Lock", "Pulled", "Store", "cache_directory", "command_archive", "joined"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class Pulled(NamedTuple):
    """An image, and whether the pull changed it."""

    image: Image
    changed: bool


def cache_directory() -> Path:
    """Where everything of Ringfence's lies that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringfence"


def data_directory() -> Path:
    """Where of Ringfence's lies what cannot be made again."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ringfence"


class Store:
    """The images on this host: those that can be made again, in a cache directory, and those with disks, which are not
    for anybody else to delete. Every method raises ImageError where a directory does not allow its work.
    """

    def __init__(self, directory: Path | None = None, *, waiting: Callable[[], None] = lambda: None) -> None:
        """In `directory`, or in the user's. `waiting` is called once where another process changes something and has to
        be waited for.
        """
        root = directory or cache_directory()
        self._cached = Shelf(root / "images", waiting)
        self._kept = Shelf((directory or data_directory()) / "disks", waiting)
        self._downloads = root / "downloads"
        self._packages = root / "packages"

    def find(self, name: str) -> Image:
        """The image of that name; NoSuchImage if it was never pulled, or is none; DamagedImage if it cannot be used.

        It is looked at quickly: whether its files have their sizes.
        """
        if (shelf := self._shelf(name)) is None:
            raise self._absent(name)
        if (image := shelf.read(name)) is None:
            raise self._damaged(shelf, name)
        return image

    def path(self, name: str) -> Path:
        """The directory of the image by its lasting name; NoSuchImage if it is not there."""
        image = self.find(name)
        return image.directory.with_name(image.name)

    def images(self) -> dict[str, Image | None]:
        """The images that are on this host, by name, read in full; None for one that is damaged."""
        return self._cached.images() | self._kept.images()

    def remove(self, name: str) -> None:
        """Deletes the image, whatever state it is in; NoSuchImage if it is not there, ImageError if a machine has its
        disk.
        """
        if (shelf := self._shelf(name)) is None:
            raise self._absent(name)
        image = shelf.read(name)
        if image is not None and image.disk is not None:
            try:
                open_disk(image.disk).close()
            except DiskError as error:
                raise ImageError(f"the image {name} stays: {error}") from None
        shelf.remove(name)

    def pull(
        self,
        name: str,
        mirrors: Sequence[str],
        keyring: Path,
        *,
        update: bool = False,
        progress: Progress = silent,
    ) -> Pulled:
        """Makes the image from the archive's packages, if it is not there or damaged, or with `update` if they are
        newer now.

        MirrorError says what is wrong with the mirror or what it sent; the image that was there before stays.
        """
        from ringfence.guest.boot_files import boot_files, recipe

        entry = catalog.system(name)
        with self._cached.locked():
            self._downloads.mkdir(exist_ok=True)
            old = self._cached.read(name, sums=True)
            if old is not None and not update:
                return Pulled(old, False)
            self._cached.sweep()
            index = self._index(mirrors, keyring, entry, self._downloads, progress)
            release = index.release
            if old is not None and release.date < old.lock.date:
                raise MirrorError(
                    f"the mirror's index of {entry.suite} is of {release.date:%Y-%m-%d},"
                    f" older than the {old.lock.date:%Y-%m-%d} of the image that is here"
                )
            packages = (index.kernel(entry.kernel), index.package(entry.busybox))
            if old is not None and (old.lock.packages, old.lock.recipe) == (packages, recipe(entry)):
                shutil.rmtree(self._downloads, ignore_errors=True)
                return Pulled(old, False)
            contents = boot_files(entry, *(index.fetch(package) for package in packages))

            def fill(directory: Path) -> Lock:
                return Lock(
                    image=name,
                    suite=release.codename,
                    version=release.version,
                    date=release.date,
                    packages=packages,
                    recipe=recipe(entry),
                    append=entry.append,
                    append_command=entry.append_command,
                    files=written(directory, contents),
                    sizes={path: len(data) for path, data in contents.items()},
                )

            self._cached.put(name, fill)
            shutil.rmtree(self._downloads, ignore_errors=True)
        return Pulled(self.find(name), True)

    def install(
        self,
        name: str,
        mirrors: Sequence[str],
        keyring: Path,
        *,
        keys: Sequence[str] = (),
        progress: Progress = silent,
        steps: Progress = silent,
    ) -> Pulled:
        """Makes the image with a disk that the catalog has by that name, if it is not there; `keys` as `Settings`'."""
        from ringfence.guest.installation import Settings

        entry = catalog.entry(name)
        assert isinstance(entry, catalog.Installed)
        settings = Settings(entry.packages, entry.size, entry.hostname, keys=tuple(keys))
        with self._kept.locked():
            old = self._kept.read(name)
            if old is not None:
                return Pulled(old, False)
            if self._kept.has(name):
                raise self._damaged(self._kept, name)

            def fill(directory: Path) -> Lock:
                system = self.build(entry.system, settings, mirrors, keyring, directory / DISK, progress, steps)
                return Lock(
                    image=name,
                    suite=system.release.codename,
                    version=system.release.version,
                    date=system.release.date,
                    packages=system.packages,
                    recipe="",
                    append=system.append,
                    append_command=system.append,
                    files=written(directory, system.boot),
                    sizes={path: len(data) for path, data in system.boot.items()},
                    disk=True,
                )

            self._kept.put(name, fill)
        return Pulled(self.find(name), True)

    def build(
        self,
        base: str,
        settings: "Settings",
        mirrors: Sequence[str],
        keyring: Path,
        disk: Path,
        progress: Progress = silent,
        steps: Progress = silent,
    ) -> "System":
        """Installs the system of the image `base` on `disk`, which is made: a qcow2 image if its name ends so, else a
        raw one. Packages stay in the cache directory as long as the archive has them. Raises ImageError, and then there
        is no disk.
        """
        from ringfence.guest.installation import build
        from ringfence.guest.transfer import moved

        settings.check()
        entry = catalog.system(base)
        if os.path.lexists(disk):
            raise ImageError(f"{disk} is there already")
        if not disk.parent.is_dir():
            raise ImageError(f"nothing can be stored in {disk.parent}: there is no such directory")
        raw = disk.with_name(f".{disk.name}.{secrets.token_hex(8)}")
        with self._cached.locked():  # for the packages, which another process may bring or delete
            try:
                self._packages.mkdir(exist_ok=True)
                index = self._index(mirrors, keyring, entry, self._packages, progress)
                system = build(index, entry, settings, raw, steps)
                moved(raw, disk)
                index.prune()
            except OSError as error:
                raise ImageError(unwritable(disk.parent, error)) from None
            finally:
                raw.unlink(missing_ok=True)
        return system

    def add(
        self,
        name: str,
        file: Path,
        appliance: Image,
        *,
        kernel: Path | None = None,
        initrd: Path | None = None,
        append: str | None = None,
    ) -> Image:
        """Takes in a copy of a disk image, raw or qcow2, as the image `name`. Kernel and first file system are the
        newest of its /boot, which the `appliance` looks for, where they are not given. Raises ImageError.
        """
        from ringfence.guest.transfer import taken_in

        if not _NAME.fullmatch(name) or name in (*catalog.catalog().summaries, EMBEDDED, MONITOR):
            raise ImageError(f"{name!r} cannot be the name of an image of yours")
        with self._kept.locked():
            if self._kept.has(name):
                raise ImageError(f"there is an image {name}: `ringfence image rm {name}` deletes it")
            self._kept.put(
                name, lambda directory: taken_in(name, file, directory, appliance, kernel, initrd, append)
            )  # fmt: skip
        return self.find(name)

    def _index(
        self, mirrors: Sequence[str], keyring: Path, entry: catalog.Entry, directory: Path, progress: Progress
    ) -> "Index":
        from ringfence.guest.archive import Index, find_release

        release = find_release(mirrors, entry.suite, keyring)
        return Index(release, entry.component, entry.architecture, directory, progress)

    def _shelf(self, name: str) -> Shelf | None:
        """Where something has that name."""
        return next((shelf for shelf in (self._kept, self._cached) if shelf.has(name)), None)

    def _damaged(self, shelf: Shelf, name: str) -> ImageError:
        if shelf is self._cached:
            return DamagedImage(name)
        return ImageError(
            f"the image {name} is damaged: its files are in {shelf.directory / name}, and `ringfence image rm {name}`"
            " deletes them, with what was done on its disk"
        )

    def _absent(self, name: str) -> NoSuchImage:
        catalog.entry(name)
        return NoSuchImage(f"the image {name} is not on this host: get it with `ringfence image pull {name}`")
