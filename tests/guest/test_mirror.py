"""Which mirror and which keyring are used."""

import os
from pathlib import Path

import pytest

from ringfence.errors import BadAddress, ImageError, MirrorError
from ringfence.guest import mirror

LIST = """
# deb http://commented.invalid/debian trixie main
deb-src http://source.invalid/debian trixie main
deb [arch=amd64 signed-by=/x.gpg] http://first.invalid/debian/ bookworm main contrib
deb http://first.invalid/debian bookworm-updates main
deb http://security.invalid/debian-security bookworm-security main
deb http://tool.invalid/apt stable tool
deb cdrom:[Debian]/ bookworm main
"""
SOURCES = """Types: deb deb-src
# a remark
URIs: http://security.invalid/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://disabled.invalid/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://second.invalid/debian
 http://third.invalid/debian
Suites: bookworm
Components: main
 contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 URIs: http://key.invalid/
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of apt's with sources in both styles, and no other setting."""
    monkeypatch.delenv("RINGFENCE_MIRROR", raising=False)
    monkeypatch.delenv("RINGFENCE_KEYRING", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    directory = tmp_path / "apt"
    (directory / "sources.list.d").mkdir(parents=True)
    (directory / "sources.list").write_text(LIST)
    (directory / "sources.list.d" / "debian.sources").write_text(SOURCES)
    (directory / "sources.list.d" / "old.sources.save").write_text(SOURCES.replace("second", "saved"))
    return directory


def configure(text: str) -> None:
    path = mirror.config_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_mirror_of_apt_is_found_in_both_styles(apt: Path) -> None:
    """Enabled binary sources of component main count, in apt's order; the security archive does not."""
    expected = ["http://first.invalid/debian", "https://second.invalid/debian", "http://third.invalid/debian"]
    assert mirror.mirrors(apt=apt) == expected


def test_mirror_settings_have_an_order(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument counts before the environment, that before the configuration file, that before apt."""
    configure('mirror = "http://config.invalid/debian/"')
    assert mirror.mirrors(apt=apt) == ["http://config.invalid/debian"]
    monkeypatch.setenv("RINGFENCE_MIRROR", "http://environment.invalid/debian")
    assert mirror.mirrors(apt=apt) == ["http://environment.invalid/debian"]
    assert mirror.mirrors("https://argument.invalid/", apt=apt) == ["https://argument.invalid"]


def test_mirror_unknown_says_how_to_name_one(apt: Path) -> None:
    """On a host without apt's sources the sentence says the three places to name a mirror in."""
    with pytest.raises(MirrorError, match=r"--mirror, in RINGFENCE_MIRROR, or as `mirror` in .*config\.toml"):
        mirror.mirrors(apt=apt / "nowhere")


@pytest.mark.parametrize(
    "address",
    [
        "ftp://a.invalid/debian",
        "a.invalid/debian",
        "file:///debian",
        "http:///debian",
        "http://[bad",
        "http://../",
        "http://a.invalid:٣/",
        f"http://{'a' * 300}.com/",
        "",
    ],
)
def test_mirror_that_is_no_web_address_is_a_usage_error(address: str, apt: Path) -> None:
    """Anything but an http or https address is refused before the network is asked, with status 2."""
    with pytest.raises(BadAddress, match="with a host behind it"):
        mirror.mirrors(address, apt=apt)
    assert BadAddress.status == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mirror = ", "cannot be read"),
        ("mirror = 7", "must be a text"),
        ("\x00", "cannot be read"),
        ('mirror = "http://a.invalid"\nmirorr = "http://b.invalid"', "'mirorr' in .* is no setting"),
        ("[keyring]\na = 1", "must be a text"),
    ],
)
def test_configuration_that_is_wrong_is_a_sentence(text: str, sentence: str, apt: Path) -> None:
    """A configuration file that cannot be understood is named, and so is a setting that there is not."""
    configure(text)
    with pytest.raises(ImageError, match=sentence) as refused:
        mirror.mirrors(apt=apt)
        mirror.keyring()
    assert str(mirror.config_file()) in str(refused.value)


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_configuration_that_is_no_file_is_a_sentence(kind: str, apt: Path, impatient: None) -> None:
    """What is no file is not waited for."""
    path = mirror.config_file()
    path.parent.mkdir(parents=True)
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(ImageError, match=r"config\.toml cannot be read: [^\[]*$"):
        mirror.mirrors(apt=apt)


def test_keyring_settings_have_an_order(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyring comes from the argument, the environment, the configuration or the host, and has to exist."""
    names = ["argument", "environment", "configuration", "host"]
    paths = {name: tmp_path / name for name in names}
    for path in paths.values():
        path.touch()
    monkeypatch.setattr(mirror, "KEYRINGS", (tmp_path / "absent", paths["host"]))
    assert mirror.keyring() == paths["host"]
    configure(f'keyring = "{paths["configuration"]}"')
    assert mirror.keyring() == paths["configuration"]
    monkeypatch.setenv("RINGFENCE_KEYRING", str(paths["environment"]))
    assert mirror.keyring() == paths["environment"]
    assert mirror.keyring(str(paths["argument"])) == paths["argument"]
    for absent in (str(tmp_path / "absent"), "~nosuchuser/x", ""):
        with pytest.raises(MirrorError, match=f"no keyring '{absent}'"):
            mirror.keyring(absent)
    monkeypatch.delenv("RINGFENCE_KEYRING")
    mirror.config_file().write_text('keyring = "~nosuchuser/y"')
    with pytest.raises(MirrorError, match="no keyring '~nosuchuser/y'"):
        mirror.keyring()


def test_keyring_missing_names_the_package(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Debian's keys on the host the sentence says which package has them."""
    monkeypatch.setattr(mirror, "KEYRINGS", ())
    with pytest.raises(MirrorError, match="install the package debian-archive-keyring"):
        mirror.keyring()
