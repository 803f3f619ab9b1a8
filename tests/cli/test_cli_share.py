"""Shares as a user asks for them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from test_cli import ringfence, sentence

from ringfence import Image
from ringfence.cli.share import check_image, open_shares
from ringfence.errors import MachineError


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nothing:/mnt", "the directory nothing cannot be shared: No such file or directory"),
        ("file:/mnt", "the directory file cannot be shared: Not a directory"),
        ("out:/mnt", "the directory out cannot be shared: No such file or directory"),
        ("here", "'here' is no share, as ./src:/mnt/src or ./src:/mnt/src:ro is"),
        ("here:ro", "'here:ro' is no share, as"),
        ("here:mnt", "'here:mnt' is no share, as"),
        (":/mnt", "':/mnt' is no share, as"),
        ("here:", "'here:' is no share, as"),
        ("here:/a\nb", "is no share, as"),
        ("here:/", "no share can be at /: it is below /, and has 255 bytes at most"),
        ("here:/mnt/..", "no share can be at /"),
        ("here:/" + "é" * 128, "and has 255 bytes at most"),
    ],
)
def test_a_share_that_cannot_be_is_refused_in_a_sentence(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "out").symlink_to("/nothing/there")
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack, pytest.raises(MachineError) as caught:
        open_shares([text], stack)
    assert why in str(caught.value)


def test_shares_are_what_was_said(tmp_path: Path) -> None:
    """Paths relative to the file that says so, colons in the directory's name, paths made plain; each place once."""
    for name in ("here", "a:b", "last:ro"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        texts = ["here:/mnt//x/", f"{tmp_path}/a:b:/y:ro", "last:ro:/z"]
        shares = open_shares(texts, stack, tmp_path)
        assert [(s.tag, s.directory.readonly) for s in shares] == [(b"/mnt/x", False), (b"/y", True), (b"/z", False)]
        with pytest.raises(MachineError, match="two shares are at /mnt/x"):
            open_shares(["here:/mnt/x", "here:/mnt/./x:ro"], stack, tmp_path)


def test_run_says_what_is_wrong_with_a_share(tmp_path: Path) -> None:
    """With status 2, and before anything runs."""
    found = ringfence("run", "--share", f"{tmp_path}/nothing:/mnt")
    assert found.returncode == 2 and not found.stdout
    assert sentence(found) == f"the directory {tmp_path}/nothing cannot be shared: No such file or directory"
    found = ringfence("run", *["--share", f"{tmp_path}:/mnt"] * 2)
    assert found.returncode == 2 and sentence(found) == "two shares are at /mnt"
    many = [argument for n in range(9) for argument in ("--share", f"{tmp_path}:/mnt{n}")]
    found = ringfence("run", *many)
    assert found.returncode == 2 and "at most 8 disks, network devices and shares, not 9" in sentence(found)


def test_up_says_which_guests_share_is_wrong(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[guests.a]\nimage = "corral"\nmemory = "64M"\nshares = ["./nothing:/mnt"]\n')
    found = ringfence("up", str(site))
    assert found.returncode == 2
    assert sentence(found) == f"guest a: the directory {tmp_path}/nothing cannot be shared: No such file or directory"


def test_run_and_up_give_guests_their_shares(debian: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in the guest works on a directory here; in a site a guest on a guest does, relative to the file."""
    if b"mount -t 9p" not in debian.initrd.read_bytes():
        pytest.skip("the image of this host is of an earlier Ringfence: `ringfence image pull debian --update`")
    (tmp_path / "ringfence").symlink_to(debian.directory.parents[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "in").write_text("from here\n")
    script = "cat /mnt/src/in; echo there >/mnt/src/out; grep -c ' 9p .*cache=' /proc/mounts"
    for append, cached in (("", b"0\n"), ("share.cache=mmap", b"1\n")):
        options = ("--share", f"{tmp_path}/src:/mnt/src", "--append", append)
        found = ringfence("run", "debian", *options, "--", "sh", "-c", f"{script}; true")
        assert (found.returncode, found.stdout, found.stderr) == (0, b"from here\n" + cached, b"")
    assert (tmp_path / "src" / "out").read_text() == "there\n"
    (tmp_path / "secret").write_text("not to be seen\n")
    (tmp_path / "src" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "src" / "up").symlink_to("../secret")
    site = tmp_path / "site.toml"
    site.write_text(
        '[guests.outer.guests.inner]\nimage = "debian"\nmemory = "128M"\n'
        'shares = ["./src:/mnt/src:ro"]\ncommand = ["sh", "-c", "cd /mnt/src; cat out; cat link up; >no"]\n'
    )
    found = ringfence("up", str(site))
    assert b"outer/inner: there\n" in found.stdout and b"Read-only file system" in found.stdout
    for link in (b"link", b"up"):  # which lead out of the share
        assert b"can't open '%s': No such file or directory" % link in found.stdout
    assert b"not to be seen" not in found.stdout
    assert not (tmp_path / "src" / "no").exists()


def test_an_image_that_mounts_nothing_is_told_of(debian: Image, tmp_path: Path) -> None:
    """Where there is something to mount: once, with what to do."""
    old = Image(tmp_path, debian.lock)
    old.initrd.write_bytes(b"an init of earlier days")
    told: list[str] = []
    for image, shares in ((old, []), (None, [object()]), (debian, []), (old, [object()])):
        check_image(image, shares, told.append)
    assert told == [
        "ringfence: the image debian is too old to mount shares by itself: "
        "`ringfence image pull debian --update` makes it again"
    ]
