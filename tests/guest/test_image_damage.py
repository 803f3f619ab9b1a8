"""Images whose files are not what they were: noticed, said in a sentence, repaired."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_archive import Mirror
from test_image import assert_refused, environment, images_of, pull, ringfence_image

from ringfence.guest.image import Store


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    """Something else where a file or a link was."""
    path.unlink()
    make(path)


def directory_in_place_of(link: Path) -> None:
    target = link.resolve()
    in_place_of(link, lambda path: shutil.copytree(target, path))


def without_sizes(path: Path) -> None:
    """Makes a lock what an earlier version wrote."""
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "sizes"}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a cut kernel": lambda image: os.truncate(image / "kernel", 1000),
    "an empty initrd": lambda image: os.truncate(image / "initrd", 0),
    "no kernel": lambda image: (image / "kernel").unlink(),
    "a fifo as initrd": lambda image: in_place_of(image / "initrd", os.mkfifo),
    "a directory as kernel": lambda image: in_place_of(image / "kernel", Path.mkdir),
    "a cut lock": lambda image: os.truncate(image / "lock.json", 100),
    "no lock": lambda image: (image / "lock.json").unlink(),
    "a fifo as lock": lambda image: in_place_of(image / "lock.json", os.mkfifo),
    "a directory as lock": lambda image: in_place_of(image / "lock.json", Path.mkdir),
    "another image's lock": lambda image: (image / "lock.json").write_text(
        (image / "lock.json").read_text().replace('"debian"', '"other"')
    ),
    "a directory as link": directory_in_place_of,
    "a file as link": lambda image: in_place_of(image, Path.touch),
    "a link to nothing": lambda image: shutil.rmtree(image.resolve()),
    "a link to itself": lambda image: in_place_of(image, lambda path: path.symlink_to("debian")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_image_that_is_damaged_is_noticed_and_repaired(
    damage: str, debian_mirror: Mirror, tmp_path: Path, impatient: None
) -> None:
    """`list` says so, whoever would use the image is told how to repair it, `pull` does, and `rm` deletes it all."""
    place = tmp_path / "cache/ringfence/images/debian"
    pull(debian_mirror)
    DAMAGES[damage](place)
    assert "debian        damaged" in ringfence_image("list").stdout
    refused = ringfence_image("path", "debian")
    assert_refused(refused, 125, "the image debian is damaged: `ringfence image pull debian` makes it again")
    assert "is made of" in pull(debian_mirror).stdout
    found = Store().find("debian")
    assert len(found.kernel.read_bytes()) == 640_000
    assert images_of(tmp_path) == {"debian", found.directory.name}
    DAMAGES[damage](place)
    assert ringfence_image("rm", "debian").stdout == "debian is deleted\n"
    assert images_of(tmp_path) == set()
    assert "not pulled" in ringfence_image("list").stdout


@pytest.mark.parametrize("file", ["kernel", "initrd"])
def test_image_with_other_bytes_is_noticed_and_repaired(file: str, debian_mirror: Mirror) -> None:
    """A file of the right size with a wrong byte: `list` and `pull` read it all."""
    pull(debian_mirror)
    path = Store().find("debian").directory / file
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "debian        damaged" in ringfence_image("list").stdout
    assert "is made of" in pull(debian_mirror).stdout
    assert (Store().find("debian").directory / file).read_bytes() == data


def test_image_of_an_earlier_version_is_used(debian_mirror: Mirror) -> None:
    """A lock without sizes is as good as one with them, and its image is still checked by `list` and `pull`."""
    pull(debian_mirror)
    found = Store().find("debian")
    without_sizes(found.directory / "lock.json")
    assert Store().find("debian").directory == found.directory
    assert "is here already" in pull(debian_mirror).stdout
    os.truncate(found.kernel, 1000)
    assert "debian        damaged" in ringfence_image("list").stdout
    assert "is made of" in pull(debian_mirror).stdout
    assert "is here already" in pull(debian_mirror).stdout


@pytest.mark.parametrize(
    ("damage", "status", "says"),
    [
        (lambda image: os.truncate(image / "kernel", 1000), 125, "the image debian is damaged: `ringfence image pull"),
        (lambda image: (image / "kernel").write_bytes(bytes(640_000)), 125, "the image debian is damaged: `ringfence"),
        (lambda image: None, 126, "/ringfence/images/debian/kernel is neither a RISC-V ELF file"),
    ],
)
def test_run_of_an_image_that_cannot_boot_is_a_sentence(
    damage: Callable[[Path], object], status: int, says: str, debian_mirror: Mirror, tmp_path: Path, impatient: None
) -> None:
    """It names the image or its lasting place, and how to repair it where it is damaged."""
    pull(debian_mirror)
    damage(tmp_path / "cache/ringfence/images/debian")
    command = [sys.executable, "-m", "ringfence", "run", "debian", "--engine", "reference"]
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr
    assert "/.debian." not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["directory", "fifo"])
@pytest.mark.parametrize("words", [["pull", "debian"], ["rm", "debian"]], ids=" ".join)
def test_store_whose_lock_is_no_file_is_a_sentence(
    words: list[str], kind: str, debian_mirror: Mirror, tmp_path: Path, impatient: None
) -> None:
    """What lies in the lock's place makes nobody wait, and is named."""
    pull(debian_mirror)
    lock = tmp_path / "cache/ringfence/images/.lock"
    in_place_of(lock, os.mkfifo if kind == "fifo" else Path.mkdir)
    result = pull(debian_mirror, "--update") if words[0] == "pull" else ringfence_image(*words)
    assert_refused(result, 125, f"{lock} is in the way, which is not a regular file: delete it")
