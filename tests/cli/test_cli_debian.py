"""One command in Debian: its output, its status, and what is typed at it."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from test_cli import Person, ringfence

from ringfence import Image


@pytest.fixture(autouse=True)
def image(debian: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has pulled it."""
    (tmp_path / "ringfence").symlink_to(debian.directory.parents[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_command_prints_and_ends_with_its_status() -> None:
    """Standard input is the command's; what it prints comes unchanged; the boot shows nothing."""
    found = ringfence("run", "debian", "--", "sh", "-c", "cat; exit 3", stdin=b"one\ntwo")
    assert (found.returncode, found.stdout) == (3, b"one\ntwo")


def test_command_that_panics_the_kernel_is_132() -> None:
    """The panic shows although the boot is quiet."""
    found = ringfence("run", "debian", "--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert found.returncode == 132
    assert b"sysrq triggered crash" in found.stderr


def test_command_that_reboots_is_not_run_again() -> None:
    """It was to run once."""
    found = ringfence("run", "debian", "--", "sh", "-c", "echo once; sleep 1; reboot -f")
    assert found.returncode == 0
    assert found.stdout.startswith(b"once\n") and found.stdout.count(b"once") == 1


def test_command_may_be_silent_unless_asked_not_to_be() -> None:
    """The default is about the boot; a --silence that is given holds for the command too."""
    command = ("debian", "--", "sleep", "30")
    assert ringfence("run", *command).returncode == 0
    assert ringfence("run", "--silence", "9", *command).returncode == 132


def test_command_handles_ctrl_c_itself() -> None:
    """The key is the command's signal, and the status is what the command makes of it."""
    person = Person("debian", "--", "sh", "-c", "trap 'echo caught' INT; echo ready; sleep 3; exit 9")
    person.until(b"ready")
    person.type(b"\x03")
    person.until(b"caught")
    assert person.end(30) == 9
    person = Person("debian", "--", "sh", "-c", "echo ready; sleep 30")
    person.until(b"ready")
    person.type(b"\x03")
    assert person.end(20) == 130


def test_explain_looks_when_the_shell_waits() -> None:
    """Linux's timers go on, and nothing else does; the kernel's own symbols have names."""
    found = ringfence("explain", "debian", "linux_banner")
    lines = found.stdout.decode().splitlines()
    assert (found.returncode, found.stderr) == (0, b"")
    assert "S-mode" in lines[0] and " in arch_cpu_idle, " in lines[0]
    assert lines[-1].startswith("memory  0x") and any("-> 0x" in line and line.endswith(": load") for line in lines)


def test_programs_of_the_host_connect_to_ports(tmp_path: Path) -> None:
    """By sockets of the user's, which are there while the guest runs; a second program comes behind the first."""
    paths = [tmp_path / name for name in ("one.sock", "two.sock")]
    command = r"""
        cd /sys/class/virtio-ports
        for p in *; do eval "$(cat $p/name)=/dev/$p"; done
        read line < $one; echo "$line" > $two
        read line < $one; echo "$line" > $one
    """
    arguments = [f"--port={name}={path}" for name, path in zip(("one", "two"), paths, strict=True)]
    found: list[subprocess.CompletedProcess[bytes]] = []

    def run() -> None:
        found.append(ringfence("run", "debian", *arguments, "--", "sh", "-c", command))

    guest = threading.Thread(target=run)
    guest.start()
    try:
        with reach(paths[1]) as two:
            with reach(paths[0]) as one:
                one.sendall(b"through the guest\n")
                assert two.recv(100) == b"through the guest\n"
            with reach(paths[0]) as one:
                one.sendall(b"and back\n")
                assert one.recv(100) == b"and back\n"
    finally:
        guest.join()
    assert found[0].returncode == 0, found[0].stderr
    assert not any(path.exists() for path in paths)


def reach(path: Path) -> socket.socket:
    """The socket, which may not be there yet."""
    program = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    program.settimeout(50)
    end = time.monotonic() + 20
    while True:
        try:
            program.connect(str(path))
            return program
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < end
            time.sleep(0.02)
