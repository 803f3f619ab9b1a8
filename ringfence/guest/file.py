"""Files that ought to be regular ones: what else lies in their place is neither waited for nor written to."""

import errno
import os
import shutil
import stat
from pathlib import Path


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; OSError for anything else, at once: a FIFO's writer is not waited for."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


def delete(path: Path) -> None:
    """Deletes whatever is there: a file, a link, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def have_regular(path: Path) -> bool:
    """Whether a regular file is there; anything else in its place is deleted."""
    if path.is_file() and not path.is_symlink():
        return True
    delete(path)
    return False


def store(path: Path, data: bytes) -> None:
    """Writes a file so that it is on the disk before anything leads to it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
