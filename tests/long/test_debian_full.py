"""A whole Debian as its users have it: installed, logged in to, reached by ssh, updated, sharing; and two of them."""

import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from ringfence.errors import RingfenceError
from ringfence.guest import mirror

pytestmark = pytest.mark.long

RINGFENCE = [sys.executable, "-m", "ringfence"]
SECONDS = 900.0
"""The most for anything that a guest does."""


ECHO = "use IO::Socket; $s = IO::Socket::INET->new(Proto => udp, LocalPort => 99); $s->recv($x, 99); $s->send($x)"


class Console:
    """A running `ringfence`, with what its console prints."""

    def __init__(self, words: list[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*RINGFENCE, *words], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.text = ""
        self._seen = 0
        self._chunks: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            self._chunks.put(data)
        self._chunks.put(b"")

    def expect(self, pattern: str) -> re.Match[str]:
        """Waits for a match; what is behind it is for the next call."""
        deadline = time.monotonic() + SECONDS
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            left = deadline - time.monotonic()
            data = self._chunks.get(timeout=left) if left > 0 else b""
            assert data, f"{pattern!r} was not printed; the last is:\n{self.text[-3000:]}"
            self.text += data.decode("utf-8", "replace")
        self._seen = found.end()
        return found

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """Its status, once it has ended by itself."""
        self.expect(r"reboot: Power down")
        return self._process.wait(SECONDS)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def running(*words: str) -> Iterator[Console]:
    console = Console([*words, "--clock", "host"])
    try:
        yield console
    finally:
        console.kill()


def answered(client: socket.socket, data: bytes, port: int) -> bytes:
    """The answer to a datagram, which is sent until there is one."""
    client.settimeout(2)
    for _ in range(int(SECONDS / 2)):
        client.sendto(data, ("127.0.0.1", port))
        with suppress(TimeoutError):
            return client.recv(100)
    raise AssertionError("no answer came")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's home, with a key and the image."""
    if shutil.which("ssh") is None:
        pytest.skip("there is no ssh on this host")
    try:
        mirror.mirrors()
        mirror.keyring()
    except RingfenceError as error:
        pytest.skip(f"no package mirror: {error}")
    place = tmp_path_factory.mktemp("home")
    (place / ".ssh").mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / ".ssh/id_ed25519"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place))
        patch.setenv("XDG_DATA_HOME", str(place / "data"))
        pulled = subprocess.run([*RINGFENCE, "image", "pull", "debian-full"], capture_output=True, text=True)
        assert pulled.returncode == 0, pulled.stderr
        yield place


def ssh_is_there(port: int) -> bool:
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def ssh(home: Path, port: int, command: str) -> str:
    """What the command prints; with status 0. The server starts a little after the login prompt."""
    deadline = time.monotonic() + SECONDS
    while not ssh_is_there(port):
        assert time.monotonic() < deadline
        time.sleep(1)
    options = ["StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={home}/known.{port}", "ConnectTimeout=300"]
    words = ["ssh", "-i", str(home / ".ssh/id_ed25519"), "-p", str(port), *(f"-o{option}" for option in options)]
    done = subprocess.run([*words, "root@127.0.0.1", command], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("depth", [1, 2])
def test_debian_is_used_like_any_other(home: Path, tmp_path: Path, depth: int) -> None:
    """To the login prompt; in by ssh through a forwarded port, and by UDP through another; a package by apt; a share
    edited from both sides. What was done lasts.
    """
    datagrams = free_port()
    port, package = free_port(), ["tree", "bc"][depth - 1]
    (tmp_path / "notes").write_text("from the host\n")
    share = f"{tmp_path}:/mnt/src"
    with running(
        "run", "debian-full", "--depth", str(depth), "-p", f"{port}:22", "-p", f"{datagrams}:99/udp", "--share", share
    ) as console:
        console.expect("debian login: ")
        assert "running" in ssh(home, port, "systemctl is-system-running --wait")
        assert ssh(home, port, "echo from the guest >>/mnt/src/notes; cat /mnt/src/notes").splitlines() == [
            "from the host",
            "from the guest",
        ]
        with (tmp_path / "notes").open("a") as file:
            file.write("once more\n")
        assert ssh(home, port, "tail -1 /mnt/src/notes") == "once more\n"
        ssh(home, port, f"apt-get -q update && apt-get -q install -y {package}")
        ssh(home, port, f"perl -e '{ECHO}' >/dev/null 2>&1 &")
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
            assert answered(client, b"over UDP", datagrams) == b"over UDP"
        console.type("root")
        console.expect("root@debian:~# ")
        console.type("poweroff")
        assert console.end() == 0
    assert (tmp_path / "notes").read_text() == "from the host\nfrom the guest\nonce more\n"
    with running("run", "debian-full", "--depth", str(depth), "--snapshot") as console:
        console.expect("debian login: ")
        console.type("root")
        console.expect("root@debian:~# ")
        console.type(f"command -v {package}; rm -rf /etc; poweroff -f")
        console.expect(f"/usr/bin/{package}\r?\n")
        assert console.end() == 0


SERVER = """set -e
apt-get -q update
apt-get -q install -y --no-install-recommends git
git init -q /srv/work
cd /srv/work
head -c 2000000 /dev/urandom >data
git add data
git -c user.name=a -c user.email=a@b commit -q -m one
cat >/etc/systemd/system/git.service <<END
[Service]
ExecStart=/usr/bin/git daemon --base-path=/srv --export-all
[Install]
WantedBy=multi-user.target
END
systemctl enable -q git
sha256sum data
systemctl poweroff
"""


@pytest.fixture(scope="module")
def served(home: Path) -> str:
    """The checksum of what each guest of the image serves by git from now on."""
    port = free_port()
    with running("run", "debian-full", "-p", f"{port}:22") as console:
        console.expect("debian login: ")
        checksum = ssh(home, port, SERVER).splitlines()[-1].split()[0]
        assert console.end() == 0
    return checksum


@pytest.mark.parametrize("inside", ["guests", "guests.outer.guests"])
def test_git_is_cloned_between_two_guests(served: str, tmp_path: Path, inside: str) -> None:
    """Over the switch, by the other's name; on the machine, and on a guest of it."""
    guest = '[{}.{}]\nimage = "debian-full"\nsnapshot = true\nnetworks = ["lan"]\nappend = "systemd.hostname={}"\n'
    outer = '[guests.outer]\nnetworks = ["lan"]\n' if inside != "guests" else ""
    site = tmp_path / "site.toml"
    site.write_text(outer + guest.format(inside, "here", "here") + guest.format(inside, "there", "there"))
    with running("up", str(site)) as console:
        # Elsewhere than on a terminal what is typed is the first guest's, and lines are shown when they are whole.
        console.expect("here: Debian GNU/Linux 13 here")
        console.expect("there: Debian GNU/Linux 13 there")
        console.type("root")
        console.expect("permitted by applicable law")
        console.type("until git clone -q git://there/work; do sleep 5; done; sha256sum work/data; echo $? $HOSTNAME")
        console.expect(f"here: {served}  work/data")
        console.expect("here: 0 here")


def test_same_packages_make_the_same_disk(home: Path, tmp_path: Path) -> None:
    """Byte for byte, whoever makes it and when; another user's is another."""
    outputs = [tmp_path / name for name in ("a.img", "b.img")]
    makers = []
    for number, output in enumerate(outputs):
        environment = {**os.environ, "TZ": ["UTC", "Asia/Tokyo"][number], "LC_ALL": ["C", "C.UTF-8"][number]}
        words = ["image", "build", "debian", "--size", "2G", "--packages", "bc", "--user", "me", "-o", str(output)]
        makers.append(
            subprocess.Popen([*RINGFENCE, *words], env=environment, cwd=tmp_path, umask=[0o22, 0o77][number])
        )  # fmt: skip
    assert [maker.wait(SECONDS) for maker in makers] == [0, 0]
    with outputs[0].open("rb") as one, outputs[1].open("rb") as other:
        while block := one.read(1 << 20):
            assert block == other.read(1 << 20), f"they differ before byte {one.tell():,}"
