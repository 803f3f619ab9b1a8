"""Disks with a system on them: made, taken in, run, and given out."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ringfence.errors import ImageError
from ringfence.guest.appliance import Appliance
from ringfence.guest.image import Image, Store
from ringfence.guest.transfer import copy
from ringfence.machine.device.disk_image import create, open_disk

SIZE = 64 << 20
MAKE = r"""set -e
mke2fs -q DEVICE >/dev/null
mkdir /system
mount -t ext2 DEVICE /system
cd /system
mkdir bin boot dev etc proc sbin sys
cp /bin/busybox bin
cat >sbin/init <<'END'
#!/bin/busybox sh
/bin/busybox mount -o remount,rw /
echo again >>/starts
echo "started $(/bin/busybox wc -l </starts) times from $(/bin/busybox sed 's/.*root=//; s/ .*//' /proc/cmdline)"
/bin/busybox mount -o remount,ro /
/bin/busybox poweroff -f
END
chmod 755 sbin/init
echo "/dev/vda / ext2 defaults 0 1" >etc/fstab
echo "an old one" >boot/vmlinux-6.9
echo "an old one" >boot/vmlinux-6.9.99
dd if=/dev/vdb of=boot/vmlinux-6.10 bs=1M 2>/dev/null
cd /
umount /system
"""


@pytest.fixture(scope="module")
def appliance(debian: Image) -> Appliance:
    return Appliance(debian.kernel.read_bytes(), debian.initrd.read_bytes(), debian.append(command=True))


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data/ringfence"


def make_system(appliance: Appliance, debian: Image, directory: Path, partition: int) -> Path:
    """A raw disk with a kernel, and a system that says how often it was started, in a partition."""
    disk, kernel = directory / "system.img", directory / "kernel.img"
    first = 2048
    entry = struct.pack("<8xII", first, 2 * SIZE // 512 - first)
    table = bytes(446) + bytes(16) * (partition - 1) + entry[:4] + b"\x83" + entry[5:]
    disk.write_bytes(table.ljust(510, b"\0") + b"\x55\xaa")
    os.truncate(disk, 2 * SIZE)
    script = MAKE.replace("DEVICE", f"/dev/vda{partition}")
    shutil.copy(debian.kernel, kernel)
    os.truncate(kernel, -(-kernel.stat().st_size // 512) * 512)
    appliance.run("the disk", script, [disk, kernel])
    return disk


def ringfence(*words: str) -> CompletedProcess[str]:
    command = [sys.executable, "-m", "ringfence", *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)


def test_disk_is_taken_in_run_and_given_out(
    appliance: Appliance, debian: Image, tmp_path: Path, data_home: Path
) -> None:
    """The newest kernel starts it from its partition; what it writes lasts, but for a snapshot; an export has it."""
    qcow2 = tmp_path / "system.qcow2"
    copy(make_system(appliance, debian, tmp_path, 2), qcow2)
    taken = ringfence("image", "import", str(qcow2), "--name", "mine")
    assert (taken.returncode, taken.stdout) == (0, "mine can be run\n"), taken.stderr
    assert Store().find("mine").kernel.read_bytes().startswith(debian.kernel.read_bytes())
    assert "mine          imported" in ringfence("image", "list").stdout
    for words, times in [([], 1), (["--snapshot"], 2), ([], 2)]:
        ran = ringfence("run", "mine", "--network", "none", "--clock", "virtual", "--append", "loglevel=1", *words)
        assert f"started {times} times from /dev/vda2" in ran.stdout, ran.stderr
        assert ran.returncode == 0
    out = tmp_path / "out.qcow2"
    assert ringfence("image", "export", "mine", "-o", str(out)).returncode == 0
    assert out.stat().st_blocks < 2 * SIZE // 512
    with open_disk(out) as new, open_disk(data_home / "disks/mine/disk.img") as old:
        assert new.read(0, 2 * SIZE) == old.read(0, 2 * SIZE)
    for words, sentence in [
        (["export", "mine", "-o", str(out)], "out.qcow2 cannot be made: File exists"),
        (["import", str(qcow2), "--name", "mine"], "there is an image mine: `ringfence image rm mine` deletes it"),
        (["import", str(qcow2), "--name", "debian"], "'debian' cannot be the name of an image of yours"),
    ]:
        refused = ringfence("image", *words)
        assert (refused.returncode, refused.stdout) == (125, "")
        assert sentence in refused.stderr
    with open_disk(data_home / "disks/mine/disk.img"):
        refused = ringfence("image", "rm", "mine")
        assert refused.returncode == 125
        assert "the image mine stays: disk image" in refused.stderr
        assert "is in use by another machine" in refused.stderr
    assert ringfence("image", "rm", "mine").returncode == 0
    assert [path.name for path in (data_home / "disks").iterdir()] == [".lock"]


def test_disk_without_a_kernel_is_refused(debian: Image, tmp_path: Path) -> None:
    """And nothing of it is left; unless a kernel is given, and where the system is."""
    disk = tmp_path / "blank.qcow2"
    create(disk, SIZE)
    store = Store(tmp_path / "store")
    with pytest.raises(ImageError, match=r"no kernel lies on .*blank\.qcow2"):
        store.add("mine", disk, debian)
    with pytest.raises(ImageError, match="no system lies on"):
        store.add("mine", disk, debian, kernel=debian.kernel)
    assert [path.name for path in (tmp_path / "store/disks").iterdir()] == [".lock"]
    image = store.add("mine", disk, debian, kernel=debian.kernel, append="console=ttyS0 root=/dev/vdz")
    assert (image.kernel.read_bytes(), image.append()) == (debian.kernel.read_bytes(), "console=ttyS0 root=/dev/vdz")


def test_work_that_fails_is_a_sentence(appliance: Appliance, tmp_path: Path) -> None:
    """With the last that was printed, whatever ended it."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    lines: list[str] = []
    with pytest.raises(ImageError, match="the work failed: one; two"):
        appliance.run("the work", "echo one; echo two >&2; exit 3", [disk], line=lines.append)
    assert lines == ["one", "two"]
    for end in ("poweroff -f", "echo c >/proc/sysrq-trigger"):
        with pytest.raises(ImageError, match="the work failed: "):
            appliance.run("the work", f"{end}; sleep 9", [disk])
