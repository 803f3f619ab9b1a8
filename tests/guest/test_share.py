"""Stock Debian on a share: its programs and the host's see each other's files, at any depth."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringfence import Image, MiB, Share, Virt, load, nested

MEMORY = 96 * MiB
NOBODY = 65534


@pytest.fixture(scope="session")
def sharing(debian: Image, request: pytest.FixtureRequest) -> Image:
    """An image that mounts shares: the one of this host may be of an earlier Ringfence."""
    image = debian
    if b"mount -t 9p" not in image.initrd.read_bytes():
        image = request.getfixturevalue("debian_image")
    return image


class Shell:
    """A guest at its prompt."""

    def __init__(self, depth: int, image: Image, shares: list[Share]) -> None:
        self.machine: Virt = nested(depth, MEMORY, shares=shares)
        self.console = self.machine.console
        load(self.machine, image.kernel, initrd=[image.initrd.read_bytes()], append=image.append(command=False))
        self.console.expect("~# ")
        self.count = 0
        self("PS1=; stty -echo")

    def __call__(self, command: str) -> str:
        """What the command prints, and behind it its status."""
        self.count += 1
        before = len(self.console.text)
        self.console.send(f"{command}; echo $?; echo DO''NE{self.count}\n")
        self.console.expect(f"DONE{self.count}\r\n")
        text = self.console.text[before:].replace("\r", "")
        return text[: text.index(f"DONE{self.count}\n")].replace("\x1b[6n", "")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "src").mkdir()
    (tmp_path / "data").mkdir()
    yield tmp_path


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """The user of the host may not read this file."""
    root = os.geteuid() == 0
    path.chmod(0o600 if root else 0)
    if root:
        path.parent.chmod(0o755)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("depth", [0, 2])
def test_debian_works_on_a_share(depth: int, sharing: Image, place: Path) -> None:
    """What `run --share` gives, with programs that people use."""
    src, data = place / "src", place / "data"
    (src / "hello").write_text("from the host\n")
    (src / "run").write_text("#!/bin/sh\necho ran by $0\n")
    (src / "run").chmod(0o755)
    (data / "fixed").write_text("fixed\n")
    (place / "beside").write_text("beside\n")
    (src / "out").symlink_to(place / "beside")
    shares = [Share(src, "/mnt/my src"), Share(data, "/data", readonly=True)]
    shell = Shell(depth, sharing, shares)
    assert shell("cd '/mnt/my src'; cat hello; ls -1A; pwd") == "from the host\nhello\nout\nrun\n/mnt/my src\n0\n"
    assert shell("./run") == "ran by ./run\n0\n"

    # Each side sees what the other does, at once, also in a file that it has open.
    shell("exec 3<hello; exec 4>>log; echo guest >&4; cat <&3")
    assert (src / "log").read_text() == "guest\n"
    with (src / "log").open("a") as log:
        log.write("host\n")
    shell("echo guest again >&4")
    assert (src / "log").read_text() == "guest\nhost\nguest again\n"
    with (src / "hello").open("a") as file:
        file.write("and more\n")
    assert shell("cat <&3; wc -l <hello; exec 3<&- 4>&-") == "and more\n2\n0\n"
    (src / "hello").write_text("short\n")
    (src / "new").write_text("new\n")
    assert shell("cat hello new; rm new; ls new") == "short\nnew\nls: new: No such file or directory\n1\n"

    # Trees, links, modes, times and owners.
    shell("mkdir -p a/b/c; echo 1 >a/b/c/f; ln a/b/c/f hard; ln -s a/b/c/f soft; cp -r a copy; mv a/b moved")
    assert (src / "moved" / "c" / "f").samefile(src / "hard") and os.readlink(src / "soft") == "a/b/c/f"
    assert (src / "copy" / "b" / "c" / "f").read_text() == "1\n"
    assert shell("stat -c %h:%a:%u:%g hard; chmod 4700 hard; stat -c %a hard") == "2:644:0:0\n700\n0\n"
    assert shell("touch -d @1000000000 hard; stat -c %Y hard; chown 0:0 hard") == "1000000000\n0\n"
    assert "Operation not permitted\n1\n" in shell("chown 1000 hard")
    assert (src / "hard").stat().st_mtime == 1_000_000_000
    assert shell("rm -r a copy moved hard soft; ls -1A") == "hello\nlog\nout\nrun\n0\n"

    # A link out of the share leads where it says in the guest's own tree, which has no such file.
    assert shell("cat out") == "cat: can't open 'out': No such file or directory\n1\n"
    assert shell("cat nothing; cat hello/x; rmdir .. 2>/dev/null").endswith("Not a directory\n1\n")
    assert "Read-only file system\n1\n" in shell("echo x >/data/new")
    assert shell("cat /data/fixed; umount /data && ls /data") == "fixed\n0\n"

    # The guest's root may do what the user of the host may.
    (src / "secret").write_text("secret")
    with forbidden(src / "secret"):
        assert shell("cat secret") == "cat: can't open 'secret': Permission denied\n1\n"

    # Content, and a program that is mapped from the share.
    content = random.Random(depth).randbytes(5 << 20)
    (src / "big").write_bytes(content)
    assert shell("md5sum <big; cp big big2") == f"{hashlib.md5(content).hexdigest()}  -\n0\n"
    assert hashlib.md5((src / "big2").read_bytes()).digest() == hashlib.md5(content).digest()
    assert shell("cp /bin/busybox busybox; ./busybox sh -c 'echo mapped'; cmp busybox /bin/busybox") == "mapped\n0\n"

    # Nothing is lost at the end.
    shell("echo last >last")
    shell.console.send("exit\n")
    shell.machine.run()
    assert (src / "last").read_text() == "last\n" and (place / "beside").read_text() == "beside\n"


def test_a_run_is_repeated_while_the_directory_is_the_same(sharing: Image, place: Path) -> None:
    """With the virtual clock: the same files, with the same times, give the same digest."""
    (place / "src" / "f").write_text("x" * 100_000)
    (place / "src" / "f").read_bytes()  # the first access after a change is one that the host notes
    os.listdir(place / "src")
    digests = []
    for _ in range(2):
        shell = Shell(0, sharing, [Share(place / "src", "/mnt/src", readonly=True)])
        shell("md5sum /mnt/src/f; ls /mnt/src")
        digests.append(shell.machine.digest())
    assert digests[0] == digests[1]
