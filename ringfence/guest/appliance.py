"""A machine of ours that does a piece of work on disks: what would otherwise need root, or tools, on the host.

It is an image's kernel and first file system with a script in it, on a bare machine by the virtual clock: the same work
on the same bytes ends in the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ringfence.errors import ImageError
from ringfence.guest.cpio import Archive
from ringfence.guest.initramfs import command_archive, joined
from ringfence.guest.loader import load
from ringfence.machine.board import virt
from ringfence.machine.device.disk_image import open_disk
from ringfence.machine.device.virtio_blk import Disk
from ringfence.machine.exit import PowerOff

MEMORY = 1 << 30
LAST_LINES = 8
_DONE = "appliance: done"
_WRAP = f'sh -c "$0" && echo "{_DONE}"'
"""A machine may go off for other reasons than the script's end."""
LONGEST = 1000
"""Characters of a line that are kept."""


@dataclass(frozen=True)
class Appliance:
    """The kernel, and the first file system with busybox, whose scripts are run."""

    kernel: bytes
    initrd: bytes
    append: str

    def run(
        self,
        what: str,
        script: str,
        disks: Sequence[Path],
        *,
        files: Archive | None = None,
        line: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Runs a script of busybox's shell, with `files` and the disks /dev/vda, /dev/vdb and so on; `line` is told
        each line that it prints. ImageError with the last of them, where it does not end with status 0: `what` then was
        not done.
        """
        last: deque[str] = deque(maxlen=LAST_LINES)

        def printed(text: str) -> None:
            last.append(text)
            if text != _DONE:
                line(text)

        archives = [self.initrd, command_archive(["sh", "-c", _WRAP, script])]
        if files is not None:
            archives.append(bytes(files))
        with ExitStack() as stack:
            opened: list[Disk] = []
            for path in disks:
                disk = open_disk(path)
                stack.callback(disk.close)
                opened.append(disk)
            machine = virt(MEMORY, console=_Lines(printed), disks=opened)
            load(machine, self.kernel, initrd=(joined(*archives),), append=f"{self.append} panic=-1")
            machine.on_reset = lambda: machine.power_off(1)
            end = machine.run()
        if not (isinstance(end, PowerOff) and end.status == 0 and last and last.pop() == _DONE):
            said = "; ".join(text.strip() for text in last if text.strip())
            raise ImageError(f"{what} failed: {said or 'it printed nothing'}")


class _Lines:
    """A console that hands on whole lines."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line, self._rest = line, b""

    def write(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"").split(b"\n")
        self._rest = self._rest[:LONGEST]
        for text in lines:
            self._line("".join(c if c.isprintable() else " " for c in text.decode("utf-8", "replace"))[:LONGEST])
