"""Imports point one way through the rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ringfence

ROOT = Path(ringfence.__file__).parent
ROOMS = ("word", "errors", "isa", "machine", "monitor", "guest", "cli")
"""From below to above: a room imports from itself and from those before it."""
ALONE = ("word", "errors")
"""Rooms that stand on nothing at all."""
NATIVE = ("llvmlite", "numpy", "zstandard")
"""Packages that not every host has."""
ENTRANCES = ("", "__main__")
"""The package itself and its command, which are above everything."""


def modules() -> dict[str, Path]:
    """Name below `ringfence` and file of each module."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def checked_only(tree: ast.Module) -> set[ast.AST]:
    """What is there for the type checker and never runs."""
    return {
        below
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for below in ast.walk(statement)
    }


def imports(path: Path, *, running: bool = False) -> Iterator[str]:
    """The full names that a file imports, anywhere in it; `running`: but for those that types alone need."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = checked_only(tree) if running else set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("ringfence.") in MODULES else node.module


def own(name: str) -> str | None:
    """A module of ours, as named in MODULES."""
    return name.removeprefix("ringfence").removeprefix(".") if name.split(".")[0] == "ringfence" else None


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m not in ENTRANCES))
def test_imports_point_one_way(module: str) -> None:
    """A module imports from its own room and from those before it alone, for types too."""
    room = module.split(".")[0]
    assert room in ROOMS, f"{module} is in no room"
    for name in imports(MODULES[module]):
        other = own(name)
        if other is None:
            continue
        assert other != "", f"{module} imports the package itself"
        target = other.split(".")[0]
        assert ROOMS.index(target) <= ROOMS.index(room), f"{module} imports {name}"
        assert room not in ALONE or target == room, f"{module} imports {name}"


def test_llvm_is_imported_in_one_file() -> None:
    """Only the engine's file for it imports llvmlite's binding."""
    users = {m for m, path in MODULES.items() if any(n.split(".")[0] == "llvmlite" for n in imports(path))}
    assert users == {"machine.engine.llvm"}


def reached(start: str) -> set[str]:
    """The modules that Python loads with one, itself and packages included, and what they import from outside."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        if module in MODULES:
            waiting += [".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 1)]
            for name in heads(MODULES[module]):
                other = own(name)
                waiting.append(name if other is None else other)
    return found


def heads(path: Path) -> Iterator[str]:
    """What a file imports when it is loaded: not in functions, not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {below for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for below in ast.walk(node)}
    late = {name for node in inside if isinstance(node, ast.Import) for name in (a.name for a in node.names)}
    late |= {node.module for node in inside if isinstance(node, ast.ImportFrom) and node.module}
    early = set(imports(path, running=True))
    top = {
        name
        for node in ast.walk(tree)
        if node not in inside and isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    return (n for n in early if n not in late or n in top)


PORTABLE = [*sorted(m for m in MODULES if m in ("word", "isa") or m.startswith("isa.")), "machine.engine.reference"]


@pytest.mark.parametrize("module", PORTABLE)
def test_reference_needs_nothing_native(module: str) -> None:
    """Words, rows and the reference engine run anywhere: nothing that they load needs a package with native code."""
    outside = {name.split(".")[0] for name in reached(module) if name not in MODULES}
    assert not outside & set(NATIVE)


def test_closure_sees_what_is_there() -> None:
    """The closure is not empty where it is known: the engine reaches llvmlite, and the reference reaches the rows."""
    assert "isa.spec" in reached("machine.engine.reference")
    assert "llvmlite" in {name.split(".")[0] for name in reached("machine.engine.llvm")}
