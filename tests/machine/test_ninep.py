"""The server of shares does what the host's own file system does, and answers whatever is sent."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ninep_client import ROOT, Client, Refused

from ringfence import Share
from ringfence.errors import MachineError
from ringfence.machine.device import ninep
from ringfence.machine.device.ninep import FIDS, MSIZE, Session
from ringfence.machine.device.ninep_message import (
    HEADER,
    IO_HEADER,
    NAMED,
    NOFID,
    REQUESTS,
    ROWS,
    VERSION,
    Malformed,
    Qid,
    Row,
    Value,
    decode,
    encode,
    entries,
    message,
)
from ringfence.machine.device.virtio_9p import MESSAGE_MAX


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    (tmp_path / "share").mkdir()
    made = Share(tmp_path / "share", "/mnt")
    yield made
    made.close()


@pytest.fixture
def client(share: Share) -> Iterator[Client]:
    made = Client(share.session())
    yield made
    made.session.reset()


def refused(ask: Callable[..., object], *values: object, **more: int) -> int:
    """The number of the error."""
    with pytest.raises(Refused) as caught:
        ask(*values, **more)
    return caught.value.code


# The messages

KINDS: dict[str, st.SearchStrategy[Any]] = {
    **{str(n): st.integers(0, (1 << 8 * n) - 1) for n in (1, 2, 4, 8)},
    "s": st.binary(max_size=300),
    "d": st.binary(max_size=300),
    "q": st.builds(Qid, st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)),
    "s*": st.lists(st.binary(max_size=20), max_size=20),
    "q*": st.lists(st.builds(Qid, st.just(128), st.just(1), st.integers(0, 1 << 40)), max_size=20),
}


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(ROWS), st.booleans(), st.data())
def test_messages_are_read_as_they_were_written(row: Row, answer: bool, data: st.DataObject) -> None:
    """Every kind, both ways; one that is cut or has more behind it is no message."""
    layout = row.reply if answer else row.request
    values = [data.draw(KINDS[kind]) for _, kind in layout]
    written = encode(layout, values)
    assert decode(layout, written) == values
    with pytest.raises(Malformed):
        decode(layout, written + b"\0")
    if written:
        with pytest.raises(Malformed):
            decode(layout, written[: data.draw(st.integers(0, len(written) - 1))])


def test_a_known_message_is_these_bytes() -> None:
    """Twalk of fid 1 to fid 2 by one name, byte by byte."""
    row = NAMED["walk"]
    written = message(row.number, 0x1234, encode(row.request, [1, 2, [b"ab"]]))
    assert written.hex(" ") == "15 00 00 00 6e 34 12 01 00 00 00 02 00 00 00 01 00 02 00 61 62"
    assert MSIZE == MESSAGE_MAX


# The same as the host

NAMES = st.sampled_from([b"a", b"b", b"c", b"d", "é".encode(), b"\xff", b"n" * 255, b"n" * 256])
PLACES = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=2)
SHOWN = stat.S_IFMT(-1 & 0xFFFF) | 0o7777


def same(theirs: os.stat_result, ours: list[Any]) -> bool:
    _, qid, mode, uid, gid, links, _, size, _, _, _, _, mtime, mtime_ns = ours[:14]
    kind = {stat.S_IFDIR: 0x80, stat.S_IFLNK: 2}.get(stat.S_IFMT(mode), 0)
    known = (mode, links, uid, gid, qid.type, mtime * 10**9 + mtime_ns)
    sizes = stat.S_ISDIR(mode) or size == theirs.st_size
    return sizes and known == (theirs.st_mode, theirs.st_nlink, 0, 0, kind, theirs.st_mtime_ns)


class BesideTheHost(RuleBasedStateMachine):
    """Each operation is done by messages in one directory, and by system calls in another."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp())
        self.served, self.mirror = self.scratch / "served", self.scratch / "mirror"
        self.served.mkdir()
        self.mirror.mkdir()
        self.share = Share(self.served, "/mnt")
        self.client = Client(self.share.session())

    def teardown(self) -> None:
        assert set(self.client.session.fids) == {ROOT}
        self.client.session.reset()
        self.share.close()
        shutil.rmtree(self.scratch)

    def theirs(self, place: list[bytes]) -> bytes:
        return b"/".join((os.fsencode(self.mirror), *place))

    def both(self, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
        """Do both, and compare what comes of it."""
        before = set(self.client.session.fids)
        found: list[object] = []
        try:
            found.append(ours())
        except Refused as error:
            found.append(OSError(error.code, os.strerror(error.code)))
        for fid in set(self.client.session.fids) - before:
            self.client.clunk(fid)
        try:
            found.append(theirs())
        except OSError as error:
            found.append(OSError(error.errno, error.strerror))
        assert repr(found[0]) == repr(found[1])

    def at(self, place: list[bytes], flags: int | None = None) -> int:
        """A fid; found name by name, as Linux does."""
        fid = ROOT
        for name in place or [b""]:
            fid = self.client.walk(*([name] if name else []), start=fid)
        if flags is not None:
            self.client.ask("lopen", fid, flags)
        return fid

    @rule(
        place=PLACES, name=NAMES, data=st.binary(max_size=50), excl=st.booleans(), mode=st.sampled_from([0o600, 0o755])
    )
    def create(self, place: list[bytes], name: bytes, data: bytes, excl: bool, mode: int) -> None:
        flags = os.O_CREAT | os.O_RDWR | (os.O_EXCL if excl else 0) | os.O_NOFOLLOW

        def ours() -> object:
            fid = self.at(place)
            self.client.ask("lcreate", fid, name, flags, mode, 0)
            return self.client.ask("write", fid, 3, data)[0]

        def theirs() -> object:
            if not os.path.isdir(self.theirs(place)) or any(
                os.path.islink(self.theirs(place[:n])) for n in range(1, len(place) + 1)
            ):
                os.stat(self.theirs([*place, b"x"]))
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            fd = os.open(self.theirs([*place, name]), flags, mode)
            try:
                return os.pwrite(fd, data, 3)
            finally:
                os.close(fd)

        if not self.through_link(place):
            self.both(ours, theirs)

    def through_link(self, place: list[bytes]) -> bool:
        """The host would follow it, and the server leaves that to the guest."""
        return any(os.path.islink(self.theirs(place[: n + 1])) for n in range(len(place)))

    @rule(place=PLACES, name=NAMES)
    def mkdir(self, place: list[bytes], name: bytes) -> None:
        if not self.through_link(place):
            self.both(
                lambda: self.client.do("mkdir", self.at(place), name, 0o755, 0),
                lambda: os.mkdir(self.theirs([*place, name]), 0o755),
            )

    @rule(place=PLACES, name=NAMES, to=st.sampled_from([b"a", b"../x", b"/etc/passwd", b"a/b"]))
    def symlink(self, place: list[bytes], name: bytes, to: bytes) -> None:
        if not self.through_link(place):
            self.both(
                lambda: self.client.do("symlink", self.at(place), name, to, 0),
                lambda: os.symlink(to, self.theirs([*place, name])),
            )

    @rule(place=PLACES, name=NAMES, directory=st.booleans())
    def unlink(self, place: list[bytes], name: bytes, directory: bool) -> None:
        if not self.through_link(place):
            call = os.rmdir if directory else os.unlink
            self.both(
                lambda: self.client.do("unlinkat", self.at(place), name, 0x200 * directory),
                lambda: call(self.theirs([*place, name])),
            )

    @rule(place=PLACES)
    def remove(self, place: list[bytes]) -> None:
        if place and not self.through_link(place[:-1]):
            path = self.theirs(place)

            def theirs() -> None:
                (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)

            self.both(lambda: self.client.do("remove", self.at(place)), theirs)

    @rule(old=PLACES, old_name=NAMES, new=PLACES, new_name=NAMES, by_fid=st.booleans())
    def rename(self, old: list[bytes], old_name: bytes, new: list[bytes], new_name: bytes, by_fid: bool) -> None:
        if self.through_link(old) or self.through_link(new):
            return
        if not (os.path.isdir(self.theirs(new)) and os.path.isdir(self.theirs(old))):
            return  # which of two errors is told first is nobody's business

        def ours() -> None:
            if by_fid:
                self.client.ask("rename", self.at([*old, old_name]), self.at(new), new_name)
            else:
                self.client.ask("renameat", self.at(old), old_name, self.at(new), new_name)

        if not by_fid or len(new_name) < 256:
            self.both(ours, lambda: os.rename(self.theirs([*old, old_name]), self.theirs([*new, new_name])))

    @rule(place=PLACES, new=PLACES, name=NAMES)
    def link(self, place: list[bytes], new: list[bytes], name: bytes) -> None:
        if not place or self.through_link(place[:-1]) or self.through_link(new):
            return
        if os.path.lexists(self.theirs(place)) and os.path.isdir(self.theirs(new)):
            self.both(
                lambda: self.client.do("link", self.at(new), self.at(place), name),
                lambda: os.link(self.theirs(place), self.theirs([*new, name]), follow_symlinks=False),
            )

    @rule(place=PLACES, mode=st.integers(0, 0o1777))
    def chmod(self, place: list[bytes], mode: int) -> None:
        if place and not self.through_link(place):
            mode |= 0o700  # so that nobody but root needs no permission
            self.both(
                lambda: self.client.do("setattr", self.at(place), 1, mode, 0, 0, 0, 0, 0, 0, 0),
                lambda: os.chmod(self.theirs(place), mode),
            )

    @rule(place=PLACES, size=st.sampled_from([0, 1, 10, 5000, 1 << 62, (1 << 63) - 1]))
    def truncate(self, place: list[bytes], size: int) -> None:
        if not self.through_link(place):
            self.both(
                lambda: self.client.do("setattr", self.at(place), 8, 0, 0, 0, size, 0, 0, 0, 0),
                lambda: os.truncate(self.theirs(place), size),
            )
            if place and size > 5000 and os.path.isfile(self.theirs(place)):
                for root in (self.mirror, self.served):
                    os.truncate(b"/".join((os.fsencode(root), *place)), 0)

    @rule(place=PLACES, offset=st.integers(0, 20), count=st.integers(0, 60))
    def read(self, place: list[bytes], offset: int, count: int) -> None:
        def theirs() -> bytes:
            fd = os.open(self.theirs(place), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                return os.pread(fd, count, offset)
            finally:
                os.close(fd)

        if not self.through_link(place[:-1]):
            self.both(lambda: self.client.ask("read", self.at(place, os.O_RDONLY), offset, count)[0], theirs)

    @rule(place=PLACES, flags=st.sampled_from([os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND]))
    def write(self, place: list[bytes], flags: int) -> None:
        def theirs() -> int:
            fd = os.open(self.theirs(place), flags | os.O_NOFOLLOW)
            try:
                return os.pwrite(fd, b"written", 2)
            finally:
                os.close(fd)

        if not self.through_link(place[:-1]):
            self.both(lambda: self.client.ask("write", self.at(place, flags), 2, b"written")[0], theirs)

    @rule(place=PLACES)
    def readlink(self, place: list[bytes]) -> None:
        if not self.through_link(place[:-1]):
            self.both(lambda: self.client.ask("readlink", self.at(place))[0], lambda: os.readlink(self.theirs(place)))

    @rule(place=PLACES, count=st.sampled_from([300, 700, 5000]))
    def readdir(self, place: list[bytes], count: int) -> None:
        if not self.through_link(place):

            def ours() -> list[bytes]:
                found = self.client.list(self.at(place, os.O_RDONLY | os.O_DIRECTORY), count)
                assert list(found[:2]) == [b".", b".."]
                return sorted(found[2:])

            def theirs() -> list[bytes]:
                fd = os.open(self.theirs(place), os.O_RDONLY | os.O_DIRECTORY)
                try:
                    return sorted(map(os.fsencode, os.listdir(fd)))
                finally:
                    os.close(fd)

            self.both(ours, theirs)

    @rule(place=PLACES, times=st.tuples(st.integers(0, 1 << 33), st.integers(0, 10**9 - 1)))
    def times(self, place: list[bytes], times: tuple[int, int]) -> None:
        if not self.through_link(place[:-1]):
            ns = times[0] * 10**9 + times[1]
            self.both(
                lambda: self.client.do("setattr", self.at(place), 0x1B0, 0, 0, 0, 0, *times, *times),
                lambda: os.utime(self.theirs(place), ns=(ns, ns), follow_symlinks=False),
            )

    @invariant()
    def trees_are_alike(self) -> None:
        for directory, _, files in os.walk(self.served):
            beside = self.mirror / Path(directory).relative_to(self.served)
            assert sorted(os.listdir(directory)) == sorted(os.listdir(beside))
            for name in files:
                ours, theirs = Path(directory, name), beside / name
                assert (ours.is_symlink(), os.lstat(ours).st_mode) == (theirs.is_symlink(), os.lstat(theirs).st_mode)
                if not ours.is_symlink():
                    assert ours.read_bytes() == theirs.read_bytes()
                place = os.fsencode(os.path.relpath(ours, self.served)).split(b"/")
                fid = self.at(place)
                attributes = self.client.ask("getattr", fid, 0x7FF)
                assert same(os.lstat(ours), attributes)
                assert attributes[1].path == os.lstat(ours).st_ino
                self.client.clunk(fid)
                for above in set(self.client.session.fids) - {ROOT}:
                    self.client.clunk(above)


TestBesideTheHost = BesideTheHost.TestCase
TestBesideTheHost.settings = settings(deadline=None, max_examples=150, stateful_step_count=30)


# What no kernel sends

NUMBERS = st.one_of(st.sampled_from([0, 1, 2, NOFID, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]), st.integers(0, 3))
HOSTILE: dict[str, st.SearchStrategy[Any]] = {
    **{n: NUMBERS.map(partial(int.__and__, (1 << 8 * int(n)) - 1)) for n in "1248"},
    "s": st.one_of(st.sampled_from([b"a", b"..", b".", b"", b"a/b", b"/", b"a\0b", VERSION, b"x" * 70]), st.binary()),
    "d": st.binary(max_size=100),
    "s*": st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"/etc", b"\0"]), max_size=20),
}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_is_sent_is_answered(data: st.DataObject) -> None:
    """Messages with any fields, of any type, cut, with more behind them, or noise: an answer with the tag that fits the
    room, nothing outside is touched, and the next client is served.
    """
    with tempfile.TemporaryDirectory() as name:
        served, beside = Path(name, "served"), Path(name, "beside")
        served.mkdir()
        beside.write_text("beside")
        (served / "a").mkdir()
        (served / "b").symlink_to("../beside")
        share = Share(served, "/mnt")
        client = Client(share.session())
        for _ in range(data.draw(st.integers(1, 40))):
            row = data.draw(st.sampled_from([row for row in ROWS if row.name not in ("lerror", "version")]))
            body = encode(row.request, [data.draw(HOSTILE[kind]) for _, kind in row.request])
            sent = message(row.number, 5, body)
            twist = data.draw(st.integers(0, 9))
            if twist == 0:
                sent = HEADER.pack(data.draw(st.integers(0, 1 << 20)), row.number, 5) + body
            elif twist == 1:
                sent = message(data.draw(st.integers(0, 255)), 5, data.draw(st.binary(max_size=60)))
            elif twist == 2:
                sent = message(row.number, 5, body[: data.draw(st.integers(0, len(body)))])
            room = data.draw(st.sampled_from([11, 30, 200, MSIZE]))
            answer = client.session.answer(sent, room)
            size, number, tag = HEADER.unpack_from(answer)
            assert size == len(answer) <= room and tag == 5 and number in (7, sent[4] + 1)
        assert beside.read_text() == "beside" and sorted(os.listdir(name)) == ["beside", "served"]
        client.session.reset()
        assert Client(client.session).ask("getattr", ROOT, 0x7FF)[1].type == 0x80
        client.session.reset()
        share.close()


_EMPTY: dict[str, Value] = {"s": b"", "d": b"", "s*": []}


def test_nothing_is_served_before_a_version(share: Share) -> None:
    """And what is of another protocol, or has no room for a page, is refused."""
    session = share.session()
    for row in REQUESTS.values():
        if row.name != "version":
            values: list[Value] = [_EMPTY.get(kind, 0) for _, kind in row.request]
            answer = session.answer(message(row.number, 1, encode(row.request, values)), MSIZE)
            assert answer[HEADER.size :] == errno.EPROTO.to_bytes(4, "little")
    client = Client(session)
    assert client.ask("version", 8192, b"9P2000.u") == [8192, b"unknown"]
    assert refused(client.ask, "attach", 0, NOFID, b"", b"", 0) == errno.EPROTO
    assert refused(client.ask, "version", 4095, VERSION) == errno.EINVAL
    assert client.ask("version", 1 << 31, VERSION) == [MSIZE, VERSION]
    assert not session.fids


def test_messages_are_bounded_by_what_was_agreed(share: Share, tmp_path: Path) -> None:
    """Reads are cut to it, and to the room that there is; longer messages are refused."""
    (tmp_path / "share" / "f").write_bytes(bytes(100_000))
    client = Client(share.session(), msize=8192)
    fid = client.walk(b"f")
    client.ask("lopen", fid, os.O_RDWR)
    assert len(client.ask("read", fid, 0, 0xFFFF_FFFF)[0]) == 8192 - IO_HEADER
    assert len(client.ask("read", fid, 0, 5000, room=100)[0]) == 100 - IO_HEADER
    assert client.ask("write", fid, 0, bytes(8192 - HEADER.size - 16)) == [8192 - HEADER.size - 16]
    assert refused(client.ask, "write", fid, 0, bytes(8192 - HEADER.size - 15)) == errno.EINVAL
    assert refused(client.ask, "getattr", fid, 0, room=100) == errno.EMSGSIZE
    client.session.reset()


def test_fids_are_what_the_protocol_says(client: Client) -> None:
    """A number is used once; what was never made, or is gone, is EBADF; a session holds only so many."""
    client.write(b"data", b"f")
    assert refused(client.ask, "clunk", 99) == errno.EBADF
    assert refused(client.ask, "walk", 99, 100, []) == errno.EBADF
    assert refused(client.ask, "attach", ROOT, NOFID, b"", b"", 0) == errno.EEXIST
    assert refused(client.ask, "attach", NOFID, NOFID, b"", b"", 0) == errno.EINVAL
    assert refused(client.ask, "attach", 5, 3, b"", b"", 0) == errno.EINVAL
    assert refused(client.ask, "attach", 5, NOFID, b"", b"elsewhere", 0) == errno.ENOENT
    assert refused(client.ask, "auth", 5, b"", b"", 0) == errno.EOPNOTSUPP
    fid = client.walk(b"f")
    assert refused(client.ask, "walk", ROOT, fid, []) == errno.EEXIST
    assert refused(client.ask, "read", fid, 0, 1) == errno.EBADF
    client.ask("lopen", fid, 0)
    assert refused(client.ask, "lopen", fid, 0) == errno.EINVAL
    assert client.ask("read", fid, 1, 2) == [b"at"]
    (qids,) = client.ask("walk", ROOT, 1000, [b"f", b"x"])  # some of the names: no fid
    assert len(qids) == 1 and refused(client.clunk, 1000) == errno.EBADF
    assert refused(client.ask, "walk", ROOT, 1000, [b"f"] * 17) == errno.EINVAL
    client.ask("remove", fid)
    assert refused(client.clunk, fid) == errno.EBADF
    assert refused(client.ask, "remove", ROOT) == errno.EINVAL  # and gone it is
    assert not client.session.fids


def test_a_session_holds_so_many_files(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more, whatever the host has; what is given back can be had again."""
    monkeypatch.setattr(ninep, "FIDS", 20)
    assert FIDS > 20
    held = [client.walk() for _ in range(19)]
    assert refused(client.walk) == errno.EMFILE
    client.clunk(held.pop())
    client.walk()


def test_a_file_is_one_by_all_its_names(client: Client) -> None:
    """Hard links have one qid, other files others; a change shows in the version."""
    client.write(b"1", b"f")
    f, g = client.walk(b"f"), client.walk()
    client.ask("link", g, f, b"h")
    qid = client.ask("getattr", f, 0x7FF)[1]
    assert client.ask("getattr", client.walk(b"h"), 0x7FF)[1] == qid
    client.write(b"2", b"other")
    assert client.ask("getattr", client.walk(b"other"), 0x7FF)[1].path != qid.path
    client.ask("setattr", f, 0x120, 0, 0, 0, 0, 0, 0, 5, 0)
    assert client.ask("getattr", f, 0x7FF)[1].version != qid.version


def test_a_directory_is_read_on_from_any_entry(client: Client) -> None:
    """Offsets count entries, also backwards; what is removed meanwhile is not told twice."""
    names = [b"%03d" % n for n in range(300)]
    for name in names:
        client.write(b"", name)
    fid = client.walk()
    client.ask("lopen", fid, 0)
    order = client.list(fid, 1000)
    assert sorted(order[2:]) == names
    for offset in random.Random(1).sample(range(302), 30):
        part = entries(client.ask("readdir", fid, offset, 500)[0])
        assert [name for _, _, _, name in part] == list(order[offset : offset + len(part)])
    assert refused(client.ask, "readdir", fid, 0, 20) == errno.EINVAL  # less than an entry is no end
    gone = set()
    found: list[bytes] = []
    offset = 0
    while part := entries(client.ask("readdir", fid, offset, 500)[0]):
        offset = part[-1][1]
        for _, _, kind, name in part:
            assert kind == (4 if name in (b".", b"..") else 8)
            found.append(name)
            if name not in (b".", b".."):
                client.ask("unlinkat", ROOT, name, 0)
                gone.add(name)
    assert sorted(found) == [b".", b"..", *names] and gone == set(names)


def test_an_open_file_outlives_its_name(client: Client) -> None:
    """As on the host: it can be read and written until it is let go."""
    client.write(b"data", b"f")
    fid = client.walk(b"f")
    client.ask("lopen", fid, os.O_RDWR)
    client.ask("unlinkat", ROOT, b"f", 0)
    client.ask("write", fid, 4, b"more")
    assert client.ask("read", fid, 0, 100) == [b"datamore"]
    assert client.ask("getattr", fid, 0x7FF)[5] == 0  # links
    client.ask("fsync", fid, 0)


def test_appending_is_the_hosts(client: Client, share: Share, tmp_path: Path) -> None:
    """What a program here has written meanwhile is not written over."""
    client.write(b"one\n", b"log")
    fid = client.walk(b"log")
    client.ask("lopen", fid, os.O_WRONLY | os.O_APPEND)
    with (tmp_path / "share" / "log").open("a") as log:
        log.write("two\n")
    client.ask("write", fid, 4, b"three\n")
    assert client.read(b"log") == b"one\ntwo\nthree\n"


def test_what_there_is_not_is_refused(client: Client) -> None:
    """Extended attributes, nodes of devices; locks are the guest's own, and granted."""
    client.write(b"", b"f")
    fid = client.walk(b"f")
    assert refused(client.ask, "xattrwalk", fid, 9, b"user.x") == errno.EOPNOTSUPP
    assert refused(client.ask, "xattrcreate", fid, b"user.x", 1, 0) == errno.EOPNOTSUPP
    assert refused(client.ask, "mknod", ROOT, b"n", stat.S_IFIFO | 0o644, 0, 0, 0) == errno.EPERM
    assert client.ask("lock", fid, 1, 0, 0, 0, 1, b"me") == [0]
    assert client.ask("getlock", fid, 1, 0, 5, 1, b"me") == [2, 0, 5, 1, b"me"]
    assert client.ask("statfs", fid)[0] == 0x0102_1997
    assert client.ask("flush", 3) == []


def test_sessions_share_nothing_but_the_directory(share: Share) -> None:
    """Two machines with one share, each with fids of its own."""
    one, two = Client(share.session()), Client(share.session())
    one.write(b"from one", b"f")
    assert two.read(b"f") == b"from one"
    one.session.reset()
    assert two.read(b"f") == b"from one"
    assert isinstance(two.session, Session)
    two.session.reset()


def test_a_tag_that_is_given_is_kept(tmp_path: Path) -> None:
    """And a share of nothing is refused."""
    assert Share(tmp_path, "/mnt/é").tag == "/mnt/é".encode()
    with pytest.raises(MachineError, match="cannot be shared: No such file or directory"):
        Share(tmp_path / "nothing", "/mnt")
