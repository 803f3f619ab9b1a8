"""Debian under Ringfence and under QEMU, side by side: a shell in each, whose commands are timed by the host's clock.

Both have the same kernel, first file system, disk (what is written there is lost at the end) and memory, one hart, and
a shell for their first process: nothing else runs.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from benchmarks.installed import ROOT, Installed
from benchmarks.qemu import QEMU

Kind = Literal["ringfence", "qemu"]
KINDS: tuple[Kind, ...] = ("ringfence", "qemu")
MEMORY = "1G"
APPEND = f"console=ttyS0 earlycon loglevel=1 panic=-1 {ROOT} init=/bin/sh"
NEEDED = {QEMU: "qemu-system-misc", "iperf3": "iperf3"}
"""Commands of the host's, and Debian's packages that have them."""
LONGEST = 900.0
"""Seconds of a command."""
_SET_UP = (
    "PS1=; stty -echo -onlcr",
    "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C",
    "mount -t tmpfs tmp /tmp && tar -xf /dev/vdb -C /tmp && cd /tmp",
)
_NETWORK = (
    "ip link set lo up && ip link set eth0 up",
    "ip address add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2",
)


def check() -> None:
    """Ends the program where the host has not what is needed, before anything is measured."""
    for command, package in NEEDED.items():
        if shutil.which(command) is None:
            sys.exit(f"{command} is not installed: it is in Debian's package {package}")


@dataclass(frozen=True)
class Setting:
    """What both machines are given. `files`: an archive that is unpacked in /tmp. `own`: for each a raw disk image that
    it writes, /dev/vdc.
    """

    system: Installed
    files: Path
    own: Mapping[Kind, Path] | None = None
    network: bool = False

    def command(self, kind: Kind) -> list[str]:
        system, own = self.system, [] if self.own is None else [str(self.own[kind])]
        boot = ["--kernel", str(system.kernel), "--initrd", str(system.initrd), "--append", APPEND]
        if kind == "ringfence":
            disks = [f"{system.disk}:snapshot", f"{self.files}:ro", *own]
            return [
                *(sys.executable, "-m", "ringfence", "run", "-m", MEMORY, "--clock", "host", "--depth", "0"),
                *("--silence", "0", *boot),
                *(word for disk in disks for word in ("--disk", disk)),
                *(("--network", "user") if self.network else ()),
            ]
        drives = [f"file={system.disk},snapshot=on", f"file={self.files},readonly=on"]
        drives += [f"file={disk},cache=writeback" for disk in own]
        command = [QEMU, "-M", "virt", "-m", MEMORY, "-nographic", *(word.replace("--", "-") for word in boot)]
        for n, drive in enumerate(drives):  # Linux finds what is on the last bus first
            command += ["-drive", f"{drive},format=raw,if=none,id=d{n}"]
            command += ["-device", f"virtio-blk-device,drive=d{n},bus=virtio-mmio-bus.{7 - n}"]
        if self.network:
            command += ["-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n,bus=virtio-mmio-bus.0"]
        return command


class Shell:
    """A running machine's."""

    def __init__(self, setting: Setting, kind: Kind) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            setting.command(kind), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._count = 0
        try:
            self._await("# ")
            for line in (*_SET_UP, *(_NETWORK if setting.network else ())):
                self.run(line)
        except BaseException:
            self.close()
            raise

    def run(self, command: str) -> tuple[float, str]:
        """(seconds, what it printed), by the host's clock, of a command that must end with status 0."""
        self._count += 1
        assert self._process.stdin is not None
        # In two parts: the shell's echo of what is typed, where there still is one, does not have the mark.
        line = f'{command}; echo "over""{self._count}:$?:"\n'.encode()
        start = time.perf_counter()
        self._process.stdin.write(line)
        self._process.stdin.flush()
        printed = self._await(mark := f"over{self._count}:")
        seconds = time.perf_counter() - start
        text, _, status = printed.rpartition(mark)
        status += "" if ":" in status else self._await(":")
        if not status.startswith("0:"):
            sys.exit(f"{text[-2000:]}\n{command!r} failed under {self.kind}")
        return seconds, text

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def _await(self, text: str) -> str:
        """What is printed, to the end of what came with `text`."""
        assert self._process.stdout is not None
        printed, end, fd = b"", time.monotonic() + LONGEST, self._process.stdout.fileno()
        while text.encode() not in printed:
            ready, _, _ = select.select([fd], [], [], max(end - time.monotonic(), 0))
            data = os.read(fd, 1 << 16) if ready else b""
            if not data:
                sys.exit(f"{printed[-2000:].decode(errors='replace')}\n{self.kind} does not print {text!r}")
            printed += data
        return printed.decode(errors="replace")

    def used(self) -> float:
        """Seconds of the processor that all its threads have had; of those that ended meanwhile too."""
        fields = re.split(r"\) ", Path(f"/proc/{self._process.pid}/stat").read_text(), maxsplit=1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def shells(setting: Setting) -> Iterator[Sequence[Shell]]:
    """One of each kind."""
    started: list[Shell] = []
    try:
        for kind in KINDS:
            started.append(Shell(setting, kind))
        yield started
    finally:
        for shell in started:
            shell.close()


def packed(files: Mapping[str, bytes]) -> bytes:
    """A tar archive."""
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return content.getvalue()
