"""Debian's fio checks what it reads of a gigabyte that it wrote."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from installed import Installed, needs

from ringfence.guest.transfer import copy
from ringfence.machine.device.disk_image import create

pytestmark = pytest.mark.long
BYTES = 1 << 30
DISK = 3 << 29
JOB = (
    f"--name=job --filename=/dev/vdb --size={BYTES} --rw=randwrite --bssplit=4k/40:16k/30:64k/20:128k/10"
    " --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --eta=never --output-format=json"
)


def fio(
    installed: Installed, directory: Path, disk: str, clock: str, how: str, output: str, seconds: float = 1800
) -> dict[str, Any]:
    """What a run of the job says of itself."""
    script = f"fio {JOB} {how} --output=/tmp/{output}; echo fio ends with $?; cp /tmp/{output} .\n"
    with installed.run(directory, script, [disk], "--clock", clock) as running:
        lines = running.finish(seconds)
    assert "fio ends with 0" in lines, running.last()
    (job,) = json.loads((directory / output).read_text())["jobs"]
    assert job["error"] == 0
    found: dict[str, Any] = job
    return found


@pytest.mark.parametrize(("kind", "clock"), [("raw", "host"), ("qcow2", "virtual")])
def test_fio_finds_what_it_wrote(installed: Installed, tmp_path: Path, kind: str, clock: str) -> None:
    """Random writes of 4 to 128 KiB past the guest's cache, 16 at a time; each is read and its CRC compared, at once
    and by another machine that may only read the disk. A qcow2 image is whole to QEMU then, and has the content that
    Ringfence reads.
    """
    needs("qemu-img")
    disk, share = tmp_path / "disk", tmp_path / "share"
    share.mkdir()
    if kind == "qcow2":
        create(disk, DISK)
    else:
        with disk.open("wb") as file:
            file.truncate(DISK)
    job = fio(installed, share, str(disk), clock, "--do_verify=1 --verify_state_save=1", "written")
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == BYTES
    assert list(share.glob("*verify.state"))
    how = "--verify_only=1 --verify_state_load=1"
    job = fio(installed, share, f"{disk}:ro", clock, how, "read")
    assert job["read"]["io_bytes"] == BYTES
    if kind == "qcow2":
        raw = tmp_path / "raw"
        subprocess.run(["qemu-img", "check", "-q", str(disk)], check=True)
        copy(disk, raw)
        subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(disk), str(raw)], check=True)
