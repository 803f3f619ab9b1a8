"""Debian's own kernel and busybox, from power-on to a shell."""

from __future__ import annotations

import time
from hashlib import md5
from pathlib import Path

import pytest

from ringfence import Image, MiB, RawDisk, Virt, load, virt
from ringfence.machine.engine.threaded import Threaded

PROMPT = ":~# "
OPENSBI = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic")
STEPS = 1_200_000_000
"""The prompt has come by then, with any number of harts."""


def start(board: Virt, image: Image, bios: Path | None = None) -> None:
    load(board, image.kernel, initrd=[image.initrd], append=image.append(), bios=bios)


def answer(board: Virt, command: str) -> str:
    """What a command prints at the shell."""
    board.console.send(command + "\n")
    board.console.expect("\r\n")
    return board.console.expect(rf"(?s)(.*?)[^\n]*{PROMPT}")[1].strip()


@pytest.mark.parametrize(("harts", "memory"), [(1, 256 * MiB), (1, 96 * MiB), (4, 256 * MiB), (8, 256 * MiB)])
def test_debian_boots_to_its_shell(debian: Image, harts: int, memory: int) -> None:
    """It finds the harts and the memory that there are, within two seconds of guest time."""
    board = virt(memory, harts)
    start(board, debian)
    board.console.expect(PROMPT, timeout=2)
    assert answer(board, "nproc") == str(harts)
    assert answer(board, "uname -m") == "riscv64"
    found = int(answer(board, "sed -n 's/MemTotal: *//p' /proc/meminfo").split()[0]) * 1024
    assert memory - 80 * MiB < found < memory


@pytest.mark.parametrize("harts", [1, 4])
def test_debian_boots_the_same_way_each_time(debian: Image, harts: int) -> None:
    """Memory, state and console know nothing of where a run was cut, of TLB sizes, of dropped translations and code."""
    digests = set()
    consoles = set()
    for sets, pieces in ((256, 1), (32, 40)):
        board = virt(256 * MiB, harts)
        board.engine = engine = Threaded(board, sets=sets)
        start(board, debian)
        for _ in range(pieces):
            board.run(STEPS // pieces)
            if pieces > 1:
                engine.native.everything()
        digests.add(board.digest())
        consoles.add(board.console.text)
    assert len(digests) == len(consoles) == 1
    assert "Run /init" in consoles.pop()


@pytest.mark.parametrize(("firmware", "harts"), [("fw_dynamic.elf", 1), ("fw_jump.elf", 4)])
def test_debian_boots_over_opensbi(debian: Image, firmware: str, harts: int) -> None:
    """Machine-mode firmware of another's making starts the same kernel on all harts."""
    if not (OPENSBI / firmware).exists():
        pytest.skip("Debian's package opensbi is not on this host")
    board = virt(256 * MiB, harts)
    start(board, debian, OPENSBI / firmware)
    board.console.expect("OpenSBI v", timeout=1)
    board.console.expect(PROMPT, timeout=3)
    assert answer(board, "nproc") == str(harts)


def test_debian_sleeps_a_second_by_the_hosts_clock(debian: Image) -> None:
    """`sleep 1` takes a second of real time, and an idle guest leaves the host's processor alone."""
    board = virt(256 * MiB, clock="host")
    start(board, debian)
    board.console.expect(PROMPT, timeout=60)
    began = time.monotonic()
    answer(board, "sleep 1")
    assert 1 <= time.monotonic() - began < 3
    board.run(until=board.clock.now() + 2_000_000_000)  # what the boot left to do
    worked = time.process_time()
    board.run(until=board.clock.now() + 1_000_000_000)
    assert time.process_time() - worked < 0.3


def test_debian_writes_megabytes_to_a_disk(debian: Image, tmp_path: Path) -> None:
    """What is synced is in the file."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * MiB))
    with RawDisk(path) as disk:
        board = virt(256 * MiB, disks=[disk])
        start(board, debian)
        board.console.expect(PROMPT, timeout=2)
        answer(board, "head -c 6000000 /dev/urandom >/tmp/data")
        digest = answer(board, "md5sum </tmp/data").split()[0]
        answer(board, "cat /tmp/data >/dev/vda; sync")
    assert md5(path.read_bytes()[:6_000_000]).hexdigest() == digest
