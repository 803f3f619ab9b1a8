"""What an installation is told."""

from __future__ import annotations

import os
import subprocess
import sys

TOLD = """
import sys
from datetime import UTC, datetime
from ringfence.guest.archive import Release
from ringfence.guest.deb import Package
from ringfence.guest.installation import CORE, Selection, Settings, _files
packages = tuple(Package(name, "1", "riscv64", name, 1, "") for name in sorted({*CORE, "e2fsprogs", "bc", "sed"}))
names = frozenset(package.name for package in packages)
release = Release("http://mirror.invalid", "trixie", "trixie", "13", datetime(2026, 1, 1, tzinfo=UTC), True, {})
selection = Selection(packages, names - {"bc"}, frozenset({"base-files", "e2fsprogs"}), frozenset({"bc", "sed"}))
sys.stdout.buffer.write(bytes(_files(selection, Settings((sys.argv[1],), 1 << 30), release)))
"""


def told(seed: str, package: str = "bc") -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", TOLD, package], env=environment, capture_output=True, check=True
    ).stdout


def test_the_same_is_told_by_every_process() -> None:
    """Byte for byte, whatever order its sets have; and another wish is another file system."""
    assert told("1") == told("2") == told("3")
    assert told("1") != told("1", "sed")
