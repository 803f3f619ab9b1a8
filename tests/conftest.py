"""Fixtures for guest images: an archive on the loopback device, the network's, and Debian's image."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import Installed, install
from loopback_archive import Keys, Mirror, make_keys

from ringfence.errors import NoSuchImage, RingfenceError
from ringfence.guest import mirror
from ringfence.guest.archive import Release, find_release
from ringfence.guest.catalog import system
from ringfence.guest.image import Image, Store


@pytest.fixture
def impatient() -> Iterator[None]:
    """Fails a test that hangs."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def keys() -> Iterator[Keys]:
    """The archive's key."""
    yield from make_keys("archive")


@pytest.fixture(scope="session")
def stranger() -> Iterator[Keys]:
    """A key that nobody trusts."""
    yield from make_keys("stranger")


@pytest.fixture
def empty_mirror(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A web server with nothing in it, and none of this host's settings."""
    for name in ("RINGFENCE_MIRROR", "RINGFENCE_KEYRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    served = Mirror(tmp_path / "mirror", keys)
    yield served
    served.close()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Mirror:
    """The archive that `debian_mirror` starts from, which nobody changes."""
    served = Mirror(tmp_path_factory.mktemp("archive"), keys)
    served.add_debian()
    served.publish()
    served.close()
    return served


@pytest.fixture
def debian_mirror(empty_mirror: Mirror, published: Mirror) -> Mirror:
    """A signed archive with all that the image `debian` needs."""
    shutil.copytree(published.root, empty_mirror.root)
    empty_mirror.debs.update(published.debs)
    return empty_mirror


@pytest.fixture(scope="session")
def network_release() -> Release:
    """The suite of the image `debian` on the mirror that this host is configured with; skips where there is none."""
    try:
        return find_release(mirror.mirrors(), system("debian").suite, mirror.keyring())
    except RingfenceError as error:
        pytest.skip(f"no package mirror: {error}")


@pytest.fixture(scope="session")
def debian_image(network_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image `debian`, pulled from the network into a directory of the test's own."""
    store = Store(tmp_path_factory.mktemp("cache"))
    return store.pull("debian", [network_release.mirror], mirror.keyring()).image


@pytest.fixture(scope="session")
def debian(request: pytest.FixtureRequest) -> Image:
    """The image of this host; or one from the network; or the test is skipped, for the reason that is given."""
    try:
        return Store().find("debian")
    except NoSuchImage:
        image = request.getfixturevalue("debian_image")
        assert isinstance(image, Image)
        return image


@pytest.fixture(scope="session")
def installed() -> Installed:
    """A Debian on a disk, with the tools of the long runs; made where it is not here, which takes minutes."""
    return install()
