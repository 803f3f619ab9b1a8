"""The engine's object code: made from the rows, kept in the user's cache directory.

An object's key holds everything that it depends on: the source of the rows and the engine, llvmlite, LLVM, the
processor. LLVM ends the process on a damaged object, so a file is trusted only where its digest holds; else it is
made again.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from functools import cache
from hashlib import blake2b
from pathlib import Path

from ringfence.machine.engine.layout import Geometry

_MAGIC = b"ringfence object 1\n"
_DIGEST = 32


def cache_directory() -> Path:
    """Where what can be made again is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "ringfence"


@cache
def _source() -> bytes:
    """A digest of the source that objects are made from."""
    room = Path(__file__).parents[2]
    digest = blake2b(digest_size=_DIGEST)
    for path in sorted(
        [
            room / "word.py",
            room / "machine" / "hart.py",
            *(room / "isa").glob("*.py"),
            *Path(__file__).parent.glob("*.py"),
        ]
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.digest()


def module(g: Geometry) -> str:
    """The engine in textual IR."""
    import ringfence.isa  # noqa: F401
    from ringfence.machine.engine import decoder, derived, handlers, interpreter, kernel, llvm, x86_64
    from ringfence.machine.engine.emit import OFFSETS

    text, symbols = handlers.functions(g)
    host = x86_64.functions(*(OFFSETS[n] for n in ("control", "host_control", "fflags", "frm")))
    parts = (
        host,
        derived.functions(g),
        kernel.functions(g),
        interpreter.functions(g),
        text,
        decoder.functions(g, symbols),
    )
    return "\n".join([f'target triple = "{llvm.triple()}"', *parts])


@cache
def functions(sets: int) -> dict[str, int]:
    """Addresses of the engine's functions for a TLB of so many sets."""
    from ringfence.machine.engine import llvm

    g = Geometry(sets)
    key = blake2b(f"{llvm.identity()} {sets}".encode(), key=_source(), digest_size=16).hexdigest()
    path = cache_directory() / "code" / f"{key}.o"
    data = _read(path)
    if data is None:
        data = llvm.compile_object(module(g))
        _write(path, data)
    return llvm.load_object(data, ["enter", "forget", "drop_own"])


def _read(path: Path) -> bytes | None:
    try:
        # A FIFO's writer is not waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            content = file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return None
    head = len(_MAGIC) + _DIGEST
    data = content[head:]
    whole = content.startswith(_MAGIC) and content[len(_MAGIC) : head] == blake2b(data, digest_size=_DIGEST).digest()
    return data if whole else None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all; a cache that cannot be written costs only time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(_MAGIC + blake2b(data, digest_size=_DIGEST).digest() + data)
                file.flush()
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        pass


@cache
def clock_gettime() -> int:
    """The address of the C library's function."""
    from ringfence.machine.engine import llvm

    return llvm.libc_address("clock_gettime")
