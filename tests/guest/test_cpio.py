"""The cpio writer, against the format's text and against a reader of its own."""

import stat
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guest import cpio


def read(data: bytes) -> dict[str, tuple[dict[str, int], bytes]]:
    """Path to header fields and contents of each entry of an archive, which has to end with its trailer."""
    names = [
        "ino",
        "mode",
        "uid",
        "gid",
        "nlink",
        "mtime",
        "filesize",
        "devmajor",
        "devminor",
        "rdevmajor",
        "rdevminor",
        "namesize",
        "check",
    ]
    entries: dict[str, tuple[dict[str, int], bytes]] = {}
    place = 0
    while True:
        assert place % 4 == 0
        assert data[place : place + 6] == b"070701"
        values = [int(data[place + 6 + 8 * i : place + 14 + 8 * i], 16) for i in range(13)]
        fields = dict(zip(names, values, strict=True))
        end = place + 110 + fields["namesize"]
        assert data[end - 1] == 0
        name = data[place + 110 : end - 1].decode()
        start = end + -end % 4
        place = start + fields["filesize"] + -fields["filesize"] % 4
        if name == "TRAILER!!!":
            assert place == len(data)
            return entries
        entries[name] = (fields, data[start : start + fields["filesize"]])


def test_archive_holds_what_was_added() -> None:
    """Files, links, directories and device nodes come back with mode, contents and device number."""
    archive = cpio.Archive()
    archive.file("/bin/tool", b"12345", 0o755)
    archive.symlink("bin/link", "tool")
    archive.directory("tmp", 0o1777)
    archive.character_device("dev/console", 5, 1)
    archive.block_device("dev/vda", 254, 0)
    entries = read(bytes(archive))
    assert list(entries) == ["bin", "bin/link", "bin/tool", "dev", "dev/console", "dev/vda", "tmp"]
    assert entries["bin/tool"][0]["mode"] == stat.S_IFREG | 0o755
    assert entries["bin/tool"][1] == b"12345"
    assert entries["bin/link"][0]["mode"] == stat.S_IFLNK | 0o777
    assert entries["bin/link"][1] == b"tool"
    assert entries["tmp"][0]["mode"] == stat.S_IFDIR | 0o1777
    console = entries["dev/console"][0]
    assert (stat.S_ISCHR(console["mode"]), console["rdevmajor"], console["rdevminor"]) == (True, 5, 1)
    assert stat.S_ISBLK(entries["dev/vda"][0]["mode"])


def test_archive_bytes_do_not_depend_on_order() -> None:
    """The same files give the same bytes in whatever order they were added, owned by root at the epoch."""
    paths = [f"d{i % 3}/e{i % 2}/f{i}" for i in range(12)]
    results = set()
    for seed in range(4):
        archive = cpio.Archive()
        for path in Random(seed).sample(paths, len(paths)):
            archive.file(path, path.encode())
        results.add(bytes(archive))
    assert len(results) == 1
    for fields, _ in read(results.pop()).values():
        assert fields["uid"] == fields["gid"] == fields["mtime"] == 0


segment = st.text("ab-.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))


@given(st.dictionaries(st.lists(segment, min_size=1, max_size=3).map("/".join), st.binary(max_size=9)))
def test_archive_names_parents_first(files: dict[str, bytes]) -> None:
    """Every entry stands behind the directory that it is in, whatever the names are."""
    archive = cpio.Archive()
    added = {}
    for path, data in files.items():
        try:
            archive.file(path, data)
        except ValueError:
            continue
        added[path] = data
    entries = read(bytes(archive))
    seen: set[str] = {""}
    for name in entries:
        assert name.rpartition("/")[0] in seen
        seen.add(name)
    assert {name: entries[name][1] for name in added} == added


@pytest.mark.parametrize("path", ["", "/", "a//b", "a/../b", ".", "a\0b", "TRAILER!!!"])
def test_archive_refuses_bad_paths(path: str) -> None:
    """A path that Linux would not unpack to the place it names is refused."""
    with pytest.raises(ValueError, match="is not a path"):
        cpio.Archive().file(path, b"")


def test_archive_refuses_two_files_at_one_path() -> None:
    """A path holds one thing: neither a second file nor a directory's contents go where a file is."""
    archive = cpio.Archive()
    archive.file("a", b"")
    with pytest.raises(ValueError, match="already"):
        archive.file("/a", b"")
    with pytest.raises(ValueError, match="no directory"):
        archive.file("a/b", b"")
    with pytest.raises(ValueError, match="no directory"):
        archive.directory("a")
    assert "a" in archive
    assert "a/b" not in archive


def test_archive_is_read_by_cpio(tmp_path: Path) -> None:
    """The cpio program of the host lists the same names."""
    import shutil
    import subprocess

    program = shutil.which("bsdtar") or shutil.which("cpio")
    if program is None:
        pytest.skip("neither cpio nor bsdtar is installed")
    archive = cpio.Archive()
    archive.file("etc/motd", b"hello\n")
    archive.symlink("etc/link", "motd")
    path = tmp_path / "archive"
    path.write_bytes(bytes(archive))
    options = ["-tf", str(path)] if program.endswith("bsdtar") else ["-t", "-F", str(path)]
    done = subprocess.run([program, *options], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["etc", "etc/link", "etc/motd"]
