"""A directory of images, which are directories with `kernel`, `initrd` and `lock.json`.

An image is made beside its place under a hidden name and then put there whole, by a symbolic link that is replaced at
once: there is never half an image, and the one that was there before stays until the new one is.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ringfence.errors import ImageError
from ringfence.guest.download import unwritable
from ringfence.guest.file import delete, store
from ringfence.guest.lock import Image, Lock, read_image


class Shelf:
    """The images in a directory; every method raises ImageError where the directory does not allow its work."""

    def __init__(self, directory: Path, waiting: Callable[[], None]) -> None:
        """`waiting` is called once where another process changes something and has to be waited for."""
        self.directory = directory
        self._waiting = waiting

    def has(self, name: str) -> bool:
        """Whether anything has the place of the image of that name."""
        return bool(name) and "/" not in name and not name.startswith(".") and os.path.lexists(self.directory / name)

    def read(self, name: str, *, sums: bool = False) -> Image | None:
        """The image of that name, where there is one and it is intact."""
        link = self.directory / name
        # Resolved once, so that an image in use is one image, whatever is pulled meanwhile.
        image = read_image(Path(os.path.realpath(link))) if link.is_symlink() else None
        return image if image is not None and image.name == name and image.intact(sums=sums) else None

    def images(self) -> dict[str, Image | None]:
        """The images by name, read in full; None for one that is damaged."""
        names = sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []
        return {name: self.read(name, sums=True) for name in names if self.has(name)}

    def put(self, name: str, fill: Callable[[Path], Lock]) -> None:
        """Puts an image into its place, or in that of an older one; the shelf is `locked`. `fill` stores its files."""
        directory = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.directory))
        directory.chmod(0o755)
        try:
            text = msgspec.json.format(msgspec.json.encode(fill(directory)), indent=2)
            store(directory / "lock.json", text + b"\n")
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        link = self.directory / f".{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(directory.name)
        place = self.directory / name
        if not place.is_symlink():
            delete(place)
        link.replace(place)
        self.sweep()

    def remove(self, name: str) -> None:
        """Deletes what has that name, whatever it is."""
        with self.locked():
            delete(self.directory / name)
            self.sweep()

    def sweep(self) -> None:
        """Deletes what was left half made, and what no name leads to any more; the shelf is `locked`."""
        used = {os.path.realpath(path) for path in self.directory.iterdir() if not path.name.startswith(".")}
        for path in self.directory.iterdir():
            if path.name.startswith(".") and path.is_dir() and os.path.realpath(path) not in used:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the shelf, which is made if it is not there, against other processes that change it."""
        place = self.directory / ".lock"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
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
            raise ImageError(unwritable(self.directory.parent, error)) from error
