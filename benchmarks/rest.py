"""What a guest costs that waits at its prompt, nobody typing, as the command line runs it on a terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.debian import PROMPT
from benchmarks.table import Row

GUESTS = {"corral": "corral> ", "debian": PROMPT}
"""And their prompts."""
SETTLES, WATCHED = 3.0, 10.0
"""Seconds."""
LONGEST = 120.0
MOST = 1.0
"""Percent of a core."""


def rest() -> list[Row]:
    """All at once, for WATCHED."""
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as directory:
        commands = {}
        for guest in GUESTS:
            site = Path(directory) / f"{guest}.toml"
            site.write_text(f'[guests.{guest}]\nimage = "{guest}"\nmemory = "256M"\n')
            commands[f"{guest}, ringfence run"] = ["run", guest]
            commands[f"{guest}, ringfence up"] = ["up", str(site)]
        started = {what: _start(command) for what, command in commands.items()}
        try:
            for what, (_, terminal) in started.items():
                _await(terminal, GUESTS[what.split(",")[0]])
            time.sleep(SETTLES)
            before = {what: _used(child.pid) for what, (child, _) in started.items()}
            time.sleep(WATCHED)
            used = {what: _used(child.pid) - before[what] for what, (child, _) in started.items()}
        finally:
            for child, terminal in started.values():
                child.send_signal(signal.SIGTERM)
                child.wait()
                os.close(terminal)
    return [Row(what, 100 * seconds / WATCHED, "%", MOST) for what, seconds in used.items()]


def _start(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and its terminal."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-m", "ringfence", *command], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    return child, ours


def _await(terminal: int, prompt: str) -> None:
    printed = b""
    end = time.monotonic() + LONGEST
    while prompt.encode() not in printed:
        if time.monotonic() > end:
            sys.exit(f"{printed[-2000:].decode(errors='replace')}\nthere is no prompt {prompt!r}")
        printed += os.read(terminal, 1 << 16)


def _used(pid: int) -> float:
    """Seconds of the processor that all threads of a process have had."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9
