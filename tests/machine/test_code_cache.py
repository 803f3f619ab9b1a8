"""The engine's object code in the user's cache directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.machine.engine import code

PROGRAM = """
from ringfence import MiB, virt
m = virt(4 * MiB)
m.memory[0x80000000:0x80000004] = bytes.fromhex("9302d00f")
m.harts[0].pc = 0x80000000
m.engine.run(m.harts[0], 1)
print(hex(m.harts[0]["t0"]))
"""


def run(cache: Path) -> subprocess.CompletedProcess[str]:
    """A threaded machine in a process of its own: `addi t0, zero, 0xfd`, then what is not there."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with one object, which a first machine made."""
    directory = tmp_path_factory.mktemp("cache")
    made = run(directory)
    assert (made.stdout, made.stderr) == ("0xfd\n", "")
    return directory


def stored(cache: Path) -> Path:
    (path,) = (cache / "ringfence" / "code").iterdir()
    return path


def test_object_cache_rebuilds_what_is_damaged(cache: Path) -> None:
    """An object with one bit wrong is made again, silently, and the machine runs."""
    path = stored(cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes((whole[5000] ^ 1,)) + whole[5001:])
    again = run(cache)
    assert (again.stdout, again.stderr) == ("0xfd\n", "")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_object_cache_replaces_what_is_no_file(kind: str, cache: Path) -> None:
    """What lies in an object's place and is no file makes nobody wait, and the object takes its place, silently."""
    path = stored(cache)
    whole = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        (path / "full").mkdir(parents=True)
    again = run(cache)
    assert (again.stdout, again.stderr) == ("0xfd\n", "")
    assert path.read_bytes() == whole


@settings(deadline=None)
@given(data=st.data())
def test_object_cache_trusts_no_damaged_file(cache: Path, data: st.DataObject) -> None:
    """A file that is cut or changed anywhere is not taken for an object."""
    whole = stored(cache).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    bad = cache / "bad.o"
    change = data.draw(st.integers(0, 255))
    bad.write_bytes(whole[:at] if change == 0 else whole[:at] + bytes((whole[at] ^ change,)) + whole[at + 1 :])
    assert code._read(bad) is None


def test_object_cache_is_not_needed(tmp_path: Path) -> None:
    """Where the cache directory cannot be, the machine runs all the same, and says nothing."""
    (tmp_path / "ringfence").write_text("in the way")
    ran = run(tmp_path)
    assert (ran.stdout, ran.stderr) == ("0xfd\n", "")
