"""The server of a share: what the messages of 9P2000.L do to a directory of the host's.

A session is what one driver has since its Tversion: fids, each a file that is held. Everything that a driver sends is
answered at once, by Rlerror where it cannot be done. Source: as `ninep_message`; flags and masks are Linux's, from
include/net/9p/9p.h.

What belongs to the user of this process shows as root's, and what is made is that user's. A change of owner to what is
shown is done, since it is nothing; any other is refused (EPERM): a program that gives a file away for safety's sake is
not told that it did. Locks are kept by the guest's kernel, between its own programs; the host knows nothing of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from errno import EBADF, EEXIST, EINVAL, EIO, EMFILE, EMSGSIZE, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM, EPROTO
from pathlib import Path

from ringfence.machine.device.host_directory import NOW, File, HostDirectory, refusal
from ringfence.machine.device.ninep_message import (
    ENTRY,
    HEADER,
    IO_HEADER,
    NAMED,
    NOFID,
    QTDIR,
    QTFILE,
    QTSYMLINK,
    REQUESTS,
    VERSION,
    Malformed,
    Qid,
    Value,
    decode,
    encode,
    message,
)

MSIZE = 512_000
"""Bytes of a message at most: what Linux's transport can send, 125 pages of 4 KiB in a queue of 128 descriptors."""
MSIZE_LEAST = 4096
FIDS = 2048
"""Files that a session holds at most."""
NAMES = 16
"""Names in a walk at most."""

GETATTR_BASIC = 0x7FF
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
SET_ATIME_TO, SET_MTIME_TO = 0x80, 0x100
AT_REMOVEDIR = 0x200
LOCK_SUCCESS, UNLCK = 0, 2
STATFS_TYPE = 0x0102_1997
"""What Linux says of every file system by 9P."""
DT_UNKNOWN, DT_DIR, DT_REG, DT_LNK = 0, 4, 8, 10
_QID_TYPES = {DT_DIR: QTDIR, DT_LNK: QTSYMLINK}
_NO_ID = 0xFFFF_FFFF
_OFFSET_MAX = (1 << 63) - 1
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_SPREAD = 0x9E37_79B9_7F4A_7C15
"""An odd number, by which few devices get numbers far apart."""
_SECOND = 1_000_000_000
Reply = Sequence[Value]


class Share:
    """The directory `path` of the host's, for a machine to have as `tag`: a path, where a Debian image mounts it."""

    def __init__(self, path: str | Path, tag: str, *, readonly: bool = False) -> None:
        """Raises MachineError."""
        self.tag = os.fsencode(tag)
        self.directory = HostDirectory(path, readonly=readonly)

    def session(self) -> Session:
        return Session(self.directory)

    def close(self) -> None:
        """No session gets anything more of it."""
        self.directory.close()


class Session:
    """What a driver has of a directory. Methods are named for the requests, and give the values of their answers."""

    def __init__(self, directory: HostDirectory) -> None:
        self.directory = directory
        self.msize = 0
        """What was agreed upon; 0 before that."""
        self.fids: dict[int, File] = {}
        self._room = 0

    def reset(self) -> None:
        """As before the first message."""
        self.msize = 0
        for file in self.fids.values():
            file.close()
        self.fids.clear()

    def answer(self, request: bytes, room: int) -> bytes:
        """The answer to a message that has a header, in at most `room` bytes, which has room for IO_HEADER."""
        size, number, tag = HEADER.unpack_from(request)
        row = REQUESTS.get(number)
        self._room = min(room, self.msize or MSIZE)
        try:
            if size != len(request) or size > (self.msize or MSIZE):
                raise refusal(EINVAL)
            if row is None:
                raise refusal(EOPNOTSUPP)
            if not self.msize and row.name != "version":
                raise refusal(EPROTO)
            values = decode(row.request, request[HEADER.size :])
            reply = message(number + 1, tag, encode(row.reply, getattr(self, row.name)(*values)))
            if len(reply) > self._room:
                raise refusal(EMSGSIZE)
            return reply
        except Malformed:
            code = EINVAL
        except OSError as error:
            code = error.errno or EIO
        error_row = NAMED["lerror"]
        return message(error_row.number + 1, tag, encode(error_row.reply, (code,)))

    def version(self, msize: int, version: bytes) -> Reply:
        self.reset()
        if msize < MSIZE_LEAST:
            raise refusal(EINVAL)
        if version != VERSION:
            return msize, b"unknown"
        self.msize = min(msize, MSIZE)
        return self.msize, VERSION

    def auth(self, afid: int, uname: bytes, aname: bytes, n_uname: int) -> Reply:
        raise refusal(EOPNOTSUPP)

    def attach(self, fid: int, afid: int, uname: bytes, aname: bytes, n_uname: int) -> Reply:
        if afid != NOFID:
            raise refusal(EINVAL)
        if aname not in (b"", b"/"):
            raise refusal(ENOENT)
        self._free(fid)
        return (self._qid(self._hold(fid, self.directory.top())),)

    def flush(self, oldtag: int) -> Reply:
        return ()  # what came before is answered

    def walk(self, fid: int, newfid: int, names: list[bytes]) -> Reply:
        file = self._file(fid)
        if newfid != fid:
            self._free(newfid)
        elif file.opened:
            raise refusal(EINVAL)
        if len(names) > NAMES:
            raise refusal(EINVAL)
        qids: list[Qid] = []
        there = file if names else self.directory.another(file)
        for name in names:
            try:
                there = self.directory.child(there, name)
            except OSError:
                if not qids:
                    raise
                return (qids,)
            qids.append(self._qid(there))
        self._hold(newfid, there)
        return (qids,)

    def lopen(self, fid: int, flags: int) -> Reply:
        file = self._file(fid)
        if file.opened:
            raise refusal(EINVAL)
        self.directory.open(file, flags)
        return self._qid(file), 0

    def lcreate(self, fid: int, name: bytes, flags: int, mode: int, gid: int) -> Reply:
        file = self._hold(fid, self.directory.create(self._directory(fid), name, flags, mode))
        return self._qid(file), 0

    def symlink(self, fid: int, name: bytes, target: bytes, gid: int) -> Reply:
        return (self._qid(self.directory.symlink(self._directory(fid), name, target)),)

    def mknod(self, fid: int, name: bytes, mode: int, major: int, minor: int, gid: int) -> Reply:
        raise refusal(EPERM)  # devices, FIFOs and sockets of a guest's are of no use to the host

    def rename(self, fid: int, directory_fid: int, name: bytes) -> Reply:
        old, old_name = self.directory.whereabouts(self._file(fid))
        self.directory.rename(old, old_name, self._directory(directory_fid), name)
        return ()

    def readlink(self, fid: int) -> Reply:
        return (self.directory.readlink(self._file(fid)),)

    def getattr(self, fid: int, mask: int) -> Reply:
        file = self._file(fid)
        found = self.directory.stat(file)
        uid, gid = self.directory.owner(found)
        times = (
            part & _U64
            for ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns, 0)
            for part in divmod(ns, _SECOND)
        )
        sizes = (found.st_nlink, found.st_rdev, found.st_size, found.st_blksize, found.st_blocks)
        return GETATTR_BASIC, self._qid(file, found), found.st_mode, uid, gid, *sizes, *times, 0, 0

    def setattr(
        self, fid: int, valid: int, mode: int, uid: int, gid: int, size: int, a_s: int, a_ns: int, m_s: int, m_ns: int
    ) -> Reply:
        file = self._file(fid)
        shown = self.directory.owner(self.directory.stat(file))
        if valid & SET_SIZE and size > _OFFSET_MAX:
            raise refusal(EINVAL)
        for bit, given, there in zip((SET_UID, SET_GID), (uid, gid), shown, strict=True):
            if valid & bit and given not in (there, _NO_ID):
                raise refusal(EPERM)
        if valid & SET_MODE:
            self.directory.chmod(file, mode)
        if valid & SET_SIZE:
            self.directory.truncate(file, size)
        if valid & (SET_ATIME | SET_MTIME):
            atime = _time(a_s, a_ns) if valid & SET_ATIME_TO else NOW
            mtime = _time(m_s, m_ns) if valid & SET_MTIME_TO else NOW
            self.directory.set_times(file, atime if valid & SET_ATIME else None, mtime if valid & SET_MTIME else None)
        return ()

    def xattrwalk(self, fid: int, newfid: int, name: bytes) -> Reply:
        raise refusal(EOPNOTSUPP)

    def xattrcreate(self, fid: int, name: bytes, size: int, flags: int) -> Reply:
        raise refusal(EOPNOTSUPP)

    def readdir(self, fid: int, offset: int, count: int) -> Reply:
        """An entry's offset is its number from 1 on; the first two are . and .., which the host does not list."""
        file = self._directory(fid)
        if not file.opened:
            raise refusal(EBADF)
        room = min(count, self._room - IO_HEADER)
        device = self.directory.stat(file).st_dev
        data = bytearray()

        def fits(qid: Qid, number: int, kind: int, name: bytes) -> bool:
            entry = encode(ENTRY, (qid, number, kind, name))
            if len(data) + len(entry) > room:
                if not data:
                    raise refusal(EINVAL)  # an answer without an entry would be the end
                return False
            data.extend(entry)
            return True

        for number, name in enumerate((b".", b".."), 1):
            if number > offset:
                there = file if number == 1 else self.directory.child(file, b"..")
                if not fits(self._qid(there), number, DT_DIR, name):
                    return (bytes(data),)
        start = max(offset - 2, 0)
        if start < file.position or offset == 0:
            file.rewind()
        while (found := file.peek()) is not None:
            if file.position >= start:
                kind = _kind(found)
                qid = Qid(_QID_TYPES.get(kind, QTFILE), 0, self._number(device, found.inode()))
                if not fits(qid, file.position + 3, kind, os.fsencode(found.name)):
                    break
            file.skip()
        return (bytes(data),)

    def fsync(self, fid: int, data_only: int) -> Reply:
        self.directory.flush(self._file(fid), data_only=bool(data_only))
        return ()

    def lock(self, fid: int, kind: int, flags: int, start: int, length: int, process: int, client: bytes) -> Reply:
        self._file(fid)
        return (LOCK_SUCCESS,)

    def getlock(self, fid: int, kind: int, start: int, length: int, process: int, client: bytes) -> Reply:
        self._file(fid)
        return UNLCK, start, length, process, client

    def link(self, directory_fid: int, fid: int, name: bytes) -> Reply:
        self.directory.link(self._file(fid), self._directory(directory_fid), name)
        return ()

    def mkdir(self, fid: int, name: bytes, mode: int, gid: int) -> Reply:
        return (self._qid(self.directory.mkdir(self._directory(fid), name, mode)),)

    def renameat(self, old_fid: int, old_name: bytes, new_fid: int, new_name: bytes) -> Reply:
        self.directory.rename(self._directory(old_fid), old_name, self._directory(new_fid), new_name)
        return ()

    def unlinkat(self, fid: int, name: bytes, flags: int) -> Reply:
        if flags & ~AT_REMOVEDIR:
            raise refusal(EINVAL)
        self.directory.unlink(self._directory(fid), name, of_directory=bool(flags & AT_REMOVEDIR))
        return ()

    def statfs(self, fid: int) -> Reply:
        found = self.directory.statfs(self._file(fid))
        blocks = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return STATFS_TYPE, found.f_frsize, *blocks, found.f_fsid & _U64, found.f_namemax

    def read(self, fid: int, offset: int, count: int) -> Reply:
        if offset > _OFFSET_MAX - count:
            raise refusal(EINVAL)
        return (self.directory.read(self._file(fid), offset, min(count, self._room - IO_HEADER)),)

    def write(self, fid: int, offset: int, data: bytes) -> Reply:
        if offset > _OFFSET_MAX - len(data):
            raise refusal(EINVAL)
        return (self.directory.write(self._file(fid), offset, data),)

    def clunk(self, fid: int) -> Reply:
        if fid not in self.fids:
            raise refusal(EBADF)
        self.fids.pop(fid).close()
        return ()

    def remove(self, fid: int) -> Reply:
        """The fid is gone even where the file is not."""
        try:
            file = self._file(fid)
            directory, name = self.directory.whereabouts(file)
            self.directory.unlink(directory, name, of_directory=file.type == stat.S_IFDIR)
        finally:
            self.clunk(fid)
        return ()

    def _file(self, fid: int) -> File:
        """The file of a fid. Raises EBADF, and ESTALE where it is in the directory no more."""
        file = self.fids.get(fid)
        if file is None:
            raise refusal(EBADF)
        self.directory.path(file)
        return file

    def _directory(self, fid: int) -> File:
        file = self._file(fid)
        if file.type != stat.S_IFDIR:
            raise refusal(ENOTDIR)
        return file

    def _free(self, fid: int) -> None:
        """Raises unless one more file can be held, by this number."""
        if fid == NOFID:
            raise refusal(EINVAL)
        if fid in self.fids:
            raise refusal(EEXIST)
        if len(self.fids) >= FIDS:
            raise refusal(EMFILE)

    def _hold(self, fid: int, file: File) -> File:
        before = self.fids.pop(fid, None)
        if before is not None:
            before.close()
        self.fids[fid] = file
        return file

    def _qid(self, file: File, found: os.stat_result | None = None) -> Qid:
        found = found or self.directory.stat(file)
        kind = QTDIR if file.type == stat.S_IFDIR else QTSYMLINK if file.type == stat.S_IFLNK else QTFILE
        version = (found.st_mtime_ns ^ found.st_mtime_ns >> 32) & _U32
        return Qid(kind, version, self._number(found.st_dev, found.st_ino))

    def _number(self, device: int, inode: int) -> int:
        """The path of a qid: of files with one number on two devices two."""
        return inode ^ (device ^ self.directory.device) * _SPREAD & _U64


def _time(seconds: int, ns: int) -> int:
    """ns since 1970. Raises EINVAL."""
    if ns >= _SECOND:
        raise refusal(EINVAL)
    return (seconds - (seconds >> 63 << 64)) * _SECOND + ns


def _kind(entry: os.DirEntry[str]) -> int:
    """readdir's d_type; DT_UNKNOWN for what is none of these."""
    try:
        if entry.is_symlink():
            return DT_LNK
        if entry.is_dir(follow_symlinks=False):
            return DT_DIR
        return DT_REG if entry.is_file(follow_symlinks=False) else DT_UNKNOWN
    except OSError:
        return DT_UNKNOWN
