"""A share is its directory and nothing else of the host, whatever lies in it and whoever renames what in it."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ninep_client import ROOT, Client, Refused

from ringfence import Share
from ringfence.errors import MachineError

SECRET = b"outside"
NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`inside`, which is shared, with links out of it; `outside`, which nobody may reach."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "d" / "e").mkdir(parents=True)
    (inside / "f").write_bytes(b"inside")
    (outside / "d").mkdir(parents=True)
    (outside / "f").write_bytes(SECRET)
    (outside / "d" / "f").write_bytes(SECRET)
    (inside / "up").symlink_to("..")
    (inside / "out").symlink_to(outside)
    (inside / "absolute").symlink_to(outside / "f")
    (inside / "d" / "relative").symlink_to("../../outside/f")
    (inside / "self").symlink_to("/proc/self/root")
    return tmp_path


@pytest.fixture
def client(tree: Path) -> Iterator[Client]:
    share = Share(tree / "inside", "/mnt")
    made = Client(share.session())
    yield made
    made.session.reset()
    share.close()


def refused(ask: Callable[..., object], *values: object, **more: int) -> int:
    with pytest.raises(Refused) as caught:
        ask(*values, **more)
    return caught.value.code


def outside(tree: Path) -> list[tuple[str, bytes | None]]:
    """All that lies there."""
    found = sorted((tree / "outside").rglob("*"))
    return [(str(path), path.read_bytes() if path.is_file() else None) for path in found]


LINKS = ([b"up"], [b"out"], [b"absolute"], [b"d", b"relative"], [b"self"])


@pytest.mark.parametrize("place", LINKS, ids=lambda place: place[-1].decode())
def test_links_are_given_and_never_followed(tree: Path, client: Client, place: list[bytes]) -> None:
    """A link is one to the guest too, and leads nowhere here: neither walked through, opened, nor written by."""
    before = outside(tree)
    fid = client.walk(*place)
    assert client.ask("getattr", fid, 0x7FF)[1].type == 2
    assert client.ask("readlink", fid) == [os.readlink(b"/".join((os.fsencode(tree / "inside"), *place)))]
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_DIRECTORY):
        assert refused(client.ask, "lopen", fid, flags) == errno.ELOOP
    assert refused(client.walk, b"f", start=fid) == errno.ENOTDIR
    assert refused(client.walk, b"..", start=fid) == errno.ENOTDIR
    for name, *values in (
        ("lcreate", fid, b"n", os.O_CREAT | os.O_RDWR, 0o644, 0),
        ("mkdir", fid, b"n", 0o755, 0),
        ("symlink", fid, b"n", b"f", 0),
        ("unlinkat", fid, b"f", 0),
        ("renameat", fid, b"f", ROOT, b"n"),
        ("renameat", ROOT, b"f", fid, b"n"),
        ("link", fid, client.walk(b"f"), b"n"),
    ):
        assert refused(client.ask, name, *values) == errno.ENOTDIR
    for valid in (1, 8):  # mode, size
        refused(client.ask, "setattr", fid, valid, 0o777, 0, 0, 0, 0, 0, 0, 0)
    times = [os.lstat(tree / "outside" / "f").st_mtime_ns, os.lstat(tree / "outside").st_mtime_ns]
    client.ask("setattr", fid, 0x1B0, 0, 0, 0, 0, 1, 1, 1, 1)
    assert times == [os.lstat(tree / "outside" / "f").st_mtime_ns, os.lstat(tree / "outside").st_mtime_ns]
    parent = client.walk(*place[:-1])
    refused(client.ask, "lcreate", parent, place[-1], os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644, 0)
    client.ask("link", ROOT, fid, b"another")
    assert os.path.islink(tree / "inside" / "another")
    assert outside(tree) == before


def test_up_ends_at_the_top(tree: Path, client: Client) -> None:
    """However often it is asked for, by walks and by names that are a path."""
    top = client.ask("getattr", ROOT, 0x7FF)[1]
    for names in ([b".."], [b".."] * 16, [b"d", b"e", *[b".."] * 9], [b"d", b"..", b"..", b"d", b".."]):
        assert client.ask("getattr", client.walk(*names), 0x7FF)[1] == top
    for name in (b"../outside/f", b"/", b"d/..", b"", b".", b"a\0b", os.fsencode(tree / "outside")):
        assert refused(client.walk, name) == errno.EINVAL
        for ask, *values in (
            ("lcreate", client.walk(), name, os.O_CREAT | os.O_RDWR, 0o644, 0),
            ("mkdir", ROOT, name, 0o755, 0),
            ("symlink", ROOT, name, b"f", 0),
            ("unlinkat", ROOT, name, 0),
            ("unlinkat", ROOT, name, 0x200),
            ("renameat", ROOT, name, ROOT, b"n"),
            ("renameat", ROOT, b"f", ROOT, name),
            ("link", ROOT, client.walk(b"f"), name),
            ("rename", client.walk(b"f"), ROOT, name),
        ):
            assert refused(client.ask, ask, *values) == errno.EINVAL
    assert refused(client.ask, "mkdir", ROOT, b"..", 0o755, 0) == errno.EINVAL


def test_what_is_moved_out_is_out_of_reach(tree: Path, client: Client) -> None:
    """Also of who holds it, by whichever name; and within reach again when it is back."""
    held, below, opened = client.walk(b"d"), client.walk(b"d", b"e"), client.walk(b"f")
    client.ask("lopen", opened, os.O_RDWR)
    os.rename(tree / "inside" / "d", tree / "outside" / "moved")
    os.rename(tree / "inside" / "f", tree / "outside" / "moved file")
    before = outside(tree)
    for name, *values in (
        ("walk", held, 99, [b"e"]),
        ("walk", below, 99, [b".."]),
        ("walk", below, 99, [b"..", b".."]),
        ("lopen", held, 0),
        ("getattr", below, 0x7FF),
        ("mkdir", held, b"n", 0o755, 0),
        ("unlinkat", held, b"e", 0x200),
        ("read", opened, 0, 10),
        ("write", opened, 0, b"written"),
        ("setattr", opened, 8, 0, 0, 0, 0, 0, 0, 0, 0),
        ("link", ROOT, opened, b"n"),
    ):
        assert refused(client.ask, name, *values) == errno.ESTALE
    assert outside(tree) == before
    os.rename(tree / "outside" / "moved", tree / "inside" / "back")
    assert client.ask("getattr", client.walk(b"..", start=below), 0x7FF)[1].path == os.stat(tree / "inside/back").st_ino
    assert client.ask("getattr", client.walk(b"..", start=held), 0x7FF)[1].path == os.stat(tree / "inside").st_ino


def test_what_is_mounted_in_it_is_not_shared() -> None:
    """Whoever shares everything does not share the memory of this process."""
    share = Share("/", "/mnt", readonly=True)
    client = Client(share.session())
    assert refused(client.walk, b"proc") == errno.EXDEV
    fid = client.walk()
    client.ask("lopen", fid, 0)
    assert b"proc" in client.list(fid)
    client.session.reset()
    share.close()


def test_the_directory_itself_may_be_moved(tree: Path, client: Client) -> None:
    """It is the directory that is shared, not its name; what has its name then is not."""
    held = client.walk(b"d")
    os.rename(tree / "inside", tree / "elsewhere")
    os.rename(tree / "outside", tree / "inside")
    assert client.read(b"f") == b"inside"
    client.ask("mkdir", held, b"n", 0o755, 0)
    assert (tree / "elsewhere" / "d" / "n").is_dir()
    top = client.ask("getattr", ROOT, 0x7FF)[1].path
    assert client.ask("getattr", client.walk(b"..", start=held), 0x7FF)[1].path == top


def test_a_race_of_links_and_directories_leads_nowhere(tree: Path, client: Client) -> None:
    """While a thread swaps a directory for a link out, and moves it out and in, nothing that is read is from outside,
    nothing is written there, and no walk comes out there.
    """
    inside, away = tree / "inside", tree / "outside" / "away"
    (inside / "swap").mkdir()
    (inside / "swap" / "f").write_bytes(b"inside")
    link = inside / "link"
    link.symlink_to(tree / "outside")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            os.rename(inside / "swap", inside / "aside")
            os.rename(link, inside / "swap")
            os.rename(inside / "swap", link)
            os.rename(inside / "aside", inside / "swap")
            os.rename(inside / "d", away)
            os.rename(away, inside / "d")

    known = {os.stat(path).st_ino for path in (inside, inside / "d", inside / "d" / "e", inside / "swap")}
    thread = threading.Thread(target=swap)
    thread.start()
    done = {"read": 0, "created": 0, "up": 0, "refused": 0}
    try:
        for n in range(4000):
            try:
                match n % 4:
                    case 0:
                        assert client.read(b"swap", b"f") == b"inside"
                        done["read"] += 1
                    case 1:
                        client.write(b"guest", b"swap", b"made%d" % n)
                        done["created"] += 1
                    case 2:
                        fid = client.walk(b"d", b"e")
                        (qids,) = client.ask("walk", fid, fid, [b".."] * 3)
                        assert {qid.path for qid in qids} <= known
                        done["up"] += 1
                    case _:
                        fid = client.walk(b"swap")
                        client.ask("symlink", fid, b"s%d" % n, b"x", 0)
            except Refused as error:
                assert error.code in (0, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EEXIST)
                done["refused"] += 1
            for fid in set(client.session.fids) - {ROOT}:
                client.clunk(fid)
    finally:
        over.set()
        thread.join()
    assert all(done.values()), done
    assert sorted(os.listdir(tree / "outside")) == ["d", "f"]
    assert (tree / "outside" / "f").read_bytes() == SECRET


def test_devices_and_fifos_are_told_of_and_never_opened(tree: Path, client: Client) -> None:
    """Nor made, nor waited for: not by a name that is there already, whatever the flags are."""
    os.mkfifo(tree / "inside" / "fifo")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tree / "inside")
    try:
        server.bind("socket")
    finally:
        os.chdir(here)
        server.close()
    names = {b"fifo": stat.S_IFIFO, b"socket": stat.S_IFSOCK}
    if os.geteuid() == 0:
        os.mknod(tree / "inside" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        names[b"null"] = stat.S_IFCHR
    for name, kind in names.items():
        fid = client.walk(name)
        assert stat.S_IFMT(client.ask("getattr", fid, 0x7FF)[2]) == kind
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
            assert refused(client.ask, "lopen", fid, flags) == errno.ENXIO
            new = client.walk()
            assert refused(client.ask, "lcreate", new, name, flags, 0o644, 0) == errno.ENXIO
        assert refused(client.ask, "setattr", fid, 8, 0, 0, 0, 0, 0, 0, 0, 0) == errno.EINVAL


def test_a_share_that_is_only_read_stays_as_it_is(tree: Path) -> None:
    """Every change is EROFS, and everything can be read."""
    client = Client(Share(tree / "inside", "/mnt", readonly=True).session())

    def state() -> list[tuple[str, os.stat_result]]:
        return [(str(path), os.lstat(path)) for path in sorted((tree / "inside").rglob("*"))]

    before = [(name, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino) for name, found in state()]
    file, top = client.walk(b"f"), client.walk()
    for name, *values in (
        ("lopen", file, os.O_WRONLY),
        ("lopen", file, os.O_RDWR),
        ("lopen", file, os.O_RDONLY | os.O_TRUNC),
        ("lcreate", top, b"n", os.O_CREAT | os.O_RDONLY, 0o644, 0),
        ("lcreate", top, b"f", os.O_CREAT | os.O_RDONLY, 0o644, 0),
        ("mkdir", ROOT, b"n", 0o755, 0),
        ("symlink", ROOT, b"n", b"f", 0),
        ("link", ROOT, file, b"n"),
        ("unlinkat", ROOT, b"f", 0),
        ("unlinkat", ROOT, b"d", 0x200),
        ("renameat", ROOT, b"f", ROOT, b"n"),
        ("rename", file, ROOT, b"n"),
        ("remove", client.walk(b"f")),
        ("setattr", file, 1, 0o600, 0, 0, 0, 0, 0, 0, 0),
        ("setattr", file, 8, 0, 0, 0, 0, 0, 0, 0, 0),
        ("setattr", file, 0x30, 0, 0, 0, 0, 0, 0, 0, 0),
    ):
        assert refused(client.ask, name, *values) == errno.EROFS
    assert client.read(b"f") == b"inside"
    client.ask("lopen", top, 0)
    assert b"d" in client.list(top)
    assert before == [(name, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino) for name, found in state()]


def test_a_guest_makes_no_setuid_program(tree: Path, client: Client) -> None:
    """Not by making it so, nor later."""
    fid = client.walk()
    client.ask("lcreate", fid, b"program", os.O_CREAT | os.O_RDWR, 0o6755, 0)
    client.ask("mkdir", ROOT, b"directory", 0o7755, 0)
    assert os.stat(tree / "inside" / "program").st_mode & 0o7777 == 0o755
    assert os.stat(tree / "inside" / "directory").st_mode & 0o7000 == 0o1000
    client.ask("setattr", fid, 1, 0o6711, 0, 0, 0, 0, 0, 0, 0)
    assert os.stat(tree / "inside" / "program").st_mode & 0o7777 == 0o711


def test_what_is_the_users_is_the_guests_roots(tree: Path, client: Client) -> None:
    """And can be given to nobody; the files of others keep their numbers."""
    fid = client.walk(b"f")
    _, _, _, uid, gid, *_ = client.ask("getattr", fid, 0x7FF)
    assert (uid, gid) == (0, 0)
    client.ask("setattr", fid, 6, 0, 0, 0, 0, 0, 0, 0, 0)
    client.ask("setattr", fid, 6, 0, 0xFFFF_FFFF, 0xFFFF_FFFF, 0, 0, 0, 0, 0)
    for valid, ids in ((2, (1000, 0)), (4, (0, 1000)), (6, (1000, 1000))):
        ask = ("setattr", fid, valid | 1, 0o777, *ids, 0, 0, 0, 0, 0)
        assert refused(client.ask, *ask) == errno.EPERM
    assert os.stat(tree / "inside" / "f").st_mode & 0o777 != 0o777
    if os.geteuid() == 0:
        os.chown(tree / "inside" / "f", 1234, 5678)
        assert client.ask("getattr", fid, 0x7FF)[3:5] == [1234, 5678]


def test_the_hosts_permissions_are_the_users(tree: Path) -> None:
    """What the user may not do the guest may not."""
    for path in (tree / "inside", tree / "inside" / "d"):
        path.chmod(0o755)
    (tree / "inside" / "f").chmod(0o600)
    mine = os.geteuid()
    if mine == 0:
        share = Share(tree / "inside", "/mnt")
        os.seteuid(NOBODY)
    else:
        (tree / "inside" / "f").chmod(0o000)
        (tree / "inside" / "d").chmod(0o555)
        share = Share(tree / "inside", "/mnt")
    try:
        client = Client(share.session())
        fid, directory = client.walk(b"f"), client.walk(b"d")
        for flags in (os.O_RDONLY, os.O_RDWR):
            assert refused(client.ask, "lopen", fid, flags) == errno.EACCES
        assert refused(client.ask, "mkdir", directory, b"n", 0o755, 0) == errno.EACCES
        new = client.walk(b"d")
        assert refused(client.ask, "lcreate", new, b"n", os.O_CREAT, 0o644, 0) == errno.EACCES
    finally:
        os.seteuid(mine)
        (tree / "inside" / "d").chmod(0o755)


def test_guests_leave_descriptors_for_the_rest(tree: Path) -> None:
    """Whatever a guest holds, it gets EMFILE before the process has no more files, and goes on with what it has."""
    for n in range(40):
        (tree / "inside" / f"{n}").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    client = Client(Share(tree / "inside", "/mnt").session())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used * 2 + 100, hard))
    try:
        held = []
        with pytest.raises(Refused) as caught:
            for _ in range(10_000):
                fid = client.walk(b"1")
                held.append(fid)
                client.ask("lopen", fid, 0)
                client.ask("readdir", fid, 2, 1000)  # which may take another
        assert caught.value.code == errno.EMFILE
        with pytest.raises(Refused) as caught:
            while True:
                held.append(client.walk())
        assert caught.value.code == errno.EMFILE
        spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
        for fd in spare:
            os.close(fd)
        client.clunk(held[0])
        client.ask("getattr", client.walk(b"2"), 0x7FF)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.session.reset()


def test_nothing_stays_open(tree: Path) -> None:
    """A session that ends, or is forgotten, leaves no descriptor."""
    gc.collect()  # what other tests left
    before = len(os.listdir("/proc/self/fd"))
    for ending in ("reset", "version", "forgotten"):
        share = Share(tree / "inside", "/mnt")
        client = Client(share.session())
        for _ in range(20):
            fid = client.walk(b"d")
            client.ask("lopen", fid, 0)
            client.ask("readdir", fid, 0, 1000)
        if ending == "reset":
            client.session.reset()
            assert len(os.listdir("/proc/self/fd")) == before + 1
        elif ending == "version":
            client.ask("version", 8192, b"9P2000.L")
        share.close()
        del client, share
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_path_that_is_too_long_is_refused(tree: Path, client: Client) -> None:
    """A guest may make directories as deep as it likes, and the deepest are of no use."""
    name = b"x" * 250
    fid = ROOT
    with pytest.raises(Refused) as caught:
        for _ in range(100):
            client.ask("mkdir", fid, name, 0o755, 0)
            fid = client.walk(name, start=fid)
    assert caught.value.code == errno.ENAMETOOLONG
    shutil.rmtree(tree / "inside" / os.fsdecode(name))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_text(""), "Not a directory"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    ],
    ids=["nothing", "file", "link to nothing", "loop"],
)
def test_what_is_no_directory_is_refused_in_a_sentence(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "d")
    with pytest.raises(MachineError) as caught:
        Share(tmp_path / "d", "/mnt")
    assert str(caught.value) == f"the directory {tmp_path / 'd'} cannot be shared: {reason}"


def test_a_directory_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    mine = os.geteuid()
    here = os.open(tmp_path, os.O_PATH)
    if mine == 0:
        os.seteuid(NOBODY)
    else:
        (tmp_path / "d").chmod(0o000)
    try:
        with pytest.raises(MachineError, match="cannot be shared: Permission denied"):
            Share(f"/proc/self/fd/{here}/d", "/mnt")
    finally:
        os.seteuid(mine)
        os.close(here)
        (tmp_path / "d").chmod(0o700)
