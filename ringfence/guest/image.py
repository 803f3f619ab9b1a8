"""Guest images: kernels and first file systems, made from the archive's packages and kept in the user's cache.

An image is a directory with `kernel`, `initrd` and `lock.json`, and `symbols.elf` where the kernel tells its symbols.
It is made beside its place under a hidden name and then put there whole, by a symbolic link that is replaced at once:
there is never half an image, and the one that was there before stays until the new one is.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from ringfence.errors import ImageError, MirrorError, NoSuchImage
from ringfence.guest import catalog, deb
from ringfence.guest.download import Progress, silent, unwritable
from ringfence.guest.initramfs import command_archive, initramfs, joined
from ringfence.guest.kallsyms import symbol_file
from ringfence.guest.modules import Module, load_order, module_name, read_module

__all__ = ["Image", "Lock", "Pulled", "Store", "cache_directory", "command_archive", "joined"]


class Lock(msgspec.Struct, frozen=True):
    """What an image was made from: the suite's state, its packages, the recipe's digest; and how it is started."""

    image: str
    suite: str
    version: str
    date: datetime
    packages: tuple[deb.Package, ...]
    recipe: str
    append: str
    append_command: str
    files: dict[str, str]
    """The SHA-256 of each file of the image."""


@dataclass(frozen=True, slots=True)
class Image:
    """A guest that is on this host and can be started."""

    directory: Path
    """Where its files are; `Store.path` leads here until an update."""
    lock: Lock

    @property
    def name(self) -> str:
        return self.lock.image

    @property
    def kernel(self) -> Path:
        """The kernel, a raw RISC-V Image."""
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        """The first file system, a cpio archive; `joined` puts a `command_archive` behind it."""
        return self.directory / "initrd"

    @property
    def symbols(self) -> Path:
        """The kernel's symbols, an ELF file for gdb; there where the kernel has a table of them."""
        return self.directory / "symbols.elf"

    def append(self, *, command: bool = False) -> str:
        """The kernel's command line, for a person's shell or for one command whose output is all that shows."""
        return self.lock.append_command if command else self.lock.append


class Pulled(NamedTuple):
    """An image, and whether the pull changed it."""

    image: Image
    changed: bool


def cache_directory() -> Path:
    """Where everything of Ringfence's lies that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringfence"


class Store:
    """The images in a cache directory; every method raises ImageError where the directory does not allow its work."""

    def __init__(self, directory: Path | None = None) -> None:
        root = directory or cache_directory()
        self._images = root / "images"
        self._downloads = root / "downloads"

    def find(self, name: str) -> Image:
        """The image of that name; NoSuchImage if it was never pulled, or is none."""
        if (image := self._read(name)) is None:
            catalog.entry(name)
            raise NoSuchImage(f"the image {name} is not on this host: get it with `ringfence image pull {name}`")
        return image

    def path(self, name: str) -> Path:
        """The directory of the image by its lasting name; NoSuchImage if it is not there."""
        return self._images / self.find(name).name

    def images(self) -> list[Image]:
        """The images that are on this host, by name."""
        names = sorted(path.name for path in self._images.iterdir()) if self._images.is_dir() else []
        return [image for name in names if (image := self._read(name)) is not None]

    def remove(self, name: str) -> None:
        """Deletes the image; NoSuchImage if it is not there."""
        image = self.find(name)
        with self._locked():
            (self._images / name).unlink(missing_ok=True)
            shutil.rmtree(image.directory, ignore_errors=True)

    def pull(
        self,
        name: str,
        mirrors: Sequence[str],
        keyring: Path,
        *,
        update: bool = False,
        progress: Progress = silent,
    ) -> Pulled:
        """Makes the image from the archive's packages, if it is not there, or with `update` if they are newer now.

        MirrorError says what is wrong with the mirror or what it sent; the image that was there before stays.
        """
        from ringfence.guest.archive import Index, find_release

        entry = catalog.entry(name)
        with self._locked():
            old = self._read(name)
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
            )
            self._install(name, contents, lock)
            self._sweep()
            shutil.rmtree(self._downloads, ignore_errors=True)
        return Pulled(self.find(name), True)

    def _read(self, name: str) -> Image | None:
        link = self._images / name
        if "/" in name or name.startswith(".") or not link.is_symlink():
            return None
        # Resolved once, so that an image in use is one image, whatever is pulled meanwhile.
        directory = link.resolve()
        try:
            return Image(directory, msgspec.json.decode((directory / "lock.json").read_bytes(), type=Lock))
        except (OSError, msgspec.MsgspecError):
            return None

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
        link.replace(self._images / name)

    def _sweep(self) -> None:
        """Deletes what interrupted pulls left, and what no name leads to any more."""
        used = {path.resolve() for path in self._images.iterdir() if not path.name.startswith(".")}
        for path in self._images.iterdir():
            if path.name.startswith(".") and path.is_dir() and path.resolve() not in used:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the store against other processes that pull or remove."""
        try:
            for directory in (self._images, self._downloads):
                directory.mkdir(parents=True, exist_ok=True)
            with (self._images / ".lock").open("a") as file:
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
