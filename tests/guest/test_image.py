"""Images: made whole or not at all, from what the archive signed, and usable ever after."""

import errno
import fcntl
import json
import os
import pty
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from loopback_archive import BUSYBOX, MODULES, RELEASE, Keys, Mirror
from test_cpio import read

from ringfence.cli.image import image
from ringfence.errors import ImageError, NoSuchImage
from ringfence.guest import file as file_module
from ringfence.guest import lock as lock_module
from ringfence.guest.image import Image, Store, command_archive, joined

KERNEL = f"linux-image-{RELEASE}"
COMMAND = [sys.executable, "-c", "from ringfence.cli.image import image; image(prog_name='ringfence image')"]


def ringfence_image(*words: str) -> Result:
    """Runs the command line in this process."""
    return CliRunner().invoke(image, words, prog_name="ringfence image")


def pull(served: Mirror, *words: str) -> Result:
    return ringfence_image("pull", "debian", "--mirror", served.address, "--keyring", str(served.keys.keyring), *words)


def assert_refused(result: Result, status: int, sentence: str) -> None:
    """One sentence at the end of standard error, nothing on standard output, and the status."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert [line.startswith("ringfence: ") for line in result.stderr.splitlines()].count(True) == 1
    assert result.stderr.splitlines()[-1].startswith("ringfence: ")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def images_of(tmp_path: Path) -> set[str]:
    """What is in the directory of images, apart from the lock."""
    place = tmp_path / "cache/ringfence/images"
    return {path.name for path in place.iterdir()} - {".lock"} if place.is_dir() else set()


def test_pull_makes_an_image(debian_mirror: Mirror, tmp_path: Path) -> None:
    """A pulled image has the package's kernel, an initramfs and a lock that says what they were made from."""
    result = pull(debian_mirror)
    assert result.exit_code == 0, result.output
    assert f"debian is made of {KERNEL} 6.12.0-1, busybox-static 1:1.37.0-6" in result.stdout
    found = Store().find("debian")
    assert len(found.kernel.read_bytes()) == 640_000
    lock = json.loads((found.directory / "lock.json").read_text())
    assert [package["version"] for package in lock["packages"]] == ["6.12.0-1", "1:1.37.0-6"]
    assert (lock["suite"], found.lock.packages[0].name) == ("trixie", KERNEL)
    assert set(lock["files"]) == {"kernel", "initrd"}
    assert not (tmp_path / "cache/ringfence/downloads").exists()
    assert stat.S_IMODE(found.directory.stat().st_mode) == 0o755


def test_pull_writes_the_same_image_twice(debian_mirror: Mirror, tmp_path: Path) -> None:
    """From the same packages come the same bytes."""
    stores = [Store(tmp_path / name) for name in "ab"]
    keyring = debian_mirror.keys.keyring
    first, second = (store.pull("debian", [debian_mirror.address], keyring).image for store in stores)
    assert first.lock == second.lock
    assert first.initrd.read_bytes() == second.initrd.read_bytes()


def test_initramfs_has_what_a_guest_needs(debian_mirror: Mirror) -> None:
    """Busybox with a link for each of its commands, the first script, the console, and indexed modules."""
    pull(debian_mirror)
    entries = read(Store().find("debian").initrd.read_bytes())
    place = f"lib/modules/{RELEASE}"
    assert entries["bin/busybox"][1] == BUSYBOX
    assert {name for name, (_, data) in entries.items() if data == b"busybox"} == {
        "bin/ash",
        "bin/[",
        "bin/[[",
        "bin/cat",
        "bin/sh",
        "bin/uname",
    }
    assert stat.S_ISCHR(entries["dev/console"][0]["mode"])
    assert entries["init"][1].startswith(b"#!/bin/sh\n")
    assert stat.S_IMODE(entries["init"][0]["mode"]) == 0o755
    # Drivers are stored unpacked, what is loaded on demand as the package has it, and nothing else.
    files = {name.removeprefix(place + "/") for name in entries if name.startswith(place + "/")}
    drivers = {
        "virtio_mmio.ko",
        "virtio_blk.ko",
        "failover.ko",
        "net_failover.ko",
        "virtio_net.ko",
        "virtio_rng.ko",
    }
    assert files == drivers | {"jbd2.ko.xz", "ext4.ko.xz", "modules.dep", "modules.alias"}
    assert entries[f"{place}/virtio_mmio.ko"][1] == MODULES["drivers/virtio/virtio_mmio"]
    dependencies = dict(line.split(":") for line in entries[f"{place}/modules.dep"][1].decode().splitlines())
    assert dependencies["virtio_net.ko"] == " net_failover.ko failover.ko"
    assert dependencies["ext4.ko.xz"] == " jbd2.ko.xz"
    assert "alias fs-ext4 ext4\n" in entries[f"{place}/modules.alias"][1].decode()


def test_pull_again_changes_nothing(debian_mirror: Mirror) -> None:
    """A second pull asks the network nothing and says so; `--update` asks, and keeps what is current."""
    pull(debian_mirror)
    before = Store().find("debian")
    debian_mirror.requests.clear()
    result = pull(debian_mirror)
    assert (result.exit_code, debian_mirror.requests) == (0, [])
    assert "is here already" in result.stdout
    result = pull(debian_mirror, "--update")
    assert "is up to date" in result.stdout
    assert Store().find("debian") == before


def test_pull_updates_when_asked(debian_mirror: Mirror, tmp_path: Path) -> None:
    """When the mirror has moved on the image stays usable, until `--update` replaces it whole."""
    pull(debian_mirror)
    old = Store().find("debian")
    debian_mirror.package(KERNEL).unlink()
    debian_mirror.add_debian("6.12.0-2")
    debian_mirror.publish(fields={"Date": format_datetime(datetime.now(UTC))})
    pull(debian_mirror)
    assert Store().find("debian") == old
    result = pull(debian_mirror, "--update")
    assert f"{KERNEL} 6.12.0-2" in result.stdout
    new = Store().find("debian")
    assert new.lock.packages[0].version == "6.12.0-2"
    assert new.kernel.read_bytes() != b""
    assert images_of(tmp_path) == {"debian", new.directory.name}


def test_update_to_an_older_index_is_refused(debian_mirror: Mirror) -> None:
    """A mirror cannot take an image back to packages that were replaced since."""
    pull(debian_mirror)
    debian_mirror.publish(fields={"Date": "Mon, 01 Sep 2025 00:00:00 UTC"})
    assert_refused(pull(debian_mirror, "--update"), 125, "older than the")


@pytest.mark.parametrize("victim", [KERNEL, "busybox-static", "Packages"])
def test_mirror_that_lies_leaves_the_old_image(victim: str, debian_mirror: Mirror, tmp_path: Path) -> None:
    """A file that is not the signed one is refused, and the image that was there before is still there."""
    pull(debian_mirror)
    old = Store().find("debian")
    debian_mirror.add_debian("6.12.0-2")
    debian_mirror.publish()
    for path in debian_mirror.root.rglob("SHA256/*") if victim == "Packages" else [debian_mirror.package(victim)]:
        data = path.read_bytes()
        path.write_bytes(bytes(len(data)))
    assert_refused(pull(debian_mirror, "--update"), 125, "is not the one the archive signed")
    assert Store().find("debian") == old
    assert old.kernel.exists()
    assert images_of(tmp_path) == {"debian", old.directory.name}


def test_mirror_with_a_wrong_signature_is_refused(debian_mirror: Mirror, stranger: Keys, tmp_path: Path) -> None:
    """An index signed by a key that nobody trusts makes no image, with status 125."""
    debian_mirror.publish(keys=stranger)
    assert_refused(pull(debian_mirror), 125, "the mirror is not to be trusted")
    assert images_of(tmp_path) == set()


def test_mirror_that_is_away_is_a_sentence(debian_mirror: Mirror, tmp_path: Path) -> None:
    """Without a network the pull ends with a sentence and status 125, and leaves nothing."""
    debian_mirror.close()
    assert_refused(pull(debian_mirror), 125, "cannot be reached: Connection refused")
    assert images_of(tmp_path) == set()


def test_mirror_address_that_is_none_is_a_usage_error(debian_mirror: Mirror) -> None:
    """An address that is no web server's ends with status 2."""
    assert_refused(ringfence_image("pull", "debian", "--mirror", "nowhere"), 2, "is http://")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "do not have one kernel and one busybox"),
        ({"boot/vmlinux-1": b"", "boot/vmlinux-2": b""}, "do not have one kernel"),
        ({"boot/vmlinux-1": b"", "usr/lib/modules/1/ext4.ko.xz": b"noise"}, "kernel module .* is damaged"),
        ({"boot/vmlinux-1": b"", "usr/lib/modules/1/ext4.ko": b"noise"}, "kernel module .* is damaged"),
    ],
)
def test_packages_of_another_shape_are_refused(
    files: dict[str, bytes], sentence: str, debian_mirror: Mirror, tmp_path: Path
) -> None:
    """Signed packages in which an image's parts are not found make none, and the sentence says what is missing."""
    debian_mirror.add(KERNEL, "6.12.0-1", files)
    debian_mirror.publish()
    with pytest.raises(ImageError, match=sentence):
        Store().pull("debian", [debian_mirror.address], debian_mirror.keys.keyring)
    assert images_of(tmp_path) == set()


def test_busybox_without_a_shell_is_refused(debian_mirror: Mirror) -> None:
    """A program that is not busybox is not taken for it."""
    debian_mirror.add("busybox-static", "2", {"usr/bin/busybox": b"\x7fELF something else"})
    debian_mirror.publish()
    assert_refused(pull(debian_mirror), 125, "it has no sh")


@pytest.mark.parametrize("name", ["debain", "nothing", "", "../x", ".lock", "-"])
@pytest.mark.parametrize("command", ["pull", "path", "rm"])
def test_image_unknown_is_status_127(command: str, name: str, empty_mirror: Mirror) -> None:
    """A name that no image has ends with 127 and the names that there are."""
    assert_refused(ringfence_image(command, "--", name), 127, "debian")


def test_image_not_pulled_is_status_127(empty_mirror: Mirror) -> None:
    """A known image that is not here ends with 127 and the command that gets it."""
    assert_refused(ringfence_image("path", "debian"), 127, "`ringfence image pull debian`")
    with pytest.raises(NoSuchImage):
        Store().find("debian")


def test_image_list_path_and_rm_agree(debian_mirror: Mirror, tmp_path: Path) -> None:
    """`list` shows what is here, `path` leads to it, and after `rm` nothing is left."""
    assert "not pulled" in ringfence_image("list").stdout
    pull(debian_mirror)
    assert "trixie 13.0, kernel 6.12.0-1" in ringfence_image("list").stdout
    path = Path(ringfence_image("path", "debian").stdout.strip())
    assert path == tmp_path / "cache/ringfence/images/debian"
    assert sorted(os.listdir(path)) == ["initrd", "kernel", "lock.json"]
    assert ringfence_image("rm", "debian").exit_code == 0
    assert images_of(tmp_path) == set()
    assert ringfence_image("path", "debian").exit_code == 127


def change(served: Mirror, package: str, **fields: str) -> None:
    """Other fields of a package, when it is published next."""
    old, data = served.debs[package]
    served.debs[package] = (old | fields, data)


@pytest.mark.parametrize("words", [["pull", "debian"], ["rm", "debian"]], ids=" ".join)
def test_store_that_is_in_use_is_waited_for(
    words: list[str], debian_mirror: Mirror, tmp_path: Path, impatient: None
) -> None:
    """While another process has the store, one that waits for it says so, once, and then does its work."""
    pull(debian_mirror)
    served = ["--mirror", debian_mirror.address, "--keyring", str(debian_mirror.keys.keyring)]
    command = [*COMMAND, *words, *(served if words[0] == "pull" else [])]
    with (tmp_path / "cache/ringfence/images/.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        running = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert running.stderr is not None
        assert running.stderr.readline() == "another ringfence is at work on the images: waiting for it\n"
        assert running.poll() is None
        assert Store().find("debian").kernel.exists()
    output, errors = running.communicate(timeout=20)
    assert (running.returncode, errors) == (0, "")
    assert "is here already" in output or "is deleted" in output


def _version_with_controls(served: Mirror) -> None:
    change(served, "busybox-static", Version="1\x1b[31m\x9b2J")
    served.publish(fields={"Version": "13\x1b]0;title\x07"})


def _reason_with_controls(served: Mirror) -> None:
    served.faults.reason = "\x1b[2J\x9b\x08" * 1000
    served.faults.status["InRelease"] = 500


def _name_with_controls(served: Mirror) -> None:
    change(served, "busybox-static", Filename=f"pool/{NAME}")
    served.publish()


def _field_with_controls(served: Mirror) -> None:
    served.publish(fields={"Suite": "x", "Codename": "\x1b[2J\u202e"})


NAME = "busybox%1b[2J%0a[%2fred].deb"
CONTROLS: dict[str, tuple[Callable[[Mirror], None], str]] = {
    "a version": (_version_with_controls, r"busybox-static 1\x1b[31m\x9b2J"),
    "a reason": (_reason_with_controls, r"answers 500 \x1b[2J\x9b\x08\x1b"),
    "a file's name": (_name_with_controls, r"busybox\x1b[2J [/red].deb: 0.0 MB"),
    "a field": (_field_with_controls, r"the index of \x1b[2J\u202e for trixie"),
}


@pytest.mark.parametrize("place", CONTROLS)
def test_mirror_cannot_control_the_terminal(place: str, debian_mirror: Mirror) -> None:
    """What a mirror names reaches the user as printable text, on one line, of some length."""
    spoil, shown = CONTROLS[place]
    spoil(debian_mirror)
    output = pull(debian_mirror).output + ringfence_image("list").output
    assert shown in output
    assert all(line.isprintable() and len(line) < 600 for line in output.split("\n")), output


@pytest.mark.parametrize("kind", ["a file", "a directory without permission"])
def test_cache_that_cannot_be_written_is_a_sentence(
    kind: str, debian_mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache directory that cannot be made or written is named, with status 125."""
    place = tmp_path / "place"
    if kind == "a file":
        place.touch()
    else:
        place.mkdir(mode=0o500)
        if os.access(place, os.W_OK):
            pytest.skip("this user may write everywhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    assert_refused(pull(debian_mirror), 125, f"nothing can be stored in {place}/ringfence: ")


def test_disk_that_is_full_leaves_no_half_image(
    debian_mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When room runs out while the image is written, nothing of it is left and the old one is."""
    pull(debian_mirror)
    old = Store().find("debian")
    debian_mirror.add_debian("6.12.0-2")
    debian_mirror.publish()
    store = file_module.store

    def full(path: Path, data: bytes) -> None:
        store(path, data[: len(data) // 2])
        if path.name == "initrd":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock_module, "store", full)
    assert_refused(pull(debian_mirror, "--update"), 125, "there is no room in")
    assert images_of(tmp_path) == {"debian", old.directory.name}
    assert Store().find("debian") == old


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize("limit", [0, 1000, 100_000, 641_000])
def test_no_room_for_the_download_is_a_sentence(limit: int, debian_mirror: Mirror, tmp_path: Path) -> None:
    """A real limit on the size of files ends a pull with a sentence and status 125, wherever it strikes."""
    options = [
        "pull",
        "debian",
        "--mirror",
        debian_mirror.address,
        "--keyring",
        str(debian_mirror.keys.keyring),
    ]
    done = subprocess.run(
        [*COMMAND, *options],
        env={**environment(), "TMPDIR": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert done.returncode == 125, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ringfence: ")
    assert images_of(tmp_path) == set()


def test_interrupted_pull_leaves_no_half_image_and_goes_on(debian_mirror: Mirror, tmp_path: Path) -> None:
    """Ctrl-C in a download leaves no image and no traceback, and the next pull asks for the rest only."""
    file = debian_mirror.package(KERNEL).name
    debian_mirror.faults.stall[file] = 300_000
    options = [
        "pull",
        "debian",
        "--mirror",
        debian_mirror.address,
        "--keyring",
        str(debian_mirror.keys.keyring),
    ]
    pulling = subprocess.Popen(
        [*COMMAND, *options], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert debian_mirror.faults.stalled.wait(20)
    downloads = tmp_path / "cache/ringfence/downloads"
    deadline = time.monotonic() + 20
    while not any(part.stat().st_size > 100_000 for part in downloads.glob("*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pulling.send_signal(signal.SIGINT)
    _, errors = pulling.communicate(timeout=20)
    assert pulling.returncode != 0
    assert "Traceback" not in errors
    assert images_of(tmp_path) == set()
    debian_mirror.faults.stall.clear()
    debian_mirror.requests.clear()
    assert pull(debian_mirror).exit_code == 0
    (start,) = debian_mirror.starts(file)
    assert 100_000 < start <= 300_000


def pull_on_terminal(served: Mirror) -> tuple[int, int]:
    """A pull on a terminal of its own: its process, and our end of the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        served_here = ["--mirror", served.address, "--keyring", str(served.keys.keyring)]
        os.execve(COMMAND[0], [*COMMAND, "pull", "debian", *served_here], environment() | {"TERM": "xterm"})
    return pid, terminal


def rest(terminal: int) -> bytes:
    """What is still shown, to the end."""
    seen = b""
    try:
        while data := os.read(terminal, 4096):
            seen += data
    except OSError:  # how a terminal ends
        pass
    os.close(terminal)
    return seen


def hides_cursor(shown: bytes) -> bool:
    return shown.rfind(b"\x1b[?25l") > shown.rfind(b"\x1b[?25h")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP])
def test_pull_on_a_terminal_leaves_the_cursor(
    number: signal.Signals, debian_mirror: Mirror, tmp_path: Path, impatient: None
) -> None:
    """Whatever signal ends or stops a pull, the cursor is seen, and the next pull goes on from what had come."""
    file = debian_mirror.package(KERNEL).name
    debian_mirror.faults.stall[file] = 300_000
    pid, terminal = pull_on_terminal(debian_mirror)
    shown = b""
    while file.encode()[:12] not in shown:
        shown += os.read(terminal, 4096)
    downloads = tmp_path / "cache/ringfence/downloads"
    while not any(part.stat().st_size > 100_000 for part in downloads.glob("*.part")):
        time.sleep(0.01)
    os.kill(pid, number)
    if number == signal.SIGTSTP:
        # An orphaned group of processes is not stopped by it (POSIX, section 11.1.4), so what was shown has to do.
        assert not hides_cursor(shown)
        os.kill(pid, signal.SIGKILL)
    shown += rest(terminal)
    os.waitpid(pid, 0)
    assert not hides_cursor(shown)
    debian_mirror.faults.stall.clear()
    debian_mirror.requests.clear()
    assert pull(debian_mirror).exit_code == 0
    (start,) = debian_mirror.starts(file)
    assert 100_000 < start <= 300_000


def test_pull_on_a_terminal_shows_a_name_as_it_is(debian_mirror: Mirror, impatient: None) -> None:
    """What a mirror's file is called is neither obeyed by the terminal nor taken for markup."""
    _name_with_controls(debian_mirror)
    pid, terminal = pull_on_terminal(debian_mirror)
    shown = rest(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert rb"busybox\x1b[2J [/red]" in shown and b"\x1b[2J" not in shown, shown


def test_package_shorter_than_signed_is_given_up(debian_mirror: Mirror) -> None:
    """The mirror is asked a few times, and no more."""
    package = debian_mirror.package("busybox-static")
    package.write_bytes(package.read_bytes()[:-100])
    assert_refused(pull(debian_mirror), 125, "breaks off in")
    assert len(debian_mirror.starts(package.name)) < 20


def test_killed_pull_is_swept_away(debian_mirror: Mirror, tmp_path: Path) -> None:
    """What a pull that was killed left behind is gone after the next."""
    place = tmp_path / "cache/ringfence/images/.debian.killed"
    place.mkdir(parents=True)
    (place / "kernel").write_bytes(b"half")
    pull(debian_mirror)
    assert images_of(tmp_path) == {"debian", Store().find("debian").directory.name}


def test_command_archive_quotes_every_word() -> None:
    """The guest's shell gets the words as they were given, whatever is in them."""
    words = ["printf", "%s|", "a b", "$HOME", "'", '"', "\\", "*", "", "é\n", "\udcff"]
    script = read(command_archive(words))["ringfence/command"][1]
    body = script.partition(b"\nstty -echo -opost\n")[2]
    done = subprocess.run(["sh", "-c", body], capture_output=True, check=True)
    assert done.stdout == b"".join(os.fsencode(word) + b"|" for word in words[2:])


def test_command_archive_leaves_a_terminal_alone() -> None:
    """With a person at the console the settings of the terminal stay; and a command needs a name."""
    assert b"stty" not in read(command_archive(["sh"], terminal=True))["ringfence/command"][1]
    with pytest.raises(ValueError, match="at least its name"):
        command_archive([])


def test_joined_archives_start_at_multiples_of_four() -> None:
    """An archive behind one of any length starts where Linux looks for it."""
    second = command_archive(["true"])
    for length in range(8):
        whole = joined(bytes(length), second)
        assert whole.index(b"070701") % 4 == 0
        assert len(whole) % 4 == 0


def boot(image: Image, command: list[str] | None, tmp_path: Path) -> tuple[bytes, int]:
    """Starts the image under the host's QEMU, no part of Ringfence; what the console shows, and the status."""
    emulator = shutil.which("qemu-system-riscv64")
    if emulator is None:
        pytest.skip("qemu-system-riscv64 is not installed")
    initrd = tmp_path / "initrd"
    extra = command_archive(command) if command else b""
    initrd.write_bytes(joined(image.initrd.read_bytes(), extra))
    machine = [
        emulator,
        "-M",
        "virt",
        "-m",
        "128M",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-monitor",
        "none",
    ]
    options = [
        "-kernel",
        str(image.kernel),
        "-initrd",
        str(initrd),
        "-append",
        image.append(command=bool(command)),
    ]
    with subprocess.Popen([*machine, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        timer = threading.Timer(200, running.kill)
        timer.start()
        console = b""
        told = command is not None
        # What comes before the guest has opened its console is lost, so a shell is sent nothing before its prompt.
        while data := os.read(running.stdout.fileno(), 4096):
            console += data
            if not told and b":~# " in console[-64:]:
                running.stdin.write(b"exit\n")
                running.stdin.flush()
                told = True
        timer.cancel()
    return console[console.index(b"\n", console.rindex(b"MEDELEG")) + 1 :], running.returncode


@pytest.mark.network
@pytest.mark.parametrize(
    ("command", "output", "status"),
    [
        (["uname", "-s"], b"Linux\n", 0),
        (["sh", "-c", "printf 'a\\tb\\r\\n'; echo \"it's\" >&2; exit 42"], b"a\tb\r\nit's\n", 42),
        (["nosuch"], b"/ringfence/command: exec: line 3: nosuch: not found\n", 127),
    ],
)
def test_network_image_runs_one_command(
    command: list[str], output: bytes, status: int, debian_image: Image, tmp_path: Path
) -> None:
    """On an independent machine a command's output is all that the console shows, and its status comes out."""
    assert boot(debian_image, command, tmp_path) == (output, status)


@pytest.mark.network
def test_network_image_boots_to_a_shell(debian_image: Image, tmp_path: Path) -> None:
    """On an independent machine the image comes to a shell, and its end is the machine's."""
    console, status = boot(debian_image, None, tmp_path)
    assert status == 0
    assert b"root@ringfence:~# " in console
