"""From a mirror to a package: whose word is believed, and what a bad network may do."""

import os
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback_archive import RELEASE, Keys, Mirror

from ringfence.errors import ImageError, MirrorError
from ringfence.guest import download, mirror, pace, signature
from ringfence.guest.archive import Index, Release, find_release
from ringfence.guest.deb import Package

KERNEL = f"linux-image-{RELEASE}"


def release_of(served: Mirror) -> Release:
    return find_release([served.address], "trixie", served.keys.keyring)


def index_of(served: Mirror, directory: Path) -> Index:
    directory.mkdir(exist_ok=True)
    return Index(release_of(served), "main", "riscv64", directory)


def fetch(served: Mirror, directory: Path) -> Path:
    index = index_of(served, directory)
    return index.fetch(index.kernel("linux-image-riscv64"))


def in_days(days: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(days=days))


def test_archive_resolves_the_kernel_package(debian_mirror: Mirror, tmp_path: Path) -> None:
    """The package that only depends on the current kernel leads to that kernel's package, file and all."""
    index = index_of(debian_mirror, tmp_path / "downloads")
    package = index.kernel("linux-image-riscv64")
    assert (package.name, package.version) == (KERNEL, "6.12.0-1")
    assert index.fetch(package).read_bytes() == debian_mirror.package(KERNEL).read_bytes()
    assert index.kernel(KERNEL) == package


def test_archive_prefers_by_hash(debian_mirror: Mirror, tmp_path: Path) -> None:
    """Where the release offers it, the index of packages is asked for by its checksum."""
    index_of(debian_mirror, tmp_path / "downloads")
    assert [path for path, _ in debian_mirror.requests if "/by-hash/SHA256/" in path]


def test_archive_falls_back_to_the_plain_name(debian_mirror: Mirror, tmp_path: Path) -> None:
    """Without by-hash the index of packages is asked for by its name."""
    debian_mirror.publish(fields={"Acquire-By-Hash": ""})
    held = next((debian_mirror.root / "dists").rglob("by-hash/SHA256/*"))
    shutil.copy(held, held.parents[2] / "Packages.xz")
    assert index_of(debian_mirror, tmp_path / "downloads").package("busybox-static")


def test_archive_says_which_package_is_missing(debian_mirror: Mirror, tmp_path: Path) -> None:
    """A package, or a version of it, that the index does not list is named in the refusal."""
    index = index_of(debian_mirror, tmp_path / "downloads")
    with pytest.raises(MirrorError, match="no package nothing in trixie"):
        index.package("nothing")
    with pytest.raises(MirrorError, match="no package busybox-static 9 in trixie"):
        index.package("busybox-static", "9")


def test_release_tries_mirrors_in_turn(debian_mirror: Mirror) -> None:
    """Of several addresses the first that has the suite is used."""
    other = debian_mirror.address.replace("/debian", "/other")
    release = find_release([other, debian_mirror.address], "trixie", debian_mirror.keys.keyring)
    assert release.mirror == debian_mirror.address
    with pytest.raises(MirrorError, match="has no suite trixie: name a Debian mirror with --mirror"):
        find_release([other], "trixie", debian_mirror.keys.keyring)


def test_release_signed_by_a_stranger_is_refused(debian_mirror: Mirror, stranger: Keys) -> None:
    """An index that a key outside the keyring signed is not believed."""
    debian_mirror.publish(keys=stranger)
    with pytest.raises(MirrorError, match="not signed by a key in .*: the mirror is not to be trusted"):
        release_of(debian_mirror)


def _reversed_checksum(text: str) -> str:
    line = next(line for line in text.splitlines() if line.endswith("Packages.xz"))
    checksum = line.split()[0]
    return text.replace(checksum, checksum[::-1])


LIES: dict[str, Callable[[str], str]] = {
    "another checksum": _reversed_checksum,
    "a field more": lambda text: text.replace("Suite:", "Valid-Until: never\nSuite:"),
    "text in front": lambda text: "Codename: trixie\n" + text,
    "text behind": lambda text: text + "Codename: trixie\n",
    "two messages": lambda text: text + text,
    "text between": lambda text: text.replace(
        "-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP SIGNATURE-----x\n-----BEGIN PGP SIGNATURE-----"
    ),
    "no signature": lambda text: text.partition("-----BEGIN PGP SIGNATURE")[0],
    "an empty signature": lambda text: (
        text.partition("-----BEGIN PGP SIGNATURE")[0] + "-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n"
    ),
    "only the text": lambda text: text.partition("\n\n")[2].partition("-----BEGIN PGP SIGNATURE")[0],
    "nothing": lambda text: "",
    "a web page": lambda text: "<html>please log in</html>",
}


@pytest.mark.parametrize("verifier", sorted(signature.VERIFIERS))
@pytest.mark.parametrize("lie", LIES)
def test_release_that_was_changed_is_refused(
    lie: str, verifier: str, debian_mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is changed in, cut from or put around the signed text, no verifier's word lets it pass."""
    if shutil.which(verifier) is None:
        pytest.skip(f"{verifier} is not installed")
    monkeypatch.setattr(signature, "VERIFIERS", {verifier: signature.VERIFIERS[verifier]})
    path = debian_mirror.root / "dists/trixie/InRelease"
    text = path.read_text()
    assert release_of(debian_mirror).codename == "trixie"
    path.write_text(LIES[lie](text))
    assert path.read_text() != text
    with pytest.raises(MirrorError, match="is not a signed index|is not signed by a key"):
        release_of(debian_mirror)


def test_release_in_another_form_is_the_same(debian_mirror: Mirror) -> None:
    """Line ends and blanks that OpenPGP does not sign make no difference."""
    path = debian_mirror.root / "dists/trixie/InRelease"
    text = path.read_text()
    expected = release_of(debian_mirror)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert release_of(debian_mirror) == expected
    path.write_text(text.replace("Version: 13.0\n", "Version: 13.0  \t\n"))
    assert release_of(debian_mirror) == expected


def test_release_of_another_suite_is_refused(debian_mirror: Mirror) -> None:
    """A mirror cannot pass one suite's signed index off as another's."""
    debian_mirror.publish(suite="bullseye")
    with pytest.raises(MirrorError, match="sends the index of bullseye for trixie"):
        release_of(debian_mirror)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"Valid-Until": in_days(-1)}, "expired on .*: try another mirror"),
        ({"Date": in_days(3)}, "is this host's clock right"),
        ({"Date": ""}, "cannot be read"),
        ({"Date": "yesterday"}, "cannot be read"),
    ],
)
def test_release_out_of_date_is_refused(fields: dict[str, str], sentence: str, debian_mirror: Mirror) -> None:
    """A signed index whose time is over, to come or missing is refused."""
    debian_mirror.publish(fields=fields)
    with pytest.raises(MirrorError, match=sentence):
        release_of(debian_mirror)


def test_release_still_valid_is_accepted(debian_mirror: Mirror) -> None:
    """A date of expiry that lies ahead is no obstacle."""
    debian_mirror.publish(fields={"Valid-Until": in_days(1)})
    assert release_of(debian_mirror).codename == "trixie"


def test_release_without_a_verifier_names_the_package(debian_mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host that cannot check signatures nothing is believed, and the sentence says what to install."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MirrorError, match="install the package gpgv"):
        release_of(debian_mirror)


def test_index_that_is_not_the_signed_one_is_refused(debian_mirror: Mirror, tmp_path: Path) -> None:
    """An index of packages whose checksum the release does not have is refused and not kept."""
    held = next((debian_mirror.root / "dists").rglob("by-hash/SHA256/*"))
    data = bytearray(held.read_bytes())
    data[len(data) // 2] ^= 1
    held.write_bytes(data)
    with pytest.raises(MirrorError, match="is not the one the archive signed"):
        index_of(debian_mirror, tmp_path / "downloads")
    assert not any((tmp_path / "downloads").iterdir())


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_package_that_is_not_the_signed_one_is_refused(change: str, debian_mirror: Mirror, tmp_path: Path) -> None:
    """A package that was changed in any way never comes into place."""
    path = debian_mirror.package(KERNEL)
    data = path.read_bytes()
    # What follows the signed length is never read, so a longer file has to differ before its end.
    changed = {"longer": b"x" + data, "shorter": data[:-1], "other": data[:-1] + bytes([data[-1] ^ 1])}
    path.write_bytes(changed[change])
    with pytest.raises(MirrorError, match="is not the one the archive signed|breaks off"):
        fetch(debian_mirror, tmp_path / "downloads")
    names = [found.name for found in (tmp_path / "downloads").iterdir()]
    assert len([name for name in names if not name.endswith(".part")]) == 1


def test_download_goes_on_where_the_connection_broke(debian_mirror: Mirror, tmp_path: Path) -> None:
    """Broken connections are taken up where they ended, within one call."""
    path = debian_mirror.package(KERNEL)
    debian_mirror.faults.cut[path.name] = [100_000, 0, 50_000]
    assert fetch(debian_mirror, tmp_path / "downloads").read_bytes() == path.read_bytes()
    assert debian_mirror.starts(path.name) == [0, 100_000, 100_000, 150_000]


def test_download_goes_on_in_a_later_call(debian_mirror: Mirror, tmp_path: Path) -> None:
    """A mirror that keeps breaking off is given up with a sentence, and the next call asks only for the rest."""
    path = debian_mirror.package(KERNEL)
    debian_mirror.faults.cut[path.name] = [70_000, *[0] * 20]
    with pytest.raises(MirrorError, match="breaks off in .*: try again later"):
        fetch(debian_mirror, tmp_path / "downloads")
    debian_mirror.faults.cut.clear()
    debian_mirror.requests.clear()
    assert fetch(debian_mirror, tmp_path / "downloads").read_bytes() == path.read_bytes()
    assert debian_mirror.starts(path.name) == [70_000]


def test_download_works_without_ranges(debian_mirror: Mirror, tmp_path: Path) -> None:
    """A server that cannot send parts sends the whole again."""
    path = debian_mirror.package(KERNEL)
    debian_mirror.faults.ranges = False
    debian_mirror.faults.cut[path.name] = [100_000]
    assert fetch(debian_mirror, tmp_path / "downloads").read_bytes() == path.read_bytes()


def _part(index: Index, package: Package, directory: Path, data: bytes) -> Path:
    part = directory / f"{package.sha256}.part"
    part.write_bytes(data)
    assert index.fetch(package).read_bytes()
    return part


@pytest.mark.parametrize("kind", ["spoilt", "complete", "too long", "empty"])
def test_download_survives_any_part(kind: str, debian_mirror: Mirror, tmp_path: Path) -> None:
    """Whatever a part holds that an earlier call left, the file comes out right and the part is gone."""
    index = index_of(debian_mirror, tmp_path / "downloads")
    package = index.kernel("linux-image-riscv64")
    data = debian_mirror.package(KERNEL).read_bytes()
    parts = {"spoilt": bytes(90_000), "complete": data, "too long": data + b"x", "empty": b""}
    assert not _part(index, package, tmp_path / "downloads", parts[kind]).exists()
    assert len(debian_mirror.starts(".deb")) == {"spoilt": 2, "complete": 0}.get(kind, 1)


@pytest.mark.parametrize("end", ["", ".part"])
@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_download_replaces_what_is_no_file(
    kind: str, end: str, debian_mirror: Mirror, tmp_path: Path, impatient: None
) -> None:
    """What lies in a download's place and is no file makes nobody wait, and gives way."""
    index = index_of(debian_mirror, tmp_path / "downloads")
    package = index.kernel("linux-image-riscv64")
    path = tmp_path / "downloads" / (package.sha256 + end)
    os.mkfifo(path) if kind == "fifo" else (path / "full").mkdir(parents=True)
    assert index.fetch(package).read_bytes() == debian_mirror.package(KERNEL).read_bytes()


def test_download_reports_progress(debian_mirror: Mirror, tmp_path: Path) -> None:
    """Progress starts with what is there, never goes back, and ends with the whole."""
    seen: list[tuple[str, int, int]] = []
    (tmp_path / "downloads").mkdir()
    release = release_of(debian_mirror)
    index = Index(release, "main", "riscv64", tmp_path / "downloads", lambda *call: seen.append(call))
    package = index.package("busybox-static")
    index.fetch(package)
    assert list(dict.fromkeys(name for name, _, _ in seen)) == ["Packages", Path(package.filename).name]
    done = [now for name, now, _ in seen if name != "Packages"]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, package.size)


@pytest.mark.parametrize("status", [403, 500, 416])
def test_download_refused_is_a_sentence(status: int, debian_mirror: Mirror, tmp_path: Path) -> None:
    """A server's refusal is said with its number, or as a break, and never ends in a traceback."""
    debian_mirror.faults.status[debian_mirror.package(KERNEL).name] = status
    with pytest.raises(MirrorError, match=f"answers {status}|breaks off"):
        fetch(debian_mirror, tmp_path / "downloads")


def test_download_missing_is_a_sentence(debian_mirror: Mirror, tmp_path: Path) -> None:
    """A package that the mirror lists and has not is named."""
    debian_mirror.package(KERNEL).unlink()
    with pytest.raises(MirrorError, match=f"does not have /debian/pool/{KERNEL[:11]}"):
        fetch(debian_mirror, tmp_path / "downloads")


def test_mirror_that_is_not_there_is_a_sentence(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nobody listens, and a name that nobody has, are said to be unreachable."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/debian"
        with pytest.raises(MirrorError, match="cannot be reached: Connection refused"):
            find_release([address], "trixie", keys.keyring)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + bytes(9_000_000),
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_mirror_that_speaks_nonsense_is_a_sentence(answer: bytes, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a server sends in place of an index, it is refused as the mirror's fault."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                try:
                    connection.sendall(answer)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(MirrorError, match="127.0.0.1"):
            find_release([f"http://127.0.0.1:{server.getsockname()[1]}"], "trixie", keys.keyring)


def test_mirror_that_says_nothing_is_given_up(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and then stays silent does not hold the user for ever."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(MirrorError, match="broke off"),
    ):
        find_release([f"http://127.0.0.1:{server.getsockname()[1]}"], "trixie", keys.keyring)


DRIPS = {
    "a header": b"HTTP/1.1 200 OK\r\nX: ",
    "an index": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "a redirection": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 1000000\r\n\r\n",
}


@pytest.mark.parametrize("drip", DRIPS)
def test_mirror_that_drips_is_given_up(drip: str, keys: Keys, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """A server that sends a byte now and then, wherever it does so, does not hold the user for ever."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(pace, "WINDOW", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                try:
                    connection.sendall(DRIPS[drip])
                    while True:
                        connection.sendall(b"x")
                        time.sleep(0.02)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(MirrorError, match="sends InRelease at less than 1000 bytes a second"):
            find_release([f"http://127.0.0.1:{server.getsockname()[1]}"], "trixie", keys.keyring)


def test_download_that_drips_is_given_up_and_goes_on(
    debian_mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """The same for a package, even where each byte comes on a connection of its own; what has come is kept."""
    index = index_of(debian_mirror, tmp_path / "downloads")
    package = index.kernel("linux-image-riscv64")
    monkeypatch.setattr(pace, "WINDOW", 0.3)
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    path = debian_mirror.package(KERNEL)
    debian_mirror.faults.stall[path.name] = 1
    with pytest.raises(MirrorError, match="at less than 1000 bytes a second: try again later"):
        index.fetch(package)
    debian_mirror.faults.stall.clear()
    debian_mirror.requests.clear()
    assert index.fetch(package).read_bytes() == path.read_bytes()
    (start,) = debian_mirror.starts(path.name)
    assert start > 0


def test_mirror_that_pauses_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A while without a byte, as when this process was suspended, does not make a fast mirror a slow one."""
    now = 0.0
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    rate = pace.Pace("too slow")
    for seconds in (1, 1, 10_000, 1, 1):
        now += seconds
        rate.count(40_000)
    now += 60
    rate.count(40_000)
    with pytest.raises(MirrorError, match="too slow"):
        for _ in range(3):
            now += 30
            rate.count(1)


def test_download_without_room_keeps_nothing(debian_mirror: Mirror, tmp_path: Path) -> None:
    """A full disk is said to be full, and what filled it is given back."""
    index = index_of(debian_mirror, tmp_path / "downloads")
    package = index.kernel("linux-image-riscv64")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ImageError, match="there is no room in .*: File too large"):
            index.fetch(package)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list((tmp_path / "downloads").iterdir())) == 1


@pytest.mark.network
def test_network_mirror_is_signed_by_debian(network_release: Release) -> None:
    """The mirror that the host is configured with has the suite, signed by a key of the host's keyring."""
    assert network_release.codename == "trixie"
    assert "main/binary-riscv64/Packages.xz" in network_release.files


@pytest.mark.network
def test_network_mirror_is_refused_by_another_key(network_release: Release, stranger: Keys) -> None:
    """With a keyring that lacks Debian's keys the real archive is refused."""
    with pytest.raises(MirrorError, match="is not signed by a key"):
        find_release([network_release.mirror], "trixie", stranger.keyring)
    assert mirror.keyring().is_file()
