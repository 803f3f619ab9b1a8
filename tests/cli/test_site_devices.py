"""What a site's guests have for devices: disks of their images, networks and what goes through them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from ringfence.cli.site import build, read
from ringfence.errors import MachineError, NoSuchImage, RingfenceError
from ringfence.guest.image import Image, Store
from ringfence.guest.program import CORRAL
from ringfence.machine.device.disk_image import create, open_disk
from ringfence.machine.device.uart16550 import ConsoleOut
from ringfence.monitor.vm import VirtualMachine

GUEST = '[{}]\nimage = "mine"\nmemory = "8M"\n'
SIZE = 1 << 20


class Mute:
    def write(self, data: bytes) -> None:
        pass


def mute(path: str) -> ConsoleOut:
    return Mute()


def made(text: str, tmp_path: Path, stack: ExitStack) -> dict[str, VirtualMachine]:
    """The guests of a site by path, on the virtual clock."""
    file = tmp_path / "site.toml"
    file.write_text(text)
    _, guests = build(read(file), tmp_path, mute, "virtual", stack)
    return {guest.path: guest for guest in guests}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The disk of an image, which is called so."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    create(tmp_path / "blank.qcow2", SIZE)
    nobody = Image(tmp_path, lock=None)  # type: ignore[arg-type]
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(4))
    image = Store().add("mine", tmp_path / "blank.qcow2", nobody, kernel=CORRAL, initrd=initrd, append="")
    assert image.disk is not None
    return image.disk


def test_guests_have_the_disk_of_their_image(mine: Path, tmp_path: Path) -> None:
    """First, before minidisks, at any depth; with `snapshot` each a blank copy of its own."""
    create(tmp_path / "other.qcow2", 2 * SIZE)
    text = 'disks = ["other.qcow2"]\n'
    text += GUEST.format("guests.a") + 'snapshot = true\nminidisks = [{ size = "1M" }]\n'
    text += '[guests.b]\nminidisks = [{ start = "1M" }]\n'
    text += GUEST.format("guests.b.guests.c") + "snapshot = true\nminidisks = [{}]\n"
    text += GUEST.format("guests.b.guests.d") + "snapshot = true\n"
    with ExitStack() as stack:
        guests = made(text, tmp_path, stack)
        assert {path: [disk.size for disk in guest.disks] for path, guest in guests.items()} == {
            "a": [SIZE, SIZE],
            "b/c": [SIZE, SIZE],
            "b/d": [SIZE],
        }
        for number, guest in enumerate(guests.values()):
            assert guest.disks[0].read(0, 512) == bytes(512)
            guest.disks[0].write(0, bytes([number + 1]) * 512)
            assert guest.disks[0].read(0, 512) == bytes([number + 1]) * 512
    with open_disk(mine, readonly=True) as disk:
        assert disk.read(0, 512) == bytes(512)
    with ExitStack() as stack:
        made(GUEST.format("guests.a"), tmp_path, stack)["a"].disks[0].write(0, b"x" * 512)
    with open_disk(mine, readonly=True) as disk:
        assert disk.read(0, 512) == b"x" * 512


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        (GUEST.format("guests.a") + GUEST.format("guests.b"), MachineError, "is given twice, which needs :ro or"),
        ('[guests.a]\nimage = "corral"\nsnapshot = true\n', MachineError, "guest a: snapshot is for a guest whose"),
        ('[guests.a]\nimage = "yours"\n', NoSuchImage, "guest a: no image is called 'yours'"),
        ('[guests.a]\nimage = "corral"\npcap = "none/x"\n', MachineError, "guest a: frames cannot be written to"),
    ],
)
def test_devices_that_cannot_be_are_refused(
    mine: Path, tmp_path: Path, text: str, kind: type[RingfenceError], why: str
) -> None:
    with ExitStack() as stack, pytest.raises(kind, match=why):
        made(text, tmp_path, stack)


def test_frames_of_a_guest_are_in_its_file(tmp_path: Path) -> None:
    """All of its devices', both ways; and of no other guest's."""
    text = '[guests.{0}]\nimage = "corral"\nmemory = "8M"\nnetworks = {1}\npcap = "{0}.pcap"\n'
    with ExitStack() as stack:
        guests = made(
            text.format("a", '["lan", "wan"]') + text.format("b", '["lan"]') + text.format("c", '["wan"]'),
            tmp_path,
            stack,
        )
        frames = [bytes([0xFF] * 6) + bytes([2, n] * 3) + bytes([n]) * 50 for n in range(3)]
        guests["a"].links[0].send(frames[0])
        guests["b"].links[0].send(frames[1])
        guests["c"].links[0].send(frames[2])
    seen = {
        name: [n for n, frame in enumerate(frames) if frame in (tmp_path / f"{name}.pcap").read_bytes()]
        for name in "abc"
    }
    assert seen == {"a": [0, 1, 2], "b": [0, 1], "c": [2]}
