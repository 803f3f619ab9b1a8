"""Ringfence killed at any moment, under a guest that writes: whatever was flushed is there."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import records
from installed import PLACE, Installed, needs

pytestmark = pytest.mark.long
KILLS = 50
SIZE = "192M"
MOST = 100_000
"""Records that a run would write."""
WRITE = f"""
e2fsck -p /dev/vdb; echo "repaired with $?"
e2fsck -fn /dev/vdb; echo "checked with $?"
mkdir /tmp/disk; mount /dev/vdb /tmp/disk && python3 {PLACE}/records.py /tmp/disk COUNT; echo "written with $?"
umount /tmp/disk
"""


def succeeds(*command: str | Path, allowed: tuple[int, ...] = (0,)) -> int:
    """Its status, where that is one of these."""
    found = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert found.returncode in allowed, f"{command} ends with {found.returncode}: {found.stdout[-2000:]}{found.stderr}"
    return found.returncode


class Lineage:
    """A disk that is killed under again and again."""

    def __init__(self, directory: Path, kind: str) -> None:
        directory.mkdir()
        self.directory, self.kind = directory, kind
        self.disk = base = directory / "base"
        succeeds("qemu-img", "create", "-f", "raw", base, SIZE)
        succeeds("mke2fs", "-q", "-t", "ext4", base)
        if kind == "qcow2":
            self.disk = directory / "disk.qcow2"
            succeeds("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "raw", self.disk)
        self.told = -1
        self.leaks = 0

    def check(self) -> None:
        """By QEMU's and e2fsprogs' own reading, with a copy of the disk: the image and the file system are whole, and
        every record is there that the guest was told of.
        """
        copy = self.directory / "copy"
        if self.kind == "qcow2":
            # 3: clusters that nothing refers to, which the next one to open the image for writing finds.
            self.leaks += succeeds("qemu-img", "check", "-q", self.disk, allowed=(0, 3)) == 3
        succeeds("qemu-img", "convert", "-f", self.kind, "-O", "raw", self.disk, copy)
        succeeds("e2fsck", "-p", copy, allowed=(0, 1))
        succeeds("e2fsck", "-fn", copy)
        out = self.directory / "out"
        out.mkdir()
        for n in range(records.FILES):
            succeeds("debugfs", "-R", f"dump /records{n} {out}/records{n}", copy)
        assert records.found(str(out)) > self.told
        shutil.rmtree(out)
        copy.unlink()


def test_what_was_flushed_survives_a_kill(installed: Installed, tmp_path: Path) -> None:
    """Fifty times, on raw images and qcow2 ones over another, at depth 0, 1 and 2: each record of which the guest said
    that its flush had returned is there, for the host and for the next guest; ext4 and the image are whole.
    """
    needs("qemu-img", "mke2fs", "e2fsck", "debugfs")
    share = tmp_path / "share"
    share.mkdir()
    shutil.copy(records.__file__, share)
    draw = random.Random(5)
    disks = [Lineage(tmp_path / kind, kind) for kind in ("raw", "qcow2")]
    for n in range(KILLS + len(disks)):
        lineage, depth = disks[n % 2], draw.randrange(3)
        last = n >= KILLS
        script = WRITE.replace("COUNT", "10" if last else str(MOST))
        with installed.run(share, script, [str(lineage.disk)], "--depth", str(depth)) as running:
            running.expect(r"^repaired with [01]$", 120)
            running.expect(r"^checked with 0$", 60)
            before = int(running.expect(r"^found (\d+)$", 60)[1])
            assert before > lineage.told
            lineage.told = before - 1
            if last:
                assert "written with 0" in running.finish(120)
            else:
                wait(running.read, draw)
                running.kill()
                while running.read(10) is not None:  # what it printed before
                    pass
            told = [int(line.removeprefix("told ")) for line in running.lines if re.fullmatch(r"told \d+", line)]
            assert told == list(range(before, before + len(told)))
            lineage.told += len(told)
        lineage.check()
        print(f"kill {n}: {lineage.kind}, depth {depth}: {before} found, {len(told)} more told of", flush=True)
    succeeds("qemu-img", "check", "-q", disks[1].disk)
    print(f"{[lineage.told + 1 for lineage in disks]} records; leaks after {disks[1].leaks} kills")


def wait(read: Callable[[float], list[str] | None], draw: random.Random) -> None:
    """For a number of records, and a moment more."""
    left = draw.choice((0, 1, 3, 10, 30, 80))
    while left > 0:
        new = read(60)
        assert new is not None
        left -= sum(line.startswith("told ") for line in new)
    time.sleep(draw.random() * 0.2)
