"""Files are small, and named for what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ringfence", "tests", "benchmarks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LINES = 700
MEDIAN = 300
NAMELESS = ("utils", "util", "common", "helpers", "helper", "manager", "managers", "misc")


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_small(path: Path) -> None:
    """No Python file has more lines than can be read at a sitting."""
    assert lines(path) <= LINES


def test_files_are_small_as_a_rule() -> None:
    """Half of them are far below the limit."""
    assert len(FILES) > 50
    assert sorted(map(lines, FILES))[len(FILES) // 2] <= MEDIAN


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_has_a_name(path: Path) -> None:
    """No module or directory is named for being a module or a directory."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert not set(parts) & set(NAMELESS)
    assert not {word for part in parts for word in part.split("_")} & set(NAMELESS)
