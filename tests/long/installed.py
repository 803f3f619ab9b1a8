"""An installed Debian whose first process is a script of the test's, in a `ringfence run` of its own."""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

import ringfence.guest
from ringfence.errors import RingfenceError
from ringfence.guest import mirror
from ringfence.guest.image import Store, cache_directory
from ringfence.guest.installation import Settings

TOOLS = ("e2fsprogs", "fio", "python3-minimal")
SIZE = 2 << 30
"""Bytes of its disk."""
PLACE = "/mnt/test"
"""Where the guest has the directory that the script is in."""
SCRIPT = "script"
_BEGIN = f"#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8\ncd {PLACE}\nmount -t tmpfs tmp /tmp\n"
_END = "poweroff -ff\n"


def needs(*programs: str) -> None:
    """Skips where one of these is not on this host."""
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"this needs what is not on this host: {', '.join(missing)}")


def install() -> Installed:
    """Debian with these tools, installed once and kept in the user's cache directory while what makes it is the same.
    Skips where there is no package mirror.
    """
    package = Path(ringfence.guest.__path__[0])
    sources = [package / name for name in ("install", "init", "catalog.toml", "installation.py")]
    made_by = b"".join(source.read_bytes() for source in sources) + repr((TOOLS, SIZE)).encode()
    shelf = cache_directory() / "long"
    place = shelf / hashlib.sha256(made_by).hexdigest()[:32]
    if not place.exists():
        shutil.rmtree(shelf, ignore_errors=True)  # of an earlier Ringfence
        shelf.mkdir(parents=True)
        made = Path(tempfile.mkdtemp(dir=shelf))
        wanted = Settings(TOOLS, SIZE)
        try:
            found = Store().build("debian", wanted, mirror.mirrors(), mirror.keyring(), made / "disk")
        except RingfenceError as error:
            pytest.skip(f"no Debian could be installed: {error}")
        for name, data in found.boot.items():
            (made / name).write_bytes(data)
        made.rename(place)
    return Installed(place)


@dataclass(frozen=True)
class Installed:
    """A directory with disk, kernel and initrd."""

    directory: Path

    def run(self, share: Path, script: str, disks: Sequence[str], *options: str) -> Running:
        """A machine that runs the script in `share`, and goes off; its first disk is a snapshot of the system's, the
        others are given as `--disk` takes them.
        """
        place = share / SCRIPT
        place.write_text(_BEGIN + script + _END)
        place.chmod(0o755)
        append = f"console=ttyS0 quiet root=/dev/vda init={PLACE}/{SCRIPT}"
        files = ("--kernel", f"{self.directory}/kernel", "--initrd", f"{self.directory}/initrd", "--append", append)
        given = [f"{self.directory}/disk:snapshot", *disks]
        command = [sys.executable, "-m", "ringfence", "run", *files, *(word for disk in given for word in ("-d", disk))]
        return Running([*command, "--silence", "0", "--share", f"{share}:{PLACE}", *options])


class Running:
    """The process, in a session of its own, and what its guest prints. At the end it is killed where it still runs."""

    def __init__(self, command: Sequence[str]) -> None:
        self.lines: list[str] = []
        self._rest = b""
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, for all of it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def read(self, seconds: float) -> list[str] | None:
        """The lines that come next, within so much time; None: nothing more will."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        if not select.select([fd], [], [], seconds)[0]:
            return []
        data = os.read(fd, 1 << 16)
        if not data:
            return None
        *whole, self._rest = (self._rest + data).split(b"\n")
        new = [line.decode(errors="replace").rstrip("\r") for line in whole]
        self.lines += new
        return new

    def expect(self, pattern: str, seconds: float) -> re.Match[str]:
        """The next line that has it."""
        until, seen = time.monotonic() + seconds, len(self.lines)
        while True:
            while seen < len(self.lines):
                seen += 1
                if found := re.search(pattern, self.lines[seen - 1]):
                    return found
            left = until - time.monotonic()
            assert left > 0, f"no {pattern!r} in {seconds} s: {self.last()}"
            assert self.read(left) is not None, f"no {pattern!r} to the end: {self.last()}"

    def last(self) -> str:
        """What was printed last, for who looks into a failure."""
        return "\n".join(self.lines[-20:])

    def finish(self, seconds: float) -> list[str]:
        """All lines, once the machine is off, as it ends by itself."""
        until = time.monotonic() + seconds
        while self.read(max(0.0, until - time.monotonic())) is not None:
            assert time.monotonic() < until, f"still running after {seconds} s: {self.last()}"
        assert self._process.wait(10) == 0, self.last()
        return self.lines
