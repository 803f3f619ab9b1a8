"""A directory of the host's, and nothing else of it: every operation of a file system, one name at a time.

Whatever links lie in the directory, and whoever renames what in it meanwhile, nothing outside is reached:

- A file is held by a descriptor (O_PATH), got by one name in a directory that is held so. No path is ever resolved and
  no symbolic link followed: a link is a file whose content is a path, for the guest to follow in its own tree.
- ".." is of use only where it leads to something below the directory; at the directory itself it stays there.
- What is moved out of the directory is out of reach from then on: where a file is, the kernel tells of its descriptor,
  and that is asked before each use.
- Another file system that is mounted in it is not shared: /proc, for one, has this process's own memory in it.

Only regular files and directories are opened. An inode keeps its type, so a device, FIFO or socket never is.
Sources: openat(2), open(2) on O_PATH, proc_pid_fd(5), all Linux.
"""

from __future__ import annotations

import os
import resource
import stat
import sys
import time
from collections.abc import Callable, Iterator
from errno import (
    EBADF,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    EMFILE,
    ENOENT,
    ENOTDIR,
    ENXIO,
    EOPNOTSUPP,
    EROFS,
    ESTALE,
    EXDEV,
)
from pathlib import Path

from ringfence.errors import MachineError

DESCRIPTORS = "/proc/self/fd"
TRIES = 8
"""How often something is done again that somebody else's renaming has come between."""
NOW = -1 << 100
"""The time of the host, where a time is asked for."""
_OPENING = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_DSYNC | os.O_SYNC | os.O_DIRECTORY
"""What of the flags of an open counts."""
_PERMISSIONS, _STICKY = 0o777, stat.S_ISVTX
"""Modes that can be set. S_ISUID and S_ISGID cannot: no guest makes a program that runs with its owner's rights."""
_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def refusal(number: int) -> OSError:
    """The host's error of that number."""
    return OSError(number, os.strerror(number))


def checked(name: bytes) -> bytes:
    """A name that something can have. Raises OSError."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise refusal(EINVAL)
    return name


class File:
    """A file of any type that is held by a descriptor, `fd`; once it is `opened` its content can be had by it too."""

    __slots__ = ("_entries", "_next", "fd", "opened", "position", "type")

    def __init__(self, fd: int, *, opened: bool = False) -> None:
        self.fd, self.opened = -1, opened
        self.position = 0
        """How many entries of the directory have been given."""
        self._entries: Iterator[os.DirEntry[str]] | None = None
        self._next: os.DirEntry[str] | None = None
        self.type = stat.S_IFMT(os.fstat(fd).st_mode)
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.rewind()
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    @property
    def place(self) -> str:
        """A path that leads to the file itself, whatever its name is now."""
        return f"{DESCRIPTORS}/{self.fd}"

    def rewind(self) -> None:
        """Before the first entry."""
        if self._entries is not None:
            self._entries.close()  # type: ignore[attr-defined]
        self._entries = self._next = None
        self.position = 0

    def peek(self) -> os.DirEntry[str] | None:
        """The next entry of the directory, which is opened, but for . and .. which are not told."""
        if self._next is None:
            if self._entries is None:
                bounded(lambda: os.dup(self.fd)).close()  # scandir takes a descriptor too
                self._entries = os.scandir(self.fd)
            self._next = next(self._entries, None)
        return self._next

    def skip(self) -> None:
        """Behind the next entry."""
        self._next = None
        self.position += 1


def bounded(get: Callable[[], int], *, opened: bool = False) -> File:
    """The file of a descriptor that `get` gets. Raises OSError: the last quarter of those that this process can have
    are no guest's, so that whatever guests hold the rest of it finds some.
    """
    fd = get()
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and fd >= most - most // 4:
        os.close(fd)
        raise refusal(EMFILE)
    try:
        return File(fd, opened=opened)
    except OSError:
        os.close(fd)
        raise


class HostDirectory:
    """The directory `path`. Names are bytes; every method raises OSError as the host does, and EROFS where the
    directory is only read and would change.
    """

    def __init__(self, path: str | Path, *, readonly: bool = False) -> None:
        """Raises MachineError."""
        self.readonly = readonly
        self.uid, self.gid = os.geteuid(), os.getegid()
        if sys.platform != "linux" or not os.path.isdir(DESCRIPTORS):
            raise MachineError(f"a directory can be shared on Linux alone, where {DESCRIPTORS} is")
        try:
            self._root = File(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            self.device = self.stat(self._root).st_dev
            os.close(os.open(self._root.place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its name has a NUL in it"
            raise MachineError(f"the directory {path} cannot be shared: {reason}") from None

    def close(self) -> None:
        """Nothing new can be had."""
        self._root.close()

    def top(self) -> File:
        """The directory itself."""
        return self.another(self._root)

    def another(self, file: File) -> File:
        """The same file once more, not opened."""
        if file.opened:
            return self._path(file.place, follow=True)
        return bounded(lambda: os.dup(file.fd))

    def path(self, file: File) -> list[bytes]:
        """The names that lead to a file from the directory on, as they are now. Raises ESTALE where none do."""
        for _ in range(TRIES):
            top = os.readlink(os.fsencode(self._root.place))
            here = os.readlink(os.fsencode(file.place))
            inside = top.rstrip(b"/") + b"/"
            if here == top:
                return []
            if here.startswith(inside):
                return here[len(inside) :].split(b"/")
            if os.readlink(os.fsencode(self._root.place)) == top:
                break
        raise refusal(ESTALE)

    def child(self, directory: File, name: bytes) -> File:
        """What has that name there; ".." leads no further up than to the directory that is shared. Raises EXDEV for a
        directory of another file system, which is mounted there: it is not shared.
        """
        if directory.type != stat.S_IFDIR:
            raise refusal(ENOTDIR)
        if name != b"..":
            found = self._path(checked(name), directory.fd)
            if found.type == stat.S_IFDIR and self.stat(found).st_dev != self.device:
                raise refusal(EXDEV)
            return found
        if not self.path(directory):
            return self.another(directory)
        above = self._path(b"..", directory.fd)
        self.path(above)
        return above

    def open(self, file: File, flags: int) -> None:
        """Opens a regular file or directory, by open(2)'s flags. Raises also ENXIO and ELOOP for what is neither."""
        self._check_flags(flags)
        if file.type not in (stat.S_IFREG, stat.S_IFDIR):
            raise refusal(ELOOP if file.type == stat.S_IFLNK else ENXIO)
        flags = flags & _OPENING | _ALWAYS & ~os.O_NOFOLLOW
        opened = bounded(lambda: os.open(file.place, flags), opened=True)
        file.fd, opened.fd = opened.fd, file.fd
        file.opened = True
        file.rewind()

    def create(self, directory: File, name: bytes, flags: int, mode: int) -> File:
        """A regular file of that name, opened; it may be there already, unless O_EXCL is in `flags`."""
        self._changing()
        self._check_flags(flags)
        checked(name)
        new = flags & _OPENING & ~os.O_DIRECTORY | _ALWAYS | os.O_CREAT | os.O_EXCL
        for _ in range(TRIES):
            try:
                return bounded(lambda: os.open(name, new, mode & _PERMISSIONS, dir_fd=directory.fd), opened=True)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
            try:
                found = self.child(directory, name)
            except FileNotFoundError:
                continue
            self.open(found, flags)
            return found
        raise refusal(EEXIST)

    def stat(self, file: File) -> os.stat_result:
        return os.fstat(file.fd)

    def statfs(self, file: File) -> os.statvfs_result:
        return os.fstatvfs(file.fd)

    def read(self, file: File, offset: int, length: int) -> bytes:
        return os.pread(self._regular(file), length, offset)

    def write(self, file: File, offset: int, data: bytes) -> int:
        """How many bytes are written."""
        return os.pwrite(self._regular(file), data, offset)

    def flush(self, file: File, *, data_only: bool) -> None:
        if not file.opened:
            raise refusal(EBADF)
        (os.fdatasync if data_only else os.fsync)(file.fd)

    def chmod(self, file: File, mode: int) -> None:
        self._changing()
        if file.type == stat.S_IFLNK:
            raise refusal(EOPNOTSUPP)
        os.chmod(file.place, mode & (_PERMISSIONS | _STICKY))

    def truncate(self, file: File, size: int) -> None:
        self._changing()
        if file.type != stat.S_IFREG:
            raise refusal(EISDIR if file.type == stat.S_IFDIR else EINVAL)
        os.truncate(file.place, size)

    def set_times(self, file: File, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Times in ns since 1970; NOW: what time it is; None: as it is."""
        self._changing()
        if atime_ns == mtime_ns == NOW:
            os.utime(file.place)  # which whoever may write a file may do, without owning it
            return
        there = os.fstat(file.fd)
        times = [
            before if given is None else time.time_ns() if given == NOW else given
            for given, before in ((atime_ns, there.st_atime_ns), (mtime_ns, there.st_mtime_ns))
        ]
        try:
            os.utime(file.place, ns=(times[0], times[1]))
        except OverflowError:
            raise refusal(EINVAL) from None

    def readlink(self, file: File) -> bytes:
        if file.type != stat.S_IFLNK:
            raise refusal(EINVAL)
        return os.readlink(b"", dir_fd=file.fd)

    def symlink(self, directory: File, name: bytes, target: bytes) -> File:
        self._changing()
        if b"\0" in target:
            raise refusal(EINVAL)
        os.symlink(target, checked(name), dir_fd=directory.fd)
        return self.child(directory, name)

    def mkdir(self, directory: File, name: bytes, mode: int) -> File:
        self._changing()
        os.mkdir(checked(name), mode & (_PERMISSIONS | _STICKY), dir_fd=directory.fd)
        return self.child(directory, name)

    def link(self, file: File, directory: File, name: bytes) -> None:
        """Another name for a file."""
        self._changing()
        os.link(os.fsencode(file.place), checked(name), dst_dir_fd=directory.fd, follow_symlinks=True)

    def rename(self, old: File, old_name: bytes, new: File, new_name: bytes) -> None:
        self._changing()
        os.rename(checked(old_name), checked(new_name), src_dir_fd=old.fd, dst_dir_fd=new.fd)

    def unlink(self, directory: File, name: bytes, *, of_directory: bool) -> None:
        self._changing()
        (os.rmdir if of_directory else os.unlink)(checked(name), dir_fd=directory.fd)

    def whereabouts(self, file: File) -> tuple[File, bytes]:
        """The directory that a file is in, and its name there. Raises EINVAL for the shared directory itself."""
        names = self.path(file)
        if not names:
            raise refusal(EINVAL)
        directory = self.top()
        for name in names[:-1]:
            directory = self.child(directory, name)
        if not os.path.samestat(os.stat(names[-1], dir_fd=directory.fd, follow_symlinks=False), os.fstat(file.fd)):
            raise refusal(ENOENT)
        return directory, names[-1]

    def owner(self, found: os.stat_result) -> tuple[int, int]:
        """The uid and gid that a guest is shown. What belongs to the user of this process is its root's."""
        return (
            0 if found.st_uid == self.uid else found.st_uid,
            0 if found.st_gid == self.gid else found.st_gid,
        )

    def _path(self, name: str | bytes, directory: int | None = None, *, follow: bool = False) -> File:
        flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        return bounded(lambda: os.open(name, flags, dir_fd=directory))

    def _changing(self) -> None:
        if self.readonly:
            raise refusal(EROFS)

    def _check_flags(self, flags: int) -> None:
        access = flags & os.O_ACCMODE
        if access == os.O_ACCMODE:
            raise refusal(EINVAL)
        if access != os.O_RDONLY or flags & os.O_TRUNC:
            self._changing()

    def _regular(self, file: File) -> int:
        if file.type == stat.S_IFDIR:
            raise refusal(EISDIR)
        if not file.opened:
            raise refusal(EBADF)
        return file.fd
