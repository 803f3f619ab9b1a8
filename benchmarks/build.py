"""Builds the benchmarks' guest programs with ziglang, once, into the user's cache directory."""

from __future__ import annotations

import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

from ringfence.machine.engine.code import cache_directory

SOURCE = Path(__file__).parent / "guest"
_BARE = (
    *("-target", "riscv64-freestanding-none", "-mcpu=generic_rv64+m+a+f+d+c", "-mcmodel=medany", "-nostdlib"),
    *("-ffreestanding", "-fno-builtin", "-T", str(SOURCE / "link.ld"), str(SOURCE / "start.S")),
)
_LINUX = ("-target", "riscv64-linux-musl", "-static")


def program(name: str, *, rounds: int | None = None, supervisor: bool = False) -> Path:
    """The ELF file of guest/NAME.c: bare metal with a number of rounds, in M-mode or, as firmware begins it, in S-mode;
    else a static Linux program.
    """
    source = SOURCE / f"{name}.c"
    arguments = (
        *(_LINUX if rounds is None else (*_BARE, *(("-DSUPERVISOR",) if supervisor else ()), f"-DROUNDS={rounds}")),
        "-O2",
        "-fno-sanitize=all",
        str(source),
    )
    digest = blake2b(repr(arguments).encode(), digest_size=8)
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    output = cache_directory() / "benchmarks" / f"{name}-{digest.hexdigest()}"
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(".partial")
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *arguments, "-o", str(partial)], check=True)
        partial.rename(output)
    return output
