"""Guest images: kernels and first file systems, made from the archive's packages and kept in the user's cache.

An image is a directory with `kernel`, `initrd` and `lock.json`, and `symbols.elf` where the kernel tells its symbols.
It is made beside its place under a hidden name and then put there whole, by a symbolic link that is replaced at once:
there is never half an image, and the one that was there before stays until the new one is.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ringfence.errors import DamagedImage, ImageError, MirrorError, NoSuchImage
from ringfence.guest import catalog, deb
from ringfence.guest.download import Progress, silent, unwritable
from ringfence.guest.file import delete
from ringfence.guest.initramfs import command_archive, initramfs, joined
from ringfence.guest.kallsyms import symbol_file
from ringfence.guest.lock import Image, Lock, read_image
from ringfence.guest.modules import Module, load_order, module_name, read_module

__all__ = ["Image", "Lock", "Pulled", "Store", "cache_directory", "command_archive", "joined"]


class Pulled(NamedTuple):
    """An image, and whether the pull changed it."""

    image: Image
    changed: bool


def cache_directory() -> Path:
    """Where everything of Ringfence's lies that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringfence"


class Store:
    """The images in a cache directory; every method raises ImageError where the directory does not allow its work."""

    def __init__(self, directory: Path | None = None, *, waiting: Callable[[], None] = lambda: None) -> None:
        """`waiting` is called once where another process pulls or removes and has to be waited for."""
        root = directory or cache_directory()
        self._images = root / "images"
        self._downloads = root / "downloads"
        self._waiting = waiting

    def find(self, name: str) -> Image:
        """The image of that name; NoSuchImage if it was never pulled, or is none; DamagedImage if it cannot be used.

        It is looked at quickly: whether its files have their sizes.
        """
        if not self._has(name):
            raise self._absent(name)
        if (image := self._read(name)) is None:
            raise DamagedImage(name)
        return image

    def path(self, name: str) -> Path:
        """The directory of the image by its lasting name; NoSuchImage if it is not there."""
        return self._images / self.find(name).name

    def images(self) -> dict[str, Image | None]:
        """The images that are on this host, by name, read in full; None for one that is damaged."""
        names = sorted(path.name for path in self._images.iterdir()) if self._images.is_dir() else []
        return {name: self._read(name, sums=True) for name in names if self._has(name)}

    def remove(self, name: str) -> None:
        """Deletes the image, whatever state it is in; NoSuchImage if it is not there."""
        if not self._has(name):
            raise self._absent(name)
        with self._locked():
            delete(self._images / name)
            self._sweep()

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
        from ringfence.guest.archive import Index, find_release

        entry = catalog.entry(name)
        with self._locked():
            old = self._read(name, sums=True)
            if old is not None and not update:
                return Pulled(old, False)
            self._sweep()
            release = find_release(mirrors, entry.suite, keyring)
            if old is not None and release.date < old.lock.date:
                raise MirrorError(
                    f"the mirror's index of {entry.suite} is of {release.date:%Y-%m-%d},"
                    f" older than the {old.lock.date:%Y-%m-%d} of the image that is here"
                )
            index = Index(release, entry.component, entry.architecture, self._downloads, progress)
            packages = (index.kernel(entry.kernel), index.package(entry.busybox))
            if old is not None and (old.lock.packages, old.lock.recipe) == (packages, recipe(entry)):
                shutil.rmtree(self._downloads, ignore_errors=True)
                return Pulled(old, False)
            contents = _made(entry, *(index.fetch(package) for package in packages))
            lock = Lock(
                image=name,
                suite=release.codename,
                version=release.version,
                date=release.date,
                packages=packages,
                recipe=recipe(entry),
                append=entry.append,
                append_command=entry.append_command,
                files={path: hashlib.sha256(data).hexdigest() for path, data in contents.items()},
                sizes={path: len(data) for path, data in contents.items()},
            )
            self._install(name, contents, lock)
            self._sweep()
            shutil.rmtree(self._downloads, ignore_errors=True)
        return Pulled(self.find(name), True)

    def _has(self, name: str) -> bool:
        """Whether anything has the place of the image of that name."""
        return bool(name) and "/" not in name and not name.startswith(".") and os.path.lexists(self._images / name)

    def _absent(self, name: str) -> NoSuchImage:
        catalog.entry(name)
        return NoSuchImage(f"the image {name} is not on this host: get it with `ringfence image pull {name}`")

    def _read(self, name: str, *, sums: bool = False) -> Image | None:
        """The image of that name, where there is one and it is intact."""
        link = self._images / name
        # Resolved once, so that an image in use is one image, whatever is pulled meanwhile.
        image = read_image(Path(os.path.realpath(link))) if link.is_symlink() else None
        return image if image is not None and image.name == name and image.intact(sums=sums) else None

    def _install(self, name: str, contents: Mapping[str, bytes], lock: Lock) -> None:
        import tempfile

        directory = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._images))
        directory.chmod(0o755)
        try:
            text = msgspec.json.format(msgspec.json.encode(lock), indent=2)
            for path, data in {**contents, "lock.json": text + b"\n"}.items():
                _store(directory / path, data)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        link = self._images / f".{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(directory.name)
        place = self._images / name
        if not place.is_symlink():
            delete(place)
        link.replace(place)

    def _sweep(self) -> None:
        """Deletes what interrupted pulls left, and what no name leads to any more."""
        used = {os.path.realpath(path) for path in self._images.iterdir() if not path.name.startswith(".")}
        for path in self._images.iterdir():
            if path.name.startswith(".") and path.is_dir() and os.path.realpath(path) not in used:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the store against other processes that pull or remove."""
        place = self._images / ".lock"
        try:
            for directory in (self._images, self._downloads):
                directory.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place) and not place.is_file():
                # Not deleted here: another process may be about to do the same, and then hold a file that is gone.
                raise ImageError(f"{place} is in the way, which is not a regular file: delete it")
            with place.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._waiting()
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ImageError(unwritable(self._images.parent, error)) from error


def _store(path: Path, data: bytes) -> None:
    """Writes a file so that it is on the disk before anything leads to it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def recipe(entry: catalog.Entry) -> str:
    """A digest of how an image is made, apart from the packages."""
    from importlib.resources import files

    script = files("ringfence.guest").joinpath("init").read_bytes()
    return hashlib.sha256(msgspec.json.encode(entry) + script).hexdigest()


def _made(entry: catalog.Entry, kernel_package: Path, busybox_package: Path) -> dict[str, bytes]:
    """The files of an image, from those of its two packages."""
    kernel_files = deb.files(kernel_package, lambda path: path.startswith("boot/vmlinux-") or ".ko" in path)
    kernels = [path for path in kernel_files if path.startswith("boot/")]
    busybox = deb.files(busybox_package, lambda path: path.endswith("bin/busybox"))
    if len(kernels) != 1 or len(busybox) != 1:
        raise ImageError(f"the packages {entry.kernel} and {entry.busybox} do not have one kernel and one busybox")
    paths = {module_name(path): path for path in kernel_files if path not in kernels}

    def module(name: str) -> Module | None:
        return read_module(paths[name], kernel_files[paths[name]]) if name in paths else None

    plain = {found.name for found in load_order(entry.drivers, module)}
    modules = load_order([*entry.drivers, *entry.on_demand], module)
    stored = [
        found if found.name in plain else found.packed(path := paths[found.name], kernel_files[path])
        for found in modules
    ]
    release = kernels[0].removeprefix("boot/vmlinux-")
    kernel = kernel_files[kernels[0]]
    made = {"kernel": kernel, "initrd": initramfs(next(iter(busybox.values())), release, stored)}
    with suppress(ImageError):
        made["symbols.elf"] = symbol_file(kernel)
    return made
