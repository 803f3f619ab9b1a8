"""What a user gives that cannot be used, by command: a sentence and a status; and what a guest is told of it."""

from __future__ import annotations

import resource
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from test_cli import COMMAND, ringfence, sentence

from ringfence import Image
from ringfence.machine.device.disk_image import create, open_disk

MiB = 1 << 20
LIMIT = 256 * MiB
"""The longest file of the process: what a raw image meets where nothing may be mounted."""


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def patched(path: Path, at: int, layout: str, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(layout, value))


BAD_DISKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut behind it": (lambda path: cut(path, 70_000), "is truncated"),
    "an L1 table of a gigabyte": (lambda path: patched(path, 36, ">I", 1 << 27), "entries, which are too many"),
    "a feature of the future": (lambda path: patched(path, 72, ">Q", 1 << 40), "a feature that is not known"),
}


@pytest.mark.parametrize(("spoil", "why"), BAD_DISKS.values(), ids=BAD_DISKS)
def test_a_bad_qcow2_image_is_told_by_each_command(
    spoil: Callable[[Path], None], why: str, tmp_path: Path, debian: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its name and what is wrong, before anything runs; and it stays as it is."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "ringfence").symlink_to(debian.directory.parents[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    disk = tmp_path / "disk.qcow2"
    create(disk, 64 * MiB)
    spoil(disk)
    before = disk.read_bytes()
    site = tmp_path / "site.toml"
    site.write_text('disks = ["./disk.qcow2"]\n[guests.a]\nimage = "corral"\nmemory = "64M"\n')
    for arguments, status in (
        (("run", "-d", str(disk)), 2),
        (("run", "-d", f"{disk}:snapshot"), 2),
        (("up", str(site)), 2),
        (("image", "import", str(disk), "--name", "mine"), 125),
    ):
        found = ringfence(*arguments)
        assert (found.returncode, found.stdout) == (status, b"")
        assert str(disk) in sentence(found) and why in sentence(found)
    assert disk.read_bytes() == before


def test_a_port_that_is_taken_is_told() -> None:
    """Which is no wrong use of ours alone: the port's name is in the sentence."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        found = ringfence("run", "-p", f"{port}:22")
    if "needs the library" in found.stderr.decode():
        pytest.skip("this host has no libslirp")
    assert f"TCP port {port} of 127.0.0.1 cannot be had" in sentence(found)
    assert (found.returncode, found.stdout) == (2, b"")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for 16 MiB, where this user may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    yield place
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def full() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


_FILL = """
i=0
while [ $i -lt 20 ]; do
    # In places far from one another: a file then reaches the limit, and a directory is full.
    if yes "block $i" | dd of=/dev/vda bs=64k count=16 seek=$((i * 256)) iflag=fullblock conv=fsync,notrunc 2>/dev/null
    then echo "wrote $i"; wrote="$wrote $i"
    else echo "failed $i"
    fi
    i=$((i + 1))
done
echo 3 >/proc/sys/vm/drop_caches
for i in $wrote; do
    yes "block $i" | head -c 1048576 >/tmp/expected
    dd if=/dev/vda bs=64k count=16 skip=$((i * 256)) 2>/dev/null | cmp - /tmp/expected && echo "kept $i"
done
dmesg | grep -c "I/O error, dev vda"
echo goes on
"""


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_larger_than_the_hosts_room_fails_where_it_is_full(
    kind: str, small: Path, tmp_path: Path, debian: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest gets an I/O error for what finds no room and goes on; all that was flushed is there, for it and for the
    next one, and the image is sound.
    """
    (tmp_path / "ringfence").symlink_to(debian.directory.parents[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    disk = small / "disk"
    if kind == "qcow2" and not small.is_mount():
        pytest.skip("only root can mount a small file system")
    if kind == "qcow2":
        create(disk, 1 << 30, cluster_bits=21)
    else:
        with disk.open("wb") as file:
            file.truncate(1 << 30)
    command = [*COMMAND, "run", "-m", "128M", "--disk", str(disk), "debian", "--", "sh", "-c", _FILL]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, preexec_fn=full)
    assert (found.returncode, found.stderr) == (0, b"")
    *lines, errors, end = found.stdout.decode().splitlines()
    numbers = {
        word: [int(line.split()[1]) for line in lines if line.startswith(word)] for word in ("wrote", "failed", "kept")
    }
    assert numbers["wrote"] and numbers["failed"] and end == "goes on" and int(errors) > 0
    assert numbers["kept"] == numbers["wrote"]
    with open_disk(disk, readonly=True) as opened:
        for n in numbers["wrote"]:
            expected = (b"block %d\n" % n * (MiB // 8))[:MiB]
            assert opened.read(n * 256 * 65536, MiB) == expected
    if kind == "qcow2" and shutil.which("qemu-img") is not None:
        assert subprocess.run(["qemu-img", "check", "-q", str(disk)], stdout=subprocess.DEVNULL).returncode in (0, 3)
